//! What generated code calls, and how Rust enters generated code. Generated code keeps the seam pointer plus `BASE` in the
//! pinned register (r15 on x86-64) and has one frame; results of slow paths lie in `Engine`.
//!
//! UNSAFE: called from generated code with the seam of the running block.
#![allow(unsafe_code)]

use super::asm::{access_stub, chain, enter, far, go_on_stub, locked_stub, second, x87_home_stub, x87_live_stub};
use crate::atomic::AtomicArgs;
use crate::vblock::{LEAVE, LIVE_SSE, LIVE_X87, VcpuBlock, Why};
use ir::{FpOp, Rmw, TriOp, Ty, VecOp};
use std::sync::atomic::Ordering;
use vm_core::guest::GuestCpu;
use vm_core::{Access, Fault, GuestEnv, Va};

/// Indexes into `Engine::fns`; what is called most comes last (`vblock::BASE`).
pub mod func {
    /// `x87_live`, `x87_home`, `locked` and `access`, called by their stubs, which preserve every register.
    pub const X87_LIVE: usize = 0;
    pub const X87_HOME: usize = 1;
    pub const X87_LIVE_STUB: usize = 2;
    pub const X87_HOME_STUB: usize = 3;
    pub const LOCKED: usize = 4;
    pub const LOCKED_STUB: usize = 5;
    pub const ACCESS: usize = 6;
    pub const ATOMIC: usize = 7;
    pub const PROBE: usize = 8;
    pub const VEC: usize = 9;
    /// Goes on at a program counter through the jump cache.
    pub const CHAIN: usize = 10;
    /// The same along an edge that may be linked: `crate::far`.
    pub const FAR: usize = 11;
    /// `go_on`, and what is jumped to where a block ends that may have changed anything; the program counter is in the state.
    pub const GO_ON: usize = 12;
    pub const GO_ON_STUB: usize = 13;
    pub const ACCESS_STUB: usize = 14;
    pub const HELPER: usize = 15;
    /// Goes on at a program counter that the jump cache does not have in its first place.
    pub const SECOND: usize = 16;
    pub const COUNT: usize = 17;
}

/// A memory access as its pad describes it in `Engine::slow_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessInfo {
    pub ty: Ty,
    pub ctx: usize,
    pub write: bool,
    /// Page offset of the instruction.
    pub insn: u32,
    /// Instructions of the block from this one on: 1 to 64.
    pub rest: u32,
}

impl AccessInfo {
    /// Where atomic ops add their kind.
    pub const RMW_SHIFT: u32 = 26;
    /// Added where the access may be done across pages: a load, or a store whose value is in `Engine::vec_a`.
    pub const ACROSS: u32 = 1 << 29;

    pub fn pack(self) -> u32 {
        self.ty as u32 | (self.ctx as u32) << 3 | u32::from(self.write) << 5 | self.insn << 8 | (self.rest - 1) << 20
    }

    pub fn unpack(v: u32) -> Self {
        let ty = Ty::ALL[(v & 7) as usize % Ty::ALL.len()];
        Self { ty, ctx: (v >> 3 & 3) as usize, write: v >> 5 & 1 != 0, insn: v >> 8 & 0xfff, rest: (v >> 20 & 63) + 1 }
    }
}

/// Fills the table of functions.
pub fn install<C: GuestCpu>(b: &mut VcpuBlock<C>) {
    b.eng.fns[func::ACCESS_STUB] = access_stub as *const () as usize;
    b.eng.fns[func::LOCKED] = locked::<C> as *const () as usize;
    b.eng.fns[func::LOCKED_STUB] = locked_stub as *const () as usize;
    b.eng.fns[func::X87_LIVE_STUB] = x87_live_stub as *const () as usize;
    b.eng.fns[func::X87_HOME_STUB] = x87_home_stub as *const () as usize;
    b.eng.fns[func::X87_LIVE] = x87_live::<C> as *const () as usize;
    b.eng.fns[func::X87_HOME] = x87_home::<C> as *const () as usize;
    b.eng.fns[func::ACCESS] = access::<C> as *const () as usize;
    let counted = b.count.is_some();
    b.eng.fns[func::HELPER] = if counted { counted_helper::<C> as *const () as usize } else { helper::<C> as *const () as usize };
    b.eng.fns[func::ATOMIC] = atomic::<C> as *const () as usize;
    b.eng.fns[func::PROBE] = probe::<C> as *const () as usize;
    b.eng.fns[func::VEC] = vec::<C> as *const () as usize;
    b.eng.fns[func::GO_ON] = go_on::<C> as *const () as usize;
    b.eng.fns[func::GO_ON_STUB] = go_on_stub as *const () as usize;
    b.eng.fns[func::CHAIN] = chain as *const () as usize;
    b.eng.fns[func::SECOND] = second as *const () as usize;
    b.eng.fns[func::FAR] = far as *const () as usize;
    b.eng.fp_control = FP_CONTROL;
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Notes why a slow path cannot go on: the instruction at `insn` faults or must run alone. `rest`: instructions of the
    /// block from it on.
    fn give_up(&mut self, f: Fault, insn: u32, rest: u32) {
        self.set_pc_in_page(insn.into());
        self.give_back(rest.into());
        self.eng.fault = f;
        self.eng.status = if f == LEAVE { Why::Leave } else { Why::Fault } as u32;
    }
}

