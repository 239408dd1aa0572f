//! Reads the text form of a block (docs/ir.md, "Text"); the inverse of `display`. It checks the syntax and the names;
//! the rest is the verifier's work, so that ill-formed blocks can be written down too.

use crate::block::{Block, Inst, Val};
use crate::display::HINTS;
use crate::fp::FpOp;
use crate::layout::{HelperDesc, StateLayout};
use crate::ops::{Op, Res};
use crate::tri::TriOp;
use crate::types::{Cond, Rmw, Ty};
use crate::vec::{VecOp, VecShift};

/// What is wrong with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Line number, from 1.
    pub line: usize,
    pub message: String,
}

type Parsed<T> = Result<T, String>;

/// Parses one block. Blank lines and comments (`;` to the end of the line) do not count; value numbers are free names.
pub fn parse(text: &str, layout: &StateLayout, helpers: &[HelperDesc]) -> Result<Block, ParseError> {
    let mut block = Block::default();
    let mut names = Names::default();
    let mut header = false;
    let lines = text.lines().enumerate().map(|(n, l)| (n + 1, tokens(l.split(';').next().unwrap_or_default())));
    let lines: Vec<(usize, Parsed<Vec<&str>>)> = lines.filter(|(_, t)| t.as_ref().map_or(true, |t| !t.is_empty())).collect();
    // Values get their numbers first, so that a use before the definition reaches the verifier.
    for (k, (_, toks)) in lines.iter().skip(1).enumerate() {
        if let Ok([name, ":", ..]) = toks.as_deref() {
            names.0.push((name, Val(k as u32)));
        }
    }
    for (line, toks) in &lines {
        let done = toks.clone().and_then(|t| {
            let mut p = Parser { toks: &t, layout, helpers, names: &names };
            if header {
                let i = p.inst()?;
                block.guest_insns += u32::from(i.op == Op::Insn);
                block.insts.push(i);
            } else {
                p.header(&mut block)?;
                header = true;
            }
            p.toks.first().map_or(Ok(()), |t| Err(format!("`{t}` after the end of the op")))
        });
        done.map_err(|message| ParseError { line: *line, message })?;
    }
    if !header {
        return Err(ParseError { line: 1, message: "no block".into() });
    }
    Ok(block)
}

/// Splits a line into words (letters, digits, `_ . # %`), `..` and single signs.
fn tokens(line: &str) -> Parsed<Vec<&str>> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '#' | '%');
    let mut rest = line.trim_start();
    let mut out = Vec::new();
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '.' if rest.starts_with("..") => 2,
            c if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            '.' | ',' | ':' | '=' | '+' | '-' | '[' | ']' | '(' | ')' => 1,
            c => return Err(format!("unexpected `{c}`")),
        };
        out.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    Ok(out)
}

#[derive(Default)]
struct Names<'a>(Vec<(&'a str, Val)>);

struct Parser<'a, 't> {
    toks: &'t [&'a str],
    layout: &'t StateLayout,
    helpers: &'t [HelperDesc],
    names: &'t Names<'a>,
}

