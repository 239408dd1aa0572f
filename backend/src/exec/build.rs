//! Building blocks: claims the page, fetches source bytes, has them translated, and forms tier 0's code.
//!
//! UNSAFE: reads the record that just ran.
#![allow(unsafe_code)]

use super::{Driver, OBSERVED, ONE, OURS};
use crate::cache::Record;
use crate::debug::BREAK_BITS;
use crate::jumps::JC_NONE;
use crate::mmu::Place;
use crate::tier0::form::{Formed, Told, TooLarge};
use crate::tier0::ops;
use crate::vblock::VcpuBlock;
use ir::{BlockKey, Changing, CodeFetch, Frontend, StateLayout, TranslateError};
use std::time::Instant;
use vm_core::guest::GuestCpu;
use vm_core::log::{self, Item};
use vm_core::{Access, Fault, Pa, PageBits, Ram, Va};

/// Guest instructions in a block at most (`Settings::max_insns`).
pub const MAX_INSNS: u32 = 64;
/// Bytes that the decoder looks at for one instruction at most, a longer one being invalid.
const MAX_INSN_BYTES: usize = 16;
/// As `MAX_INSNS`, after an instruction that had to run alone: the next may have to as well, and a new block for each of them
/// costs more the longer they are.
const AFTER_LEAVE: u32 = 8;
/// Runs after which a block is formed anew with the IR passes where there is no compiler.
const BETTER: u32 = 32;
/// Runs before a block is compiled whose page is written again and again: they have cost about as much as compiling it does, so that
/// neither code that is soon gone nor code that stays costs more than twice what it need.
const CHANGING: u32 = 64;

/// One of so many blocks is looked at for how long building takes: asking the host for the time takes long itself.
const TIMED: u32 = 8;

/// A block to be built.
pub(super) struct Wanted {
    key: BlockKey,
    va: Va,
    ctx: usize,
    /// With the IR passes, and loose bytes as before.
    better: Option<Changing>,
}

impl Told {
    fn from_mode(mode: u64) -> Self {
        match (mode & OBSERVED != 0, mode & ONE != 0) {
            (false, _) => Self::Nothing,
            (true, true) => Self::Insns,
            (true, false) => Self::All,
        }
    }
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
    /// Whether what is made of it may be kept.
    keep: bool,
    guess: Option<u32>,
    changing: Changing,
}

impl<C: GuestCpu> CodeFetch for Fetch<'_, C> {
    type Fault = Fault;

    fn page(&self) -> &[u8; 4096] {
        self.page
    }

    fn guess(&self) -> Option<u32> {
        self.guess
    }

    fn changing(&self) -> Changing {
        self.changing
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
            self.keep &= self.b.claim_code_page(o >> 12);
            if let Some(m) = &self.b.cache.member {
                // Before they are read: the instruction's part in this page is not looked at again.
                m.note_source(self.b.machine().ram(), o & !0xfff, (o & !0xfff) + MAX_INSN_BYTES as u64);
            }
            self.b.machine().ram().read(o & !0xfff, &mut buf[..]);
            self.second = Some(o >> 12);
        }
        Ok(self.next.insert(buf))
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Before bytes of a page are decoded for keeping: no store may go by unseen from now on. `false`: another vCPU can still
    /// store unseen, so nothing may be kept yet.
    pub(super) fn claim_code_page(&mut self, page: u64) -> bool {
        let ram = self.machine().ram();
        match &self.cache.member {
            None if !ram.page_bits(page).contains(PageBits::CODE) => {
                ram.set_page_bits(page, PageBits::CODE);
                self.revoke(page);
                true
            }
            None => true,
            Some(m) => {
                if m.claim(ram, page) {
                    self.stop_writing(page);
                }
                self.cache.member.as_ref().is_none_or(|m| m.is_ours(ram, page))
            }
        }
    }

    /// What `StateLayout::guessed` holds.
    fn guess(&mut self, layout: &StateLayout) -> u32 {
        let at = layout.slot(layout.guessed).offset as usize;
        // SAFETY: the slot lies inside the state.
        unsafe { self.seam().add(at).cast::<u32>().read_unaligned() }
    }

    /// Write entries for a page go.
    fn revoke(&mut self, page: u64) {
        let host = (self.machine().ram().host_base() as u64).wrapping_add(page << 12);
        self.fills.revoke_writes(&mut self.eng.tlb, host);
        self.left.forget();
    }

    /// The same, and other vCPUs may rely on it.
    pub(super) fn stop_writing(&mut self, page: u64) {
        self.revoke(page);
        if let Some(m) = &self.cache.member {
            m.stopped_writing(self.machine().ram(), page);
        }
    }

    /// Instruction bytes outside RAM: as many as one instruction can have.
    pub(super) fn read_mmio_code(&mut self, pa: Pa, buf: &mut [u8; 4096]) {
        let start = (pa.0 & 0xfff) as usize;
        for (byte, at) in buf[start..].iter_mut().zip(pa.0..).take(16) {
            *byte = self.machine().mmio_read(Pa(at), 1) as u8;
        }
    }
}