/// Exception flags of a floating-point control word (MXCSR, SDM 1 §10.2.3).
#[cfg(target_arch = "x86_64")]
const FP_FLAGS: u32 = 0x3f;
/// Control word that asks for what `ir::FpOp` says: round to nearest, all exceptions masked.
const FP_CONTROL: u32 = 0x1f80;

impl<C: GuestCpu> VcpuBlock<C> {
    /// The guest's floating-point flags.
    fn fp_flags(&mut self) -> &mut u32 {
        let at = self.eng.fp_flags_off as usize;
        // SAFETY: the slot is an aligned u32 inside `cpu`, which begins at the seam (`StateLayout::fp_flags`).
        unsafe { &mut *self.seam().add(at).cast::<u32>() }
    }

    /// Generated code leaves the exception flags of floating point in the host's control word, which costs nothing, and x87
    /// state in the host's FPU: takes them to the guest's state. To be called when generated code has returned, and before Rust
    /// that may look at the guest's or does floating point itself.
    #[inline(always)]
    pub fn collect_fp(&mut self) {
        if self.eng.fp_live != 0 {
            self.collect_live_fp();
        }
    }

    #[cold]
    fn collect_live_fp(&mut self) {
        self.collect_x87();
        let live = std::mem::take(&mut self.eng.fp_live);
        #[cfg(target_arch = "x86_64")]
        if live & LIVE_SSE != 0 {
            let mut csr = 0u32;
            // SAFETY: writes the variable.
            unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut csr, options(nostack)) };
            *self.fp_flags() |= csr & FP_FLAGS;
        }
    }

    fn collect_x87(&mut self) {
        if self.eng.fp_live & LIVE_X87 == 0 {
            return;
        }
        self.eng.fp_live &= !LIVE_X87;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: writes the image. The FPU, which generated code has filled, is as functions expect it afterwards: empty, with
        // the default control word.
        unsafe {
            std::arch::asm!(
                "fnsave [{}]", in(reg) &raw mut self.eng.x87, out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack),
            );
        }
        self.cpu.set_x87_image(&self.eng.x87);
    }

    /// Runs a floating-point op.
    pub fn fp(&mut self, op: FpOp, a: u128, b: u128) -> u128 {
        self.collect_fp();
        let run = self.eng.run_fp;
        run(op, a, b, self.fp_flags())
    }

    /// Runs an op on three vectors.
    pub fn tri(&mut self, op: TriOp, [a, b, c]: [u128; 3]) -> u128 {
        if op.is_fused() {
            self.collect_fp();
        }
        let run = self.eng.run_tri;
        run(op, a, b, c, self.fp_flags())
    }

    /// Runs generated code until it comes back.
    ///
    /// # Safety
    /// `code` is generated for this engine, and the block is inside `with_io`.
    pub unsafe fn run_code(&mut self, code: u64) -> Why {
        let (pc, seam) = (self.cpu.pc(), self.seam());
        // SAFETY: the caller's promise.
        let why = unsafe { enter(seam, code, pc) };
        // SAFETY: it came from `seam` above; the borrow was given up to the generated code meanwhile.
        unsafe { VcpuBlock::<C>::from_seam(seam) }.collect_fp();
        Why::from_code(why)
    }
}

/// Where generated code goes on, or 0 for the dispatcher (`Why::Lookup`).
extern "C" fn go_on<C: GuestCpu>(seam: *mut u8) -> u64 {
    const { assert!(Why::Lookup as u32 == 0) };
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    b.collect_fp();
    b.straight_on().unwrap_or(0)
}

