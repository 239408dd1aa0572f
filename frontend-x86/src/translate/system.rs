//! System instructions (SDM 2; privilege checks are in their helpers).

use super::{Tr, feature};
use crate::helpers::atomic::FENCE;
use crate::helpers::io::{RDTSC, TSC_AUX};
use crate::helpers::segment::STORE16_IF;
use crate::helpers::system::{self as h, NOT_VISIBLE};
use crate::layout::{self, RAX, RCX, RDX};
use arch_x86::fault::vector;
use arch_x86::flags::bit;
use arch_x86::state::shadow;
use arch_x86::{Mode, SegReg};
use iced_x86::{Code, Mnemonic, Register};
use ir::{Cond, HelperId, Op, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    match tr.insn.mnemonic() {
        Cli => set_if(tr, false),
        Sti => set_if(tr, true),
        Hlt => simple(tr, h::HLT),
        Mov => return mov(tr),
        Clts => simple(tr, h::CLTS),
        Lmsw | Lgdt | Lidt | Invpcid if tr.mode.cpl() != 0 && (tr.insn.mnemonic() != Invpcid || tr.feature(feature::INVPCID)) => {
            tr.gp0()
        }
        Lmsw => {
            let v = tr.src(0, Ty::I16);
            with_value(tr, h::LMSW, v);
        }
        Invlpg => {
            let a = tr.mem_addr(1, false);
            with_value(tr, h::INVLPG, a);
        }
        Invpcid if tr.feature(feature::INVPCID) => invpcid(tr),
        Invd | Wbinvd => {
            tr.call_imm(h::PRIVILEGED, &[]);
        }
        Rdmsr => {
            let i = index(tr);
            let v = tr.call(h::RDMSR, &[i]);
            set_pair(tr, v);
        }
        Wrmsr => write_indexed(tr, h::WRMSR),
        Xgetbv => {
            let i = index(tr);
            let v = tr.call(h::XGETBV, &[i]);
            set_pair(tr, v);
        }
        Xsetbv => write_indexed(tr, h::XSETBV),
        Rdtsc => rdtsc(tr),
        Rdtscp if tr.feature(feature::RDTSCP) => {
            rdtsc(tr);
            let aux = tr.call(TSC_AUX, &[]);
            let aux = tr.b.zext(Ty::I32, aux);
            tr.put(RCX, aux);
        }
        Rdpid if tr.feature(feature::RDPID) => {
            let aux = tr.call(TSC_AUX, &[]);
            let ty = tr.op_ty(0);
            let aux = tr.b.zext(ty, aux);
            tr.dst(0, aux);
        }
        Rdpkru if tr.feature(feature::PKU) => {
            let v = tr.call(h::RDPKRU, &[]);
            set_pair(tr, v);
        }
        Wrpkru if tr.feature(feature::PKU) => simple(tr, h::WRPKRU),
        // There are no performance counters.
        Rdpmc => tr.gp0(),
        Cpuid => {
            tr.call(h::CPUID, &[]);
        }
        Stac if tr.feature(feature::SMAP) => set_ac(tr, 1),
        Clac if tr.feature(feature::SMAP) => set_ac(tr, 0),
        Ud0 | Ud1 | Ud2 => tr.ud(),
        Rsm => {
            tr.call(h::RSM, &[]);
            tr.flags_unknown();
            tr.exit();
        }
        // Fences order accesses between CPUs; accesses of one CPU are done in order. What LFENCE and SFENCE order, the host
        // keeps in order for ordinary memory (SDM 3A "Memory Ordering").
        Mfence if tr.peers => {
            tr.call(FENCE, &[]);
        }
        Mfence | Lfence | Sfence => {}
        Monitor if tr.feature(feature::MONITOR) => {
            let a = tr.monitored();
            tr.call(h::MONITOR, &[a]);
        }
        Mwait if tr.feature(feature::MONITOR) => simple(tr, h::MWAIT),
        Clflush if tr.feature(feature::CLFSH) => flush_line(tr),
        Clflushopt if tr.feature(feature::CLFLUSHOPT) => flush_line(tr),
        Clwb if tr.feature(feature::CLWB) => flush_line(tr),
        Rdfsbase | Rdgsbase if tr.feature(feature::FSGSBASE) => read_base(tr),
        Wrfsbase | Wrgsbase if tr.feature(feature::FSGSBASE) => write_base(tr),
        _ => return tables(tr),
    }
    true
}

