//! The board of a PC: RAM, devices and the wires between them.

mod describe;
mod firmware;
mod io;
mod memory;
mod micro;
mod pci;
mod ports;
mod saved;
mod storage;
#[cfg(test)]
mod tests;
mod typist;
mod virtio;
mod wires;

pub use firmware::Firmware;
pub use io::BoardIo;
pub use micro::TSC_KHZ;
#[cfg(test)]
pub use saved::tests::traffic;
pub use typist::Typist;
pub use virtio::Ends;

use crate::options::{DeviceSpec, MachineConfig, MachineKind};
use arch_x86::paging::PHYS_BITS;
use devices::block::Disk;
use devices::chr::CharSink;
use devices::chr::debugcon::DebugCon;
use devices::chr::uart16550::Uart16550;
use devices::display::vga::{self, Vga};
use devices::fw::acpi;
use devices::input::i8042::{self, I8042};
use devices::irq::{ApicBus, Coprocessor, IoApic, IoApicInputs, Lapic, LapicConfig, Pic, ioapic, pic};
use devices::net::NetBackend;
use devices::power::PowerSink;
use devices::power::debug_exit::DebugExit;
use devices::power::reset::Port92;
use devices::power::smi::{self, Smi};
use devices::timer::KvmClock;
use devices::timer::hpet::{HPET_SIZE, Hpet};
use devices::timer::pit::{self, Pit};
use devices::timer::pm::{self, Pm};
use devices::timer::rtc::Rtc;
use devices::virtio::{Access, Balloon, Console, Share};
use memory::ECAM;
use parking_lot::Mutex;
use ports::Ports;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use vm_core::{Clock, Device, DeviceCell, Dma, Events, IrqLine, MemMap, MmioBus, Pa, PortBus, Ram, Shadow, VcpuSignals};
use wires::Wires;

/// Frequency of the virtual time-stamp counter: one tick a nanosecond of guest time, whatever the host's own is.
pub const TSC_HZ: u64 = 1_000_000_000;

const ECAM_BUSES: u64 = 256;
/// Advanced power management control and status.
const APM: u16 = 0xb2;
/// A write ends the coprocessor's interrupt.
const COPROCESSOR_ERROR: u16 = 0xf0;
/// SMI_EN and SMI_STS, behind the first power management register.
const SMI_EN: u16 = 0x30;
/// COM1 to COM4: name, first port, ISA interrupt.
const COM: [(&str, u16, u32); 4] = [("serial0", 0x3f8, 4), ("serial1", 0x2f8, 3), ("serial2", 0x3e8, 4), ("serial3", 0x2e8, 3)];
const COM_PORTS: u16 = 8;

