//! From source bytes to host code: translates a region's blocks, runs the IR passes, lowers, compiles. Needs nothing of
//! the vCPU, so it runs on any thread.

use super::arena::HostCode;
use super::asm;
use super::known;
use super::lower::{self, Env, Member};
use super::pads;
use super::region::{MAX_BLOCKS, MAX_INSNS};
use crate::far::Key;
use crate::tier1::{self, Tier1};
use crate::vblock::Shape;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::{CallConv, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, ir as clif};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use ir::pass::Passes;
use ir::{Block, BlockKey, Changing, CodeFetch, Frontend, Path};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use vm_core::log::{self, Item};
use vm_core::{Fault, dlog};

/// A block to be translated again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Page offset.
    pub start: u32,
    pub insns: u32,
    pub guess: Option<u32>,
}

/// What to compile.
pub struct Job {
    pub number: u64,
    /// Key of the entry.
    pub key: BlockKey,
    pub entry: Source,
    /// The page, and its version when it was read.
    pub bytes: Box<[u8; 4096]>,
    pub version: u32,
    /// Entries of other jobs that were joined to this one.
    pub also: Vec<BlockKey>,
    /// Blocks that may join; `None`: whatever can be reached.
    pub known: Option<Vec<Source>>,
    /// Page offsets of instructions that cross pages: see `tier1::Env`.
    pub apart: Vec<u32>,
    /// Compile the entry alone.
    pub single: bool,
    /// Taken by the first who sets it: the compile thread, or the vCPU that cannot wait.
    pub taken: Arc<AtomicBool>,
}

/// Host code of a region; empty if it could not be compiled.
pub struct Compiled {
    pub key: BlockKey,
    pub also: Vec<BlockKey>,
    pub version: u32,
    /// Source bytes, as RAM offsets.
    pub ranges: Vec<(u64, u64)>,
    /// Page offsets of the members, in the order of their thunks.
    pub starts: Vec<u32>,
    pub insns: u32,
    /// The page that it was made from; `None`: not compiled.
    pub bytes: Option<Box<[u8; 4096]>>,
    /// The region, then a thunk for each member.
    pub code: Vec<u8>,
    /// Its cold part.
    pub cold: Vec<u8>,
    /// As in `HostCode`.
    pub crossing: Vec<u32>,
    /// Offset of the first thunk.
    pub thunks: usize,
    /// Bytes of the region that run while nothing leaves it, if it was emitted: they come first.
    pub hot: usize,
    pub nanos: u64,
    /// Not compiled: somebody else took the job.
    pub skipped: bool,
}

impl Compiled {
    pub fn skipped(key: BlockKey) -> Self {
        let (also, ranges, starts, code, cold) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self {
            key,
            also,
            version: 0,
            ranges,
            starts,
            insns: 0,
            bytes: None,
            code,
            cold,
            crossing: Vec::new(),
            thunks: 0,
            hot: 0,
            nanos: 0,
            skipped: true,
        }
    }
}

/// Host code of a region, hot and cold, and where each member is entered in it (nothing: at its first byte).
#[derive(Default)]
struct Made {
    code: Vec<u8>,
    cold: Vec<u8>,
    crossing: Vec<u32>,
    entries: Vec<u32>,
}

impl From<tier1::RegionCode<'_>> for Made {
    fn from(c: tier1::RegionCode<'_>) -> Self {
        let HostCode { hot, cold, crossing } = c.code;
        Self { code: hot.to_vec(), cold: cold.to_vec(), crossing: crossing.to_vec(), entries: c.entries }
    }
}

pub struct Compiler<F: Frontend> {
    fe: Arc<F>,
    isa: OwnedTargetIsa,
    ctx: Context,
    fctx: FunctionBuilderContext,
    passes: Passes,
    control: ControlPlane,
    shape: Shape,
    /// Blocks take their instructions from `Engine::budget`.
    counted: bool,
    /// Emits regions itself, instead of Cranelift.
    emitter: Option<Tier1>,
    /// It makes regions without loops, too.
    pub loopless: bool,
}

/// A page, and the one behind it where a block straddles; what is guessed, and branches that the block goes on behind.
pub(super) struct Bytes<'a> {
    pub page: &'a [u8; 4096],
    pub next: Option<&'a [u8; 4096]>,
    pub guess: Option<u32>,
    pub path: Path,
    pub changing: Changing,
}

impl CodeFetch for Bytes<'_> {
    type Fault = Fault;

    fn page(&self) -> &[u8; 4096] {
        self.page
    }

    /// Regions hold no straddling block; the translator is told that it cannot go on.
    fn next_page(&mut self) -> Result<&[u8; 4096], Fault> {
        self.next.ok_or(crate::vblock::LEAVE)
    }

    fn guess(&self) -> Option<u32> {
        self.guess
    }

    fn path(&self) -> Path {
        self.path
    }

    fn changing(&self) -> Changing {
        self.changing
    }
}