/// `Engine::status`: an access has been done across two pages; what was loaded is in `Engine::vec_a`.
pub const ACROSS: u32 = 1;

impl<C: GuestCpu> VcpuBlock<C> {
    /// Whether checks fail as the dispatcher is wanted. Where instructions are counted they do not ask.
    fn is_wanted(&mut self) -> bool {
        let wanted = |b: &Self| b.count.is_none() && b.eng.exit.load(Ordering::SeqCst) != 0;
        if !wanted(self) && self.eng.tlb.closed() {
            // By who was late, or it does not matter. Who comes now has set the flag before.
            self.eng.tlb.open();
        }
        wanted(self)
    }

    /// Does an access that crosses from one page of plain RAM into another. `Err`: it faults, or is not of that kind.
    fn access_across(&mut self, va: u64, info: &AccessInfo) -> Result<(), Fault> {
        let (size, access) = (info.ty.bytes() as usize, if info.write { Access::Write } else { Access::Read });
        let second = (va | 0xfff).wrapping_add(1);
        if second as u32 == 0 {
            // Narrow addresses wrap.
            return Err(LEAVE);
        }
        for at in [va, second] {
            if self.quick(at, 1, access, info.ctx).is_none() {
                self.place(Va(at), access, info.ctx)?;
            }
        }
        let offset = |at: u64| self.quick(at, 1, access, info.ctx).ok_or(LEAVE);
        let (first, second) = (offset(va)?, offset(second)?);
        let (ram, here) = (self.machine().ram(), 4096 - (va & 0xfff) as usize);
        let place = |k: usize| if k < here { first + k as u64 } else { second + (k - here) as u64 };
        let mut bytes = self.eng.vec_a.to_le_bytes();
        for (k, byte) in bytes[..size].iter_mut().enumerate() {
            match info.write {
                true => ram.store_uint(place(k), 1, (*byte).into()),
                false => *byte = ram.read_uint(place(k), 1) as u8,
            }
        }
        self.eng.vec_a = u128::from_le_bytes(bytes);
        Ok(())
    }
}

/// An access missed the TLB: its address and `AccessInfo` are in the engine state. Fills the TLB so that the access hits;
/// where that cannot be (devices, watched pages, code) the instruction must run alone. One that crosses into another page is done here,
/// where generated code is ready for that.
extern "C" fn access<C: GuestCpu>(seam: *mut u8) {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    let info = AccessInfo::unpack(b.eng.slow_info);
    let (va, size) = (Va(b.eng.slow_addr), info.ty.bytes() as u8);
    let access = if info.write { Access::Write } else { Access::Read };
    b.eng.status = 0;
    if b.is_wanted() {
        return b.give_up(LEAVE, info.insn, info.rest);
    }
    if va.0 & 0xfff > 4096 - u64::from(size) {
        let done = if b.eng.slow_info & AccessInfo::ACROSS != 0 { b.access_across(va.0, &info) } else { Err(LEAVE) };
        return match done {
            Ok(()) => b.eng.status = ACROSS,
            Err(f) => b.give_up(f, info.insn, info.rest),
        };
    }
    // The access itself looks at no tag.
    let value = (info.write && b.eng.slow_info & AccessInfo::ACROSS != 0).then_some(b.eng.vec_a);
    let withheld = |b: &VcpuBlock<C>| b.quick_withheld(va.0, size, access, info.ctx, value).is_some();
    if withheld(b) {
        return;
    }
    match b.place(va, access, info.ctx) {
        Err(f) => b.give_up(f, info.insn, info.rest),
        Ok(_) if b.quick(va.0, size, access, info.ctx).is_some() || withheld(b) => {}
        Ok(_) => b.give_up(LEAVE, info.insn, info.rest),
    }
}

/// The x87 state is about to be loaded into the host's FPU: makes the image. Where the guest's exceptions are not all masked the
/// instruction in `slow_info` must run alone.
extern "C" fn x87_live<C: GuestCpu>(seam: *mut u8) {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    b.eng.status = 0;
    match b.cpu.x87_image() {
        Some(image) => {
            b.eng.x87 = image;
            b.eng.fp_live |= LIVE_X87;
        }
        None => {
            let info = AccessInfo::unpack(b.eng.slow_info);
            b.give_up(LEAVE, info.insn, info.rest);
        }
    }
}

