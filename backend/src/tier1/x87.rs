//! x87: the guest's instructions as the host's own, on the guest's state in the host's FPU. It is taken there by the first of
//! them (`runtime::x87_live`) and comes back when Rust gets to run (`VcpuBlock::collect_fp`), or ops touch the state itself.

use super::cold::Cold;
use super::emit::{Emit, cc};
use super::regs::{RAX, RCX};
use super::{asm, st};
use crate::jit::runtime::{AccessInfo, func};
use crate::vblock::{Engine, LIVE_X87, Why};
use ir::{HelperId, Inst, Ty, X87Insn, X87Kind, X87Layout};
use std::mem::offset_of;

/// Exceptions' masks in the control word; the bits that it has, and the one that is always set (SDM 1 "x87 FPU Control Word").
const MASKS: i32 = 0x3f;
const CONTROL: i32 = 0x1f3f;
const RESERVED: i32 = 0x40;
/// Low byte of the status word: an unmasked exception is pending.
const ES: i8 = -128;
/// FCMOVNE ST(0), ST(i).
const FCMOVNE: [u8; 2] = [0xdb, 0xc8];

impl Emit<'_> {
    /// Whether the call can be instructions of the host.
    pub fn is_x87(&self, i: &Inst) -> bool {
        self.env.layout.x87.is_some_and(|l| match HelperId(i.aux) {
            h if h == l.helper => self.x87_insn(i).is_some(),
            h => h == l.wait || h == l.status,
        })
    }

    fn x87_insn(&self, i: &Inst) -> Option<X87Insn> {
        self.block.as_const(i.a).map(X87Insn::unpack).filter(|x| x.kind != X87Kind::Call)
    }

    /// The call as that. `false`: it cannot be.
    pub fn x87(&mut self, i: &Inst) -> bool {
        let Some(l) = self.env.layout.x87 else { return false };
        match HelperId(i.aux) {
            h if h == l.wait => self.x87_wait(&l),
            h if h == l.status => self.x87_status(&l),
            h if h == l.helper => {
                let Some(x) = self.x87_insn(i) else { return false };
                self.save_aliased(Some((l.start as i32, (l.end - l.start) as i32)));
                self.x87_operation(i, x, &l);
            }
            _ => return false,
        }
        true
    }

    fn x87_operation(&mut self, i: &Inst, x: X87Insn, l: &X87Layout) {
        if x.kind == X87Kind::Control {
            return self.x87_control(i, l);
        }
        self.x87_live();
        match x.kind {
            X87Kind::Load | X87Kind::Store => self.x87_memory(i, x),
            X87Kind::Move => {
                let condition = self.gpr(i.b);
                asm!(self; test Rq(condition), Rq(condition));
                self.code.extend([FCMOVNE[0], FCMOVNE[1] | x.modrm & 7]);
            }
            _ => self.code.extend([x.opcode, x.modrm]),
        }
        if x.kind == X87Kind::Flags {
            asm!(self; lahf; movzx eax, ah; and eax, BYTE 0x45);
            self.result_of_call();
        }
        self.x87_pointers(i, x, l);
    }

    /// Makes sure that the state is in the host's FPU.
    fn x87_live(&mut self) {
        if std::mem::replace(&mut self.x87_ready, true) {
            return;
        }
        self.x87_home = false;
        let jump = self.jump_if_live(cc::E);
        let info = AccessInfo { ty: Ty::I8, ctx: 0, write: false, insn: self.insn, rest: self.rest }.pack();
        self.cold.push(Cold::X87 { jump, back: self.here(), info });
    }

    /// Makes sure that it is not, before an op on state bytes.
    pub fn x87_to_state(&mut self, off: i32) {
        let Some(l) = self.env.layout.x87 else { return };
        let inside = (l.start as i32..l.end as i32).contains(&off) && off != l.fcw as i32;
        if !inside || std::mem::replace(&mut self.x87_home, true) {
            return;
        }
        self.x87_ready = false;
        let jump = self.jump_if_live(cc::NE);
        self.cold.push(Cold::X87Home { jump, back: self.here() });
    }

    /// After Rust may have collected the state.
    pub fn x87_collected(&mut self) {
        (self.x87_ready, self.x87_home) = (false, true);
    }

    /// `c`: `NE` if it is in the FPU, `E` if not.
    fn jump_if_live(&mut self, c: u8) -> usize {
        let live = self.eng(offset_of!(Engine, fp_live));
        st!(self, live; [test BYTE] [, BYTE LIVE_X87 as i8]);
        self.jcc(c)
    }

    pub fn make_x87_live(&mut self, jump: usize, back: usize, info: u32) -> usize {
        let here = self.here();
        self.point(jump, here);
        let (what, status) = (self.eng(offset_of!(Engine, slow_info)), self.eng(offset_of!(Engine, status)));
        let stub = self.eng(offset_of!(Engine, fns) + 8 * func::X87_LIVE_STUB);
        let image = self.eng(offset_of!(Engine, x87));
        st!(self, what; [mov DWORD] [, DWORD info as i32]);
        st!(self, stub; [call QWORD] []);
        self.cmp_state(false, status, 0);
        let failed = self.jcc(cc::NE);
        st!(self, image; [frstor] []);
        let again = self.jmp();
        self.point(again, back);
        failed
    }

    pub fn take_x87_home(&mut self, jump: usize, back: usize) {
        let here = self.here();
        self.point(jump, here);
        let stub = self.eng(offset_of!(Engine, fns) + 8 * func::X87_HOME_STUB);
        st!(self, stub; [call QWORD] []);
        let again = self.jmp();
        self.point(again, back);
    }

    /// In the FPU all exceptions are masked: none is pending.
    fn x87_wait(&mut self, l: &X87Layout) {
        if self.x87_ready {
            return;
        }
        let live = self.jump_if_live(cc::NE);
        st!(self, l.fsw as i32; [test BYTE] [, BYTE ES]);
        self.leave_if(cc::NE, self.insn as i32, Why::Leave);
        let here = self.here();
        self.point(live, here);
    }

    fn x87_status(&mut self, l: &X87Layout) {
        if self.x87_ready {
            asm!(self; fnstsw ax);
        } else {
            let home = self.jump_if_live(cc::E);
            asm!(self; fnstsw ax);
            let done = self.jmp();
            let here = self.here();
            self.point(home, here);
            st!(self, l.fsw as i32; [mov ax,] []);
            let here = self.here();
            self.point(done, here);
        }
        asm!(self; movzx eax, ax);
        self.result_of_call();
    }

    /// A control word that unmasks exceptions is for the helper.
    fn x87_control(&mut self, i: &Inst, l: &X87Layout) {
        self.copy_to(RAX, i.b);
        asm!(self; mov ecx, eax; not ecx; test ecx, DWORD MASKS);
        self.leave_if(cc::NE, self.insn as i32, Why::Leave);
        asm!(self; and eax, DWORD CONTROL; or eax, BYTE RESERVED as i8);
        self.store_state(Ty::I16, l.fcw as i32, RAX);
        let home = if self.x87_ready { None } else { Some(self.jump_if_live(cc::E)) };
        st!(self, l.fcw as i32; [fldcw] []);
        if let Some(home) = home {
            let here = self.here();
            self.point(home, here);
        }
    }

    fn x87_memory(&mut self, i: &Inst, x: X87Insn) {
        // For ten bytes sixteen are asked for: where that is too much the instruction runs alone.
        let ty = Ty::ALL.into_iter().find(|t| t.bytes() >= u32::from(x.bytes)).unwrap_or(Ty::V128);
        let access = Inst { ty, a: i.b, imm: 0, aux: x.ctx.into(), ..*i };
        // Nothing is added to it, so it is what is in the register.
        let va = self.check(&access, x.kind == X87Kind::Store).base;
        const SIB: u8 = 4;
        if va >= 8 {
            self.code.extend([0x42]);
        }
        self.code.extend([x.opcode, x.modrm & 0x38 | SIB, (va & 7) << 3 | RCX]);
    }

    /// Pointers of the instruction and its operand.
    fn x87_pointers(&mut self, i: &Inst, x: X87Insn, l: &X87Layout) {
        let selector = |n: u32| (l.selectors + n * l.selector_step) as i32;
        let page = self.page_off();
        st!(self, page; [mov rax,] []);
        self.add_imm(RAX, self.insn.into());
        self.mask_pc(RAX);
        st!(self, l.fip as i32; [mov] [, rax]);
        st!(self, selector(l.cs); [mov ax,] []);
        st!(self, l.fcs as i32; [mov] [, ax]);
        if matches!(x.kind, X87Kind::Load | X87Kind::Store) {
            self.copy_to(RAX, i.c);
            st!(self, l.fdp as i32; [mov] [, rax]);
            st!(self, selector(u32::from(x.seg) % 6); [mov ax,] []);
            st!(self, l.fds as i32; [mov] [, ax]);
        }
    }
}
