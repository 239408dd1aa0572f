//! Tests of the wiring: ports answer, memory lies where it should, interrupts reach the CPU by the way that is set up.

use super::*;
use crate::options::{MachineKind, PciSlot, ShareConfig};
use crate::share::Shares;
use devices::chr::NullSink;
use vm_core::{CpuIo, Events, Target};

const MIB: u64 = 1 << 20;

#[derive(Default)]
struct Asked(Mutex<Vec<String>>);

impl PowerSink for Asked {
    fn reset(&self) {
        self.0.lock().push("reset".into());
    }
    fn power_off(&self) {
        self.0.lock().push("off".into());
    }
    fn exit(&self, status: i32) {
        self.0.lock().push(format!("exit {status}"));
    }
}

fn outside(power: Arc<Asked>) -> Outside {
    let a20 = power.clone();
    Outside {
        clock: Clock::new(),
        cpus: vec![(0, Arc::default())],
        power,
        a20: Arc::new(move |on| a20.0.lock().push(format!("a20 {on}"))),
        remap: Arc::new(|| {}),
        firmware: None,
        serials: [Some(Arc::new(NullSink)), None, Some(Arc::new(NullSink)), None],
        devices: vec![(DeviceSpec::IsaDebugExit { iobase: 0x501, iosize: 2 }, None)],
        disks: BTreeMap::new(),
        nets: Default::default(),
        virtio: Default::default(),
        unix_seconds: 0,
    }
}

const CONFIG: MachineConfig = MachineConfig { kind: MachineKind::Pc, acpi: true, hpet: true, vga: true, kernel_args: true };

fn board(mem: u64) -> (BoardIo, Arc<Asked>) {
    let asked = Arc::new(Asked::default());
    (BoardIo(Arc::new(Board::new(CONFIG, mem, outside(asked.clone())).unwrap()), 0), asked)
}

/// ICW1-4 of both 8259s: vectors 20h and 28h, all inputs but `open` masked.
fn program_pics(io: &BoardIo, open: u8) {
    for (port, vector, wiring) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
        io.port_write(port, 1, 0x11);
        [vector, wiring, 1, 0xff].into_iter().for_each(|v| io.port_write(port + 1, 1, v));
    }
    io.port_write(0x21, 1, u32::from(!open));
}

/// Counter 0 in mode 2, 1000 pulses.
fn start_pit(io: &BoardIo) {
    [(0x43, 0x34), (0x40, 0xe8), (0x40, 3)].into_iter().for_each(|(p, v)| io.port_write(p, 1, v));
}

fn pass(io: &BoardIo, ns: u64) {
    let clock = &io.0.clock;
    clock.set(clock.now() + ns);
    clock.run_expired();
}

#[test]
fn the_pit_reaches_the_cpu_through_8259_and_virtual_wire() {
    let (io, _) = board(16 * MIB);
    io.0.prepare_direct_boot();
    // Mode 2 starts with OUT high: ICW1 forgets that edge.
    start_pit(&io);
    program_pics(&io, 1);
    assert!(!io.signals().pending().contains(Events::INTR));
    pass(&io, 2_000_000);
    assert!(io.signals().pending().contains(Events::INTR));
    assert_eq!(io.ack_intr(), Some(0x20));
    assert!(!io.signals().pending().contains(Events::INTR));
    assert_eq!(io.ack_intr(), None);
}

#[test]
fn the_pit_reaches_the_cpu_through_io_apic_input_2() {
    let (io, _) = board(16 * MIB);
    // Enable the local APIC; entry 2 of the I/O APIC: vector 41h to APIC 0, edge.
    io.mmio_write(Pa(0xfee0_00f0), 4, 0x1ff);
    for (r, v) in [(0x15, 0), (0x14, 0x41)] {
        io.mmio_write(Pa(0xfec0_0000), 4, r);
        io.mmio_write(Pa(0xfec0_0010), 4, v);
    }
    start_pit(&io);
    pass(&io, 2_000_000);
    assert_eq!(io.ack_intr(), Some(0x41));
}