fn tables(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    match tr.insn.mnemonic() {
        Lgdt => load_table(tr, 0),
        Lidt => load_table(tr, 1),
        Sgdt => store_table(tr, layout::GDT_LIMIT, layout::GDT_BASE),
        Sidt => store_table(tr, layout::IDT_LIMIT, layout::IDT_BASE),
        Smsw => {
            tr.call_imm(h::STORE_ALLOWED, &[]);
            let ty = tr.op_ty(0);
            let v = tr.b.get(Ty::I64, layout::CR0, 0);
            let v = tr.b.zext(ty, v);
            tr.dst(0, v);
        }
        // These exist in protected mode only.
        Lldt | Ltr | Sldt | Str | Lar | Lsl | Verr | Verw | Arpl if !tr.mode.protected() => tr.ud(),
        Lldt | Ltr if tr.mode.cpl() != 0 => tr.gp0(),
        Lldt => load_selector(tr, h::LLDT),
        Ltr => load_selector(tr, h::LTR),
        Sldt => store_selector(tr, layout::LDT_SEL),
        Str => store_selector(tr, layout::TR_SEL),
        Lar => rights(tr, h::LAR),
        Lsl => rights(tr, h::LSL),
        Verr => verify(tr, 0),
        Verw => verify(tr, 1),
        Arpl => arpl(tr),
        Bound => bound(tr),
        _ => return false,
    }
    true
}

fn simple(tr: &mut Tr<'_>, helper: HelperId) {
    tr.call_imm(helper, &[]);
    tr.exit_next();
}

fn with_value(tr: &mut Tr<'_>, helper: HelperId, v: Val) {
    let v = tr.b.zext(Ty::I64, v);
    tr.call(helper, &[v]);
    tr.exit_next();
}

fn invpcid(tr: &mut Tr<'_>) {
    if tr.mode.has(Mode::VM) {
        return tr.gp0();
    }
    let ty = if tr.is_64() { Ty::I64 } else { Ty::I32 };
    let kind = tr.src(0, ty);
    let kind = tr.b.zext(Ty::I64, kind);
    let (a, disp) = tr.mem(16, false);
    let ctx = tr.ctx();
    let (pcid, va) = (tr.b.load(Ty::I64, a, disp, ctx), tr.b.load(Ty::I64, a, disp + 8, ctx));
    tr.call(h::INVPCID, &[kind, pcid, va]);
    tr.exit_next();
}

fn set_if(tr: &mut Tr<'_>, on: bool) {
    if !tr.mode.has(Mode::IO_OK) {
        tr.call_imm(h::SET_IF, &[on.into()]);
        return tr.exit_next();
    }
    let f = tr.b.get(Ty::I64, layout::EFLAGS, 0);
    if !on {
        let f = tr.b.bin_imm(Op::And, f, !bit::IF);
        tr.b.set(Ty::I64, layout::EFLAGS, 0, f);
        return;
    }
    // What waits is taken at the end of the next instruction; what comes later may be taken later.
    tr.call(h::NOTHING_WAITS, &[]);
    let was = tr.b.bin_imm(Op::And, f, bit::IF);
    let was = tr.b.cmp_imm(Cond::Ne, was, 0);
    let f = tr.b.bin_imm(Op::Or, f, bit::IF);
    tr.b.set(Ty::I64, layout::EFLAGS, 0, f);
    tr.shadowed = Some(was);
}

/// Ends the block behind STI: interrupts are held for the next instruction, unless they were on before (`was`).
pub(super) fn end_in_shadow(tr: &mut Tr<'_>, was: Val) {
    let old = tr.b.get(Ty::I8, layout::SHADOW, 0);
    let hold = tr.i8(shadow::STI);
    let s = tr.b.select(was, old, hold);
    tr.b.set(Ty::I8, layout::SHADOW, 0, s);
    tr.exit_next();
}

