//! Locked accesses (SDM 3A "Locked Atomic Operations"): host atomics where the operand is aligned RAM, else one vCPU alone.
//!
//! UNSAFE: works on guest RAM at offsets that the TLB or a walk gave.
#![allow(unsafe_code)]

use crate::mmu::Place;
use crate::vblock::VcpuBlock;
use ir::{Rmw, Ty};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use vm_core::guest::GuestCpu;
use vm_core::{Access, Fault, GuestEnv, PageBits, Va};

/// What an atomic op does: the parameters beside address and operands.
#[derive(Clone, Copy)]
pub struct AtomicArgs {
    pub ty: Ty,
    pub ctx: u8,
    /// `None`: compare-and-swap.
    pub rmw: Option<Rmw>,
}

impl AtomicArgs {
    /// What memory holds afterwards. A failed compare writes the old value back (SDM 2 "CMPXCHG").
    fn new_value(self, old: u64, b: u64, c: u64) -> u64 {
        let mask = self.ty.mask();
        let new = match self.rmw {
            Some(Rmw::Add) => old.wrapping_add(b),
            Some(Rmw::And) => old & b,
            Some(Rmw::Or) => old | b,
            Some(Rmw::Xor) => old ^ b,
            Some(Rmw::Xchg) => b,
            None if old == b & mask => c,
            None => old,
        };
        new & mask
    }
}

/// Where a locked access goes.
enum Operand {
    /// RAM at this offset, served by a TLB entry.
    Plain(u64),
    /// RAM that translated code came from, or that is watched.
    Special(u64),
    /// Across pages, ROM or a device.
    Other,
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Atomic read-modify-write or compare-and-swap; gives the old value.
    pub fn atomic(&mut self, va: u64, args: AtomicArgs, b: u64, c: u64) -> Result<u64, Fault> {
        let (size, ctx) = (args.ty.bytes() as u8, usize::from(args.ctx));
        if !va.is_multiple_of(size.into()) {
            return self.by_itself(|s| s.in_steps(va, args, b, c));
        }
        self.access_begins();
        match self.operand(va, size, ctx)? {
            // SAFETY: `size` aligned bytes of RAM.
            Operand::Plain(offset) => Ok(unsafe { host_atomic(self.ram_at(offset), args, b, c) }),
            Operand::Special(offset) => {
                // SAFETY: as above.
                let old = unsafe { host_atomic(self.ram_at(offset), args, b, c) };
                self.tell_peers(offset, size.into());
                self.access_done(va, size, false, old.into());
                self.access_done(va, size, true, args.new_value(old, b, c).into());
                Ok(old)
            }
            Operand::Other => self.by_itself(|s| s.in_steps(va, args, b, c)),
        }
    }

    /// 16-byte compare-and-swap at an address aligned to 16; gives the old value.
    pub fn atomic_128(&mut self, va: u64, expected: u128, new: u128, ctx: usize) -> Result<u128, Fault> {
        self.access_begins();
        match (self.operand(va, 16, ctx)?, HAS_CAS_128) {
            // SAFETY: 16 aligned bytes of RAM.
            (Operand::Plain(offset), true) => Ok(unsafe { host_cas_128(self.ram_at(offset), expected, new) }),
            (Operand::Special(offset), true) => {
                // SAFETY: as above.
                let old = unsafe { host_cas_128(self.ram_at(offset), expected, new) };
                self.tell_peers(offset, 16);
                self.access_done(va, 16, false, old);
                self.access_done(va, 16, true, if old == expected { new } else { old });
                Ok(old)
            }
            _ => self.by_itself(|s| {
                s.probe(Va(va), 16, Access::Write, ctx)?;
                let old = s.load_128(va, ctx)?;
                s.store_128(va, if old == expected { new } else { old }, ctx)?;
                Ok(old)
            }),
        }
    }

    fn ram_at(&self, offset: u64) -> *mut u8 {
        self.machine().ram().host_base().wrapping_add(offset as usize)
    }

