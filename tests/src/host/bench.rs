//! Host and engines side by side: one case or program on all of them, the comparison, and shrinking what differs.

use super::case::Case;
use super::draw::Drawn;
use super::guest::Guest;
use super::masks::Mask;
use super::native::Native;
use super::{DATA_SIZE, Memory, State, Trap, at, print};
use backend::Settings;
use vm_core::testing::Rng;

const INT3: u8 = 0xcc;

/// Engine settings by name.
pub fn engine(name: &str) -> Option<(&'static str, Settings)> {
    let s = |jit, tier1| Settings {
        jit,
        threshold: 0,
        tier1,
        hot: 0,
        single_block_regions: false,
        bisect: None,
        background: false,
        max_insns: backend::MAX_INSNS,
        counter: None,
        perfmap: None,
    };
    Some(match name {
        "interp" => ("interp", s(false, false)),
        "tier1" => ("tier1", s(true, true)),
        "hot" => ("hot", Settings { hot: 1, ..s(true, true) }),
        "region" => ("region", Settings { hot: backend::AT_ONCE, ..s(true, true) }),
        "tier2" => ("tier2", s(true, false)),
        _ => return None,
    })
}

/// Makes a case simpler.
type Step = Box<dyn Fn(&mut Case)>;

/// Host and engines, with the same memory.
pub struct Bench {
    pub native: Native,
    pub(super) guests: Vec<(Guest, usize)>,
    /// What data memory holds before a case, without its patch.
    pub(super) background: Box<Memory>,
    pub(super) scratch: Box<Memory>,
}

impl Bench {
    pub fn new(engines: &[(String, usize)]) -> Result<Bench, String> {
        let native = Native::new().map_err(|e| format!("the host cannot run cases: {e}"))?;
        let mut guests = Vec::new();
        for (name, stride) in engines {
            let (name, settings) = engine(name).ok_or_else(|| format!("no engine `{name}`"))?;
            guests.push((Guest::new(name, settings).map_err(|e| e.to_string())?, (*stride).max(1)));
        }
        let mut b = Bench { native, guests, background: Box::new([0; DATA_SIZE]), scratch: Box::new([0; DATA_SIZE]) };
        b.fill(&mut Rng(1));
        Ok(b)
    }

    /// New random background.
    pub(super) fn fill(&mut self, r: &mut Rng) {
        self.background.chunks_mut(8).for_each(|c| c.copy_from_slice(&r.next_u64().to_le_bytes()));
        self.restore_all();
    }

