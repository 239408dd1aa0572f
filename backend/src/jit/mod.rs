//! What becomes of blocks that run often: tier 1 emits them one by one, at once; tier 2 makes regions (several blocks of one
//! page, loops inside), compiled by Cranelift on a thread of its own, or at once with `threshold=0`.

pub mod arena;
pub mod asm;
pub mod compile;
mod known;
pub mod lower;
mod pads;
mod path;
pub mod perfmap;
mod region;
pub mod runtime;
mod vector;
mod vector_special;

use crate::cache::{self, Record, Region, Tier1Code, Unlike};
use crate::debug::BREAKS;
use crate::exec::{AT_ONCE, Settings};
use crate::far::Key;
use crate::tier0::form::Handler;
use crate::tier0::{counted, ops};
use crate::tier1::{self, Tier1};
use crate::vblock::{VcpuBlock, Why};
use arena::{Arena, HostCode, Range};
use compile::{Compiled, Compiler, Job, Source};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ir::pass::Passes;
use ir::{Block, BlockKey, Frontend};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use vm_core::dlog;
use vm_core::guest::GuestCpu;
use vm_core::log::{self, Item};

/// Regions waiting for the compile thread at most; a block that finds the queue full asks again later.
const QUEUE: usize = 256;

/// A block that has run this many times the threshold and still waits is compiled at once: interpreting it on would cost
/// more than compiling does.
pub(crate) const PATIENCE: u32 = 3;

/// The compile thread.
struct Background {
    jobs: Sender<Job>,
    done: Receiver<Compiled>,
}

/// The compiler as the vCPU sees it.
pub struct Jit<F: Frontend, C: GuestCpu> {
    /// For what cannot wait.
    own: Compiler<F>,
    background: Option<Background>,
    /// Entries that the compile thread has been given, with the flag by which a job is taken and the region's number.
    queued: FxHashMap<BlockKey, (Arc<AtomicBool>, u64)>,
    fe: Arc<F>,
    tier1: Option<Tier1>,
    passes: Passes,
    block: Block,
    page: Box<[u8; 4096]>,
    settings: Settings,
    /// Number of the next region or block of tier 1, for `bisect`.
    number: u64,
    waiting: usize,
    stats: Stats,
    cpu: PhantomData<fn() -> C>,
}

#[derive(Default)]
struct Stats {
    emitted: u64,
    emitted_insns: u64,
    emitted_bytes: u64,
    emitted_hot: u64,
    emit_ns: u64,
    regions: u64,
    blocks: u64,
    insns: u64,
    code_bytes: u64,
    compile_ns: u64,
    stale: u64,
    arena_flushes: u64,
    failed: u64,
}

impl Background {
    /// `kick` is called when a region is ready.
    fn start<F: Frontend>(mut compiler: Compiler<F>, kick: Box<dyn Fn() + Send + Sync>) -> std::io::Result<Self> {
        let (jobs, todo) = bounded::<Job>(QUEUE);
        let (finished, done) = unbounded();
        std::thread::Builder::new().name("rhea-compile".into()).spawn(move || {
            let mut waiting = VecDeque::new();
            // Ends when the vCPU drops its side.
            while let Some(job) = Self::next(&todo, &mut waiting) {
                let skip = job.taken.swap(true, Ordering::Relaxed);
                let result = if skip { Compiled::skipped(job.key) } else { compiler.compile(Self::gather(job, &mut waiting)) };
                if finished.send(result).is_err() {
                    return;
                }
                if !skip {
                    kick();
                }
            }
        })?;
        Ok(Self { jobs, done })
    }
}

impl Background {
    fn next(todo: &Receiver<Job>, waiting: &mut VecDeque<Job>) -> Option<Job> {
        if waiting.is_empty() {
            waiting.push_back(todo.recv().ok()?);
        }
        waiting.extend(todo.try_iter());
        waiting.pop_front()
    }

    /// Joins waiting jobs of the same page to `job`.
    fn gather(mut job: Job, waiting: &mut VecDeque<Job>) -> Job {
        let mut i = 0;
        while let Some(other) = waiting.get(i) {
            if job.joins(other) && !other.taken.swap(true, Ordering::Relaxed) {
                job.join(waiting.remove(i).expect("it was just there"));
            } else {
                i += 1;
            }
        }
        job
    }
}

