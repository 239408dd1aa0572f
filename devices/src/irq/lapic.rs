//! The local APIC of one vCPU: its wires, locks and ways in (SDM 3A "Advanced Programmable Interrupt Controller").

use super::apic_bus::ApicBus;
use super::lapic_access::Effect;
use super::lapic_core::Core;
use super::lapic_image::LapicImage;
use super::lapic_regs::{LINT0, LINT1, TIMER, base, esr, lvt, msr, reg};
use super::lapic_timer::MIN_PERIOD_NS;
use super::message::{Delivery, Dest, Message};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use vm_core::clock::Ns;
use vm_core::{Clock, Events, LoadError, Section, Timer, VcpuSignals, dlog};

/// Length of the register page in bytes.
pub const MMIO_LEN: u64 = 0x1000;
/// As firmware leaves it: enabled, spurious vector 0Fh; LINT0 is ExtINT, LINT1 is NMI (MP 1.4 "Virtual Wire Mode").
const VIRTUAL_WIRE_SVR: u32 = 0x10f;
const VIRTUAL_WIRE_LINT: [u32; 2] = [0x700, 0x400];
const VERSION: u32 = 1;

/// The 8259's acknowledge: accepts its request and returns the vector. Called with no local APIC's lock held.
pub type ExtInt = Arc<dyn Fn() -> Option<u8> + Send + Sync>;

#[derive(Clone, Copy, Debug)]
pub struct LapicConfig {
    /// Initial APIC ID.
    pub id: u32,
    /// The bootstrap processor, which does not wait for a start-up IPI.
    pub bsp: bool,
    /// Offer x2APIC mode.
    pub x2apic: bool,
    /// Frequency of the virtual time-stamp counter, which is 0 at guest time 0.
    pub tsc_hz: u64,
    /// MAXPHYADDR, for the reserved bits of IA32_APIC_BASE.
    pub phys_bits: u8,
}

/// Lock order: the lock is released before anything is sent on the bus or acknowledged at the PIC. `VcpuSignals` and
/// the clock are called with it held. `Events::INTR` always mirrors whether `ack` has something.
pub struct Lapic {
    config: LapicConfig,
    index: usize,
    signals: Arc<VcpuSignals>,
    bus: Weak<ApicBus>,
    extint: ExtInt,
    timer: Timer,
    core: Mutex<Core>,
    /// Address of the register page as `mmio_base` gives it, or `NO_PAGE`.
    page: AtomicU64,
    /// Another model has the state; here only the pins are served. Changed with the lock held.
    away: AtomicBool,
}

const NO_PAGE: u64 = u64::MAX;

impl Lapic {
    /// A local APIC at power-on, registered on `bus`.
    pub fn new(config: LapicConfig, signals: Arc<VcpuSignals>, clock: &Clock, bus: &Arc<ApicBus>, extint: ExtInt) -> Arc<Self> {
        let timer = clock.timer("lapic");
        let core = Mutex::new(Core::power_on(config.id, config.bsp));
        let weak_bus = Arc::downgrade(bus);
        let lapic = bus.add(|index| {
            Arc::new(Self {
                config,
                index,
                signals,
                bus: weak_bus,
                extint,
                timer,
                core,
                page: AtomicU64::new(NO_PAGE),
                away: false.into(),
            })
        });
        lapic.note_page(&lapic.core.lock());
        let weak = Arc::downgrade(&lapic);
        lapic.timer.bind(move |now| {
            if let Some(l) = weak.upgrade() {
                l.expired(now);
            }
        });
        lapic
    }

    /// Place on the bus: the number of local APICs made before this one.
    pub fn index(&self) -> usize {
        self.index
    }

    pub fn signals(&self) -> &Arc<VcpuSignals> {
        &self.signals
    }

    /// Guest-physical address of the register page; `None` while it answers to none (disabled or in x2APIC mode).
    pub fn mmio_base(&self) -> Option<u64> {
        let page = self.page.load(Ordering::Acquire);
        (page != NO_PAGE).then_some(page)
    }

    /// Keeps `mmio_base`, which the vCPU asks on each page walk, up to date after a change of IA32_APIC_BASE.
    fn note_page(&self, c: &Core) {
        let on = c.hw_enabled() && !c.x2apic();
        let page = if on { c.base & self.base_address_mask() } else { NO_PAGE };
        self.page.store(page, Ordering::Release);
    }

