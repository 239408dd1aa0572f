//! The execution loop: finds blocks, runs them in tier 0 or compiled, and does what they return for.
//!
//! UNSAFE: enters tier 0 and generated code with pointers to live records.
#![allow(unsafe_code)]

mod build;
mod debug;
mod find;
mod info;

pub use build::{MAX_INSNS, read_code};

use crate::PerfMap;
use crate::cache::Record;
use crate::count::Count;
use crate::debug::BREAK_BITS;
use crate::jit::Jit;
use crate::peers::{Mail, Member, Note};
use crate::tier0::form::{Edge, Former};
use crate::tier0::ops;
use crate::vblock::{Helper, LEAVE, SAMPLE, VcpuBlock, VcpuRef, Why};
use ir::pass::Passes;
use ir::{Block, Frontend};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vm_core::debug::{DebugEvent, Go, SharedPlan};
use vm_core::guest::{GuestCpu, Shutdown};
use vm_core::log::{self, Item};
use vm_core::observe::Observer;
use vm_core::{CpuIo, Events, Fault, InsnCounter, Pa, StopReason, Va, Vcpu, dlog};

/// Mode bit of blocks of one instruction, which run while the instruction may write its own code.
pub const ONE: u64 = 1 << 63;
/// Mode bit of blocks that tell an observer, which run in tier 0.
pub const OBSERVED: u64 = 1 << 62;
/// Mode bits that are not the guest's.
pub const OURS: u64 = ONE | OBSERVED | BREAK_BITS;
/// Dropped blocks that may wait until they are freed.
const GRAVES: usize = 4096;

/// `Settings::hot`: blocks become regions as soon as they are hot.
pub const AT_ONCE: u32 = u32::MAX;

/// How the engine runs (`-accel`).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Compile at all; else tier 0 only.
    pub jit: bool,
    /// Runs of a block before it is compiled; 0: compile at first sight, synchronously.
    pub threshold: u32,
    /// Emit blocks by tier 1 first; only those that run on are compiled as regions.
    pub tier1: bool,
    /// Runs of a block in tier 1 before its region is compiled; 0: never, `AT_ONCE`: without tier 1, but for blocks that straddle.
    pub hot: u32,
    /// Regions of one block only.
    pub single_block_regions: bool,
    /// Compile only regions with numbers in this range.
    pub bisect: Option<(u64, u64)>,
    /// Compile on a thread of its own.
    pub background: bool,
    /// Instructions in a block at most (1 to 64).
    pub max_insns: u32,
    /// Count instructions here, and stop at the limit set here.
    pub counter: Option<Arc<InsnCounter>>,
    /// Where compiled code is named for `perf`.
    pub perfmap: Option<Arc<PerfMap>>,
}

/// One vCPU of the translating engine.
pub struct Engine<F: Frontend, C: GuestCpu> {
    vref: VcpuRef<C>,
    driver: Driver<F, C>,
}

struct Driver<F: Frontend, C: GuestCpu> {
    fe: Arc<F>,
    settings: Settings,
    former: Former,
    passes: Passes,
    block: Block,
    /// The last instruction left its block and ran alone.
    left: bool,
    /// Blocks built so far, modulo 2^32.
    builds: u32,
    /// Source bytes of the block that is being built.
    page: Option<Box<[u8; 4096]>>,
    jit: Option<Jit<F, C>>,
}

