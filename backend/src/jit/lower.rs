//! IR of a region to Cranelift IR (tier 2): guest state stays in memory, memory checks are traps,
//! so that one guest block is one CLIF block. The function takes the number of the member to start at (the seam is the pinned
//! register) and returns a `Why`.

use super::runtime::{AccessInfo, FP_OP, TRI_OP, func};
use super::vector;
use crate::tlb;
use crate::vblock::{Engine, Why};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I8X16, I16, I32, I64};
use cranelift_codegen::ir::{self as clif, AbiParam, BlockArg, InstBuilder, MemFlagsData, SigRef, Signature};
use cranelift_codegen::ir::{SourceLoc, TrapCode, Type, Value};
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::FunctionBuilder;
use ir::{Block, Cond, Effects, HelperDesc, Inst, Op, StateLayout, Ty, Val};
use std::mem::offset_of;

/// What the lowering must know of the engine and the guest.
pub struct Env<'a> {
    pub layout: &'a StateLayout,
    pub helpers: &'a [HelperDesc],
    /// Offset from the seam of a byte of `Engine`.
    pub eng: fn(usize) -> i32,
    pub pc_mask: u64,
    /// Blocks take their instructions from `Engine::budget`.
    pub counted: bool,
}

/// One block of a region, optimised.
pub struct Member {
    pub start: u32,
    pub ir: Block,
    /// What runs where the region is entered here, if `ir` counts on what other members leave behind (`known`).
    pub entered: Option<Block>,
}

pub fn clif_ty(ty: Ty) -> Type {
    match ty {
        Ty::I8 => I8,
        Ty::I16 => I16,
        Ty::I32 => I32,
        Ty::I64 => I64,
        Ty::V128 => I8X16,
    }
}

/// Signature of a region, which takes the number of the member to start at, and of `asm::chain`, which takes a
/// program counter.
pub fn signature() -> Signature {
    let mut sig = Signature::new(CallConv::Tail);
    sig.params.push(AbiParam::new(I64));
    sig.returns.push(AbiParam::new(I64));
    sig
}

/// Signatures used so far: each costs compile time.
#[derive(Default)]
struct Sigs {
    /// By number of operands beside the seam; with and without result.
    plain: [Option<SigRef>; 5],
    void: [Option<SigRef>; 5],
}

pub(super) struct Lower<'a, 'b> {
    pub b: &'a mut FunctionBuilder<'b>,
    env: &'a Env<'a>,
    members: &'a [Member],
    blocks: Vec<clif::Block>,
    vals: Vec<Value>,
    sigs: Sigs,
    pub st: Value,
    host: CallConv,
    /// Memory accesses: what the pad of each must know.
    sites: Vec<u32>,
    /// Continues at the program counter that it is given, through the jump cache.
    chain: clif::Block,
    /// Returns, with the program counter at a page offset: (offset, `Why`).
    leave: clif::Block,
    /// Returns the status word.
    failed: clif::Block,
    insn: u32,
    /// Instructions of the block from the present one on.
    rest: u32,
    /// The page's program counter, once loaded in this block.
    page: Option<Value>,
    current: usize,
}

const STATE: MemFlagsData = MemFlagsData::trusted();
const GUEST: MemFlagsData = MemFlagsData::new().with_notrap();

/// Lowers a region; each member can be entered.
/// Gives the memory accesses: site i has source location i + 1.
pub fn lower<'a>(b: &'a mut FunctionBuilder<'_>, env: &'a Env<'a>, members: &'a [Member], host: CallConv) -> Vec<u32> {
    let mut l = Lower::new(b, env, members, host);
    l.entry();
    for i in 0..members.len() {
        l.member(i);
    }
    l.tails();
    l.b.seal_all_blocks();
    l.sites
}