    /// Reads 32 bits at `offset` in the register page. Registers are 16 bytes apart; between them are ones.
    pub fn mmio_read(&self, offset: u64) -> u32 {
        let mut c = self.core.lock();
        if !c.hw_enabled() || c.x2apic() || offset >= MMIO_LEN || offset & 0xf != 0 {
            dlog!(GUEST_ERRORS, "lapic {}: read at {offset:#x}", self.index);
            return !0;
        }
        let v = c.read_reg((offset >> 4) as u16, self.timer.now()).unwrap_or_else(|| {
            dlog!(GUEST_ERRORS, "lapic {}: read of register {offset:#x}", self.index);
            c.error(esr::REGISTER);
            0
        });
        self.update(&c);
        v
    }

    pub fn mmio_write(&self, offset: u64, value: u32) {
        let effect = {
            let mut c = self.core.lock();
            if !c.hw_enabled() || c.x2apic() || offset >= MMIO_LEN || offset & 0xf != 0 {
                dlog!(GUEST_ERRORS, "lapic {}: write of {value:#x} at {offset:#x}", self.index);
                return;
            }
            let (r, now) = ((offset >> 4) as u16, self.timer.now());
            let effect = c.write_reg(r, value, now, self.index).unwrap_or_else(|| {
                dlog!(GUEST_ERRORS, "lapic {}: write of {value:#x} to register {offset:#x}", self.index);
                if c.read_reg(r, now).is_none() {
                    c.error(esr::REGISTER);
                }
                Effect::default()
            });
            self.arm_after(&c, r);
            self.update(&c);
            effect
        };
        self.perform(effect);
    }

    /// IA32_APIC_BASE, IA32_TSC_DEADLINE and, in x2APIC mode, 800h-83Fh. `None` is #GP.
    pub fn msr_read(&self, index: u32) -> Option<u64> {
        let mut c = self.core.lock();
        let now = self.timer.now();
        let v = match index {
            msr::APIC_BASE => Some(c.base),
            msr::TSC_DEADLINE => {
                c.sync_timer(now);
                Some(c.timer.deadline)
            }
            msr::X2APIC..=msr::X2APIC_LAST if c.x2apic() => c.read_x2apic((index - msr::X2APIC) as u16, now),
            _ => None,
        };
        self.update(&c);
        v
    }

    /// `false` is #GP. The TSC deadline is in virtual TSC ticks, the guest's offset already taken off.
    pub fn msr_write(&self, index: u32, value: u64) -> bool {
        let effect = {
            let mut c = self.core.lock();
            let now = self.timer.now();
            let effect = match index {
                msr::APIC_BASE => {
                    let done = self.write_base(&mut c, value);
                    self.note_page(&c);
                    done.then(Effect::default)
                }
                msr::TSC_DEADLINE => {
                    c.sync_timer(now);
                    let mode = c.timer_mode();
                    c.timer.set_deadline(mode, value, self.config.tsc_hz);
                    c.sync_timer(now);
                    self.arm(&c, 0);
                    Some(Effect::default())
                }
                msr::X2APIC..=msr::X2APIC_LAST if c.x2apic() => {
                    let r = (index - msr::X2APIC) as u16;
                    let effect = c.write_x2apic(r, value, now, self.index);
                    self.arm_after(&c, r);
                    effect
                }
                _ => None,
            };
            self.update(&c);
            effect
        };
        effect.map(|e| self.perform(e)).is_some()
    }

    /// CR8: task priority class, 0..=15.
    pub fn tpr(&self) -> u8 {
        self.core.lock().tpr >> 4
    }

    /// Writes CR8 (0..=15; other bits are dropped); clears the sub-class.
    pub fn set_tpr(&self, cr8: u8) {
        let mut c = self.core.lock();
        c.tpr = (cr8 & 0xf) << 4;
        self.update(&c);
    }

