//! What `rhea-diff` found, as text.

use super::Machine;
use serde_json::Value;
use std::fmt::{self, Display, Formatter};
use vm_core::GuestCpu;

/// Differing stretches of memory that are shown.
const SHOWN: usize = 16;

/// The first difference between two machines.
pub struct Difference {
    names: [String; 2],
    /// Instructions executed when the machines differ for the first time.
    pub count: u64,
    /// Program counter and text of the instruction to blame.
    pub pc: u64,
    pub text: String,
    bytes: Vec<u8>,
    /// Where no single instruction is: program counters and texts of those before, the last among them.
    block: Option<Vec<(u64, String)>>,
    registers: [String; 2],
    /// Field, and its value on each side.
    fields: Vec<(String, String, String)>,
    /// First byte (offset in RAM), and the bytes on each side.
    memory: Vec<(u64, Vec<u8>, Vec<u8>)>,
}

impl Difference {
    pub(super) fn new(
        pair: &mut [Machine; 2],
        names: &[String; 2],
        count: u64,
        (pc, bytes): (u64, Vec<u8>),
        block: Option<Vec<(u64, Vec<u8>)>>,
        disassemble: fn(u64, u64, &[u8]) -> String,
    ) -> Self {
        let mode = pair[0].runner.cpus[0].engine.cpu().mode;
        let text = |pc: u64, bytes: &[u8]| disassemble(mode, pc, bytes);
        let block = block.map(|b| b.iter().map(|(pc, bytes)| (*pc, text(*pc, bytes))).collect());
        let text = text(pc, &bytes);
        let registers = pair.each_mut().map(|m| m.runner.cpus[0].engine.cpu().dump());
        Self { names: names.clone(), count, pc, text, bytes, block, registers, fields: fields(pair), memory: memory(pair) }
    }
}

/// All that differs in the saved state but RAM.
fn fields(pair: &mut [Machine; 2]) -> Vec<(String, String, String)> {
    let [a, b] = pair.each_mut().map(|m| {
        let cpu = m.runner.cpus[0].engine.cpu().save(0);
        std::iter::once(cpu).chain(m.runner.board.save()).collect::<Vec<_>>()
    });
    let mut out = Vec::new();
    for (a, b) in a.iter().zip(&b) {
        walk(&a.name, &a.data, &b.data, &mut out);
    }
    out
}

fn walk(path: &str, a: &Value, b: &Value, out: &mut Vec<(String, String, String)>) {
    match (a, b) {
        _ if a == b => {}
        (Value::Object(x), Value::Object(y)) => {
            x.iter().for_each(|(k, v)| walk(&format!("{path}.{k}"), v, y.get(k).unwrap_or(&Value::Null), out));
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().for_each(|(i, (v, w))| walk(&format!("{path}[{i}]"), v, w, out));
        }
        _ => out.push((path.to_owned(), number(a), number(b))),
    }
}

fn number(v: &Value) -> String {
    v.as_u64().map_or_else(|| v.to_string(), |n| format!("{n:#x}"))
}

/// Stretches of RAM that differ.
fn memory(pair: &mut [Machine; 2]) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
    let [a, b] = pair;
    let mut out: Vec<(u64, Vec<u8>, Vec<u8>)> = Vec::new();
    for page in a.ram.differing(&b.ram) {
        let (mut x, mut y) = ([0; 4096], [0; 4096]);
        a.runner.board.ram.read(page << 12, &mut x);
        b.runner.board.ram.read(page << 12, &mut y);
        for (i, (p, q)) in x.iter().zip(&y).enumerate().filter(|(_, (p, q))| p != q) {
            let at = (page << 12) + i as u64;
            let full = out.len() == SHOWN;
            match out.last_mut() {
                Some((start, v, w)) if *start + v.len() as u64 == at && v.len() < 16 => {
                    v.push(*p);
                    w.push(*q);
                }
                _ if full => return out,
                _ => out.push((at, vec![*p], vec![*q])),
            }
        }
    }
    out
}

struct Hex<'a>(&'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.names;
        writeln!(f, "equal up to instruction {}; they differ after instruction {}:", self.count - 1, self.count)?;
        writeln!(f, "  {:#x}: {}    ({})", self.pc, self.text, Hex(&self.bytes))?;
        if let Some(block) = &self.block {
            writeln!(f, "no instruction differs alone; executed before, perhaps in one block:")?;
            block.iter().try_for_each(|(pc, text)| writeln!(f, "  {pc:#x}: {text}"))?;
        }
        writeln!(f, "what differs, {a} / {b}:")?;
        self.fields.iter().try_for_each(|(name, x, y)| writeln!(f, "  {name}: {x} / {y}"))?;
        for (at, x, y) in &self.memory {
            writeln!(f, "  RAM {at:#x}: {} / {}", Hex(x), Hex(y))?;
        }
        for (name, text, other) in [(a, &self.registers[0], &self.registers[1]), (b, &self.registers[1], &self.registers[0])] {
            writeln!(f, "registers of {name} (* differs):")?;
            let lines = text.lines().zip(other.lines().chain(std::iter::repeat("")));
            lines.into_iter().try_for_each(|(l, o)| writeln!(f, "{} {l}", if l == o { ' ' } else { '*' }))?;
        }
        Ok(())
    }
}
