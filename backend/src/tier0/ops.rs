//! Tier 0's handlers. Each runs one op and returns the next one to run, or null to go back to the dispatcher, with
//! `Engine::why` telling the reason.
//!
//! UNSAFE: handlers trust what `form` made: operand offsets lie inside the state or the temporaries, an op that takes
//! further slots is followed by them, and `seam` is the seam of a live block inside `with_io`.
#![allow(unsafe_code)]
// All handlers are named alike in `form`'s table, whether they need to know the guest or not.
#![allow(clippy::extra_unused_type_parameters)]
// size-ok: one handler for each op and width, and the table of them.

use super::form::{COp, Edge, Handler};
use crate::tlb;
use crate::vblock::{LEAVE, VcpuBlock, Why};
use ir::{Cond, Op, Ty};
use std::ptr;
use std::sync::atomic::Ordering;
use vm_core::guest::GuestCpu;
use vm_core::{Access, Fault, GuestEnv, Va};

#[inline(always)]
pub(super) unsafe fn rd<T: Copy>(seam: *mut u8, off: u16) -> T {
    // SAFETY: module note.
    unsafe { seam.add(usize::from(off)).cast::<T>().read_unaligned() }
}

#[inline(always)]
pub(super) unsafe fn wr<T>(seam: *mut u8, off: u16, v: T) {
    // SAFETY: module note.
    unsafe { seam.add(usize::from(off)).cast::<T>().write_unaligned(v) }
}

/// Integers that ops work on.
pub(super) trait Prim: Copy + PartialEq + PartialOrd + 'static {
    type Wide;
    fn imm(x: u32) -> Self;
    fn from_u64(x: u64) -> Self;
    fn to_u64(self) -> u64;
    fn to_i64(self) -> i64;
    fn bin(op: Op, a: Self, b: Self) -> Self;
    fn slt(a: Self, b: Self) -> bool;
}

macro_rules! prim {
    ($t:ty, $s:ty, $wu:ty, $ws:ty) => {
        impl Prim for $t {
            type Wide = $wu;
            #[inline(always)]
            fn imm(x: u32) -> Self {
                x as i32 as $t
            }
            #[inline(always)]
            fn from_u64(x: u64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $s as i64
            }
            #[inline(always)]
            fn slt(a: Self, b: Self) -> bool {
                (a as $s) < (b as $s)
            }
            #[inline(always)]
            fn bin(op: Op, a: Self, b: Self) -> Self {
                let sh = b as u32;
                match op {
                    Op::Add => a.wrapping_add(b),
                    Op::Sub => a.wrapping_sub(b),
                    Op::Mul => a.wrapping_mul(b),
                    Op::MulHiU => ((a as $wu * b as $wu) >> <$t>::BITS) as $t,
                    Op::MulHiS => ((a as $s as $ws * b as $s as $ws) >> <$t>::BITS) as $t,
                    Op::DivU => a.checked_div(b).unwrap_or(0),
                    Op::RemU => a.checked_rem(b).unwrap_or(0),
                    Op::DivS => (a as $s).checked_div(b as $s).unwrap_or(0) as $t,
                    Op::RemS => (a as $s).checked_rem(b as $s).unwrap_or(0) as $t,
                    Op::And => a & b,
                    Op::Or => a | b,
                    Op::Xor => a ^ b,
                    Op::Shl => a.wrapping_shl(sh),
                    Op::Shr => a.wrapping_shr(sh),
                    Op::Sar => (a as $s).wrapping_shr(sh) as $t,
                    Op::Rotl => a.rotate_left(sh % <$t>::BITS),
                    Op::Rotr => a.rotate_right(sh % <$t>::BITS),
                    // One-operand ops take it in `a`.
                    Op::Neg => a.wrapping_neg(),
                    Op::Not => !a,
                    Op::Clz => a.leading_zeros() as $t,
                    Op::Ctz => a.trailing_zeros() as $t,
                    Op::Popcnt => a.count_ones() as $t,
                    Op::Bswap => a.swap_bytes(),
                    _ => a,
                }
            }
        }
    };
}
prim!(u8, i8, u16, i16);
prim!(u16, i16, u32, i32);
prim!(u32, i32, u64, i64);
prim!(u64, i64, u128, i128);

