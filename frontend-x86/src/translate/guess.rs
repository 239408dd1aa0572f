//! Guesses of what made the flags that a block begins with. Compilers put several branches behind one comparison, so that the block
//! behind the first of them begins with a condition; nearly always it is the same instruction that made the flags there
//! (`CodeFetch::guess`). One comparison makes sure, and conditions are as direct as behind the instruction itself.

use super::Tr;
use super::flags::Lazy;
use crate::layout::{CC_DST, CC_OP, CC_SRC};
use arch_x86::flags::CcKind;
use ir::{Cond, Op, Ty, Val};

impl Tr<'_> {
    /// Nothing of the current instruction may have been done yet.
    pub(super) fn guess_flags(&mut self) {
        let Some(op) = self.guess.take() else { return };
        let Some((kind, bytes)) = CcKind::of(op) else { return };
        if matches!(kind, CcKind::Adc | CcKind::Sbb) {
            return;
        }
        let now = self.b.get(Ty::I32, CC_OP, 0);
        let wrong = self.b.cmp_imm(Cond::Ne, now, op.into());
        self.b.leave_if(wrong);
        self.b.guesses = Some(self.off as u32);
        self.lazy = self.guessed(kind, Ty::int(bytes));
    }

    fn guessed(&mut self, kind: CcKind, ty: Ty) -> Lazy {
        let (dst, src) = (self.b.get(Ty::I64, CC_DST, 0), self.b.get(Ty::I64, CC_SRC, 0));
        let (x, y) = (self.b.zext(ty, dst), self.b.zext(ty, src));
        let made = |a: Val, b: Val, res: Val| Lazy::made(kind, ty, [a, b, res]);
        match kind {
            CcKind::Add => {
                let a = self.b.bin(Op::Sub, x, y);
                made(a, y, x)
            }
            CcKind::Sub => {
                let res = self.b.bin(Op::Sub, x, y);
                made(x, y, res)
            }
            CcKind::Inc | CcKind::Dec => {
                let mut lazy = made(Val::NONE, Val::NONE, x);
                lazy.aux = self.b.zext(Ty::I8, src);
                lazy
            }
            CcKind::Bits => {
                let mut lazy = made(Val::NONE, Val::NONE, Val::NONE);
                (lazy.bits, lazy.all) = (src, src);
                lazy
            }
            CcKind::CfOf => made(Val::NONE, src, x),
            _ => made(Val::NONE, y, x),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::X86;
    use crate::testing::{CodePage, FlatMemory};
    use arch_x86::Mode;
    use arch_x86::flags::{Cc, bit, condition};
    use ir::{Block, CodeFetch, Frontend, Interp, Outcome, StateLayout};
    use vm_core::Fault;

    struct Guessed(CodePage, u32);

    impl CodeFetch for Guessed {
        type Fault = ();
        fn page(&self) -> &[u8; 4096] {
            self.0.page()
        }
        fn next_page(&mut self) -> Result<&[u8; 4096], ()> {
            self.0.next_page()
        }
        fn guess(&self) -> Option<u32> {
            Some(self.1)
        }
    }

    const MODE: u64 = 2 << Mode::CODE_SHIFT | Mode::FLAT | Mode::PE | Mode::LMA | 3;

    /// SETcc AL behind a guess.
    fn setcc(x: &X86, cc: u8, guess: u32) -> Block {
        let mut b = Block::default();
        let code = CodePage::new(&[0x0f, 0x90 | cc, 0xc0]);
        x.translate(MODE, 0, 1, &mut Guessed(code, guess), &mut b).expect("within the page");
        ir::verify::verify(&b, x.layout(), x.helpers()).expect("well formed");
        b
    }

    fn run(x: &X86, block: &Block, cc: Cc) -> (Vec<u8>, Outcome<Fault>) {
        let l: &StateLayout = x.layout();
        let mut state = vec![0; l.size as usize];
        for (name, v) in [("cc_op", cc.op.into()), ("cc_dst", cc.dst), ("cc_src", cc.src), ("cc_aux", cc.aux)] {
            let slot = l.slot(l.find(name).expect("a slot"));
            state[slot.offset as usize..][..slot.size as usize].copy_from_slice(&v.to_le_bytes()[..slot.size as usize]);
        }
        let mut flags = |_: &mut [u8], _: &mut FlatMemory, _, [op, dst, src]: [u64; 3]| {
            Ok(Cc { op: op as u32, dst, src, aux: op >> 32 }.eflags())
        };
        let end = Interp { layout: l, helpers: x.helpers(), mode: MODE }.run(
            block,
            &mut state,
            &mut FlatMemory { base: 0, bytes: Vec::new() },
            &mut flags,
        );
        (state, end)
    }

    #[test]
    fn guessed_flags_are_what_the_lazy_form_means() {
        let x = X86::new([!0; 16]);
        let values = [0u64, 1, !0, 0x7f, !0x7f, 0x7fff, 0x7fff_ffff, !0x7fff_ffff, i64::MAX as u64, 1 << 63, 0x841, 0x8d5];
        let rax = x.layout().slot(x.layout().find("rax").expect("a slot")).offset as usize;
        for (op, cc) in (0..48u32).flat_map(|op| (0..16u8).map(move |cc| (op, cc))) {
            let block = setcc(&x, cc, op);
            let bits = 8 << (op & 3);
            let extend = |v: u64| ((v << (64 - bits)) as i64 >> (64 - bits)) as u64;
            for (dst, src) in values.iter().flat_map(|a| values.map(|b| (extend(*a), extend(b)))) {
                // What is not an operand has a range of its own.
                let src = match op >> 2 {
                    0 => src & bit::ARITH,
                    4 | 5 => src & 1,
                    6 => src & (bit::CF | bit::OF),
                    _ => src,
                };
                let made = Cc { op, dst, src, aux: 0 };
                let (state, end) = run(&x, &block, made);
                assert_eq!(end, Outcome::Jump { to: 3 });
                assert_eq!(state[rax] != 0, condition(cc, made.eflags()), "{cc:x} after {made:x?}");
            }
        }
    }

    #[test]
    fn a_wrong_guess_leaves_with_nothing_done() {
        let x = X86::new([!0; 16]);
        let block = setcc(&x, 4, 11);
        assert_eq!(block.guesses, Some(0));
        let (state, end) = run(&x, &block, Cc { op: 10, dst: 1, src: 1, aux: 0 });
        assert_eq!(end, Outcome::Leave { at: 0 });
        let rax = x.layout().slot(x.layout().find("rax").expect("a slot")).offset as usize;
        assert_eq!(state[rax], 0);
    }
}
