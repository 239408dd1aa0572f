//! The execution loop: finds blocks, runs them in tier 0 or compiled, and does what they return for.
//!
//! UNSAFE: enters tier 0 and generated code with pointers to live records.
#![allow(unsafe_code)]

use crate::cache::Record;
use crate::jit::Jit;
use crate::mmu::Place;
use crate::tier0::form::{Edge, Formed, Former, TooLarge};
use crate::tier0::ops;
use crate::vblock::{Helper, JC_NONE, LEAVE, SAMPLE, VcpuBlock, VcpuRef, Why, jc_index};
use ir::pass::Passes;
use ir::{Block, BlockKey, CodeFetch, Frontend, TranslateError};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vm_core::guest::{GuestCpu, Shutdown};
use vm_core::log::{self, Item};
use vm_core::{Access, CpuIo, Events, Fault, Pa, PageBits, Ram, StopReason, Va, Vcpu, dlog};

/// Guest instructions in a block at most.
const MAX_INSNS: u32 = 64;
/// Bytes that the decoder looks at for one instruction at most, a longer one being invalid.
const MAX_INSN_BYTES: usize = 16;
/// The same after an instruction that had to run alone: the next may have to as well, and a new block for each of them costs
/// more the longer they are.
const AFTER_LEAVE: u32 = 8;
/// Mode bit of blocks of one instruction, which run while the instruction may write its own code.
pub const ONE: u64 = 1 << 63;
/// Runs after which a block is formed anew with the IR passes where there is no compiler.
const BETTER: u32 = 32;
/// Runs before a block is compiled whose page is written again and again.
const CHANGING: u32 = 500;
/// Dropped blocks that may wait until they are freed.
const GRAVES: usize = 4096;

/// How the engine runs (`-accel`).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Compile at all; else tier 0 only.
    pub jit: bool,
    /// Runs of a block before it is compiled; 0: compile at first sight, synchronously.
    pub threshold: u32,
    /// Emit blocks by tier 1 first; only those that run on are compiled as regions.
    pub tier1: bool,
    /// Runs of a block in tier 1 before its region is compiled; 0: never.
    pub hot: u32,
    /// Regions of one block only.
    pub single_block_regions: bool,
    /// Compile only regions with numbers in this range.
    pub bisect: Option<(u64, u64)>,
    /// Compile on a thread of its own.
    pub background: bool,
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
    /// Source bytes of the block that is being built.
    page: Option<Box<[u8; 4096]>>,
    jit: Option<Jit<F, C>>,
}

/// A block to be built.
struct Wanted {
    key: BlockKey,
    va: Va,
    ctx: usize,
    /// With the IR passes.
    better: bool,
}

/// Source bytes while a block is translated.
struct Fetch<'a, C: GuestCpu> {
    b: &'a mut VcpuBlock<C>,
    page: &'a [u8; 4096],
    next: Option<Box<[u8; 4096]>>,
    next_va: Va,
    ctx: usize,
    /// RAM page number of the second page.
    second: Option<u64>,
}

impl<C: GuestCpu> CodeFetch for Fetch<'_, C> {
    type Fault = Fault;

    fn page(&self) -> &[u8; 4096] {
        self.page
    }

    fn next_page(&mut self) -> Result<&[u8; 4096], Fault> {
        let mut buf = Box::new([0xff; 4096]);
        let offset = match self.b.quick(self.next_va.0, 1, Access::Execute, self.ctx) {
            Some(o) => Some(o),
            None => match self.b.place(self.next_va, Access::Execute, self.ctx)? {
                Place::Ram { offset, .. } => Some(offset),
                Place::Mmio(pa) => {
                    self.b.read_mmio_code(pa, &mut buf);
                    None
                }
            },
        };
        if let Some(o) = offset {
            self.b.claim_code_page(o >> 12);
            self.b.machine().ram().read(o & !0xfff, &mut buf[..]);
            self.second = Some(o >> 12);
        }
        Ok(self.next.insert(buf))
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Before bytes of a page are decoded for keeping: no store may go by unseen from now on.
    fn claim_code_page(&mut self, page: u64) {
        let ram = self.machine().ram();
        if !ram.page_bits(page).contains(PageBits::CODE) {
            ram.set_page_bits(page, PageBits::CODE);
            let host = (ram.host_base() as u64).wrapping_add(page << 12);
            self.fills.revoke_host_page(&mut self.eng.tlb, host, false);
        }
    }

    /// Instruction bytes outside RAM: as many as one instruction can have.
    fn read_mmio_code(&mut self, pa: Pa, buf: &mut [u8; 4096]) {
        let start = (pa.0 & 0xfff) as usize;
        for (byte, at) in buf[start..].iter_mut().zip(pa.0..).take(16) {
            *byte = self.machine().mmio_read(Pa(at), 1) as u8;
        }
    }
}