    /// The processor accepts what `Events::INTR` announced: the fixed interrupt of highest priority, else that of the
    /// 8259. `None` if it has gone meanwhile: then nothing was accepted, and no spurious vector is due.
    pub fn ack(&self) -> Option<u8> {
        {
            let mut c = self.core.lock();
            let away = self.is_away();
            if away && !c.lint[0] {
                return None;
            }
            let fixed = if away { None } else { c.ack() };
            let external = away || fixed.is_none() && c.extint_pending();
            if external {
                c.extint = false;
            }
            self.update(&c);
            if !external {
                return fixed;
            }
        }
        (self.extint)()
    }

    /// Gives the state to another model, which goes on with it until `take_back`. Meanwhile `Events::INTR` says that the 8259 asks,
    /// on pin LINT0, and `ack` acknowledges that.
    pub(super) fn hand_over(&self) -> LapicImage {
        let mut c = self.core.lock();
        let image = c.image(self.timer.now());
        self.away.store(true, Ordering::SeqCst);
        self.timer.cancel();
        self.update(&c);
        image
    }

    /// Goes on with a state.
    pub(super) fn take_back(&self, image: &LapicImage) {
        let mut c = self.core.lock();
        c.set_image(image, self.base_reserved(), self.timer.now());
        self.away.store(false, Ordering::SeqCst);
        self.note_page(&c);
        self.arm(&c, 0);
        self.update(&c);
    }

    fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }

    /// Level of pin LINT`n` (0 or 1; others are ignored).
    pub fn set_lint(&self, n: usize, level: bool) {
        let mut c = self.core.lock();
        let Some(was) = c.lint.get(n).copied() else { return };
        c.lint[n] = level;
        if self.is_away() {
            if n == 1 && level && !was {
                self.signals.raise(Events::NMI);
            }
            return self.update(&c);
        }
        if level && !was {
            self.lint_edge(&mut c, n);
        }
        c.service_lint0();
        self.update(&c);
    }

    fn lint_edge(&self, c: &mut Core, n: usize) {
        // SDM 3A "Enabling or Disabling the Local APIC": a disabled APIC's pins are INTR and NMI.
        let mode = match c.hw_enabled() {
            true => c.lint_mode(n),
            false => (n == 1).then_some(Delivery::Nmi),
        };
        let entry = c.lvt[LINT0 + n];
        match mode {
            // LINT1 is an edge input whatever its trigger bit says (SDM 3A "Local Vector Table").
            Some(Delivery::Fixed) if n == 1 || entry & lvt::LEVEL == 0 => c.accept_fixed(entry as u8, false),
            Some(Delivery::Nmi) => self.signals.raise(Events::NMI),
            Some(Delivery::Smi) => self.signals.raise(Events::SMI),
            Some(Delivery::Init) => self.init(c),
            _ => {}
        }
    }

    /// Programs what firmware leaves behind, for machines that boot a kernel without firmware.
    pub fn set_virtual_wire(&self) {
        let mut c = self.core.lock();
        c.set_svr(VIRTUAL_WIRE_SVR);
        c.set_lvt(LINT0, VIRTUAL_WIRE_LINT[0]);
        c.set_lvt(LINT1, VIRTUAL_WIRE_LINT[1]);
        self.update(&c);
    }

    /// Vector of the start-up IPI behind `Events::SIPI`: execution starts at vector << 12.
    pub fn sipi_vector(&self) -> u8 {
        self.core.lock().sipi_vector
    }

    /// Power-on state; takes back all events this APIC raised.
    pub fn reset(&self) {
        let mut c = self.core.lock();
        *c = Core::power_on(self.config.id, self.config.bsp);
        self.note_page(&c);
        self.timer.cancel();
        self.signals.clear(Events::INTR | Events::NMI | Events::SMI | Events::INIT | Events::SIPI);
    }

    /// The section's name is `lapicN`. Latched events are in `VcpuSignals` and not part of it.
    pub fn save(&self) -> Section {
        Section::pack(&format!("lapic{}", self.index), VERSION, &*self.core.lock())
    }

    /// Replaces the state; on error it is unchanged.
    pub fn load(&self, s: &Section) -> Result<(), LoadError> {
        let state: Core = s.unpack(VERSION)?;
        if !state.is_valid(self.base_reserved()) {
            return Err(s.bad("a reserved bit is set"));
        }
        let mut c = self.core.lock();
        *c = state;
        self.note_page(&c);
        self.arm(&c, 0);
        self.update(&c);
        Ok(())
    }

    /// What decides a lowest-priority delivery: the processor priority; `None` if it takes no fixed interrupts.
    pub(super) fn arbitration(&self) -> Option<u8> {
        let c = self.core.lock();
        c.sw_enabled().then(|| c.ppr())
    }

    pub(super) fn is_addressed(&self, d: &Dest) -> bool {
        self.core.lock().is_addressed(d)
    }

    /// A message from the bus.
    pub(super) fn accept(&self, m: &Message) {
        let mut c = self.core.lock();
        if !c.hw_enabled() {
            return;
        }
        match m.delivery {
            Delivery::Fixed | Delivery::LowestPriority => c.accept_fixed(m.vector, m.level),
            Delivery::ExtInt => c.extint = true,
            Delivery::Nmi => self.signals.raise(Events::NMI),
            Delivery::Smi => self.signals.raise(Events::SMI),
            Delivery::Init => self.init(&mut c),
            Delivery::StartUp if c.wait_sipi => {
                c.wait_sipi = false;
                c.sipi_vector = m.vector;
                self.signals.raise(Events::SIPI);
            }
            Delivery::StartUp => {}
        }
        self.update(&c);
    }

    fn init(&self, c: &mut Core) {
        c.init_reset();
        self.timer.cancel();
        self.signals.clear(Events::SIPI);
        self.signals.raise(Events::INIT);
    }

    /// Makes `Events::INTR` the APIC's output.
    fn update(&self, c: &Core) {
        let asks = if self.is_away() { c.lint[0] } else { c.deliverable().is_some() || c.extint_pending() };
        if asks {
            self.signals.raise(Events::INTR);
        } else {
            self.signals.clear(Events::INTR);
        }
    }

    fn perform(&self, e: Effect) {
        let Some(bus) = self.bus.upgrade() else { return };
        if let Some(vector) = e.eoi {
            bus.broadcast_eoi(vector);
        }
        if let Some(m) = e.ipi {
            bus.send(&m);
        }
    }

    fn expired(&self, now: Ns) {
        let mut c = self.core.lock();
        if self.is_away() {
            return;
        }
        c.sync_timer(now);
        self.arm(&c, now.saturating_add(MIN_PERIOD_NS));
        self.update(&c);
    }

    /// Arms after a write to register `r`, if the timer depends on it: SVR and the local vector table can mask it.
    fn arm_after(&self, c: &Core, r: u16) {
        if matches!(r, reg::SVR | reg::LVT_TIMER | reg::INITIAL_COUNT | reg::DIVIDE) {
            self.arm(c, 0);
        }
    }

    /// Asks the clock for the next expiry, not before `earliest`. A masked timer only counts, and needs no host timer.
    fn arm(&self, c: &Core, earliest: Ns) {
        match c.timer.next {
            Some(next) if c.hw_enabled() && c.lvt[TIMER] & lvt::MASKED == 0 => self.timer.arm(next.max(earliest)),
            _ => self.timer.cancel(),
        }
    }

    fn base_address_mask(&self) -> u64 {
        ((1 << self.config.phys_bits.clamp(32, 52)) - 1) & !0xfff
    }

    fn base_reserved(&self) -> u64 {
        let mode = base::BSP | base::EN | if self.config.x2apic { base::EXTD } else { 0 };
        !(self.base_address_mask() | mode)
    }

    /// SDM 3A "x2APIC State Transitions". The BSP flag is fixed. Disabling loses the state.
    fn write_base(&self, c: &mut Core, v: u64) -> bool {
        let (on, x2) = (v & base::EN != 0, v & base::EXTD != 0);
        let bad_change = match (c.hw_enabled(), c.x2apic()) {
            (false, _) => x2,
            (true, false) => x2 && !on,
            (true, true) => on != x2,
        };
        if v & self.base_reserved() != 0 || bad_change {
            return false;
        }
        if c.hw_enabled() && !on {
            let wait_sipi = c.wait_sipi;
            *c = Core { lint: c.lint, wait_sipi, ..Core::power_on(self.config.id, self.config.bsp) };
            self.timer.cancel();
        } else if x2 && !c.x2apic() {
            c.enter_x2apic(self.config.id);
        }
        c.base = v & !base::BSP | c.base & base::BSP;
        true
    }
}
