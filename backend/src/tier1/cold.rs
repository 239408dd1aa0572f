//! The code out of the hot path: what memory checks do that miss, ways out of a block, and the two tails that they all end in.

use super::emit::{Emit, cc};
use super::locked::Locked;
use super::memory::Linear;
use super::regs::{RDI, RDX};
use super::target::CheckedReturn;
use super::{asm, st};
use crate::jit::runtime::{AccessInfo, func};
use crate::vblock::{Engine, Why};
use std::mem::offset_of;
use std::ops::Range;

/// Leaving the block in the middle, to run an instruction again or to go on elsewhere.
pub struct Leave {
    /// Page offset of where the program counter is then.
    pub offset: i32,
    pub why: Why,
    /// Number of the edge (`Why::Edge`).
    pub edge: u32,
    /// Instructions that were counted and not executed.
    pub rest: u32,
    /// Stores to be done before.
    pub late: Range<usize>,
}

/// A check of several accesses that missed: see `share`.
pub struct GroupMiss {
    pub jump: usize,
    /// Where it goes on if the check now passes.
    pub back: usize,
    /// The lowest address, from there to the first access, and that one's `AccessInfo`.
    pub va: Linear,
    pub delta: i32,
    pub info: u32,
    /// The check is one for writing.
    pub write: bool,
    /// As `compare_tag`.
    pub most: i32,
    /// Number of the copy to go on in where they do not lie in one page; else the block is left.
    pub copy: Option<usize>,
    pub leave: Leave,
}

/// A piece of cold code. `jump`: end of the jump that leads there; `back`: where it goes on. `late`: stores to be done by those who leave.
pub(super) enum Cold {
    /// A memory check that missed: the address, `AccessInfo`. `across`: the value to be stored, and where to go on if the access was
    /// done across two pages.
    Miss {
        jump: usize,
        back: usize,
        va: Linear,
        info: u32,
        across: Option<(Held, usize)>,
        late: Range<usize>,
    },
    Group(GroupMiss),
    Leave {
        jump: usize,
        leave: Leave,
    },
    /// A locked access that the TLB does not serve.
    Locked(Locked),
    /// The way of a branch that the block goes on behind.
    Side {
        jump: usize,
        leave: Leave,
    },
    /// A jump to what the jump cache does not have in its first place.
    Elsewhere {
        jumps: [usize; 2],
        shift: i8,
        leave: Leave,
    },
    /// Returns the status word.
    Failed {
        jump: usize,
    },
    /// Goes on at a page offset, as the link of an edge does not hold. Of a call, where it returns to. Address of the `Far`, which lives
    /// as long as the code.
    Far {
        jump: usize,
        offset: i32,
        landing: Option<usize>,
        far: i64,
    },
    /// Makes room for a frame: see `calls`.
    Frames {
        jump: usize,
        back: usize,
        to: Option<i32>,
    },
    /// A return to elsewhere than its frame says.
    Return {
        jump: usize,
        check: Option<CheckedReturn>,
    },
    /// Makes floating point ready and goes back.
    Fp {
        jump: usize,
        back: usize,
    },
    /// Takes the x87 state to the host's FPU; `AccessInfo`.
    X87 {
        jump: usize,
        back: usize,
        info: u32,
    },
    /// Takes it back.
    X87Home {
        jump: usize,
        back: usize,
    },
}

/// Where the value of a store is.
#[derive(Clone, Copy, Debug)]
pub enum Held {
    /// It is a load.
    Nothing,
    Xmm(u8),
    Gpr(u8),
    Imm(i32),
}

/// Ends of the jumps to the tails.
#[derive(Default)]
struct Tails {
    failed: Vec<usize>,
    leaves: Vec<usize>,
}

