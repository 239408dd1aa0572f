//! Tests of the local APIC and the APIC bus.

use super::apic_bus::{ApicBus, EoiSink};
use super::ioapic::{IoApic, IoApicInputs};
use super::lapic::{ExtInt, Lapic, LapicConfig};
use super::pic::{Pic, REGION_ELCR, REGION_MASTER};
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::testing::{Rng, contract};
use vm_core::{Clock, Device, Events, IrqLine, IrqSink, LoadError, Mmio, MsiSink, PortIo, Section, VcpuSignals};

const ID: u64 = 0x20;
const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;

fn config(id: u32, x2apic: bool) -> LapicConfig {
    LapicConfig { id, bsp: id == 0, x2apic, tsc_hz: 1_000_000_000, phys_bits: 40 }
}

fn no_pic() -> ExtInt {
    Arc::new(|| None)
}

/// `n` software-enabled APICs with IDs from 0.
fn cpus(n: u32) -> (Arc<ApicBus>, Vec<Arc<Lapic>>) {
    let (bus, clock) = (ApicBus::new(), Clock::new());
    let make = |id| {
        let l = Lapic::new(config(id, true), Arc::default(), &clock, &bus, no_pic());
        l.mmio_write(SVR, 0x1ff);
        l
    };
    let all = (0..n).map(make).collect();
    (bus, all)
}

fn one() -> (Arc<ApicBus>, Arc<Lapic>) {
    let (bus, mut all) = cpus(1);
    (bus, all.remove(0))
}

fn fixed(bus: &ApicBus, vector: u32) {
    bus.send_msi(0xfee0_0000, vector);
}

fn intr(l: &Lapic) -> bool {
    l.signals().pending().contains(Events::INTR)
}

fn bit(l: &Lapic, base: u64, v: u64) -> bool {
    l.mmio_read(base + (v / 32) * 16) >> (v % 32) & 1 != 0
}

