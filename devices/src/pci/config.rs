//! Configuration space of one function: a type 0 header with writable masks and base address registers
//! (PCI Local Bus 3.0 §6.1 "Configuration Space Organization", §6.2.5 "Base Addresses").

/// Bytes of a conventional function's configuration space.
pub const CONFIG_SIZE: usize = 256;

pub const COMMAND: u16 = 0x04;
pub const COMMAND_IO: u16 = 1 << 0;
pub const COMMAND_MEMORY: u16 = 1 << 1;
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
pub const STATUS: u16 = 0x06;
pub const HEADER_TYPE: u16 = 0x0e;
/// Header type: there are more functions.
pub const MULTIFUNCTION: u8 = 1 << 7;
pub const BAR0: u16 = 0x10;
const SUBSYSTEM: u16 = 0x2c;
pub const INTERRUPT_LINE: u16 = 0x3c;
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Command: also parity error response and SERR enable.
const COMMAND_WRITABLE: u16 = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | COMMAND_INTX_DISABLE;

/// What a base address register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    Io,
    Memory32,
    /// 64-bit and prefetchable; takes two registers.
    Memory64,
}

/// A function's registers, with what the guest may change of them.
#[derive(Clone)]
pub struct ConfigSpace {
    data: [u8; CONFIG_SIZE],
    fresh: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    /// Bits that a written 1 clears.
    write_clears: [u8; CONFIG_SIZE],
    bars: [Option<BarKind>; 6],
    bar_sizes: [u64; 6],
}

impl ConfigSpace {
    /// A type 0 header. `class` is base class, sub-class and interface, as 24 bits.
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let zero = [0; CONFIG_SIZE];
        let mut c = Self { data: zero, fresh: zero, writable: zero, write_clears: zero, bars: [None; 6], bar_sizes: [0; 6] };
        c.set(0x00, &vendor.to_le_bytes());
        c.set(0x02, &device.to_le_bytes());
        c.set(0x08, &(class << 8 | u32::from(revision)).to_le_bytes());
        c.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Status: the error bits are write-one-to-clear.
        c.write_clears[usize::from(STATUS) + 1] = 0xf9;
        c
    }

    /// Sets power-on bytes. The range must lie in the space.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        let at = usize::from(offset);
        self.fresh[at..at + bytes.len()].copy_from_slice(bytes);
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Subsystem vendor and number by which firmware knows an emulated board (Red Hat's for QEMU: 1af4h, 1100h).
    pub fn set_subsystem(&mut self) {
        self.set(SUBSYSTEM, &[0xf4, 0x1a, 0x00, 0x11]);
    }

    /// Lets the guest change the bits of `mask`, from `offset` on.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        let at = usize::from(offset);
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Uses pin INTA (1) to INTD (4); the line register is the guest's scratch.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.set(INTERRUPT_PIN, &[pin]);
        self.allow(INTERRUPT_LINE, &[0xff]);
    }

    /// Makes base address register `index` (0..=5) ask for `size` bytes, a power of two of at least 16.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) {
        assert!(size.is_power_of_two() && size >= 16, "BAR size {size:#x}");
        assert!(index < if kind == BarKind::Memory64 { 5 } else { 6 }, "BAR {index}");
        let at = BAR0 + 4 * index as u16;
        let mask = !(size - 1);
        let (flags, bytes) = match kind {
            BarKind::Io => (1u8, 4),
            BarKind::Memory32 => (0, 4),
            BarKind::Memory64 => (0xc, 8),
        };
        self.set(at, &[flags]);
        self.allow(at, &mask.to_le_bytes()[..bytes]);
        self.bars[index] = Some(kind);
        self.bar_sizes[index] = size;
    }

    /// Whether register `index` decodes ports, and its size; `None` if there is no such register.
    pub fn bar_size(&self, index: usize) -> Option<(bool, u64)> {
        let kind = (*self.bars.get(index)?)?;
        Some((kind == BarKind::Io, self.bar_sizes[index]))
    }

    /// Address that register `index` decodes, if the command register enables it.
    pub fn bar(&self, index: usize) -> Option<u64> {
        let kind = (*self.bars.get(index)?)?;
        let at = BAR0 + 4 * index as u16;
        let low = u64::from(self.read(at, 4));
        let (enable, address) = match kind {
            BarKind::Io => (COMMAND_IO, low & !3),
            BarKind::Memory32 => (COMMAND_MEMORY, low & !15),
            BarKind::Memory64 => (COMMAND_MEMORY, u64::from(self.read(at + 4, 4)) << 32 | low & !15),
        };
        (self.command() & enable != 0).then_some(address)
    }

    pub fn command(&self) -> u16 {
        self.read(COMMAND, 2) as u16
    }

    /// Reads 1, 2 or 4 bytes; zeroes beyond the header's space (no extended capability).
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        (0..size.min(4)).fold(0, |v, i| {
            let byte = self.data.get(usize::from(offset) + usize::from(i)).copied().unwrap_or(0);
            v | u32::from(byte) << (8 * i)
        })
    }

    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        for i in 0..size.min(4) {
            let at = usize::from(offset) + usize::from(i);
            let v = (value >> (8 * i)) as u8;
            if let Some(d) = self.data.get_mut(at) {
                let mask = self.writable[at];
                *d = (*d & !mask | v & mask) & !(v & self.write_clears[at]);
            }
        }
    }

    /// Sets bytes, whatever the guest may write. The range must lie in the space.
    pub fn put(&mut self, offset: u16, bytes: &[u8]) {
        let at = usize::from(offset);
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Power-on content.
    pub fn reset(&mut self) {
        self.data = self.fresh;
    }

    /// Content, for saved state.
    pub fn bytes(&self) -> Vec<u8> {
        self.data.to_vec()
    }

    /// Restores what `bytes` gave; `false` if the length is wrong. What the guest cannot write stays as built.
    pub fn restore(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() != CONFIG_SIZE {
            return false;
        }
        for (i, &b) in bytes.iter().enumerate() {
            let mask = self.writable[i] | self.write_clears[i];
            self.data[i] = self.fresh[i] & !mask | b & mask;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ConfigSpace {
        let mut c = ConfigSpace::new(0x1234, 0x5678, 0x020000, 3);
        c.add_bar(0, BarKind::Io, 32);
        c.add_bar(1, BarKind::Memory32, 4096);
        c.add_bar(4, BarKind::Memory64, 1 << 33);
        c
    }

    #[test]
    fn identification_is_read_only() {
        let mut c = sample();
        c.write(0, 4, 0);
        c.write(8, 4, !0);
        assert_eq!((c.read(0, 4), c.read(8, 4)), (0x5678_1234, 0x0200_0003));
        assert_eq!(c.read(0x3fe, 4), 0);
    }

    #[test]
    fn bars_are_sized_by_writing_ones() {
        let mut c = sample();
        for (at, size) in [(0x10, 0xffff_ffe1), (0x14, 0xffff_f000), (0x18, 0), (0x20, 0xc), (0x24, 0xffff_fffe)] {
            c.write(at, 4, !0);
            assert_eq!(c.read(at, 4), size, "{at:#x}");
        }
    }

    #[test]
    fn bars_decode_when_enabled() {
        let mut c = sample();
        c.write(0x10, 4, 0xc041);
        c.write(0x20, 4, 0);
        c.write(0x24, 4, 0x12);
        assert_eq!((c.bar(0), c.bar(4)), (None, None));
        c.write(COMMAND, 2, 3);
        assert_eq!((c.bar(0), c.bar(4), c.bar(2), c.bar(9)), (Some(0xc040), Some(0x12_0000_0000), None, None));
    }
}