/// Why a board cannot be built; one line each.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    #[error("cannot reserve {mib} MiB for the guest's RAM: {source}", mib = .0 >> 20, source = .1)]
    Ram(u64, #[source] std::io::Error),
    #[error("{mib} MiB of RAM do not fit: this CPU has {PHYS_BITS} physical address bits", mib = .0 >> 20)]
    TooMuchRam(u64),
    #[error("{new} and {old} both want port {port:#x}")]
    PortClash { new: &'static str, old: &'static str, port: u16 },
    #[error("{0} wants ports beyond ffffh")]
    PortsBeyondEnd(&'static str),
    #[error("the firmware has {0} bytes, and is to have whole units of 64 KiB, 16 MiB at most")]
    Rom(u64),
    #[error("-device {0}-pci: no PCI slot is free")]
    NoSlot(&'static str),
    #[error("-device {0}-device: microvm has room for 8 virtio devices")]
    NoPlace(&'static str),
    #[error("-device {0}-pci: PCI device {1:x}.{2} is there already")]
    SlotTaken(&'static str, u8, u8),
    #[error("there is no drive '{0}'")]
    NoDrive(String),
    #[error("there is no netdev '{0}'")]
    NoNetdev(String),
    #[error("there is no fsdev '{0}'")]
    NoShare(String),
}

/// What the board is built from, beside the configuration: the ways out of it.
pub struct Outside {
    pub clock: Clock,
    /// APIC id and signals of each CPU; the first one is the bootstrap processor.
    pub cpus: Vec<(u32, Arc<VcpuSignals>)>,
    pub power: Arc<dyn PowerSink>,
    /// Told of every change of address line 20 (`true`: enabled); called with a device's lock held.
    pub a20: Arc<dyn Fn(bool) + Send + Sync>,
    /// Told when addresses below 1 MiB have changed between ROM and RAM; called with a device's lock held.
    pub remap: Arc<dyn Fn() + Send + Sync>,
    /// What runs at power-on, if it is not a kernel.
    pub firmware: Option<Arc<Firmware>>,
    /// Output of COM1 to COM4; `None`: no such port.
    pub serials: [Option<Arc<dyn CharSink>>; 4],
    /// Devices beyond the board's own; a debug console comes with its output.
    pub devices: Vec<(DeviceSpec, Option<Arc<dyn CharSink>>)>,
    /// Drives by id.
    pub disks: BTreeMap<String, Arc<dyn Disk>>,
    /// Networks by id.
    pub nets: BTreeMap<String, Arc<dyn NetBackend>>,
    /// What virtio consoles, balloon and shared folders lead to.
    pub virtio: Ends,
    /// What the real-time clock shows at guest time 0, in seconds since 1970.
    pub unix_seconds: i64,
}

/// The machine's hardware, less its CPU.
pub struct Board {
    pub ram: Arc<Ram>,
    pub map: MemMap,
    pub clock: Clock,
    /// The local APIC of each CPU.
    pub lapics: Vec<Arc<Lapic>>,
    /// The power button, the keyboard and the real-time clock; microvm has none.
    pub pm: Option<Arc<Mutex<Pm>>>,
    pub typist: Option<Arc<Typist>>,
    pub rtc: Option<SharedRtc>,
    pub uarts: [Option<Arc<Mutex<Uart16550>>>; 4],
    apic_ids: Vec<u32>,
    pub vga: Option<Arc<Mutex<Vga>>>,
    coprocessor: Option<Arc<Mutex<Coprocessor>>>,
    /// Which CPUs are in system management mode.
    in_smm: Vec<AtomicBool>,
    ports: PortBus,
    mmio: MmioBus,
    pub(crate) pic: Option<Arc<Mutex<Pic>>>,
    /// What KVM's clock for guests shows.
    pub kvm_clock: Arc<Mutex<KvmClock>>,
    /// What the real-time clock showed at guest time 0, in seconds since 1970.
    unix_seconds: i64,
    pub(crate) pit: Option<Arc<Mutex<Pit>>>,
    pub(crate) hpet: Option<Arc<Mutex<Hpet>>>,
    /// All devices but the local APIC, for reset. The 8259s and the I/O APIC, which the others' wires lead to, come first.
    devices: Vec<DeviceCell>,
    config: MachineConfig,
    /// Devices that were added to the board's own.
    extra: Vec<DeviceSpec>,
    disks: BTreeMap<String, Arc<dyn Disk>>,
    nets: BTreeMap<String, Arc<dyn NetBackend>>,
    firmware: Option<Arc<Firmware>>,
    /// What takes note of the ends of jobs, of each controller of disks.
    storage: Vec<pci::Service>,
    /// Console devices in the order of their specifications.
    pub consoles: Vec<Access<Console>>,
    pub balloon: Option<Access<Balloon>>,
    shares: BTreeMap<String, Arc<dyn Share>>,
    cards: Vec<pci::Card>,
    /// Virtio devices without PCI.
    slots: Vec<micro::Slot>,
    pub apic_bus: Arc<ApicBus>,
    pub ioapic: Arc<Mutex<IoApic>>,
}

/// Buses and list of devices while the board is built.
#[derive(Default)]
struct Builder {
    ports: Ports,
    mmio: MmioBus,
    devices: Vec<DeviceCell>,
}

impl Builder {
    /// Puts a device on the port bus, at (first port, number, region) each.
    fn ports<D: Device + 'static>(&mut self, cell: &Arc<Mutex<D>>, at: &[(u16, u16, u32)]) -> Result<(), BoardError> {
        self.devices.push(cell.clone());
        let name = cell.lock().name();
        at.iter().try_for_each(|&(start, len, region)| self.ports.add(name, start, len, region, cell.clone()))
    }

    fn mmio<D: Device + 'static>(&mut self, cell: &Arc<Mutex<D>>, start: Pa, len: u64) {
        self.devices.push(cell.clone());
        self.mmio.add(start, len, 0, cell.clone());
    }
}

impl Board {
    /// Builds a board as after power-on.
    pub fn new(config: MachineConfig, mem_bytes: u64, out: Outside) -> Result<Self, BoardError> {
        let rom = out.firmware.as_ref().map_or(0, |f| f.rom.len() as u64);
        if out.firmware.is_some() && (rom == 0 || rom > memory::ROM_MAX || !rom.is_multiple_of(memory::ROM_UNIT)) {
            return Err(BoardError::Rom(rom));
        }
        let (ram, map) = memory::make(mem_bytes, rom)?;
        Self::around(ram, map, config, out)
    }

    /// Builds a board around RAM that is there already.
    fn around(ram: Arc<Ram>, map: MemMap, config: MachineConfig, out: Outside) -> Result<Self, BoardError> {
        // Until the host bridge closes it, memory below 1 MiB is RAM: devices' rings may lie there.
        if let Some(s) = map.shadow() {
            s.set(Shadow::OPEN);
        }
        let dma = Dma::new(ram.clone(), &map);
        let mut b = Builder::default();
        let bus = ApicBus::new();
        let pic = micro::has_pic(config).then(|| Arc::new(Mutex::new(Pic::new(IrqLine::new(bus.clone(), 0)))));
        let ioapic = Arc::new(Mutex::new(IoApic::new(bus.clone())));
        bus.add_eoi_sink(Arc::new(IoApicInputs(ioapic.clone())));
        let lapics = add_lapics(&bus, pic.as_ref(), &out);
        let wires = Wires::new(pic.clone(), ioapic.clone());
        if let Some(pic) = &pic {
            b.ports(pic, &[(0x20, 2, pic::REGION_MASTER), (0xa0, 2, pic::REGION_SLAVE), (0x4d0, 2, pic::REGION_ELCR)])?;
        }
        b.mmio(&ioapic, Pa(acpi::IO_APIC_BASE.into()), ioapic::MMIO_LEN);
        let place = Place { wires: &wires, msi: bus.clone(), dma: &dma, map: &map };
        let parts = match config.kind {
            MachineKind::Microvm => micro::add(&mut b, config, &out, &place)?,
            MachineKind::Pc | MachineKind::Q35 => add_pc(&mut b, config, &out, &place)?,
        };
        let kvm_clock = Arc::<Mutex<KvmClock>>::default();
        b.devices.push(kvm_clock.clone());
        let Builder { ports, mmio, devices } = b;
        let apic_ids: Vec<u32> = out.cpus.iter().map(|(id, _)| *id).collect();
        let (disks, nets, firmware) = (out.disks, out.nets, out.firmware);
        let (clock, ports, extra) = (out.clock, ports.into_bus(), out.devices.into_iter().map(|(spec, _)| spec).collect());
        let Parts { pm, typist, rtc, pit, hpet, coprocessor, uarts, vga, added, slots } = parts;
        let pci::Added { storage, cards, consoles, balloon, order } = added;
        let this = Self {
            ram,
            map,
            clock,
            lapics,
            pm,
            typist,
            uarts,
            rtc,
            in_smm: apic_ids.iter().map(|_| AtomicBool::default()).collect(),
            apic_ids,
            vga,
            coprocessor,
            ports,
            mmio,
            pic,
            kvm_clock,
            unix_seconds: out.unix_seconds,
            pit,
            hpet,
            devices,
            config,
            extra,
            disks,
            nets,
            firmware: None,
            storage,
            cards,
            consoles,
            balloon,
            shares: out.virtio.shares,
            slots,
            apic_bus: bus,
            ioapic,
        };
        match firmware {
            Some(f) => {
                let paths: Vec<String> = order.into_iter().map(|(_, path)| path).collect();
                this.with_firmware(f, &paths, dma)
            }
            None => Ok(this),
        }
    }

    /// Brings all devices to their power-on state; RAM keeps its content. The CPU is the caller's.
    pub fn reset(&self) {
        self.devices.iter().for_each(|d| d.lock().reset());
        self.lapics.iter().for_each(|l| l.reset());
    }

    /// Waits until no disk works any more, and tells the devices. The vCPUs stand still.
    pub fn quiesce(&self) {
        self.disks.values().for_each(|d| d.drain());
        self.shares.values().for_each(|s| s.drain());
        self.storage.iter().for_each(|service| service());
        // Their threads have been told; whoever is at it still holds the lock.
        self.cards.iter().for_each(|card| {
            card();
        });
    }

    /// Name of the network and address of each card.
    pub fn cards(&self) -> Vec<(Option<String>, [u8; 6])> {
        let specs = self.extra.iter().filter_map(|d| match d {
            DeviceSpec::VirtioNet { netdev, .. } => Some(netdev.clone()),
            _ => None,
        });
        specs.zip(&self.cards).map(|(netdev, card)| (netdev, card())).collect()
    }

    /// What firmware would have done before it starts a kernel: the interrupt controllers are wired for the 8259s.
    pub fn prepare_direct_boot(&self) {
        self.lapics[0].set_virtual_wire();
        // The reset of the PIC may have left its output as the local APIC has not seen it.
        let level = self.pic.as_ref().is_some_and(|p| p.lock().intr());
        self.lapics.iter().for_each(|l| l.set_lint(0, level));
    }

    /// Physical addresses (first, length; a power of two) where PCI devices, interrupt controllers and firmware lie.
    pub fn device_window(&self) -> (u64, u64) {
        memory::DEVICES
    }

    /// The ACPI tables of this board, or `None` with `acpi=off`.
    pub fn acpi_tables(&self) -> Option<acpi::AcpiTables> {
        self.acpi_config().map(|cfg| acpi::build(&cfg, memory::ACPI_TABLES))
    }

    fn acpi_config(&self) -> Option<acpi::AcpiConfig> {
        let com_ports = self.uarts.iter().rposition(Option::is_some).map_or(0, |i| i as u8 + 1);
        let apic_ids = self.apic_ids.iter().map(|id| *id as u8).collect();
        let isa_bridge = pci::isa_device(self.config.kind);
        let hpet = self.config.hpet;
        let reduced = (self.config.kind == MachineKind::Microvm).then(|| micro::describe(&self.slots));
        let cfg = acpi::AcpiConfig { apic_ids, hpet, com_ports, isa_bridge, ecam: Some(ECAM), reduced, ..Default::default() };
        self.config.acpi.then_some(cfg)
    }

    /// Reads video memory, which is no RAM, for the user; `false` if some of it is not there.
    pub fn peek(&self, pa: u64, buf: &mut [u8]) -> bool {
        let Some(vga) = &self.vga else { return false };
        let vga = vga.lock();
        buf.iter_mut().zip(pa..).all(|(b, at)| vga.peek(at).map(|v| *b = v).is_some())
    }

    /// The machine type's name.
    pub fn kind(&self) -> &'static str {
        match self.config.kind {
            MachineKind::Pc => "pc",
            MachineKind::Q35 => "q35",
            MachineKind::Microvm => "microvm",
        }
    }

    /// Registers of devices, with a value each, whose writes another thread may make in the guest's place (`ring`).
    pub fn doorbells(&self) -> Vec<(Pa, u32)> {
        micro::doorbells(&self.slots)
    }

    /// Makes the write of a doorbell.
    pub fn ring(&self, pa: Pa, value: u32) {
        self.mmio.write(pa, 4, value.into());
    }

    /// Words that a kernel's command line needs on this board, with a space before each.
    pub fn kernel_args(&self, tsc_khz: u64) -> String {
        micro::kernel_args(self.config, &self.slots, tsc_khz)
    }

    /// A range that is neither RAM nor free for the kernel to give to devices; its length may be 0.
    pub fn ecam(&self) -> (Pa, u64) {
        let buses = if self.config.kind == MachineKind::Microvm { 0 } else { ECAM_BUSES };
        (ECAM, buses * devices::pci::bus::ECAM_BUS_SIZE)
    }
}

type SharedRtc = Arc<Mutex<Rtc>>;

/// What the parts of a board are connected to.
struct Place<'a> {
    wires: &'a Wires,
    msi: Arc<ApicBus>,
    dma: &'a Dma,
    map: &'a MemMap,
}