#[inline(always)]
fn test<T: Prim>(cond: Cond, a: T, b: T) -> bool {
    match cond {
        Cond::Eq => a == b,
        Cond::Ne => a != b,
        Cond::Ult => a < b,
        Cond::Uge => a >= b,
        Cond::Ule => a <= b,
        Cond::Ugt => a > b,
        Cond::Slt => T::slt(a, b),
        Cond::Sge => !T::slt(a, b),
        Cond::Sle => !T::slt(b, a),
        Cond::Sgt => T::slt(b, a),
    }
}

// --- integer ops, `C` only chooses the table. `OP`, `COND` are the numbers of `Op`, `Cond`; each instance folds to its one operation.

unsafe extern "C" fn bin_rr<C: GuestCpu, T: Prim, const OP: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<T>(s, o.d, T::bin(Op::ALL[OP as usize], rd(s, o.a), rd(s, o.b())));
        op.add(1)
    }
}

unsafe extern "C" fn bin_ri<C: GuestCpu, T: Prim, const OP: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<T>(s, o.d, T::bin(Op::ALL[OP as usize], rd(s, o.a), T::imm(o.x)));
        op.add(1)
    }
}

unsafe extern "C" fn cmp_rr<C: GuestCpu, T: Prim, const COND: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<u8>(s, o.d, test::<T>(Cond::ALL[COND as usize], rd(s, o.a), rd(s, o.b())).into());
        op.add(1)
    }
}

unsafe extern "C" fn cmp_ri<C: GuestCpu, T: Prim, const COND: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<u8>(s, o.d, test::<T>(Cond::ALL[COND as usize], rd(s, o.a), T::imm(o.x)).into());
        op.add(1)
    }
}

/// Compare and branch; two edges follow.
unsafe extern "C" fn cbr_rr<C: GuestCpu, T: Prim, const COND: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let c = test::<T>(Cond::ALL[COND as usize], rd(s, o.a), rd(s, o.b()));
        follow::<C>(s, op.add(if c { 1 } else { 2 }))
    }
}

unsafe extern "C" fn cbr_ri<C: GuestCpu, T: Prim, const COND: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let c = test::<T>(Cond::ALL[COND as usize], rd(s, o.a), T::imm(o.x));
        follow::<C>(s, op.add(if c { 1 } else { 2 }))
    }
}

macro_rules! table {
    ($f:ident, $t:ty, $n:expr; $($v:literal)*) => {
        match $n { $($v => $f::<C, $t, $v> as Handler,)* _ => unreachable!("op out of the table") }
    };
}
macro_rules! by_type {
    ($f:ident, $ty:expr, $n:expr; $($v:literal)*) => {
        match $ty {
            Ty::I8 => table!($f, u8, $n; $($v)*),
            Ty::I16 => table!($f, u16, $n; $($v)*),
            Ty::I32 => table!($f, u32, $n; $($v)*),
            _ => table!($f, u64, $n; $($v)*),
        }
    };
}

const FIRST_BIN: u8 = Op::Add as u8;

/// Handler of an integer op, Add to Bswap; `imm`: the second operand is in `x`.
pub fn bin<C: GuestCpu>(op: Op, ty: Ty, imm: bool) -> Handler {
    const { assert!(FIRST_BIN == 5 && Op::Bswap as u8 == 27) };
    let n = op as u8;
    if imm {
        by_type!(bin_ri, ty, n; 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27)
    } else {
        by_type!(bin_rr, ty, n; 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27)
    }
}

pub fn cmp<C: GuestCpu>(cond: Cond, ty: Ty, imm: bool) -> Handler {
    let n = cond as u8;
    if imm { by_type!(cmp_ri, ty, n; 0 1 2 3 4 5 6 7 8 9) } else { by_type!(cmp_rr, ty, n; 0 1 2 3 4 5 6 7 8 9) }
}

pub fn cmp_br<C: GuestCpu>(cond: Cond, ty: Ty, imm: bool) -> Handler {
    let n = cond as u8;
    if imm { by_type!(cbr_ri, ty, n; 0 1 2 3 4 5 6 7 8 9) } else { by_type!(cbr_rr, ty, n; 0 1 2 3 4 5 6 7 8 9) }
}

// --- moves and conversions

unsafe extern "C" fn copy_<T: Copy>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<T>(s, o.d, rd::<T>(s, o.a));
        op.add(1)
    }
}

unsafe extern "C" fn imm_<T: Prim>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<T>(s, o.d, T::imm(o.x));
        op.add(1)
    }
}

/// Constant from the next slot's first word; for V128 the upper half is 0.
pub unsafe extern "C" fn imm64(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        wr::<u64>(s, (*op).d, (*op.add(1)).h as u64);
        op.add(2)
    }
}

