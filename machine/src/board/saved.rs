//! Saved state of the board: a section of each device and of each local APIC.

use super::{Board, BoardError, Ends, Outside};
use crate::share::TrialShare;
use devices::block::{Absent, Disk};
use devices::chr::{CharSink, NullSink};
use devices::net::NetBackend;
use devices::power::PowerSink;
use devices::virtio::Share;
use std::sync::Arc;
use vm_core::{Clock, LoadError, Section};

/// What the devices of a trial board ask for leads nowhere.
struct Nobody;

impl PowerSink for Nobody {
    fn reset(&self) {}
    fn power_off(&self) {}
    fn exit(&self, _: i32) {}
}

fn bad(name: &str, reason: &str) -> LoadError {
    LoadError::Bad { name: name.into(), reason: reason.into() }
}

/// The section of the device that is number `nth` of those named `name`.
fn pick<'a>(sections: &'a [Section], name: &str, nth: usize) -> Result<&'a Section, LoadError> {
    let found = sections.iter().filter(|s| s.name == name).nth(nth);
    found.ok_or_else(|| bad(name, "is not in the file: the machine was saved without this device"))
}

/// Devices that older files do not know, and that are as after reset there.
const ADDED_LATER: [&str; 1] = ["kvmclock"];

fn absent(offloads: bool) -> Arc<dyn NetBackend> {
    Arc::new(devices::net::Absent { offloads })
}

impl Board {
    /// All sections, of one moment: the vCPUs must stand still, and no device changes meanwhile.
    pub fn save(&self) -> Vec<Section> {
        // In lock order: whoever drives a wire holds its own lock and takes the interrupt controllers' next.
        let held: Vec<_> = self.devices.iter().rev().map(|d| d.lock()).collect();
        held.iter().rev().map(|d| d.save()).chain(self.lapics.iter().map(|l| l.save())).collect()
    }

    /// Whether `load` would accept these sections, tried on another board without wires to the outside: here nothing changes.
    pub fn check(&self, trial: &mut Option<Board>, sections: &[Section], clock: u64) -> Result<(), LoadError> {
        let board = match trial {
            Some(b) => b,
            None => trial.insert(self.trial().map_err(|e| bad("board", &e.to_string()))?),
        };
        board.clock.set(clock);
        board.reset();
        board.load(sections)
    }

    /// A board with the same devices and the same RAM, connected to nothing. Boards hold circles of references: make few.
    fn trial(&self) -> Result<Board, BoardError> {
        let sink = || -> Arc<dyn CharSink> { Arc::new(NullSink) };
        let out = Outside {
            clock: Clock::new(),
            cpus: self.apic_ids.iter().map(|id| (*id, Arc::default())).collect(),
            power: Arc::new(Nobody),
            a20: Arc::new(|_| {}),
            remap: Arc::new(|| {}),
            firmware: self.firmware.clone(),
            serials: std::array::from_fn(|i| self.uarts[i].as_ref().map(|_| sink())),
            devices: self.extra.iter().map(|d| (d.clone(), Some(sink()))).collect(),
            disks: self.disks.iter().map(|(id, d)| (id.clone(), Arc::new(Absent(d.geometry())) as Arc<dyn Disk>)).collect(),
            nets: self.nets.iter().map(|(id, n)| (id.clone(), absent(n.offloads()))).collect(),
            virtio: Ends {
                shares: self.shares.keys().map(|id| (id.clone(), Arc::new(TrialShare) as Arc<dyn Share>)).collect(),
                ..Ends::default()
            },
            unix_seconds: 0,
        };
        Board::around(self.ram.clone(), self.map.detached(), self.config, out)
    }

    /// Replaces the state of all devices, which have just been reset, with the clock set to the time of saving. On error,
    /// which `check` would have told, some have changed.
    pub fn load(&self, sections: &[Section]) -> Result<(), LoadError> {
        let controllers = self.controllers();
        let mut names: Vec<&str> = Vec::new();
        let mut wanted = Vec::new();
        for d in &self.devices {
            let name = d.lock().name();
            let found = pick(sections, name, names.iter().filter(|n| **n == name).count());
            wanted.push(if ADDED_LATER.contains(&name) { found.ok() } else { Some(found?) });
            names.push(name);
        }
        let lapic_names: Vec<String> = (0..self.lapics.len()).map(|n| format!("lapic{n}")).collect();
        let lapics: Vec<&Section> = lapic_names.iter().map(|n| pick(sections, n, 0)).collect::<Result<_, _>>()?;
        let known = |s: &&Section| names.contains(&&*s.name) || lapic_names.contains(&s.name);
        if let Some(s) = sections.iter().find(|s| !known(s)) {
            return Err(bad(&s.name, "this machine has no such device"));
        }
        // The others drive the controllers' inputs as they are loaded. They stay locked, so that nothing changes on the wires
        // before the controllers have been given the levels that these had at the time of saving.
        let mut held = Vec::new();
        for (d, s) in self.devices.iter().zip(&wanted).skip(controllers) {
            let mut d = d.lock();
            s.map_or(Ok(()), |s| d.load(s))?;
            held.push(d);
        }
        for (d, s) in self.devices.iter().zip(&wanted).take(controllers) {
            s.map_or(Ok(()), |s| d.lock().load(s))?;
        }
        self.lapics.iter().zip(lapics).try_for_each(|(l, s)| l.load(s))
    }

