//! `VcpuBlock`: everything one vCPU's generated code, tier 0 and helpers touch, in one allocation. Generated code holds a
//! pointer to its field `cpu` (the seam): engine state lies below it, temporaries of tier 0 above.
//!
//! UNSAFE: `io` is a borrowed trait object with its lifetime erased; it is set on entry to `Vcpu::run` and other entry
//! points, and cleared on return.
#![allow(unsafe_code)]

use crate::cache::{Cache, Record};
use crate::count::Count;
use crate::debug::Debugging;
use crate::far::{KEYS, KnownPages, Spaces};
use crate::jit::runtime::func;
use crate::jumps::{JC_ENTRIES, JcEntry, JcFills};
use crate::left::LeftSpaces;
use crate::observe::Observing;
use crate::pages::LargePages;
use crate::tier0::form::{COp, Edge};
use crate::tlb;
use ir::fp::RunFp;
use ir::tri::RunTri;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vm_core::guest::{CTX_COUNT, GuestCpu, X87_IMAGE};
use vm_core::{CpuIo, Fault};

/// Slots for values of tier 0 that live in no state slot.
pub const TEMPS: usize = 512;

/// Marker vector of `Fault`: not a guest exception, but "leave before this instruction and run it alone".
pub const LEAVE: Fault = Fault { vector: 0xff, error: None, addr: 0 };

/// Why code returned to the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Why {
    /// Look up the block at the program counter.
    Lookup = 0,
    /// The same, and link `Engine::edge` to it.
    Link = 1,
    /// Run the instruction at the program counter alone in tier 0.
    Leave = 2,
    /// `Engine::fault` was raised by the instruction at the program counter.
    Fault = 3,
    /// The block at the program counter reached the compile threshold.
    Hot = 4,
    /// The exit flag was seen.
    Kicked = 5,
    /// Look up the block at the program counter, and let edge `Engine::edge_number` of `Engine::cur`'s code lead to it.
    Edge = 6,
    /// As `Lookup`, after an ordinary jump: nothing but the program counter has changed.
    Miss = 7,
    /// `Engine::budget` does not suffice for the block at the program counter.
    Budget = 8,
    /// As `Leave`: the instruction is not what its code was made for. Accesses that were taken to lie in one page do not
    /// (`tier1::share`), or a guess was wrong (`ir::Op::LeaveIf`).
    Unlike = 9,
}

impl Why {
    pub const COUNT: usize = 10;
    /// As `info jit` calls them.
    pub const NAMES: [&str; Self::COUNT] =
        ["look up", "link", "leave", "fault", "hot", "kicked", "edge", "jump cache missed", "budget", "unlike"];

    pub fn from_code(c: u64) -> Why {
        match c {
            1 => Why::Link,
            2 => Why::Leave,
            3 => Why::Fault,
            4 => Why::Hot,
            5 => Why::Kicked,
            6 => Why::Edge,
            7 => Why::Miss,
            8 => Why::Budget,
            9 => Why::Unlike,
            _ => Why::Lookup,
        }
    }
}

/// A slow instruction's code.
pub type Helper<C> = fn(&mut VcpuBlock<C>, u64, u64, u64) -> Result<u64, Fault>;

/// Generated code's base register holds the seam plus this: what lies within 128 bytes of there takes short displacements,
/// general registers and flags above the seam, the end of `Engine` below.
pub const BASE: i32 = 64;

/// Words that make `Engine` end on its last one.
const PAD: usize = 1;