/// Parts that not every board has, or that others must find.
#[derive(Default)]
struct Parts {
    pm: Option<Arc<Mutex<Pm>>>,
    typist: Option<Arc<Typist>>,
    rtc: Option<SharedRtc>,
    pit: Option<Arc<Mutex<Pit>>>,
    hpet: Option<Arc<Mutex<Hpet>>>,
    coprocessor: Option<Arc<Mutex<Coprocessor>>>,
    uarts: Uarts,
    vga: Option<Arc<Mutex<Vga>>>,
    added: pci::Added,
    slots: Vec<micro::Slot>,
}

/// What makes it a PC.
fn add_pc(b: &mut Builder, config: MachineConfig, out: &Outside, at: &Place) -> Result<Parts, BoardError> {
    let timers = add_timers(b, config, out, at.wires, at.map)?;
    let coprocessor = Arc::new(Mutex::new(Coprocessor::new(at.wires.isa(13))));
    b.ports(&coprocessor, &[(COPROCESSOR_ERROR, 1, 0)])?;
    let (pm, typist) = add_power(b, out, at.wires)?;
    let bus = pci::add_bus(b, config, out, at.map)?;
    let uarts = add_serials(b, out, at.wires)?;
    let vga = config.vga.then(|| add_vga(b, out)).transpose()?;
    add_extra(b, out)?;
    let (below, above) = memory::sizes(at.map);
    let mut slots = pci::Slots { bus, wires: at.wires, msi: at.msi.clone(), dma: at.dma.clone(), ram: below + above };
    let added = pci::add_devices(b, config.kind, out, &mut slots)?;
    let coprocessor = Some(coprocessor);
    Ok(Parts { pm: Some(pm), typist: Some(typist), coprocessor, uarts, vga, added, ..timers })
}

