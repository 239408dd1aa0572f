//! `Tr`, the state of one block's translation: registers and operands as IR values.

use super::flags::Lazy;
use crate::layout;
use arch_x86::cpuid::Word;
use arch_x86::{CodeSize, Mode, SegReg};
use iced_x86::{Instruction, OpKind, Register};
use ir::{Block, Changing, HelperId, Op, Path, SlotId, Ty, Val};

/// How translation of the current instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next instruction follows in this block.
    Next,
    /// The block is over and has its terminator.
    Ended,
}

/// State of one block's translation.
pub struct Tr<'a> {
    pub b: &'a mut Block,
    pub mode: Mode,
    /// CPUID feature words (`arch_x86::cpuid`).
    pub features: &'a [u32; 16],
    /// The machine has more than one CPU.
    pub peers: bool,
    /// The current instruction; its `ip` is a page offset.
    pub insn: Instruction,
    /// Its bytes, and what follows them.
    pub bytes: [u8; 16],
    /// Page offsets of the current instruction and the next.
    pub off: i64,
    pub next: i64,
    pub flow: Flow,
    /// The last instruction was STI (I8: whether IF was set before). If the next is in the block too, nothing looks at events between them.
    pub(super) shadowed: Option<Val>,
    /// I8, not 0 if a LOCK form lost the race and must run again.
    pub(super) retry: Option<Val>,
    pub(super) lazy: Lazy,
    /// `CC_OP` as it probably is where the block begins; `None` once the flags are others.
    pub(super) guess: Option<u32>,
    /// Bytes that change again and again.
    pub(super) changing: Changing,
    /// Branches that the block goes on behind.
    pub(super) path: Path,
}

/// Where an r/m operand lies, its address evaluated once.
#[derive(Clone, Copy)]
pub enum Place {
    Reg(Register),
    /// Linear address and displacement.
    Mem(Val, i64),
}

