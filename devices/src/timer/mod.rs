//! Timers and clocks of the board.

pub mod pit;
mod pit_counter;
pub mod pm;

#[cfg(test)]
mod testkit;