fn add_lapics(bus: &Arc<ApicBus>, pic: Option<&Arc<Mutex<Pic>>>, out: &Outside) -> Vec<Arc<Lapic>> {
    let made = out.cpus.iter().enumerate().map(|(n, (id, signals))| {
        let config = LapicConfig { id: *id, bsp: n == 0, x2apic: true, tsc_hz: TSC_HZ, phys_bits: PHYS_BITS as u8 };
        let ack = pic.cloned();
        Lapic::new(config, signals.clone(), &out.clock, bus, Arc::new(move || Some(ack.as_ref()?.lock().ack())))
    });
    made.collect()
}

fn new_pit(out: &Outside, wires: &Wires) -> Arc<Mutex<Pit>> {
    let pit = Pit::new_shared(wires.isa(0), out.clock.clone());
    let signals = out.cpus[0].1.clone();
    pit.lock().wait_while(move || signals.pending().contains(Events::INTR));
    pit
}

fn add_timers(b: &mut Builder, config: MachineConfig, out: &Outside, wires: &Wires, map: &MemMap) -> Result<Parts, BoardError> {
    let pit = new_pit(out, wires);
    let rtc = Rtc::new_shared(wires.isa(8), out.clock.clone(), out.unix_seconds);
    let (below, above) = memory::sizes(map);
    rtc.lock().set_memory(below, above);
    let mut block = None;
    if config.hpet {
        let hpet = Hpet::new_shared(wires.gsis(), [wires.isa(0), wires.isa(8)], out.clock.clone());
        let flag = hpet.lock().legacy_flag();
        pit.lock().cut_by(flag.clone());
        rtc.lock().cut_by(flag);
        b.mmio(&hpet, Pa(acpi::HPET_BASE.into()), HPET_SIZE);
        block = Some(hpet);
    }
    b.ports(&pit, &[(0x40, 4, pit::REGION_COUNTERS), (0x61, 1, pit::REGION_PORT_B)])?;
    b.ports(&rtc, &[(0x70, 2, 0)])?;
    Ok(Parts { rtc: Some(rtc), pit: Some(pit), hpet: block, ..Parts::default() })
}

