//! Traces as text: address, symbol, instruction, registers that it changed, accesses.

use super::format::{Insn, NAMES, REGS, Records};
use frontend_x86::X86;
use goblin::elf::Elf;
use ir::Frontend;
use std::fmt::{Display, Write as _};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;
use vm_core::observe::Touch;

/// Symbols by address: of an ELF file, or of lines as /proc/kallsyms and System.map have them.
#[derive(Default)]
pub struct Symbols(Vec<(u64, String)>);

/// Bytes of a file of symbols at most; that of a kernel with all its debugging data has some hundred million.
const MOST: u64 = 1 << 30;

impl Symbols {
    /// Reads a file. `Err`: what is wrong with it, its name first.
    pub fn open(path: &Path) -> Result<Self, String> {
        let failed = |e: &dyn Display| format!("{}: {e}", path.display());
        // Others may have no end.
        let about = std::fs::metadata(path).map_err(|e| failed(&e))?;
        if !about.is_file() || about.len() > MOST {
            return Err(failed(&"not a regular file of at most 1 GiB"));
        }
        Self::read(&std::fs::read(path).map_err(|e| failed(&e))?).map_err(|e| failed(&e))
    }

    pub fn read(file: &[u8]) -> Result<Self, String> {
        let mut list = match Elf::parse(file) {
            Ok(elf) => {
                let name =
                    |s: goblin::elf::Sym| Some((s.st_value, elf.strtab.get_at(s.st_name).filter(|n| !n.is_empty())?.to_owned()));
                elf.syms.iter().filter(|s| s.st_shndx != 0 && s.st_type() < 3).filter_map(name).collect()
            }
            Err(_) => lines(file).ok_or("neither an ELF file nor a list of addresses, letters and names")?,
        };
        list.sort();
        Ok(Self(list))
    }

    /// The last symbol at or before an address.
    pub fn name(&self, va: u64) -> Option<(&str, u64)> {
        let i = self.0.partition_point(|s| s.0 <= va).checked_sub(1)?;
        Some((&self.0[i].1, va - self.0[i].0))
    }

    /// From a symbol to the next.
    pub fn range(&self, name: &str) -> Option<Range<u64>> {
        let start = self.0.iter().find(|s| s.1 == name)?.0;
        let end = self.0[self.0.partition_point(|s| s.0 <= start)..].first().map_or(u64::MAX, |s| s.0);
        Some(start..end)
    }
}

fn lines(file: &[u8]) -> Option<Vec<(u64, String)>> {
    let line = |l: &str| {
        let mut words = l.split_whitespace();
        let at = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((at, words.nth(1)?.to_owned()))
    };
    let list: Vec<_> = std::str::from_utf8(file).ok()?.lines().filter_map(line).collect();
    (!list.is_empty()).then_some(list)
}

fn text(x86: &X86, symbols: &Symbols, cpu: u32, insn: &Insn, next: Option<&Insn>, touches: &[Touch]) -> String {
    let mut t = format!("{cpu} {:016x} ", insn.va);
    if let Some((name, off)) = symbols.name(insn.va).filter(|(_, off)| *off < 1 << 20) {
        let _ = write!(t, "<{name}+{off:#x}> ");
    }
    t += &x86.disassemble(insn.mode, insn.va, &insn.bytes).0;
    for i in (0..REGS).filter(|i| next.is_some_and(|n| n.regs[*i] != insn.regs[*i])) {
        let _ = write!(t, "  {}={:#x}", NAMES[i], next.map_or(0, |n| n.regs[i]));
    }
    for a in touches {
        let _ = write!(t, "  {}{}[{:#x}]={:#x}", if a.write { 'w' } else { 'r' }, a.size, a.va.0, a.value);
    }
    t + "\n"
}

/// Writes a trace as text, a line for each instruction.
pub fn show(trace: impl Read, symbols: &Symbols, to: &mut impl Write) -> io::Result<()> {
    let x86 = X86::new([0; 16]);
    // What an instruction has changed is in the CPU's next record.
    let mut waiting: Vec<Option<(Insn, Vec<Touch>)>> = Vec::new();
    for record in Records::new(trace)? {
        let (cpu, insn, touches) = record?;
        let n = cpu as usize;
        if waiting.len() <= n {
            waiting.resize(n + 1, None);
        }
        if let Some((old, old_touches)) = waiting[n].take() {
            to.write_all(text(&x86, symbols, cpu, &old, Some(&insn), &old_touches).as_bytes())?;
        }
        waiting[n] = Some((insn, touches));
    }
    for (cpu, last) in (0..).zip(waiting) {
        if let Some((insn, touches)) = last {
            to.write_all(text(&x86, symbols, cpu, &insn, None, &touches).as_bytes())?;
        }
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::super::format::Writer;
    use super::*;

    #[test]
    fn instructions_have_names_and_effects() {
        let symbols = Symbols::read(b"0000000000001000 T start\n0000000000002000 t next\n").unwrap();
        assert_eq!((symbols.name(0x1004), symbols.name(0xfff)), (Some(("start", 4)), None));
        assert_eq!((symbols.range("start"), symbols.range("none")), (Some(0x1000..0x2000), None));
        let mut file = Vec::new();
        let mut w = Writer::new(&mut file).unwrap();
        let at = |va, rax| {
            let mut i = Insn { va, mode: 2 << 2, bytes: vec![0x48, 0xff, 0xc0], ..Insn::default() };
            i.regs[0] = rax;
            i
        };
        w.put(0, &at(0x1004, 1), &[]);
        w.put(0, &at(0x1007, 2), &[]);
        let mut said = Vec::new();
        show(&file[..], &symbols, &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(said.starts_with("0 0000000000001004 <start+0x4> inc %rax  rax=0x2\n"), "{said}");
        assert!(Symbols::read(b"\xff\xfe").is_err());
        let endless = Symbols::open(Path::new("/dev/zero")).err();
        assert_eq!(endless.as_deref(), Some("/dev/zero: not a regular file of at most 1 GiB"));
    }
}