pub unsafe extern "C" fn imm128(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        wr::<u128>(s, (*op).d, (*op.add(1)).h as u128);
        op.add(2)
    }
}

unsafe extern "C" fn zext_<F: Prim, T: Prim>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<T>(s, o.d, T::from_u64(rd::<F>(s, o.a).to_u64()));
        op.add(1)
    }
}

unsafe extern "C" fn sext_<F: Prim, T: Prim>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<T>(s, o.d, T::from_u64(rd::<F>(s, o.a).to_i64() as u64));
        op.add(1)
    }
}

unsafe extern "C" fn select_<T: Copy>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let v = if rd::<u8>(s, o.a) != 0 { rd::<T>(s, o.b()) } else { rd::<T>(s, o.c()) };
        wr::<T>(s, o.d, v);
        op.add(1)
    }
}

macro_rules! any_type {
    ($f:ident, $ty:expr) => {
        match $ty {
            Ty::I8 => $f::<u8> as Handler,
            Ty::I16 => $f::<u16>,
            Ty::I32 => $f::<u32>,
            Ty::I64 => $f::<u64>,
            Ty::V128 => $f::<u128>,
        }
    };
}

pub fn copy(ty: Ty) -> Handler {
    any_type!(copy_, ty)
}

pub fn select(ty: Ty) -> Handler {
    any_type!(select_, ty)
}

/// Constant that fits `x`, sign-extended.
pub fn imm(ty: Ty) -> Handler {
    match ty {
        Ty::I8 => imm_::<u8>,
        Ty::I16 => imm_::<u16>,
        Ty::I32 => imm_::<u32>,
        _ => imm_::<u64>,
    }
}

pub fn extend(signed: bool, from: Ty, to: Ty) -> Handler {
    macro_rules! pair {
        ($f:ident) => {
            match (from, to) {
                (Ty::I8, Ty::I16) => $f::<u8, u16> as Handler,
                (Ty::I8, Ty::I32) => $f::<u8, u32>,
                (Ty::I8, _) => $f::<u8, u64>,
                (Ty::I16, Ty::I32) => $f::<u16, u32>,
                (Ty::I16, _) => $f::<u16, u64>,
                _ => $f::<u32, u64>,
            }
        };
    }
    if signed { pair!(sext_) } else { pair!(zext_) }
}

/// pc of the page plus `x`.
pub unsafe extern "C" fn pc_rel<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let page = VcpuBlock::<C>::from_seam(s).eng.pc_page_off;
        wr::<u64>(s, o.d, rd::<u64>(s, page as u16).wrapping_add(o.x as i32 as u64));
        op.add(1)
    }
}

/// A value of the page that the block comes from; the next slot has its host address.
unsafe extern "C" fn source_<T: Copy>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note; the address is one of a page of guest RAM, which is mapped as long as the engine lives. Others may write it meanwhile.
    unsafe {
        let at = (*op.add(1)).h as *const T;
        wr::<T>(s, (*op).d, at.read_unaligned());
        op.add(2)
    }
}

pub fn source(ty: Ty) -> Handler {
    any_type!(source_, ty)
}

// --- memory

macro_rules! tlb_tag {
    ($e:expr, read) => {
        $e.read
    };
    ($e:expr, write) => {
        $e.write
    };
}

/// Host address of a TLB hit.
macro_rules! host {
    ($C:ty, $s:expr, $va:expr, $ctx:expr, $size:expr, $kind:ident) => {{
        let e = &VcpuBlock::<$C>::from_seam($s).eng.tlb.0[$ctx][tlb::index($va)];
        let hit = $va.wrapping_sub(tlb_tag!(e, $kind)) <= 4096 - $size as u64;
        hit.then_some($va.wrapping_add(e.addend) as *mut u8)
    }};
}

unsafe extern "C" fn load_<C: GuestCpu, T: Copy, const CTX: usize>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note; a TLB hit gives the address of `size_of::<T>()` bytes of guest RAM.
    unsafe {
        let o = *op;
        let va = rd::<u64>(s, o.a).wrapping_add(o.x as i32 as u64);
        match host!(C, s, va, CTX, size_of::<T>(), read) {
            Some(p) => {
                wr::<T>(s, o.d, p.cast::<T>().read_unaligned());
                op.add(1)
            }
            None => load_slow::<C>(s, op, va, size_of::<T>() as u8, CTX),
        }
    }
}