fn add_power(b: &mut Builder, out: &Outside, wires: &Wires) -> Result<(Arc<Mutex<Pm>>, Arc<Typist>), BoardError> {
    let (reset, a20) = (out.power.clone(), out.a20.clone());
    let kbd = I8042::new(i8042::Wires {
        kbd_irq: wires.isa(1),
        aux_irq: wires.isa(12),
        reset: Box::new(move || reset.reset()),
        a20: Box::new(move |on| a20(on)),
    });
    let kbd = Arc::new(Mutex::new(kbd));
    b.ports(&kbd, &[(0x60, 1, i8042::REGION_DATA), (0x64, 1, i8042::REGION_COMMAND)])?;
    b.ports(&Arc::new(Mutex::new(Port92::new(out.power.clone(), out.a20.clone()))), &[(0x92, 1, 0)])?;
    let signals = out.cpus.iter().map(|(_, signals)| signals.clone()).collect();
    let smi = Arc::new(Mutex::new(if out.firmware.is_some() { Smi::taken(signals) } else { Smi::new(signals) }));
    b.ports(&smi, &[(APM, 2, smi::REGION_APM), (acpi::PM1A_EVT + SMI_EN, 8, smi::REGION_SMI)])?;
    let pm = Pm::new_shared(wires.isa(acpi::SCI_IRQ.into()), out.power.clone(), out.clock.clone());
    b.ports(&pm, &[(acpi::PM1A_EVT, pm::REGION_PM1_LEN, pm::REGION_PM1), (acpi::GPE0, pm::REGION_GPE0_LEN, pm::REGION_GPE0)])?;
    Ok((pm, Typist::new(kbd, &out.clock)))
}