impl<F: Frontend, C: GuestCpu> Jit<F, C> {
    /// Starts the compile thread, which calls `kick` when a region is ready. `Err`: the host gives no executable memory.
    pub fn new(
        fe: Arc<F>,
        b: &mut VcpuBlock<C>,
        settings: &Settings,
        kick: Box<dyn Fn() + Send + Sync>,
    ) -> std::io::Result<Self> {
        runtime::install(b);
        b.cache.arena = Some(Arena::new()?);
        b.cache.unlike = Unlike::new(settings.threshold);
        let counted = settings.counter.is_some();
        let regions = settings.hot != 0 || !settings.tier1;
        let threaded = settings.background && settings.threshold != 0 && regions;
        let tier1 = settings.tier1 && Tier1::available();
        let compiler = || {
            let mut c = Compiler::new(fe.clone(), VcpuBlock::<C>::SHAPE, counted, tier1.then(Tier1::default));
            c.loopless = settings.hot == AT_ONCE;
            c
        };
        let background = if threaded { Some(Background::start(compiler(), kick)?) } else { None };
        Ok(Self {
            own: compiler(),
            background,
            queued: FxHashMap::default(),
            tier1: tier1.then(Tier1::default),
            fe,
            passes: Passes::new(),
            block: Block::default(),
            page: Box::new([0; 4096]),
            settings: settings.clone(),
            number: 0,
            waiting: 0,
            stats: Stats::default(),
            cpu: PhantomData,
        })
    }

    /// A block has run often: it goes one tier up. `rec` is live.
    pub fn hot(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        match region::tier(rec) {
            0 if self.tier1.is_some() && (self.settings.hot != AT_ONCE || region::alone(rec)) => self.emit(b, rec),
            _ if region::alone(rec) => region::never_ask(rec),
            0 | 1 => self.request(b, rec),
            _ => {}
        }
    }

    /// Compiles the region that starts at `rec` (live).
    fn request(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        let threshold = self.settings.threshold;
        let again = match self.queued.get(&cache::key_of(rec)) {
            Some((taken, _)) if taken.swap(true, Ordering::Relaxed) => return region::ask_later(rec, threshold),
            Some((_, number)) => Some(*number),
            None => None,
        };
        let number = again.unwrap_or(self.number);
        self.number += u64::from(again.is_none());
        if self.settings.bisect.is_some_and(|(lo, hi)| !(lo..=hi).contains(&number)) {
            return;
        }
        let job = region::choose(b, rec, number, &self.settings);
        match &self.background {
            Some(bg) if again.is_none() => {
                let (key, taken) = (job.key, job.taken.clone());
                if bg.jobs.try_send(job).is_ok() {
                    self.waiting += 1;
                    self.queued.insert(key, (taken, number));
                } else {
                    region::cool(rec, self.settings.hot);
                }
            }
            _ => {
                let done = self.own.compile(job);
                self.install(b, done);
            }
        }
    }

    /// Takes in what the compile thread has finished.
    pub fn install_finished(&mut self, b: &mut VcpuBlock<C>) {
        b.cache.release_freed();
        while self.waiting > 0 {
            let Some(c) = self.background.as_ref().and_then(|bg| bg.done.try_recv().ok()) else { return };
            self.waiting -= 1 + c.also.len();
            self.queued.remove(&c.key);
            c.also.iter().for_each(|k| {
                self.queued.remove(k);
            });
            self.install(b, c);
        }
    }

    fn install(&mut self, b: &mut VcpuBlock<C>, c: Compiled) {
        self.stats.compile_ns += c.nanos;
        let ram = b.machine().ram();
        let page = c.key.phys >> 12;
        if c.code.is_empty() {
            if !c.skipped {
                self.stats.failed += 1;
                b.cache.get(&c.key).into_iter().for_each(region::never_ask);
            }
            return;
        }
        if ram.version(page) != c.version || !b.cache.source_is_still(ram, &c) {
            self.stats.stale += 1;
            return;
        }
        let Some((range, address)) = self.place(b, HostCode { hot: &c.code, cold: &c.cold, crossing: &c.crossing }) else {
            return;
        };
        if let (Some(map), Some((hot, cold))) = (&self.settings.perfmap, b.cache.code_parts(range)) {
            map.add((hot, c.code.len()), (cold, c.cold.len()), &format!("guest_ram_{:x}_loop", c.key.phys));
        }
        self.stats.regions += 1;
        self.stats.blocks += c.ranges.len() as u64;
        self.stats.insns += u64::from(c.insns);
        self.stats.code_bytes += (c.code.len() + c.cold.len()) as u64;
        let thunks = address + c.thunks as u64;
        b.cache.add_region(Region {
            mode: c.key.mode,
            entries: Vec::new(),
            ranges: c.ranges,
            members: c.starts,
            thunks,
            code: range,
            compiled_start: ops::start_compiled::<C>,
            start: self.start(),
            threshold: self.settings.threshold.max(1),
        });
    }

