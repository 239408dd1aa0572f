//! Segment checks of data accesses, and far transfers (SDM 3A chapter 5 "Protection").

use super::{CHECKS, Env, Res};
use arch_x86::{SegReg, Segment, fault};

rows! {
    topic segment;
    /// (segment, offset, bytes | write << 8): linear address, or the fault of the limit and type checks.
    SEG_ADDR = seg_addr(3) CHECKS;
}

fn seg_addr<E: Env>(env: &mut E, seg: u64, off: u64, how: u64) -> Res {
    let cpu = env.cpu_ref();
    let reg = SegReg::from_index(seg).unwrap_or(SegReg::Ds);
    let s = cpu.seg(reg);
    let (size, write) = (how & 0xff, how >> 8 & 1 == 1);
    let bad = || if reg == SegReg::Ss { fault::ss(0) } else { fault::gp(0) };
    if cpu.protected() && !cpu.v86() {
        let writable = s.attr & (Segment::CODE | Segment::RW) == Segment::RW;
        let readable = s.attr & Segment::CODE == 0 || s.attr & Segment::RW != 0;
        if !s.usable() || write && !writable || !write && !readable {
            return Err(bad());
        }
    }
    let last = off.wrapping_add(size.max(1) - 1);
    let expand_down = s.attr & (Segment::CODE | Segment::DC) == Segment::DC;
    let inside = if expand_down {
        let top = if s.attr & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
        off > u64::from(s.limit) && last <= top
    } else {
        last <= u64::from(s.limit)
    };
    if !inside {
        return Err(bad());
    }
    Ok(s.base.wrapping_add(off) & 0xffff_ffff)
}
