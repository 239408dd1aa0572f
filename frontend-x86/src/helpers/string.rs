//! Repeated string instructions and string I/O, in bounded parts (SDM 2 "REP").

use super::io::{check, read_port, write_port};
use super::segment::linear;
use super::stack::merge;
use super::{ANY, Env, Res};
use arch_x86::flags::{Cc, CcKind, bit};
use arch_x86::{CpuState, Mode, SegReg};
use vm_core::{Access, Fault, Va};

rows! {
    topic string;
    /// (`How::pack`): does a part; 1 if the instruction is finished, 0 if it must run again. Registers are exact after
    /// each element.
    STRING = string(1) ANY;
}

/// Most elements done one by one in a call, and most bytes in bulk: events wait no longer.
const SINGLE_MAX: u64 = 256;
const BULK_MAX: u64 = 4096;

/// Which instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    Ins,
    Outs,
}

/// What the helper must know of the instruction.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub kind: Kind,
    /// Bytes of an element.
    pub bytes: u32,
    /// Bytes of an address: 2, 4, 8.
    pub addr_bytes: u32,
    /// Segment of the source.
    pub seg: SegReg,
    /// With a repeat prefix; else one element, and the count is not touched.
    pub repeats: bool,
    /// REPE rather than REPNE (CMPS, SCAS).
    pub while_zero: bool,
    /// One element a call: single-step mode.
    pub one: bool,
}

impl How {
    pub fn pack(self) -> u64 {
        let flags = u64::from(self.repeats) | u64::from(self.while_zero) << 1 | u64::from(self.one) << 2;
        self.kind as u64 | u64::from(self.bytes) << 8 | u64::from(self.addr_bytes) << 16 | (self.seg as u64) << 24 | flags << 32
    }

    fn unpack(v: u64) -> How {
        let kinds = [Kind::Movs, Kind::Stos, Kind::Lods, Kind::Scas, Kind::Cmps, Kind::Ins, Kind::Outs];
        How {
            kind: *kinds.get((v & 0xff) as usize).unwrap_or(&Kind::Lods),
            bytes: (v >> 8 & 15) as u32,
            addr_bytes: (v >> 16 & 15) as u32,
            seg: SegReg::from_index(v >> 24 & 0xff).unwrap_or(SegReg::Ds),
            repeats: v >> 32 & 1 == 1,
            while_zero: v >> 33 & 1 == 1,
            one: v >> 34 & 1 == 1,
        }
    }

    fn mask(&self) -> u64 {
        match self.addr_bytes {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => !0,
        }
    }

    fn uses_si(&self) -> bool {
        matches!(self.kind, Kind::Movs | Kind::Lods | Kind::Cmps | Kind::Outs)
    }

    fn uses_di(&self) -> bool {
        !matches!(self.kind, Kind::Lods | Kind::Outs)
    }
}

const CX: usize = 1;
const SI: usize = 6;
const DI: usize = 7;

fn string<E: Env>(env: &mut E, how: u64, _: u64, _: u64) -> Res {
    let h = How::unpack(how);
    if matches!(h.kind, Kind::Ins | Kind::Outs) {
        check(env, env.cpu_ref().gpr[2] as u16, h.bytes as u8)?;
    }
    if !h.repeats {
        element(env, &h)?;
        advance(env.cpu(), &h, 1);
        return Ok(1);
    }
    let left = count(env.cpu_ref(), &h);
    if left == 0 {
        return Ok(1);
    }
    if !h.one && matches!(h.kind, Kind::Movs | Kind::Stos) {
        let n = bulk(env, &h, left.min(env.iterations_left().saturating_add(1)))?;
        if n > 0 {
            env.count_iterations(n - 1);
            advance(env.cpu(), &h, n);
            return Ok((n == left).into());
        }
    }
    let part = if h.one { 1 } else { left.min(SINGLE_MAX) };
    for i in 0..part {
        if i > 0 {
            if env.iterations_left() == 0 {
                return Ok(0);
            }
            env.count_iterations(1);
        }
        let zero = element(env, &h)?;
        advance(env.cpu(), &h, 1);
        if zero.is_some_and(|z| z != h.while_zero) {
            return Ok(1);
        }
    }
    if h.one && part != left {
        // The breakpoint at this instruction was met when it began (SDM 3B "Instruction-Breakpoint Exception Condition").
        env.cpu().eflags |= bit::RF;
    }
    Ok((part == left).into())
}