    /// Handler of starts of blocks that have no code.
    fn start(&self) -> Handler {
        if self.settings.counter.is_some() { counted::start::<C> } else { ops::start::<C> }
    }

    /// Room in the arena: free, of code that was dropped, or if need be of all code there is.
    fn place(&mut self, b: &mut VcpuBlock<C>, code: HostCode<'_>) -> Option<(Range, u64)> {
        if let Some(placed) = b.cache.place_code(code) {
            return Some(placed);
        }
        b.cache.release_freed();
        if let Some(placed) = b.cache.place_code(code) {
            return Some(placed);
        }
        self.drop_all(b);
        b.cache.place_code(code)
    }

    fn drop_all(&mut self, b: &mut VcpuBlock<C>) {
        dlog!(SMC, "code arena full: dropping all compiled code");
        self.stats.arena_flushes += 1;
        b.cache.drop_regions();
        b.cache.drop_all_tier1(self.start(), self.settings.threshold.max(1));
        b.cache.release_freed();
    }

    /// Places for the keys of a block's links; if need be of all code there is.
    fn keys(&mut self, b: &mut VcpuBlock<C>) -> [Key; tier1::NEAR_OR_FAR + 1] {
        if !b.cache.keys.have(tier1::NEAR_OR_FAR + 1) {
            self.drop_all(b);
        }
        std::array::from_fn(|_| b.cache.keys.take(&mut b.eng.keys))
    }

    /// Whether the block at the program counter had better link to other global pages only.
    fn is_global(b: &VcpuBlock<C>, mode: u64, straddles: bool) -> bool {
        let (va, ctx) = (b.cpu.linear(b.cpu.pc()).0, C::mode_ctx(mode));
        let next = (va & !0xfff).wrapping_add(4096);
        b.is_global(va, ctx) && (!straddles || b.is_global(next, ctx))
    }

