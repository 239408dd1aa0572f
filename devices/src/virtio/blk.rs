//! Virtio block device (virtio 1.2 §5.2) on a disk of the host's: several queues, flush, discard, write-zeroes, serial number.

use super::{Chain, Kind, Model, Queues};
use crate::block::{Disk, Done, Geometry, Job, Memory, Op, SECTOR, Segment};
use crate::pci::BusMaster;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Request types and status (§5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

const HEADER: usize = 16;
const ID_BYTES: usize = 20;
/// Bytes of one range to discard or to zero, and its flag.
const RANGE: usize = 16;
const RANGE_UNMAP: u32 = 1;
/// Sectors that one range may have.
const MAX_RANGE: u32 = 1 << 22;
/// Offset of `writeback` in the configuration.
const CONFIG_WRITEBACK: usize = 32;

/// Size of a queue, and number of queues, at most.
pub const MAX_QUEUE_SIZE: u16 = 1024;
pub const MAX_QUEUES: u16 = 64;

/// How a disk shows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// At most 20 bytes of it are told.
    pub serial: String,
    /// 1..=`MAX_QUEUES`.
    pub queues: u16,
    /// A power of two, 2..=`MAX_QUEUE_SIZE`.
    pub queue_size: u16,
    /// The driver may turn the write cache on and off.
    pub config_wce: bool,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self { serial: String::new(), queues: 1, queue_size: 256, config_wce: true }
    }
}

/// A request that the disk has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    id: u64,
    queue: u16,
    head: u16,
    op: Op,
    /// Where its status byte goes.
    status: u64,
    /// Bytes that the driver is told were written, if all goes well.
    written: u32,
}

#[derive(Serialize, Deserialize)]
struct State {
    sectors: u64,
    write_back: bool,
    next_id: u64,
    pending: Vec<Pending>,
}

/// Where the host's threads leave word of jobs that are done.
#[derive(Default)]
struct Completions {
    list: Mutex<Vec<(u64, bool)>>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Done for Completions {
    fn done(&self, id: u64, ok: bool) {
        self.list.lock().push((id, ok));
    }

    fn kick(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

/// The device.
pub struct Blk {
    disk: Arc<dyn Disk>,
    geometry: Geometry,
    config: BlkConfig,
    completions: Arc<Completions>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    /// Features accepted; none before the driver is ready.
    features: u64,
    /// `writeback` of the configuration.
    write_back: bool,
}

/// Bytes at `at` of a list of buffers, which is cut off at the front.
fn take(list: &mut Vec<Segment>, mut n: u64) -> Vec<Segment> {
    let mut taken = Vec::new();
    while n > 0 && !list.is_empty() {
        let len = u64::from(list[0].len).min(n) as u32;
        taken.push(Segment { pa: list[0].pa, len });
        n -= u64::from(len);
        if len == list[0].len {
            list.remove(0);
        } else {
            list[0] = Segment { pa: list[0].pa.wrapping_add(len.into()), len: list[0].len - len };
        }
    }
    taken
}

fn total(list: &[Segment]) -> u64 {
    list.iter().map(|s| u64::from(s.len)).sum()
}

/// Reads `N` bytes from the front of a list of buffers; `None` if they are fewer.
fn read<const N: usize>(master: &BusMaster, list: &mut Vec<Segment>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if total(list) < N as u64 {
        return None;
    }
    let mut at = 0;
    for s in take(list, N as u64) {
        let end = at + s.len as usize;
        master.read(vm_core::Pa(s.pa), &mut bytes[at..end]);
        at = end;
    }
    Some(bytes)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b[at..at + 4].iter().rev().fold(0, |v, x| v << 8 | u32::from(*x))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at + 4)) << 32 | u64::from(u32_at(b, at))
}

/// What becomes of a request.
enum Plan {
    Job(Op, u32),
    /// Done at once, with these bytes for the driver.
    Answer(u8, Vec<u8>),
}

impl Blk {
    pub fn new(disk: Arc<dyn Disk>, config: BlkConfig) -> Self {
        let geometry = disk.geometry();
        let write_back = geometry.write_back;
        let (completions, pending) = Default::default();
        Self { disk, geometry, config, completions, pending, next_id: 0, features: 0, write_back }
    }

    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether writes must be on disk when they are done: the driver cannot flush, or does not want to have to.
    fn through(&self) -> bool {
        let can_flush = self.features & F_FLUSH != 0;
        !(can_flush && self.write_back)
    }