/// Takes it back.
extern "C" fn x87_home<C: GuestCpu>(seam: *mut u8) {
    // SAFETY: module note.
    unsafe { VcpuBlock::<C>::from_seam(seam) }.collect_x87();
}

/// In `helper`'s `info`: it neither looks at the state nor does floating point, nor does it fail.
pub const PURE: u64 = 1 << 63;
/// In `vec`'s `op`: a floating-point op.
pub const FP_OP: u16 = 1 << 15;
/// In `vec`'s `op`: an op on three vectors.
pub const TRI_OP: u16 = 1 << 14;

/// `info`: helper in bits 15:0, instructions of the block from this one on in bits 31:16, page offset of the instruction
/// from bit 32.
extern "C" fn helper<C: GuestCpu>(seam: *mut u8, info: u64, x: u64, y: u64, z: u64) -> u64 {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    let f = b.helpers[(info & 0xffff) as usize];
    b.eng.status = 0;
    if info & PURE == 0 {
        b.collect_fp();
    }
    match f(b, x, y, z) {
        Ok(v) => v,
        Err(f) => {
            b.give_up(f, (info >> 32) as u32, (info >> 16 & 0xffff) as u32);
            0
        }
    }
}

/// As `helper`, where instructions are counted.
extern "C" fn counted_helper<C: GuestCpu>(seam: *mut u8, info: u64, x: u64, y: u64, z: u64) -> u64 {
    // SAFETY: module note.
    unsafe { VcpuBlock::<C>::from_seam(seam) }.set_rest(info >> 16 & 0xffff);
    let r = helper::<C>(seam, info, x, y, z);
    // SAFETY: as above.
    unsafe { VcpuBlock::<C>::from_seam(seam) }.set_rest(0);
    r
}

/// `info` as `AccessInfo`, with the kind of read-modify-write + 1 at `RMW_SHIFT` (0: compare-and-swap).
extern "C" fn atomic<C: GuestCpu>(seam: *mut u8, va: u64, info: u64, x: u64, y: u64) -> u64 {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    let i = AccessInfo::unpack(info as u32);
    let rmw = ((info >> AccessInfo::RMW_SHIFT & 7) as u16).checked_sub(1).and_then(Rmw::from_index);
    b.eng.status = 0;
    let mask = i.ty.mask();
    match b.atomic(va, AtomicArgs { ty: i.ty, ctx: i.ctx as u8, rmw }, x & mask, y & mask) {
        Ok(old) => old,
        Err(f) => {
            b.give_up(f, i.insn, i.rest);
            0
        }
    }
}

/// A locked access that generated code does not do: its address is in the engine state, its operands are in `vec_a`, where the old value
/// goes; `slow_info` is as `atomic`'s `info`.
extern "C" fn locked<C: GuestCpu>(seam: *mut u8) {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    let (va, info, values) = (b.eng.slow_addr, b.eng.slow_info, b.eng.vec_a);
    let old = atomic::<C>(seam, va, info.into(), values as u64, (values >> 64) as u64);
    // SAFETY: module note; `atomic` has given its borrow up.
    unsafe { VcpuBlock::<C>::from_seam(seam) }.eng.vec_a = old.into();
}

extern "C" fn probe<C: GuestCpu>(seam: *mut u8, va: u64, len: u64, info: u64) {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    let i = AccessInfo::unpack(info as u32);
    b.eng.status = 0;
    if let Err(f) = b.probe(Va(va), len, Access::Write, i.ctx) {
        b.give_up(f, i.insn, i.rest);
    }
}

/// Vector ops without a short form, and floating point: operands in `vec_a`, `vec_b`, `vec_c`, result in `vec_a`.
extern "C" fn vec<C: GuestCpu>(seam: *mut u8, op: u64) {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(seam) };
    let op = op as u16;
    let (x, y) = (b.eng.vec_a, b.eng.vec_b);
    if op & FP_OP != 0 {
        if let Some(op) = FpOp::from_index(op & !FP_OP) {
            b.eng.vec_a = b.fp(op, x, y);
        }
    } else if op & TRI_OP != 0 {
        if let Some(op) = TriOp::from_index(op & !TRI_OP) {
            b.eng.vec_a = b.tri(op, [x, y, b.eng.vec_c]);
        }
    } else if let Some(op) = VecOp::from_index(op) {
        b.eng.vec_a = op.eval(x, y);
    }
}
