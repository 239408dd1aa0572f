//! Guest memory for a debugger, without side effects: RAM, and video memory for reading.

use crate::board::Board;
use crate::runner::Runner;
use vm_core::addr::PAGE_SIZE;
use vm_core::{Pa, Target, Va};

/// Calls `f` for each part of `buf` that lies in one page, until one fails. Addresses wrap.
pub fn pieces(mut addr: u64, mut buf: &mut [u8], mut f: impl FnMut(u64, &mut [u8]) -> bool) -> bool {
    while !buf.is_empty() {
        let room = (PAGE_SIZE - addr % PAGE_SIZE).min(buf.len() as u64);
        let (piece, rest) = buf.split_at_mut(room as usize);
        if !f(addr, piece) {
            return false;
        }
        addr = addr.wrapping_add(room);
        buf = rest;
    }
    true
}

/// Reads guest-physical memory page by page; `false` if some of it is neither RAM nor video memory.
pub fn read_phys(board: &Board, pa: u64, buf: &mut [u8]) -> bool {
    pieces(pa, buf, |at, piece| match board.map.target(Pa(at)) {
        Target::Ram { offset, .. } => {
            board.ram.read(offset, piece);
            true
        }
        Target::Mmio => board.peek(at, piece),
    })
}

/// Reads through the page tables of a CPU.
pub fn read_virt(r: &mut Runner, cpu: usize, va: u64, buf: &mut [u8]) -> bool {
    let (board, cpu) = (&r.board, &mut r.cpus[cpu]);
    pieces(va, buf, |at, piece| match cpu.engine.debug_translate(&cpu.io, Va(at)) {
        Some(pa) => read_phys(board, pa.0, piece),
        None => false,
    })
}

/// Where an access goes, page by page: RAM offsets. `None`: some of it is not RAM.
fn places(r: &mut Runner, cpu: Option<usize>, addr: u64, len: usize) -> Option<Vec<(u64, usize)>> {
    let (mut list, mut at, mut left) = (Vec::new(), addr, len);
    while left > 0 {
        let n = (PAGE_SIZE - at % PAGE_SIZE).min(left as u64) as usize;
        let pa = match cpu.map(|i| &mut r.cpus[i]) {
            Some(c) => c.engine.debug_translate(&c.io, Va(at))?,
            None => Pa(at),
        };
        let Target::Ram { offset, .. } = r.board.map.target(pa) else { return None };
        list.push((offset, n));
        (at, left) = (at.wrapping_add(n as u64), left - n);
    }
    Some(list)
}

/// Writes to RAM, ROM included, all or nothing. `cpu`: through its page tables, else by physical address.
pub fn write(r: &mut Runner, cpu: Option<usize>, addr: u64, data: &[u8]) -> bool {
    let Some(list) = places(r, cpu, addr, data.len()) else { return false };
    let mut rest = data;
    for (offset, n) in list {
        let (piece, tail) = rest.split_at(n);
        r.board.ram.write(offset, piece);
        rest = tail;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_split_at_pages_and_wrap() {
        let mut seen = vec![];
        let mut buf = [0; 0x1800];
        assert!(pieces(u64::MAX - 0xff, &mut buf, |a, p| {
            seen.push((a, p.len()));
            true
        }));
        assert_eq!(seen, [(u64::MAX - 0xff, 0x100), (0, 0x1000), (0x1000, 0x700)]);
        assert!(!pieces(0, &mut buf, |a, _| a == 0));
    }
}