    fn plan(&self, master: &BusMaster, header: &[u8; HEADER], data: &mut Vec<Segment>, room: &[Segment]) -> Plan {
        const BAD: Plan = Plan::Answer(S_IOERR, Vec::new());
        let (kind, sector) = (u32_at(header, 0), u64_at(header, 8));
        let Some(at) = sector.checked_mul(SECTOR) else { return BAD };
        let checked = |op: Op, written: u32| {
            let refused = !op.fits(self.geometry.bytes) || self.geometry.read_only && op.writes();
            if refused { BAD } else { Plan::Job(op, written) }
        };
        match kind {
            T_IN => match u32::try_from(total(room)) {
                Ok(len) => checked(Op::Read { at, to: room.to_vec() }, len.saturating_add(1)),
                Err(_) => BAD,
            },
            T_OUT => checked(Op::Write { at, from: std::mem::take(data), through: self.through() }, 1),
            T_FLUSH => Plan::Job(Op::Flush, 1),
            T_GET_ID => {
                let mut id = self.config.serial.clone().into_bytes();
                id.resize(ID_BYTES, 0);
                Plan::Answer(S_OK, id)
            }
            T_DISCARD | T_WRITE_ZEROES => match read::<RANGE>(master, data) {
                Some(range) if data.is_empty() => self.plan_range(kind, &range),
                _ => BAD,
            },
            _ => Plan::Answer(S_UNSUPP, Vec::new()),
        }
    }

    /// Discard or write-zeroes of one range, as `max_discard_seg` says.
    fn plan_range(&self, kind: u32, range: &[u8; RANGE]) -> Plan {
        let (sector, sectors, flags) = (u64_at(range, 0), u32_at(range, 8), u32_at(range, 12));
        let known = if kind == T_WRITE_ZEROES { RANGE_UNMAP } else { 0 };
        if flags & !known != 0 {
            return Plan::Answer(S_UNSUPP, Vec::new());
        }
        let Some(at) = sector.checked_mul(SECTOR) else { return Plan::Answer(S_IOERR, Vec::new()) };
        let len = u64::from(sectors) * SECTOR;
        let op = match kind {
            T_DISCARD => Op::Discard { at, len },
            _ => Op::Zero { at, len, unmap: flags & RANGE_UNMAP != 0, through: self.through() },
        };
        if sectors > MAX_RANGE || self.geometry.read_only || !op.fits(self.geometry.bytes) {
            return Plan::Answer(S_IOERR, Vec::new());
        }
        Plan::Job(op, 1)
    }

    /// Begins a request. `false`: it is none.
    fn begin(&mut self, queue: usize, chain: Chain, queues: &mut Queues) -> bool {
        let Chain { head, mut readable, mut writable } = chain;
        // The last byte to write is the status.
        let Some(last) = writable.last_mut().filter(|s| s.len > 0) else { return false };
        last.len -= 1;
        let status = last.pa.wrapping_add(last.len.into());
        writable.retain(|s| s.len > 0);
        let master = queues.master().clone();
        let Some(header) = read::<HEADER>(&master, &mut readable) else { return false };
        match self.plan(&master, &header, &mut readable, &writable) {
            Plan::Job(op, written) => {
                let p = Pending { id: self.next_id, queue: queue as u16, head, op, status, written };
                self.next_id += 1;
                self.submit(&p, &master);
                self.pending.insert(p.id, p);
            }
            Plan::Answer(code, data) => {
                let mut left = &data[..];
                for s in &writable {
                    let n = left.len().min(s.len as usize);
                    master.write(vm_core::Pa(s.pa), &left[..n]);
                    left = &left[n..];
                }
                master.write(vm_core::Pa(status), &[code]);
                queues.push(queue, head, (data.len() - left.len()) as u32 + 1);
            }
        }
        true
    }

    fn submit(&self, p: &Pending, master: &BusMaster) {
        let memory = Memory::Guest(master.clone());
        self.disk.submit(Job { id: p.id, op: p.op.clone(), memory, done: self.completions.clone() });
    }
}

impl Model for Blk {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-blk", id: 2, transitional: 0x1001, class: 0x01_00_00 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![self.config.queue_size; self.config.queues.clamp(1, MAX_QUEUES).into()]
    }