/// MOV to and from control and debug registers.
fn mov(tr: &mut Tr<'_>) -> bool {
    if !tr.is_reg(0) || !tr.is_reg(1) {
        return false;
    }
    let (d, s) = (tr.insn.op0_register(), tr.insn.op1_register());
    let number = |r: Register, first: Register| u64::from((r as u32).wrapping_sub(first as u32));
    let (r, n, read, write) = if s.is_cr() {
        (d, number(s, Register::CR0), h::READ_CR, None)
    } else if s.is_dr() {
        (d, number(s, Register::DR0), h::READ_DR, None)
    } else if d.is_cr() {
        (s, number(d, Register::CR0), h::READ_CR, Some(h::WRITE_CR))
    } else if d.is_dr() {
        (s, number(d, Register::DR0), h::READ_DR, Some(h::WRITE_DR))
    } else {
        return false;
    };
    let n = tr.i64(n);
    if let Some(write) = write {
        let v = tr.reg(r);
        let v = tr.b.zext(Ty::I64, v);
        tr.call(write, &[n, v]);
        tr.exit_next();
    } else {
        let v = tr.call(read, &[n]);
        let ty = tr.op_ty(0);
        let v = tr.b.zext(ty, v);
        tr.set_reg(r, v);
    }
    true
}

/// ECX in 64 bits.
fn index(tr: &mut Tr<'_>) -> Val {
    let i = tr.get(Ty::I32, RCX);
    tr.b.zext(Ty::I64, i)
}

/// EDX:EAX = v.
fn set_pair(tr: &mut Tr<'_>, v: Val) {
    let low = tr.b.zext(Ty::I32, v);
    let high = tr.b.bin_imm(Op::Shr, v, 32);
    let high = tr.b.zext(Ty::I32, high);
    tr.put(RAX, low);
    tr.put(RDX, high);
}

/// Helper with ECX and EDX:EAX.
fn write_indexed(tr: &mut Tr<'_>, helper: HelperId) {
    let i = index(tr);
    let (low, high) = (tr.get(Ty::I32, RAX), tr.get(Ty::I32, RDX));
    let (low, high) = (tr.b.zext(Ty::I64, low), tr.b.zext(Ty::I64, high));
    let high = tr.b.bin_imm(Op::Shl, high, 32);
    let v = tr.b.bin(Op::Or, high, low);
    tr.call(helper, &[i, v]);
    tr.exit_next();
}

fn rdtsc(tr: &mut Tr<'_>) {
    let t = tr.call(RDTSC, &[]);
    set_pair(tr, t);
}

fn set_ac(tr: &mut Tr<'_>, on: u64) {
    tr.call_imm(h::SET_AC, &[on]);
    tr.exit_next();
}

/// Faults as a load does (SDM 2 "CLFLUSH"); there is no cache to flush.
fn flush_line(tr: &mut Tr<'_>) {
    let (a, disp) = tr.mem(1, false);
    let ctx = tr.ctx();
    tr.b.load(Ty::I8, a, disp, ctx);
}

fn base_of(tr: &Tr<'_>) -> u64 {
    let fs = matches!(tr.insn.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Wrfsbase);
    if fs { SegReg::Fs as u64 } else { SegReg::Gs as u64 }
}

fn read_base(tr: &mut Tr<'_>) {
    let v = tr.call_imm(h::READ_BASE, &[base_of(tr)]);
    let ty = tr.op_ty(0);
    let v = tr.b.zext(ty, v);
    tr.dst(0, v);
}

fn write_base(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let v = tr.src(0, ty);
    let v = tr.b.zext(Ty::I64, v);
    let s = tr.i64(base_of(tr));
    tr.call(h::WRITE_BASE, &[s, v]);
}

fn load_table(tr: &mut Tr<'_>, idt: u64) {
    let bytes = tr.insn.memory_size().size() as u32;
    let (a, disp) = tr.mem(bytes, false);
    let ctx = tr.ctx();
    let limit = tr.b.load(Ty::I16, a, disp, ctx);
    let ty = if tr.is_64() { Ty::I64 } else { Ty::I32 };
    let base = tr.b.load(ty, a, disp + 2, ctx);
    let mut base = tr.b.zext(Ty::I64, base);
    if matches!(tr.insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base = tr.b.bin_imm(Op::And, base, 0xff_ffff);
    }
    let limit = tr.b.zext(Ty::I64, limit);
    let which = tr.i64(idt);
    tr.call(h::LOAD_TABLE, &[which, limit, base]);
    tr.exit_next();
}

fn store_table(tr: &mut Tr<'_>, limit: ir::SlotId, base: ir::SlotId) {
    tr.call_imm(h::STORE_ALLOWED, &[]);
    let ty = if tr.is_64() { Ty::I64 } else { Ty::I32 };
    let (a, disp) = tr.mem(2 + ty.bytes(), true);
    let ctx = tr.ctx();
    tr.b.probe_w(a, disp, 2 + ty.bytes(), ctx);
    let limit = tr.b.get(Ty::I16, limit, 0);
    let base = tr.b.get(ty, base, 0);
    tr.b.store(a, disp, limit, ctx);
    tr.b.store(a, disp + 2, base, ctx);
}