#[test]
fn hpet_legacy_replacement_cuts_the_pit() {
    let (io, _) = board(16 * MIB);
    io.0.prepare_direct_boot();
    program_pics(&io, 1);
    io.mmio_write(Pa(0xfed0_0010), 4, 3);
    start_pit(&io);
    pass(&io, 5_000_000);
    assert_eq!(io.ack_intr(), None);
}

#[test]
fn com1_and_com3_share_their_interrupt() {
    let (io, _) = board(16 * MIB);
    io.0.prepare_direct_boot();
    program_pics(&io, 1 << 4);
    // ELCR: input 4 by level. Both ports raise THRE; the line stays up until both are served.
    io.port_write(0x4d0, 1, 0x10);
    for port in [0x3f8, 0x3e8] {
        io.port_write(port + 4, 1, 8);
        io.port_write(port + 1, 1, 2);
    }
    assert_eq!(io.ack_intr(), Some(0x24));
    io.port_write(0x20, 1, 0x20);
    io.port_write(0x3f8 + 1, 1, 0);
    assert_eq!(io.ack_intr(), Some(0x24));
    io.port_write(0x20, 1, 0x20);
    io.port_write(0x3e8 + 1, 1, 0);
    assert_eq!(io.ack_intr(), None);
}

#[test]
fn ports_answer_and_the_others_read_ones() {
    let (io, asked) = board(16 * MIB);
    assert_eq!(io.port_read(0x92, 1), 2);
    assert_eq!(io.port_read(0x604, 2) & 1, 1);
    assert_eq!(io.port_read(0x3fd, 1), 0x60);
    assert_eq!(io.port_read(0x2fd, 1), 0xff);
    io.port_write(0xcf8, 4, 0x8000_0000);
    assert_eq!(io.port_read(0xcfc, 4), 0x29c0_8086);
    assert_eq!(io.mmio_read(Pa(0xb000_0000 | 1 << 15), 4), 0x7110_8086);
    io.port_write(0x501, 1, 0x10);
    io.port_write(0xcf9, 1, 6);
    io.port_write(0x92, 1, 0);
    io.port_write(0x604, 2, 0x3400);
    assert_eq!(*asked.0.lock(), ["exit 33", "reset", "a20 false", "off"]);
}

#[test]
fn ram_leaves_out_the_hole_and_continues_above_4_gib() {
    let (io, _) = board(4096 * MIB);
    let ram = |pa| matches!(io.target(Pa(pa)), Target::Ram { writable: true, .. });
    assert!(ram(0) && ram(0x9_ffff) && !ram(0xa_0000) && !ram(0xb_ffff) && ram(0xc_0000) && ram(0x10_0000));
    assert!(ram(0xafff_ffff) && !ram(0xb000_0000) && !ram(0xfee0_0000));
    assert!(ram(1 << 32) && ram((1 << 32) + 0x4fff_ffff) && !ram((1 << 32) + 0x5000_0000));
    io.mmio_write(Pa(1 << 32), 8, 0x1122_3344_5566_7788);
    assert_eq!(io.mmio_read(Pa((1 << 32) + 4), 4), 0x1122_3344);
    assert_eq!(io.mmio_read(Pa(0xa_0000), 4), 0xffff_ffff);
}

#[test]
fn the_local_apic_page_lies_over_ram() {
    let (io, _) = board(16 * MIB);
    let base = io.msr_read(0x1b).unwrap();
    assert_eq!(base, 0xfee0_0900);
    assert!(io.msr_write(0x1b, 0x20_0900));
    assert_eq!(io.target(Pa(0x20_0030)), Target::Mmio);
    assert_eq!(io.mmio_read(Pa(0x20_0030), 4) & 0xff, 0x14);
    assert!(matches!(io.target(Pa(0x20_1000)), Target::Ram { .. }));
}