#[cold]
#[inline(never)]
unsafe fn load_slow<C: GuestCpu>(s: *mut u8, op: *mut COp, va: u64, size: u8, ctx: usize) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let v = match size {
            16 => b.load_128(va, ctx),
            _ => b.load(Va(va), size, ctx).map(u128::from),
        };
        match v {
            Ok(v) => {
                let d = (*op).d;
                match size {
                    1 => wr::<u8>(s, d, v as u8),
                    2 => wr::<u16>(s, d, v as u16),
                    4 => wr::<u32>(s, d, v as u32),
                    8 => wr::<u64>(s, d, v as u64),
                    _ => wr::<u128>(s, d, v),
                }
                op.add(1)
            }
            Err(f) => fault::<C>(s, op, f),
        }
    }
}

/// The value's offset is in `d`.
unsafe extern "C" fn store_<C: GuestCpu, T: Copy, const CTX: usize>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: as `load_`.
    unsafe {
        let o = *op;
        let va = rd::<u64>(s, o.a).wrapping_add(o.x as i32 as u64);
        match host!(C, s, va, CTX, size_of::<T>(), write) {
            Some(p) => {
                p.cast::<T>().write_unaligned(rd::<T>(s, o.d));
                op.add(1)
            }
            None => store_slow::<C>(s, op, va, size_of::<T>() as u8, CTX),
        }
    }
}

#[cold]
#[inline(never)]
unsafe fn store_slow<C: GuestCpu>(s: *mut u8, op: *mut COp, va: u64, size: u8, ctx: usize) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let (b, d) = (VcpuBlock::<C>::from_seam(s), (*op).d);
        let r = match size {
            16 => b.store_128(va, rd::<u128>(s, d), ctx),
            1 => b.store(Va(va), 1, rd::<u8>(s, d).into(), ctx),
            2 => b.store(Va(va), 2, rd::<u16>(s, d).into(), ctx),
            4 => b.store(Va(va), 4, rd::<u32>(s, d).into(), ctx),
            _ => b.store(Va(va), 8, rd::<u64>(s, d), ctx),
        };
        match r {
            Ok(()) => op.add(1),
            Err(f) => fault::<C>(s, op, f),
        }
    }
}

macro_rules! by_ctx {
    ($f:ident, $C:ty, $ty:expr, $ctx:expr) => {
        match $ctx {
            0 => by_ctx!(@ $f, $C, $ty, 0),
            1 => by_ctx!(@ $f, $C, $ty, 1),
            _ => by_ctx!(@ $f, $C, $ty, 2),
        }
    };
    (@ $f:ident, $C:ty, $ty:expr, $ctx:literal) => {
        match $ty {
            Ty::I8 => $f::<$C, u8, $ctx> as Handler,
            Ty::I16 => $f::<$C, u16, $ctx>,
            Ty::I32 => $f::<$C, u32, $ctx>,
            Ty::I64 => $f::<$C, u64, $ctx>,
            Ty::V128 => $f::<$C, u128, $ctx>,
        }
    };
}

pub fn load<C: GuestCpu>(ty: Ty, ctx: usize) -> Handler {
    by_ctx!(load_, C, ty, ctx)
}

pub fn store<C: GuestCpu>(ty: Ty, ctx: usize) -> Handler {
    by_ctx!(store_, C, ty, ctx)
}

/// `d` = length << 2 | context.
pub unsafe extern "C" fn probe_w<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let va = rd::<u64>(s, o.a).wrapping_add(o.x as i32 as u64);
        let b = VcpuBlock::<C>::from_seam(s);
        match b.probe(Va(va), (o.d >> 2).into(), Access::Write, usize::from(o.d & 3)) {
            Ok(()) => op.add(1),
            Err(f) => fault::<C>(s, op, f),
        }
    }
}

