//! A toy guest for tests of the IR and of engines: a layout, helpers of every kind of effect, a memory that records and
//! fails on request, and random blocks.

mod random;

use std::collections::BTreeMap;

use crate::block::Block;
use crate::interp::{Interp, Memory, Outcome, rmw};
use crate::layout::{HelperDesc, HelperId, SlotDesc, SlotId, StateLayout};
use crate::ops::Effects;
use crate::types::{Rmw, Ty};

pub use random::{Choices, random_block, random_chain};

const fn slot(name: &'static str, offset: u32, size: u32) -> SlotDesc {
    SlotDesc { name, offset, size }
}

/// Slots of the toy guest. The last two belong to the engine.
pub const SLOTS: [SlotDesc; 11] = [
    slot("v", 0, 16),
    slot("w", 16, 16),
    slot("a", 32, 8),
    slot("b", 40, 8),
    slot("c", 48, 8),
    slot("d", 56, 8),
    slot("f32", 64, 4),
    slot("f16", 68, 2),
    slot("f8", 70, 1),
    slot("pc", 72, 8),
    slot("pc_page", 80, 8),
];

/// Bytes of the toy guest's state.
pub const STATE_SIZE: usize = 88;

/// While `f32` holds this, `b` means nothing.
pub const UNUSED_B: u32 = 0xb0_b0b0;

pub fn layout() -> StateLayout {
    StateLayout {
        slots: SLOTS.to_vec(),
        size: STATE_SIZE as u32,
        pc: SlotId(9),
        pc_page: SlotId(10),
        guessed: SlotId(6),
        unused: |v| if v == UNUSED_B { &[SlotId(3)] } else { &[] },
        // Random blocks have no floating point, whose meaning is a front end's.
        fp_flags: SlotId(6),
        run_fp: |_, _, _, _| 0,
        run_tri: |_, _, _, _, _| 0,
        x87: None,
        pc_mask: |_| !0,
    }
}

const fn helper(name: &'static str, args: u8, effects: Effects) -> HelperDesc {
    HelperDesc { name, args, effects }
}

const STATE: Effects = Effects::READS_STATE.or(Effects::WRITES_STATE);

/// Helpers of the toy guest; `call` is their code.
pub const HELPERS: &[HelperDesc] = &[
    helper("mix", 2, Effects::NONE),
    helper("sum", 0, Effects::READS_STATE),
    helper("poke", 2, STATE),
    helper("set_b", 1, Effects::WRITES_STATE),
    helper("guard", 1, Effects::MAY_LEAVE.or(Effects::READS_STATE)),
    helper("trap", 3, Effects::MAY_LEAVE.or(STATE)),
    helper("fill", 2, Effects::MAY_LEAVE.or(Effects::WRITES_MEM)),
    helper("tick", 0, Effects::KEEP),
];

/// What happened in memory, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Load(u64, Ty),
    Store(u64, Ty, u128),
    Rmw(u64, Ty, Rmw, u64),
    Cas(u64, Ty, u64, u64),
    Probe(u64, u32),
    Helper(HelperId, [u64; 3]),
}

/// The access that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestFault(pub Event);

/// Bytes all over the address space (those never written have a fixed pattern), and a record of what was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestMemory {
    pub bytes: BTreeMap<u64, u8>,
    pub events: Vec<Event>,
    /// How many more accesses succeed; `None`: all. Stores to bytes already probed always do.
    pub fail_after: Option<u32>,
    /// Ranges whose probe succeeded.
    pub probed: Vec<(u64, u32)>,
}

impl TestMemory {
    /// Records an access that may leave.
    fn leave(&mut self, e: Event) -> Result<(), TestFault> {
        match &mut self.fail_after {
            Some(0) => return Err(TestFault(e)),
            Some(n) => *n -= 1,
            None => {}
        }
        self.events.push(e);
        Ok(())
    }

    fn write(&mut self, addr: u64, len: u32, e: Event) -> Result<(), TestFault> {
        let inside = |p: &(u64, u32)| addr.wrapping_sub(p.0) <= u64::from(p.1).wrapping_sub(len.into()) && len <= p.1;
        if self.probed.iter().any(inside) {
            self.events.push(e);
            return Ok(());
        }
        self.leave(e)
    }

