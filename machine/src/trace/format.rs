//! The trace file: `MAGIC`, then a record for each instruction. Numbers are LEB128; registers are those before the instruction,
//! and only those that have changed since the CPU's last record.
//!
//! Record: CPU; linear address as the zigzag difference from the end of the CPU's last; mode word; length, bytes; mask of changed
//! registers, their new values XOR old; number of accesses, each: `size << 1 | write`, linear and physical address, value.

use arch_x86::CpuState;
use std::io::{self, Read, Write};
use vm_core::observe::Touch;
use vm_core::{Pa, Va};

pub const MAGIC: &[u8; 8] = b"rheatrc1";
/// RAX to R15, RFLAGS, CR3, CS base.
pub const REGS: usize = 19;
pub const NAMES: [&str; REGS] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rflags",
    "cr3", "cs_base",
];
const MAX_CPUS: u64 = 64;
const MAX_LEN: u64 = 16;
const MAX_ACCESSES: u64 = 1 << 16;

/// An instruction, and the CPU before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Insn {
    pub va: u64,
    pub mode: u64,
    pub bytes: Vec<u8>,
    pub regs: [u64; REGS],
}

impl Insn {
    pub fn of(cpu: &CpuState, va: u64, bytes: &[u8]) -> Self {
        let mut regs = [0; REGS];
        regs[..16].copy_from_slice(&cpu.gpr);
        (regs[16], regs[17], regs[18]) = (cpu.rflags(), cpu.cr3, cpu.seg(arch_x86::SegReg::Cs).base);
        Self { va, mode: cpu.mode, bytes: bytes.to_vec(), regs }
    }
}

/// What differences are to, for a CPU.
#[derive(Clone, Default)]
struct Last {
    end: u64,
    regs: [u64; REGS],
}

pub struct Writer<W: Write> {
    to: W,
    last: Vec<Last>,
    /// One record.
    buf: Vec<u8>,
    failed: bool,
}

fn leb(buf: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        buf.push(v as u8 | 0x80);
        v >>= 7;
    }
    buf.push(v as u8);
}

impl<W: Write> Writer<W> {
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        Ok(Self { to, last: Vec::new(), buf: Vec::new(), failed: false })
    }

    pub fn put(&mut self, cpu: u32, insn: &Insn, touches: &[Touch]) {
        let n = cpu as usize;
        if self.last.len() <= n {
            self.last.resize(n + 1, Last::default());
        }
        let (last, buf) = (&mut self.last[n], &mut self.buf);
        buf.clear();
        leb(buf, cpu.into());
        let step = insn.va.wrapping_sub(last.end) as i64;
        leb(buf, (step << 1 ^ step >> 63) as u64);
        leb(buf, insn.mode);
        leb(buf, insn.bytes.len() as u64);
        buf.extend(&insn.bytes);
        let changed = |i: &usize| insn.regs[*i] != last.regs[*i];
        leb(buf, (0..REGS).filter(changed).fold(0, |m, i| m | 1 << i));
        (0..REGS).filter(changed).for_each(|i| leb(buf, insn.regs[i] ^ last.regs[i]));
        leb(buf, touches.len() as u64);
        for t in touches {
            leb(buf, u64::from(t.size) << 1 | u64::from(t.write));
            leb(buf, t.va.0);
            leb(buf, t.pa.0);
            leb(buf, t.value as u64);
            if t.size > 8 {
                leb(buf, (t.value >> 64) as u64);
            }
        }
        *last = Last { end: insn.va.wrapping_add(insn.bytes.len() as u64), regs: insn.regs };
        self.write();
    }

    /// A disk that is full must not end the guest: it is said once.
    fn write(&mut self) {
        if self.failed {
            return;
        }
        if let Err(e) = self.to.write_all(&self.buf) {
            self.failed = true;
            crate::say!("-trace: {e}");
        }
    }

    pub fn finish(&mut self) {
        let _ = self.to.flush();
    }
}

/// Takes records out of a file. Files may be cut or forged.
pub struct Records<R: Read> {
    from: R,
    last: Vec<Last>,
}

/// A record: CPU, instruction, accesses.
pub type Record = (u32, Insn, Vec<Touch>);

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a trace: {what}"))
}

impl<R: Read> Records<R> {
    pub fn new(mut from: R) -> io::Result<Self> {
        let mut magic = [0; 8];
        from.read_exact(&mut magic)?;
        if &magic == MAGIC { Ok(Self { from, last: Vec::new() }) } else { Err(bad("it begins otherwise")) }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut b = [0];
        self.from.read_exact(&mut b)?;
        Ok(b[0])
    }

