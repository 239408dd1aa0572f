//! Entries and ends of a block.

use super::cold::{Cold, Leave};
use super::emit::{Emit, Entries, NEAR_OR_FAR, cc};
use super::regs::{RAX, RDI};
use super::{asm, st};
use crate::cache::Record;
use crate::far::{Far, Spaces};
use crate::jit::runtime::func;
use crate::jumps::{JC_FACTOR, JC_MASK, JC_SHIFT, JcEntry};
use crate::vblock::{BASE, Engine, Why};
use ir::{Inst, Op};
use std::mem::offset_of;

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

    /// The program counter of a page offset into a register.
    pub fn pc_in_page(&mut self, r: u8, offset: i64) {
        let page = self.page_off();
        st!(self, page; [mov Rq(r),] []);
        self.add_imm(r, offset);
        self.mask_pc(r);
    }

    /// Sets the program counter to a page offset; uses rax.
    pub fn set_pc_in_page(&mut self, offset: i32) {
        let pc = self.pc_off();
        self.pc_in_page(RAX, offset.into());
        st!(self, pc; [mov] [, rax]);
    }

    /// The entries, and what all of them come to. The jump cache has looked at the exit flag, so who comes by the full entry need not;
    /// nor does anybody where the block asks further down.
    pub fn entry(&mut self) -> Entries {
        let start = self.block.start as i32;
        let entries = if self.env.guarded {
            let full = self.here() as u32;
            self.set_page(start);
            let linked = self.here() as u32;
            self.guard();
            self.exit_test();
            Entries { full, linked, forward: linked }
        } else if self.asks() {
            let full = self.here() as u32;
            self.set_page(start);
            let linked = self.here() as u32;
            Entries { full, linked, forward: linked }
        } else {
            let linked = self.here() as u32;
            self.exit_test();
            // JMP rel8 over the full entry.
            self.code.extend([0xeb, 0]);
            let full = self.here();
            self.set_page(start);
            let forward = self.here();
            self.code.ops[full - 1] = (forward - full) as u8;
            Entries { full: full as u32, linked, forward: forward as u32 }
        };
        if self.env.counts {
            let hot = self.env.record as i64 + offset_of!(Record, hot) as i64;
            asm!(self; mov rax, QWORD hot; dec DWORD [rax]);
            self.leave_if(cc::E, start, Why::Hot);
        }
        self.take_budget();
        entries
    }

    /// Sets the page's program counter, given that of an offset in it in rdi; uses rax.
    pub fn set_page(&mut self, offset: i32) {
        let page = self.page_off();
        self.lea(RAX, RDI, -offset);
        st!(self, page; [mov] [, rax]);
    }

    /// Leaves unless the block's second page is where it was.
    fn guard(&mut self) {
        if !self.env.guarded {
            return;
        }
        let guard = Far::new(self.env.keys[NEAR_OR_FAR], self.env.record, 0, 0, self.env.global, self.env.pc_mask == u64::MAX);
        let (page, start) = (self.page_off(), self.block.start as i32);
        st!(self, page; [mov rdi,] []);
        self.compare_key(&guard);
        self.leave_if(cc::NE, start, Why::Miss);
        self.guard = Some(guard);
    }

    /// Compares the key of a link with what it would be here and now: rax, with the page's program counter in rdi.
    fn compare_key(&mut self, far: &Far) {
        let space = self.eng(offset_of!(Engine, spaces) + Spaces::offset_for(far));
        let key = self.eng(offset_of!(Engine, keys) + 8 * far.key.number as usize);
        st!(self, space; [mov rax,] []);
        asm!(self; xor rax, rdi);
        st!(self, key; [cmp rax,] []);
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

    /// Leaves before the block has begun.
    pub fn leave_if(&mut self, c: u8, offset: i32, why: Why) {
        let jump = self.jcc(c);
        self.cold.push(Cold::Leave { jump, leave: Leave { offset, why, edge: 0, rest: 0, late: 0..0 } });
    }

    /// Leaves; tier 0 runs the instruction again, and raises or does it without a guess.
    pub fn raise_if(&mut self, i: &Inst) {
        let c = self.condition(i.a);
        let jump = self.jcc(c);
        let leave = self.leave_here(if i.op == Op::LeaveIf { Why::Unlike } else { Why::Leave });
        self.cold.push(Cold::Leave { jump, leave });
    }

    /// A branch that the block goes on behind.
    pub fn side(&mut self, i: &Inst) {
        // In a copy the edge is not linked: tier 0 runs the branch.
        if self.apart_from != u32::MAX {
            return self.raise_if(i);
        }
        let c = self.condition(i.a);
        let jump = self.jcc(c);
        let edge = NEAR_OR_FAR as u32 + self.sides;
        self.sides += 1;
        let rest = if self.env.counted { self.rest - 1 } else { 0 };
        let leave = Leave { offset: i.imm as i32, why: Why::Edge, edge, rest, late: self.note_late() };
        self.cold.push(Cold::Side { jump, leave });
    }

    /// Goes on at the program counter in the state, though mode and mappings may have changed.
    fn go_on(&mut self) {
        self.write_back();
        let f = self.eng(offset_of!(Engine, fns) + 8 * func::GO_ON_STUB);
        st!(self, f; [jmp QWORD] []);
    }

    /// Goes on at the program counter in rdi through the jump cache: `jit::asm::chain` in line,
    /// so that each jump is predicted for itself. A jump does not change the mode. While the exit flag is set no entry fits. Gives the ends
    /// of the jumps for when it is not in the cache's first place.
    fn chain_first(&mut self) -> [usize; 2] {
        const { assert!(size_of::<JcEntry>() == 32) };
        let jc = self.eng(offset_of!(Engine, jc)) - BASE;
        let (pc, tag) = (jc + offset_of!(JcEntry, pc) as i32, jc + offset_of!(JcEntry, tag) as i32);
        let (code, factor, mask) = (jc + offset_of!(JcEntry, code) as i32, JC_FACTOR as i32, JC_MASK as i32);
        let now = self.eng(offset_of!(Engine, tag));
        asm!(self; imul eax, edi, DWORD factor; shr eax, BYTE JC_SHIFT as i8);
        st!(self, now; [mov rcx,] []);
        asm!(self; and eax, DWORD mask; cmp rdi, [r15 + rax + pc]);
        let other_pc = self.jcc(cc::NE);
        asm!(self; cmp rcx, [r15 + rax + tag]);
        let other_tag = self.jcc(cc::NE);
        asm!(self; jmp QWORD [r15 + rax + code]);
        [other_pc, other_tag]
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
                self.write_back();
                match i.aux {
                    1 if self.may_return() => {
                        self.push_frame(None);
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
            self.cold.push(Cold::Leave { jump, leave: Leave { offset, why: Why::Edge, edge: n, rest: 0, late: 0..0 } });
        } else {
            self.ways.push((jump, offset, n));
        }
    }

    /// Ways to other pages.
    pub fn ways(&mut self) {
        for (jump, offset, edge) in std::mem::take(&mut self.ways) {
            let here = self.here();
            self.point(jump, here);
            if self.region.is_none() {
                self.far_way(offset, edge, false);
                continue;
            }
            self.write_back();
            self.pc_in_page(RDI, offset.into());
            self.chain();
        }
    }

    /// To the target if the edge is linked to it where this runs: see `far`.
    pub fn far_way(&mut self, offset: i32, edge: u32, call: bool) {
        let delta = offset & !0xfff;
        let far =
            Far::new(self.env.keys[edge as usize], self.env.record, edge, delta, self.env.global, self.env.pc_mask == u64::MAX);
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
        self.cold.push(Cold::Far { jump, offset, landing: call.then_some(link), far: &raw const *far as i64 });
        self.far[edge as usize] = Some(far);
        if call {
            self.landing();
        }
    }

    /// Entered with the page's program counter in rdi, the key in rax. `far`: address of the `Far`.
    pub fn far_miss(&mut self, jump: usize, offset: i32, landing: Option<usize>, far: i64) {
        let here = self.here();
        self.point(jump, here);
        if let Some(landing) = landing {
            let call = self.call_near();
            let back = self.jmp();
            self.point(back, landing);
            let here = self.here();
            self.point(call, here);
        }
        asm!(self; mov rcx, QWORD far; lea rdi, [rdi + offset]);
        self.mask_pc(RDI);
        let f = self.eng(offset_of!(Engine, fns) + 8 * func::FAR);
        st!(self, f; [jmp QWORD] []);
    }
}
