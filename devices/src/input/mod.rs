//! Input devices: the keyboard controller with its keyboard and mouse.

pub mod i8042;
pub mod keyboard;
pub mod mouse;
pub mod scancode;