impl<'a, 'b> Lower<'a, 'b> {
    fn new(b: &'a mut FunctionBuilder<'b>, env: &'a Env<'a>, members: &'a [Member], host: CallConv) -> Self {
        let blocks = members.iter().map(|_| b.create_block()).collect();
        let (chain, leave, failed) = (b.create_block(), b.create_block(), b.create_block());
        let first = b.create_block();
        b.append_block_params_for_function_params(first);
        b.switch_to_block(first);
        let base = b.ins().get_pinned_reg(I64);
        let st = b.ins().iadd_imm_s(base, -i64::from(crate::vblock::BASE));
        let (vals, sigs) = (Vec::new(), Sigs::default());
        Self {
            b,
            env,
            members,
            blocks,
            vals,
            sigs,
            st,
            host,
            sites: Vec::new(),
            chain,
            leave,
            failed,
            insn: 0,
            rest: 0,
            page: None,
            current: 0,
        }
    }

    // --- state access

    pub fn eng_off(&self, in_engine: usize) -> i32 {
        (self.env.eng)(in_engine)
    }

    pub fn eng_load(&mut self, ty: Type, in_engine: usize) -> Value {
        let off = self.eng_off(in_engine);
        self.b.ins().load(ty, STATE, self.st, off)
    }

    pub fn eng_store(&mut self, v: Value, in_engine: usize) {
        let off = self.eng_off(in_engine);
        self.b.ins().store(STATE, v, self.st, off);
    }

    fn slot_off(&self, slot: ir::SlotId, at: i64) -> i32 {
        self.env.layout.slot(slot).offset as i32 + at as i32
    }

    pub fn iconst(&mut self, ty: Type, v: i64) -> Value {
        self.b.ins().iconst(ty, v)
    }

    fn func(&mut self, index: usize) -> Value {
        self.eng_load(I64, offset_of!(Engine, fns) + 8 * index)
    }

    /// Calls a runtime function with the seam and operands.
    fn call_rt(&mut self, index: usize, args: &[Value]) -> Value {
        let call = self.call_host(index, args, true);
        self.b.inst_results(call)[0]
    }

    fn call_rt_void(&mut self, index: usize, args: &[Value]) {
        self.call_host(index, args, false);
    }

    fn call_host(&mut self, index: usize, args: &[Value], result: bool) -> clif::Inst {
        let f = self.func(index);
        let mut all = vec![self.st];
        all.extend_from_slice(args);
        let (host, b) = (self.host, &mut *self.b);
        let known = if result { &mut self.sigs.plain } else { &mut self.sigs.void };
        let sig = *known[args.len()].get_or_insert_with(|| {
            let mut s = Signature::new(host);
            s.params.extend(vec![AbiParam::new(I64); args.len() + 1]);
            if result {
                s.returns.push(AbiParam::new(I64));
            }
            b.import_signature(s)
        });
        b.ins().call_indirect(sig, f, &all)
    }

    /// Calls the vector fall-back.
    pub fn vec_slow(&mut self, op: u16, a: Value, b: Value) -> Value {
        self.eng_store(a, offset_of!(Engine, vec_a));
        self.eng_store(b, offset_of!(Engine, vec_b));
        let n = self.iconst(I64, op.into());
        self.call_rt_void(func::VEC, &[n]);
        self.eng_load(I8X16, offset_of!(Engine, vec_a))
    }

    /// Floating point is left to the runtime.
    fn fp(&mut self, i: &Inst) -> Value {
        let (x, y) = (self.val(i.a), self.val(i.b));
        // An integer operand: only the low half counts.
        let r = self.vec_slow(i.aux | FP_OP, x, y);
        if i.op == Op::FpGet { self.eng_load(I64, offset_of!(Engine, vec_a)) } else { r }
    }

    fn tri(&mut self, i: &Inst) -> Value {
        let [x, y, z] = [i.a, i.b, i.c].map(|v| self.val(v));
        self.eng_store(z, offset_of!(Engine, vec_c));
        self.vec_slow(i.aux | TRI_OP, x, y)
    }

    // --- program counters

    fn page_pc(&mut self) -> Value {
        if let Some(p) = self.page {
            return p;
        }
        let off = self.slot_off(self.env.layout.pc_page, 0);
        let p = self.b.ins().load(I64, STATE, self.st, off);
        self.page = Some(p);
        p
    }