/// Engine state below the seam. Generated code uses the `#[repr(C)]` part by offset.
#[repr(C)]
pub struct Engine {
    /// Mask of program counters in the current mode.
    pub pc_mask: u64,
    /// Operands and result of vector ops that have no short form.
    pub vec_a: u128,
    pub vec_b: u128,
    pub vec_c: u128,
    /// Where the host's stack is when there is no frame of a guest call on it, and where to leave generated code from.
    pub stack_base: u64,
    pub way_out: u64,
    /// Linear address of the memory access that is being checked.
    pub slow_addr: u64,
    /// Counted down by jumps that find their target in its second place of the jump cache; at 0 the dispatcher is asked.
    pub second_places: u32,
    /// The x87 state on its way to the host's FPU or back.
    pub x87: [u8; X87_IMAGE],
    /// Control word for floating point, without exception flags.
    pub fp_control: u32,
    /// With `Why::Edge`: 0 the taken edge, 1 the other, 2 the way on behind a call.
    pub edge_number: u32,
    /// The block that runs, or ran last, in tier 0; the one that left, in tier 1.
    pub cur: *mut Record,
    /// Where instructions are counted: how many may be executed before the dispatcher is needed. Taken at a block's start.
    pub budget: u64,
    /// Address of the table in `tlb` of ordinary accesses in the mode.
    pub table: u64,
    pub tlb: tlb::Tables,
    pub jc: [JcEntry; JC_ENTRIES],
    /// Keys of links across pages.
    pub keys: [u64; KEYS],

    // --- not used by generated code
    /// Offsets from the seam of the program counter and of the page's program counter.
    pub pc_off: u32,
    pub pc_page_off: u32,
    /// Offset from the seam of the guest's floating-point flags, and what runs floating-point ops.
    pub fp_flags_off: u32,
    pub run_fp: RunFp,
    pub run_tri: RunTri,
    /// `ir::StateLayout::pc_mask`.
    pub mask_of: fn(mode: u64) -> u64,
    /// Mode word of the code that runs: `VcpuBlock::set_mode`.
    pub mode: u64,
    /// What `stack_limit` is while `exit` is not set; set by the first entry into generated code.
    pub stack_room: u64,
    /// `GuestCpu::code_base` that the jump cache holds for.
    pub code_base: u64,
    pub why: Why,
    pub fault: Fault,
    pub edge: *mut Edge,
    /// Where in tier 0's code `fault` or a leave happened.
    pub fault_op: *const COp,
    /// One instruction runs alone: it may write to its own code.
    pub single: bool,
    pub stats: Stats,
    pad: [u64; PAD],

    // --- used most by generated code: within `BASE` bytes of the seam, but for the first functions
    /// Functions that generated code calls: see `jit::runtime`.
    pub fns: [usize; func::COUNT],
    /// What entries of the jump cache have for `mode`. Read together with `exit`, so that none fits while that is set.
    pub tag: u32,
    /// Set by other threads: return to the dispatcher soon.
    pub exit: AtomicU32,
    /// Outcome of the last helper called from generated code: 0 = done, else a `Why`.
    pub status: u32,
    /// What an access is, once it has missed: `jit::runtime::AccessInfo`.
    pub slow_info: u32,
    /// Where the host's stack has no room for another frame of a guest call; all ones while `exit` is set, so that every call asks.
    pub stack_limit: AtomicU64,
    /// What generated code has in the host's registers: `LIVE_SSE`, `LIVE_X87`. See `VcpuBlock::collect_fp`.
    pub fp_live: u32,
    /// The space of links; must come last (checked in `VcpuBlock`).
    pub spaces: Spaces,
}

/// The host's control word is `Engine::fp_control`, and the guest's exception flags gather there.
pub const LIVE_SSE: u32 = 1;
/// The guest's x87 state but for the pointers, all exceptions masked, is in the host's FPU.
pub const LIVE_X87: u32 = 2;

/// Of how many visits of tier 0 one is timed.
pub const SAMPLE: u64 = 64;

/// Counters for `info jit`.
#[derive(Default, Debug, Clone)]
pub struct Stats {
    pub dispatches: u64,
    /// Ends of blocks with `Why::Lookup` that went on without a visit.
    pub straight_on: u64,
    /// What the visits came to, by `Why`.
    pub ends: [u64; Why::COUNT],
    pub lookups: u64,
    pub leaves: u64,
    pub faults: u64,
    pub events: u64,
    pub translate_ns: u64,
    pub insns_translated: u64,
    /// Time in tier 0: one visit in `SAMPLE` is timed, and counts as often.
    pub interpret_ns: u64,
    /// Visits of tier 0 that ended in compiled code.
    pub went_on: u64,
    /// Instructions that were decoded for one run, as another vCPU could still write their page.
    pub unclaimed: u64,
    /// Messages from other vCPUs.
    pub notes: u64,
    /// Executions of blocks that have been dropped, in guest instructions.
    pub interpreted_dropped: u64,
}