impl<F: Frontend, C: GuestCpu> Engine<F, C> {
    /// `helpers`: code of the front end's helper table, in its order. `Err`: the host gives no executable memory.
    pub fn new(fe: Arc<F>, cpu: C, helpers: Arc<[Helper<C>]>, settings: Settings) -> std::io::Result<Self> {
        let mut b = VcpuBlock::new(cpu, helpers);
        let l = fe.layout();
        b.eng.pc_off = l.slot(l.pc).offset;
        b.eng.pc_page_off = l.slot(l.pc_page).offset;
        let vref = VcpuRef::new(b);
        let mut engine = Self {
            vref,
            driver: Driver {
                fe: fe.clone(),
                settings,
                former: Former::default(),
                passes: Passes::new(),
                block: Block::default(),
                left: false,
                page: None,
                jit: None,
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

impl<F: Frontend, C: GuestCpu> Vcpu for Engine<F, C> {
    type Cpu = C;

    fn run(&mut self, io: &dyn CpuIo) -> StopReason {
        let driver = &mut self.driver;
        self.vref.get().with_io(io, |b| driver.run(b))
    }

    fn cpu(&mut self) -> &mut C {
        &mut self.vref.get().cpu
    }

    fn cpu_changed(&mut self) {
        let b = self.vref.get();
        b.fills.flush_all(&mut b.eng.tlb);
        b.jc_clear_all();
    }

    fn info_jit(&mut self) -> String {
        self.driver.info(self.vref.get())
    }

    fn info_tlb(&mut self, io: &dyn CpuIo) -> String {
        self.vref.get().cpu.dump_mappings(&crate::mmu::WalkMem(io))
    }

    fn debug_translate(&mut self, io: &dyn CpuIo, va: Va) -> Option<Pa> {
        self.vref.get().cpu.debug_walk(va, &crate::mmu::WalkMem(io))
    }
}

impl<F: Frontend, C: GuestCpu> Driver<F, C> {
    fn run(&mut self, b: &mut VcpuBlock<C>) -> StopReason {
        let io = b.machine();
        loop {
            b.eng.exit.store(0, Ordering::SeqCst);
            let pending = io.signals().pending();
            if !pending.is_empty() {
                if pending.contains(Events::STOP) {
                    return StopReason::Stopped;
                }
                if pending.contains(Events::CODE) {
                    self.host_wrote_code(b);
                }
                if self.deliver_events(b).is_err() {
                    return StopReason::TripleFault;
                }
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
        for (first, last) in io.ram().take_code_writes() {
            b.cache.invalidate(io.ram(), first, last - first + 1);
        }
    }

    fn deliver_events(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        if b.cpu.in_shadow() {
            return Ok(());
        }
        b.eng.single = true;
        let delivered = C::deliver_event(b);
        b.eng.single = false;
        b.stats_event(matches!(delivered, Ok(true)));
        b.cache.apply_writes(b.machine().ram());
        delivered.map(|_| ())
    }

    /// Runs blocks until an event is pending or the CPU halts.
    fn run_until_event(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        let io = b.machine();
        loop {
            let (shadow, trap) = (b.cpu.in_shadow(), b.cpu.single_step());
            if shadow || trap {
                let done = self.step(b)?;
                if shadow {
                    b.cpu.end_shadow();
                }
                if done && trap {
                    C::after_insn(b)?;
                }
            } else {
                self.run_block(b)?;
            }
            if b.cache.dead() > GRAVES {
                b.cache.changed.clear();
                b.jc_clear_all();
                b.eng.stats.interpreted_dropped += b.cache.bury();
            }
            if b.cpu.halted() || !io.signals().pending().is_empty() || b.eng.exit.load(Ordering::Relaxed) != 0 {
                return Ok(());
            }
        }
    }

    /// Runs from the program counter until code comes back to the dispatcher for more than the next block.
    fn run_block(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        loop {
            b.eng.stats.dispatches += 1;
            let rec = match self.find(b, false) {
                Ok(r) => r,
                Err(f) => return self.fault(b, f),
            };
            self.left = false;
            self.log_entry(b);
            // SAFETY: `find` gives a live record, and sets the page's program counter.
            unsafe { self.enter(b, rec) };
            let only_jumped = matches!(b.eng.why, Why::Miss | Why::Edge | Why::Link | Why::Hot);
            self.follow_up(b)?;
            if !only_jumped || b.eng.exit.load(Ordering::Relaxed) != 0 || b.cache.dead() > GRAVES {
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

    fn follow_up(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        match b.eng.why {
            Why::Lookup | Why::Miss | Why::Kicked => Ok(()),
            Why::Link => {
                let (edge, from) = (b.eng.edge, b.eng.cur);
                if let (Ok(to), false) = (self.find(b, false), log::enabled(Item::NOCHAIN)) {
                    // SAFETY: the edge belongs to the block that just ran; nothing was freed since.
                    unsafe {
                        if linkable(from, edge, to) {
                            b.cache.link(edge, to);
                        }
                    }
                }
                Ok(())
            }
            Why::Edge => {
                let (edge, from) = (b.eng.edge_number as u8, b.eng.cur);
                // The page of `from`; `find` sets that of the target.
                let (page, pc) = (b.page_pc(), b.cpu.pc());
                if let (Ok(to), false) = (self.find(b, false), log::enabled(Item::NOCHAIN)) {
                    // SAFETY: the block just ran; nothing was freed since.
                    let (from_block, to_block) = unsafe { (&*from, &*to) };
                    let unwrapped = pc == page.wrapping_add(to_block.start.into());
                    if from_block.tier1.is_some() && unwrapped && same_page(from_block, to_block) {
                        b.cache.link_code(from, edge, to);
                    }
                }
                Ok(())
            }
            Why::Leave => {
                b.eng.stats.leaves += 1;
                self.locate_fault(b);
                let done = self.step(b).map(|_| ());
                self.left = true;
                done
            }
            Why::Fault => {
                self.locate_fault(b);
                let f = b.eng.fault;
                self.fault(b, f)
            }
            Why::Hot => {
                let rec = b.eng.cur;
                match &mut self.jit {
                    Some(jit) => jit.hot(b, rec),
                    None => self.form_better(b, rec),
                }
                Ok(())
            }
        }
    }

    /// Sets the program counter to the instruction at which tier 0 stopped. (Compiled code has set it.)
    fn locate_fault(&self, b: &mut VcpuBlock<C>) {
        if b.eng.fault_op.is_null() {
            return;
        }
        // SAFETY: `cur` is the record that runs or just ran; it is freed only by the dispatcher, later.
        let offset = unsafe { (*b.eng.cur).page_offset_of(b.eng.fault_op) };
        b.set_pc_in_page(offset.into());
    }

    fn fault(&mut self, b: &mut VcpuBlock<C>, f: Fault) -> Result<(), Shutdown> {
        b.eng.stats.faults += 1;
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
        b.cache.apply_writes(b.machine().ram());
        match outcome {
            Ok(()) => Ok(true),
            Err(f) => {
                debug_assert_ne!(f, LEAVE, "an instruction that runs alone does not leave");
                self.fault(b, f).map(|()| false)
            }
        }
    }

    /// The block at the program counter, translated if need be; sets mode, mask and the page's program counter.
    fn find(&mut self, b: &mut VcpuBlock<C>, one: bool) -> Result<*mut Record, Fault> {
        let (pc, mode) = (b.cpu.pc(), b.cpu.mode());
        b.eng.mode = mode;
        b.eng.pc_mask = (self.fe.layout().pc_mask)(mode);
        // The jump cache knows program counters, not linear addresses.
        let base = b.cpu.code_base();
        if base != b.eng.code_base {
            b.eng.code_base = base;
            b.jc_clear_all();
        }
        let e = b.eng.jc[jc_index(pc)];
        // SAFETY: records named by the jump cache are freed only after it was cleared.
        if !one && e.pc == pc && e.mode == mode && !unsafe { (*e.rec).dead } {
            // SAFETY: as above.
            b.set_page_pc(pc, unsafe { (*e.rec).start });
            return Ok(e.rec);
        }
        b.eng.stats.lookups += 1;
        let (va, ctx) = (b.cpu.linear(pc), C::mode_ctx(mode));
        b.set_page_pc(pc, (va.0 & 0xfff) as u32);
        let offset = match b.quick(va.0, 1, Access::Execute, ctx) {
            Some(o) => o,
            None => match b.place(va, Access::Execute, ctx)? {
                Place::Ram { offset, .. } => offset,
                Place::Mmio(pa) => return self.translate_mmio(b, pa, va, ctx, mode),
            },
        };
        let key = BlockKey { phys: offset, mode: if one { mode | ONE } else { mode } };
        let rec = match b.cache.get(&key) {
            Some(r) => self.revalidate(b, r, va, ctx)?,
            None => None,
        };
        let rec = match rec {
            Some(r) => r,
            None => self.translate(b, key, va, ctx)?,
        };
        // SAFETY: just found or made.
        let straddles = unsafe { (*rec).second.is_some() };
        if !one && !straddles && !log::enabled(Item::NOCHAIN) {
            let global = b.fills.global(va.0, ctx);
            b.jc_fill(pc, mode, rec, global);
        }
        Ok(rec)
    }

    /// A straddling block is right only if its second page is still mapped where it was.
    fn revalidate(&mut self, b: &mut VcpuBlock<C>, r: *mut Record, va: Va, ctx: usize) -> Result<Option<*mut Record>, Fault> {
        // SAFETY: records in the cache are live.
        let Some(second) = (unsafe { (*r).second }) else { return Ok(Some(r)) };
        let next = Va((va.0 & !0xfff).wrapping_add(4096));
        let now = match b.quick(next.0, 1, Access::Execute, ctx) {
            Some(o) => Some(o >> 12),
            None => match b.place(next, Access::Execute, ctx)? {
                Place::Ram { offset, .. } => Some(offset >> 12),
                Place::Mmio(_) => None,
            },
        };
        Ok((now == Some(second)).then_some(r))
    }

    fn translate(&mut self, b: &mut VcpuBlock<C>, key: BlockKey, va: Va, ctx: usize) -> Result<*mut Record, Fault> {
        b.claim_code_page(key.phys >> 12);
        let rec = self.build_from_ram(b, Wanted { key, va, ctx, better: false })?;
        let rec = b.cache.insert(rec);
        if self.settings.threshold == 0
            && key.mode & ONE == 0
            && !self.left
            && !b.cache.changes_often(key.phys >> 12)
            && let Some(jit) = &mut self.jit
        {
            jit.hot(b, rec);
        }
        Ok(rec)
    }

    /// Code outside RAM: decoded afresh each time, one instruction at a time, never kept.
    fn translate_mmio(&mut self, b: &mut VcpuBlock<C>, pa: Pa, va: Va, ctx: usize, mode: u64) -> Result<*mut Record, Fault> {
        let mut page = [0xff; 4096];
        b.read_mmio_code(pa, &mut page);
        let key = BlockKey { phys: u64::MAX << 12 | pa.0 & 0xfff, mode: mode | ONE };
        let mut rec = self.build(b, &page, Wanted { key, va, ctx, better: false })?;
        rec.threshold = u32::MAX;
        Ok(b.cache.insert_transient(rec))
    }

    fn build_from_ram(&mut self, b: &mut VcpuBlock<C>, want: Wanted) -> Result<Box<Record>, Fault> {
        let mut page = self.page.take().unwrap_or_else(|| Box::new([0; 4096]));
        read_code(b.machine().ram(), want.key.phys, &mut page);
        let rec = self.build(b, &page, want);
        self.page = Some(page);
        rec
    }

    fn build(&mut self, b: &mut VcpuBlock<C>, page: &[u8; 4096], want: Wanted) -> Result<Box<Record>, Fault> {
        let t = Instant::now();
        let Wanted { key, va, ctx, better } = want;
        let start = (va.0 & 0xfff) as u32;
        let mut max = match key.mode & ONE {
            0 if self.left => AFTER_LEAVE,
            0 => MAX_INSNS,
            _ => 1,
        };
        let next_va = Va((va.0 & !0xfff).wrapping_add(4096));
        let mut fetch = Fetch { b, page, next: None, next_va, ctx, second: None };
        loop {
            let done = self.fe.translate(key.mode & !ONE, start, max, &mut fetch, &mut self.block);
            if let Err(TranslateError::Fetch(f)) = done {
                return Err(f);
            }
            if better {
                self.passes.optimize(&mut self.block, self.fe.layout(), self.fe.helpers());
            }
            match self.former.form::<C>(&self.block, self.fe.layout(), self.fe.helpers()) {
                Ok(formed) => {
                    let second = fetch.second.filter(|_| self.block.straddles);
                    self.log_block(key, va, page);
                    let changing = fetch.b.cache.changes_often(key.phys >> 12);
                    let rec = self.record(formed, &want, second, changing);
                    fetch.b.eng.stats.insns_translated += u64::from(rec.insns);
                    fetch.b.eng.stats.translate_ns += t.elapsed().as_nanos() as u64;
                    return Ok(rec);
                }
                Err(TooLarge) => max = (max / 2).max(1),
            }
        }
    }

    /// `changing`: the page is written again and again.
    fn record(&self, formed: Formed, want: &Wanted, second: Option<u64>, changing: bool) -> Box<Record> {
        let one = want.key.mode & ONE != 0;
        let threshold = match (&self.jit, one || want.better || second.is_some()) {
            (_, true) => u32::MAX,
            (Some(_), _) if changing => self.settings.threshold.max(CHANGING),
            (Some(_), _) if self.left => self.settings.threshold.max(2),
            (Some(_), _) => self.settings.threshold,
            (None, _) => BETTER,
        };
        let mut rec = Box::new(Record {
            runs: 0,
            threshold,
            code: 0,
            key: want.key,
            start: (want.va.0 & 0xfff) as u32,
            end: self.block.next as u32,
            second,
            insns: self.block.guest_insns,
            ops: formed.ops,
            insn_at: formed.insn_at,
            edges: formed.edges,
            incoming: Vec::new(),
            dead: false,
            linked: 0,
            hot: 0,
            jc: JC_NONE,
            tier1: None,
            callers: Vec::new(),
            dead_start: ops::start_dead::<C>,
        });
        let p = &raw mut *rec;
        rec.ops[0].set_record(p);
        if one {
            rec.ops[0].set_handler(ops::start_alone::<C>);
        }
        rec
    }

    /// Without a compiler, a block that runs often gets the IR passes and is formed anew.
    fn form_better(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        // SAFETY: `rec` is live: it just ran.
        let (key, start) = unsafe { ((*rec).key, (*rec).start) };
        let va = Va(b.cpu.linear(b.cpu.pc()).0 & !0xfff | u64::from(start));
        let want = Wanted { key, va, ctx: C::mode_ctx(key.mode), better: true };
        if let Ok(better) = self.build_from_ram(b, want) {
            b.cache.insert(better);
        }
    }

    fn log_block(&self, key: BlockKey, va: Va, page: &[u8; 4096]) {
        let on = Item::IN_ASM | Item::OP;
        if !log::enabled(on) || !log::in_filter(va.0) {
            return;
        }
        if log::enabled(Item::IN_ASM) {
            log::write(format_args!("----------------\nIN: {:#x} (RAM {:#x}, mode {:#x})\n", va.0, key.phys, key.mode));
            let (mut at, end) = (self.block.start as usize, (self.block.next as usize).min(4096));
            while at < end {
                let pc = va.0 & !0xfff | at as u64;
                let (text, len) = self.fe.disassemble(key.mode & !ONE, pc, &page[at..end]);
                log::write(format_args!("{pc:#x}:  {text}\n"));
                at += len.max(1);
            }
        }
        if log::enabled(Item::OP) {
            let text = self.block.display(self.fe.layout(), self.fe.helpers());
            log::write(format_args!("OP:\n{text}\n"));
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

    fn info(&self, b: &mut VcpuBlock<C>) -> String {
        let s = &b.eng.stats;
        let live: u64 = b.cache.records().map(|r| u64::from(r.runs) * u64::from(r.insns)).sum();
        let mut text = format!(
            "blocks               {}\nguest insns in them  {}\ninsns interpreted    {}\ntranslated insns     {}\nwarm-up: building    {:.3} s\nwarm-up: interpreting {:.3} s (sampled)\nwarm-up: compiling   {:.3} s\ndispatcher visits    {}\ncache look-ups       {}\nleaves               {}\nfaults               {}\nevents               {}\ninvalidations        {}\nTLB refills          {}\nTLB flushes          {}\n",
            b.cache.len(),
            b.cache.records().map(|r| u64::from(r.insns)).sum::<u64>(),
            live + s.interpreted_dropped,
            s.insns_translated,
            s.translate_ns as f64 / 1e9,
            s.interpret_ns as f64 / 1e9,
            self.jit.as_ref().map_or(0.0, Jit::seconds),
            s.dispatches,
            s.lookups,
            s.leaves,
            s.faults,
            s.events,
            b.cache.invalidations,
            b.fills.refills,
            b.fills.flushes,
        );
        match &self.jit {
            Some(j) => text.push_str(&j.info(b.cache.arena_used())),
            None => text.push_str("compiler             off\n"),
        }
        text
    }
}

/// Reads source bytes at a RAM offset into their place in a page: as many as a block can have.
pub fn read_code(ram: &Ram, offset: u64, page: &mut [u8; 4096]) {
    let start = (offset & 0xfff) as usize;
    let end = (start + MAX_INSNS as usize * MAX_INSN_BYTES).min(4096);
    ram.read(offset, &mut page[start..end]);
}

/// A link is followed without a look at anything: both ends must be kept blocks of the same page, the target all in it
/// (its second page may be mapped elsewhere next time) and where the edge says (16-bit program counters wrap).
///
/// # Safety
/// The records are not freed, `edge` is one of `from`'s.
unsafe fn linkable(from: *const Record, edge: *const Edge, to: *const Record) -> bool {
    // SAFETY: by the caller's promise.
    let (from, edge, to) = unsafe { (&*from, &*edge, &*to) };
    i64::from(to.start) == i64::from(edge.off) && same_page(from, to)
}

/// As `linkable`, of an edge that leads to where `to` starts.
fn same_page(from: &Record, to: &Record) -> bool {
    let one_page = from.key.phys >> 12 == to.key.phys >> 12;
    one_page && !from.dead && to.second.is_none() && to.key.mode == from.key.mode && to.key.mode & ONE == 0
}

impl<C: GuestCpu> VcpuBlock<C> {
    fn stats_event(&mut self, delivered: bool) {
        self.eng.stats.events += u64::from(delivered);
    }

    /// Sets the program counter of the page's first byte, given one in it.
    fn set_page_pc(&mut self, pc: u64, page_offset: u32) {
        let off = self.eng.pc_page_off as usize;
        let v = pc.wrapping_sub(page_offset.into());
        // SAFETY: the layout's `pc_page` slot lies inside the state.
        unsafe { self.seam().add(off).cast::<u64>().write_unaligned(v) }
    }
}