    /// What each engine with a compiler compiled, as its `info jit` counts it.
    pub fn compiled(&mut self) -> String {
        let wanted = ["blocks emitted", "regions compiled", "region blocks", "guest insns compiled"];
        let mut out = String::new();
        for (g, _) in &mut self.guests {
            let (name, info) = (g.name, g.info_jit());
            let lines = info.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w)));
            let lines: Vec<String> = lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            if !lines.is_empty() {
                out += &format!("{name}: {}\n", lines.join(", "));
            }
        }
        out
    }

    pub fn set_background(&mut self, m: Box<Memory>) {
        self.background = m;
        self.restore_all();
    }

    fn restore_all(&mut self) {
        self.native.set_memory(&self.background);
        self.guests.iter_mut().for_each(|g| g.0.set_memory(&self.background));
    }

    /// Puts instructions into the code area, INT3 around them.
    pub fn set_code(&mut self, drawn: &[Drawn]) {
        let mut code = vec![INT3; at::CODE_SIZE as usize];
        for d in drawn {
            let o = (d.ip - at::CODE) as usize;
            code[o..o + d.bytes.len()].copy_from_slice(&d.bytes);
        }
        self.guests.iter_mut().for_each(|g| g.0.set_code(0, &code));
        for d in drawn.iter().filter(|d| d.falls_through()) {
            let end = d.ip + d.bytes.len() as u64;
            let o = (end - at::CODE) as usize;
            code[o..o + 5].copy_from_slice(&Native::way_out(d.bits, end));
        }
        self.native.set_code(0, &code);
    }

    /// Runs natively; memory is left as the run left it.
    pub fn host(&mut self, d: &Drawn, c: &Case) -> (State, Trap) {
        self.native.write(c.patch.0, &c.patch.1);
        let (mut s, trap) = self.native.run(d.bits, &c.state);
        if trap.vector == 3 && s.rip == 0 {
            s.rip = d.ip + d.bytes.len() as u64 + 1;
        }
        (s, trap)
    }

    /// Data memory as the host left it, that can be written.
    fn host_memory(&self) -> [&[u8; 0x2000]; 2] {
        self.native.memory()
    }

    /// Runs on one engine and compares with what the host did. `memory`: compare that, too.
    fn compare(&mut self, k: usize, d: &Drawn, c: &Case, host: &(State, Trap), memory: bool) -> Option<String> {
        let g = &mut self.guests[k].0;
        g.write(c.patch.0, &c.patch.1);
        let name = g.name;
        let got = match g.run(d.bits, &c.state) {
            Ok(got) => got,
            Err(why) => return Some(format!("{name}: {why}")),
        };
        let target = d.insn.virtual_address(0, 0, |_, _, _| Some(0)).map_or(0, |_| operand_address(d, &c.state));
        let mask = Mask::new(d, &c.state, target, host.1);
        let mut wrong = differences(host, &got, &mask);
        if memory || !wrong.is_empty() {
            g.memory(&mut self.scratch);
            let host = self.native.memory();
            memory_differences(&self.scratch, host, &mask, &mut wrong);
        }
        (!wrong.is_empty()).then(|| format!("{name}: {}", wrong.join(", ")))
    }

    /// Brings all memories back to the background after a case.
    pub(super) fn restore(&mut self, c: &Case, whole: bool) {
        if whole {
            let host = self.host_memory();
            let same = host[0][..] == self.background[..0x2000] && host[1][..] == self.background[0x2000..0x4000];
            if !same {
                self.native.write(0, &self.background[..0x4000]);
            }
            for (g, _) in &mut self.guests {
                g.memory(&mut self.scratch);
                if self.scratch[..0x4000] != self.background[..0x4000] {
                    g.write(0, &self.background[..0x4000]);
                }
            }
            return;
        }
        let r = c.patch.0..c.patch.0 + 64;
        self.native.write(c.patch.0, &self.background[r.clone()]);
        self.guests.iter_mut().for_each(|g| g.0.write(c.patch.0, &self.background[r.clone()]));
    }

    /// One case on the host and on those engines whose turn it is. Gives the first difference.
    pub(super) fn once(
        &mut self,
        d: &Drawn,
        c: &Case,
        turn: impl Fn(usize) -> bool,
        check: bool,
    ) -> (Trap, Option<(usize, String)>) {
        let host = self.host(d, c);
        let memory = d.writes_memory || check;
        let mut wrong = None;
        for k in 0..self.guests.len() {
            if turn(self.guests[k].1) && wrong.is_none() {
                wrong = self.compare(k, d, c, &host, memory).map(|w| (k, w));
            }
        }
        self.restore(c, memory || wrong.is_some());
        (host.1, wrong)
    }

    /// An instruction, put into the code area, on the host and on all engines. `Err`: what differs.
    pub fn one(&mut self, d: &Drawn, state: &State) -> Result<Trap, String> {
        self.set_code(std::slice::from_ref(d));
        let c = Case { state: state.clone(), patch: (0, [0; 64]) };
        match self.once(d, &c, |_| true, true) {
            (trap, None) => Ok(trap),
            (_, Some((_, why))) => Err(why),
        }
    }

    /// Drops what does not matter for a difference on engine `k`.
    fn shrink(&mut self, k: usize, d: &Drawn, c: &Case) -> Case {
        let mut best = c.clone();
        let zero = State::new();
        let mut steps: Vec<Step> = vec![
            Box::new(|c| (c.state.xmm, c.state.ymmh) = ([0; 16], [0; 16])),
            Box::new(|c| c.state.ymmh = [0; 16]),
            Box::new(|c| c.state.st = State::new().st),
            Box::new(|c| (c.state.fcw, c.state.fsw, c.state.ftw) = (0x37f, 0, 0)),
            Box::new(|c| (c.state.fcw, c.state.fsw) = (0x37f, 0)),
            Box::new(|c| c.state.fcw = 0x37f),
            Box::new(|c| c.state.mxcsr = 0x1f80),
            Box::new(|c| c.state.flags = 0x202),
            Box::new(|c| c.patch.1 = [0; 64]),
        ];
        for i in 0..16 {
            steps.push(Box::new(move |c| c.state.gpr[i] = 0));
            steps.push(Box::new(move |c| c.state.xmm[i] = 0));
            steps.push(Box::new(move |c| c.state.ymmh[i] = 0));
            steps.push(Box::new(move |c| c.state.flags &= !(1 << i) | 0x202));
            steps.push(Box::new(move |c| c.state.mxcsr = c.state.mxcsr & !(1 << i) | 0x1f80 & 1 << i));
            steps.push(Box::new(move |c| c.state.st[i & 7] = zero.st[0]));
        }
        for step in steps {
            let mut c = best.clone();
            step(&mut c);
            c.state.summarise();
            let host = self.host(d, &c);
            if self.compare(k, d, &c, &host, true).is_some() {
                best = c.clone();
            }
            self.restore(&c, true);
        }
        best
    }

    /// A mismatch as a filetest with what differs in front.
    pub(super) fn describe(&mut self, k: usize, d: &Drawn, c: &Case) -> String {
        let c = self.shrink(k, d, c);
        let host = self.host(d, &c);
        let text = print::filetest(d, &c, &host, self.native.memory(), &self.background);
        let wrong = self.compare(k, d, &c, &host, true);
        self.restore(&c, true);
        let wrong = wrong.unwrap_or_else(|| "only after the cases before".into());
        format!("; {wrong}\n{}", text.unwrap_or_else(|why| format!("; {why}: {:02x?} {} {c:x?}\n", d.bytes, d.insn)))
    }
}