/// Operands: address a, value (or expected) b, new value c; `AtomicArgs` packed in the next slot.
pub unsafe extern "C" fn atomic<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let (o, args) = (*op, (*op.add(1)).atomic_args());
        let va = rd::<u64>(s, o.a);
        let read = |off| match args.ty {
            Ty::I8 => rd::<u8>(s, off).into(),
            Ty::I16 => rd::<u16>(s, off).into(),
            Ty::I32 => rd::<u32>(s, off).into(),
            _ => rd::<u64>(s, off),
        };
        let (b, c) = (read(o.b()), if args.rmw.is_none() { read(o.c()) } else { 0 });
        match VcpuBlock::<C>::from_seam(s).atomic(va, args, b, c) {
            Ok(old) => {
                match args.ty {
                    Ty::I8 => wr::<u8>(s, o.d, old as u8),
                    Ty::I16 => wr::<u16>(s, o.d, old as u16),
                    Ty::I32 => wr::<u32>(s, o.d, old as u32),
                    _ => wr::<u64>(s, o.d, old),
                }
                op.add(2)
            }
            Err(f) => fault::<C>(s, op, f),
        }
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    pub fn load_128(&mut self, va: u64, ctx: usize) -> Result<u128, Fault> {
        if va & 0xfff > 4080 {
            self.probe(Va(va), 16, Access::Read, ctx)?;
        }
        self.access_whole(true);
        let lo = self.load(Va(va), 8, ctx);
        let both = lo.and_then(|lo| Ok((lo, self.load(Va(va.wrapping_add(8)), 8, ctx)?)));
        self.access_whole(false);
        let (lo, hi) = both?;
        let v = u128::from(lo) | u128::from(hi) << 64;
        self.access_done(va, 16, false, v);
        Ok(v)
    }

    pub fn store_128(&mut self, va: u64, v: u128, ctx: usize) -> Result<(), Fault> {
        self.probe(Va(va), 16, Access::Write, ctx)?;
        self.access_whole(true);
        let lo = self.store(Va(va), 8, v as u64, ctx);
        let hi = lo.and_then(|()| self.store(Va(va.wrapping_add(8)), 8, (v >> 64) as u64, ctx));
        self.access_whole(false);
        hi?;
        self.access_done(va, 16, true, v);
        Ok(())
    }
}

// --- helpers and faults

/// The slot after it: `h` = helper, `a` = whether it needs the program counter, `x` = the instruction's page offset.
pub unsafe extern "C" fn call<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let (o, more) = (*op, *op.add(1));
        let b = VcpuBlock::<C>::from_seam(s);
        if more.a != 0 {
            b.set_pc_in_page(more.x.into());
        }
        let f = b.helpers[more.h];
        match f(b, rd(s, o.a), rd(s, o.b()), rd(s, o.c())) {
            Ok(v) => {
                wr::<u64>(s, o.d, v);
                op.add(2)
            }
            Err(e) => fault::<C>(s, op, e),
        }
    }
}

/// The slot after it: `h` = error code as i64, `x` = vector.
pub unsafe extern "C" fn raise_if<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        if rd::<u8>(s, (*op).a) == 0 {
            return op.add(2);
        }
        let more = *op.add(1);
        let error = u32::try_from(more.h as i64).ok();
        fault::<C>(s, op, Fault { vector: more.x as u8, error, addr: 0 })
    }
}

pub unsafe extern "C" fn leave_if<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        if rd::<u8>(s, (*op).a) == 0 {
            return op.add(1);
        }
        let b = VcpuBlock::<C>::from_seam(s);
        (b.eng.fault_op, b.eng.why) = (op, Why::Unlike);
        ptr::null_mut()
    }
}

#[cold]
#[inline(never)]
unsafe fn fault<C: GuestCpu>(s: *mut u8, op: *mut COp, f: Fault) -> *mut COp {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(s) };
    b.eng.fault = f;
    b.eng.fault_op = op;
    b.eng.why = if f == LEAVE { Why::Leave } else { Why::Fault };
    ptr::null_mut()
}

// --- block starts and ends

/// First op of each block: counts, and returns to the dispatcher when asked to. The slot after it holds the record.
pub unsafe extern "C" fn start<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note; the record owns this code and is live while it runs.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let rec = (*op).record_here();
        let runs = (*rec).runs.wrapping_add(1);
        b.eng.cur = rec;
        if b.eng.exit.load(Ordering::Relaxed) != 0 {
            return leave_block::<C>(b, (*rec).start.into(), Why::Kicked);
        }
        if runs == (*rec).threshold {
            (*rec).runs = runs;
            return leave_block::<C>(b, (*rec).start.into(), Why::Hot);
        }
        (*rec).runs = runs;
        op.add(1)
    }
}

/// Starts a block of one instruction: it runs whatever the exit flag says, as its caller counts on it having run.
pub unsafe extern "C" fn start_alone<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: as `start`.
    unsafe {
        let rec = (*op).record_here();
        VcpuBlock::<C>::from_seam(s).eng.cur = rec;
        (*rec).runs = (*rec).runs.wrapping_add(1);
        op.add(1)
    }
}

