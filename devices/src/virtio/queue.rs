//! Split virtqueues (virtio 1.2 §2.7) on the virtio-queue crate: bounded chains, and an end to all work once a driver has
//! broken the rules. Packed queues are not offered.

use super::{F_EVENT_IDX, Kind};
use crate::block::Segment;
use crate::pci::BusMaster;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_core::dlog;
use vm_core::dma::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// Descriptors that a chain may have.
pub const MAX_CHAIN: usize = 1024;
/// Greatest size of a queue that a model may ask for.
const MAX_SIZE: u16 = 1024;
/// virtq_avail.flags: VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;
/// No MSI-X vector (§4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// One request: descriptors of its buffers, those to read first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    pub readable: Vec<Segment>,
    pub writable: Vec<Segment>,
}

/// What the driver has set, and where the queue stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    pub size: u16,
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
    pub enabled: bool,
    pub vector: u16,
    next_avail: u16,
    next_used: u16,
    in_use: u16,
}

impl QueueState {
    fn new(max: u16) -> Self {
        let (desc, driver, device, next_avail, next_used, in_use) = Default::default();
        Self { size: max, desc, driver, device, enabled: false, vector: NO_VECTOR, next_avail, next_used, in_use }
    }
}

struct VirtQueue {
    max: u16,
    state: QueueState,
    ring: Queue,
    /// The driver is to be interrupted.
    fire: bool,
}

/// The driver has broken a rule.
#[derive(Debug)]
struct Broken(&'static str);

impl VirtQueue {
    fn new(max: u16) -> Self {
        let max = max.clamp(1, MAX_SIZE).next_power_of_two();
        let ring = Queue::new(max).expect("a power of two of at most 1024 is a size");
        Self { max, state: QueueState::new(max), ring, fire: false }
    }

    /// Makes the ring from the state. `false`: the driver's values are no ring.
    fn build(&mut self, event_idx: bool) -> bool {
        let s = &self.state;
        self.ring.reset();
        let set = self.ring.try_set_size(s.size).is_ok()
            && self.ring.try_set_desc_table_address(GuestAddress(s.desc)).is_ok()
            && self.ring.try_set_avail_ring_address(GuestAddress(s.driver)).is_ok()
            && self.ring.try_set_used_ring_address(GuestAddress(s.device)).is_ok();
        self.ring.set_next_avail(s.next_avail);
        self.ring.set_next_used(s.next_used);
        self.ring.set_event_idx(event_idx);
        self.ring.set_ready(set && s.enabled);
        set
    }

    fn pop(&mut self, ram: &Arc<GuestRam>) -> Result<Option<Chain>, Broken> {
        if !self.ring.ready() {
            return Ok(None);
        }
        if self.state.in_use >= self.state.size {
            // The driver has as many as it may have; more is an error if there is more.
            let more = self.ring.avail_idx(&**ram, Ordering::Acquire).is_ok_and(|i| i.0 != self.ring.next_avail());
            return if more { Err(Broken("more requests than the queue has places")) } else { Ok(None) };
        }
        let mut avail =
            self.ring.iter(ram.clone()).map_err(|_| Broken("the available ring is not in RAM, or its index jumps"))?;
        let Some(chain) = avail.next() else { return Ok(None) };
        self.state.next_avail = self.ring.next_avail();
        let head = chain.head_index();
        let (mut readable, mut writable, mut more) = (Vec::new(), Vec::new(), true);
        for d in chain {
            if readable.len() + writable.len() == MAX_CHAIN {
                return Err(Broken("a chain is too long"));
            }
            let list = match (d.is_write_only(), writable.is_empty()) {
                (true, _) => &mut writable,
                (false, true) => &mut readable,
                (false, false) => return Err(Broken("a buffer to read follows one to write")),
            };
            list.push(Segment { pa: d.addr().0, len: d.len() });
            more = d.has_next();
        }
        if more {
            return Err(Broken("a chain leads nowhere, or in circles"));
        }
        self.state.in_use += 1;
        Ok(Some(Chain { head, readable, writable }))
    }

    fn push(&mut self, ram: &Arc<GuestRam>, head: u16, len: u32) -> Result<(), Broken> {
        const GONE: Broken = Broken("the used ring is not in RAM");
        self.state.in_use = self.state.in_use.saturating_sub(1);
        if !self.ring.ready() {
            return Ok(());
        }
        self.ring.add_used(&**ram, head, len).map_err(|_| GONE)?;
        self.state.next_used = self.ring.next_used();
        self.fire |= if self.ring.event_idx_enabled() {
            self.ring.needs_notification(&**ram).map_err(|_| GONE)?
        } else {
            let flags: u16 = ram.load(GuestAddress(self.state.driver), Ordering::SeqCst).map_err(|_| GONE)?;
            u16::from_le(flags) & NO_INTERRUPT == 0
        };
        Ok(())
    }

    /// Makes the last `n` requests available again, as if they had not been looked at.
    fn put_back(&mut self, n: u16) {
        let next = self.ring.next_avail().wrapping_sub(n);
        self.ring.set_next_avail(next);
        self.state.next_avail = next;
        self.state.in_use = self.state.in_use.saturating_sub(n);
    }

    /// As `push` for each; the driver sees all at once or none.
    fn push_all(&mut self, ram: &Arc<GuestRam>, list: &[(u16, u32)]) -> Result<(), Broken> {
        const GONE: Broken = Broken("the used ring is not in RAM");
        const ALSO: Broken = Broken("the available ring is not in RAM");
        let n = list.len() as u16;
        self.state.in_use = self.state.in_use.saturating_sub(n);
        if !self.ring.ready() || list.is_empty() {
            return Ok(());
        }
        let (old, size) = (self.ring.next_used(), self.state.size.max(1));
        let new = old.wrapping_add(n);
        let at = |offset: u64| GuestAddress(self.state.device.wrapping_add(offset));
        for (i, (head, len)) in (0..).zip(list) {
            let place = u64::from(old.wrapping_add(i) % size);
            let entry = u64::from(*head) | u64::from(*len) << 32;
            ram.write_obj(entry.to_le(), at(4 + 8 * place)).map_err(|_| GONE)?;
        }
        ram.store(new.to_le(), at(2), Ordering::Release).map_err(|_| GONE)?;
        self.ring.set_next_used(new);
        self.state.next_used = new;
        // The index is to be seen before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wish = if self.ring.event_idx_enabled() { 4 + 2 * u64::from(size) } else { 0 };
        let wish: u16 = ram.load(GuestAddress(self.state.driver.wrapping_add(wish)), Ordering::SeqCst).map_err(|_| ALSO)?;
        let wish = u16::from_le(wish);
        self.fire |= match self.ring.event_idx_enabled() {
            true => new.wrapping_sub(wish).wrapping_sub(1) < n,
            false => wish & NO_INTERRUPT == 0,
        };
        Ok(())
    }

    fn load(&mut self, s: QueueState) -> Result<(), &'static str> {
        if !s.size.is_power_of_two() || s.size > self.max || s.in_use > s.size {
            return Err("a queue's size is wrong");
        }
        self.state = s;
        Ok(())
    }
}