/// CPU time of this thread: on a busy host the wall clock says nothing of what compiling costs.
fn cpu_nanos() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn isa() -> OwnedTargetIsa {
    let mut f = settings::builder();
    let flags = [
        ("opt_level", "none"),
        ("regalloc_algorithm", "backtracking"),
        ("enable_pinned_reg", "true"),
        ("preserve_frame_pointers", "true"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        ("enable_probestack", "false"),
        ("enable_table_access_spectre_mitigation", "false"),
        ("unwind_info", "false"),
    ];
    for (k, v) in flags {
        f.set(k, v).expect("a setting of this Cranelift");
    }
    let host = cranelift_native::builder().expect("Cranelift knows this host");
    host.finish(settings::Flags::new(f)).expect("the flags fit the host")
}

impl<F: Frontend> Compiler<F> {
    /// `emitter`: what makes host code, else Cranelift does.
    pub fn new(fe: Arc<F>, shape: Shape, counted: bool, emitter: Option<Tier1>) -> Self {
        Self {
            fe,
            isa: isa(),
            ctx: Context::new(),
            fctx: FunctionBuilderContext::new(),
            passes: Passes::new(),
            control: ControlPlane::default(),
            shape,
            counted,
            emitter,
            loopless: false,
        }
    }

    pub fn compile(&mut self, job: Job) -> Compiled {
        let t = cpu_nanos();
        let members = self.members(&job);
        let page = job.key.phys & !0xfff;
        let ranges = members.iter().map(|m| (page + u64::from(m.start), page + m.ir.next.clamp(0, 4096) as u64)).collect();
        let insns = members.iter().map(|m| m.ir.guest_insns).sum();
        let starts = members.iter().map(|m| m.start).collect();
        let Made { mut code, cold, crossing, entries } =
            if members.is_empty() { Default::default() } else { self.host_code(&job, &members) };
        let thunks = code.len();
        if !code.is_empty() {
            let l = self.fe.layout();
            let slot = |s| l.slot(s).offset as i32;
            let slots = asm::PcSlots { pc: slot(l.pc), page: slot(l.pc_page), mask: (l.pc_mask)(job.key.mode) };
            for (i, m) in members.iter().enumerate() {
                let (entry, function) = (entries.get(i).copied().unwrap_or(0), entries.is_empty());
                asm::push_thunk(&mut code, i, m.start, entry, &slots, function);
            }
        }
        let nanos = cpu_nanos() - t;
        Compiled {
            key: job.key,
            also: job.also,
            version: job.version,
            ranges,
            starts,
            insns,
            bytes: Some(job.bytes),
            code,
            cold,
            crossing,
            thunks,
            hot: entries.first().map_or(0, |e| *e as usize),
            nanos,
            skipped: false,
        }
    }

    /// Translates the blocks of the region, entry first, breadth first along direct edges.
    fn members(&mut self, job: &Job) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        let mut queue = vec![job.entry];
        queue.extend(job.also.iter().filter_map(|k| job.may_join((k.phys & 0xfff) as u32)));
        let (mut next, mut insns) = (0, 0);
        while let Some(&Source { start, insns: max, guess }) = queue.get(next) {
            next += 1;
            let mut ir = Block::default();
            let done = self.fe.translate(
                job.key.mode,
                start,
                max,
                &mut Bytes { page: &job.bytes, next: None, guess, path: Path::default(), changing: Changing::default() },
                &mut ir,
            );
            if done.is_err() || ir.straddles {
                continue;
            }
            insns += ir.guest_insns;
            if !members.is_empty() && insns > MAX_INSNS {
                break;
            }
            for to in ir.targets().into_iter().flatten() {
                let fits = (0..4096).contains(&to) && !job.single && queue.len() < MAX_BLOCKS;
                if let Some(source) = fits.then(|| job.may_join(to as u32)).flatten()
                    && !queue.iter().any(|s| s.start == source.start)
                {
                    queue.push(source);
                }
            }
            members.push(Member { start, ir, entered: None });
        }
        // The entry first, then by address, so that most jumps go forward.
        if let Some((_, rest)) = members.split_first_mut() {
            rest.sort_by_key(|m| m.start);
        }
        for m in &mut members {
            self.passes.optimize(&mut m.ir, self.fe.layout(), self.fe.helpers());
        }
        if self.emitter.is_some() {
            known::specialise(&mut members, &mut self.passes, self.fe.layout(), self.fe.helpers());
        }
        members
    }

    fn host_code(&mut self, job: &Job, members: &[Member]) -> Made {
        self.log_ir(job, members);
        let made = match self.emitter.take() {
            Some(mut e) => {
                let made = self.emit(&mut e, job, members);
                self.emitter = Some(e);
                made
            }
            None => Made { code: self.cranelift_code(job, members), ..Made::default() },
        };
        self.log_code(job, &made);
        made
    }

    fn emit(&self, emitter: &mut Tier1, job: &Job, members: &[Member]) -> Made {
        let layout = self.fe.layout();
        let env = tier1::Env {
            layout,
            helpers: self.fe.helpers(),
            shape: self.shape,
            pc_mask: (layout.pc_mask)(job.key.mode),
            ctx: (self.shape.mode_ctx)(job.key.mode),
            record: std::ptr::null_mut(),
            counts: false,
            counted: self.counted,
            keys: [Key::NONE; tier1::NEAR_OR_FAR + 1],
            global: false,
            guarded: false,
            apart: &job.apart,
            source: 0,
        };
        let blocks: Vec<_> = members.iter().map(|m| (&m.ir, m.entered.as_ref())).collect();
        emitter.emit_region(&env, &blocks, self.loopless).map(Made::from).unwrap_or_default()
    }

    fn cranelift_code(&mut self, job: &Job, members: &[Member]) -> Vec<u8> {
        let env = Env {
            layout: self.fe.layout(),
            helpers: self.fe.helpers(),
            eng: self.shape.eng,
            pc_mask: (self.fe.layout().pc_mask)(job.key.mode),
            counted: self.counted,
        };
        self.ctx.clear();
        self.ctx.func.signature = lower::signature();
        let mut b = FunctionBuilder::new(&mut self.ctx.func, &mut self.fctx);
        let sites = lower::lower(&mut b, &env, members, CallConv::triple_default(self.isa.triple()));
        b.finalize(self.isa.frontend_config());
        self.log_clif(job);
        let code = match self.ctx.compile(&*self.isa, &mut self.control) {
            Ok(c) if c.buffer.relocs().is_empty() => pads::with_pads(c, &sites, self.shape.eng),
            Ok(_) => {
                dlog!(UNIMP, "region {} needs relocations: left to tier 0", job.number);
                return Vec::new();
            }
            Err(e) => {
                let text = cranelift_codegen::print_errors::pretty_error(e.func, e.inner);
                dlog!(UNIMP, "region {} does not compile: {text}", job.number);
                return Vec::new();
            }
        };
        let Some(code) = code else {
            dlog!(UNIMP, "region {}: a memory check of unknown form: left to tier 0", job.number);
            return Vec::new();
        };
        code
    }

    fn log_ir(&self, job: &Job, members: &[Member]) {
        if log::enabled(Item::OP_OPT) && log::in_filter(job.key.phys) {
            for m in members {
                let text = m.ir.display(self.fe.layout(), self.fe.helpers());
                log::write(format_args!("OP after optimization, region {} block {:#x}:\n{text}\n", job.number, m.start));
            }
        }
    }

    fn log_clif(&self, job: &Job) {
        if !log::enabled(Item::CLIF) || !log::in_filter(job.key.phys) {
            return;
        }
        let func: &clif::Function = &self.ctx.func;
        dlog!(CLIF, "CLIF of region {}, entry at RAM {:#x}:\n{}", job.number, job.key.phys, func.display());
    }

    fn log_code(&self, job: &Job, made: &Made) {
        if log::enabled(Item::OUT_ASM) && log::in_filter(job.key.phys) {
            let code = HostCode { hot: &made.code, cold: &made.cold, crossing: &made.crossing };
            let text = crate::dump::parts(code);
            log::write(format_args!("OUT: region {}, {} bytes\n{text}\n", job.number, code.len()));
        }
    }
}

impl Job {
    /// Guest instructions that it may hold.
    fn size(&self) -> u32 {
        self.known.iter().flatten().map(|s| s.insns).sum()
    }

    /// Whether both can be one region: a function costs much that does not depend on its length.
    pub fn joins(&self, other: &Job) -> bool {
        let same =
            self.key.phys >> 12 == other.key.phys >> 12 && self.key.mode == other.key.mode && self.version == other.version;
        same && !self.single && self.known.is_some() && other.known.is_some() && self.size() + other.size() <= MAX_INSNS
    }

    pub fn join(&mut self, other: Job) {
        self.also.push(other.key);
        if let (Some(known), Some(more)) = (&mut self.known, other.known) {
            for block in more {
                if !known.contains(&block) {
                    known.push(block);
                }
            }
        }
    }

    /// The block at a page offset, if it may be part of the region.
    fn may_join(&self, start: u32) -> Option<Source> {
        match &self.known {
            None => Some(Source { start, insns: crate::MAX_INSNS, guess: None }),
            Some(known) => known.iter().find(|s| s.start == start).copied(),
        }
    }
}