fn count(cpu: &CpuState, h: &How) -> u64 {
    cpu.gpr[CX] & h.mask()
}

/// Registers after `n` elements.
fn advance(cpu: &mut CpuState, h: &How, n: u64) {
    let (mask, down) = (h.mask(), cpu.eflags & bit::DF != 0);
    let by = n.wrapping_mul(h.bytes.into());
    let by = if down { by.wrapping_neg() } else { by };
    let g = &mut cpu.gpr;
    if h.uses_si() {
        g[SI] = merge(g[SI], g[SI].wrapping_add(by), mask);
    }
    if h.uses_di() {
        g[DI] = merge(g[DI], g[DI].wrapping_add(by), mask);
    }
    if h.repeats {
        g[CX] = merge(g[CX], g[CX].wrapping_sub(n), mask);
    }
}

/// #AC(0) for an element that is not aligned where that is checked.
fn placed(cpu: &CpuState, h: &How, va: u64) -> Result<Va, Fault> {
    if cpu.mode().has(Mode::ALIGN) {
        arch_x86::segment::aligned(cpu, va, h.bytes.max(1).into(), h.bytes.into())?;
    }
    Ok(Va(va))
}

fn source<E: Env>(env: &E, h: &How) -> Result<Va, Fault> {
    let cpu = env.cpu_ref();
    placed(cpu, h, linear(cpu, h.seg, cpu.gpr[SI] & h.mask(), h.bytes.into(), false)?)
}

fn dest<E: Env>(env: &E, h: &How, write: bool) -> Result<Va, Fault> {
    let cpu = env.cpu_ref();
    placed(cpu, h, linear(cpu, SegReg::Es, cpu.gpr[DI] & h.mask(), h.bytes.into(), write)?)
}

/// One element, registers but RAX and flags untouched. CMPS and SCAS give whether the operands were equal.
fn element<E: Env>(env: &mut E, h: &How) -> Result<Option<bool>, Fault> {
    let (ctx, size) = (env.cpu_ref().mode().ctx(), h.bytes as u8);
    let acc = env.cpu_ref().gpr[0];
    match h.kind {
        Kind::Movs => {
            let s = source(env, h)?;
            let v = env.load(s, size, ctx)?;
            let d = dest(env, h, true)?;
            env.store(d, size, v, ctx)?;
        }
        Kind::Stos => {
            let d = dest(env, h, true)?;
            env.store(d, size, truncate(acc, size), ctx)?;
        }
        Kind::Lods => {
            let s = source(env, h)?;
            let v = env.load(s, size, ctx)?;
            let g = &mut env.cpu().gpr[0];
            *g = if size == 1 { *g & !0xff | v } else { merge(*g, v, if size == 2 { 0xffff } else { !0 }) };
        }
        Kind::Cmps | Kind::Scas => {
            let a = if h.kind == Kind::Cmps {
                let s = source(env, h)?;
                env.load(s, size, ctx)?
            } else {
                truncate(acc, size)
            };
            let d = dest(env, h, false)?;
            let b = env.load(d, size, ctx)?;
            let cc = Cc { op: CcKind::Sub.op(h.bytes), dst: extend(a, size), src: extend(b, size), aux: 0 };
            env.cpu().set_cc(cc);
            return Ok(Some(a == b));
        }
        Kind::Ins => {
            let d = dest(env, h, true)?;
            // The port is read only when the store cannot fault: reading may change the device.
            env.probe(d, size.into(), Access::Write, ctx)?;
            let v = read_port(env, size);
            env.store(d, size, v, ctx)?;
        }
        Kind::Outs => {
            let s = source(env, h)?;
            let v = env.load(s, size, ctx)?;
            write_port(env, size, v);
        }
    }
    Ok(None)
}