/// All queues of a device, as its model uses them.
pub struct Queues {
    name: &'static str,
    list: Vec<VirtQueue>,
    master: BusMaster,
    event_idx: bool,
    /// The driver is ready (DRIVER_OK).
    live: bool,
    broken: bool,
    /// The device has changed its configuration.
    config_changed: bool,
}

impl Queues {
    pub fn new(kind: Kind, sizes: &[u16], master: BusMaster) -> Self {
        let list = sizes.iter().map(|m| VirtQueue::new(*m)).collect();
        Self { name: kind.name, list, master, event_idx: false, live: false, broken: false, config_changed: false }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The device's way to guest memory.
    pub fn master(&self) -> &BusMaster {
        &self.master
    }

    /// The next request of queue `index`. `None`: there is none, or the driver has broken the rules.
    pub fn pop(&mut self, index: usize) -> Option<Chain> {
        let ram = self.ram()?;
        let r = self.list.get_mut(index)?.pop(&ram);
        r.unwrap_or_else(|why| {
            self.fail(&why);
            None
        })
    }

    /// Gives a request back, with the number of bytes written into its buffers.
    pub fn push(&mut self, index: usize, head: u16, len: u32) {
        let Some(ram) = self.ram() else { return };
        let Some(q) = self.list.get_mut(index) else { return };
        if let Err(why) = q.push(&ram, head, len) {
            self.fail(&why);
        }
    }

    /// The last `n` requests that `pop` gave are available again.
    pub fn put_back(&mut self, index: usize, n: usize) {
        if let Some(q) = self.list.get_mut(index) {
            q.put_back(n as u16);
        }
    }

    /// Gives requests back, each with the number of bytes written; the driver sees all of them at once.
    pub fn push_all(&mut self, index: usize, list: &[(u16, u32)]) {
        let Some(ram) = self.ram() else { return };
        let Some(q) = self.list.get_mut(index) else { return };
        if let Err(why) = q.push_all(&ram, list) {
            self.fail(&why);
        }
    }

    /// Places of queue `index`.
    pub fn size(&self, index: usize) -> usize {
        self.list.get(index).map_or(0, |q| q.state.size.into())
    }

    /// Asks the driver to tell of what it adds from now on; `true` if something has come meanwhile.
    pub fn rearm(&mut self, index: usize) -> bool {
        let Some(ram) = self.ram() else { return false };
        let Some(q) = self.list.get_mut(index).filter(|q| q.ring.ready()) else { return false };
        q.ring.enable_notification(&*ram).unwrap_or(false)
    }

    fn ram(&self) -> Option<Arc<GuestRam>> {
        if self.live && !self.broken { self.master.ram() } else { None }
    }

    fn fail(&mut self, why: &Broken) {
        dlog!(GUEST_ERRORS, "{}: {}", self.name, why.0);
        self.broken = true;
    }

    /// The model cannot go on with what the driver has given it.
    pub fn give_up(&mut self, why: &'static str) {
        self.fail(&Broken(why));
    }

    /// The device has changed its configuration, and the driver is to be told.
    pub fn change_config(&mut self) {
        self.config_changed = true;
    }

    pub(super) fn take_config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    /// Whether the driver is ready and has kept to the rules.
    pub fn works(&self) -> bool {
        self.live && !self.broken
    }

    pub(super) fn start(&mut self, features: u64) {
        self.event_idx = features & F_EVENT_IDX != 0;
        self.live = true;
        for q in &mut self.list {
            q.build(self.event_idx);
        }
    }

    pub(super) fn reset(&mut self) {
        for q in &mut self.list {
            *q = VirtQueue::new(q.max);
        }
        (self.event_idx, self.live, self.broken, self.config_changed) = (false, false, false, false);
    }

    /// What the driver has set of queue `index`.
    pub(super) fn state(&self, index: u16) -> Option<&QueueState> {
        self.list.get(usize::from(index)).map(|q| &q.state)
    }

    pub(super) fn max(&self, index: u16) -> u16 {
        self.list.get(usize::from(index)).map_or(0, |q| q.max)
    }

    /// Changes what the driver may set; of an enabled queue only the vector.
    pub(super) fn set(&mut self, index: u16, f: impl FnOnce(&mut QueueState)) {
        let Some(q) = self.list.get_mut(usize::from(index)) else { return };
        let old = q.state.clone();
        f(&mut q.state);
        if old.enabled {
            let vector = q.state.vector;
            q.state = QueueState { vector, ..old };
        } else if !q.state.size.is_power_of_two() || q.state.size > q.max {
            dlog!(GUEST_ERRORS, "{}: queue {index} of size {}", self.name, q.state.size);
            q.state.size = old.size;
        }
    }

    /// Enables queue `index`. Legacy drivers may do so when the device is live already.
    pub(super) fn enable(&mut self, index: u16) {
        let (event_idx, live) = (self.event_idx, self.live);
        let Some(q) = self.list.get_mut(usize::from(index)).filter(|q| !q.state.enabled) else { return };
        q.state.enabled = true;
        if !q.build(event_idx) {
            q.state.enabled = false;
            dlog!(GUEST_ERRORS, "{}: queue {index} lies at odd addresses", self.name);
        }
        if !live {
            q.ring.set_ready(false);
        }
    }

    /// Disables queue `index`, as legacy drivers may.
    pub(super) fn disable(&mut self, index: u16) {
        if let Some(q) = self.list.get_mut(usize::from(index)) {
            let vector = q.state.vector;
            *q = VirtQueue::new(q.max);
            q.state.vector = vector;
        }
    }

    /// Vectors of the queues whose drivers are to be interrupted.
    pub(super) fn take_fired(&mut self) -> Vec<u16> {
        self.list.iter_mut().filter_map(|q| std::mem::take(&mut q.fire).then_some(q.state.vector)).collect()
    }

    pub(super) fn save(&self) -> Vec<QueueState> {
        self.list.iter().map(|q| q.state.clone()).collect()
    }

    pub(super) fn resume(&mut self, live: bool, broken: bool, features: u64) {
        (self.live, self.broken) = (live, broken);
        self.event_idx = live && features & F_EVENT_IDX != 0;
        for q in &mut self.list {
            q.build(self.event_idx);
            if !live {
                q.ring.set_ready(false);
            }
        }
    }

    /// Takes saved queues; `resume` follows. On an error nothing of use is left.
    pub(super) fn load(&mut self, saved: Vec<QueueState>) -> Result<(), &'static str> {
        if saved.len() != self.list.len() {
            return Err("another number of queues");
        }
        self.list.iter_mut().for_each(|q| q.fire = false);
        self.list.iter_mut().zip(saved).try_for_each(|(q, s)| q.load(s))
    }
}
