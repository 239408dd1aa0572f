//! fw_cfg: what firmware asks the emulator for, by number or by file name (QEMU documentation, "QEMU Firmware Configuration
//! (fw_cfg) Device"): selector and data port, and the DMA interface. Items are read-only.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use vm_core::{Device, Dma, LoadError, Pa, PortIo, Section, dlog};

/// First of the ports, and their number.
pub const PORT: u16 = 0x510;
pub const PORTS: u16 = 12;

/// Numbers of items.
pub mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const UUID: u16 = 0x02;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NOGRAPHIC: u16 = 0x04;
    pub const CPUS: u16 = 0x05;
    pub const NUMA: u16 = 0x0d;
    pub const BOOT_MENU: u16 = 0x0e;
    pub const MAX_CPUS: u16 = 0x0f;
    pub const FILE_DIR: u16 = 0x19;
    /// The first file; the others follow.
    pub const FILE_FIRST: u16 = 0x20;
    /// Of x86: ISA interrupt 0 is global system interrupt 2.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

const STATE_VERSION: u32 = 1;
/// ID: the ports, and DMA.
const ID_PORTS: u32 = 1;
const ID_DMA: u32 = 2;
/// Offsets of the ports.
const SELECTOR: u16 = 0;
const DATA: u16 = 1;
const DMA_HIGH: u16 = 4;
const DMA_LOW: u16 = 8;
/// What the DMA address register reads as.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";
/// Bits of a DMA request's control word.
mod control {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}
/// Bytes of a request in memory.
const REQUEST: usize = 16;
/// Longest read; what lies behind an item reads as zeroes, which somebody has to write.
const MAX_READ: u32 = 64 << 20;
const CHUNK: usize = 64 << 10;
/// Of a file's name in the directory, with the zero at its end.
const NAME: usize = 56;

/// What the device is to hold.
#[derive(Clone, Default)]
pub struct Items {
    items: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Items {
    /// Signature and version are there already.
    pub fn new() -> Self {
        let mut this = Self::default();
        this.set(key::SIGNATURE, b"QEMU");
        this.set(key::ID, &(ID_PORTS | ID_DMA).to_le_bytes());
        this
    }

    pub fn set(&mut self, key: u16, data: &[u8]) {
        self.items.insert(key, data.to_vec());
    }

    /// Adds a file; its name has at most 55 bytes.
    pub fn file(&mut self, name: &str, data: Vec<u8>) {
        assert!(name.len() < NAME, "{name}: too long");
        self.files.insert(name.to_owned(), data);
    }

    /// Numbers of the files in the order of their names, and the directory of them.
    fn number(self) -> BTreeMap<u16, Arc<[u8]>> {
        let mut all: BTreeMap<u16, Arc<[u8]>> = self.items.into_iter().map(|(k, v)| (k, v.into())).collect();
        let mut dir = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, data)) in (key::FILE_FIRST..).zip(self.files) {
            dir.extend((data.len() as u32).to_be_bytes());
            dir.extend(key.to_be_bytes());
            dir.extend([0; 2]);
            let mut name = name.into_bytes();
            name.resize(NAME, 0);
            dir.extend(name);
            all.insert(key, data.into());
        }
        all.insert(key::FILE_DIR, dir.into());
        all
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    selected: u16,
    offset: u32,
    /// DMA address register; its lower half is 0 once a request has begun.
    address: u64,
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Arc<[u8]>>,
    dma: Dma,
    state: State,
}

impl FwCfg {
    pub fn new(items: Items, dma: Dma) -> Self {
        Self { items: items.number(), dma, state: State::default() }
    }

    fn select(&mut self, key: u16) {
        self.state = State { selected: key, offset: 0, ..self.state };
    }

    fn item(&self) -> Arc<[u8]> {
        self.items.get(&self.state.selected).cloned().unwrap_or_default()
    }

    /// Zero behind the end of an item, and of those that there are not.
    fn next_byte(&mut self) -> u8 {
        let byte = self.item().get(self.state.offset as usize).copied().unwrap_or(0);
        self.state.offset = self.state.offset.saturating_add(1);
        byte
    }

    /// Does the request at the address that has been written.
    fn request(&mut self) {
        let at = Pa(std::mem::take(&mut self.state.address));
        let mut bytes = [0; REQUEST];
        self.dma.read(at, &mut bytes);
        let word = |i: usize| bytes[i..i + 4].iter().fold(0, |v, b| v << 8 | u32::from(*b));
        let (control, len, to) = (word(0), word(4), u64::from(word(8)) << 32 | u64::from(word(12)));
        if control & control::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & control::READ != 0 {
            self.copy_out(Pa(to), len)
        } else {
            // Nothing here can be written.
            control & control::WRITE == 0
        };
        if done && control & (control::READ | control::SKIP) != 0 {
            self.state.offset = self.state.offset.saturating_add(len);
        }
        self.dma.write(at, &(if done { 0 } else { control::ERROR }).to_be_bytes());
    }

