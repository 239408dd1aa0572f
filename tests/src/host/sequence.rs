//! Programs of 5 to 40 random instructions with loops and forward branches, natively and on engines. Pointers are set before
//! instructions that access memory; some lead across pages or to where accesses fault, in half of the programs each k-th access
//! does. After a fault both sides go on behind the instruction, and all state is compared at each.

use super::bench::{Bench, differences, memory_differences};
use super::case::{self, Case};
use super::draw::{Drawn, draw};
use super::forms::{self, Form};
use super::masks::{Mask, TABLE, What};
use super::{Bits, State, Trap, at};
use iced_x86::{FlowControl, Mnemonic as M, OpKind, Register};
use vm_core::testing::Rng;

/// Faults after which a program ends.
const FAULTS: usize = 24;

/// An instruction and the constants that are loaded into registers before it.
#[derive(Clone, Debug)]
enum Item {
    Insn {
        form: usize,
        seed: u64,
    },
    /// Over this many items if the condition holds.
    Forward {
        cc: u8,
        over: usize,
    },
    /// To the item `back` before, until the counter at this index is 0.
    Loop {
        back: usize,
        counter: usize,
    },
}

/// A program laid out: its code, and where each item that can fault begins and ends.
pub struct Program {
    pub bits: Bits,
    items: Vec<Item>,
    pub start: u64,
    pub code: Vec<u8>,
    /// (first byte, first byte after) of instructions.
    spans: Vec<(u64, u64)>,
    /// Each access of this number faults; 0: those that happen to.
    every: u64,
    accesses: u64,
    seed: u64,
}

/// Forms that programs are made of: no branches, nothing whose result is undefined but for flags.
pub fn usable(bits: Bits) -> Vec<Form> {
    let fixed = |f: &Form| {
        let m = f.code.mnemonic();
        let open = TABLE.iter().any(|r| r.0.contains(&m) && !matches!(r.2, What::Flags(_)));
        let branch = iced_flow(f) != FlowControl::Next;
        !open && !branch && !matches!(m, M::Popf | M::Popfd | M::Popfq | M::Pushf | M::Pushfd | M::Pushfq | M::Int3)
    };
    forms::all(bits).into_iter().filter(|f| f.left_out.is_none() && fixed(f)).collect()
}

fn iced_flow(f: &Form) -> FlowControl {
    f.code.flow_control()
}

impl Program {
    pub fn random(seed: u64, bits: Bits, forms: &[Form]) -> Program {
        let mut r = Rng(seed);
        let n = 5 + r.below(36) as usize;
        let mut items = Vec::new();
        let mut counters = 0;
        for i in 0..n {
            items.push(match r.below(12) {
                0 => Item::Forward { cc: r.below(16) as u8, over: 1 + r.below(3) as usize },
                1 if counters < at::COUNTERS
                    && i > 0
                    && !items[i.saturating_sub(6)..].iter().any(|x| matches!(x, Item::Loop { .. })) =>
                {
                    counters += 1;
                    Item::Loop { back: 1 + r.below(5.min(i as u64)) as usize, counter: counters - 1 }
                }
                _ => Item::Insn { form: r.below(forms.len() as u64) as usize, seed: r.next_u64() },
            });
        }
        // Often so that code runs across a page.
        let start = at::CODE + if r.one_in(3) { 0x2000 - r.below(300) } else { 0x1000 + r.below(0x400) };
        let every = if r.one_in(2) { 1 + r.below(6) } else { 0 };
        let mut p = Program { bits, items, start, code: Vec::new(), spans: Vec::new(), every, accesses: 0, seed };
        p.lay_out(forms);
        p
    }

    /// The same without item `i`.
    fn without(&self, i: usize, forms: &[Form]) -> Program {
        let mut items = self.items.clone();
        items[i] = Item::Forward { cc: 0, over: 0 };
        let mut p = Program { items, code: Vec::new(), spans: Vec::new(), accesses: 0, ..*self };
        p.lay_out(forms);
        p
    }