impl Emit<'_> {
    /// Leaving at the current instruction, which is not done. Values are where they are now when the code runs.
    pub fn leave_here(&mut self, why: Why) -> Leave {
        let rest = if self.env.counted { self.rest } else { 0 };
        Leave { offset: self.insn as i32, why, edge: 0, rest, late: self.note_late() }
    }

    /// What the code so far jumps to, most of it in the cold part.
    pub fn cold_code(&mut self) {
        self.ways();
        self.split = self.here();
        self.copies();
        let mut tails = Tails::default();
        for c in std::mem::take(&mut self.cold) {
            self.cold(c, &mut tails);
        }
        self.tail_of_failures(&tails.failed);
        self.tail_of_leaves(&tails.leaves);
    }

    fn cold(&mut self, c: Cold, tails: &mut Tails) {
        match c {
            Cold::Failed { jump } => tails.failed.push(jump),
            Cold::Far { jump, offset, landing, far } => self.far_miss(jump, offset, landing, far),
            Cold::Frames { jump, back, to } => self.drop_frames(jump, back, to),
            Cold::Return { jump, check } => {
                self.point_here(jump);
                let wrong = check.as_ref().map(|c| self.not_canonical(c.shift));
                self.return_elsewhere();
                if let (Some(wrong), Some(check)) = (wrong, check) {
                    self.point_here(wrong);
                    self.undo_return(&check);
                    tails.leaves.push(self.leave(wrong, check.leave));
                }
            }
            Cold::Fp { jump, back } => self.make_fp_ready(jump, back),
            Cold::X87 { jump, back, info } => tails.failed.push(self.make_x87_live(jump, back, info)),
            Cold::X87Home { jump, back } => self.take_x87_home(jump, back),
            Cold::Miss { jump, back, va, info, across, late } => {
                self.point_here(jump);
                tails.failed.push(self.miss(back, va, info, across, late));
            }
            Cold::Group(g) => self.group_miss(g, tails),
            Cold::Locked(l) => tails.failed.push(self.locked_missed(l)),
            Cold::Side { jump, leave } => tails.leaves.push(self.side_way(jump, leave)),
            Cold::Leave { jump, leave } => {
                self.point_here(jump);
                tails.leaves.push(self.leave(jump, leave));
            }
            Cold::Elsewhere { jumps, shift, leave } => {
                jumps.iter().for_each(|j| self.point_here(*j));
                let second = self.eng(offset_of!(Engine, fns) + 8 * func::SECOND);
                let wrong = self.not_canonical(shift);
                st!(self, second; [jmp QWORD] []);
                self.point_here(wrong);
                tails.leaves.push(self.leave(wrong, leave));
            }
        }
    }

    /// A jump leads to what follows.
    fn point_here(&mut self, jump: usize) {
        let here = self.here();
        self.point(jump, here);
    }

    /// Gives the end of the jump to `tail_of_leaves`. `jump`: what an edge has linked.
    fn leave(&mut self, jump: usize, l: Leave) -> usize {
        let here = self.here();
        self.do_late(l.late);
        if l.why == Why::Edge {
            self.edges[l.edge as usize] = Some((self.offset(jump) as u32, self.offset_at(here) as u32));
        }
        self.give_back(l.rest);
        asm!(self; mov ecx, DWORD l.edge as i32; mov edx, DWORD l.offset; mov eax, DWORD l.why as i32);
        self.jmp()
    }

    /// The same of a branch that the block goes on behind: what there is to do comes before the jump that is linked.
    fn side_way(&mut self, mut jump: usize, mut l: Leave) -> usize {
        self.point_here(jump);
        if l.rest != 0 || !l.late.is_empty() {
            self.do_late(std::mem::take(&mut l.late));
            self.give_back(std::mem::take(&mut l.rest));
            jump = self.jmp();
            self.point_here(jump);
        }
        self.leave(jump, l)
    }

    /// Instructions that were counted and are not executed go back to the budget.
    fn give_back(&mut self, insns: u32) {
        if insns != 0 {
            let budget = self.eng(offset_of!(Engine, budget));
            st!(self, budget; [add QWORD] [, DWORD insns as i32]);
        }
    }

    fn group_miss(&mut self, g: GroupMiss, tails: &mut Tails) {
        self.point_here(g.jump);
        let (not_filled, crossed) = self.group_missed(&g);
        self.point_here(not_filled);
        self.do_late(g.leave.late.clone());
        tails.failed.push(self.jmp());
        if let Some(start) = g.copy.and_then(|n| self.copies.get(n)).map(|copy| copy.start) {
            crossed.iter().for_each(|j| self.point(*j, start));
            return;
        }
        crossed.iter().for_each(|j| self.point_here(*j));
        tails.leaves.push(self.leave(g.jump, g.leave));
    }

    /// Has the TLB filled and goes back, or on behind the access if it has been done; else to where the end of the jump leads.
    fn miss(&mut self, back: usize, va: Linear, info: u32, across: Option<(Held, usize)>, late: Range<usize>) -> usize {
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

    /// Has the TLB filled for the access at `va`; the host's flags are then as `asm::access_stub` says. Uses rdx.
    pub fn fill(&mut self, va: Linear, info: u32) {
        let (addr, what) = (self.eng(offset_of!(Engine, slow_addr)), self.eng(offset_of!(Engine, slow_info)));
        let stub = self.eng(offset_of!(Engine, fns) + 8 * func::ACCESS_STUB);
        self.linear_to(RDX, va);
        st!(self, addr; [mov] [, rdx]);
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