/// Linear address of the memory operand, 0 without one.
pub fn operand_address(d: &Drawn, s: &State) -> u64 {
    let value = |reg: iced_x86::Register, _: usize, _: usize| -> Option<u64> {
        if reg.is_segment_register() {
            return Some(0);
        }
        if reg == iced_x86::Register::RIP || reg == iced_x86::Register::EIP {
            return Some(d.ip + d.bytes.len() as u64);
        }
        let n = reg.number();
        Some(match reg.size() {
            8 => s.gpr[n],
            4 => s.gpr[n] & 0xffff_ffff,
            2 => s.gpr[n] & 0xffff,
            _ => s.gpr[n] & 0xff,
        })
    };
    let k = (0..d.insn.op_count()).find(|k| d.insn.op_kind(*k) == iced_x86::OpKind::Memory);
    k.and_then(|k| d.insn.virtual_address(k, 0, value)).unwrap_or(0)
}

/// What differs, but for memory.
pub(super) fn differences(host: &(State, Trap), got: &(State, Trap), m: &Mask) -> Vec<String> {
    let mut out = Vec::new();
    let (a, b) = (&host.0, &got.0);
    if host.1 != got.1 && !trap_alike(host.1, got.1, m) {
        out.push(format!("trap {:x?}, host {:x?}", got.1, host.1));
    }
    let mut note = |name: &str, i: usize, a: u128, b: u128| {
        if a != b {
            out.push(format!("{name}{i} {b:x}, host {a:x}"));
        }
    };
    if a.gpr != b.gpr && !m.registers {
        (0..16).filter(|i| m.gpr != Some(*i)).for_each(|i| note("gpr", i, a.gpr[i].into(), b.gpr[i].into()));
    }
    if a.xmm != b.xmm {
        let keep = |i| if m.xmm_high == Some(i) { u128::from(u64::MAX) } else { !0 };
        (0..16).for_each(|i| note("xmm", i, a.xmm[i] & keep(i), b.xmm[i] & keep(i)));
    }
    (0..16).for_each(|i| note("ymmh", i, a.ymmh[i], b.ymmh[i]));
    let st = |r: arch_x86::F80| u128::from(r.sexp) << 64 | u128::from(r.mant);
    (0..8).filter(|_| !m.tags).for_each(|i| note("st", i, st(a.st[i]), st(b.st[i])));
    note("rip", 0, a.rip.into(), b.rip.into());
    note("flags", 0, (a.flags & m.flags).into(), (b.flags & m.flags).into());
    note("mxcsr", 0, (a.mxcsr & m.mxcsr).into(), (b.mxcsr & m.mxcsr).into());
    note("fcw", 0, a.fcw.into(), b.fcw.into());
    let fsw = if m.tags { m.fsw & !0x3800 } else { m.fsw };
    note("fsw", 0, (a.fsw & fsw).into(), (b.fsw & fsw).into());
    if !m.tags {
        note("ftw", 0, a.ftw.into(), b.ftw.into());
    }
    // AMD's processors keep them only for an exception that is pending (APM 2 "FXSAVE and FXRSTOR Instructions").
    if a.fsw & b.fsw & 0x80 != 0 {
        // Of 57 bits in the guest, which has LA57.
        let bits = |v: u64| u128::from(v << 16);
        note("fip", 0, bits(a.fip), bits(b.fip));
        note("fdp", 0, bits(a.fdp), bits(b.fdp));
        if m.fop {
            note("fop", 0, a.fop.into(), b.fop.into());
        }
    }
    out
}

/// Page faults where only the bit "present" may differ: Linux sets it for addresses of its own half, and the guest's system
/// has pages where the process has none.
fn trap_alike(host: Trap, got: Trap, m: &Mask) -> bool {
    if m.class && [host.vector, got.vector].iter().all(|v| matches!(v, 12..=14 | 17)) {
        return true;
    }
    let own =
        host.addr >= 0x7fff_ffff_f000 || (0x1000..0x8000).contains(&host.addr) || (0x1e_f000..0x1f_2000).contains(&host.addr);
    if m.fault_address && (host.vector, host.error | 1) == (got.vector, got.error | 1) {
        return true;
    }
    host.vector == 14 && own && (host.vector, host.addr, host.error | 1) == (got.vector, got.addr, got.error | 1)
}

pub(super) fn memory_differences(got: &Memory, host: [&[u8; 0x2000]; 2], m: &Mask, out: &mut Vec<String>) {
    if got[..0x2000] == host[0][..] && got[0x2000..0x4000] == host[1][..] {
        return;
    }
    let host = |i: usize| if i < 0x2000 { host[0][i] } else { host[1][i - 0x2000] };
    let differs = |i: &usize| got[*i] != host(*i) && !m.memory.iter().any(|r| r.contains(&super::address(*i)));
    for i in (0..0x4000).filter(differs).take(4) {
        out.push(format!("[{:x}] {:02x}, host {:02x}", super::address(i), got[i], host(i)));
    }
}