    /// How many of `devices` are interrupt controllers.
    pub(super) fn controllers(&self) -> usize {
        self.devices.iter().take_while(|d| matches!(d.lock().name(), "pic" | "ioapic")).count()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::board::BoardIo;
    use crate::options::{DeviceSpec, MachineConfig, MachineKind};
    use std::collections::BTreeMap;
    use vm_core::testing::Rng;
    use vm_core::{CpuIo, Pa};

    fn board(hpet: bool) -> Board {
        let out = Outside {
            clock: Clock::new(),
            cpus: vec![(0, Arc::default()), (1, Arc::default())],
            power: Arc::new(Nobody),
            a20: Arc::new(|_| {}),
            remap: Arc::new(|| {}),
            firmware: None,
            serials: [Some(Arc::new(NullSink)), None, Some(Arc::new(NullSink)), None],
            devices: [0xe9, 0x402].map(debugcon).to_vec(),
            disks: BTreeMap::new(),
            nets: BTreeMap::new(),
            virtio: Ends::default(),
            unix_seconds: 0,
        };
        Board::new(MachineConfig { kind: MachineKind::Pc, acpi: true, hpet, vga: true, kernel_args: true }, 2 << 20, out).unwrap()
    }

    fn debugcon(iobase: u16) -> (DeviceSpec, Option<Arc<dyn CharSink>>) {
        (DeviceSpec::IsaDebugcon { iobase, readback: 0, chardev: String::new() }, Some(Arc::new(NullSink)))
    }

    /// Random accesses to all devices, and time that passes.
    pub fn traffic(io: &BoardIo, r: &mut Rng, rounds: u32) {
        let ports = [0x20, 0x40, 0x60, 0x70, 0x92, 0xa0, 0x3f8, 0x3e8, 0x4d0, 0x600, 0x620, 0xcf8];
        for _ in 0..rounds {
            io.0.clock.set(io.0.clock.now() + r.below(50_000));
            io.0.clock.run_expired();
            let (size, v) = (1 << r.below(3), r.next_u64());
            match r.below(4) {
                0 => io.mmio_write(Pa(0xfed0_0000 + r.below(0x400)), size, v),
                1 => io.mmio_write(Pa(0xfec0_0000 + 0x10 * r.below(2)), 4, v & 0xff),
                2 => io.mmio_write(Pa(0xfee0_0000 + 0x10 * r.below(0x40)), 4, v & 0x3_ffff),
                _ => io.port_write(r.pick(&ports) + r.below(8) as u16, size, v as u32),
            }
        }
    }

    /// A board after random guest traffic.
    fn used(seed: u64) -> Board {
        let io = BoardIo(Arc::new(board(true)), 0);
        traffic(&io, &mut Rng(seed), 20_000);
        Arc::into_inner(io.0).unwrap()
    }

    /// Sections without how far each timer chip has counted up what it will show: loading makes them catch up.
    fn shown(mut sections: Vec<Section>) -> Vec<Section> {
        sections.iter_mut().filter(|s| s.data.get("seen").is_some()).for_each(|s| s.data["seen"] = 0.into());
        sections
    }

    fn same(a: Vec<Section>, b: Vec<Section>, what: &str) {
        for (a, b) in shown(a).iter().zip(&shown(b)) {
            assert_eq!(a, b, "{what}");
        }
    }

    #[test]
    fn a_used_board_is_the_same_after_loading() {
        for seed in 0..4 {
            let a = used(seed);
            let sections = a.save();
            assert!(sections.len() > 15);
            let b = board(true);
            b.check(&mut None, &sections, a.clock.now()).unwrap();
            same(b.save(), board(true).save(), "checking changes nothing");
            b.clock.set(a.clock.now());
            b.reset();
            b.load(&sections).unwrap();
            same(b.save(), sections, "loaded");
            for (a, b) in a.lapics.iter().zip(&b.lapics) {
                assert_eq!(b.signals().pending(), a.signals().pending() & vm_core::Events::INTR);
            }
        }
    }

    #[test]
    fn both_run_on_alike() {
        let (a, b) = (used(7), board(true));
        b.clock.set(a.clock.now());
        b.reset();
        b.load(&a.save()).unwrap();
        for step in 1..200 {
            for x in [&a, &b] {
                x.clock.set(x.clock.now() + step * 7919);
                x.clock.run_expired();
            }
            same(a.save(), b.save(), &format!("step {step}"));
        }
    }

    #[test]
    fn boards_with_other_devices_are_refused() {
        let (with, without) = (board(true).save(), board(false).save());
        let text = |b: Board, s: &[Section]| b.check(&mut None, s, 0).unwrap_err().to_string();
        assert!(text(board(true), &without).contains("hpet: is not in the file"));
        assert!(text(board(false), &with).contains("hpet: this machine has no such device"));
        // One that older files do not have.
        let older: Vec<_> = with.iter().filter(|s| s.name != "kvmclock").cloned().collect();
        assert!(older.len() + 1 == with.len() && board(true).check(&mut None, &older, 0).is_ok());
        let less = &with[..with.len() - 2];
        assert!(text(board(true), less).contains("is not in the file"));
    }
}