/// Replaces `start` once the block has compiled code: runs that until it comes back.
pub unsafe extern "C" fn start_compiled<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: as `start`; the code's linked entry needs the page's program counter, which tier 0 keeps.
    unsafe {
        let rec = (*op).record_here();
        let b = VcpuBlock::<C>::from_seam(s);
        b.eng.why = b.run_code((*rec).linked);
        b.eng.stats.went_on += 1;
        ptr::null_mut()
    }
}

/// Replaces `start` in a dropped block that the jump cache may still name.
pub unsafe extern "C" fn start_dead<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: as `start`; dropped records are freed only after the jump cache was cleared.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let rec = (*op).record_here();
        leave_block::<C>(b, (*rec).start.into(), Why::Miss)
    }
}

pub(super) fn leave_block<C: GuestCpu>(b: &mut VcpuBlock<C>, page_offset: i64, why: Why) -> *mut COp {
    b.set_pc_in_page(page_offset);
    b.eng.why = why;
    ptr::null_mut()
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Sets the program counter to an offset from the current page's first byte.
    pub fn set_pc_in_page(&mut self, page_offset: i64) {
        let pc = self.page_pc().wrapping_add(page_offset as u64) & self.eng.pc_mask;
        self.cpu.set_pc(pc);
    }

    /// Program counter of the current page's first byte.
    pub fn page_pc(&mut self) -> u64 {
        let page_off = self.eng.pc_page_off;
        // SAFETY: the layout's `pc_page` slot lies inside the state.
        unsafe { rd::<u64>(self.seam(), page_off as u16) }
    }
}

/// Goes along an edge: to the linked block, or to the dispatcher.
#[inline(always)]
unsafe fn follow<C: GuestCpu>(s: *mut u8, slot: *mut COp) -> *mut COp {
    // SAFETY: `slot` holds an `Edge`.
    unsafe {
        let e = slot.cast::<Edge>();
        (*e).count = (*e).count.wrapping_add(1);
        if !(*e).link.is_null() {
            return (*e).link;
        }
        unlinked::<C>(s, e)
    }
}

#[inline(never)]
unsafe fn unlinked<C: GuestCpu>(s: *mut u8, e: *mut Edge) -> *mut COp {
    // SAFETY: as `follow`.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let off = (*e).off;
        b.set_pc_in_page(off.into());
        if (0..4096).contains(&off) {
            b.eng.edge = e;
            b.eng.why = Why::Link;
            return ptr::null_mut();
        }
        to_pc::<C>(s, b.cpu.pc())
    }
}

/// Continues at the program counter, which is set, through the jump cache.
unsafe fn to_pc<C: GuestCpu>(s: *mut u8, pc: u64) -> *mut COp {
    // SAFETY: records in the jump cache are live: it is cleared before they are freed.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let e = b.jc_entry(pc, b.eng.mode);
        // A block that straddles is for the dispatcher to check.
        if e.holds(pc, b.eng.mode) && !b.eng.single && (*e.rec).second.is_none() {
            wr::<u64>(s, b.eng.pc_page_off as u16, pc.wrapping_sub((*e.rec).start.into()));
            return (*e.rec).ops.as_mut_ptr();
        }
        b.eng.why = Why::Miss;
        ptr::null_mut()
    }
}

pub unsafe extern "C" fn jump<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe { follow::<C>(s, op.add(1)) }
}

pub unsafe extern "C" fn br<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let taken = rd::<u8>(s, (*op).a) != 0;
        follow::<C>(s, op.add(if taken { 1 } else { 2 }))
    }
}

pub unsafe extern "C" fn jump_ind<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let pc = rd::<u64>(s, (*op).a) & b.eng.pc_mask;
        b.cpu.set_pc(pc);
        to_pc::<C>(s, pc)
    }
}

pub unsafe extern "C" fn exit<C: GuestCpu>(s: *mut u8, _: *mut COp) -> *mut COp {
    // SAFETY: module note.
    let b = unsafe { VcpuBlock::<C>::from_seam(s) };
    b.eng.why = Why::Lookup;
    ptr::null_mut()
}

/// `x` = page offset to continue at.
pub unsafe extern "C" fn exit_next<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        leave_block(b, ((*op).x as i32).into(), Why::Lookup)
    }
}

/// Runs from an op until one goes back to the dispatcher.
///
/// # Safety
/// `seam` is the seam of a live block inside `with_io`; `op` starts a live record of its cache.
pub unsafe fn run(seam: *mut u8, mut op: *mut COp) {
    while !op.is_null() {
        // SAFETY: the caller's promise, kept by every handler.
        op = unsafe { ((*op).handler())(seam, op) };
    }
}
