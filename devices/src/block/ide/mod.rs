//! The PIIX3's IDE controller (Intel 82371SB datasheet): two channels at their legacy ports, with bus master DMA.

mod bus_master;
mod channel;
#[cfg(test)]
mod tests;

use super::ata::{Completions, Drive};
use crate::pci::bus::PciFunction;
use crate::pci::decode::Decoder;
use crate::pci::endpoint::config_by_endpoint;
use crate::pci::{BarKind, ConfigSpace, Endpoint, EndpointState, PciWires};
use crate::waking;
use channel::{Channel, Saved};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, IrqLine, LoadError, Mmio, PortIo, Section};

/// Ports of both channels: (first, number); a range's place here is its region.
pub const PORTS: [(u16, u16); 4] = [(0x1f0, 8), (0x3f6, 1), (0x170, 8), (0x376, 1)];
/// ISA interrupts of both channels.
pub const IRQS: [u32; 2] = [14, 15];

const STATE_VERSION: u32 = 1;
/// Bus master registers: eight ports a channel.
const BM_BAR: u32 = 4;
const BM_SIZE: u64 = 16;
/// IDETIM of both channels; the top bit of each decodes its ports.
const IDETIM: u16 = 0x40;
const IDETIM_ENABLED: [u8; 4] = [0, 0x80, 0, 0x80];
/// Ids of the second channel's jobs begin here.
const SECOND: u64 = 1 << 63;

#[derive(Serialize, Deserialize)]
struct State {
    pci: EndpointState,
    channels: [Saved; 2],
}

/// The controller.
pub struct Ide {
    endpoint: Endpoint,
    channels: [Channel; 2],
    done: Arc<Completions>,
}

impl Ide {
    /// `drives`: both of the first channel, then both of the second; `irqs`: one line for each channel.
    pub fn new(drives: [Option<Drive>; 4], irqs: [IrqLine; 2], wires: PciWires) -> Self {
        let mut config = ConfigSpace::new(0x8086, 0x7010, 0x01_01_80, 0);
        config.set_subsystem();
        config.add_bar(BM_BAR as usize, BarKind::Io, BM_SIZE);
        // As firmware leaves it: systems that start without one find it so.
        config.set(IDETIM, &IDETIM_ENABLED);
        config.allow(IDETIM, &[0xff; 5]);
        let endpoint = Endpoint::plain(config, wires);
        let done = Arc::<Completions>::default();
        let [a, b, c, d] = drives;
        let [first, second] = irqs;
        let master = || endpoint.master().clone();
        let channels = [
            Channel::new([a, b], first, master(), done.clone(), 0),
            Channel::new([c, d], second, master(), done.clone(), SECOND),
        ];
        Self { endpoint, channels, done }
    }

    /// As `new`; other threads' work is taken note of as it ends.
    pub fn new_shared(drives: [Option<Drive>; 4], irqs: [IrqLine; 2], wires: PciWires) -> Arc<Mutex<Self>> {
        waking::shared(Self::new(drives, irqs, wires), |d, wake| d.done.set_wake(wake), Self::service)
    }

    /// Does what work that has been done leads to.
    pub fn service(&mut self) {
        loop {
            let done = self.done.take();
            if done.is_empty() {
                return;
            }
            for (id, ok) in done {
                self.channels[usize::from(id >= SECOND)].complete(id, ok);
            }
        }
    }
}

impl PciFunction for Ide {
    config_by_endpoint!();

    fn bar_read(&mut self, _: u32, offset: u64, size: u8) -> u64 {
        (0..u64::from(size)).fold(0, |v, i| {
            let at = offset.wrapping_add(i) % BM_SIZE;
            v | u64::from(self.channels[(at / 8) as usize].bm_read(at % 8)) << (8 * i)
        })
    }

    fn bar_write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        for i in 0..u64::from(size) {
            let at = offset.wrapping_add(i) % BM_SIZE;
            self.channels[(at / 8) as usize].bm_write(at % 8, (value >> (8 * i)) as u8);
        }
        self.service();
    }
}

impl PortIo for Ide {
    fn read(&mut self, region: u32, offset: u16, size: u8) -> u32 {
        let channel = &mut self.channels[(region / 2 % 2) as usize];
        let v = match (region % 2, offset) {
            (0, 0) => channel.read_data(size.min(4)),
            (0, _) => (0..size.min(4)).fold(0, |v, i| v | u32::from(channel.read((offset + u16::from(i)) & 7)) << (8 * i)),
            _ => channel.read(8).into(),
        };
        self.service();
        v
    }

    fn write(&mut self, region: u32, offset: u16, size: u8, value: u32) {
        let channel = &mut self.channels[(region / 2 % 2) as usize];
        match (region % 2, offset) {
            (0, 0) => channel.write_data(size.min(4), value),
            (0, _) => (0..size.min(4)).for_each(|i| match (offset + u16::from(i)) & 7 {
                0 => {}
                at => channel.write(at, (value >> (8 * i)) as u8),
            }),
            _ => channel.write(8, value as u8),
        }
        self.service();
    }
}

/// What is no legacy port, for tests.
impl Mmio for Ide {
    fn read(&mut self, _: u32, offset: u64, size: u8) -> u64 {
        self.bar_read(BM_BAR, offset, size)
    }

    fn write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        self.bar_write(BM_BAR, offset, size, value);
    }
}

impl Device for Ide {
    fn name(&self) -> &'static str {
        "piix-ide"
    }

    fn reset(&mut self) {
        self.channels.iter_mut().for_each(Channel::reset);
        self.done.take();
        self.endpoint.reset();
    }

    fn save(&self) -> Section {
        let [a, b] = &self.channels;
        Section::pack(self.name(), STATE_VERSION, &State { pci: self.endpoint.save(), channels: [a.save(), b.save()] })
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: State = s.unpack(STATE_VERSION)?;
        for (c, saved) in self.channels.iter().zip(&state.channels) {
            c.check(saved).map_err(|e| s.bad(e))?;
        }
        // Bus mastering first: the jobs go on.
        self.endpoint.load(state.pci).map_err(|e| s.bad(e))?;
        for (c, saved) in self.channels.iter_mut().zip(state.channels) {
            c.load(saved);
        }
        self.service();
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}
