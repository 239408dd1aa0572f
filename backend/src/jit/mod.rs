//! Tier 1: hot blocks become regions (several blocks of one page, loops inside), compiled by Cranelift on a thread of
//! their own, or at once with `threshold=0`.

pub mod arena;
mod compile;
pub mod lower;
mod pads;
mod region;
pub mod runtime;
mod vector;
mod vector_special;

use crate::cache::{Record, Region};
use crate::exec::Settings;
use crate::tier0::ops;
use crate::vblock::{VcpuBlock, Why};
use arena::Arena;
use compile::{Compiled, Compiler, Job};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ir::{BlockKey, Frontend};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::dlog;
use vm_core::guest::GuestCpu;

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
    /// Entries that the compile thread has been given, with the flag by which a job is taken.
    queued: FxHashMap<BlockKey, Arc<AtomicBool>>,
    arena: Arena,
    settings: Settings,
    /// Number of the next region, for `bisect`.
    number: u64,
    waiting: usize,
    stats: Stats,
    cpu: PhantomData<fn() -> C>,
}

#[derive(Default)]
struct Stats {
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
        let eng = VcpuBlock::<C>::eng_offset;
        let threaded = settings.background && settings.threshold != 0;
        let background = if threaded { Some(Background::start(Compiler::new(fe.clone(), eng), kick)?) } else { None };
        Ok(Self {
            own: Compiler::new(fe, eng),
            background,
            queued: FxHashMap::default(),
            arena: Arena::new()?,
            settings: settings.clone(),
            number: 0,
            waiting: 0,
            stats: Stats::default(),
            cpu: PhantomData,
        })
    }

    /// A block is hot: compile the region that starts there. `rec` is live.
    pub fn request(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        if region::compiled(rec) {
            return;
        }
        let threshold = self.settings.threshold;
        let again = match self.queued.get(&region::key(rec)) {
            Some(taken) if taken.swap(true, Ordering::Relaxed) => return region::ask_later(rec, threshold),
            Some(_) => true,
            None => false,
        };
        if !again {
            self.number += 1;
        }
        let number = self.number - 1;
        if self.settings.bisect.is_some_and(|(lo, hi)| !(lo..=hi).contains(&number)) {
            return;
        }
        let job = region::choose(b, rec, number, &self.settings);
        match &self.background {
            Some(bg) if !again => {
                let (key, taken) = (job.key, job.taken.clone());
                if bg.jobs.try_send(job).is_ok() {
                    self.waiting += 1;
                    self.queued.insert(key, taken);
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
        for r in b.cache.freed.drain(..) {
            self.arena.release(r);
        }
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
        if ram.version(page) != c.version {
            self.stats.stale += 1;
            return;
        }
        let range = match self.arena.place(&c.code) {
            Some(r) => r,
            None => {
                dlog!(SMC, "code arena full: dropping all compiled code");
                self.stats.arena_flushes += 1;
                b.cache.drop_regions();
                b.cache.freed.drain(..).for_each(|r| self.arena.release(r));
                match self.arena.place(&c.code) {
                    Some(r) => r,
                    None => return,
                }
            }
        };
        self.stats.regions += 1;
        self.stats.blocks += c.ranges.len() as u64;
        self.stats.insns += u64::from(c.insns);
        self.stats.code_bytes += c.code.len() as u64;
        let thunks = self.arena.address(range) + c.thunks as u64;
        b.cache.add_region(Region {
            mode: c.key.mode,
            entries: Vec::new(),
            ranges: c.ranges,
            members: c.starts,
            thunks,
            code: range,
            compiled_start: ops::start_compiled::<C>,
            start: ops::start::<C>,
            threshold: self.settings.threshold.max(1),
        });
    }

    /// Runs compiled code until it comes back.
    pub fn enter(&self, b: &mut VcpuBlock<C>, code: u64) -> Why {
        region::enter(b, code)
    }

    /// The compiler's part of `info jit`.
    pub fn info(&self) -> String {
        let s = &self.stats;
        let per = if s.insns == 0 { 0.0 } else { s.compile_ns as f64 / 1000.0 / s.insns as f64 };
        format!(
            "regions compiled     {}\nregion blocks        {}\nguest insns compiled {}\ncode bytes           {} ({} in use)\ncompile seconds      {:.3} ({per:.1} us per guest insn)\nstale results        {}\nnot compilable       {}\narena flushes        {}\n",
            s.regions,
            s.blocks,
            s.insns,
            s.code_bytes,
            self.arena.used(),
            s.compile_ns as f64 / 1e9,
            s.stale,
            s.failed,
            s.arena_flushes,
        )
    }
}
