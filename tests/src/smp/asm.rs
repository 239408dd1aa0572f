//! The assembler for 64-bit guest code: iced's, with strings, variables, loops and checks.
//!
//! Registers that all code keeps: R12 the processor's record, R13 the rounds asked for, R14 the number of processors, R15 the
//! processor's index. Loops of rounds use RBP. Subroutines change only what they say.

use super::Emit;
use super::layout::*;
use super::runtime::Subs;
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use std::ops::{Deref, DerefMut};

/// A conditional jump, for `skip`.
pub type Jump = fn(&mut CodeAssembler, CodeLabel) -> Emit;

/// Code that is copied to where it runs: position independent, returns a value in EAX.
#[derive(Clone, Copy)]
pub struct Template {
    pub label: CodeLabel,
    pub len: u32,
    /// Offset of the 32-bit immediate.
    pub immediate: u32,
}

/// Stands for the immediate of a template.
pub const IMMEDIATE: u32 = 0x5a5a_a5a5;

pub struct Asm {
    a: CodeAssembler,
    constants: Vec<(CodeLabel, Vec<u8>)>,
    next_var: u32,
    next_frame: u32,
    handlers: Vec<(u8, CodeLabel)>,
    pub subs: Subs,
    /// What the guest does wrong.
    pub fault: Option<Fault>,
    in_rounds: bool,
}

/// A mistake made on purpose, to see that the tests would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The tests' own read-modify-write instructions without LOCK, but for those that take a mutex or give it back.
    NoLock,
    /// Nothing between the store and the load of store buffering.
    NoFence,
    /// Page tables change and no TLB is told.
    NoInvlpg,
}

impl Deref for Asm {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.a
    }
}

impl DerefMut for Asm {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.a
    }
}

/// What an `Asm` came to.
pub struct Assembled {
    pub code: Vec<u8>,
    pub handlers: Vec<(u8, u64)>,
    /// Addresses of the labels asked for.
    pub labels: Vec<u64>,
}

