//! Segment checks of data accesses, and far transfers (SDM 3A chapter 5 "Protection").

use super::{ANY, CHECKS, Env, Res};
use arch_x86::deliver::{self, Source};
pub use arch_x86::segment::seg_addr as linear;
use arch_x86::{SegReg, far, fault};
use vm_core::Va;

rows! {
    topic segment;
    /// (segment, offset, bytes | write << 8): linear address, or the fault of the limit and type checks.
    SEG_ADDR = seg_addr(3) CHECKS;
    /// (linear address, power of two, size): #AC(0) unless it is aligned.
    ALIGNED = aligned(3) CHECKS;
    /// (linear address, value, segment | 100h if the 16 bits are to be stored)
    STORE16_IF = store16_if(3) ANY;
    /// (segment, selector)
    LOAD_SEG = load_seg(2) ANY;
    /// (selector | operand bytes << 16, offset, address of the next instruction)
    FAR_JUMP = far_jump(3) ANY;
    /// (selector | operand bytes << 16, offset, return address)
    FAR_CALL = far_call(3) ANY;
    /// (operand bytes, bytes released)
    FAR_RET = far_ret(2) ANY;
    /// (operand bytes, address of the next instruction)
    IRET = iret(2) ANY;
    /// (vector, return address); vector bits 15:8: 0 INT n, 1 INT3, 2 INT1.
    INT = int(2) ANY;
    /// (OF, return address)
    INTO = into(2) ANY;
}

fn seg_addr<E: Env>(env: &mut E, seg: u64, off: u64, how: u64) -> Res {
    let reg = SegReg::from_index(seg).unwrap_or(SegReg::Ds);
    linear(env.cpu_ref(), reg, off, how & 0xff, how >> 8 & 1 == 1)
}

fn aligned<E: Env>(env: &mut E, va: u64, by: u64, size: u64) -> Res {
    arch_x86::segment::aligned(env.cpu_ref(), va, by.max(1), size.max(1)).map(|()| 0)
}

fn store16_if<E: Env>(env: &mut E, va: u64, value: u64, how: u64) -> Res {
    if how & 0x100 != 0 {
        let (cpu, seg) = (env.cpu_ref(), SegReg::from_index(how & 0xff).unwrap_or(SegReg::Ds));
        let va = linear(cpu, seg, va.wrapping_sub(cpu.seg(seg).base) & 0xffff_ffff, 2, true)?;
        let ctx = cpu.mode().ctx();
        env.store(Va(va), 2, value & 0xffff, ctx)?;
    }
    Ok(0)
}

/// (segment, selector); SS holds events for one instruction (SDM 2 "MOV").
fn load_seg<E: Env>(env: &mut E, seg: u64, selector: u64, _: u64) -> Res {
    let reg = SegReg::from_index(seg).unwrap_or(SegReg::Cs);
    arch_x86::segment::load_seg(env, reg, selector as u16)?;
    if reg == SegReg::Ss {
        super::system::shadow_ss(env);
    }
    Ok(0)
}

fn far_jump<E: Env>(env: &mut E, target: u64, offset: u64, next: u64) -> Res {
    far::far_jump(env, target as u16, offset, (target >> 16) as u8, next).map(|()| 0)
}

fn far_call<E: Env>(env: &mut E, target: u64, offset: u64, next: u64) -> Res {
    far::far_call(env, target as u16, offset, (target >> 16) as u8, next).map(|()| 0)
}

fn far_ret<E: Env>(env: &mut E, size: u64, release: u64, _: u64) -> Res {
    far::far_ret(env, size as u8, release).map(|()| 0)
}

fn iret<E: Env>(env: &mut E, size: u64, next: u64, _: u64) -> Res {
    far::iret(env, size as u8, next).map(|()| 0)
}

fn int<E: Env>(env: &mut E, vector: u64, next: u64, _: u64) -> Res {
    let source = match vector >> 8 {
        0 => Source::SoftInt,
        1 => Source::SoftException,
        _ => Source::Exception,
    };
    deliver::software_int(env, vector as u8, next, source).map(|()| 0)
}

fn into<E: Env>(env: &mut E, of: u64, next: u64, _: u64) -> Res {
    if of == 0 {
        env.cpu().rip = next;
        return Ok(0);
    }
    deliver::software_int(env, fault::vector::OF, next, Source::SoftException).map(|()| 0)
}