/// The local APIC as the contract sees a device: region 0 is its page, region 1 its MSRs.
struct Adapter(Arc<Lapic>, #[allow(dead_code)] Arc<ApicBus>);

impl Device for Adapter {
    fn name(&self) -> &'static str {
        "lapic"
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn save(&self) -> Section {
        self.0.save()
    }
    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        self.0.load(s)
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl Mmio for Adapter {
    fn read(&mut self, region: u32, offset: u64, _: u8) -> u64 {
        match region {
            0 => self.0.mmio_read((offset & 0x3f) << 4).into(),
            1 => self.0.mmio_read(offset).into(),
            _ => self.0.msr_read(0x800 + (offset & 0x3f) as u32).unwrap_or(0),
        }
    }
    fn write(&mut self, region: u32, offset: u64, size: u8, value: u64) {
        match region {
            0 => self.0.mmio_write((offset & 0x3f) << 4, value as u32),
            1 => self.0.mmio_write(offset, value as u32),
            _ if size == 1 => drop(self.0.msr_write(0x1b, 0xfee0_0000 | value & 0xd00)),
            _ if size == 2 => drop(self.0.msr_write(0x6e0, value)),
            _ => drop(self.0.msr_write(0x800 + (offset & 0x3f) as u32, value & 0xff)),
        }
        self.0.ack();
        self.0.set_lint((value >> 40) as usize & 3, value >> 45 & 1 != 0);
    }
}

#[test]
fn keeps_the_device_contract() {
    for x2apic in [false, true] {
        contract(
            || {
                let bus = ApicBus::new();
                Adapter(Lapic::new(config(0, x2apic), Arc::default(), &Clock::new(), &bus, no_pic()), bus)
            },
            3,
            0x1100,
        );
    }
}

#[test]
fn intr_mirrors_what_ack_has() {
    let (bus, l) = one();
    let mut r = Rng(11);
    for _ in 0..20_000 {
        match r.below(5) {
            0 => fixed(&bus, r.below(256) as u32),
            1 => l.set_tpr(r.next_u64() as u8),
            2 => l.mmio_write(EOI, 0),
            3 => l.mmio_write(ICR, 0x4_4000 | r.below(256) as u32),
            _ => {
                let told = intr(&l);
                assert_eq!(l.ack().is_some(), told);
            }
        }
    }
}

#[test]
fn power_on_state_and_access_rules() {
    let bus = ApicBus::new();
    let l = Lapic::new(config(3, false), Arc::default(), &Clock::new(), &bus, no_pic());
    assert_eq!(l.mmio_read(ID), 0x0300_0000);
    assert_eq!(l.mmio_read(0x30), 0x0105_0014);
    assert_eq!((l.mmio_read(SVR), l.mmio_read(DFR), l.mmio_read(LDR)), (0xff, !0, 0));
    for i in 0..6 {
        assert_eq!(l.mmio_read(0x320 + 16 * i), 0x1_0000);
        l.mmio_write(0x320 + 16 * i, 0);
        assert_eq!(l.mmio_read(0x320 + 16 * i), 0x1_0000, "masked while software-disabled");
    }
    l.mmio_write(SVR, !0);
    assert_eq!(l.mmio_read(SVR), 0x13ff);
    for (i, w) in [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff].into_iter().enumerate() {
        l.mmio_write(0x320 + 16 * i as u64, !0);
        assert_eq!(l.mmio_read(0x320 + 16 * i as u64), w);
    }
    l.mmio_write(LDR, !0);
    l.mmio_write(DFR, 0x1234_5678);
    l.mmio_write(0x30, 0);
    l.mmio_write(0x100, !0);
    assert_eq!((l.mmio_read(LDR), l.mmio_read(DFR), l.mmio_read(0x100)), (0xff00_0000, 0x1fff_ffff, 0));
    l.mmio_write(SVR, 0xff);
    assert_eq!(l.mmio_read(LVT_LINT0), 0x1_a7ff);
    assert_eq!((l.mmio_read(0x24), l.mmio_read(0x1_0000)), (!0, !0));
    l.reset();
    assert_eq!(l.mmio_read(SVR), 0xff);
}

#[test]
fn priorities_and_nested_eoi() {
    let (bus, l) = one();
    fixed(&bus, 0x41);
    fixed(&bus, 0x35);
    assert!(intr(&l));
    assert_eq!(l.ack(), Some(0x41));
    assert_eq!(l.mmio_read(PPR), 0x40);
    assert!(!intr(&l) && l.ack().is_none(), "0x35 is below the one in service");
    fixed(&bus, 0x4f);
    assert!(!intr(&l), "the same class does not nest");
    fixed(&bus, 0x52);
    assert_eq!(l.ack(), Some(0x52));
    assert!(bit(&l, 0x100, 0x52) && bit(&l, 0x100, 0x41) && bit(&l, 0x200, 0x4f));
    l.mmio_write(EOI, 0);
    assert!(!bit(&l, 0x100, 0x52) && !intr(&l));
    l.mmio_write(EOI, 0);
    assert_eq!(l.ack(), Some(0x4f));
    l.mmio_write(EOI, 0);
    assert_eq!(l.ack(), Some(0x35));
    l.mmio_write(EOI, 0);
    l.mmio_write(EOI, 0);
    assert!(l.ack().is_none());
}

#[test]
fn task_priority() {
    let (bus, l) = one();
    l.set_tpr(5);
    assert_eq!((l.mmio_read(TPR), l.mmio_read(PPR), l.tpr()), (0x50, 0x50, 5));
    fixed(&bus, 0x5f);
    assert!(!intr(&l));
    l.mmio_write(TPR, 0x4f);
    assert!(intr(&l));
    l.mmio_write(TPR, 0x57);
    assert!(!intr(&l), "taken back before it was accepted");
    assert_eq!(l.ack(), None);
    assert_eq!(l.mmio_read(PPR), 0x57);
    l.mmio_write(TPR, 0x27);
    assert_eq!(l.ack(), Some(0x5f));
    assert_eq!(l.mmio_read(PPR), 0x50, "the sub-class is TPR's only while TPR leads");
}

#[test]
fn software_and_hardware_disable() {
    let (bus, l) = one();
    fixed(&bus, 0x40);
    l.mmio_write(SVR, 0xff);
    fixed(&bus, 0x60);
    assert_eq!(l.ack(), Some(0x40), "what was accepted is held");
    assert!(!bit(&l, 0x200, 0x60), "what came later was not accepted");
    assert!(l.msr_write(0x1b, 0xfee0_0000));
    assert_eq!((l.mmio_base(), l.mmio_read(ID)), (None, !0));
    l.set_lint(0, true);
    assert!(intr(&l), "LINT0 is INTR");
    l.set_lint(0, false);
    assert!(!intr(&l));
    l.set_lint(1, true);
    assert!(l.signals().pending().contains(Events::NMI));
    assert!(l.msr_write(0x1b, 0x1000_0800));
    assert_eq!(l.msr_read(0x1b), Some(0x1000_0900), "BSP stays");
    assert_eq!(l.mmio_base(), Some(0x1000_0000));
    assert_eq!(l.mmio_read(SVR), 0xff);
    for bad in [1 << 40, 0x1, 1 << 9] {
        assert!(!l.msr_write(0x1b, 0xfee0_0800 | bad));
    }
    assert_eq!((l.msr_read(0x1c), l.msr_write(0x1c, 0)), (None, false));
}

/// PIC INT -> LINT0, with the acknowledge going back.
fn with_pic() -> (Arc<Mutex<Pic>>, Arc<Lapic>, Arc<ApicBus>) {
    let bus = ApicBus::new();
    let pic = Arc::new(Mutex::new(Pic::new(IrqLine::new(bus.clone(), 0))));
    let p = pic.clone();
    let l = Lapic::new(config(0, false), Arc::default(), &Clock::new(), &bus, Arc::new(move || Some(p.lock().ack())));
    for (port, v) in [(0, 0x11), (1, 0x20), (1, 4), (1, 1)] {
        pic.lock().write(REGION_MASTER, port, 1, v);
    }
    (pic, l, bus)
}

#[test]
fn virtual_wire_carries_the_pic() {
    let (pic, l, bus) = with_pic();
    pic.lock().set_input(4, true);
    assert!(!intr(&l), "LINT0 is masked after reset");
    l.set_virtual_wire();
    assert_eq!((l.mmio_read(SVR), l.mmio_read(LVT_LINT0), l.mmio_read(LVT_LINT1)), (0x10f, 0x700, 0x400));
    l.set_tpr(15);
    assert!(intr(&l), "ExtINT does not care for the task priority");
    fixed(&bus, 0x31);
    l.set_tpr(0);
    assert_eq!((l.ack(), l.ack()), (Some(0x31), Some(0x24)), "fixed first");
    assert!(!intr(&l));
    assert_eq!(l.ack(), None);
    pic.lock().set_input(3, true);
    assert!(intr(&l));
    l.mmio_write(LVT_LINT0, 0x1_0700);
    assert!(!intr(&l));
}

#[test]
fn a_pic_level_that_goes_is_spurious_or_gone() {
    let (pic, l, _bus) = with_pic();
    l.set_virtual_wire();
    pic.lock().write(REGION_ELCR, 0, 1, 0x20);
    pic.lock().set_input(5, true);
    assert!(intr(&l));
    pic.lock().set_input(5, false);
    assert!(!intr(&l));
    assert_eq!(l.ack(), None);
}

#[test]
fn the_nmi_wire_reaches_all() {
    let (bus, c) = cpus(2);
    c.iter().for_each(|l| l.set_virtual_wire());
    bus.set_irq(1, true);
    assert!(c.iter().all(|l| l.signals().pending() == Events::NMI));
    bus.set_irq(2, true);
}

#[test]
fn extint_messages_ask_the_pic_once() {
    let (bus, l) = one();
    bus.send_msi(0xfee0_0000, 0x700);
    assert!(intr(&l));
    assert_eq!(l.ack(), None, "this board has no PIC");
    assert!(!intr(&l));
}

#[test]
fn lint_pins() {
    let (_bus, l) = one();
    l.mmio_write(LVT_LINT1, 0x400);
    l.set_lint(1, true);
    assert!(l.signals().pending().contains(Events::NMI));
    l.signals().clear(Events::NMI);
    l.set_lint(1, true);
    assert!(!l.signals().pending().contains(Events::NMI), "edges only");
    l.mmio_write(LVT_LINT0, 0x8061);
    l.set_lint(0, true);
    assert_eq!(l.mmio_read(LVT_LINT0), 0xc061);
    assert_eq!(l.ack(), Some(0x61));
    assert!(bit(&l, 0x180, 0x61));
    l.mmio_write(EOI, 0);
    assert_eq!(l.ack(), Some(0x61), "the level is still there");
    l.set_lint(0, false);
    l.mmio_write(EOI, 0);
    assert_eq!((l.ack(), l.mmio_read(LVT_LINT0)), (None, 0x8061));
    l.mmio_write(LVT_LINT0, 0x62);
    l.set_lint(0, true);
    assert_eq!(l.ack(), Some(0x62));
    l.mmio_write(EOI, 0);
    assert_eq!(l.ack(), None);
    l.set_lint(7, true);
}

#[test]
fn level_interrupts_through_the_ioapic_come_again() {
    let (bus, l) = one();
    let io = Arc::new(Mutex::new(IoApic::new(bus.clone())));
    let inputs = Arc::new(IoApicInputs(io.clone()));
    bus.add_eoi_sink(inputs.clone());
    let write = |reg: u64, v: u64| {
        io.lock().write(0, 0, 4, reg);
        io.lock().write(0, 0x10, 4, v);
    };
    write(0x10 + 2 * 9, 0x8059);
    inputs.set_irq(9, true);
    assert_eq!(l.ack(), Some(0x59));
    assert!(bit(&l, 0x180, 0x59));
    l.mmio_write(EOI, 0);
    assert_eq!(l.ack(), Some(0x59));
    inputs.set_irq(9, false);
    l.mmio_write(EOI, 0);
    assert_eq!(l.ack(), None);
    // With broadcasts suppressed software ends it at the I/O APIC.
    l.mmio_write(SVR, 0x11ff);
    inputs.set_irq(9, true);
    assert_eq!(l.ack(), Some(0x59));
    l.mmio_write(EOI, 0);
    assert_eq!(l.ack(), None);
    io.lock().write(0, 0x40, 4, 0x59);
    assert_eq!(l.ack(), Some(0x59));
}

#[test]
fn only_level_interrupts_broadcast_their_eoi() {
    struct Heard(Mutex<Vec<u8>>);
    impl EoiSink for Heard {
        fn eoi(&self, vector: u8) {
            self.0.lock().push(vector);
        }
    }
    let (bus, l) = one();
    let heard = Arc::new(Heard(Mutex::default()));
    bus.add_eoi_sink(heard.clone());
    for data in [0xc050, 0x50, 0x51, 0xc052] {
        bus.send_msi(0xfee0_0000, data);
        assert_eq!(l.ack(), Some(data as u8));
        l.mmio_write(EOI, 0);
    }
    assert_eq!(*heard.0.lock(), [0x50, 0x52]);
}

#[test]
fn errors() {
    let (bus, l) = one();
    l.mmio_write(LVT_ERROR, 0x70);
    l.mmio_write(ICR, 0x4_4005);
    assert_eq!(l.ack(), Some(0x70));
    l.mmio_write(EOI, 0);
    fixed(&bus, 0x0f);
    l.mmio_write(0x30, 0);
    l.mmio_write(ESR, 0);
    assert_eq!(l.mmio_read(ESR), 0x60, "a write to a read-only register is dropped, no error");
    l.mmio_write(ESR, 0);
    l.mmio_write(ICR, 0x4_4005);
    fixed(&bus, 0x0f);
    l.mmio_read(0x3f0);
    assert_eq!(l.mmio_read(ESR), 0, "software sees errors after writing ESR");
    l.mmio_write(ESR, 0);
    assert_eq!(l.mmio_read(ESR), 0xe0);
    l.mmio_write(ESR, 0);
    assert_eq!(l.mmio_read(ESR), 0);
    l.mmio_write(LVT_ERROR, 0x05);
    l.mmio_write(0x2f0, 0);
    l.mmio_write(ESR, 0);
    assert_eq!(l.mmio_read(ESR), 0xc0, "an illegal error vector is an error too");
}

/// Which of the APICs took `vector`; takes and ends it there.
fn takers(all: &[Arc<Lapic>], vector: u8) -> Vec<usize> {
    let took = |l: &Arc<Lapic>| {
        let v = l.ack();
        if v.is_some() {
            l.mmio_write(EOI, 0);
        }
        v == Some(vector)
    };
    (0..all.len()).filter(|i| took(&all[*i])).collect()
}

fn ipi(l: &Lapic, dest: u32, low: u32) {
    l.mmio_write(ICR_HIGH, dest << 24);
    l.mmio_write(ICR, low);
}

#[test]
fn physical_destinations_and_shorthands() {
    let (_bus, c) = cpus(4);
    ipi(&c[0], 2, 0x4050);
    assert_eq!(takers(&c, 0x50), [2]);
    ipi(&c[0], 0xff, 0x4050);
    assert_eq!(takers(&c, 0x50), [0, 1, 2, 3]);
    ipi(&c[1], 0, 0x4_4050);
    assert_eq!(takers(&c, 0x50), [1]);
    ipi(&c[1], 0, 0x8_4050);
    assert_eq!(takers(&c, 0x50), [0, 1, 2, 3]);
    ipi(&c[1], 0, 0xc_4050);
    assert_eq!(takers(&c, 0x50), [0, 2, 3]);
    ipi(&c[0], 9, 0x4050);
    ipi(&c[0], 1, 0x4750);
    ipi(&c[0], 1, 0x8050);
    assert!(takers(&c, 0x50).is_empty(), "nobody there, reserved mode, level de-assert");
    c[3].mmio_write(ID, 0x0900_0000);
    ipi(&c[0], 9, 0x4050);
    assert_eq!(takers(&c, 0x50), [3]);
}

#[test]
fn logical_destinations() {
    let (bus, c) = cpus(4);
    for (i, l) in c.iter().enumerate() {
        l.mmio_write(LDR, 1 << (24 + i));
    }
    ipi(&c[0], 0b1010, 0x4850);
    assert_eq!(takers(&c, 0x50), [1, 3]);
    bus.send_msi(0xfee0_5004, 0x51);
    assert_eq!(takers(&c, 0x51), [0, 2]);
    for (i, l) in c.iter().enumerate() {
        l.mmio_write(DFR, 0);
        l.mmio_write(LDR, [0x11, 0x12, 0x21, 0x22][i] << 24);
    }
    ipi(&c[0], 0x13, 0x4850);
    assert_eq!(takers(&c, 0x50), [0, 1]);
    ipi(&c[0], 0x22, 0x4850);
    assert_eq!(takers(&c, 0x50), [3]);
    ipi(&c[0], 0xff, 0x4850);
    assert_eq!(takers(&c, 0x50), [0, 1, 2, 3]);
    c[2].mmio_write(DFR, 0x7000_0000);
    ipi(&c[0], 0x21, 0x4850);
    assert!(takers(&c, 0x50).is_empty(), "a reserved model matches nothing");
}

#[test]
fn lowest_priority_goes_to_one() {
    let (bus, c) = cpus(3);
    for (i, l) in c.iter().enumerate() {
        l.mmio_write(LDR, 1 << (24 + i));
        l.set_tpr([4, 2, 3][i]);
    }
    ipi(&c[0], 7, 0x4950);
    assert_eq!(takers(&c, 0x50), [1]);
    c[1].mmio_write(SVR, 0xff);
    bus.send_msi(0xfee0_700c, 0x52);
    assert_eq!(takers(&c, 0x52), [2], "redirection hint; a disabled APIC takes no part");
    c.iter().for_each(|l| l.set_tpr(0));
    ipi(&c[0], 7, 0x4950);
    ipi(&c[0], 7, 0x4951);
    let count: Vec<_> = c.iter().map(|l| usize::from(l.ack().is_some())).collect();
    assert_eq!(count, [1, 0, 1], "equals share by vector");
}

#[test]
fn nmi_smi_init_and_startup() {
    let (_bus, c) = cpus(2);
    let ap = &c[1];
    ipi(&c[0], 1, 0x4400);
    ipi(&c[0], 1, 0x4200);
    assert_eq!(ap.signals().pending(), Events::NMI | Events::SMI);
    ap.signals().clear(Events::all());
    ap.mmio_write(LDR, 0x200_0000);
    ap.mmio_write(ID, 0x0500_0000);
    ipi(&c[0], 5, 0xc500);
    assert_eq!(ap.signals().pending(), Events::INIT);
    assert_eq!((ap.mmio_read(SVR), ap.mmio_read(LDR), ap.mmio_read(ID)), (0xff, 0, 0x0500_0000));
    ipi(&c[0], 5, 0x8500);
    ipi(&c[0], 5, 0x469a);
    assert_eq!(ap.signals().pending(), Events::INIT | Events::SIPI);
    assert_eq!(ap.sipi_vector(), 0x9a);
    ap.signals().clear(Events::all());
    ipi(&c[0], 5, 0x4699);
    assert!(ap.signals().pending().is_empty(), "a second start-up IPI finds nobody waiting");
    assert_eq!(ap.sipi_vector(), 0x9a);
    ipi(ap, 0, 0x4500);
    ipi(ap, 0, 0x4620);
    assert_eq!(c[0].signals().pending(), Events::INIT, "the bootstrap processor does not wait");
}

#[test]
fn messages_that_are_not_for_apics_are_dropped() {
    let (bus, l) = one();
    bus.send_msi(0xfed0_0000, 0x50);
    bus.send_msi(0x1_fee0_0000, 0x50);
    bus.send_msi(0xfee0_0000, 0x350);
    bus.send_msi(0xfee0_0000, 0x8050);
    bus.send_msi(0xfee0_3000, 0x50);
    assert_eq!(l.ack(), None);
    bus.send_msi(0xfeef_f000, 0x50);
    assert_eq!(l.ack(), Some(0x50));
}

#[test]
fn x2apic_mode() {
    let (bus, c) = cpus(2);
    let l = &c[1];
    assert_eq!(l.msr_read(0x802), None);
    assert!(!l.msr_write(0x1b, 0xfee0_0400), "EXTD without EN");
    assert!(l.msr_write(0x1b, 0xfee0_0c00));
    assert_eq!((l.mmio_base(), l.mmio_read(ID)), (None, !0));
    assert_eq!((l.msr_read(0x802), l.msr_read(0x80d)), (Some(1), Some(2)));
    for none in [0x80e, 0x831, 0x80b, 0x83f, 0x82f, 0x840] {
        assert_eq!(l.msr_read(none), None, "{none:x}");
    }
    for (bad, v) in [(0x802, 0), (0x80d, 0), (0x80b, 1), (0x808, 0x100), (0x832, 1 << 19), (0x838, 1 << 32), (0x831, 0)] {
        assert!(!l.msr_write(bad, v), "{bad:x}");
    }
    assert!(l.msr_write(0x80f, 0x1ff) && l.msr_write(0x83f, 0x45));
    assert_eq!(l.ack(), Some(0x45));
    assert!(l.msr_write(0x80b, 0));
    assert!(l.msr_write(0x830, 1 << 32 | 0x4846));
    assert_eq!((l.msr_read(0x830), c[0].ack()), (Some(1 << 32 | 0x4846), None));
    assert!(l.msr_write(0x830, 2 << 32 | 0x4846));
    assert_eq!(l.ack(), Some(0x46));
    assert!(l.msr_write(0x80b, 0));
    bus.send_msi(0xfee0_1000, 0x47);
    assert_eq!(l.ack(), Some(0x47));
    assert!(!l.msr_write(0x1b, 0xfee0_0800), "back only by way of disabled");
    assert!(l.msr_write(0x1b, 0xfee0_0000) && !l.msr_write(0x1b, 0xfee0_0c00));
    assert!(l.msr_write(0x1b, 0xfee0_0800));
    let plain = Lapic::new(config(0, false), Arc::default(), &Clock::new(), &ApicBus::new(), no_pic());
    assert!(!plain.msr_write(0x1b, 0xfee0_0d00), "not offered");
}

#[test]
fn x2apic_clusters() {
    let (bus, clock) = (ApicBus::new(), Clock::new());
    let make = |id| {
        let l = Lapic::new(config(id, true), Arc::default(), &clock, &bus, no_pic());
        assert!(l.msr_write(0x1b, l.msr_read(0x1b).unwrap() | 0x400) && l.msr_write(0x80f, 0x1ff));
        l
    };
    let c = [make(0x05), make(0x125), make(0x126)];
    assert_eq!(c[1].msr_read(0x80d), Some(0x12_0020));
    let took = |v| c.each_ref().map(|l| l.ack() == Some(v));
    assert!(c[0].msr_write(0x830, 0x12_0020 << 32 | 0x4850));
    assert_eq!(took(0x50), [false, true, false]);
    assert!(c[0].msr_write(0x830, 0x12_0060 << 32 | 0x4860));
    assert_eq!(took(0x60), [false, true, true]);
    assert!(c[0].msr_write(0x830, 0x126 << 32 | 0x4070));
    assert_eq!(took(0x70), [false, false, true]);
    assert!(c[0].msr_write(0x830, 0xffff_ffff << 32 | 0x4080));
    assert_eq!(took(0x80), [true; 3]);
    bus.send_msi(0xfee2_0004, 0x90);
    assert_eq!(took(0x90), [true, false, false], "an 8-bit logical destination is in cluster 0");
}

#[test]
fn a_loaded_apic_drives_its_output() {
    let (bus, l) = one();
    fixed(&bus, 0x50);
    let saved = l.save();
    let m = Lapic::new(config(0, true), Arc::new(VcpuSignals::default()), &Clock::new(), &ApicBus::new(), no_pic());
    m.load(&saved).unwrap();
    assert!(intr(&m));
    assert_eq!(m.ack(), Some(0x50));
    let mut bad = saved.clone();
    bad.data["svr"] = 0x8000.into();
    assert!(m.load(&bad).is_err());
    l.reset();
    assert!(!intr(&l));
}
