//! Timers and clocks of the board.

pub mod pit;
mod pit_counter;

#[cfg(test)]
mod testkit;