fn truncate(v: u64, size: u8) -> u64 {
    v & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))))
}

fn extend(v: u64, size: u8) -> u64 {
    let sh = 64 - 8 * u32::from(size.clamp(1, 8));
    ((v << sh) as i64 >> sh) as u64
}

/// As many whole elements of MOVS or STOS as one step may do; 0: go one by one.
fn bulk<E: Env>(env: &mut E, h: &How, left: u64) -> Result<u64, Fault> {
    let cpu = env.cpu_ref();
    if cpu.mode().has(Mode::ALIGN) {
        return Ok(0);
    }
    let down = cpu.eflags & bit::DF != 0;
    // Elements have 1, 2, 4 or 8 bytes: shifts, as most of these are short and a division would be the dearest part.
    let shift = h.bytes.max(1).trailing_zeros();
    let (ctx, size, mask) = (cpu.mode().ctx(), 1 << shift, h.mask());
    let (si, di) = (cpu.gpr[SI] & mask, cpu.gpr[DI] & mask);
    // Elements from an offset in a segment, which lies at `va`, to the end of the page and of the addresses there are.
    let room = |offset: u64, va: u64| match (va & 4095) + size {
        end if down && end > 4096 => 0,
        end if down => (end >> shift).min((offset >> shift) + 1),
        end => (4096 + size - end).min((mask - offset).saturating_add(1)) >> shift,
    };
    // Which of an element's faults comes first is found one by one.
    let Ok(d) = linear(cpu, SegReg::Es, di, size, true) else { return Ok(0) };
    let mut n = room(di, d).min(BULK_MAX >> shift).min(left);
    let mut s = 0;
    if h.kind == Kind::Movs {
        let Ok(at) = linear(cpu, h.seg, si, size, false) else { return Ok(0) };
        s = at;
        n = n.min(room(si, s));
    }
    if n == 0 {
        return Ok(0);
    }
    let lowest = |at: u64| if down { at - (n - 1) * size } else { at };
    if linear(cpu, SegReg::Es, lowest(di), n * size, true).is_err() {
        return Ok(0);
    }
    let done = if h.kind == Kind::Stos {
        let v = truncate(cpu.gpr[0], h.bytes as u8);
        env.bulk_fill(Va(lowest(d)), h.bytes as u8, v, n, ctx)
    } else if linear(cpu, h.seg, lowest(si), n * size, false).is_err() {
        Ok(0)
    } else {
        // `room` makes the copy end with a whole element.
        env.bulk_copy(Va(lowest(d)), Va(lowest(s)), n * size, down, ctx).map(|done| done >> shift)
    };
    match done {
        // Downwards it is not the lowest element that faults.
        Err(_) if down => Ok(0),
        done => done.map(|done| done.min(n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FlatEnv, FlatMemory};
    use arch_x86::fault;
    use arch_x86::state::cr0;

    /// Bytes of memory and registers after an instruction, done in bulk where that may be.
    fn run(kind: Kind, bytes: u32, df: u64, from: u64, to: u64, n: u64) -> (Vec<u8>, [u64; 3]) {
        let config = arch_x86::models::configure("max", &[]).expect("a model");
        let mut cpu = CpuState::new(&config, 0);
        cpu.cr0 |= cr0::PE;
        cpu.seg.iter_mut().for_each(|s| s.limit = u32::MAX);
        cpu.set_rflags(df);
        (cpu.gpr[0], cpu.gpr[CX], cpu.gpr[SI], cpu.gpr[DI]) = (0x8877_6655_4433_2211, n, from, to);
        let mut mem = FlatMemory { base: 0, bytes: (0..0x3000).map(|k| (k * 7 + k / 256) as u8).collect() };
        let h = How { kind, bytes, addr_bytes: 4, seg: SegReg::Ds, repeats: true, while_zero: false, one: false };
        while string(&mut FlatEnv { cpu: &mut cpu, mem: &mut mem }, h.pack(), 0, 0) == Ok(0) {}
        (mem.bytes, [cpu.gpr[CX], cpu.gpr[SI], cpu.gpr[DI]])
    }

    /// The same by the manual's word.
    fn model(kind: Kind, bytes: usize, df: u64, mut from: usize, mut to: usize, n: u64) -> (Vec<u8>, [u64; 3]) {
        let mut mem: Vec<u8> = (0..0x3000).map(|k| (k * 7 + k / 256) as u8).collect();
        for _ in 0..n {
            let value = 0x8877_6655_4433_2211u64.to_le_bytes();
            let element = if kind == Kind::Stos { value[..bytes].to_vec() } else { mem[from..from + bytes].to_vec() };
            mem[to..to + bytes].copy_from_slice(&element);
            let next = |at: usize| if df != 0 { at - bytes } else { at + bytes };
            (from, to) = (if kind == Kind::Stos { from } else { next(from) }, next(to));
        }
        (mem, [0, from as u64, to as u64])
    }

    #[test]
    fn bulk_is_element_by_element_in_both_directions() {
        for (kind, bytes, df) in [Kind::Movs, Kind::Stos]
            .into_iter()
            .flat_map(|k| [1, 2, 4, 8].map(|b| (k, b)))
            .flat_map(|(k, b)| [0, bit::DF].map(|d| (k, b, d)))
        {
            for distance in [-0x900i64, -64, -9, -8, -3, -1, 0, 1, 3, 8, 9, 64, 0x900] {
                for (from, n) in [(0x1800u64, 1), (0x1800, 40), (0x1803, 200), (0x1ff8, 30), (0x1ffc, 5), (0x1001, 60), (0x1000, 2)] {
                    let to = from.wrapping_add_signed(distance);
                    let want = model(kind, bytes as usize, df, from as usize, to as usize, n);
                    let got = run(kind, bytes, df, from, to, n);
                    assert!(got == want, "{kind:?} of {bytes}, DF {df:#x}: {n} from {from:#x} to {to:#x}");
                }
            }
        }
    }

    #[test]
    fn elements_are_aligned_where_that_is_checked() {
        let config = arch_x86::models::configure("max", &[]).expect("a model");
        for (kind, wrong) in [(Kind::Movs, Some(2)), (Kind::Stos, Some(2)), (Kind::Lods, None)] {
            let mut cpu = CpuState::new(&config, 0);
            cpu.cr0 |= cr0::PE | cr0::AM;
            cpu.cpl = 3;
            cpu.seg.iter_mut().for_each(|s| s.limit = u32::MAX);
            cpu.set_rflags(bit::AC);
            (cpu.gpr[CX], cpu.gpr[SI], cpu.gpr[DI]) = (3, 0x100, 0x200 + wrong.unwrap_or(0));
            let mut mem = FlatMemory { base: 0, bytes: vec![7; 0x400] };
            let mut env = FlatEnv { cpu: &mut cpu, mem: &mut mem };
            let h = How { kind, bytes: 4, addr_bytes: 4, seg: SegReg::Ds, repeats: true, while_zero: false, one: false };
            let want = if wrong.is_some() { Err(fault::ac()) } else { Ok(1) };
            assert_eq!(string(&mut env, h.pack(), 0, 0), want, "{kind:?}");
            assert_eq!(cpu.gpr[CX], if wrong.is_some() { 3 } else { 0 });
        }
    }
}
