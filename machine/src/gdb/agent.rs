//! Agent expressions (GDB manual, appendix "The GDB Agent Expression Mechanism"): conditions of breakpoints, as bytecode.

/// Operands that an expression may hold.
const STACK: usize = 64;
/// Instructions that one evaluation may take.
const STEPS: u32 = 10_000;

/// Where an expression gets its values.
pub trait Context {
    /// Value of a register by its number in the target description, its lowest 64 bits.
    fn register(&mut self, number: u16) -> Option<u64>;
    /// Little-endian value of `size` bytes at a linear address.
    fn memory(&mut self, at: u64, size: u8) -> Option<u64>;
}

/// The value on top of the stack at the end. `None`: the expression is broken, or cannot be evaluated here.
pub fn evaluate(code: &[u8], context: &mut dyn Context) -> Option<u64> {
    Run { code, at: 0, stack: Vec::with_capacity(16), context }.run()
}

struct Run<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<u64>,
    context: &'a mut dyn Context,
}

impl Run<'_> {
    /// The next `n` bytes, big-endian.
    fn operand(&mut self, n: usize) -> Option<u64> {
        let bytes = self.code.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(bytes.iter().fold(0, |v, b| v << 8 | u64::from(*b)))
    }

    fn pop(&mut self) -> Option<u64> {
        self.stack.pop()
    }

    fn push(&mut self, v: u64) -> Option<()> {
        (self.stack.len() < STACK).then(|| self.stack.push(v))
    }

    fn binary(&mut self, f: impl Fn(u64, u64) -> Option<u64>) -> Option<()> {
        let (b, a) = (self.pop()?, self.pop()?);
        self.push(f(a, b)?)
    }

    fn unary(&mut self, f: impl Fn(u64) -> u64) -> Option<()> {
        let a = self.pop()?;
        self.push(f(a))
    }

    fn run(&mut self) -> Option<u64> {
        for _ in 0..STEPS {
            let op = self.operand(1)?;
            // "end"
            if op == 0x27 {
                return self.stack.last().copied();
            }
            self.one(op)?;
        }
        None
    }

    fn one(&mut self, op: u64) -> Option<()> {
        let signed = |v: u64| v as i64;
        match op {
            0x02 => self.binary(|a, b| Some(a.wrapping_add(b))),
            0x03 => self.binary(|a, b| Some(a.wrapping_sub(b))),
            0x04 => self.binary(|a, b| Some(a.wrapping_mul(b))),
            0x05 => self.binary(|a, b| (b != 0).then(|| signed(a).wrapping_div(signed(b)) as u64)),
            0x06 => self.binary(|a, b| a.checked_div(b)),
            0x07 => self.binary(|a, b| (b != 0).then(|| signed(a).wrapping_rem(signed(b)) as u64)),
            0x08 => self.binary(|a, b| a.checked_rem(b)),
            0x09 => self.binary(|a, b| Some(if b < 64 { a << b } else { 0 })),
            0x0a => self.binary(|a, b| Some((signed(a) >> b.min(63)) as u64)),
            0x0b => self.binary(|a, b| Some(if b < 64 { a >> b } else { 0 })),
            0x0e => self.unary(|a| (a == 0).into()),
            0x0f => self.binary(|a, b| Some(a & b)),
            0x10 => self.binary(|a, b| Some(a | b)),
            0x11 => self.binary(|a, b| Some(a ^ b)),
            0x12 => self.unary(|a| !a),
            0x13 => self.binary(|a, b| Some((a == b).into())),
            0x14 => self.binary(|a, b| Some((signed(a) < signed(b)).into())),
            0x15 => self.binary(|a, b| Some((a < b).into())),
            0x16 => {
                let n = self.operand(1)? as u32;
                self.unary(|a| extend(a, n, true))
            }
            0x17..=0x1a => {
                let size = 1 << (op - 0x17);
                let at = self.pop()?;
                let v = self.context.memory(at, size)?;
                self.push(v)
            }
            0x20 | 0x21 => {
                let to = self.operand(2)? as usize;
                if op == 0x21 || self.pop()? != 0 {
                    self.at = to;
                }
                Some(())
            }
            0x22..=0x25 => {
                let v = self.operand(1 << (op - 0x22))?;
                self.push(v)
            }
            0x26 => {
                let number = self.operand(2)? as u16;
                let v = self.context.register(number)?;
                self.push(v)
            }
            0x28 => {
                let top = *self.stack.last()?;
                self.push(top)
            }
            0x29 => self.pop().map(|_| ()),
            0x2a => {
                let n = self.operand(1)? as u32;
                self.unary(|a| extend(a, n, false))
            }
            0x2b => {
                let (b, a) = (self.pop()?, self.pop()?);
                self.push(b)?;
                self.push(a)
            }
            0x32 => {
                let back = self.operand(1)? as usize;
                let v = *self.stack.get(self.stack.len().checked_sub(back + 1)?)?;
                self.push(v)
            }
            // "rot": a b c gives c a b, c on top before.
            0x33 => {
                let (c, b, a) = (self.pop()?, self.pop()?, self.pop()?);
                [c, a, b].into_iter().try_for_each(|v| self.push(v))
            }
            // Floating point, trace state variables, tracing.
            _ => None,
        }
    }
}

/// The lowest `bits` bits, with their sign or without.
fn extend(v: u64, bits: u32, sign: bool) -> u64 {
    match bits {
        0 => 0,
        64.. => v,
        n if sign => ((v << (64 - n)) as i64 >> (64 - n)) as u64,
        n => v & ((1 << n) - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Context for Fixed {
        fn register(&mut self, number: u16) -> Option<u64> {
            (number < 4).then_some(100 + u64::from(number))
        }

        fn memory(&mut self, at: u64, size: u8) -> Option<u64> {
            (at == 0x1000).then_some(0x1122_3344_5566_7788 & (u64::MAX >> (64 - 8 * u32::from(size))))
        }
    }

    fn of(code: &[u8]) -> Option<u64> {
        evaluate(code, &mut Fixed)
    }

    #[test]
    fn registers_memory_and_comparisons() {
        // reg 1 == 101
        assert_eq!(of(&[0x26, 0, 1, 0x22, 101, 0x13, 0x27]), Some(1));
        // *(int *) 0x1000, sign-extended from 32 bits
        assert_eq!(of(&[0x23, 0x10, 0, 0x19, 0x16, 32, 0x27]), Some(0x5566_7788));
        assert_eq!(of(&[0x22, 0x80, 0x16, 8, 0x27]), Some(-128i64 as u64));
        // if 0 goto end; else push 7
        assert_eq!(of(&[0x22, 0, 0x20, 0, 7, 0x22, 7, 0x27]), Some(7));
        assert_eq!(of(&[0x22, 1, 0x22, 2, 0x22, 3, 0x33, 0x27]), Some(2));
    }

    #[test]
    fn broken_expressions_end() {
        let loops = [0x21, 0, 0];
        for code in [&[][..], &[0x02], &[0x22], &loops, &[0x26, 0, 9, 0x27], &[0x22, 1, 0x22, 0, 0x05, 0x27], &[0x27], &[0x01]] {
            assert_eq!(of(code), None, "{code:?}");
        }
        // Pushes without end.
        assert_eq!(of(&[0x22, 1, 0x21, 0, 0]), None);
        let min = [0x25, 0x80, 0, 0, 0, 0, 0, 0, 0];
        let by_minus_one = [&min[..], &[0x22, 0xff, 0x16, 8, 0x05, 0x27]].concat();
        assert_eq!(of(&by_minus_one), Some(1 << 63));
    }
}
