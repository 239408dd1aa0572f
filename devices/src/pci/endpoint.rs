//! What all PCI functions with registers of their own share: header, base address registers that move while the guest runs,
//! bus mastering, and interrupts by MSI-X, MSI or INTx (PCI Local Bus 3.0 §6).

use super::config::{BarKind, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, ConfigSpace, STATUS};
use super::decode::{BarRange, Decoder};
use super::master::BusMaster;
use super::msix::{self, Message, Msix};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Dma, IrqLine, MsiSink};

/// The wires of one slot.
pub struct PciWires {
    pub intx: IrqLine,
    pub msi: Arc<dyn MsiSink>,
    pub dma: Dma,
    /// What firmware would leave in the Interrupt Line register.
    pub line: u8,
}

impl PciWires {
    /// Wires that lead nowhere but to RAM, for tests and for trying saved states.
    pub fn unconnected(dma: Dma) -> Self {
        struct Nobody;
        impl MsiSink for Nobody {
            fn send_msi(&self, _: u64, _: u32) {}
        }
        Self { intx: IrqLine::unconnected(), msi: Arc::new(Nobody), dma, line: 0 }
    }
}

const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const CAPABILITIES: u16 = 0x34;
const FIRST_CAPABILITY: u16 = 0x40;
const CAP_MSIX: u8 = 0x11;
const CAP_MSI: u8 = 5;
/// MSI: offsets in the capability, and message control.
const MSI_CONTROL: u16 = 2;
const MSI_ADDRESS: u16 = 4;
const MSI_DATA: u16 = 12;
const MSI_ENABLE: u16 = 1;
const MSI_64_BIT: u16 = 1 << 7;

/// BAR of the MSI-X table and its pending bits.
pub const MSIX_BAR: u32 = 1;
const MSIX_BAR_SIZE: u64 = 4096;
const MSIX_PBA: u64 = 0x800;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    config: Vec<u8>,
    msix: Msix,
    intx: bool,
}

/// A type 0 function.
pub struct Endpoint {
    config: ConfigSpace,
    decoder: Arc<Decoder>,
    master: BusMaster,
    wires: PciWires,
    msix: Msix,
    /// Offset of the MSI-X capability's message control, if there is one.
    msix_control: Option<u16>,
    /// Offset of the MSI capability, if there is one.
    msi: Option<u16>,
    /// What the device wants on its INTx pin.
    intx: bool,
    last_cap: u16,
    free: u16,
}

impl Endpoint {
    /// `config` names the function and has its BARs, but for `MSIX_BAR`, which is added for `vectors` (1..=128).
    pub fn new(config: ConfigSpace, wires: PciWires, vectors: u16) -> Self {
        let mut e = Self::plain(config, wires);
        e.msix = Msix::new(vectors);
        e.add_pin();
        e.config.add_bar(MSIX_BAR as usize, BarKind::Memory32, MSIX_BAR_SIZE);
        let size = e.msix.vectors() - 1;
        let mut body = size.to_le_bytes().to_vec();
        body.extend(MSIX_BAR.to_le_bytes());
        body.extend((MSIX_PBA as u32 | MSIX_BAR).to_le_bytes());
        let at = e.add_capability(CAP_MSIX, &body);
        e.msix_control = Some(at + 2);
        let writable = (msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL).to_le_bytes();
        e.config.allow(at + 2, &writable);
        e
    }

    /// A function without interrupts. `config` names it and has its BARs.
    pub fn plain(config: ConfigSpace, wires: PciWires) -> Self {
        Self {
            config,
            decoder: Decoder::new(),
            master: BusMaster::new(wires.dma.clone()),
            msix_control: None,
            msi: None,
            msix: Msix::new(1),
            intx: false,
            last_cap: CAPABILITIES,
            free: FIRST_CAPABILITY,
            wires,
        }
    }

