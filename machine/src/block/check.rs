//! Reference counts of a qcow2 image that is to be written to (QEMU's docs/interop/qcow2.txt): each use of a cluster must be counted.
//!
//! imago believes the counts. With wrong ones it gives away clusters that are in use, and looks for free ones until its stack is
//! full. The tables are read once, less than a 4096th of the image's data; what lies in holes of the file is not read.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Offsets in entries of L1, L2 and refcount tables.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is counted once: it is written in place.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Incompatible features: data lie in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// Bounds as QEMU has them: bytes of an L1 table and of the snapshots' table, snapshots.
const MAX_L1: u64 = 32 << 20;
const MAX_SNAPSHOT_TABLE: u64 = 64 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;

/// The part of the header that leads to tables.
struct Header {
    cluster_bits: u32,
    l1: (u64, u32),
    /// Offset and clusters.
    refcounts: (u64, u32),
    /// Number and offset.
    snapshots: (u32, u64),
    /// Bits of a count, as a power of two.
    order: u32,
    external_data: bool,
}

/// Counts that are left when the uses found so far are taken off, by block.
struct Counts<'a> {
    file: &'a File,
    cluster_bits: u32,
    order: u32,
    /// Where each block lies.
    table: Vec<u64>,
    blocks: BTreeMap<u64, Vec<u8>>,
}

fn be32(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be64(b: &[u8], at: usize) -> u64 {
    u64::from(be32(b, at)) << 32 | u64::from(be32(b, at + 4))
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("is damaged: {what}; 'qemu-img check -r all' may mend it, and with readonly=on it can be read"),
    )
}