    fn copy_out(&self, to: Pa, len: u32) -> bool {
        if len > MAX_READ {
            dlog!(GUEST_ERRORS, "fw_cfg: a read of {len:#x} bytes");
            return false;
        }
        let item = self.item();
        let rest = item.get(self.state.offset as usize..).unwrap_or_default();
        let rest = &rest[..rest.len().min(len as usize)];
        self.dma.write(to, rest);
        let (mut done, len) = (rest.len(), len as usize);
        while done < len {
            let n = (len - done).min(CHUNK);
            self.dma.write(Pa(to.0.wrapping_add(done as u64)), &[0; CHUNK][..n]);
            done += n;
        }
        true
    }
}

impl Device for FwCfg {
    fn name(&self) -> &'static str {
        "fw_cfg"
    }

    fn reset(&mut self) {
        self.state = State::default();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), STATE_VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        self.state = s.unpack(STATE_VERSION)?;
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for FwCfg {
    fn read(&mut self, _: u32, offset: u16, size: u8) -> u32 {
        (0..size.min(4)).fold(0, |v, i| {
            let byte = match offset.wrapping_add(i.into()) {
                DATA => self.next_byte(),
                at @ DMA_HIGH..PORTS => DMA_SIGNATURE[usize::from(at - DMA_HIGH)],
                _ => 0xff,
            };
            v | u32::from(byte) << (8 * i)
        })
    }

    fn write(&mut self, _: u32, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (SELECTOR, 2) => self.select(value as u16),
            (DMA_HIGH, 4) => self.state.address = u64::from(value.swap_bytes()) << 32,
            (DMA_LOW, 4) => {
                self.state.address |= u64::from(value.swap_bytes());
                self.request();
            }
            _ => dlog!(
                GUEST_ERRORS,
                "fw_cfg: write of {value:#x}, size {size}, to port {:#x}",
                u32::from(PORT) + u32::from(offset)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_core::{MemMap, Ram};

    fn dma() -> Dma {
        let mut map = MemMap::default();
        map.map_ram(Pa(0), 0x4000, 0, true);
        Dma::new(Arc::new(Ram::new(0x4000).unwrap()), &map)
    }

    fn device() -> FwCfg {
        let mut items = Items::new();
        items.set(key::CPUS, &[3, 0]);
        items.file("opt/b", b"second".to_vec());
        items.file("etc/a", b"first".to_vec());
        FwCfg::new(items, dma())
    }

    fn bytes(d: &mut FwCfg, key: u16, n: usize) -> Vec<u8> {
        d.write(0, SELECTOR, 2, key.into());
        (0..n).map(|_| d.read(0, DATA, 1) as u8).collect()
    }

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(device, 1, PORTS.into());
    }

    #[test]
    fn items_are_read_byte_by_byte_and_end_in_zeroes() {
        let mut d = device();
        assert_eq!(bytes(&mut d, key::SIGNATURE, 6), b"QEMU\0\0");
        assert_eq!(bytes(&mut d, key::ID, 4), [3, 0, 0, 0]);
        assert_eq!(bytes(&mut d, 0x7777, 2), [0, 0]);
        let dir = bytes(&mut d, key::FILE_DIR, 4 + 2 * 64);
        assert_eq!(dir[..8], [0, 0, 0, 2, 0, 0, 0, 5]);
        assert_eq!((&dir[8..18], &dir[72..74]), (&b"\0\x20\0\0etc/a\0"[..], &b"\0\x21"[..]));
        assert_eq!(bytes(&mut d, 0x21, 7), b"second\0");
    }

    /// Puts a request at 100h and starts it; its control word afterwards.
    fn ask(d: &mut FwCfg, control: u32, len: u32, to: u64) -> u32 {
        let request: Vec<u8> = control.to_be_bytes().into_iter().chain(len.to_be_bytes()).chain(to.to_be_bytes()).collect();
        d.dma.write(Pa(0x100), &request);
        d.write(0, DMA_HIGH, 4, 0);
        d.write(0, DMA_LOW, 4, 0x100u32.swap_bytes());
        let mut word = [0; 4];
        d.dma.read(Pa(0x100), &mut word);
        u32::from_be_bytes(word)
    }

    #[test]
    fn dma_selects_skips_and_reads() {
        let mut d = device();
        assert_eq!(d.read(0, DMA_HIGH, 4), u32::from_le_bytes(*b"QEMU"));
        let memory = |d: &FwCfg, at: u64| {
            let mut b = [0; 8];
            d.dma.read(Pa(at), &mut b);
            b
        };
        d.dma.write(Pa(0x200), &[0xaa; 8]);
        assert_eq!(ask(&mut d, 0x21 << 16 | control::SELECT | control::SKIP, 2, 0), 0);
        assert_eq!(ask(&mut d, control::READ, 6, 0x200), 0);
        assert_eq!(&memory(&d, 0x200), b"cond\0\0\xaa\xaa");
        assert_eq!(ask(&mut d, 0x20 << 16 | control::SELECT | control::READ, 3, 0x300), 0);
        assert_eq!(d.read(0, DATA, 1), u32::from(b's'), "the port goes on where DMA ended");
        assert_eq!(ask(&mut d, control::WRITE, 1, 0x200), control::ERROR);
        assert_eq!(ask(&mut d, control::READ, !0, 0x200), control::ERROR);
        // Far beyond memory, and round the end of the address space.
        assert_eq!(ask(&mut d, control::READ, 1 << 20, u64::MAX - 5), 0);
    }
}
