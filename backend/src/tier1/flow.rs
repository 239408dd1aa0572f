//! Entries and ends of a block, and the code out of the hot path.

use super::emit::{Cold, Emit, Held, NEAR_OR_FAR, cc};
use super::{asm, st};
use crate::cache::Record;
use crate::far::{Far, Spaces};
use crate::jit::runtime::{AccessInfo, func};
use crate::jumps::{JC_FACTOR, JC_MASK, JC_SHIFT, JcEntry};
use crate::vblock::{BASE, Engine, Why};
use ir::{Inst, Op};
use std::mem::offset_of;
use std::ops::Range;

const RAX: u8 = 0;
const RDI: u8 = 7;

impl Emit<'_> {
    pub fn page_off(&self) -> i32 {
        self.env.layout.slot(self.env.layout.pc_page).offset as i32
    }

    pub fn pc_off(&self) -> i32 {
        self.env.layout.slot(self.env.layout.pc).offset as i32
    }

    pub fn mask_pc(&mut self, r: u8) {
        match self.env.pc_mask {
            u64::MAX => {}
            0xffff_ffff => asm!(self; mov Rd(r), Rd(r)),
            0xffff => asm!(self; movzx Rd(r), Rw(r)),
            m => asm!(self; mov rdx, QWORD m as i64; and Rq(r), rdx),
        }
    }

    /// Sets the program counter to a page offset, in rax too.
    pub fn set_pc_in_page(&mut self, offset: i32) {
        let (page, pc) = (self.page_off(), self.pc_off());
        st!(self, page; [mov rax,] []);
        self.add_imm(RAX, offset.into());
        self.mask_pc(RAX);
        st!(self, pc; [mov] [, rax]);
    }

    /// The entries; gives the offsets of the linked ones.
    pub fn entry(&mut self) -> (u32, u32) {
        let (page, pc, start) = (self.page_off(), self.pc_off(), self.block.start as i32);
        st!(self, pc; [mov rax,] []);
        asm!(self; lea rax, [rax - start]);
        st!(self, page; [mov] [, rax]);
        let linked = self.here() as u32;
        self.guard();
        self.exit_test();
        let forward = if self.env.guarded { linked } else { self.here() as u32 };
        if self.env.counts {
            let hot = self.env.record as i64 + offset_of!(Record, hot) as i64;
            asm!(self; mov rax, QWORD hot; dec DWORD [rax]);
            self.leave_if(cc::E, start, Why::Hot);
        }
        self.take_budget();
        (linked, forward)
    }

    /// Leaves unless the block's second page is where it was.
    fn guard(&mut self) {
        if !self.env.guarded {
            return;
        }
        let guard = Far::new(self.env.record, 0, 0, self.env.global, self.env.pc_mask == u64::MAX);
        let (page, start) = (self.page_off(), self.block.start as i32);
        st!(self, page; [mov rdi,] []);
        self.compare_key(&guard);
        self.leave_if(cc::NE, start, Why::Miss);
        self.guard = Some(guard);
    }

    /// Compares the key of a link with what it would be here and now: rax, with the page's program counter in rdi. Its `Far` is
    /// then in rcx.
    fn compare_key(&mut self, far: &Far) {
        let space = self.eng(offset_of!(Engine, spaces) + Spaces::offset_for(far));
        const { assert!(offset_of!(Far, key) == 0) };
        asm!(self; mov rcx, QWORD &raw const *far as i64);
        st!(self, space; [mov rax,] []);
        asm!(self; xor rax, rdi; cmp rax, [rcx]);
    }

    /// Leaves if another thread wants the dispatcher.
    pub fn exit_test(&mut self) {
        let (exit, start) = (self.eng(offset_of!(Engine, exit)), self.block.start as i32);
        self.cmp_state(false, exit, 0);
        self.leave_if(cc::NE, start, Why::Kicked);
    }

    /// Takes the block's instructions from the budget, where they are counted.
    pub fn take_budget(&mut self) {
        let start = self.block.start as i32;
        if self.env.counted {
            let (budget, n) = (self.eng(offset_of!(Engine, budget)), self.block.guest_insns as i32);
            st!(self, budget; [cmp QWORD] [, DWORD n]);
            self.leave_if(cc::B, start, Why::Budget);
            st!(self, budget; [sub QWORD] [, DWORD n]);
        }
    }

    pub fn leave_if(&mut self, c: u8, offset: i32, why: Why) {
        let jump = self.jcc(c);
        let rest = if self.env.counted && matches!(why, Why::Leave | Why::Unlike) { self.rest } else { 0 };
        let late = self.note_late();
        self.cold.push(Cold::Leave { jump, offset, why: why as u32, edge: 0, rest, late });
    }

    /// Leaves; tier 0 runs the instruction again, and raises or does it without a guess.
    pub fn raise_if(&mut self, i: &Inst) {
        let c = self.condition(i.a);
        self.leave_if(c, self.insn as i32, if i.op == Op::LeaveIf { Why::Unlike } else { Why::Leave });
    }

    /// A branch that the block goes on behind.
    pub fn side(&mut self, i: &Inst) {
        let c = self.condition(i.a);
        // In a copy the edge is not linked: tier 0 runs the branch.
        if self.apart_from != u32::MAX {
            return self.leave_if(c, self.insn as i32, Why::Leave);
        }
        let jump = self.jcc(c);
        let edge = (NEAR_OR_FAR as u32) + self.sides;
        self.sides += 1;
        let rest = if self.env.counted { self.rest - 1 } else { 0 };
        let late = self.note_late();
        self.cold.push(Cold::Side { jump, offset: i.imm as i32, edge, rest, late });
    }

    /// Its way out; gives the end of the jump to `tail_of_leaves`.
    fn side_way(&mut self, jump: usize, offset: i32, edge: u32, rest: u32, late: Range<usize>) -> usize {
        let here = self.here();
        self.point(jump, here);
        let mut link = jump;
        if rest != 0 || !late.is_empty() {
            self.do_late(late);
            self.give_back(rest);
            link = self.jmp();
            let here = self.here();
            self.point(link, here);
        }
        let stub = self.offset_at(self.here());
        self.edges[edge as usize] = Some((self.offset(link) as u32, stub as u32));
        self.leave(offset, Why::Edge as u32, edge, 0)
    }

    /// Goes on at the program counter in the state, though mode and mappings may have changed.
    fn go_on(&mut self) {
        self.write_back();
        let f = self.eng(offset_of!(Engine, fns) + 8 * func::GO_ON_STUB);
        st!(self, f; [jmp QWORD] []);
    }

    /// Goes on at the program counter in rdi, which is also in the state, through the jump cache: `jit::asm::chain` in line,
    /// so that each jump is predicted for itself. A jump does not change the mode. Gives the ends of the jumps for when it is not in
    /// the cache's first place.
    fn chain_first(&mut self) -> [usize; 2] {
        const { assert!(size_of::<JcEntry>() == 32) };
        let jc = self.eng(offset_of!(Engine, jc)) - BASE;
        let (pc, mode) = (jc + offset_of!(JcEntry, pc) as i32, jc + offset_of!(JcEntry, mode) as i32);
        let (code, factor, mask) = (jc + offset_of!(JcEntry, code) as i32, JC_FACTOR as i32, JC_MASK as i32);
        let now = self.eng(offset_of!(Engine, mode));
        asm!(self; imul eax, edi, DWORD factor; shr eax, BYTE JC_SHIFT as i8);
        st!(self, now; [mov rcx,] []);
        asm!(self; and eax, DWORD mask; cmp rdi, [r15 + rax + pc]);
        let other_pc = self.jcc(cc::NE);
        asm!(self; cmp rcx, [r15 + rax + mode]);
        let other_mode = self.jcc(cc::NE);
        asm!(self; jmp QWORD [r15 + rax + code]);
        [other_pc, other_mode]
    }

    /// The same to the end.
    pub fn chain(&mut self) {
        let missed = self.chain_first();
        let second = self.eng(offset_of!(Engine, fns) + 8 * func::SECOND);
        let here = self.here();
        missed.iter().for_each(|j| self.point(*j, here));
        st!(self, second; [jmp QWORD] []);
    }

    /// A jump to the program counter in rdi.
    fn jump_indirect(&mut self) {
        if !self.checks_jump() {
            return self.chain();
        }
        let missed = self.chain_first();
        self.jump_elsewhere(missed);
    }

    pub fn terminator(&mut self, i: &Inst) {
        match i.op {
            Op::Jump if self.is_call(i) => self.call_direct(i),
            _ if self.inner_edges(i) => {}
            Op::Jump if self.region.is_none() && !(0..4096).contains(&i.imm) => self.far_way(i.imm as i32, 0, false),
            Op::Jump => {
                let jump = self.jmp();
                self.edge(0, jump, i.imm);
            }
            Op::Br => {
                let c = self.condition(i.a);
                let taken = self.jcc(c);
                let next = self.jmp();
                self.edge(0, taken, i.imm);
                self.edge(1, next, self.block.next);
            }
            Op::JumpInd => {
                self.copy_to(RDI, i.a);
                self.mask_pc(RDI);
                let pc = self.pc_off();
                st!(self, pc; [mov] [, rdi]);
                self.write_back();
                match i.aux {
                    1 if self.may_return() => {
                        self.push_frame();
                        self.call_chain();
                    }
                    2 => self.return_to(),
                    _ => self.jump_indirect(),
                }
            }
            Op::ExitNext => {
                self.set_pc_in_page(self.block.next as i32);
                self.go_on();
            }
            _ => self.go_on(),
        }
    }

    /// Where a jump at the block's end goes: by a link if the target is in the page, else through the jump cache.
    pub fn edge(&mut self, n: u32, jump: usize, to: i64) {
        let offset = to as i32;
        if (0..4096).contains(&to) && self.region.is_none() {
            self.cold.push(Cold::Leave { jump, offset, why: Why::Edge as u32, edge: n, rest: 0, late: 0..0 });
        } else {
            self.ways.push((jump, offset, n));
        }
    }

    /// Ways to other pages.
    fn ways(&mut self) {
        for (jump, offset, edge) in std::mem::take(&mut self.ways) {
            let here = self.here();
            self.point(jump, here);
            if self.region.is_none() {
                self.far_way(offset, edge, false);
                continue;
            }
            self.write_back();
            self.set_pc_in_page(offset);
            asm!(self; mov rdi, rax);
            self.chain();
        }
    }

    /// To the target if the edge is linked to it where this runs: see `far`.
    pub fn far_way(&mut self, offset: i32, edge: u32, call: bool) {
        let delta = offset & !0xfff;
        let far = Far::new(self.env.record, edge, delta, self.env.global, self.env.pc_mask == u64::MAX);
        let page = self.page_off();
        st!(self, page; [mov rdi,] []);
        self.compare_key(&far);
        let jump = self.jcc(cc::NE);
        // Narrow addresses wrap: else going round again and again would bring them into the key's other bits.
        if far.wide {
            asm!(self; lea rdi, [rdi + delta]);
        } else {
            asm!(self; lea edi, [rdi + delta]);
        }
        st!(self, page; [mov] [, rdi]);
        let link = if call { self.call_near() } else { self.jmp() };
        self.edges[edge as usize] = Some((self.offset(link) as u32, 0));
        self.far[edge as usize] = Some(far);
        self.cold.push(Cold::Far { jump, offset, landing: call.then_some(link) });
        if call {
            self.landing();
        }
    }

    /// Entered with the page's program counter in rdi, the key in rax, the `Far` in rcx.
    fn far_miss(&mut self, jump: usize, offset: i32, landing: Option<usize>) {
        let (here, pc) = (self.here(), self.pc_off());
        self.point(jump, here);
        if let Some(landing) = landing {
            let call = self.call_near();
            let back = self.jmp();
            self.point(back, landing);
            let here = self.here();
            self.point(call, here);
        }
        asm!(self; lea rdi, [rdi + offset]);
        self.mask_pc(RDI);
        st!(self, pc; [mov] [, rdi]);
        let f = self.eng(offset_of!(Engine, fns) + 8 * func::FAR);
        st!(self, f; [jmp QWORD] []);
    }

    /// What the code so far jumps to, most of it in the cold part.
    pub fn cold_code(&mut self) {
        self.ways();
        let (mut failed, mut leaves) = (Vec::new(), Vec::new());
        self.split = self.here();
        self.copies();
        for c in std::mem::take(&mut self.cold) {
            let here = self.here();
            match c {
                Cold::Failed { jump } => failed.push(jump),
                Cold::Far { jump, offset, landing } => self.far_miss(jump, offset, landing),
                Cold::Frames { jump, back } => self.drop_frames(jump, back),
                Cold::Return { jump } => self.return_elsewhere(jump),
                Cold::Fp { jump, back } => self.make_fp_ready(jump, back),
                Cold::X87 { jump, back, info } => failed.push(self.make_x87_live(jump, back, info)),
                Cold::X87Home { jump, back } => self.take_x87_home(jump, back),
                Cold::Miss { jump, back, va, info, across, late } => {
                    self.point(jump, here);
                    failed.push(self.miss(back, va, info, across, late));
                }
                Cold::Group { jump, back, va, info, write, delta, most, offset, rest, copy, late } => {
                    self.point(jump, here);
                    let (not_filled, crossed) = self.group_missed(back, va, (info, write), delta, most);
                    let here = self.here();
                    self.point(not_filled, here);
                    self.do_late(late.clone());
                    failed.push(self.jmp());
                    if let Some(copy) = copy.and_then(|n| self.copies.get(n)) {
                        let start = copy.start;
                        crossed.iter().for_each(|j| self.point(*j, start));
                    } else {
                        let here = self.here();
                        crossed.iter().for_each(|j| self.point(*j, here));
                        self.do_late(late);
                        leaves.push(self.leave(offset, Why::Unlike as u32, 0, rest));
                    }
                }
                Cold::Target { jump, back, target, shift, offset, rest, late } => {
                    self.point(jump, here);
                    self.compare_canonical(target, shift);
                    let right = self.jcc(cc::BE);
                    self.point(right, back);
                    self.do_late(late);
                    leaves.push(self.leave(offset, Why::Leave as u32, 0, rest));
                }
                Cold::Elsewhere { jumps, shift, offset, rest } => {
                    jumps.iter().for_each(|j| self.point(*j, here));
                    self.compare_canonical(RDI, shift);
                    let second = self.eng(offset_of!(Engine, fns) + 8 * func::SECOND);
                    let wrong = self.jcc(cc::A);
                    st!(self, second; [jmp QWORD] []);
                    let here = self.here();
                    self.point(wrong, here);
                    leaves.push(self.leave(offset, Why::Leave as u32, 0, rest));
                }
                Cold::Locked(l) => failed.push(self.locked_missed(l)),
                Cold::Side { jump, offset, edge, rest, late } => {
                    leaves.push(self.side_way(jump, offset, edge, rest, late));
                }
                Cold::Leave { jump, offset, why, edge, rest, late } => {
                    self.point(jump, here);
                    self.do_late(late);
                    if why == Why::Edge as u32 {
                        self.edges[edge as usize] = Some((self.offset(jump) as u32, self.offset_at(here) as u32));
                    }
                    leaves.push(self.leave(offset, why, edge, rest));
                }
            }
        }
        self.tail_of_failures(&failed);
        self.tail_of_leaves(&leaves);
    }

    /// Gives the end of the jump to `tail_of_leaves`.
    fn leave(&mut self, offset: i32, why: u32, edge: u32, rest: u32) -> usize {
        self.give_back(rest);
        asm!(self; mov ecx, DWORD edge as i32; mov edx, DWORD offset; mov eax, DWORD why as i32);
        self.jmp()
    }

    /// Instructions that were counted and are not executed go back to the budget.
    fn give_back(&mut self, insns: u32) {
        if insns != 0 {
            let budget = self.eng(offset_of!(Engine, budget));
            st!(self, budget; [add QWORD] [, DWORD insns as i32]);
        }
    }

    /// Has the TLB filled and goes back, or on to where the gate of the result leads: the end of that jump.
    fn miss(&mut self, back: usize, va: u8, info: u32, across: Option<(Held, usize)>, late: Range<usize>) -> usize {
        let a = AccessInfo::unpack(info);
        self.look_beside(back, va, a, 4096 - a.ty.bytes() as i32);
        if let Some((held, _)) = across {
            self.hand_over(held);
        }
        self.fill(va, info);
        let again = self.jcc(cc::B);
        self.point(again, back);
        if let Some((_, done)) = across {
            let jump = self.jcc(cc::E);
            self.point(jump, done);
        }
        self.do_late(late);
        self.jmp()
    }

    /// Has the TLB filled for the access at the address in `va`; the host's flags are then as `asm::access_stub` says.
    pub fn fill(&mut self, va: u8, info: u32) {
        let (addr, what) = (self.eng(offset_of!(Engine, slow_addr)), self.eng(offset_of!(Engine, slow_info)));
        let stub = self.eng(offset_of!(Engine, fns) + 8 * func::ACCESS_STUB);
        st!(self, addr; [mov] [, Rq(va)]);
        st!(self, what; [mov DWORD] [, DWORD info as i32]);
        st!(self, stub; [call QWORD] []);
    }

    fn tail_of_failures(&mut self, jumps: &[usize]) {
        if jumps.is_empty() {
            return;
        }
        let (here, status) = (self.here(), self.eng(offset_of!(Engine, status)));
        jumps.iter().for_each(|j| self.point(*j, here));
        self.write_back();
        self.unwind();
        st!(self, status; [mov eax,] []);
        asm!(self; ret);
    }

    /// Entered with the number of the edge in ecx, the page offset in edx, the `Why` in eax.
    fn tail_of_leaves(&mut self, jumps: &[usize]) {
        let here = self.here();
        jumps.iter().for_each(|j| self.point(*j, here));
        let (edge, cur) = (self.eng(offset_of!(Engine, edge_number)), self.eng(offset_of!(Engine, cur)));
        let (page, pc, record) = (self.page_off(), self.pc_off(), self.env.record as i64);
        self.write_back();
        if self.region.is_none() {
            st!(self, edge; [mov] [, ecx]);
            asm!(self; mov rdi, QWORD record);
            st!(self, cur; [mov] [, rdi]);
        }
        asm!(self; movsxd rdi, edx);
        st!(self, page; [add rdi,] []);
        self.mask_pc(RDI);
        st!(self, pc; [mov] [, rdi]);
        self.unwind();
        asm!(self; ret);
    }
}