impl<F: Frontend, C: GuestCpu> Engine<F, C> {
    /// `helpers`: code of the front end's helper table, in its order. `Err`: the host gives no executable memory.
    /// `member`: its place among the machine's vCPUs, if it is not the only one.
    pub fn new(
        fe: Arc<F>,
        cpu: C,
        helpers: Arc<[Helper<C>]>,
        settings: Settings,
        member: Option<Member>,
    ) -> std::io::Result<Self> {
        let mut b = VcpuBlock::new(cpu, helpers);
        b.cache.member = member;
        let l = fe.layout();
        b.eng.pc_off = l.slot(l.pc).offset;
        b.eng.pc_page_off = l.slot(l.pc_page).offset;
        b.eng.fp_flags_off = l.slot(l.fp_flags).offset;
        b.eng.run_fp = l.run_fp;
        b.eng.mask_of = l.pc_mask;
        b.set_mode(b.eng.mode);
        b.eng.run_tri = l.run_tri;
        b.count = settings.counter.clone().map(Count::new);
        let vref = VcpuRef::new(b);
        let mut engine = Self {
            vref,
            driver: Driver {
                fe: fe.clone(),
                former: Former::new(settings.counter.is_some()),
                passes: Passes::new(),
                block: Block::default(),
                left: false,
                builds: 0,
                page: None,
                jit: None,
                settings,
            },
        };
        if engine.driver.settings.jit {
            let kick = engine.kick();
            let jit = Jit::new(fe, engine.vref.get(), &engine.driver.settings, kick)?;
            engine.driver.jit = Some(jit);
        }
        Ok(engine)
    }

    /// For `VcpuSignals::set_kick`.
    pub fn kick(&self) -> Box<dyn Fn() + Send + Sync> {
        self.vref.kick()
    }
}

/// While it lives, the vCPU runs guest code.
struct Running<'a>(&'a Member);