    fn read(&self, addr: u64, ty: Ty) -> u128 {
        let byte = |k: u32| {
            let a = addr.wrapping_add(k.into());
            self.bytes.get(&a).copied().unwrap_or((a.wrapping_mul(0x9d) >> 1) as u8)
        };
        (0..ty.bytes()).rev().fold(0, |v, k| v << 8 | u128::from(byte(k)))
    }

    fn put(&mut self, addr: u64, ty: Ty, v: u128) {
        for k in 0..ty.bytes() {
            self.bytes.insert(addr.wrapping_add(k.into()), (v >> (8 * k)) as u8);
        }
    }
}

impl Memory for TestMemory {
    type Fault = TestFault;

    fn load(&mut self, addr: u64, ty: Ty, _: u16) -> Result<u128, TestFault> {
        self.leave(Event::Load(addr, ty))?;
        Ok(self.read(addr, ty))
    }

    fn store(&mut self, addr: u64, ty: Ty, value: u128, _: u16) -> Result<(), TestFault> {
        self.write(addr, ty.bytes(), Event::Store(addr, ty, value))?;
        self.put(addr, ty, value);
        Ok(())
    }

    fn rmw(&mut self, addr: u64, ty: Ty, kind: Rmw, value: u64, _: u16) -> Result<u64, TestFault> {
        self.write(addr, ty.bytes(), Event::Rmw(addr, ty, kind, value))?;
        let old = self.read(addr, ty) as u64;
        self.put(addr, ty, rmw(ty, kind, old, value).into());
        Ok(old)
    }

    fn cas(&mut self, addr: u64, ty: Ty, expected: u64, new: u64, _: u16) -> Result<u64, TestFault> {
        self.write(addr, ty.bytes(), Event::Cas(addr, ty, expected, new))?;
        let old = self.read(addr, ty) as u64;
        if old == expected {
            self.put(addr, ty, new.into());
        }
        Ok(old)
    }

    fn probe(&mut self, addr: u64, len: u32, _: u16) -> Result<(), TestFault> {
        self.leave(Event::Probe(addr, len))?;
        self.probed.push((addr, len));
        Ok(())
    }
}

/// The code of `HELPERS`.
pub fn call(state: &mut [u8], mem: &mut TestMemory, h: HelperId, args: [u64; 3]) -> Result<u64, TestFault> {
    let e = Event::Helper(h, args);
    let sum = |s: &[u8]| s.iter().fold(0u64, |n, b| n.wrapping_mul(31).wrapping_add((*b).into()));
    let mut put = |off: usize, v: u64| state[off..off + 8].copy_from_slice(&v.to_le_bytes());
    match HELPERS[usize::from(h.0)].name {
        "mix" => Ok(args[0].rotate_left(7) ^ args[1].wrapping_mul(0x2545_f491_4f6c_dd1d)),
        "sum" => Ok(sum(&state[..72])),
        "poke" => {
            put(32 + 8 * (args[0] as usize & 3), args[1]);
            Ok(sum(&state[..72]))
        }
        "set_b" => {
            put(40, args[0]);
            Ok(0)
        }
        "guard" => mem.leave(e).map(|()| sum(state) ^ args[0]),
        "trap" => {
            mem.leave(e)?;
            put(48, args[0]);
            put(0, args[1]);
            Ok(args[2])
        }
        "fill" => {
            mem.leave(e)?;
            mem.put(args[0], Ty::I64, args[1].into());
            Ok(0)
        }
        _ => {
            mem.events.push(e);
            Ok(7)
        }
    }
}

/// Runs a block of the toy guest on the reference interpreter, from this state and memory.
pub fn run(block: &Block, state: &mut [u8; STATE_SIZE], mem: &mut TestMemory) -> Outcome<TestFault> {
    let layout = layout();
    Interp { layout: &layout, helpers: HELPERS, mode: 0 }.run(block, state, mem, &mut call)
}