#[test]
fn reset_gives_the_board_back_as_it_was_made() {
    let (io, _) = board(16 * MIB);
    io.0.prepare_direct_boot();
    program_pics(&io, 0xff);
    start_pit(&io);
    io.mmio_write(Pa(0xfee0_0080), 4, 0x20);
    io.ram().write(0x5000, b"kept");
    pass(&io, 3_000_000);
    io.0.reset();
    assert_eq!(io.cr8(), 0);
    assert!(io.signals().pending().is_empty());
    assert_eq!(io.port_read(0x21, 1), 0);
    assert_eq!(io.mmio_read(Pa(0x5000), 4), u64::from(u32::from_le_bytes(*b"kept")));
}

#[test]
fn ports_that_clash_and_too_much_ram_are_errors() {
    let clash = |iobase| {
        let asked = Arc::new(Asked::default());
        let devices = vec![(DeviceSpec::IsaDebugExit { iobase, iosize: 4 }, None)];
        Board::new(CONFIG, MIB, Outside { devices, ..outside(asked) }).err().map(|e| e.to_string())
    };
    assert_eq!(clash(0x3f6).as_deref(), Some("debug-exit and serial0 both want port 0x3f8"));
    assert_eq!(clash(0xfffe).as_deref(), Some("debug-exit wants ports beyond ffffh"));
    assert!(matches!(memory::make(1 << 41, 0), Err(BoardError::TooMuchRam(_))));
}

#[test]
fn acpi_tables_lie_in_ram_that_the_kernel_leaves_alone() {
    let (io, _) = board(16 * MIB);
    let tables = io.0.acpi_tables().unwrap();
    assert_eq!(&tables.blobs[0].1[..8], b"RSD PTR ");
    assert!(tables.rsdp.0 >= 0xe_0000 && tables.rsdp.0 + tables.span() < 0x10_0000);
    assert!(matches!(io.target(tables.rsdp), Target::Ram { writable: true, .. }));
    let off = MachineConfig { acpi: false, ..CONFIG };
    let bare = Board::new(off, 16 * MIB, outside(Arc::default())).unwrap();
    assert!(bare.acpi_tables().is_none());
}

/// A PCI device is found, its ports move, and its pin reaches the 8259s and the I/O APIC.
#[test]
fn pci_devices_move_and_interrupt() {
    let slot = PciSlot { addr: None, legacy: true, modern: true, vectors: None };
    let devices = vec![(DeviceSpec::VirtioRng { slot }, None)];
    let io = BoardIo(Arc::new(Board::new(CONFIG, 16 * MIB, Outside { devices, ..outside(Arc::default()) }).unwrap()), 0);
    io.0.prepare_direct_boot();
    let config = |offset: u32, value: u32| {
        io.port_write(0xcf8, 4, 0x8000_1000 | offset);
        io.port_write(0xcfc, 4, value);
        io.port_read(0xcfc, 4)
    };
    assert_eq!(config(0, 0), 0x1005_1af4);
    assert_eq!(config(0x3c, 0), 0x100, "the line is the guest's to write");
    config(0x10, 0xc000);
    config(4, 7);
    assert_eq!((io.port_read(0xc00c, 2), io.port_read(0xd00c, 2)), (8, 0xffff));
    config(0x10, 0xd000);
    assert_eq!((io.port_read(0xc00c, 2), io.port_read(0xd00c, 2)), (0xffff, 8));
    config(0x20, 0xe000_0000);
    assert_eq!(io.mmio_read(Pa(0xe000_0012), 2), 1, "number of queues");
    assert_eq!(io.mmio_read(Pa(0xe000_4000), 4), 0xffff_ffff);

    program_pics(&io, 0xff);
    io.port_write(0x4d1, 1, 4);
    io.port_write(0xa1, 1, 0xfb);
    // I/O APIC input 18: vector 51h to APIC 0, level, active low.
    io.mmio_write(Pa(0xfee0_00f0), 4, 0x1ff);
    for (r, v) in [(0x35, 0), (0x34, 0xa051)] {
        io.mmio_write(Pa(0xfec0_0000), 4, r);
        io.mmio_write(Pa(0xfec0_0010), 4, v);
    }
    // A queue that lies in no RAM: the device says that it needs a reset.
    io.port_write(0xd008, 4, 0xffff_ffff);
    io.port_write(0xd012, 1, 7);
    assert_eq!(io.port_read(0xd012, 1), 0x47);
    let both = [io.ack_intr(), io.ack_intr()];
    assert!(both.contains(&Some(0x2a)) && both.contains(&Some(0x51)), "{both:x?}");
    assert_eq!((io.port_read(0xd013, 1), io.port_read(0xd013, 1)), (2, 0));
    // Nobody raises it any more.
    [(0xa0, 0x20), (0x20, 0x20)].into_iter().for_each(|(p, v)| io.port_write(p, 1, v));
    io.mmio_write(Pa(0xfee0_00b0), 4, 0);
    assert_eq!(io.ack_intr(), None);
}

