//! Timers and clocks of the board.

pub mod hpet;
mod kvm_clock;
pub mod pit;
mod pit_counter;
mod pit_image;
pub mod pm;
pub mod rtc;
mod rtc_time;

pub use kvm_clock::KvmClock;
pub use pit_image::{ChannelImage, PitImage};

#[cfg(test)]
mod testkit;