    fn leb_from(&mut self, first: u8) -> io::Result<u64> {
        let (mut v, mut shift, mut b) = (u64::from(first & 0x7f), 7, first);
        while b & 0x80 != 0 {
            b = self.byte()?;
            if shift > 63 {
                return Err(bad("a number is too long"));
            }
            v |= u64::from(b & 0x7f) << shift;
            shift += 7;
        }
        Ok(v)
    }

    fn leb(&mut self) -> io::Result<u64> {
        let first = self.byte()?;
        self.leb_from(first)
    }

    fn at_most(&mut self, most: u64, what: &str) -> io::Result<u64> {
        let v = self.leb()?;
        if v <= most { Ok(v) } else { Err(bad(what)) }
    }

    fn touch(&mut self) -> io::Result<Touch> {
        let head = self.at_most(33, "the size of an access")?;
        let (va, pa, mut value) = (self.leb()?, self.leb()?, u128::from(self.leb()?));
        if head >> 1 > 8 {
            value |= u128::from(self.leb()?) << 64;
        }
        Ok(Touch { va: Va(va), pa: Pa(pa), size: (head >> 1) as u8, write: head & 1 != 0, value })
    }

    /// The next one, unless the file ends before it, or in it.
    fn record(&mut self, first: u8) -> io::Result<Record> {
        let cpu = self.leb_from(first)?;
        if cpu >= MAX_CPUS {
            return Err(bad("the number of a CPU"));
        }
        let n = cpu as usize;
        if self.last.len() <= n {
            self.last.resize(n + 1, Last::default());
        }
        let step = self.leb()?;
        let step = (step >> 1) as i64 ^ -((step & 1) as i64);
        let va = self.last[n].end.wrapping_add(step as u64);
        let mode = self.leb()?;
        let mut bytes = vec![0; self.at_most(MAX_LEN, "the length of an instruction")? as usize];
        self.from.read_exact(&mut bytes)?;
        let changed = self.at_most((1 << REGS) - 1, "registers")?;
        let mut regs = self.last[n].regs;
        for i in (0..REGS).filter(|i| changed >> i & 1 != 0) {
            regs[i] ^= self.leb()?;
        }
        let count = self.at_most(MAX_ACCESSES, "the number of accesses")?;
        let touches = (0..count).map(|_| self.touch()).collect::<io::Result<_>>()?;
        self.last[n] = Last { end: va.wrapping_add(bytes.len() as u64), regs };
        Ok((cpu as u32, Insn { va, mode, bytes, regs }, touches))
    }
}

impl<R: Read> Iterator for Records<R> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.byte() {
            Ok(first) => Some(self.record(first)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(e) => Some(Err(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<Record> {
        let mut regs = [0; REGS];
        (regs[0], regs[17]) = (u64::MAX, 0x1000);
        let touch = |size, value| Touch { va: Va(0xffff_8000_0000_0000), pa: Pa(0x1234), size, write: size == 16, value };
        vec![
            (0, Insn { va: 0xffff_ffff_8100_0000, mode: 0x1f, bytes: vec![0x90], regs }, vec![touch(8, 7), touch(16, u128::MAX)]),
            (1, Insn { va: 5, mode: 0, bytes: vec![], regs: [3; REGS] }, vec![]),
            (0, Insn { va: 0xffff_ffff_8100_0001, mode: 0x1f, bytes: vec![0xc3], regs: [9; REGS] }, vec![]),
        ]
    }

    fn written() -> Vec<u8> {
        let mut file = Vec::new();
        let mut w = Writer::new(&mut file).unwrap();
        some().iter().for_each(|(cpu, insn, touches)| w.put(*cpu, insn, touches));
        file
    }

    #[test]
    fn records_come_back() {
        let file = written();
        let read: Vec<Record> = Records::new(&file[..]).unwrap().map(Result::unwrap).collect();
        assert_eq!(read, some());
    }

    #[test]
    fn cut_and_altered_files_give_errors() {
        let file = written();
        for n in 0..file.len() {
            if let Ok(r) = Records::new(&file[..n]) {
                r.for_each(drop);
            }
            let mut altered = file.clone();
            altered[n] ^= 0xff;
            if let Ok(r) = Records::new(&altered[..]) {
                r.take(1000).for_each(drop);
            }
        }
        assert!(Records::new(&b"something"[..]).is_err());
    }
}