/// Fills `buf`; zeroes behind the file's end.
fn read(file: &File, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, at) {
            Ok(0) => {
                buf.fill(0);
                return Ok(());
            }
            Ok(n) => (at, buf) = (at.wrapping_add(n as u64), &mut buf[n..]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether a range has nothing but a hole of the file.
fn hole(file: &File, at: u64, len: u64) -> bool {
    let Ok(from) = i64::try_from(at) else { return true };
    match lseek(file, from, Whence::SeekData) {
        Ok(data) => data as u64 >= at.saturating_add(len),
        Err(e) => e == Errno::ENXIO,
    }
}

/// The header; `None` where it says something that imago does not open anyway.
fn header(file: &File) -> io::Result<Option<Header>> {
    let mut b = [0; 104];
    read(file, 0, &mut b)?;
    let (version, cluster_bits) = (be32(&b, 4), be32(&b, 20));
    let (features, order) = if version == 3 { (be64(&b, 72), be32(&b, 96)) } else { (0, 4) };
    let known = &b[..4] == b"QFI\xfb" && matches!(version, 2 | 3) && (9..=21).contains(&cluster_bits) && order <= 6;
    if !known || features & !EXTERNAL_DATA != 0 {
        return Ok(None);
    }
    Ok(Some(Header {
        cluster_bits,
        l1: (be64(&b, 40), be32(&b, 36)),
        refcounts: (be64(&b, 48), be32(&b, 56)),
        snapshots: (be32(&b, 60), be64(&b, 64)),
        order,
        external_data: features & EXTERNAL_DATA != 0,
    }))
}

/// Calls `f` for each entry of a table of offsets that is not zero.
fn entries(file: &File, at: u64, count: u64, f: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut buf = Vec::new();
    let end = count.saturating_mul(8);
    let mut done = 0;
    while done < end {
        let n = PIECE.min(end - done);
        let from = at.wrapping_add(done);
        if !hole(file, from, n) {
            buf.resize(n as usize, 0);
            read(file, from, &mut buf)?;
            for (i, e) in buf.as_chunks::<8>().0.iter().enumerate() {
                match u64::from_be_bytes(*e) {
                    0 => {}
                    e => f(done / 8 + i as u64, e)?,
                }
            }
        }
        done += n;
    }
    Ok(())
}

impl Counts<'_> {
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn aligned(&self, at: u64) -> bool {
        at.is_multiple_of(self.cluster())
    }

    /// Takes one use off a cluster's count; what the count was.
    fn take(&mut self, at: u64) -> io::Result<u64> {
        let cluster = at >> self.cluster_bits;
        let none = || damaged(format_args!("the cluster at {at:#x} is used more often than is counted"));
        let per_block = (self.cluster() * 8) >> self.order;
        let (index, within) = (cluster / per_block, cluster % per_block);
        let block_at =
            usize::try_from(index).ok().and_then(|i| self.table.get(i)).copied().filter(|o| *o != 0).ok_or_else(none)?;
        let block = match self.blocks.entry(index) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                let len = 1u64 << self.cluster_bits;
                if hole(self.file, block_at, len) {
                    return Err(none());
                }
                let mut data = vec![0; len as usize];
                read(self.file, block_at, &mut data)?;
                e.insert(data)
            }
        };
        let before = count(block, within, self.order);
        if before == 0 {
            return Err(none());
        }
        lower(block, within, self.order);
        Ok(before)
    }

    /// A range that has tables: each of its clusters is used once.
    fn alone(&mut self, at: u64, len: u64, what: &str) -> io::Result<()> {
        if !self.aligned(at) {
            return Err(damaged(format_args!("{what} at {at:#x} is not aligned")));
        }
        let end = at.checked_add(len).ok_or_else(|| damaged(format_args!("{what} at {at:#x} has no end")))?;
        let mut at = at;
        while at < end {
            if self.take(at)? != 1 {
                return Err(damaged(format_args!("the cluster at {at:#x} ({what}) has other uses")));
            }
            at += self.cluster();
        }
        Ok(())
    }

    /// A cluster that may be shared with snapshots; not so if the table says that it is not.
    fn shared(&mut self, at: u64, copied: bool, what: &str) -> io::Result<()> {
        if !self.aligned(at) {
            return Err(damaged(format_args!("{what} at {at:#x} is not aligned")));
        }
        if self.take(at)? != 1 && copied {
            return Err(damaged(format_args!("the cluster at {at:#x} ({what}) is written in place, and has other uses")));
        }
        Ok(())
    }

    /// An L1 table and all that it leads to. `active`: it is the disk's, not a snapshot's.
    fn disk(&mut self, h: &Header, (l1, len): (u64, u32), active: bool) -> io::Result<()> {
        let bytes = u64::from(len) * 8;
        if bytes > MAX_L1 {
            return Err(damaged(format_args!("an L1 table of {bytes} bytes")));
        }
        if len == 0 {
            return Ok(());
        }
        self.alone(l1, bytes, "L1 table")?;
        let (file, per_table) = (self.file, self.cluster() / 8);
        let mut seen = HashSet::new();
        entries(file, l1, len.into(), &mut |_, e| match e & OFFSET {
            0 => Ok(()),
            // Else a small image could have one table read for each of millions of entries.
            table if !seen.insert(table) => {
                Err(damaged(format_args!("the L2 table at {table:#x} has two places in one L1 table")))
            }
            table => {
                self.shared(table, active && e & COPIED != 0, "L2 table")?;
                entries(file, table, per_table, &mut |_, e| self.data(h, e, active))
            }
        })
    }

    fn data(&mut self, h: &Header, e: u64, active: bool) -> io::Result<()> {
        if e & COMPRESSED != 0 {
            // Bits of the offset, and then of the sectors that follow its own.
            let bits = 62 - (h.cluster_bits - 8);
            let (at, sectors) = (e & ((1 << bits) - 1), (e & !COPIED & !COMPRESSED) >> bits);
            let end = (at & !511) + (sectors + 1) * 512;
            let mut cluster = at & !(self.cluster() - 1);
            while cluster < end {
                self.take(cluster)?;
                cluster += self.cluster();
            }
            return Ok(());
        }
        match e & OFFSET {
            0 => Ok(()),
            _ if h.external_data => Ok(()),
            at => self.shared(at, active && e & COPIED != 0, "data"),
        }
    }

    /// The snapshots' table; where their L1 tables are.
    fn snapshots(&mut self, (number, start): (u32, u64)) -> io::Result<Vec<(u64, u32)>> {
        if number > MAX_SNAPSHOTS {
            return Err(damaged(format_args!("{number} snapshots")));
        }
        let (mut list, mut at, mut b) = (Vec::new(), start, [0; 40]);
        for _ in 0..number {
            read(self.file, at, &mut b)?;
            list.push((be64(&b, 0), be32(&b, 8)));
            let texts = u64::from(be32(&b, 12) >> 16) + u64::from(be32(&b, 12) & 0xffff);
            let len = (40 + u64::from(be32(&b, 36)) + texts).next_multiple_of(8);
            at = at.checked_add(len).filter(|end| end - start <= MAX_SNAPSHOT_TABLE).ok_or_else(|| damaged("its snapshots"))?;
        }
        if number > 0 {
            self.alone(start, at - start, "table of snapshots")?;
        }
        Ok(list)
    }
}