    /// Emits a block by tier 1. `rec` is live.
    fn emit(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        let number = self.number;
        self.number += 1;
        if self.settings.bisect.is_some_and(|(lo, hi)| !(lo..=hi).contains(&number)) {
            return;
        }
        let t = Instant::now();
        let ((key, end), Source { start, guess, .. }) = (region::key_and_end(rec), region::source(rec));
        let way = path::choose(b, rec, &self.settings);
        if way.end > end {
            b.cache.reach(b.machine().ram(), rec, way.end);
        }
        crate::exec::read_code(b.machine().ram(), key.phys, &mut self.page);
        let (mut block, emitter) = (std::mem::take(&mut self.block), self.tier1.take());
        let Some(mut emitter) = emitter else { return };
        let fe = self.fe.clone();
        let second = region::second(rec).map(|page| {
            let mut next = Box::new([0; 4096]);
            crate::exec::read_code(b.machine().ram(), page << 12, &mut next);
            next
        });
        let changing = region::loose(rec);
        let mut bytes = compile::Bytes { page: &self.page, next: second.as_deref(), guess, path: way.path, changing };
        let done = fe.translate(key.mode, start, way.insns, &mut bytes, &mut block);
        let fits = (i64::from(end)..=i64::from(way.end)).contains(&block.next);
        if done.is_err() || block.straddles != second.is_some() || !fits {
            region::never_ask(rec);
            (self.block, self.tier1) = (block, Some(emitter));
            return;
        }
        let layout = fe.layout();
        self.passes.optimize_for_registers(&mut block, layout, fe.helpers());
        let apart = b.cache.unlike.in_page(key.phys >> 12);
        let keys = self.keys(b);
        let env = tier1::Env {
            layout,
            helpers: fe.helpers(),
            shape: VcpuBlock::<C>::SHAPE,
            pc_mask: (layout.pc_mask)(key.mode),
            ctx: C::mode_ctx(key.mode),
            record: rec,
            // Regions know nothing of places that nothing may jump to by itself.
            counts: self.settings.hot != 0 && key.mode & BREAKS == 0 && !region::alone(rec) && leads_back(&block),
            counted: self.settings.counter.is_some(),
            keys,
            global: Self::is_global(b, key.mode, second.is_some()),
            guarded: second.is_some(),
            apart: &apart,
            source: b.machine().ram().host_base() as u64 + (key.phys & !0xfff),
        };
        let code = emitter.emit(&env, &block);
        if log::enabled(Item::OUT_ASM) && log::in_filter(key.phys) {
            let (text, len) = (crate::dump::parts(code.code), code.code.len());
            log::write(format_args!("OUT: block at RAM {:#x}, {len} bytes\n{text}\n", key.phys));
        }
        let used = [&code.far[0], &code.far[1], &code.far[2], &code.guard].map(Option::is_some);
        let placed = self.place(b, code.code);
        keys.iter().zip(used).filter(|(_, used)| !used || placed.is_none()).for_each(|(k, _)| b.cache.keys.give(*k));
        if let Some((range, _)) = placed {
            if let (Some(map), Some(parts)) = (&self.settings.perfmap, b.cache.code_parts(range)) {
                let at = b.cpu.linear(b.cpu.pc()).0;
                map.add((parts.0, code.code.hot.len()), (parts.1, code.code.cold.len()), &format!("guest_{at:x}"));
            }
            let (entries, edges, len, hot) = (code.entries, code.edges, code.code.len(), code.code.hot.len());
            let made = Tier1Code {
                range,
                edges,
                to: [ptr::null_mut(); tier1::EDGES],
                far: code.far,
                guard: code.guard,
                calls: code.calls,
            };
            b.cache.add_tier1(rec, made, entries, ops::start_compiled::<C>);
            region::cool(rec, self.settings.hot);
            self.stats.emitted += 1;
            self.stats.emitted_insns += u64::from(block.guest_insns);
            self.stats.emitted_bytes += len as u64;
            self.stats.emitted_hot += hot as u64;
            self.stats.emit_ns += t.elapsed().as_nanos() as u64;
        }
        (self.block, self.tier1) = (block, Some(emitter));
    }

    /// Runs compiled code until it comes back.
    pub fn enter(&self, b: &mut VcpuBlock<C>, code: u64) -> Why {
        region::enter(b, code)
    }

    /// Seconds that went into compiling, of both tiers.
    pub fn seconds(&self) -> f64 {
        (self.stats.emit_ns + self.stats.compile_ns) as f64 / 1e9
    }

    /// The compiler's part of `info jit`.
    pub fn info(&self, arena_used: usize) -> String {
        let s = &self.stats;
        let per = |ns: u64, n: u64| if n == 0 { 0.0 } else { ns as f64 / 1000.0 / n as f64 };
        format!(
            "blocks emitted       {}\nguest insns emitted  {}\nbytes emitted        {} ({} hot)\nemit seconds         {:.3} ({:.1} us per guest insn)\nregions compiled     {}\nregion blocks        {}\nguest insns compiled {}\ncode bytes           {} ({} in use)\ncompile seconds      {:.3} ({:.1} us per guest insn)\nstale results        {}\nnot compilable       {}\narena flushes        {}\n",
            s.emitted,
            s.emitted_insns,
            s.emitted_bytes,
            s.emitted_hot,
            s.emit_ns as f64 / 1e9,
            per(s.emit_ns, s.emitted_insns),
            s.regions,
            s.blocks,
            s.insns,
            s.code_bytes,
            arena_used,
            s.compile_ns as f64 / 1e9,
            per(s.compile_ns, s.insns),
            s.stale,
            s.failed,
            s.arena_flushes,
        )
    }
}

/// Can the block be the end of a loop within its page? Loops are what regions are for.
fn leads_back(b: &Block) -> bool {
    b.targets().into_iter().flatten().any(|to| (0..=i64::from(b.start)).contains(&to))
}