impl<F: Frontend, C: GuestCpu> Driver<F, C> {
    /// The record for `key`, and whether it is kept: else it is good for one run.
    pub(super) fn translate(
        &mut self,
        b: &mut VcpuBlock<C>,
        key: BlockKey,
        va: Va,
        ctx: usize,
    ) -> Result<(*mut Record, bool), Fault> {
        let keep = b.claim_code_page(key.phys >> 12);
        if keep {
            let (rec, keep) = self.build_from_ram(b, Wanted { key, va, ctx, better: None })?;
            if let (true, Some(rec)) = (keep, self.keep(b, rec)) {
                self.compile_at_first_sight(b, rec);
                return Ok((rec, true));
            }
        }
        b.eng.stats.unclaimed += 1;
        let key = BlockKey { mode: key.mode | ONE, ..key };
        let (mut rec, _) = self.build_from_ram(b, Wanted { key, va, ctx, better: None })?;
        rec.threshold = u32::MAX;
        Ok((b.cache.insert_transient(rec), false))
    }

    /// Takes a record in that was just built from RAM. `None`: its source has changed meanwhile.
    fn keep(&mut self, b: &mut VcpuBlock<C>, rec: Box<Record>) -> Option<*mut Record> {
        let (phys, end) = (rec.key.phys, rec.end.min(4096));
        let ram = b.machine().ram();
        let rec = b.cache.insert(rec);
        if b.cache.member.is_some() {
            b.cache.publish(ram, rec);
            let (start, mut now) = ((phys & 0xfff) as usize, [0; 4096]);
            let len = (end as usize).saturating_sub(start);
            ram.read(phys, &mut now[..len]);
            if self.page.as_ref().is_some_and(|then| then[start..start + len] != now[..len]) {
                b.cache.invalidate(ram, phys, len.max(1) as u64);
                return None;
            }
        }
        Some(rec)
    }

    fn compile_at_first_sight(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        // SAFETY: `rec` was just taken in.
        let key = unsafe { (*rec).key };
        if self.settings.threshold == 0
            && key.mode & OURS == 0
            && !self.left
            && !b.cache.changes_often(key.phys >> 12)
            && let Some(jit) = &mut self.jit
        {
            jit.hot(b, rec);
        }
    }

    /// Code outside RAM: decoded afresh each time, one instruction at a time, never kept.
    pub(super) fn translate_mmio(
        &mut self,
        b: &mut VcpuBlock<C>,
        pa: Pa,
        va: Va,
        ctx: usize,
        mode: u64,
    ) -> Result<*mut Record, Fault> {
        let mut page = [0xff; 4096];
        b.read_mmio_code(pa, &mut page);
        let key = BlockKey { phys: u64::MAX << 12 | pa.0 & 0xfff, mode: mode | ONE };
        let (mut rec, _) = self.build(b, &page, Wanted { key, va, ctx, better: None })?;
        rec.threshold = u32::MAX;
        Ok(b.cache.insert_transient(rec))
    }

    fn build_from_ram(&mut self, b: &mut VcpuBlock<C>, want: Wanted) -> Result<(Box<Record>, bool), Fault> {
        let mut page = self.page.take().unwrap_or_else(|| Box::new([0; 4096]));
        read_code(b.machine().ram(), want.key.phys, &mut page);
        let rec = self.build(b, &page, want);
        self.page = Some(page);
        rec
    }