    fn set_pc(&mut self, pc: Value) {
        let off = self.slot_off(self.env.layout.pc, 0);
        self.b.ins().store(STATE, pc, self.st, off);
    }

    fn mask_pc(&mut self, pc: Value) -> Value {
        match self.env.pc_mask {
            u64::MAX => pc,
            m => self.b.ins().band_imm_u(pc, m as i64),
        }
    }

    /// The program counter at a page offset; also put into the state.
    fn set_pc_in_page(&mut self, offset: i64) -> Value {
        let page = self.page_pc();
        let pc = self.b.ins().iadd_imm_s(page, offset);
        let pc = self.mask_pc(pc);
        self.set_pc(pc);
        pc
    }

    fn return_why(&mut self, why: Why) {
        let v = self.iconst(I64, why as i64);
        self.b.ins().return_(&[v]);
    }

    fn tail_call(&mut self, function: usize, arg: Value) {
        let f = self.func(function);
        let sig = self.b.import_signature(signature());
        self.b.ins().return_call_indirect(sig, f, &[arg]);
    }

    /// Goes back to the dispatcher with the program counter at a page offset.
    fn leave(&mut self, offset: i64, why: Why) {
        let (offset, why) = (self.iconst(I64, offset), self.iconst(I64, why as i64));
        self.b.ins().jump(self.leave, &[BlockArg::from(offset), BlockArg::from(why)]);
    }

    // --- frame of the function

    /// Tests the exit flag, goes to the member asked for.
    fn entry(&mut self) {
        let number = self.b.block_params(self.b.current_block().expect("in the first block"))[0];
        let kicked = self.b.create_block();
        let flag = self.eng_load(I32, offset_of!(Engine, exit));
        self.unless(flag, kicked);
        let entries: Vec<clif::Block> = self.members.iter().map(|_| self.b.create_block()).collect();
        match &entries[..] {
            [one] => {
                self.b.ins().jump(*one, [].iter());
            }
            [first, rest @ ..] => {
                let others = self.b.create_block();
                self.b.ins().brif(number, others, [].iter(), *first, [].iter());
                self.b.switch_to_block(others);
                let number = self.b.ins().ireduce(I32, number);
                let number = self.b.ins().iadd_imm_s(number, -1);
                let call = |b: &clif::Block, l: &mut Self| clif::BlockCall::new(*b, [], &mut l.b.func.dfg.value_lists);
                let default = call(&rest[0], self);
                let table: Vec<_> = rest.iter().map(|b| call(b, self)).collect();
                let table = self.b.func.create_jump_table(clif::JumpTableData::new(default, &table));
                self.b.ins().br_table(number, table);
            }
            [] => {}
        }
        for (i, at) in entries.into_iter().enumerate() {
            self.b.switch_to_block(at);
            self.note_page(self.members[i].start);
            self.b.ins().jump(self.blocks[i], [].iter());
        }
        self.b.switch_to_block(kicked);
        self.b.set_cold_block(kicked);
        self.return_why(Why::Kicked);
    }

    /// Derives the page's program counter from the one of the member that is entered.
    fn note_page(&mut self, start: u32) {
        let pc_off = self.slot_off(self.env.layout.pc, 0);
        let page_off = self.slot_off(self.env.layout.pc_page, 0);
        let pc = self.b.ins().load(I64, STATE, self.st, pc_off);
        let page = self.b.ins().iadd_imm_s(pc, -i64::from(start));
        self.b.ins().store(STATE, page, self.st, page_off);
    }

    /// Blocks shared by the whole region.
    fn tails(&mut self) {
        self.page = None;
        self.b.switch_to_block(self.failed);
        self.b.set_cold_block(self.failed);
        let status = self.eng_load(I32, offset_of!(Engine, status));
        let status = self.b.ins().uextend(I64, status);
        self.b.ins().return_(&[status]);
        let pc = self.b.append_block_param(self.chain, I64);
        self.b.switch_to_block(self.chain);
        self.tail_call(func::CHAIN, pc);
        let (offset, why) = (self.b.append_block_param(self.leave, I64), self.b.append_block_param(self.leave, I64));
        self.b.switch_to_block(self.leave);
        self.b.set_cold_block(self.leave);
        let page = self.page_pc();
        let pc = self.b.ins().iadd(page, offset);
        let pc = self.mask_pc(pc);
        self.set_pc(pc);
        self.b.ins().return_(&[why]);
    }