/// What the compilers must know of a `VcpuBlock` and its guest.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Offset from the seam of a byte of `Engine`.
    pub eng: fn(usize) -> i32,
    /// Offset from the seam of tier 0's temporaries.
    pub temps: i32,
    /// `GuestCpu::mode_ctx`.
    pub mode_ctx: fn(u64) -> usize,
}

/// The block itself. Made only by `new`, always boxed, never moved.
#[repr(C)]
pub struct VcpuBlock<C: GuestCpu> {
    pub eng: Engine,
    pub cpu: C,
    pub temps: [u128; TEMPS],
    pub fills: tlb::Fills,
    pub jc_fills: JcFills,
    pub left: LeftSpaces,
    pub known_pages: KnownPages,
    pub large: LargePages,
    pub cache: Cache,
    pub helpers: Arc<[Helper<C>]>,
    pub count: Option<Count>,
    pub observing: Option<Box<Observing<C>>>,
    /// Once there has been a debugger.
    pub debugging: Option<Box<Debugging<C>>>,
    io: Option<NonNull<dyn CpuIo>>,
}

// SAFETY: the raw pointers in it point into itself or into `cache`, which it owns; `io` is set only while the owning
// thread is inside `with_io`.
unsafe impl<C: GuestCpu> Send for VcpuBlock<C> {}

impl<C: GuestCpu> VcpuBlock<C> {
    /// What is used most lies where `BASE` reaches it.
    const ENDS_AT_SEAM: () = assert!(Self::eng_offset(offset_of!(Engine, spaces)) == -32);
    /// Jumps through the jump cache read both at once.
    const TAG_AND_EXIT: () = assert!(offset_of!(Engine, tag) % 8 == 0 && offset_of!(Engine, exit) == offset_of!(Engine, tag) + 4);

    pub fn new(cpu: C, helpers: Arc<[Helper<C>]>) -> Box<Self> {
        const { (Self::ENDS_AT_SEAM, Self::TAG_AND_EXIT) };
        let layout = std::alloc::Layout::new::<Self>();
        // SAFETY: the layout is not empty. Every field is written before the box is made: the tables and temporaries are
        // plain numbers for which zero is valid (and are set up by `clear`), the others are written one by one.
        let mut b = unsafe {
            let p = std::alloc::alloc_zeroed(layout).cast::<Self>();
            if p.is_null() {
                std::alloc::handle_alloc_error(layout);
            }
            (&raw mut (*p).cpu).write(cpu);
            (&raw mut (*p).fills).write(tlb::Fills::default());
            (&raw mut (*p).jc_fills).write(JcFills::default());
            (&raw mut (*p).left).write(LeftSpaces::default());
            (&raw mut (*p).known_pages).write(KnownPages::default());
            (&raw mut (*p).large).write(LargePages::default());
            (&raw mut (*p).cache).write(Cache::default());
            (&raw mut (*p).helpers).write(helpers);
            (&raw mut (*p).count).write(None);
            (&raw mut (*p).observing).write(None);
            (&raw mut (*p).debugging).write(None);
            (&raw mut (*p).io).write(None);
            (&raw mut (*p).eng.stats).write(Stats::default());
            (&raw mut (*p).eng.why).write(Why::Lookup);
            (&raw mut (*p).eng.fault).write(LEAVE);
            (&raw mut (*p).eng.run_fp).write(|_, _, _, _| 0);
            (&raw mut (*p).eng.mask_of).write(|_| !0);
            (&raw mut (*p).eng.run_tri).write(|_, _, _, _, _| 0);
            Box::from_raw(p)
        };
        b.eng.tlb.clear();
        b.eng.jc.fill(JcEntry::EMPTY);
        b.eng.spaces = Spaces::FIRST;
        b
    }

    pub const SHAPE: Shape = Shape { eng: Self::eng_offset, temps: Self::temps_offset() as i32, mode_ctx: C::mode_ctx };

    /// Offset of a byte of `Engine` from the seam (negative).
    pub const fn eng_offset(in_engine: usize) -> i32 {
        in_engine as i32 - (offset_of!(Self, cpu) as i32 - offset_of!(Self, eng) as i32)
    }