impl<'a> Running<'a> {
    fn start(m: &'a Member) -> Self {
        m.enter();
        Self(m)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl<F: Frontend, C: GuestCpu> Vcpu for Engine<F, C> {
    type Cpu = C;

    fn run(&mut self, io: &dyn CpuIo) -> StopReason {
        let driver = &mut self.driver;
        let member = self.vref.get().cache.member.clone();
        let _among_peers = member.as_ref().map(Running::start);
        self.vref.get().with_io(io, |b| {
            b.take_limit();
            b.cpu.announce(io);
            let why = driver.run(b);
            b.publish_count();
            why
        })
    }

    fn cpu(&mut self) -> &mut C {
        &mut self.vref.get().cpu
    }

    fn cpu_changed(&mut self) {
        let b = self.vref.get();
        b.fills.flush_all(&mut b.eng.tlb);
        b.code_moved();
    }

    fn observe(&mut self, observer: Option<Box<dyn Observer<C>>>) -> Option<Box<dyn Observer<C>>> {
        self.vref.get().observe(observer)
    }

    fn debug(&mut self, plan: Option<SharedPlan<C>>) {
        self.vref.get().debug(plan);
    }

    fn go(&mut self, go: Go) {
        self.vref.get().go(go);
    }

    fn info_jit(&mut self) -> String {
        self.driver.info(self.vref.get())
    }

    fn info_tlb(&mut self, io: &dyn CpuIo) -> String {
        self.vref.get().cpu.dump_mappings(&crate::mmu::WalkMem::new(io))
    }

    fn debug_translate(&mut self, io: &dyn CpuIo, va: Va) -> Option<Pa> {
        self.vref.get().cpu.debug_walk(va, &crate::mmu::WalkMem::new(io))
    }
}

impl<F: Frontend, C: GuestCpu> Driver<F, C> {
    fn run(&mut self, b: &mut VcpuBlock<C>) -> StopReason {
        let io = b.machine();
        loop {
            if let Some(event) = b.take_debug_event() {
                return StopReason::Debug(event);
            }
            b.eng.exit.store(0, Ordering::SeqCst);
            if b.eng.tlb.closed() {
                b.eng.tlb.open();
            }
            b.eng.stack_limit.store(b.eng.stack_room, Ordering::SeqCst);
            let pending = io.signals().pending();
            if pending.contains(Events::STOP) {
                return StopReason::Stopped;
            }
            if b.out_of_budget() || pending.contains(Events::TIMER) {
                return StopReason::Limit;
            }
            if b.debug_came_round() {
                b.cache.clear(io.ram());
            }
            if !pending.is_empty() {
                if let (true, Some(m)) = (pending.contains(Events::EXCLUSIVE), &b.cache.member) {
                    m.give_way();
                }
                if pending.contains(Events::CODE) {
                    self.host_wrote_code(b);
                    self.read_mail(b);
                }
                if !self.events_wait(b, pending) && self.deliver_events(b).is_err() {
                    return StopReason::TripleFault;
                }
            }
            if b.debug_due() {
                continue;
            }
            if b.cpu.halted() {
                return StopReason::Halted;
            }
            if let Some(jit) = &mut self.jit {
                jit.install_finished(b);
            }
            if self.run_until_event(b).is_err() {
                return StopReason::TripleFault;
            }
        }
    }

    fn host_wrote_code(&mut self, b: &mut VcpuBlock<C>) {
        let io = b.machine();
        io.signals().clear(Events::CODE);
        for (first, last) in io.ram().take_code_writes(io.index()) {
            b.cache.invalidate(io.ram(), first, last - first + 1);
        }
    }

    /// Does what other vCPUs ask for.
    fn read_mail(&mut self, b: &mut VcpuBlock<C>) {
        let Some(m) = b.cache.member.clone() else { return };
        let ram = b.machine().ram();
        match m.mail() {
            Mail::Notes(notes) => {
                b.eng.stats.notes += notes.len() as u64;
                for note in notes {
                    match note {
                        Note::Written { offset, len } => b.cache.peer_wrote(ram, offset, len),
                        Note::Revoke { page } => b.stop_writing(page),
                    }
                }
            }
            Mail::Everything => {
                b.cache.clear(ram);
                b.fills.flush_all(&mut b.eng.tlb);
                b.code_moved();
                m.stopped_writing_all();
            }
        }
    }

    fn deliver_events(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        if b.cpu.in_shadow() {
            return Ok(());
        }
        b.eng.single = true;
        let delivered = C::deliver_event(b);
        b.eng.single = false;
        b.note_event(matches!(delivered, Ok(true)));
        b.cache.apply_writes(b.machine().ram());
        // A handler's first instruction is a step's end.
        if delivered? && b.stepping().is_some() {
            b.debug_stop(DebugEvent::Step);
        }
        Ok(())
    }

    /// Runs blocks until an event is pending or the CPU halts.
    fn run_until_event(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        loop {
            let (shadow, trap) = (b.cpu.in_shadow(), b.cpu.single_step());
            if b.stepping().is_some() {
                self.debug_step(b)?;
            } else if shadow || trap {
                if b.at_break() {
                    return Ok(());
                }
                self.step_watched(b, shadow, trap)?;
            } else {
                self.run_block(b)?;
            }
            if b.graves_full() {
                b.cache.changed.clear();
                b.jc_clear_all();
                b.eng.stats.interpreted_dropped += b.cache.bury();
            }
            if b.disturbed() {
                return Ok(());
            }
        }
    }

    /// One instruction with events held, or with work before and after it.
    fn step_watched(&mut self, b: &mut VcpuBlock<C>, shadow: bool, trap: bool) -> Result<(), Shutdown> {
        if trap && self.between(b, C::before_insn)? {
            b.count_fault();
            return Ok(());
        }
        let done = self.step(b)?;
        if shadow {
            b.cpu.end_shadow();
        }
        if done && trap {
            self.between(b, C::after_insn)?;
        }
        Ok(())
    }

    /// Lets the CPU enter a handler between two instructions.
    fn between<T>(&mut self, b: &mut VcpuBlock<C>, f: fn(&mut VcpuBlock<C>) -> Result<T, Shutdown>) -> Result<T, Shutdown> {
        b.eng.single = true;
        let r = f(b);
        b.eng.single = false;
        b.cache.apply_writes(b.machine().ram());
        r
    }

    /// Runs from the program counter until code comes back to the dispatcher for more than the next block.
    fn run_block(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        let mut found = None;
        loop {
            if b.at_break() {
                return Ok(());
            }
            b.eng.stats.dispatches += 1;
            let rec = match found.take().map_or_else(|| self.find(b, false), Ok) {
                Ok(r) => r,
                Err(f) => return self.fault(b, f),
            };
            self.left = false;
            self.log_entry(b);
            // SAFETY: `find` gives a live record, and sets the page's program counter.
            unsafe { self.enter(b, rec) };
            b.eng.stats.ends[b.eng.why as usize] += 1;
            let only_jumped = matches!(b.eng.why, Why::Miss | Why::Edge | Why::Link | Why::Hot);
            found = self.follow_up(b)?;
            if !only_jumped || b.eng.exit.load(Ordering::Relaxed) != 0 || b.graves_full() || b.out_of_budget() {
                return Ok(());
            }
        }
    }

    /// # Safety
    /// `rec` is live and the engine state is set up for it (`find`).
    unsafe fn enter(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        b.eng.fault_op = ptr::null();
        if !b.cache.changed.is_empty() {
            b.jc_sync();
        }
        // SAFETY: by the caller's promise.
        unsafe {
            match (&self.jit, (*rec).code) {
                (Some(jit), code) if code != 0 => b.eng.why = jit.enter(b, code),
                _ if b.eng.stats.dispatches.is_multiple_of(SAMPLE) => self.interpret_timed(b, rec),
                _ => ops::run(b.seam(), (*rec).ops.as_mut_ptr()),
            }
        }
        b.set_rest(0);
    }

    /// # Safety
    /// As `enter`.
    unsafe fn interpret_timed(&self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        let (t, went_on) = (Instant::now(), b.eng.stats.went_on);
        // SAFETY: by the caller's promise.
        unsafe { ops::run(b.seam(), (*rec).ops.as_mut_ptr()) };
        if b.eng.stats.went_on == went_on {
            b.eng.stats.interpret_ns += SAMPLE * t.elapsed().as_nanos() as u64;
        }
    }

    /// What code came back for. Gives the next block if it has been found.
    fn follow_up(&mut self, b: &mut VcpuBlock<C>) -> Result<Option<*mut Record>, Shutdown> {
        match b.eng.why {
            Why::Link => return Ok(self.link(b)),
            Why::Edge => return Ok(self.link_emitted(b)),
            Why::Lookup | Why::Miss | Why::Kicked => {}
            // The last instructions before the limit, one by one.
            Why::Budget if b.out_of_budget() => {}
            Why::Budget => {
                self.step(b)?;
            }
            Why::Leave | Why::Unlike => {
                b.eng.stats.leaves += 1;
                self.locate_fault(b);
                if b.eng.why == Why::Unlike {
                    b.insn_unlike();
                }
                b.observed_again();
                let done = self.step(b);
                self.left = true;
                done?;
            }
            Why::Fault => {
                self.locate_fault(b);
                let f = b.eng.fault;
                self.fault(b, f)?;
            }
            Why::Hot => {
                let rec = b.eng.cur;
                match &mut self.jit {
                    Some(jit) => jit.hot(b, rec),
                    None => self.form_better(b, rec),
                }
            }
        }
        Ok(None)
    }

    /// Lets an edge of tier 0 lead to the block at the program counter, which it gives.
    fn link(&mut self, b: &mut VcpuBlock<C>) -> Option<*mut Record> {
        let (edge, from) = (b.eng.edge, b.eng.cur);
        let to = self.find(b, false).ok()?;
        // SAFETY: the edge belongs to the block that just ran; nothing was freed since.
        unsafe {
            if !log::enabled(Item::NOCHAIN) && linkable(from, edge, to) && !b.is_cut((*to).key.mode, (*to).start) {
                b.cache.link(edge, to);
            }
        }
        Some(to)
    }

    /// The same of an edge of tier 1.
    fn link_emitted(&mut self, b: &mut VcpuBlock<C>) -> Option<*mut Record> {
        let (edge, from) = (b.eng.edge_number as u8, b.eng.cur);
        // The page of `from`; `find` sets that of the target.
        let (page, pc) = (b.page_pc(), b.cpu.pc());
        let to = self.find(b, false).ok()?;
        if log::enabled(Item::NOCHAIN) {
            return Some(to);
        }
        let global = b.fills.global(b.cpu.linear(pc).0, C::mode_ctx(b.eng.mode));
        b.link_far(from, edge, to, page, global);
        // SAFETY: the block just ran; nothing was freed since.
        let (from_block, to_block) = unsafe { (&*from, &*to) };
        let unwrapped = pc == page.wrapping_add(to_block.start.into());
        if from_block.tier1.is_some()
            && unwrapped
            && same_page(from_block, to_block)
            && !b.is_cut(to_block.key.mode, to_block.start)
        {
            b.cache.link_code(from, edge, to);
        }
        Some(to)
    }

    /// Sets the program counter to the instruction at which tier 0 stopped. (Compiled code has set it.)
    fn locate_fault(&self, b: &mut VcpuBlock<C>) {
        if b.eng.fault_op.is_null() {
            return;
        }
        // SAFETY: `cur` is the record that runs or just ran; it is freed only by the dispatcher, later.
        let (offset, rest) = unsafe { (*b.eng.cur).place_of(b.eng.fault_op) };
        b.set_pc_in_page(offset.into());
        b.give_back(rest);
    }

    fn fault(&mut self, b: &mut VcpuBlock<C>, f: Fault) -> Result<(), Shutdown> {
        b.eng.stats.faults += 1;
        b.count_fault();
        b.eng.single = true;
        let r = C::deliver_fault(b, f);
        b.eng.single = false;
        b.cache.apply_writes(b.machine().ram());
        r
    }

    /// Runs the one instruction at the program counter. It may write its own code. `Ok(true)`: it did not fault.
    fn step(&mut self, b: &mut VcpuBlock<C>) -> Result<bool, Shutdown> {
        b.eng.single = true;
        let found = self.find(b, true);
        let outcome = match found {
            Err(f) => Err(f),
            Ok(rec) => {
                self.log_entry(b);
                b.eng.fault_op = ptr::null();
                // SAFETY: `find` gives a live record; dropped records are freed only by the dispatcher.
                unsafe { ops::run(b.seam(), (*rec).ops.as_mut_ptr()) };
                self.locate_fault(b);
                match b.eng.why {
                    Why::Fault => Err(b.eng.fault),
                    _ => Ok(()),
                }
            }
        };
        b.eng.single = false;
        b.set_rest(0);
        b.cache.apply_writes(b.machine().ram());
        match outcome {
            Ok(()) => Ok(true),
            Err(f) => {
                debug_assert_ne!(f, LEAVE, "an instruction that runs alone does not leave");
                self.fault(b, f).map(|()| false)
            }
        }
    }

    fn log_entry(&self, b: &VcpuBlock<C>) {
        if log::enabled(Item::EXEC | Item::CPU) {
            let pc = b.cpu.pc();
            if log::in_filter(b.cpu.linear(pc).0) {
                dlog!(EXEC, "Trace {:#x} [mode {:#x}]", pc, b.eng.mode);
                dlog!(CPU, "{}", b.cpu.dump());
            }
        }
    }
}

/// A link is followed without a look at anything: both ends must be kept blocks of the same page, the target all in it
/// (its second page may be mapped elsewhere next time) and where the edge says (16-bit program counters wrap).
///
/// # Safety
/// The records are not freed, `edge` is one of `from`'s.
unsafe fn linkable(from: *const Record, edge: *const Edge, to: *const Record) -> bool {
    // SAFETY: by the caller's promise.
    let (from, edge, to) = unsafe { (&*from, &*edge, &*to) };
    i64::from(to.start) == i64::from(edge.off) && to.second.is_none() && same_page(from, to)
}

/// As `linkable`, of an edge of compiled code that leads to where `to` starts: that of blocks that straddle looks for itself.
fn same_page(from: &Record, to: &Record) -> bool {
    let one_page = from.key.phys >> 12 == to.key.phys >> 12;
    one_page && !from.dead && to.key.mode == from.key.mode && to.key.mode & ONE == 0
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// The instruction at the program counter did what `Why::Unlike` says.
    fn insn_unlike(&mut self) {
        let va = self.cpu.linear(self.cpu.pc()).0;
        let Some(offset) = self.quick(va, 1, vm_core::Access::Execute, C::mode_ctx(self.eng.mode)) else { return };
        if self.cache.unlike.met(offset) {
            let ram = self.machine().ram();
            self.cache.invalidate(ram, offset, 1);
        }
    }

    fn note_event(&mut self, delivered: bool) {
        self.eng.stats.events += u64::from(delivered);
    }
}
