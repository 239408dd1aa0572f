//! Tests of the I/O APIC.

use super::ioapic::{IoApic, IoApicInputs, PINS};
use super::message::{Delivery, Dest, Message, decode_msi};
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::testing::{Rng, contract};
use vm_core::{Device, IrqSink, Mmio, MsiSink};

#[derive(Default)]
struct Sent(Mutex<Vec<Message>>);

impl MsiSink for Sent {
    fn send_msi(&self, addr: u64, data: u32) {
        self.0.lock().push(decode_msi(addr, data).expect("the I/O APIC sends valid messages"));
    }
}

fn make() -> (IoApic, Arc<Sent>) {
    let sent = Arc::new(Sent::default());
    (IoApic::new(sent.clone()), sent)
}

fn set(d: &mut IoApic, reg: u8, v: u32) {
    d.write(0, 0, 4, reg.into());
    d.write(0, 0x10, 4, v.into());
}

fn get(d: &mut IoApic, reg: u8) -> u32 {
    d.write(0, 0, 1, reg.into());
    d.read(0, 0x10, 4) as u32
}

fn take(s: &Sent) -> Vec<Message> {
    std::mem::take(&mut s.0.lock())
}

#[test]
fn keeps_the_device_contract() {
    contract(|| make().0, 1, 0x44);
}

#[test]
fn survives_hostile_traffic_with_moving_inputs() {
    let d = Arc::new(Mutex::new(make().0));
    let inputs = IoApicInputs(d.clone());
    let mut r = Rng(3);
    for _ in 0..50_000 {
        inputs.set_irq(r.below(32) as u32, r.below(2) == 1);
        set(&mut d.lock(), r.below(0x48) as u8, r.next_u64() as u32);
        d.lock().eoi(r.next_u64() as u8);
    }
}

#[test]
fn registers() {
    let (mut d, _) = make();
    assert_eq!(get(&mut d, 1), 0x0017_0020);
    set(&mut d, 0, 0xffff_ffff);
    assert_eq!((get(&mut d, 0), get(&mut d, 2)), (0x0f00_0000, 0x0f00_0000));
    assert_eq!(get(&mut d, 0x10), 0x1_0000, "masked after reset");
    set(&mut d, 0x10 + 2 * 23, 0xffff_ffff);
    set(&mut d, 0x11 + 2 * 23, 0xffff_ffff);
    assert_eq!((get(&mut d, 0x3e), get(&mut d, 0x3f)), (0x1_afff, 0xff00_0000));
    assert_eq!(get(&mut d, 0x40), !0);
    assert_eq!(d.read(0, 0x10, 2), !0, "the window takes 32-bit accesses only");
}

#[test]
fn edges() {
    let (mut d, sent) = make();
    d.set_input(4, true);
    d.set_input(4, false);
    set(&mut d, 0x19, 0x0200_0000);
    set(&mut d, 0x18, 0x31);
    assert!(take(&sent).is_empty(), "an edge under the mask is lost");
    d.set_input(4, true);
    d.set_input(4, true);
    let m = Message { dest: Dest::Physical(2), delivery: Delivery::Fixed, vector: 0x31, level: false };
    assert_eq!(take(&sent), [m]);
    d.set_input(4, false);
    d.set_input(4, true);
    assert_eq!(take(&sent), [m], "no EOI is needed");
    d.set_input(PINS as u32, true);
    d.set_input(!0, true);
    assert!(take(&sent).is_empty());
}

#[test]
fn levels_wait_for_eoi_and_come_again() {
    let (mut d, sent) = make();
    d.set_input(10, true);
    set(&mut d, 0x10 + 20, 0x1_8955);
    assert!(take(&sent).is_empty());
    set(&mut d, 0x11 + 20, 0x0300_0000);
    set(&mut d, 0x10 + 20, 0x8955);
    let m = Message { dest: Dest::Logical(3), delivery: Delivery::LowestPriority, vector: 0x55, level: true };
    assert_eq!(take(&sent), [m], "delivered on unmasking: a level is not lost");
    assert_eq!(get(&mut d, 0x10 + 20), 0xc955);
    d.set_input(10, false);
    d.set_input(10, true);
    assert!(take(&sent).is_empty(), "remote IRR holds it");
    d.eoi(0x54);
    assert!(take(&sent).is_empty());
    d.eoi(0x55);
    assert_eq!(take(&sent), [m]);
    d.set_input(10, false);
    d.write(0, 0x40, 4, 0x55);
    assert!(take(&sent).is_empty());
    assert_eq!(get(&mut d, 0x10 + 20), 0x8955);
}

#[test]
fn edge_mode_clears_remote_irr() {
    let (mut d, sent) = make();
    set(&mut d, 0x10, 0x8040);
    d.set_input(0, true);
    assert_eq!(take(&sent).len(), 1);
    set(&mut d, 0x10, 0x1_0040);
    assert_eq!(get(&mut d, 0x10), 0x1_0040);
    set(&mut d, 0x10, 0x8040);
    assert_eq!(take(&sent).len(), 1);
}

#[test]
fn nmi_and_extint_are_edges_whatever_the_trigger_bit() {
    let (mut d, sent) = make();
    set(&mut d, 0x10, 0x8400);
    d.set_input(0, true);
    d.set_input(0, false);
    d.set_input(0, true);
    let modes: Vec<_> = take(&sent).iter().map(|m| (m.delivery, m.level)).collect();
    assert_eq!(modes, [(Delivery::Nmi, false); 2]);
    set(&mut d, 0x12, 0x700);
    d.set_input(1, true);
    assert_eq!(take(&sent)[0].delivery, Delivery::ExtInt);
    set(&mut d, 0x14, 0x300);
    d.set_input(2, true);
    assert!(take(&sent).is_empty(), "reserved mode");
}

#[test]
fn state_with_reserved_bits_is_refused() {
    let (mut d, _) = make();
    let mut s = d.save();
    s.data["lines"] = 0x100_0000.into();
    assert!(d.load(&s).is_err());
}