    /// Finds an operand that is to be written. An error leaves everything as it was.
    fn operand(&mut self, va: u64, size: u8, ctx: usize) -> Result<Operand, Fault> {
        if let Some(offset) = self.quick(va, size, Access::Write, ctx) {
            return Ok(Operand::Plain(offset));
        }
        // In a page with a watchpoint beside the operand.
        if let Some(offset) = self.quick_withheld(va, size, Access::Write, ctx, None)
            && !self.debug_cares(va, size, Access::Read)
        {
            return Ok(Operand::Plain(offset));
        }
        let Place::Ram { offset, writable: true, bits } = self.place(Va(va), Access::Write, ctx)? else {
            return Ok(Operand::Other);
        };
        self.debug_access(va, size, true)?;
        self.debug_access(va, size, false)?;
        if bits.contains(PageBits::CODE) {
            self.write_to_code_page(offset, size.into(), None)?;
        }
        Ok(Operand::Special(offset))
    }

    /// Runs `f` while no other vCPU runs.
    fn by_itself<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        match self.cache.member.clone() {
            Some(m) => m.alone(|| f(self)),
            None => f(self),
        }
    }

    fn in_steps(&mut self, va: u64, args: AtomicArgs, b: u64, c: u64) -> Result<u64, Fault> {
        let (size, ctx) = (args.ty.bytes() as u8, usize::from(args.ctx));
        self.probe(Va(va), size.into(), Access::Write, ctx)?;
        let old = self.load(Va(va), size, ctx)?;
        self.store(Va(va), size, args.new_value(old, b, c), ctx)?;
        Ok(old)
    }
}

/// # Safety
/// `p` points at as many aligned bytes of guest RAM as `args.ty` has.
unsafe fn host_atomic(p: *mut u8, args: AtomicArgs, b: u64, c: u64) -> u64 {
    macro_rules! go {
        ($t:ty, $a:ty) => {{
            // SAFETY: by the caller's promise; guest RAM outlives the call.
            let a = unsafe { <$a>::from_ptr(p.cast::<$t>()) };
            let (b, c) = (b as $t, c as $t);
            let o = Ordering::SeqCst;
            (match args.rmw {
                Some(Rmw::Add) => a.fetch_add(b, o),
                Some(Rmw::And) => a.fetch_and(b, o),
                Some(Rmw::Or) => a.fetch_or(b, o),
                Some(Rmw::Xor) => a.fetch_xor(b, o),
                Some(Rmw::Xchg) => a.swap(b, o),
                None => a.compare_exchange(b, c, o, o).unwrap_or_else(|old| old),
            }) as u64
        }};
    }
    match args.ty {
        Ty::I8 => go!(u8, AtomicU8),
        Ty::I16 => go!(u16, AtomicU16),
        Ty::I32 => go!(u32, AtomicU32),
        _ => go!(u64, AtomicU64),
    }
}

/// Whether the host has a 16-byte compare-and-swap that we use. (All x86-64 hosts with SSE3 do, which front end demands.)
const HAS_CAS_128: bool = cfg!(target_arch = "x86_64");

/// # Safety
/// `p` points at 16 aligned bytes of guest RAM.
#[cfg(target_arch = "x86_64")]
unsafe fn host_cas_128(p: *mut u8, expected: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: by the caller's promise. RBX is the compiler's own, so it is swapped in and out.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {new_low}",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {new_low}",
            p = in(reg) p,
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") expected as u64 => low,
            inout("rdx") (expected >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(low) | u128::from(high) << 64
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn host_cas_128(_: *mut u8, _: u128, _: u128) -> u128 {
    unreachable!("HAS_CAS_128 is false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_wrap_and_failed_compares_write_the_old_one() {
        let args = |rmw| AtomicArgs { ty: Ty::I8, ctx: 0, rmw };
        assert_eq!(args(Some(Rmw::Add)).new_value(0xff, 2, 0), 1);
        assert_eq!(args(Some(Rmw::Xchg)).new_value(1, 0x1ff, 0), 0xff);
        assert_eq!((args(None).new_value(5, 0x105, 9), args(None).new_value(5, 6, 9)), (9, 5));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn sixteen_bytes_are_swapped_at_once() {
        #[repr(align(16))]
        struct Aligned(u128);
        let mut m = Aligned(1 << 100 | 7);
        let p = (&raw mut m.0).cast();
        // SAFETY: 16 aligned bytes of our own.
        let (first, second) = unsafe { (host_cas_128(p, 7, 1), host_cas_128(p, 1 << 100 | 7, 3 << 64 | 2)) };
        assert_eq!((first, second, m.0), (1 << 100 | 7, 1 << 100 | 7, 3 << 64 | 2));
    }
}