    /// Offset of the temporaries from the seam.
    pub const fn temps_offset() -> usize {
        offset_of!(Self, temps) - offset_of!(Self, cpu)
    }

    /// The seam pointer that tier 0 and generated code get.
    pub fn seam(&mut self) -> *mut u8 {
        // SAFETY: stays inside the allocation; derived from the whole block, so that engine state may be reached from it.
        unsafe { (self as *mut Self).cast::<u8>().add(offset_of!(Self, cpu)) }
    }

    /// # Safety
    /// `seam` came from `seam()` of a live block that nobody else borrows for `'a`.
    pub unsafe fn from_seam<'a>(seam: *mut u8) -> &'a mut Self {
        // SAFETY: inverse of `seam`; the caller vouches for the rest.
        unsafe { &mut *seam.sub(offset_of!(Self, cpu)).cast::<Self>() }
    }

    /// Runs `f` with `io` reachable through `GuestEnv::io`.
    pub fn with_io<R>(&mut self, io: &dyn CpuIo, f: impl FnOnce(&mut Self) -> R) -> R {
        // SAFETY: only the lifetime changes; the pointer is removed before `io`'s borrow ends (also on unwinding: by the
        // guard).
        let erased = unsafe { std::mem::transmute::<NonNull<dyn CpuIo + '_>, NonNull<dyn CpuIo>>(NonNull::from(io)) };
        struct Guard<'a, C: GuestCpu>(&'a mut VcpuBlock<C>);
        impl<C: GuestCpu> Drop for Guard<'_, C> {
            fn drop(&mut self) {
                self.0.io = None;
            }
        }
        self.io = Some(erased);
        let g = Guard(self);
        f(&mut *g.0)
    }

    /// The machine, inside `with_io`. The result does not borrow the block, so that its state can be changed meanwhile.
    pub fn machine<'a>(&self) -> &'a dyn CpuIo {
        let p = self.io.expect("the engine runs inside with_io");
        // SAFETY: set by `with_io`, whose caller's borrow is still live; callers do not keep the reference beyond it.
        unsafe { p.as_ref() }
    }
}

/// Shared ownership of a block: the vCPU uses all of it, kicks from other threads only `Engine::exit`, `stack_limit` and limits of the TLB.
pub struct VcpuRef<C: GuestCpu>(Arc<Owner<C>>);

struct Owner<C: GuestCpu>(NonNull<VcpuBlock<C>>);

// SAFETY: see `VcpuRef`: through a shared `Owner` only the atomic fields are touched.
unsafe impl<C: GuestCpu> Send for Owner<C> {}
// SAFETY: as above.
unsafe impl<C: GuestCpu> Sync for Owner<C> {}

impl<C: GuestCpu> Drop for Owner<C> {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::leak`, and this is the last owner.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl<C: GuestCpu> VcpuRef<C> {
    pub fn new(b: Box<VcpuBlock<C>>) -> Self {
        Self(Arc::new(Owner(NonNull::from(Box::leak(b)))))
    }

    pub fn get(&mut self) -> &mut VcpuBlock<C> {
        // SAFETY: `VcpuRef` is not `Clone` and `self` is borrowed mutably, so this is the only use beside the atomic fields.
        unsafe { &mut *self.0.0.as_ptr() }
    }

    /// Makes generated code return to the dispatcher soon; callable from any thread, also after the vCPU is gone.
    pub fn kick(&self) -> Box<dyn Fn() + Send + Sync> {
        let owner = self.0.clone();
        Box::new(move || {
            // SAFETY: the owner keeps the allocation; only the atomic fields are touched.
            unsafe {
                let p = owner.0.as_ptr();
                let (exit, limit) = (&raw const (*p).eng.exit, &raw const (*p).eng.stack_limit);
                (*exit).store(1, Ordering::SeqCst);
                for ctx in 0..CTX_COUNT {
                    let limits = &raw const (*p).eng.tlb.0[ctx].limits;
                    (*limits).iter().for_each(|l| l.store(0, Ordering::Relaxed));
                }
                (*limit).store(u64::MAX, Ordering::SeqCst);
            }
        })
    }
}
