//! MSI-X: table, pending bits and message control of one function (PCI Local Bus 3.0 §6.8.2).

use serde::{Deserialize, Serialize};
use vm_core::dlog;

/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;
/// Most vectors that fit the layout of `Endpoint`'s BAR.
pub const MAX_VECTORS: u16 = 128;

/// Vector control: the vector is masked.
const ENTRY_MASKED: u32 = 1;
/// Message control, the upper half of the capability's first doubleword.
pub const CONTROL_ENABLE: u16 = 1 << 15;
pub const CONTROL_MASK_ALL: u16 = 1 << 14;

/// A message to send: address and data.
pub type Message = (u64, u32);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Message address low and high, data, vector control.
    words: [u32; 4],
    pending: bool,
}

impl Entry {
    fn new() -> Self {
        Self { words: [0, 0, 0, ENTRY_MASKED], pending: false }
    }

    fn message(&self) -> Message {
        (u64::from(self.words[1]) << 32 | u64::from(self.words[0]), self.words[2])
    }
}

/// State of the capability. What is to be sent comes back as a result: the function sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msix {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// All vectors masked, as after reset. `vectors` is 1..=`MAX_VECTORS`.
    pub fn new(vectors: u16) -> Self {
        let n = vectors.clamp(1, MAX_VECTORS);
        Self { entries: (0..n).map(|_| Entry::new()).collect(), enabled: false, masked: false }
    }

    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The function raises a vector: a message to send now, or none if it has become pending, or there is no such vector.
    pub fn raise(&mut self, vector: u16) -> Option<Message> {
        let open = self.enabled && !self.masked;
        let e = self.entries.get_mut(usize::from(vector))?;
        if !self.enabled {
            return None;
        }
        e.pending = !open || e.words[3] & ENTRY_MASKED != 0;
        (!e.pending).then(|| e.message())
    }

    /// The guest writes message control; messages that waited for it.
    pub fn set_control(&mut self, control: u16) -> Vec<Message> {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.masked = control & CONTROL_MASK_ALL != 0;
        self.release()
    }

    fn release(&mut self) -> Vec<Message> {
        if !self.enabled || self.masked {
            return Vec::new();
        }
        let open = self.entries.iter_mut().filter(|e| e.pending && e.words[3] & ENTRY_MASKED == 0);
        open.map(|e| {
            e.pending = false;
            e.message()
        })
        .collect()
    }

    /// Reads the table; doublewords and quadwords are what software may use, others give the bytes all the same.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let word = |at: u64| {
            let e = self.entries.get((at / ENTRY_SIZE) as usize);
            e.map_or(0, |e| u64::from(e.words[(at % ENTRY_SIZE / 4) as usize]))
        };
        let (low, high) = (word(offset & !3), word((offset & !3).saturating_add(4)));
        let both = u128::from(high) << 32 | u128::from(low);
        mask(size) & (both >> (8 * (offset & 3))) as u64
    }

    /// Writes the table; messages that waited for it.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Vec<Message> {
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(size.into()) {
            dlog!(GUEST_ERRORS, "msix: {size}-byte write at {offset:#x} of the table");
            return Vec::new();
        }
        for (i, v) in (0..u64::from(size) / 4).map(|i| (i, (value >> (32 * i)) as u32)) {
            let at = offset + 4 * i;
            if let Some(e) = self.entries.get_mut((at / ENTRY_SIZE) as usize) {
                let word = (at % ENTRY_SIZE / 4) as usize;
                e.words[word] = match word {
                    0 => v & !3,
                    3 => v & ENTRY_MASKED,
                    _ => v,
                };
            }
        }
        self.release()
    }

    /// Reads the pending bits.
    pub fn pending(&self, offset: u64, size: u8) -> u64 {
        let bit = |i: u64| self.entries.get(i as usize).is_some_and(|e| e.pending);
        let first = offset.wrapping_mul(8);
        (0..u64::from(size) * 8).filter(|i| bit(first.wrapping_add(*i))).fold(0, |v, i| v | 1 << i)
    }

    /// Takes a saved state if it has as many vectors.
    pub fn restore(&mut self, saved: Self) -> bool {
        let fits = saved.entries.len() == self.entries.len();
        if fits {
            *self = saved;
            self.entries.iter_mut().for_each(|e| e.words[3] &= ENTRY_MASKED);
        }
        fits
    }
}

fn mask(size: u8) -> u64 {
    if size >= 8 { !0 } else { (1 << (8 * u32::from(size))) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_up(m: &mut Msix, vector: u64, addr: u64, data: u32) {
        m.write(vector * 16, 8, addr);
        m.write(vector * 16 + 8, 4, data.into());
        m.write(vector * 16 + 12, 4, 0);
    }

    #[test]
    fn masked_vectors_wait_and_are_sent_once() {
        let mut m = Msix::new(3);
        set_up(&mut m, 1, 0xfee0_1000, 0x41);
        assert_eq!(m.raise(1), None, "not enabled: lost");
        assert_eq!(m.set_control(CONTROL_ENABLE), []);
        assert_eq!(m.raise(1), Some((0xfee0_1000, 0x41)));
        assert_eq!((m.raise(2), m.raise(3), m.raise(0xffff)), (None, None, None));
        assert_eq!(m.pending(0, 8), 4);
        set_up(&mut m, 2, 0xfee0_2003, 0x42);
        assert_eq!(m.pending(0, 8), 0);
        m.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        assert_eq!((m.raise(1), m.raise(2), m.pending(0, 1)), (None, None, 6));
        assert_eq!(m.set_control(CONTROL_ENABLE), [(0xfee0_1000, 0x41), (0xfee0_2000, 0x42)]);
        assert_eq!(m.set_control(CONTROL_ENABLE), []);
    }

    #[test]
    fn the_table_reads_back_and_ends() {
        let mut m = Msix::new(2);
        assert_eq!(m.read(12, 4), 1, "masked after reset");
        m.write(0, 8, 0x1234_5678_9abc_def1);
        assert_eq!((m.read(0, 8), m.read(4, 4), m.read(5, 2)), (0x1234_5678_9abc_def0, 0x1234_5678, 0x3456));
        m.write(1, 4, !0);
        m.write(0, 2, !0);
        m.write(32, 8, !0);
        assert_eq!((m.read(0, 8), m.read(32, 8), m.read(!0, 8)), (0x1234_5678_9abc_def0, 0, 0));
        m.write(28, 4, !0);
        assert_eq!(m.read(28, 4), 1);
        assert!(!m.restore(Msix::new(3)) && m.restore(Msix::new(2)));
    }
}