#[test]
fn pci_slots_that_are_taken_are_errors() {
    let slot = |addr| PciSlot { addr, legacy: true, modern: true, vectors: None };
    let made = |list: &[PciSlot]| {
        let devices = list.iter().map(|s| (DeviceSpec::VirtioRng { slot: *s }, None)).collect();
        Board::new(CONFIG, MIB, Outside { devices, ..outside(Arc::default()) }).err().map(|e| e.to_string())
    };
    assert_eq!(made(&[slot(Some((4, 0))), slot(Some((4, 1))), slot(None)]), None);
    assert_eq!(made(&[slot(Some((1, 0)))]).as_deref(), Some("-device virtio-rng-pci: PCI device 1.0 is there already"));
    assert_eq!(made(&[slot(None); 30]).as_deref(), Some("-device virtio-rng-pci: no PCI slot is free"));
}

fn microvm(devices: Vec<DeviceSpec>) -> Result<Board, BoardError> {
    let config = MachineConfig { kind: MachineKind::Microvm, ..CONFIG };
    let folder = ShareConfig { id: "f".into(), path: std::env::temp_dir(), read_only: true, passthrough: false };
    let shares = Shares::open(&[folder]).unwrap().all();
    let devices = devices.into_iter().map(|d| (d, None)).collect();
    let virtio = super::Ends { shares, ..Default::default() };
    Board::new(config, 16 * MIB, Outside { devices, virtio, ..outside(Arc::default()) })
}

/// Every virtio device has its slot there; boards that guests have written to at random are the same after loading.
#[test]
fn a_microvm_has_every_virtio_device() {
    let slot = PciSlot { addr: None, legacy: true, modern: true, vectors: None };
    let all = || {
        vec![
            DeviceSpec::VirtioSerial { max_ports: 4, ports: Vec::new(), slot },
            DeviceSpec::VirtioBalloon { deflate_on_oom: true, reporting: true, stats: None, slot },
            DeviceSpec::Virtio9p { share: "f".into(), tag: "tag".into(), slot },
            DeviceSpec::VirtioRng { slot },
            DeviceSpec::VirtioNet { netdev: None, mac: [2, 0, 0, 0, 0, 1], rx_queue: 64, tx_queue: 64, slot },
        ]
    };
    for seed in 0..8 {
        let io = BoardIo(Arc::new(microvm(all()).unwrap()), 0);
        let ids: Vec<u64> = (0..5).map(|n| io.mmio_read(Pa(0xfeb0_0008 + n * 0x200), 4)).collect();
        assert_eq!((ids, io.0.consoles.len(), io.0.balloon.is_some()), (vec![3, 5, 9, 4, 1], 1, true));
        let mut r = vm_core::testing::Rng(seed);
        for _ in 0..4000 {
            let at = Pa(0xfeb0_0000 + r.below(5) * 0x200 + r.pick(&[0, 0x100]) + 4 * r.below(0x40));
            let value = r.next_u64() >> r.below(64);
            // Mostly what a driver would do.
            let value = if at.0 & 0xff == 0x70 && r.one_in(2) { 15 } else { value };
            io.mmio_write(at, if r.one_in(8) { 1 << r.below(4) } else { 4 }, value);
            io.mmio_read(at, 4);
        }
        let sections = io.0.save();
        io.0.check(&mut None, &sections, 0).unwrap();
        let other = microvm(all()).unwrap();
        other.load(&sections).unwrap();
        assert!(other.save() == sections, "seed {seed}");
    }
    let nine = microvm(vec![DeviceSpec::VirtioRng { slot }; 9]).err().map(|e| e.to_string());
    assert_eq!(nine.as_deref(), Some("-device virtio-rng-device: microvm has room for 8 virtio devices"));
}

