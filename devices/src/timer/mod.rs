//! Timers and clocks of the board.

pub mod hpet;
pub mod pit;
mod pit_counter;
pub mod pm;
pub mod rtc;
mod rtc_time;

#[cfg(test)]
mod testkit;
