//! The tests. Each is code that all processors run, between two barriers.

mod code;
mod cx16;
mod ipi;
mod lock;
mod lockx;
mod order;
mod shoot;

use super::Emit;
use super::asm::Asm;

pub type Test = fn(&mut Asm) -> Emit;

pub const ALL: &[(&str, Test)] = &[
    ("lock", lock::test),
    ("lockx", lockx::test),
    ("cx16", cx16::test),
    ("order", order::test),
    ("xmc", code::cross_modifying),
    ("pages", code::pages),
    ("shoot", shoot::test),
    ("ipi", ipi::test),
];