/// ROM at the reset vector and below 1 MiB, where the host bridge opens RAM; fw_cfg answers; a trial board leaves all of it alone.
#[test]
fn firmware_lies_behind_ram_that_the_host_bridge_opens() {
    let rom: Vec<u8> = (0..256u32 << 10).map(|i| (i >> 9) as u8 | 1).collect();
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    let out = Outside {
        remap: Arc::new(move || *count.lock() += 1),
        firmware: Some(Arc::new(Firmware { rom: rom.clone(), ..Firmware::default() })),
        ..outside(Arc::default())
    };
    let io = BoardIo(Arc::new(Board::new(CONFIG, 16 * MIB, out).unwrap()), 0);
    io.0.reset();
    io.0.load_firmware();
    let last = u64::from(rom[rom.len() - 16]);
    assert_eq!((io.mmio_read(Pa(0xffff_fff0), 1), io.mmio_read(Pa(0xf_fff0), 1)), (last, last));
    assert_eq!(io.mmio_read(Pa(0xfffc_0000), 1), u64::from(rom[0]));
    assert_eq!((io.mmio_read(Pa(0xe_0000), 1), io.target(Pa(0xc_0000))), (u64::from(rom[128 << 10]), Target::Mmio));
    io.mmio_write(Pa(0xf_fff0), 1, 0);
    assert_eq!(io.mmio_read(Pa(0xf_fff0), 1), last, "ROM");
    *told.lock() = 0;
    io.port_write(0xcf8, 4, 0x8000_0090);
    io.port_write(0xcfc, 1, 0x30);
    assert_eq!(*told.lock(), 1);
    io.mmio_write(Pa(0xf_fff0), 2, 0x1234);
    assert_eq!((io.mmio_read(Pa(0xf_fff0), 2), io.mmio_read(Pa(0xffff_fff0), 1)), (0x1234, last));
    io.port_write(0x510, 2, 0);
    assert_eq!((io.port_read(0x511, 1), io.port_read(0x511, 1)), (u32::from(b'Q'), u32::from(b'E')));
    let sections = io.0.save();
    io.0.check(&mut None, &sections, 0).unwrap();
    assert!(matches!(io.target(Pa(0xf_fff0)), Target::Ram { writable: true, .. }), "a trial has a map of its own");
    assert_eq!((*told.lock(), io.0.save() == sections), (1, true));
    io.0.reset();
    assert_eq!((io.mmio_read(Pa(0xf_fff0), 1), *told.lock()), (last, 2));
    io.0.load(&sections).unwrap();
    assert_eq!(io.mmio_read(Pa(0xf_fff0), 2), 0x1234);
    let wrong = |bytes: usize| {
        let firmware = Some(Arc::new(Firmware { rom: vec![0; bytes], ..Firmware::default() }));
        Board::new(CONFIG, MIB, Outside { firmware, ..outside(Arc::default()) }).err().map(|e| e.to_string())
    };
    assert!(wrong(1000).unwrap().contains("64 KiB") && wrong(0).is_some() && wrong(32 << 20).is_some());
}