impl Asm {
    pub fn new(fault: Option<Fault>) -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let subs = Subs::new(&mut a);
        let (constants, handlers) = (Vec::new(), Vec::new());
        Ok(Self { a, constants, next_var: VARS, next_frame: FRAMES, handlers, subs, fault, in_rounds: false })
    }

    /// Sets a label here, any number of them.
    pub fn mark(&mut self, label: &mut CodeLabel) -> Emit {
        self.a.zero_bytes()?;
        self.a.set_label(label)
    }

    /// The label of bytes that go behind the code.
    pub fn bytes(&mut self, bytes: &[u8]) -> CodeLabel {
        if let Some((label, _)) = self.constants.iter().find(|(_, b)| b == bytes) {
            return *label;
        }
        let label = self.a.create_label();
        self.constants.push((label, bytes.to_vec()));
        label
    }

    /// The label of a zero-terminated string.
    pub fn text(&mut self, s: &str) -> CodeLabel {
        self.bytes(&[s.as_bytes(), &[0]].concat())
    }

    /// The address of `len` zeroes, with no other variable in the same lines.
    pub fn var(&mut self, len: u32) -> u32 {
        self.vars(len, 64)
    }

    /// As `var`, at a multiple of `align`.
    pub fn vars(&mut self, len: u32, align: u32) -> u32 {
        let at = self.next_var.next_multiple_of(align);
        self.next_var = (at + len).next_multiple_of(64);
        assert!(self.next_var <= VARS_END, "no room for variables");
        at
    }

    /// Physical address of `pages` frames that nobody else uses.
    pub fn frames(&mut self, pages: u32) -> u32 {
        let at = self.next_frame;
        self.next_frame += pages * 4096;
        assert!(self.next_frame <= FRAMES_END, "no room for frames");
        at
    }

    /// Assembles code that is copied; it has `IMMEDIATE` once.
    pub fn template(&mut self, emit: impl FnOnce(&mut CodeAssembler) -> Emit) -> Result<Template, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        emit(&mut a)?;
        let bytes = a.assemble(0)?;
        let at = bytes.windows(4).position(|w| w == IMMEDIATE.to_le_bytes()).expect("templates have an immediate");
        Ok(Template { label: self.bytes(&bytes), len: bytes.len() as u32, immediate: at as u32 })
    }

    /// Leaves out `body` where `jump` jumps.
    pub fn skip(&mut self, jump: Jump, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        let mut end = self.a.create_label();
        jump(&mut self.a, end)?;
        body(self)?;
        self.mark(&mut end)
    }

    /// Repeats `body` until `jump` does not jump.
    pub fn again(&mut self, jump: Jump, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        let mut top = self.a.create_label();
        self.mark(&mut top)?;
        body(self)?;
        jump(&mut self.a, top)
    }

    /// The LOCK prefix for the next instruction.
    pub fn lock(&mut self) -> &mut CodeAssembler {
        if self.in_rounds && self.fault == Some(Fault::NoLock) { &mut self.a } else { self.a.lock() }
    }

    /// As `lock`, whatever the fault: where others would wait in vain without it.
    pub fn sure_lock(&mut self) -> &mut CodeAssembler {
        self.a.lock()
    }

    /// `body` in each round; RBP counts down.
    pub fn rounds(&mut self, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        self.mov(rbp, r13)?;
        self.in_rounds = true;
        self.again(
            |a, l| a.jne(l),
            |g| {
                body(g)?;
                g.in_rounds = false;
                g.dec(rbp)
            },
        )
    }

    /// `body` on the first processor alone, the others waiting before and after.
    pub fn alone(&mut self, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        self.barrier()?;
        self.test(r15, r15)?;
        self.skip(|a, l| a.jne(l), body)?;
        self.barrier()
    }

    pub fn barrier(&mut self) -> Emit {
        let barrier = self.subs.barrier;
        self.call(barrier)
    }

    /// Ends the run unless `jump` jumps; R8 and R9 are told.
    pub fn fail_unless(&mut self, jump: Jump, what: &str) -> Emit {
        let (what, fail) = (self.text(what), self.subs.fail);
        self.skip(jump, |g| {
            g.lea(rdi, ptr(what))?;
            g.jmp(fail)
        })
    }

    /// Ends the run unless R8 (got) is R9 (wanted).
    pub fn check_equal(&mut self, what: &str) -> Emit {
        self.cmp(r8, r9)?;
        self.fail_unless(|a, l| a.je(l), what)
    }

    /// Waits until the u64 at RDI is at least RSI; changes RAX, RCX, RDX, R8, R9.
    pub fn wait_at_least(&mut self, what: &str) -> Emit {
        let (what, wait) = (self.text(what), self.subs.wait);
        self.lea(r9, ptr(what))?;
        self.call(wait)
    }

    /// The round's number in RBP, from 1 on. Each round another processor does `write`; then all of them, having serialised
    /// themselves with CPUID, do `check`. Nobody is in `write` while another is in either.
    pub fn relay(&mut self, write: impl FnOnce(&mut Self) -> Emit, check: impl FnOnce(&mut Self) -> Emit) -> Emit {
        let (flag, done) = (self.var(8), self.var(8));
        self.xor(ebp, ebp)?;
        self.again(
            |a, l| a.jb(l),
            |g| {
                g.inc(rbp)?;
                g.mov(rax, rbp)?;
                g.xor(edx, edx)?;
                g.div(r14)?;
                g.cmp(rdx, r15)?;
                g.skip(
                    |a, l| a.jne(l),
                    |g| {
                        g.mov(edi, done)?;
                        g.lea(rsi, ptr(rbp - 1))?;
                        g.imul_2(rsi, r14)?;
                        g.wait_at_least("the others did not end the round")?;
                        write(g)?;
                        g.mov(qword_ptr(flag), rbp)
                    },
                )?;
                g.mov(edi, flag)?;
                g.mov(rsi, rbp)?;
                g.wait_at_least("the round did not begin")?;
                g.xor(eax, eax)?;
                g.cpuid()?;
                check(g)?;
                g.lock().inc(qword_ptr(done))?;
                g.cmp(rbp, r13)
            },
        )
    }

    /// Copies a template to RDI, with EBP as its immediate; changes RAX, RCX, RSI, RDI.
    pub fn copy(&mut self, t: Template) -> Emit {
        self.mov(rax, rdi)?;
        self.lea(rsi, ptr(t.label))?;
        self.mov(ecx, t.len)?;
        self.cld()?;
        self.rep().movsb()?;
        self.mov(dword_ptr(rax + t.immediate as i32), ebp)
    }

    /// Maps pages of the window to frames, on all processors.
    pub fn map_window(&mut self, pages: &[(u32, u32)]) -> Emit {
        const PRESENT_WRITABLE: u32 = 3;
        self.alone(|g| {
            for (page, frame) in pages {
                g.mov(dword_ptr(WINDOW_TABLE + 8 * page), frame | PRESENT_WRITABLE)?;
            }
            Ok(())
        })?;
        self.mov(rax, cr3)?;
        self.mov(cr3, rax)?;
        self.barrier()
    }

    /// The handler of an interrupt or, without `eoi`, of an exception without error code; control goes past it. The body has
    /// RAX and RDI for itself.
    pub fn handler(&mut self, vector: u8, eoi: bool, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        let (mut label, mut over) = (self.a.create_label(), self.a.create_label());
        self.jmp(over)?;
        self.mark(&mut label)?;
        self.push(rax)?;
        self.push(rdi)?;
        body(self)?;
        if eoi {
            self.mov(edi, APIC + super::apic::EOI)?;
            self.mov(dword_ptr(rdi), 0)?;
        }
        self.pop(rdi)?;
        self.pop(rax)?;
        self.iretq()?;
        self.mark(&mut over)?;
        self.enters(vector, label);
        Ok(())
    }

    /// Makes a label that has been set the entry of a vector.
    pub fn enters(&mut self, vector: u8, label: CodeLabel) {
        self.handlers.push((vector, label));
    }

    /// Everything at `CODE`.
    pub fn finish(mut self, labels: &[CodeLabel]) -> Result<Assembled, IcedError> {
        for (mut label, bytes) in std::mem::take(&mut self.constants) {
            self.mark(&mut label)?;
            self.a.db(&bytes)?;
        }
        let done = self.a.assemble_options(u64::from(CODE), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let handlers = self.handlers.iter().map(|(v, l)| Ok((*v, done.label_ip(l)?))).collect::<Result<_, IcedError>>()?;
        let labels = labels.iter().map(|l| done.label_ip(l)).collect::<Result<_, _>>()?;
        assert!(done.inner.code_buffer.len() <= (CODE_END - CODE) as usize, "no room for code");
        Ok(Assembled { code: done.inner.code_buffer, handlers, labels })
    }
}