impl Tr<'_> {
    pub fn is_64(&self) -> bool {
        self.mode.is_64()
    }

    pub fn ctx(&self) -> usize {
        self.mode.ctx()
    }

    pub fn i64(&mut self, v: u64) -> Val {
        self.b.iconst(Ty::I64, v)
    }

    pub fn i8(&mut self, v: u8) -> Val {
        self.b.iconst(Ty::I8, v.into())
    }

    pub fn call(&mut self, h: HelperId, args: &[Val]) -> Val {
        self.b.call(h, args)
    }

    /// Calls a helper with constants.
    pub fn call_imm(&mut self, h: HelperId, args: &[u64]) -> Val {
        let mut v = [Val::NONE; 3];
        for (v, a) in v.iter_mut().zip(args) {
            *v = self.b.iconst(Ty::I64, *a);
        }
        self.b.call(h, &v[..args.len().min(3)])
    }

    // --- ends of blocks

    /// Ends the block at the next instruction, through the dispatcher: after what may change the mode or needs events
    /// looked at.
    pub fn exit_next(&mut self) {
        self.b.exit_next();
        self.flow = Flow::Ended;
    }

    /// Ends the block; a helper has set the program counter.
    pub fn exit(&mut self) {
        self.b.exit();
        self.flow = Flow::Ended;
    }

    pub fn jump(&mut self, target: i64) {
        self.b.jump(target);
        self.flow = Flow::Ended;
    }

    pub fn call_to(&mut self, target: i64) {
        self.b.call_to(target);
        self.flow = Flow::Ended;
    }

    pub fn jump_ind(&mut self, pc: Val, hint: u16) {
        self.b.jump_ind(pc, hint);
        self.flow = Flow::Ended;
    }

    /// The instruction always raises this exception.
    pub fn raise(&mut self, vector: u8, error: Option<u32>) {
        let one = self.i8(1);
        self.b.raise_if(one, vector, error);
        self.exit_next();
    }

    pub fn ud(&mut self) {
        self.raise(arch_x86::fault::vector::UD, None);
    }

    /// Raises #GP(0).
    pub fn gp0(&mut self) {
        self.raise(arch_x86::fault::vector::GP, Some(0));
    }

    /// Is bit `bit` of CPUID feature word `word` set?
    pub fn has(&self, word: usize, bit: u32) -> bool {
        self.features.get(word).is_some_and(|w| w >> (bit & 31) & 1 == 1)
    }

    /// Does the CPU have this feature?
    pub fn feature(&self, (word, bit): (Word, u32)) -> bool {
        self.has(word as usize, bit)
    }

    // --- registers

    /// Slot, byte offset and type of a general register.
    pub fn gpr_of(r: Register) -> Option<(SlotId, u32, Ty)> {
        let at = |first: Register| (r as u32).wrapping_sub(first as u32);
        let (a, b, c, d) = (at(Register::AL), at(Register::AX), at(Register::EAX), at(Register::RAX));
        if a < 20 {
            // AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8L..R15L
            return Some(match a {
                0..=3 => (layout::gpr(a), 0, Ty::I8),
                4..=7 => (layout::gpr(a - 4), 1, Ty::I8),
                _ => (layout::gpr(a - 4), 0, Ty::I8),
            });
        }
        match (b, c, d) {
            (n, _, _) if n < 16 => Some((layout::gpr(n), 0, Ty::I16)),
            (_, n, _) if n < 16 => Some((layout::gpr(n), 0, Ty::I32)),
            (_, _, n) if n < 16 => Some((layout::gpr(n), 0, Ty::I64)),
            _ => None,
        }
    }

    /// Value of a general register with the register's own width.
    pub fn reg(&mut self, r: Register) -> Val {
        match Self::gpr_of(r) {
            Some((slot, off, ty)) => self.b.get(ty, slot, off),
            None => self.i64(0),
        }
    }

    /// Writes a general register; a 32-bit value clears bits 63:32.
    pub fn set_reg(&mut self, r: Register, v: Val) {
        if let Some((slot, off, ty)) = Self::gpr_of(r) {
            self.set_slot(slot, off, ty, v);
        }
    }

    /// Low `ty` part of general register `i`.
    pub fn get(&mut self, ty: Ty, slot: SlotId) -> Val {
        self.b.get(ty, slot, 0)
    }

    /// Writes the low `ty` part of a general register's slot, with the architecture's zero-extension of 32-bit values.
    pub fn put(&mut self, slot: SlotId, v: Val) {
        let ty = self.b.ty(v);
        self.set_slot(slot, 0, ty, v);
    }

    fn set_slot(&mut self, slot: SlotId, off: u32, ty: Ty, v: Val) {
        if ty == Ty::I32 {
            let v = self.b.zext(Ty::I64, v);
            self.b.set(Ty::I64, slot, 0, v);
        } else {
            self.b.set(ty, slot, off, v);
        }
    }

    // --- operands

    /// Integer type of operand `i`: its register's, or the memory operand's size.
    pub fn op_ty(&self, i: u32) -> Ty {
        match self.insn.op_kind(i) {
            OpKind::Register => {
                let r = self.insn.op_register(i);
                Self::gpr_of(r).map_or_else(|| Ty::int(r.size() as u32), |(_, _, ty)| ty)
            }
            OpKind::Memory => Ty::int(self.insn.memory_size().size() as u32),
            _ => Ty::int(2),
        }
    }

    pub fn is_mem(&self, i: u32) -> bool {
        self.insn.op_kind(i) == OpKind::Memory
    }

    pub fn is_reg(&self, i: u32) -> bool {
        self.insn.op_kind(i) == OpKind::Register
    }

    /// Evaluates where r/m operand `i` of type `ty` lies. `write`: it will be written (for segment checks).
    pub fn place(&mut self, i: u32, ty: Ty, write: bool) -> Place {
        if self.is_mem(i) {
            let (a, disp) = self.mem(ty.bytes(), write);
            Place::Mem(a, disp)
        } else {
            Place::Reg(self.insn.op_register(i))
        }
    }

    pub fn read(&mut self, p: Place, ty: Ty) -> Val {
        match p {
            Place::Reg(r) => {
                let v = self.reg(r);
                self.b.zext(ty, v)
            }
            Place::Mem(a, disp) => {
                let ctx = self.ctx();
                self.b.load(ty, a, disp, ctx)
            }
        }
    }

    pub fn write(&mut self, p: Place, v: Val) {
        match p {
            Place::Reg(r) => self.set_reg(r, v),
            Place::Mem(a, disp) => {
                let ctx = self.ctx();
                self.b.store(a, disp, v, ctx);
            }
        }
    }

    /// Value of source operand `i` as `ty`: register (its low part), memory or immediate.
    pub fn src(&mut self, i: u32, ty: Ty) -> Val {
        match self.insn.op_kind(i) {
            OpKind::Register => {
                let r = self.insn.op_register(i);
                let v = self.reg(r);
                self.b.zext(ty, v)
            }
            OpKind::Memory => {
                let p = self.place(i, ty, false);
                self.read(p, ty)
            }
            kind => self.loose(kind, ty).unwrap_or_else(|| {
                let v = self.imm(i);
                self.b.iconst(ty, v)
            }),
        }
    }

    /// An immediate of bytes that change again and again (`CodeFetch::changing`), read when the block runs. It is the instruction's end.
    fn loose(&mut self, kind: OpKind, ty: Ty) -> Option<Val> {
        let (bytes, signed) = match kind {
            _ if self.changing.is_empty() => return None,
            OpKind::Immediate8 => (1, false),
            OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => (1, true),
            OpKind::Immediate16 => (2, false),
            OpKind::Immediate32 => (4, false),
            OpKind::Immediate32to64 => (4, true),
            OpKind::Immediate64 => (8, false),
            _ => return None,
        };
        let to = u16::try_from(self.off + self.insn.len() as i64).ok().filter(|to| usize::from(*to) <= super::PAGE)?;
        let from = to.checked_sub(bytes)?;
        if !self.changing.meets(from, to) {
            return None;
        }
        let v = self.b.source(Ty::int(bytes.into()), from);
        Some(if signed { self.b.sext(ty, v) } else { self.b.zext(ty, v) })
    }

    /// Immediate operand `i`, sign-extended where the encoding says so.
    pub fn imm(&self, i: u32) -> u64 {
        self.insn.try_immediate(i).unwrap_or(0)
    }

    /// Writes destination operand `i`. Its memory form evaluates the address here, so use `place` for read-modify-write.
    pub fn dst(&mut self, i: u32, v: Val) {
        let ty = self.b.ty(v);
        let p = self.place(i, ty, true);
        self.write(p, v);
    }

    /// Default operand size of near branches and stack operations given the size that the encoding selected, in bytes.
    pub fn code_bytes(&self) -> u32 {
        match self.mode.code_size() {
            CodeSize::Bits16 => 2,
            CodeSize::Bits32 => 4,
            CodeSize::Bits64 => 8,
        }
    }

    /// Program counter at page offset `off` as the guest sees it, in 64 bits.
    pub fn pc_value(&mut self, off: i64) -> Val {
        let pc = self.b.pcrel(off);
        match self.mode.code_size() {
            CodeSize::Bits64 => pc,
            _ => self.b.bin_imm(Op::And, pc, self.mode.pc_mask()),
        }
    }

    /// Segment register of a `Register`.
    pub fn seg_of(r: Register) -> Option<SegReg> {
        match r {
            Register::ES => Some(SegReg::Es),
            Register::CS => Some(SegReg::Cs),
            Register::SS => Some(SegReg::Ss),
            Register::DS => Some(SegReg::Ds),
            Register::FS => Some(SegReg::Fs),
            Register::GS => Some(SegReg::Gs),
            _ => None,
        }
    }
}