    fn lay_out(&mut self, forms: &[Form]) {
        let (mut places, mut fixes) = (Vec::new(), Vec::new());
        for (n, item) in self.items.clone().into_iter().enumerate() {
            places.push(self.code.len());
            match item {
                Item::Insn { form, seed } => self.insn(&forms[form], form, &mut Rng(seed)),
                Item::Forward { over: 0, .. } => {}
                Item::Forward { cc, over } => {
                    self.code.extend([0x0f, 0x80 | cc, 0, 0, 0, 0]);
                    fixes.push((self.code.len(), n + 1 + over));
                }
                Item::Loop { back, counter } => {
                    // dec dword [counter]; jnz back. The counter is known only to the loop.
                    let address = (at::COUNTER + 4 * counter as u64) as u32;
                    self.code.extend(if self.bits == Bits::B64 { &[0xff, 0x0c, 0x25][..] } else { &[0xff, 0x0d][..] });
                    self.code.extend(address.to_le_bytes());
                    self.code.extend([0x0f, 0x85, 0, 0, 0, 0]);
                    fixes.push((self.code.len(), n - back));
                }
            }
        }
        places.push(self.code.len());
        for (end, item) in fixes {
            let to = places[item.min(places.len() - 1)];
            self.code[end - 4..end].copy_from_slice(&(to as u32).wrapping_sub(end as u32).to_le_bytes());
        }
    }

    fn insn(&mut self, f: &Form, form: usize, r: &mut Rng) {
        // Its place depends on the constants before it, of which there are at most five.
        let Some(mut d) = (0..20).find_map(|_| draw(r, self.bits, f, form, self.start)) else { return };
        let mut s = State::new();
        let mut c = case::case(r, &d);
        let accesses = d.insn.mnemonic() != M::Lea && !pointers(&d).is_empty();
        self.accesses += u64::from(accesses);
        if accesses && self.every != 0 && self.accesses.is_multiple_of(self.every) {
            // One whose address a register holds.
            if let Some((x, y)) = (0..20).find_map(|_| faulting(r, self.bits, f, form, self.start)) {
                (d, c) = (x, y);
            }
        }
        if d.vendors_differ(&c) {
            return;
        }
        s.gpr = c.state.gpr;
        for reg in pointers(&d) {
            let v = s.gpr[reg];
            if self.bits == Bits::B64 {
                self.code.extend([0x48 | (reg as u8 >> 3), 0xb8 | (reg as u8 & 7)]);
                self.code.extend(v.to_le_bytes());
            } else {
                self.code.push(0xb8 | reg as u8);
                self.code.extend((v as u32).to_le_bytes());
            }
        }
        let ip = self.start + self.code.len() as u64;
        let mut bytes = d.bytes.clone();
        if d.insn.is_ip_rel_memory_operand() {
            let (o, n) = (d.offsets().displacement_offset(), d.offsets().displacement_size());
            let disp = d.insn.memory_displacement64().wrapping_sub(ip + bytes.len() as u64);
            bytes[o..o + n].copy_from_slice(&disp.to_le_bytes()[..n]);
        }
        self.spans.push((ip, ip + bytes.len() as u64));
        self.code.extend(&bytes);
        // Flags that are undefined now are defined before somebody reads them: cmp eax, imm8.
        if TABLE.iter().any(|r| r.0.contains(&d.insn.mnemonic())) {
            self.code.extend([0x83, 0xf8, r.next_u64() as u8]);
        }
    }

    /// Registers and memory at the start.
    fn case(&self) -> Case {
        let mut r = Rng(self.seed ^ 0x5eed);
        let nop = Drawn::new(self.bits, self.start, &[0x90]).expect("a no-op");
        let mut c = case::case(&mut r, &nop);
        c.state.flags &= !0x4_0100;
        c
    }

    pub fn text(&self) -> String {
        let (mut s, mut ip) = (String::new(), self.start);
        let mut rest = &self.code[..];
        while !rest.is_empty() {
            let i = forms::decode(self.bits, ip, rest);
            let n = i.len().clamp(1, rest.len());
            s += &format!("{ip:x}: {:02x?} {i}\n", &rest[..n]);
            (ip, rest) = (ip + n as u64, &rest[n..]);
        }
        s
    }
}

/// The form with an address where it faults: absent, in part absent, read-only if it writes.
fn faulting(r: &mut Rng, bits: Bits, f: &Form, form: usize, ip: u64) -> Option<(Drawn, Case)> {
    let d = draw(r, bits, f, form, ip)?;
    let used = pointers(&d);
    let mut c = case::case(r, &d);
    let size = d.insn.memory_size().size().clamp(1, 64) as u64;
    let to = match r.below(4) {
        0 => r.pick(&[at::ABSENT, at::END]) - 1 - r.below(size),
        1 if d.writes_memory => at::READ_ONLY + r.below(0xe00),
        _ => r.pick(&[at::ABSENT, at::END]) + 0x40 + r.below(0xe00),
    };
    if (0..d.insn.op_count()).any(|k| d.insn.op_kind(k) == OpKind::Memory) {
        if d.insn.is_ip_rel_memory_operand() || d.insn.memory_base() == Register::None {
            return None;
        }
        case::address(r, &d, &mut c.state, to);
    } else {
        let reg = used.iter().find(|n| **n != 1).copied()?;
        c.state.gpr[reg] = to;
    }
    Some((d, c))
}