    /// Goes on if `c` is 0.
    fn unless(&mut self, c: Value, other: clif::Block) {
        let next = self.b.create_block();
        self.b.ins().brif(c, other, [].iter(), next, [].iter());
        self.b.switch_to_block(next);
    }

    fn member(&mut self, i: usize) {
        let m = &self.members[i];
        self.b.switch_to_block(self.blocks[i]);
        self.current = i;
        self.page = None;
        self.vals.clear();
        self.vals.resize(m.ir.insts.len(), Value::from_u32(0));
        self.rest = m.ir.guest_insns + 1;
        if self.env.counted {
            self.take_budget(m);
        }
        for (at, inst) in m.ir.insts.iter().enumerate() {
            if let Some(v) = self.inst(&m.ir, inst) {
                self.vals[at] = v;
            }
        }
    }

    /// Takes a block's instructions from the budget, or leaves at its start.
    fn take_budget(&mut self, m: &Member) {
        let (budget, n) = (self.eng_load(I64, offset_of!(Engine, budget)), i64::from(m.ir.guest_insns));
        let short = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, budget, n);
        let leave = self.b.create_block();
        self.b.set_cold_block(leave);
        self.unless(short, leave);
        let next = self.b.current_block().expect("in a block");
        self.b.switch_to_block(leave);
        self.leave(m.start.into(), Why::Budget);
        self.b.switch_to_block(next);
        let budget = self.b.ins().iadd_imm_s(budget, -n);
        self.eng_store(budget, offset_of!(Engine, budget));
    }

    // --- ops

    fn val(&self, v: Val) -> Value {
        self.vals[v.index()]
    }

    fn inst(&mut self, block: &Block, i: &Inst) -> Option<Value> {
        let (a, b) = (|l: &Self| l.val(i.a), |l: &Self| l.val(i.b));
        match i.op {
            Op::Insn => (self.insn, self.rest) = (i.imm as u32, self.rest - 1),
            Op::Set => {
                let (v, off) = (a(self), self.slot_off(i.slot(), i.imm));
                self.b.ins().store(STATE, v, self.st, off);
            }
            Op::Get => {
                let off = self.slot_off(i.slot(), i.imm);
                return Some(self.b.ins().load(clif_ty(i.ty), STATE, self.st, off));
            }
            Op::PcRel => {
                let page = self.page_pc();
                return Some(self.b.ins().iadd_imm_s(page, i.imm));
            }
            Op::Source => unreachable!("regions are asked for without loose bytes"),
            Op::Load => return Some(self.load(i)),
            Op::Store => self.store(i),
            Op::ProbeW => self.probe(i),
            Op::AtomicRmw | Op::AtomicCas => return Some(self.atomic(i)),
            Op::Call => return Some(self.call(i)),
            Op::RaiseIf | Op::LeaveIf | Op::Side => self.raise_if(i),
            Op::Jump | Op::Br | Op::JumpInd | Op::Exit | Op::ExitNext => self.terminator(block, i),
            Op::Cmp => {
                let (x, y) = (a(self), b(self));
                return Some(self.b.ins().icmp(int_cc(i.cond()), x, y));
            }
            Op::Select => {
                let (c, x, y) = (a(self), b(self), self.val(i.c));
                return Some(self.b.ins().select(c, x, y));
            }
            Op::VFp | Op::FpGet | Op::FpSet => return Some(self.fp(i)),
            Op::VTri => return Some(self.tri(i)),
            Op::Vec | Op::VLane | Op::VSetLane | Op::VShift | Op::VShuffle | Op::VMask => {
                let x = a(self);
                let y = if i.b == Val::NONE { x } else { b(self) };
                return Some(vector::lower(self, i, x, y));
            }
            _ => return Some(self.integer(block, i)),
        }
        None
    }

    fn integer(&mut self, block: &Block, i: &Inst) -> Value {
        let ty = clif_ty(i.ty);
        if i.op == Op::Const {
            return self.constant(i);
        }
        let x = self.val(i.a);
        let y = if i.b == Val::NONE { x } else { self.val(i.b) };
        let same = i.op.args() == 1 && block.ty(i.a) == i.ty;
        let ins = self.b.ins();
        match i.op {
            Op::Add => ins.iadd(x, y),
            Op::Sub => ins.isub(x, y),
            Op::Mul => ins.imul(x, y),
            Op::MulHiU => self.mul_high(i.ty, x, y, false),
            Op::MulHiS => self.mul_high(i.ty, x, y, true),
            Op::DivU => ins.udiv(x, y),
            Op::RemU => ins.urem(x, y),
            Op::DivS => ins.sdiv(x, y),
            Op::RemS => ins.srem(x, y),
            Op::And => ins.band(x, y),
            Op::Or => ins.bor(x, y),
            Op::Xor => ins.bxor(x, y),
            Op::Shl => ins.ishl(x, y),
            Op::Shr => ins.ushr(x, y),
            Op::Sar => ins.sshr(x, y),
            Op::Rotl => ins.rotl(x, y),
            Op::Rotr => ins.rotr(x, y),
            Op::Neg => ins.ineg(x),
            Op::Not => ins.bnot(x),
            Op::Clz | Op::Ctz | Op::Popcnt => self.count(i.op, i.ty, x),
            Op::Bswap => ins.bswap(x),
            Op::ZExt if !same => ins.uextend(ty, x),
            Op::SExt if !same => ins.sextend(ty, x),
            Op::Trunc if !same => ins.ireduce(ty, x),
            _ => x,
        }
    }

    fn constant(&mut self, i: &Inst) -> Value {
        if i.ty == Ty::V128 {
            let bytes = u128::from(i.imm as u64).to_le_bytes();
            let c = self.b.func.dfg.constants.insert(bytes.as_slice().into());
            return self.b.ins().vconst(I8X16, c);
        }
        let sh = 64 - i.ty.bits();
        self.iconst(clif_ty(i.ty), ((i.imm as u64) << sh) as i64 >> sh)
    }

    fn mul_high(&mut self, ty: Ty, x: Value, y: Value, signed: bool) -> Value {
        let ins = self.b.ins();
        match (ty, signed) {
            (Ty::I64, true) => return ins.smulhi(x, y),
            (Ty::I64, false) => return ins.umulhi(x, y),
            _ => {}
        }
        let mut ext = |v| if signed { self.b.ins().sextend(I64, v) } else { self.b.ins().uextend(I64, v) };
        let (x, y) = (ext(x), ext(y));
        let p = self.b.ins().imul(x, y);
        let hi = self.b.ins().ushr_imm_u(p, i64::from(ty.bits()));
        self.b.ins().ireduce(clif_ty(ty), hi)
    }

    /// Counts of narrow types go by I32.
    fn count(&mut self, op: Op, ty: Ty, x: Value) -> Value {
        let wide = if ty == Ty::I64 { I64 } else { I32 };
        let narrow = ty.bits() < 32;
        let mut v = if narrow { self.b.ins().uextend(I32, x) } else { x };
        match op {
            Op::Clz => {
                v = self.b.ins().clz(v);
                if narrow {
                    v = self.b.ins().iadd_imm_s(v, -i64::from(32 - ty.bits()));
                }
            }
            Op::Ctz => {
                if narrow {
                    let stop = self.iconst(wide, 1 << ty.bits());
                    v = self.b.ins().bor(v, stop);
                }
                v = self.b.ins().ctz(v);
            }
            _ => v = self.b.ins().popcnt(v),
        }
        if narrow { self.b.ins().ireduce(clif_ty(ty), v) } else { v }
    }

    // --- memory

    fn address(&mut self, i: &Inst) -> Value {
        let a = self.val(i.a);
        if i.imm == 0 { a } else { self.b.ins().iadd_imm_s(a, i.imm) }
    }

    fn info(&self, i: &Inst, write: bool) -> u32 {
        AccessInfo { ty: i.ty, ctx: usize::from(i.aux & 3), write, insn: self.insn, rest: self.rest }.pack()
    }

    /// Host address of an access. The check is a trap without a block of its own: its jump is pointed at a pad
    /// (`super::pads`), which fills the TLB and comes back, or leaves. The pad finds the address in the engine state.
    fn host_address(&mut self, i: &Inst, write: bool) -> Value {
        let va = self.address(i);
        let page = self.b.ins().ushr_imm_u(va, 12);
        let index = self.b.ins().band_imm_u(page, tlb::ENTRIES as i64 - 1);
        let at = self.b.ins().ishl_imm_u(index, i64::from(size_of::<tlb::Entry>().trailing_zeros()));
        let e = self.b.ins().iadd(self.st, at);
        let ctx = usize::from(i.aux & 3).min(2);
        let table = offset_of!(Engine, tlb) + tlb::Tables::entries_of(ctx);
        let field = if write { offset_of!(tlb::Entry, write) } else { offset_of!(tlb::Entry, read) };
        let (tag_off, addend_off) = (self.eng_off(table + field), self.eng_off(table + offset_of!(tlb::Entry, addend)));
        self.eng_store(va, offset_of!(Engine, slow_addr));
        self.sites.push(self.info(i, write));
        let tag = self.b.ins().load(I64, STATE, e, tag_off);
        let d = self.b.ins().isub(va, tag);
        self.b.set_srcloc(SourceLoc::new(self.sites.len() as u32));
        let miss = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, d, 4096 - i64::from(i.ty.bytes()));
        self.b.ins().trapnz(miss, TrapCode::unwrap_user(super::pads::CHECK));
        self.b.set_srcloc(SourceLoc::default());
        let addend = self.b.ins().load(I64, STATE, e, addend_off);
        self.b.ins().iadd(va, addend)
    }

    fn check_status(&mut self) {
        let status = self.eng_load(I32, offset_of!(Engine, status));
        self.unless(status, self.failed);
    }

    fn load(&mut self, i: &Inst) -> Value {
        let host = self.host_address(i, false);
        self.b.ins().load(clif_ty(i.ty), GUEST, host, 0)
    }

    fn store(&mut self, i: &Inst) {
        let host = self.host_address(i, true);
        let v = self.val(i.b);
        self.b.ins().store(GUEST, v, host, 0);
    }

    fn probe(&mut self, i: &Inst) {
        let va = self.address(i);
        let len = self.iconst(I64, (i.aux >> 2).into());
        let info = self.iconst(I64, self.info(i, true).into());
        self.call_rt_void(func::PROBE, &[va, len, info]);
        self.check_status();
    }

    fn widen(&mut self, ty: Ty, v: Value) -> Value {
        if ty == Ty::I64 { v } else { self.b.ins().uextend(I64, v) }
    }

    fn atomic(&mut self, i: &Inst) -> Value {
        let va = self.address(i);
        let kind = if i.op == Op::AtomicRmw { i.rmw() as u32 + 1 } else { 0 };
        let info = self.iconst(I64, (self.info(i, true) | kind << AccessInfo::RMW_SHIFT).into());
        let (x, y) = (self.val(i.b), if i.c == Val::NONE { self.val(i.b) } else { self.val(i.c) });
        let (x, y) = (self.widen(i.ty, x), self.widen(i.ty, y));
        let old = self.call_rt(func::ATOMIC, &[va, info, x, y]);
        self.check_status();
        if i.ty == Ty::I64 { old } else { self.b.ins().ireduce(clif_ty(i.ty), old) }
    }

    fn call(&mut self, i: &Inst) -> Value {
        let desc = &self.env.helpers[usize::from(i.aux)];
        let leaves = desc.effects.has(Effects::MAY_LEAVE);
        if leaves || desc.effects.has(Effects::READS_STATE) {
            self.set_pc_in_page(self.insn.into());
        }
        let info = u64::from(i.aux) | u64::from(self.rest) << 16 | u64::from(self.insn) << 32;
        let info = self.iconst(I64, info as i64);
        let mut args = vec![info];
        for v in [i.a, i.b, i.c] {
            args.push(if v == Val::NONE { info } else { self.val(v) });
        }
        let r = self.call_rt(func::HELPER, &args);
        if leaves {
            self.check_status();
        }
        r
    }

    /// Leaves; tier 0 runs the instruction again and raises.
    fn raise_if(&mut self, i: &Inst) {
        let (c, leave) = (self.val(i.a), self.b.create_block());
        self.b.set_cold_block(leave);
        self.unless(c, leave);
        let next = self.b.current_block().expect("in a block");
        self.b.switch_to_block(leave);
        if self.env.counted {
            let budget = self.eng_load(I64, offset_of!(Engine, budget));
            let budget = self.b.ins().iadd_imm_s(budget, i64::from(self.rest));
            self.eng_store(budget, offset_of!(Engine, budget));
        }
        self.leave(self.insn.into(), if i.op == Op::LeaveIf { Why::Unlike } else { Why::Leave });
        self.b.switch_to_block(next);
    }

    // --- block ends

    fn terminator(&mut self, block: &Block, i: &Inst) {
        match i.op {
            Op::Jump => self.go(i.imm),
            Op::Br => {
                let (yes, no) = (self.b.create_block(), self.b.create_block());
                let c = self.val(i.a);
                self.b.ins().brif(c, yes, [].iter(), no, [].iter());
                for (at, to) in [(yes, i.imm), (no, block.next)] {
                    let page = self.page;
                    self.b.switch_to_block(at);
                    self.go(to);
                    self.page = page;
                }
            }
            Op::JumpInd => {
                let pc = self.val(i.a);
                let pc = self.mask_pc(pc);
                self.set_pc(pc);
                self.b.ins().jump(self.chain, &[BlockArg::from(pc)]);
            }
            Op::ExitNext => {
                let pc = self.set_pc_in_page(block.next);
                self.tail_call(func::GO_ON_STUB, pc);
            }
            _ => {
                let unused = self.iconst(I64, 0);
                self.tail_call(func::GO_ON_STUB, unused);
            }
        }
    }

    /// Goes to a page offset: inside the region, or out of it. Backward jumps test the exit flag.
    fn go(&mut self, to: i64) {
        let Some(target) = self.members.iter().position(|m| i64::from(m.start) == to) else {
            let pc = self.set_pc_in_page(to);
            self.b.ins().jump(self.chain, &[BlockArg::from(pc)]);
            return;
        };
        if target > self.current {
            self.b.ins().jump(self.blocks[target], [].iter());
            return;
        }
        let kicked = self.b.create_block();
        self.b.set_cold_block(kicked);
        let page = self.page;
        let flag = self.eng_load(I32, offset_of!(Engine, exit));
        self.b.ins().brif(flag, kicked, [].iter(), self.blocks[target], [].iter());
        self.b.switch_to_block(kicked);
        self.leave(to, Why::Kicked);
        self.page = page;
    }
}

fn int_cc(c: Cond) -> IntCC {
    match c {
        Cond::Eq => IntCC::Equal,
        Cond::Ne => IntCC::NotEqual,
        Cond::Ult => IntCC::UnsignedLessThan,
        Cond::Uge => IntCC::UnsignedGreaterThanOrEqual,
        Cond::Ule => IntCC::UnsignedLessThanOrEqual,
        Cond::Ugt => IntCC::UnsignedGreaterThan,
        Cond::Slt => IntCC::SignedLessThan,
        Cond::Sge => IntCC::SignedGreaterThanOrEqual,
        Cond::Sle => IntCC::SignedLessThanOrEqual,
        Cond::Sgt => IntCC::SignedGreaterThan,
    }
}