    /// A function with a pin and one message (§6.8.1).
    pub fn with_msi(config: ConfigSpace, wires: PciWires) -> Self {
        let mut e = Self::plain(config, wires);
        e.add_pin();
        let mut body = MSI_64_BIT.to_le_bytes().to_vec();
        body.extend([0; 10]);
        let at = e.add_capability(CAP_MSI, &body);
        e.config.allow(at + MSI_CONTROL, &MSI_ENABLE.to_le_bytes());
        e.config.allow(at + MSI_ADDRESS, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        e.config.allow(at + MSI_DATA, &[0xff; 2]);
        e.msi = Some(at);
        e
    }

    fn add_pin(&mut self) {
        self.config.set_interrupt_pin(1);
        self.config.set(super::config::INTERRUPT_LINE, &[self.wires.line]);
    }

    /// Whether interrupts are messages of the MSI capability.
    pub fn msi_enabled(&self) -> bool {
        self.msi.is_some_and(|at| self.config.read(at + MSI_CONTROL, 2) as u16 & MSI_ENABLE != 0)
    }

    /// Sends the message of the MSI capability, if it is enabled.
    pub fn send_msi(&self) {
        if let Some(at) = self.msi.filter(|_| self.msi_enabled()) {
            let read = |offset: u16, size| self.config.read(at + offset, size);
            let address = u64::from(read(MSI_ADDRESS + 4, 4)) << 32 | u64::from(read(MSI_ADDRESS, 4));
            self.send([(address, read(MSI_DATA, 2))]);
        }
    }

    /// Adds a capability with what follows its id and its link; gives its offset. They are few: 192 bytes in all.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u16 {
        let at = self.free;
        self.config.set(at, &[id, 0]);
        self.config.set(at + 2, body);
        let link = if self.last_cap == CAPABILITIES { CAPABILITIES } else { self.last_cap + 1 };
        self.config.set(link, &[at as u8]);
        self.config.set(STATUS, &[STATUS_CAPABILITIES]);
        self.last_cap = at;
        self.free = (at + 2 + body.len() as u16).next_multiple_of(4);
        at
    }

    /// Lets the guest change bytes of a capability.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        self.config.allow(offset, mask);
    }

    pub fn master(&self) -> &BusMaster {
        &self.master
    }

    pub fn decoder(&self) -> Arc<Decoder> {
        self.decoder.clone()
    }

    pub fn config_read(&self, offset: u16, size: u8) -> u32 {
        let v = self.config.read(offset, size);
        let status = u32::from(offset) + u32::from(size) > STATUS.into() && offset <= STATUS;
        if status && self.intx { v | u32::from(STATUS_INTERRUPT) << (8 * (STATUS - offset)) } else { v }
    }

    pub fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        let touches = |at: u16, len: u16| offset < at + len && at < offset.saturating_add(size.into());
        if self.msix_control.is_some_and(|at| touches(at, 2)) {
            self.msix_changed();
        }
        if self.msi.is_some_and(|at| touches(at + MSI_CONTROL, 2)) {
            self.drive();
        }
        if touches(COMMAND, 2) || touches(super::config::BAR0, 24) {
            self.follow();
        }
    }

    fn msix_changed(&mut self) {
        let due = self.msix.set_control(self.control());
        self.send(due);
        self.drive();
    }

    /// MSI-X's message control.
    fn control(&self) -> u16 {
        self.msix_control.map_or(0, |at| self.config.read(at, 2) as u16)
    }

    /// Lets bus, bus mastering and pin follow the header.
    fn follow(&mut self) {
        self.decoder.set(self.config.ranges());
        self.master.enable(self.config.command() & COMMAND_BUS_MASTER != 0);
        self.drive();
    }

    /// The pin is quiet while MSI-X or MSI is enabled (§6.8.2, §6.8.1).
    fn drive(&self) {
        let open = self.config.command() & COMMAND_INTX_DISABLE == 0 && !self.msix.enabled() && !self.msi_enabled();
        self.wires.intx.set(self.intx && open);
    }

    fn send(&self, messages: impl IntoIterator<Item = Message>) {
        // A message is a write to memory, which only bus masters do.
        let on = self.master.enabled();
        messages.into_iter().filter(|_| on).for_each(|(addr, data)| self.wires.msi.send_msi(addr, data));
    }

    /// What the device wants on its pin.
    pub fn set_intx(&mut self, on: bool) {
        if self.intx != on {
            self.intx = on;
            self.drive();
        }
    }

    pub fn msix_enabled(&self) -> bool {
        self.msix.enabled()
    }

    pub fn vectors(&self) -> u16 {
        self.msix.vectors()
    }

    /// Raises an MSI-X vector.
    pub fn raise(&mut self, vector: u16) {
        let due = self.msix.raise(vector);
        self.send(due);
    }

    /// `MSIX_BAR`.
    pub fn msix_read(&self, offset: u64, size: u8) -> u64 {
        if offset < MSIX_PBA { self.msix.read(offset, size) } else { self.msix.pending(offset - MSIX_PBA, size) }
    }

    pub fn msix_write(&mut self, offset: u64, size: u8, value: u64) {
        if offset < MSIX_PBA {
            let due = self.msix.write(offset, size, value);
            self.send(due);
        }
    }

    pub fn reset(&mut self) {
        self.config.reset();
        self.msix = Msix::new(self.msix.vectors());
        self.intx = false;
        self.follow();
    }

    pub fn save(&self) -> EndpointState {
        EndpointState { config: self.config.bytes(), msix: self.msix.clone(), intx: self.intx }
    }

    /// Takes a saved state; on an error, which is told, nothing has changed. No message is sent.
    pub fn load(&mut self, s: EndpointState) -> Result<(), &'static str> {
        let mut msix = self.msix.clone();
        if !msix.restore(s.msix) {
            return Err("another number of MSI-X vectors");
        }
        if !self.config.restore(&s.config) {
            return Err("configuration space of the wrong size");
        }
        let control = self.control();
        self.msix = msix;
        self.intx = s.intx;
        // Enable and mask have one home, the capability. Nothing is due in a state that this program saved.
        self.msix.set_control(control);
        self.follow();
        Ok(())
    }
}