fn add_vga(b: &mut Builder, out: &Outside) -> Result<Arc<Mutex<Vga>>, BoardError> {
    let vga = Arc::new(Mutex::new(Vga::new(out.clock.clone())));
    let ports: Vec<_> = (0..).zip(vga::PORTS).map(|(region, (first, len))| (first, len, region)).collect();
    b.ports(&vga, &ports)?;
    b.mmio.add(Pa(vga::MEMORY), vga::MEMORY_LEN, 0, vga.clone());
    Ok(vga)
}

type Uarts = [Option<Arc<Mutex<Uart16550>>>; 4];

fn add_serials(b: &mut Builder, out: &Outside, wires: &Wires) -> Result<Uarts, BoardError> {
    let mut uarts = Uarts::default();
    for (i, (name, port, irq)) in COM.into_iter().enumerate() {
        let Some(sink) = &out.serials[i] else { continue };
        let cell = Arc::new(Mutex::new(Uart16550::new(name, wires.isa_shared(irq, i as u32), &out.clock, sink.clone())));
        Uart16550::bind_timer(&cell);
        b.ports(&cell, &[(port, COM_PORTS, 0)])?;
        uarts[i] = Some(cell);
    }
    Ok(uarts)
}

fn add_extra(b: &mut Builder, out: &Outside) -> Result<(), BoardError> {
    for (spec, sink) in &out.devices {
        match (spec, sink) {
            (DeviceSpec::IsaDebugExit { iobase, iosize }, _) => {
                let exit = Arc::new(Mutex::new(DebugExit::new(out.power.clone())));
                b.ports(&exit, &[(*iobase, (*iosize).into(), 0)])?;
            }
            (DeviceSpec::IsaDebugcon { iobase, .. }, Some(sink)) => {
                b.ports(&Arc::new(Mutex::new(DebugCon::new(sink.clone()))), &[(*iobase, 1, 0)])?;
            }
            (DeviceSpec::IsaDebugcon { .. }, None) => {}
            // These are on PCI.
            _ => {}
        }
    }
    Ok(())
}