    /// The record, and whether it may be kept as far as its second page goes.
    fn build(&mut self, b: &mut VcpuBlock<C>, page: &[u8; 4096], want: Wanted) -> Result<(Box<Record>, bool), Fault> {
        self.builds = self.builds.wrapping_add(1);
        let t = self.builds.is_multiple_of(TIMED).then(Instant::now);
        let Wanted { key, va, ctx, better } = want;
        let start = (va.0 & 0xfff) as u32;
        let mut max = match key.mode & ONE {
            0 if self.left => AFTER_LEAVE.min(self.settings.max_insns),
            0 => self.settings.max_insns,
            _ => 1,
        };
        let next_va = Va((va.0 & !0xfff).wrapping_add(4096));
        let guess = (key.mode & (ONE | OBSERVED) == 0).then(|| b.guess(self.fe.layout()));
        let often = key.mode & OURS == 0 && better.is_none() && b.cache.changes_often(key.phys >> 12);
        let changing = if often { b.cache.rewritten.again(key, page) } else { better.unwrap_or_default() };
        let source = b.machine().ram().host_base() as u64 + (key.phys & !0xfff);
        let mut fetch = Fetch { b, page, next: None, next_va, ctx, second: None, keep: true, guess, changing };
        loop {
            let done = self.fe.translate(key.mode & !OURS, start, max, &mut fetch, &mut self.block);
            if let Err(TranslateError::Fetch(f)) = done {
                return Err(f);
            }
            if let Some(at) = self.block.guesses
                && !fetch.b.cache.unlike.may_guess(key.phys & !0xfff | u64::from(at))
            {
                fetch.guess = None;
                continue;
            }
            if often {
                let (asked, end) = (!fetch.changing.is_empty(), self.block.next as u32);
                if !fetch.b.cache.rewritten.made(key, page, end, asked, &self.block.loose) {
                    fetch.changing = Changing::default();
                    continue;
                }
            }
            if better.is_some() {
                self.passes.optimize(&mut self.block, self.fe.layout(), self.fe.helpers());
            }
            let told = Told::from_mode(key.mode);
            match self.former.form::<C>(&self.block, self.fe.layout(), self.fe.helpers(), told, source) {
                Ok(formed) => {
                    if let Some(n) = fetch.b.uncut(key.mode, &formed.insn_at) {
                        max = n;
                        continue;
                    }
                    let second = fetch.second.filter(|_| self.block.straddles);
                    self.log_block(key, va, page);
                    // What is loose outlives the next change.
                    let changing = fetch.b.cache.changes_often(key.phys >> 12) && self.block.loose.is_empty();
                    let guess = fetch.guess.filter(|_| self.block.guesses.is_some());
                    let rec = self.record(formed, &want, second, guess, changing);
                    fetch.b.eng.stats.insns_translated += u64::from(rec.insns);
                    fetch.b.eng.stats.translate_ns += t.map_or(0, |t| u64::from(TIMED) * t.elapsed().as_nanos() as u64);
                    return Ok((rec, fetch.keep));
                }
                Err(TooLarge) => max = (max / 2).max(1),
            }
        }
    }

    /// `changing`: the page is written again and again, and the block goes with what is written.
    fn record(&self, formed: Formed, want: &Wanted, second: Option<u64>, guess: Option<u32>, changing: bool) -> Box<Record> {
        let one = want.key.mode & ONE != 0;
        // Blocks of tier 1 ask the dispatcher about each edge.
        let ours = if self.settings.tier1 { OURS & !BREAK_BITS } else { OURS };
        let threshold = match (&self.jit, want.key.mode & ours != 0 || want.better.is_some()) {
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
            reach: self.block.next as u32,
            second,
            insns: self.block.guest_insns,
            guess,
            loose: self.block.loose.as_slice().into(),
            ops: formed.ops,
            insn_at: formed.insn_at,
            edges: formed.edges,
            incoming: Vec::new(),
            dead: false,
            linked: 0,
            forward: 0,
            hot: 0,
            jc: JC_NONE,
            tier1: None,
            callers: Vec::new(),
            dead_start: ops::start_dead::<C>,
        });
        let p = &raw mut *rec;
        rec.ops[0].set_record(p);
        if one {
            rec.ops[0].set_handler(self.former.start_alone::<C>());
        }
        rec
    }

    /// Without a compiler, a block that runs often gets the IR passes and is formed anew.
    pub(super) fn form_better(&mut self, b: &mut VcpuBlock<C>, rec: *mut Record) {
        // SAFETY: `rec` is live: it just ran.
        let (key, start, loose) = unsafe { ((*rec).key, (*rec).start, (*rec).loose()) };
        let va = Va(b.cpu.linear(b.cpu.pc()).0 & !0xfff | u64::from(start));
        let want = Wanted { key, va, ctx: C::mode_ctx(key.mode), better: Some(loose) };
        if let Ok((better, true)) = self.build_from_ram(b, want) {
            self.keep(b, better);
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
                let (text, len) = self.fe.disassemble(key.mode & !OURS, pc, &page[at..end]);
                log::write(format_args!("{pc:#x}:  {text}\n"));
                at += len.max(1);
            }
        }
        if log::enabled(Item::OP) {
            let text = self.block.display(self.fe.layout(), self.fe.helpers());
            log::write(format_args!("OP:\n{text}\n"));
        }
    }
}

/// Reads source bytes at a RAM offset into their place in a page: as many as a block can have.
pub fn read_code(ram: &Ram, offset: u64, page: &mut [u8; 4096]) {
    let start = (offset & 0xfff) as usize;
    let end = (start + MAX_INSNS as usize * MAX_INSN_BYTES).min(4096);
    ram.read(offset, &mut page[start..end]);
}
