//! Port and MMIO dispatch: sorted ranges to locked devices.

use crate::addr::Pa;
use crate::device::Device;
use crate::dlog;
use parking_lot::Mutex;
use std::sync::Arc;

/// A device as the machine holds it. Its lock is taken for each access.
pub type DeviceCell = Arc<Mutex<dyn Device>>;

/// Takes what no device on a bus claims: a bridge to another bus.
pub trait Subtractive: Send + Sync {
    /// Reads `size` bytes at a port (`io`) or address; `None` if nothing is there either.
    fn read(&self, io: bool, at: u64, size: u8) -> Option<u64>;
    /// `false` if nothing is there either.
    fn write(&self, io: bool, at: u64, size: u8, value: u64) -> bool;
}

#[derive(Clone)]
struct Entry {
    start: u64,
    len: u64,
    region: u32,
    device: DeviceCell,
}

/// Ranges sorted by start, without overlaps.
#[derive(Clone, Default)]
struct Ranges(Vec<Entry>);

impl Ranges {
    fn add(&mut self, e: Entry) {
        let i = self.0.partition_point(|x| x.start < e.start);
        let clash = |x: &Entry| x.start < e.start + e.len && e.start < x.start + x.len;
        assert!(!self.0.iter().any(clash), "two devices at {:#x}", e.start);
        self.0.insert(i, e);
    }

    /// First address, length and device of each range, ascending. Takes each device's lock for a moment.
    fn list(&self) -> impl Iterator<Item = (u64, u64, String)> + '_ {
        self.0.iter().map(|e| (e.start, e.len, e.device.lock().name().to_owned()))
    }

    fn find(&self, addr: u64) -> Option<&Entry> {
        let i = self.0.partition_point(|x| x.start <= addr);
        self.0[..i].last().filter(|x| addr - x.start < x.len)
    }
}

/// The 64 KiB port space.
#[derive(Clone, Default)]
pub struct PortBus(Ranges, Option<Arc<dyn Subtractive>>);

impl PortBus {
    /// Sends what no device claims there.
    pub fn set_rest(&mut self, rest: Arc<dyn Subtractive>) {
        self.1 = Some(rest);
    }

    /// Gives ports `start..start + len` to a device that has the port capability.
    pub fn add(&mut self, start: u16, len: u16, region: u32, device: DeviceCell) {
        assert!(device.lock().ports().is_some(), "a device without ports on the port bus");
        self.0.add(Entry { start: start.into(), len: len.into(), region, device });
    }

    /// Reads 1, 2 or 4 bytes. An access that runs beyond a device's range is split into bytes, as ISA does.
    pub fn read(&self, port: u16, size: u8) -> u32 {
        match self.0.find(port.into()) {
            Some(e) if u64::from(port) - e.start + u64::from(size) <= e.len => {
                let off = (u64::from(port) - e.start) as u16;
                e.device.lock().ports().map_or(!0, |p| p.read(e.region, off, size)) & mask32(size)
            }
            Some(_) if size > 1 => (0..size).fold(0, |v, i| v | self.read(port.wrapping_add(i.into()), 1) << (8 * i)),
            _ => match self.1.as_ref().and_then(|r| r.read(true, port.into(), size)) {
                Some(v) => v as u32 & mask32(size),
                None => {
                    dlog!(GUEST_ERRORS, "read of unassigned port {port:#x} size {size}");
                    mask32(size)
                }
            },
        }
    }

    /// First port, number of ports and device of each range, ascending. Takes each device's lock for a moment.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64, String)> + '_ {
        self.0.list()
    }

    pub fn write(&self, port: u16, size: u8, value: u32) {
        match self.0.find(port.into()) {
            Some(e) if u64::from(port) - e.start + u64::from(size) <= e.len => {
                let off = (u64::from(port) - e.start) as u16;
                if let Some(p) = e.device.lock().ports() {
                    p.write(e.region, off, size, value & mask32(size));
                }
            }
            Some(_) if size > 1 => {
                (0..size).for_each(|i| self.write(port.wrapping_add(i.into()), 1, value >> (8 * i)));
            }
            _ if self.1.as_ref().is_some_and(|r| r.write(true, port.into(), size, value.into())) => {}
            _ => dlog!(GUEST_ERRORS, "write of {value:#x} to unassigned port {port:#x} size {size}"),
        }
    }
}

/// Memory-mapped devices, by guest-physical address.
#[derive(Clone, Default)]
pub struct MmioBus(Ranges, Option<Arc<dyn Subtractive>>);

impl MmioBus {
    /// Sends what no device claims there.
    pub fn set_rest(&mut self, rest: Arc<dyn Subtractive>) {
        self.1 = Some(rest);
    }

    pub fn add(&mut self, start: Pa, len: u64, region: u32, device: DeviceCell) {
        assert!(device.lock().mmio().is_some(), "a device without MMIO on the memory bus");
        self.0.add(Entry { start: start.0, len, region, device });
    }

    /// First address, length and device of each range, ascending. Takes each device's lock for a moment.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64, String)> + '_ {
        self.0.list()
    }

    /// Reads 1, 2, 4 or 8 bytes; ones where nothing is.
    pub fn read(&self, pa: Pa, size: u8) -> u64 {
        match self.0.find(pa.0) {
            Some(e) if pa.0 - e.start + u64::from(size) <= e.len => {
                e.device.lock().mmio().map_or(!0, |m| m.read(e.region, pa.0 - e.start, size)) & mask64(size)
            }
            _ => match self.1.as_ref().and_then(|r| r.read(false, pa.0, size)) {
                Some(v) => v & mask64(size),
                None => {
                    dlog!(GUEST_ERRORS, "read of unassigned memory {pa:?} size {size}");
                    mask64(size)
                }
            },
        }
    }

    pub fn write(&self, pa: Pa, size: u8, value: u64) {
        match self.0.find(pa.0) {
            Some(e) if pa.0 - e.start + u64::from(size) <= e.len => {
                if let Some(m) = e.device.lock().mmio() {
                    m.write(e.region, pa.0 - e.start, size, value & mask64(size));
                }
            }
            _ if self.1.as_ref().is_some_and(|r| r.write(false, pa.0, size, value & mask64(size))) => {}
            _ => dlog!(GUEST_ERRORS, "write of {value:#x} to unassigned memory {pa:?} size {size}"),
        }
    }
}

fn mask64(size: u8) -> u64 {
    if size >= 8 { !0 } else { (1 << (8 * u32::from(size))) - 1 }
}

fn mask32(size: u8) -> u32 {
    mask64(size) as u32
}