impl<'a> Parser<'a, '_> {
    fn next(&mut self) -> Parsed<&'a str> {
        let (t, rest) = self.toks.split_first().ok_or("the line ends too early")?;
        self.toks = rest;
        Ok(t)
    }

    fn eat(&mut self, want: &str) -> bool {
        let hit = self.toks.first() == Some(&want);
        if hit {
            self.toks = &self.toks[1..];
        }
        hit
    }

    fn expect(&mut self, want: &str) -> Parsed<()> {
        if self.eat(want) {
            Ok(())
        } else {
            Err(format!("`{want}` expected, not `{}`", self.toks.first().unwrap_or(&"end of line")))
        }
    }

    fn header(&mut self, block: &mut Block) -> Parsed<()> {
        self.expect("block")?;
        block.start = u32::try_from(self.signed()?).map_err(|_| "negative start")?;
        self.expect("..")?;
        block.next = self.signed()?;
        block.straddles = self.eat("straddles");
        Ok(())
    }

    fn wide(&mut self) -> Parsed<u128> {
        let t = self.next()?;
        let n = match t.strip_prefix("0x") {
            Some(hex) => u128::from_str_radix(hex, 16),
            None => t.parse(),
        };
        n.map_err(|_| format!("number expected, not `{t}`"))
    }

    fn number(&mut self) -> Parsed<u64> {
        let n = self.wide()?;
        u64::try_from(n).map_err(|_| format!("{n} is too large"))
    }

    fn small(&mut self) -> Parsed<u16> {
        let n = self.number()?;
        u16::try_from(n).map_err(|_| format!("{n} is too large"))
    }

    /// Number with an obligatory sign.
    fn signed(&mut self) -> Parsed<i64> {
        let minus = self.eat("-");
        if !minus {
            self.expect("+")?;
        }
        let n = self.number()? as i64;
        Ok(if minus { n.wrapping_neg() } else { n })
    }

    /// Sign and number, or nothing for 0.
    fn displacement(&mut self) -> Parsed<i64> {
        if matches!(self.toks.first(), Some(&("+" | "-"))) { self.signed() } else { Ok(0) }
    }

    fn ty(&mut self) -> Parsed<Ty> {
        let t = self.next()?;
        Ty::ALL.into_iter().find(|ty| ty.name() == t).ok_or_else(|| format!("no type `{t}`"))
    }

    fn val(&mut self) -> Parsed<Val> {
        let t = self.next()?;
        if t == "%none" {
            return Ok(Val::NONE);
        }
        // The last definition of the name wins; one name, one value is what the printer writes.
        let found = self.names.0.iter().rev().find(|(n, _)| *n == t);
        found.map(|(_, v)| *v).ok_or_else(|| format!("no value `{t}`"))
    }

    /// Index of a name in a table, or the number of `what#number`.
    fn name(&mut self, what: &str, find: impl Fn(&str) -> Option<usize>) -> Parsed<u16> {
        let t = self.next()?;
        let number = t.strip_prefix(what).and_then(|t| t.strip_prefix('#')).and_then(|t| t.parse().ok());
        number.or_else(|| find(t).map(|i| i as u16)).ok_or_else(|| format!("no {what} `{t}`"))
    }

    fn ctx(&mut self) -> Parsed<u16> {
        let t = self.next()?;
        t.strip_prefix("ctx").and_then(|t| t.parse().ok()).ok_or_else(|| format!("access context expected, not `{t}`"))
    }

    /// `ctxN [%a + 0x10]`: context, and address and displacement into `i`.
    fn memory(&mut self, i: &mut Inst) -> Parsed<u16> {
        let ctx = self.ctx()?;
        self.expect("[")?;
        i.a = self.val()?;
        i.imm = self.displacement()?;
        self.expect("]")?;
        Ok(ctx)
    }

    fn comma(&mut self) -> Parsed<Val> {
        self.expect(",")?;
        self.val()
    }

    fn inst(&mut self) -> Parsed<Inst> {
        let mut result = None;
        if let [name, ":", ..] = self.toks {
            if self.names.0.iter().filter(|(n, _)| n == name).count() > 1 || !name.starts_with('%') {
                return Err(format!("`{name}` is defined twice or is no value name"));
            }
            self.toks = &self.toks[2..];
            result = Some(self.ty()?);
            self.expect("=")?;
        }
        let t = self.next()?;
        let op = Op::ALL.iter().copied().find(|o| o.name() == t).ok_or_else(|| format!("no op `{t}`"))?;
        let ty = self.inst_ty(op, result)?;
        let mut i = Inst::new(op, ty);
        self.fields(&mut i)?;
        Ok(i)
    }

    /// `Inst::ty` from the result's type, the suffix or the op.
    fn inst_ty(&mut self, op: Op, result: Option<Ty>) -> Parsed<Ty> {
        let suffix = if self.eat(".") { Some(self.ty()?) } else { None };
        match (op.result(), result) {
            (Res::None, Some(_)) => return Err(format!("`{}` has no result", op.name())),
            (Res::Ty | Res::Fixed(_), None) => return Err(format!("`{}` has a result", op.name())),
            (Res::Fixed(t), Some(r)) if t != r => return Err(format!("the result of `{}` is {}", op.name(), t.name())),
            _ => {}
        }
        match (op, op.result()) {
            (Op::Set | Op::Store | Op::Cmp, _) => {
                suffix.ok_or_else(|| format!("`{}` needs the type of its operand: `{}.i32`", op.name(), op.name()))
            }
            _ if suffix.is_some() => Err(format!("`{}` takes no type", op.name())),
            (Op::VLane | Op::VSetLane | Op::VMask | Op::FpGet | Op::FpSet, _) => Ok(Ty::V128),
            (Op::RaiseIf | Op::LeaveIf | Op::Side | Op::Br, _) => Ok(Ty::I8),
            (_, Res::Fixed(t)) => Ok(t),
            (_, Res::None) => Ok(Ty::I64),
            (_, Res::Ty) => Ok(result.unwrap_or(Ty::I64)),
        }
    }

    fn fields(&mut self, i: &mut Inst) -> Parsed<()> {
        match i.op {
            Op::Insn => {
                i.imm = self.signed()?;
                self.expect(",")?;
                i.aux = self.small()?;
            }
            Op::Const => i.imm = self.number()? as i64,
            Op::PcRel | Op::Source => i.imm = self.signed()?,
            Op::Jump => {
                i.imm = self.signed()?;
                if self.eat(",") {
                    i.aux = self.name("hint", |t| HINTS.iter().position(|h| *h == t))?;
                }
            }
            Op::Get | Op::Set => {
                let layout = self.layout;
                i.aux = self.name("slot", |t| layout.find(t).map(|s| s.0.into()))?;
                i.imm = self.displacement()?;
                if i.op == Op::Set {
                    i.a = self.val()?;
                }
            }
            Op::Cmp => {
                i.aux = self.name("cond", |t| Cond::ALL.iter().position(|c| c.name() == t))?;
                self.operands(i)?;
            }
            Op::Vec => {
                i.aux = self.name("vecop", |t| VecOp::ALL.iter().position(|c| c.name() == t))?;
                self.operands(i)?;
            }
            Op::VFp | Op::FpGet | Op::FpSet => {
                i.aux = self.name("fpop", |t| FpOp::ALL.iter().position(|c| c.name() == t))?;
                self.operands(i)?;
            }
            Op::VTri => {
                i.aux = self.name("triop", |t| TriOp::ALL.iter().position(|c| c.name() == t))?;
                self.operands(i)?;
            }
            Op::VShift => {
                i.aux = self.name("vecshift", |t| VecShift::ALL.iter().position(|c| c.name() == t))?;
                i.a = self.val()?;
                self.expect(",")?;
                i.imm = self.small()?.into();
            }
            Op::VShuffle => {
                self.operands(i)?;
                self.expect(",")?;
                let mask = self.wide()?;
                i.aux = u16::try_from(mask >> 64).map_err(|_| "the mask has 80 bits")?;
                i.imm = mask as u64 as i64;
            }
            Op::Load | Op::Store | Op::ProbeW | Op::AtomicRmw | Op::AtomicCas => self.access(i)?,
            Op::VLane | Op::VMask => {
                i.a = self.val()?;
                self.expect(",")?;
                i.aux = self.small()?;
            }
            Op::VSetLane => {
                i.a = self.val()?;
                self.expect(",")?;
                i.aux = self.small()?;
                i.b = self.comma()?;
            }
            Op::Call => self.call(i)?,
            Op::RaiseIf => {
                i.a = self.val()?;
                self.expect(",")?;
                i.aux = self.small()?;
                i.imm = -1;
                if self.eat(",") {
                    self.expect("error")?;
                    i.imm = self.number()? as i64;
                }
            }
            Op::Br | Op::Side => {
                i.a = self.val()?;
                self.expect(",")?;
                i.imm = self.signed()?;
            }
            Op::JumpInd => {
                i.a = self.val()?;
                self.expect(",")?;
                i.aux = self.name("hint", |t| HINTS.iter().position(|h| *h == t))?;
            }
            _ => self.operands(i)?,
        }
        Ok(())
    }

    /// As many operands as the op has.
    fn operands(&mut self, i: &mut Inst) -> Parsed<()> {
        for (k, v) in [&mut i.a, &mut i.b, &mut i.c].into_iter().take(i.op.args() as usize).enumerate() {
            *v = if k == 0 { self.val()? } else { self.comma()? };
        }
        Ok(())
    }

    fn access(&mut self, i: &mut Inst) -> Parsed<()> {
        let high = match i.op {
            Op::ProbeW => self.small()?,
            Op::AtomicRmw => self.name("rmw", |t| Rmw::ALL.iter().position(|r| r.name() == t))?,
            _ => 0,
        };
        i.aux = self.memory(i)? | high.checked_mul(4).ok_or("number too large")?;
        if i.op.args() > 1 {
            i.b = self.comma()?;
        }
        if i.op.args() > 2 {
            i.c = self.comma()?;
        }
        Ok(())
    }

    fn call(&mut self, i: &mut Inst) -> Parsed<()> {
        let helpers = self.helpers;
        i.aux = self.name("helper", |t| helpers.iter().position(|h| h.name == t))?;
        self.expect("(")?;
        let mut args = Vec::new();
        while !self.eat(")") {
            if !args.is_empty() {
                self.expect(",")?;
            }
            args.push(self.val()?);
        }
        if args.len() > 3 {
            return Err("more than three operands".into());
        }
        i.imm = args.len() as i64;
        for (to, v) in [&mut i.a, &mut i.b, &mut i.c].into_iter().zip(args) {
            *to = v;
        }
        Ok(())
    }
}