/// Of a `PciFunction` whose configuration space is that of its field `endpoint`.
macro_rules! config_by_endpoint {
    () => {
        fn config_read(&mut self, offset: u16, size: u8) -> u32 {
            self.endpoint.config_read(offset, size)
        }

        fn config_write(&mut self, offset: u16, size: u8, value: u32) {
            self.endpoint.config_write(offset, size, value);
        }

        fn decoder(&self) -> Option<Arc<Decoder>> {
            Some(self.endpoint.decoder())
        }
    };
}
pub(crate) use config_by_endpoint;

/// The ranges that are enabled, for the bus.
impl ConfigSpace {
    pub(super) fn ranges(&self) -> Vec<BarRange> {
        let one = |bar: usize| {
            let (io, len) = self.bar_size(bar)?;
            let start = self.bar(bar)?;
            // Neither unassigned, nor as sizing leaves it.
            (start != 0 && start.checked_add(len).is_some()).then_some(BarRange { bar: bar as u32, io, start, len })
        };
        (0..6).filter_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use vm_core::{MemMap, Pa, Ram};

    #[derive(Default)]
    struct Heard(Mutex<Vec<(u64, u32)>>);

    impl MsiSink for Heard {
        fn send_msi(&self, addr: u64, data: u32) {
            self.0.lock().push((addr, data));
        }
    }

    impl vm_core::IrqSink for Heard {
        fn set_irq(&self, _: u32, level: bool) {
            self.0.lock().push((0, level.into()));
        }
    }

    fn endpoint() -> (Endpoint, Arc<Heard>) {
        let mut map = MemMap::default();
        map.map_ram(Pa(0), 0x1000, 0, true);
        let heard = Arc::new(Heard::default());
        let dma = Dma::new(Arc::new(Ram::new(0x1000).unwrap()), &map);
        let wires = PciWires { intx: IrqLine::new(heard.clone(), 0), msi: heard.clone(), dma, line: 11 };
        let mut config = ConfigSpace::new(0x1af4, 0x1001, 0x01_00_00, 0);
        config.add_bar(0, BarKind::Io, 32);
        config.add_bar(4, BarKind::Memory64, 0x4000);
        (Endpoint::new(config, wires, 4), heard)
    }

    #[test]
    fn capabilities_are_linked() {
        let (mut e, _) = endpoint();
        let second = e.add_capability(9, &[1, 2, 3]);
        assert_eq!(e.config_read(6, 2) & 0x10, 0x10);
        assert_eq!(e.config_read(0x34, 1), 0x40);
        assert_eq!(e.config_read(0x40, 4), 0x0003_0011 | u32::from(second) << 8);
        assert_eq!((e.config_read(0x44, 4), e.config_read(0x48, 4)), (1, 0x801));
        assert_eq!(e.config_read(second, 4), 0x0201_0009);
        assert_eq!(e.config_read(0x3c, 2), 0x010b);
    }

    #[test]
    fn bars_move_while_the_function_lives() {
        let (mut e, _) = endpoint();
        let d = e.decoder();
        e.config_write(0x10, 4, 0xc000);
        e.config_write(0x20, 4, 0xd000_0000);
        assert_eq!(d.find(true, 0xc000, 1), None, "not enabled");
        e.config_write(4, 2, 3);
        assert_eq!((d.find(true, 0xc01c, 4), d.find(true, 0xc01d, 4)), (Some((0, 0x1c)), None));
        assert_eq!(d.find(false, 0xd000_3ff8, 8), Some((4, 0x3ff8)));
        e.config_write(0x24, 4, 1);
        assert_eq!((d.find(false, 0xd000_0000, 4), d.find(false, 0x1_d000_0000, 4)), (None, Some((4, 0))));
        e.config_write(0x24, 4, !0);
        e.config_write(0x20, 4, !0);
        assert_eq!(d.find(false, !0xfff, 4), None, "as sizing leaves it");
        e.reset();
        assert_eq!(d.find(true, 0xc000, 1), None);
    }

    #[test]
    fn the_pin_is_quiet_when_disabled_or_with_msix() {
        let (mut e, heard) = endpoint();
        let level = || heard.0.lock().last().map(|(_, l)| *l);
        e.set_intx(true);
        assert_eq!((level(), e.config_read(6, 2) & 8, e.config_read(4, 4) >> 16 & 8), (Some(1), 8, 8));
        e.config_write(4, 2, 0x400);
        assert_eq!(level(), Some(0));
        e.config_write(4, 2, 0);
        assert_eq!(level(), Some(1));
        e.config_write(0x42, 2, 0x8000);
        assert_eq!(level(), Some(0));
        e.reset();
        assert_eq!((level(), e.config_read(6, 2) & 8), (Some(0), 0));
    }

    #[test]
    fn messages_need_a_bus_master() {
        let (mut e, heard) = endpoint();
        e.msix_write(0, 8, 0xfee0_0000);
        e.msix_write(8, 8, 0x51);
        e.config_write(0x42, 2, 0x8000);
        heard.0.lock().clear();
        e.raise(0);
        assert_eq!(*heard.0.lock(), []);
        e.config_write(4, 2, 4);
        heard.0.lock().clear();
        e.raise(0);
        assert_eq!(*heard.0.lock(), [(0xfee0_0000, 0x51)]);
        e.raise(1);
        assert_eq!(e.msix_read(MSIX_PBA, 8), 2);
        let mut buf = [0; 2];
        e.master().write(Pa(0x10), &[5, 6]);
        e.master().read(Pa(0x10), &mut buf);
        assert_eq!(buf, [5, 6]);
        e.config_write(4, 2, 0);
        e.master().read(Pa(0x10), &mut buf);
        assert_eq!((buf, e.master().ram().is_some()), ([0xff; 2], false));
    }

    #[test]
    fn state_survives() {
        let (mut e, _) = endpoint();
        let fresh = e.save();
        e.config_write(4, 2, 7);
        e.config_write(0x10, 4, 0xc000);
        e.config_write(0x42, 2, 0xc000);
        e.raise(2);
        e.set_intx(true);
        let saved = e.save();
        let (mut f, _) = endpoint();
        f.load(saved.clone()).unwrap();
        assert_eq!(f.save(), saved);
        assert_eq!((f.decoder().find(true, 0xc000, 4), f.master().enabled()), (Some((0, 0)), true));
        e.reset();
        assert_eq!(e.save(), fresh);
        let (mut g, _) = endpoint();
        assert!(g.load(EndpointState { msix: Msix::new(7), ..saved }).is_err());
        assert_eq!(g.save(), fresh);
    }
}