fn load_selector(tr: &mut Tr<'_>, helper: HelperId) {
    let v = tr.src(0, Ty::I16);
    let v = tr.b.zext(Ty::I64, v);
    tr.call(helper, &[v]);
}

/// Memory gets 16 bits, a register its whole width.
fn store_selector(tr: &mut Tr<'_>, slot: ir::SlotId) {
    tr.call_imm(h::STORE_ALLOWED, &[]);
    let v = tr.b.get(Ty::I16, slot, 0);
    let ty = if tr.is_mem(0) { Ty::I16 } else { tr.op_ty(0) };
    let v = tr.b.zext(ty, v);
    tr.dst(0, v);
}

/// Replaces ZF (I8, 0 or 1), keeps the others.
fn set_zf(tr: &mut Tr<'_>, zf: Val) {
    let bits = tr.flag_bits();
    let rest = tr.b.bin_imm(Op::And, bits, bit::ARITH & !bit::ZF);
    let zf = tr.b.zext(Ty::I64, zf);
    let zf = tr.b.bin_imm(Op::Shl, zf, u64::from(bit::ZF.trailing_zeros()));
    let bits = tr.b.bin(Op::Or, rest, zf);
    tr.flags_bits(bits);
}

fn selector(tr: &mut Tr<'_>, i: u32) -> Val {
    let v = tr.src(i, Ty::I16);
    tr.b.zext(Ty::I64, v)
}

/// LAR, LSL.
fn rights(tr: &mut Tr<'_>, helper: HelperId) {
    let ty = tr.op_ty(0);
    let s = selector(tr, 1);
    let r = tr.call(helper, &[s]);
    let seen = tr.b.cmp_imm(Cond::Ne, r, NOT_VISIBLE);
    let old = tr.src(0, ty);
    let new = tr.b.zext(ty, r);
    let v = tr.b.select(seen, new, old);
    set_zf(tr, seen);
    tr.dst(0, v);
}

fn verify(tr: &mut Tr<'_>, write: u64) {
    let s = selector(tr, 0);
    let w = tr.i64(write);
    let zf = tr.call(h::VERIFY, &[s, w]);
    let zf = tr.b.zext(Ty::I8, zf);
    set_zf(tr, zf);
}

fn arpl(tr: &mut Tr<'_>) {
    // Written only if it changes.
    let p = tr.place(0, Ty::I16, false);
    let d = tr.read(p, Ty::I16);
    let s = tr.src(1, Ty::I16);
    let (d_rpl, s_rpl) = (tr.b.bin_imm(Op::And, d, 3), tr.b.bin_imm(Op::And, s, 3));
    let less = tr.b.cmp(Cond::Ult, d_rpl, s_rpl);
    let rest = tr.b.bin_imm(Op::And, d, !3);
    let raised = tr.b.bin(Op::Or, rest, s_rpl);
    let v = tr.b.select(less, raised, d);
    match p {
        // 16 bits of it, whatever the register's name.
        super::Place::Reg(r) => {
            if let Some((slot, _, _)) = Tr::gpr_of(r) {
                tr.put(slot, v);
            }
        }
        super::Place::Mem(a, disp) => {
            let a = tr.b.bin_imm(Op::Add, a, disp as u64);
            let (v, really) = (tr.b.zext(Ty::I64, v), tr.b.zext(Ty::I64, less));
            let seg = Tr::seg_of(tr.insn.memory_segment()).unwrap_or(SegReg::Ds);
            let really = tr.b.bin_imm(Op::Shl, really, 8);
            let how = tr.b.bin_imm(Op::Or, really, seg as u64);
            tr.call(STORE16_IF, &[a, v, how]);
        }
    }
    set_zf(tr, less);
}

fn bound(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let i = tr.src(0, ty);
    let (a, disp) = tr.mem_pair(ty.bytes());
    let ctx = tr.ctx();
    let low = tr.b.load(ty, a, disp, ctx);
    let high = tr.b.load(ty, a, disp + i64::from(ty.bytes()), ctx);
    let below = tr.b.cmp(Cond::Slt, i, low);
    let above = tr.b.cmp(Cond::Sgt, i, high);
    let out = tr.b.bin(Op::Or, below, above);
    tr.b.raise_if(out, vector::BR, None);
}