/// Registers that the instruction finds its memory with.
fn pointers(d: &Drawn) -> Vec<usize> {
    let mut info = iced_x86::InstructionInfoFactory::new();
    let mut out = Vec::new();
    for m in info.info(&d.insn).used_memory() {
        out.extend([m.base(), m.index()].iter().filter(|r| r.is_gpr()).map(|r| r.number()));
    }
    if d.insn.has_rep_prefix() || d.insn.has_repne_prefix() {
        out.push(1);
    }
    out.sort_unstable();
    out.dedup();
    out
}

impl Bench {
    /// Puts a program everywhere, and memory and counters as they are at its start.
    fn program(&mut self, p: &Program, c: &Case, counters: &[u32; at::COUNTERS]) {
        let mut code = p.code.clone();
        code.resize(code.len() + 32, 0xcc);
        let offset = p.start - at::CODE;
        let counters: Vec<u8> = counters.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.native.set_code(offset, &code);
        self.native.write(0, &self.background[..0x4000]);
        self.native.write(c.patch.0, &c.patch.1);
        self.native.set_counters(&counters);
        for (g, _) in &mut self.guests {
            g.set_code(offset, &code);
            g.write(0, &self.background[..0x4000]);
            g.write(c.patch.0, &c.patch.1);
            g.set_counters(&counters);
        }
    }

    /// Runs on from a state to the next trap, everywhere. `Err`: who differs and in what.
    fn go_on(&mut self, bits: Bits, s: &State) -> Result<(State, Trap), String> {
        let host = self.native.run(bits, s);
        // Where an exception is unmasked afterwards AMD's processors have the last instruction's, Intel's that of the last that raised one.
        let mask = Mask { fop: false, ..Mask::all() };
        for (g, _) in &mut self.guests {
            let name = g.name;
            let got = g.run(bits, s).map_err(|why| format!("{name}: {why}"))?;
            let mut wrong = differences(&host, &got, &mask);
            g.memory(&mut self.scratch);
            memory_differences(&self.scratch, self.native.memory(), &mask, &mut wrong);
            if !wrong.is_empty() {
                return Err(format!("{name}: {}", wrong.join(", ")));
            }
        }
        Ok(host)
    }
}

/// What a run of programs did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub programs: u64,
    pub faults: u64,
    pub exits: u64,
}

/// Runs one program everywhere. `Err`: what differs.
fn once(e: &mut Bench, p: &Program, sum: &mut Summary) -> Result<(), String> {
    let c = p.case();
    let mut r = Rng(p.seed ^ 0xc0de);
    let counters: [u32; at::COUNTERS] = std::array::from_fn(|_| 1 + r.below(7) as u32);
    e.program(p, &c, &counters);
    let mut state = c.state.clone();
    state.rip = p.start;
    for _ in 0..FAULTS {
        let next = e.go_on(p.bits, &state).map_err(|why| format!("{why}\n"))?;
        let (mut s, trap) = next;
        sum.exits += 1;
        if trap.vector == 3 {
            return Ok(());
        }
        sum.faults += 1;
        // On, behind the instruction.
        let Some(span) = p.spans.iter().find(|x| x.0 == s.rip) else {
            return Err(format!("a fault {trap:x?} at {:x}, where no instruction begins\n", s.rip));
        };
        s.rip = span.1;
        s.flags &= !0x1_0000;
        if trap.vector == 16 {
            // As a handler would.
            s.fsw &= !0x80ff;
        }
        state = s;
    }
    Ok(())
}

/// Programs `seed..seed + count`, a fourth of them of 32 bits. `Err`: the first that differs, shrunk.
pub fn run(e: &mut Bench, seed: u64, count: u64, forms: &[Vec<Form>; 2], sum: &mut Summary) -> Result<(), String> {
    for n in seed..seed + count {
        let bits = if n % 4 == 3 { Bits::B32 } else { Bits::B64 };
        let forms = &forms[bits as usize];
        let p = Program::random(n, bits, forms);
        sum.programs += 1;
        if let Err(mut why) = once(e, &p, sum) {
            let mut p = p;
            let mut i = 0;
            while i < p.items.len() {
                let q = p.without(i, forms);
                if let Err(w) = once(e, &q, &mut Summary::default()) {
                    (p, why) = (q, w);
                }
                i += 1;
            }
            return Err(format!("program {n}, {} bits: {why}{}", bits.count(), p.text()));
        }
    }
    Ok(())
}
