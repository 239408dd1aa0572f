//! Stack frames of exceptions and far transfers: all pushes are probed before the first one is stored.

use crate::fault;
use crate::mode::ctx;
use crate::state::{CpuState, SegReg, Segment, cr4};
use vm_core::guest::GuestEnv;
use vm_core::{Access, Fault, Va};

/// Context of implicit supervisor accesses: descriptor tables and TSS (SDM 3A §4.6.1).
pub(crate) fn system_ctx(cpu: &CpuState) -> usize {
    if cpu.cr4 & cr4::SMAP != 0 { ctx::KERNEL_SMAP } else { ctx::KERNEL }
}

/// Context of stack accesses made at privilege level `cpl`.
pub(crate) fn stack_ctx(cpu: &CpuState, cpl: u8) -> usize {
    let ac = cpu.eflags & crate::flags::bit::AC != 0;
    match cpl {
        3 => ctx::USER,
        _ if cpu.cr4 & cr4::SMAP == 0 || (ac && cpu.cpl < 3) => ctx::KERNEL,
        _ => ctx::KERNEL_SMAP,
    }
}

/// Whether `size` bytes at `offset` lie inside the segment (SDM 3A §5.3 "Limit Checking").
pub fn in_limit(seg: &Segment, offset: u64, size: u64) -> bool {
    let last = offset.wrapping_add(size.max(1) - 1);
    if last < offset {
        return false;
    }
    if seg.attr & (Segment::CODE | Segment::DC | Segment::S) == Segment::DC | Segment::S {
        let top = if seg.attr & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
        offset > u64::from(seg.limit) && last <= top
    } else {
        last <= u64::from(seg.limit)
    }
}

/// Most values one frame holds: a call gate copies up to 31 parameters.
const MAX_ITEMS: usize = 40;

/// A stack that is being pushed to or popped from; memory and registers stay as they are until `store`.
pub(crate) struct Stack {
    seg: Segment,
    /// 64-bit: no segmentation.
    flat: bool,
    mask: u64,
    pub sp: u64,
    ctx: usize,
    /// Error code of #SS when an item lies beyond the limit.
    error: u32,
    items: [(u64, u8, u64); MAX_ITEMS],
    len: usize,
}

impl Stack {
    /// The stack that SS:RSP names now, at privilege level `cpl`.
    pub fn current(cpu: &CpuState, error: u32) -> Stack {
        Stack::new(cpu, *cpu.seg(SegReg::Ss), cpu.gpr[4], cpu.mode().is_64(), cpu.cpl, error)
    }

    pub fn new(cpu: &CpuState, seg: Segment, sp: u64, flat: bool, cpl: u8, error: u32) -> Stack {
        let mask = match (flat, seg.attr & Segment::DB != 0) {
            (true, _) => !0,
            (false, true) => 0xffff_ffff,
            (false, false) => 0xffff,
        };
        let ctx = stack_ctx(cpu, cpl);
        Stack { seg, flat, mask, sp, ctx, error, items: [(0, 0, 0); MAX_ITEMS], len: 0 }
    }

    fn linear(&self, cpu: &CpuState, offset: u64, size: u8) -> Result<u64, Fault> {
        if self.flat {
            let last = offset.wrapping_add(u64::from(size) - 1);
            let ok = crate::paging::canonical(cpu, offset) && crate::paging::canonical(cpu, last);
            return if ok { Ok(offset) } else { Err(fault::ss(self.error)) };
        }
        if !in_limit(&self.seg, offset, size.into()) {
            return Err(fault::ss(self.error));
        }
        Ok(self.seg.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// SP after adding `by`, with only the bits the stack size covers changed.
    pub fn moved(&self, by: u64) -> u64 {
        self.sp.wrapping_add(by) & self.mask | self.sp & !self.mask
    }

    pub fn push(&mut self, cpu: &CpuState, size: u8, value: u64) -> Result<(), Fault> {
        self.sp = self.moved((size as u64).wrapping_neg());
        let va = self.linear(cpu, self.sp & self.mask, size)?;
        if let Some(slot) = self.items.get_mut(self.len) {
            *slot = (va, size, value);
            self.len += 1;
        }
        Ok(())
    }

    pub fn pop<E: GuestEnv<Cpu = CpuState>>(&mut self, env: &mut E, size: u8) -> Result<u64, Fault> {
        let va = self.linear(env.cpu_ref(), self.sp & self.mask, size)?;
        let v = env.load(Va(va), size, self.ctx)?;
        self.sp = self.moved(size.into());
        Ok(v)
    }

    /// Reads the value `index` items of `size` bytes above SP without moving it.
    pub fn peek<E: GuestEnv<Cpu = CpuState>>(&self, env: &mut E, size: u8, index: u64) -> Result<u64, Fault> {
        let off = self.sp.wrapping_add(index.wrapping_mul(size.into())) & self.mask;
        let va = self.linear(env.cpu_ref(), off, size)?;
        env.load(Va(va), size, self.ctx)
    }

    /// Probes every item, then writes them.
    pub fn store<E: GuestEnv<Cpu = CpuState>>(&self, env: &mut E) -> Result<(), Fault> {
        let items = &self.items[..self.len];
        let mut probed = [None; 4];
        for &(va, size, _) in items {
            for page in [va & !0xfff, va.wrapping_add(u64::from(size) - 1) & !0xfff] {
                if probed.contains(&Some(page)) {
                    continue;
                }
                let from = if page == va & !0xfff { va } else { page };
                env.probe(Va(from), 1, Access::Write, self.ctx)?;
                if let Some(slot) = probed.iter_mut().find(|p| p.is_none()) {
                    *slot = Some(page);
                }
            }
        }
        items.iter().try_for_each(|&(va, size, value)| env.store(Va(va), size, value, self.ctx))
    }
}