    fn features(&self) -> u64 {
        let mut f = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
        if self.config.config_wce {
            f |= F_CONFIG_WCE | F_FLUSH;
        }
        if self.geometry.write_back {
            f |= F_FLUSH;
        }
        if self.config.queues > 1 {
            f |= F_MQ;
        }
        match self.geometry {
            Geometry { read_only: true, .. } => f | F_RO,
            Geometry { discard: true, .. } => f | F_DISCARD | F_WRITE_ZEROES,
            _ => f | F_WRITE_ZEROES,
        }
    }

    fn start(&mut self, features: u64) {
        self.features = features;
    }

    /// struct virtio_blk_config (§5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut c = vec![0; 60];
        let mut set = |at: usize, bytes: &[u8]| c[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &(self.geometry.bytes / SECTOR).to_le_bytes());
        // seg_max: with header and status a request fills a queue.
        set(12, &u32::from(self.config.queue_size.saturating_sub(2)).to_le_bytes());
        set(20, &(SECTOR as u32).to_le_bytes());
        // min_io_size, in blocks.
        set(26, &1u16.to_le_bytes());
        set(CONFIG_WRITEBACK, &[self.write_back.into()]);
        set(34, &self.config.queues.to_le_bytes());
        // Discard: sectors, ranges, alignment; the same for zeroes, which may be holes.
        for (at, v) in [(36, MAX_RANGE), (40, 1), (44, 8), (48, MAX_RANGE), (52, 1)] {
            set(at, &v.to_le_bytes());
        }
        set(56, &[1]);
        c
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let at = (CONFIG_WRITEBACK as u64).checked_sub(offset).and_then(|i| data.get(i as usize));
        if let Some(v) = at.filter(|_| self.features & F_CONFIG_WCE != 0) {
            self.write_back = v & 1 != 0;
        }
    }

    fn kick(&mut self, index: usize, queues: &mut Queues) {
        // No more than the queue has places can be under way, so this ends.
        loop {
            while let Some(chain) = queues.pop(index) {
                if !self.begin(index, chain, queues) {
                    return queues.give_up("a request without header or status");
                }
            }
            if !queues.rearm(index) {
                return;
            }
        }
    }

    fn service(&mut self, queues: &mut Queues) {
        let bytes = self.disk.geometry().bytes;
        if bytes != self.geometry.bytes {
            self.geometry.bytes = bytes;
            queues.change_config();
        }
        let done = std::mem::take(&mut *self.completions.list.lock());
        for (id, ok) in done {
            let Some(p) = self.pending.remove(&id) else { continue };
            queues.master().write(vm_core::Pa(p.status), &[if ok { S_OK } else { S_IOERR }]);
            queues.push(p.queue.into(), p.head, if ok { p.written } else { 1 });
        }
    }

    fn reset(&mut self) {
        self.disk.abandon();
        self.completions.list.lock().clear();
        self.pending.clear();
        self.features = 0;
        self.next_id = 0;
        self.write_back = self.geometry.write_back;
    }

    fn save(&self) -> Value {
        let pending = self.pending.values().cloned().collect();
        let sectors = self.geometry.bytes / SECTOR;
        let state = State { sectors, write_back: self.write_back, next_id: self.next_id, pending };
        serde_json::to_value(state).expect("plain data with string keys")
    }

    fn load(&mut self, saved: &Value) -> Result<(), String> {
        let s = State::deserialize(saved).map_err(|e| e.to_string())?;
        let (here, there) = (self.geometry.bytes / SECTOR, s.sectors);
        if here != there {
            return Err(format!("the disk has {here} sectors, and had {there}"));
        }
        let good = |p: &Pending| {
            let fits = p.op.fits(self.geometry.bytes) && !(self.geometry.read_only && p.op.writes());
            fits && p.id < s.next_id && p.queue < self.config.queues && p.head < self.config.queue_size
        };
        if !s.pending.iter().all(good) || s.next_id > u64::MAX / 2 {
            return Err("a request under way is none".into());
        }
        self.write_back = s.write_back;
        self.next_id = s.next_id;
        self.pending = s.pending.into_iter().map(|p| (p.id, p)).collect();
        Ok(())
    }

    fn resume(&mut self, queues: &mut Queues) {
        let master = queues.master().clone();
        self.pending.values().for_each(|p| self.submit(p, &master));
    }

    fn set_wake(&mut self, wake: Box<dyn Fn() + Send + Sync>) {
        let wake: Arc<dyn Fn() + Send + Sync> = wake.into();
        let again = wake.clone();
        self.disk.watch(Box::new(move || again()));
        let _ = self.completions.wake.set(Box::new(move || wake()));
    }
}

#[cfg(test)]
#[path = "blk_tests.rs"]
mod tests;
