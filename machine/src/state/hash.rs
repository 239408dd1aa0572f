//! A hash of the machine's state, for comparing runs: CPU, devices, RAM. Of RAM only pages written since the last time are
//! looked at, so that it can be asked for often.

use crate::board::Board;
use crate::vcpu_thread::Cpu;
use std::sync::Arc;
use vm_core::{GuestCpu, Ram, Section, dlog};

const PAGE: usize = 4096;

/// Hashes of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes {
    pub cpu: u64,
    pub devices: u64,
    pub ram: u64,
}

/// One step of a hash over 64-bit words.
fn mix(h: u64, word: u64) -> u64 {
    let h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ h >> 29
}

fn bytes(start: u64, data: &[u8]) -> u64 {
    let word = |c: &[u8]| match c.try_into() {
        Ok(whole) => u64::from_le_bytes(whole),
        Err(_) => c.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)),
    };
    data.chunks(8).fold(start, |h, c| mix(h, word(c)))
}

/// Hash of saved sections.
fn sections(list: &[Section]) -> u64 {
    list.iter().fold(1, |h, s| bytes(bytes(h, s.name.as_bytes()), s.data.to_string().as_bytes()))
}

/// Hashes of all pages of RAM, kept up to date by the log of written pages.
pub struct RamHash {
    pages: Vec<u64>,
    /// The pages' hashes added up; each has the page's number in it.
    sum: u64,
}

impl RamHash {
    /// Reads all of RAM, and begins the log of written pages. The caller tells the engines.
    pub fn new(ram: &Ram) -> Self {
        ram.take_written();
        ram.log_writes();
        let mut this = Self { pages: vec![0; (ram.size() / PAGE as u64) as usize], sum: 0 };
        (0..this.pages.len() as u64).for_each(|p| this.look(ram, p));
        this
    }

    fn look(&mut self, ram: &Ram, page: u64) {
        let mut buf = [0; PAGE];
        ram.read(page * PAGE as u64, &mut buf);
        let new = mix(bytes(page, &buf), page);
        let old = std::mem::replace(&mut self.pages[page as usize], new);
        self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
    }

    /// The hash now. The caller tells the engines that pages are logged again.
    pub fn now(&mut self, ram: &Ram) -> u64 {
        ram.take_written().into_iter().for_each(|p| self.look(ram, p));
        self.sum
    }

    /// Numbers of the pages that differ from those of another machine with as much RAM.
    pub fn differing<'a>(&'a self, other: &'a RamHash) -> impl Iterator<Item = u64> + 'a {
        (0..).zip(self.pages.iter().zip(&other.pages)).filter(|(_, (a, b))| a != b).map(|(i, _)| i)
    }
}

/// Hashes of a machine that stands still and has one CPU.
pub fn hashes(cpu: &mut Cpu, ram: &mut RamHash) -> Hashes {
    let board: Arc<Board> = cpu.io.0.clone();
    let of_cpu = sections(&[cpu.engine.cpu().save(0)]);
    let all = Hashes { cpu: of_cpu, devices: sections(&board.save()), ram: ram.now(&board.ram) };
    cpu.engine.cpu_changed();
    all
}

/// `-d hash,every=N`.
pub struct HashLog {
    every: u64,
    /// Count at which it printed last.
    last: Option<u64>,
    ram: Option<RamHash>,
}

impl HashLog {
    pub fn new(every: u64) -> Self {
        Self { every: every.max(1), last: None, ram: None }
    }

    /// Instructions from count `now` to the next line.
    pub fn after(&self, now: u64) -> u64 {
        self.every - now % self.every
    }

    /// Prints a line if one is due at this count.
    pub fn at(&mut self, count: u64, cpu: &mut Cpu) {
        if !count.is_multiple_of(self.every) || self.last == Some(count) {
            return;
        }
        self.last = Some(count);
        let board = cpu.io.0.clone();
        let ram = self.ram.get_or_insert_with(|| RamHash::new(&board.ram));
        let h = hashes(cpu, ram);
        let pc = cpu.engine.cpu().pc();
        dlog!(HASH, "hash at {count}: pc {pc:#x} cpu {:016x} devices {:016x} ram {:016x}", h.cpu, h.devices, h.ram);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_ram_is_that_of_its_content_now() {
        let ram = Ram::new(16 << 12).unwrap();
        ram.write(0x1ffe, &[1, 2, 3, 4]);
        let mut kept = RamHash::new(&ram);
        let first = kept.now(&ram);
        ram.write(0x1ffe, &[9, 2, 3, 9]);
        ram.write_uint(0x5008, 8, 77);
        assert!(ram.cas_u32(0x6000, 0, 5));
        let changed = kept.now(&ram);
        assert_ne!(first, changed);
        assert_eq!(changed, RamHash::new(&ram).now(&ram), "however it came about");
        ram.write(0x1ffe, &[1, 2, 3, 4]);
        ram.zero(0x5000, 0x2000);
        assert_eq!(kept.now(&ram), first);
        // The same bytes in another page are another state.
        let other = Ram::new(16 << 12).unwrap();
        other.write(0x2ffe, &[1, 2, 3, 4]);
        let other = RamHash::new(&other);
        assert_ne!(other.sum, kept.sum);
        assert_eq!(kept.differing(&other).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