/// Count `i` of a block; those of less than a byte begin with its lowest bits.
fn count(block: &[u8], i: u64, order: u32) -> u64 {
    let (at, bits) = (((i << order) / 8) as usize, 1u32 << order);
    match order {
        0..=2 => {
            let shift = (i << order) % 8;
            u64::from(block.get(at).copied().unwrap_or(0)) >> shift & ((1 << bits) - 1)
        }
        _ => block.get(at..at + bits as usize / 8).unwrap_or_default().iter().fold(0, |n, b| n << 8 | u64::from(*b)),
    }
}

/// Takes one off a count that is not zero.
fn lower(block: &mut [u8], i: u64, order: u32) {
    let (at, bits) = (((i << order) / 8) as usize, 1usize << order);
    match order {
        // No borrow leaves it: it is not zero.
        0..=2 => block.iter_mut().skip(at).take(1).for_each(|b| *b = b.wrapping_sub(1 << ((i << order) % 8))),
        _ => {
            for b in block.get_mut(at..at + bits / 8).unwrap_or_default().iter_mut().rev() {
                let borrow = *b == 0;
                *b = b.wrapping_sub(1);
                if !borrow {
                    break;
                }
            }
        }
    }
}

/// Fails if the image uses what it does not count. Clusters that are counted and not used are lost space, no more.
pub fn check(file: &File) -> io::Result<()> {
    let Some(h) = header(file)? else { return Ok(()) };
    let cluster = 1u64 << h.cluster_bits;
    let (at, bytes) = (h.refcounts.0, u64::from(h.refcounts.1) << h.cluster_bits);
    if bytes == 0 || bytes > MAX_L1.max(cluster) || at == 0 {
        return Err(damaged("it has no table of reference counts"));
    }
    let mut table = Vec::new();
    entries(file, at, bytes / 8, &mut |i, e| {
        table.resize(i as usize, 0);
        table.push(e);
        Ok(())
    })?;
    let blocks: Vec<u64> = table.iter().copied().filter(|o| *o != 0).collect();
    let mut counts = Counts { file, cluster_bits: h.cluster_bits, order: h.order, table, blocks: BTreeMap::new() };
    counts.alone(0, 1, "header")?;
    counts.alone(at, bytes, "table of reference counts")?;
    blocks.into_iter().try_for_each(|o| counts.alone(o, cluster, "reference counts"))?;
    counts.disk(&h, h.l1, true)?;
    counts.snapshots(h.snapshots)?.into_iter().try_for_each(|l1| counts.disk(&h, l1, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_widths() {
        for order in 0..=6 {
            let mut block = vec![0xff; 512];
            let all = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            assert_eq!(count(&block, 5, order), all);
            lower(&mut block, 5, order);
            assert_eq!((4..7).map(|i| count(&block, i, order)).collect::<Vec<_>>(), [all, all - 1, all], "{order}");
        }
        // A borrow.
        let mut block = vec![0, 1, 1, 0, 0, 9];
        lower(&mut block, 1, 4);
        assert_eq!((count(&block, 0, 4), count(&block, 1, 4), count(&block, 2, 4)), (1, 0xff, 9));
    }
}
