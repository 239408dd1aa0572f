//! PS/2 keyboard: commands, scan code sets 1 and 2 (IBM PS/2 Technical Reference, "Keyboard").

use super::scancode::{self, Key};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use vm_core::dlog;

mod cmd {
    pub const SET_LEDS: u8 = 0xed;
    pub const ECHO: u8 = 0xee;
    pub const SCAN_SET: u8 = 0xf0;
    pub const READ_ID: u8 = 0xf2;
    pub const TYPEMATIC: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

pub(super) const ACK: u8 = 0xfa;
pub(super) const TEST_PASSED: u8 = 0xaa;
/// Answer to a byte that was not understood.
pub(super) const RESEND: u8 = 0xfe;

/// Bytes of key events kept for a guest that does not read.
pub const QUEUE: usize = 64;

/// Keyboard and its state. Key repeat is left to the source of key events, which repeats the `down` event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Keyboard {
    /// Answers to commands; they go before key events.
    replies: VecDeque<u8>,
    keys: VecDeque<u8>,
    scanning: bool,
    set: u8,
    leds: u8,
    typematic: u8,
    /// Command that waits for its parameter.
    expects: Option<u8>,
    /// Byte sent last, for the resend command.
    last: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            replies: VecDeque::new(),
            keys: VecDeque::new(),
            scanning: true,
            set: 2,
            leds: 0,
            typematic: 0x2b,
            expects: None,
            last: 0,
        }
    }
}

impl Keyboard {
    /// Queues a key event. `false` if it was dropped: no such key, scanning is off, or the queue is full. An event is
    /// queued whole or not at all.
    pub fn key(&mut self, key: Key, down: bool) -> bool {
        match scancode::sequence(key, down, self.set) {
            Some(bytes) if self.scanning && self.keys.len() + bytes.len() <= QUEUE => {
                self.keys.extend(bytes);
                true
            }
            _ => false,
        }
    }

    /// Lights: bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.leds
    }

    /// The next byte for the controller.
    pub(super) fn pop(&mut self) -> Option<u8> {
        let b = self.replies.pop_front().or_else(|| self.keys.pop_front())?;
        self.last = b;
        Some(b)
    }

    fn reply(&mut self, bytes: &[u8]) {
        self.replies.extend(bytes);
    }

    fn defaults(&mut self) {
        let fresh = Self { replies: std::mem::take(&mut self.replies), leds: self.leds, ..Self::default() };
        *self = fresh;
    }

    /// A byte from the controller. What was being sent is given up, as the keyboard does when the host takes the line.
    pub(super) fn write(&mut self, v: u8) {
        self.replies.clear();
        match self.expects.take() {
            // A command in place of a parameter ends the first command.
            Some(command) if v < 0x80 => self.parameter(command, v),
            _ => self.command(v),
        }
    }

    fn parameter(&mut self, command: u8, v: u8) {
        match (command, v) {
            (cmd::SET_LEDS, _) => self.leds = v & 7,
            (cmd::TYPEMATIC, _) => self.typematic = v,
            (cmd::SCAN_SET, 0) => return self.reply(&[ACK, self.set]),
            (cmd::SCAN_SET, 1 | 2) => self.set = v,
            _ => {
                dlog!(UNIMP, "keyboard: command {command:#x} with {v:#x}");
                return self.reply(&[RESEND]);
            }
        }
        self.reply(&[ACK]);
    }

    fn command(&mut self, v: u8) {
        match v {
            cmd::SET_LEDS | cmd::SCAN_SET | cmd::TYPEMATIC => {
                self.expects = Some(v);
                self.reply(&[ACK]);
            }
            cmd::ECHO => self.reply(&[cmd::ECHO]),
            cmd::READ_ID => self.reply(&[ACK, 0xab, 0x83]),
            cmd::ENABLE => {
                self.keys.clear();
                self.scanning = true;
                self.reply(&[ACK]);
            }
            cmd::DISABLE | cmd::DEFAULTS => {
                self.defaults();
                self.scanning = v == cmd::DEFAULTS;
                self.reply(&[ACK]);
            }
            cmd::RESEND => self.reply(&[self.last]),
            cmd::RESET => {
                *self = Self::default();
                self.reply(&[ACK, TEST_PASSED]);
            }
            _ => {
                dlog!(UNIMP, "keyboard: command {v:#x}");
                self.reply(&[RESEND]);
            }
        }
    }

    /// Whether a loaded state keeps the bounds that running code keeps.
    pub(super) fn plausible(&self) -> bool {
        self.replies.len() <= QUEUE && self.keys.len() <= QUEUE && matches!(self.set, 1 | 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(k: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|&b| {
                k.write(b);
                std::iter::from_fn(|| k.pop()).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn commands_answer() {
        let mut k = Keyboard::default();
        assert_eq!(send(&mut k, &[0xff]), [0xfa, 0xaa]);
        assert_eq!(send(&mut k, &[0xf2]), [0xfa, 0xab, 0x83]);
        assert_eq!(send(&mut k, &[0xee]), [0xee]);
        assert_eq!(send(&mut k, &[0xed, 5]), [0xfa, 0xfa]);
        assert_eq!(k.leds(), 5);
        assert_eq!(send(&mut k, &[0xf0, 0]), [0xfa, 0xfa, 2]);
        assert_eq!(send(&mut k, &[0xf0, 3]), [0xfa, 0xfe]);
        assert_eq!(send(&mut k, &[0xed, 0xf4]), [0xfa, 0xfa], "a command instead of a parameter");
        assert_eq!(k.leds(), 5);
        assert_eq!(send(&mut k, &[0x00]), [0xfe]);
        assert_eq!(send(&mut k, &[0xf2, 0xfe]), [0xfa, 0xab, 0x83, 0x83], "resend");
    }

    #[test]
    fn keys_follow_the_set_and_the_scanning_switch() {
        let mut k = Keyboard::default();
        assert!(k.key(0x1e, true));
        assert_eq!(k.pop(), Some(0x1c));
        send(&mut k, &[0xf0, 1]);
        assert!(k.key(0x1e, false));
        assert_eq!(k.pop(), Some(0x9e));
        send(&mut k, &[0xf5]);
        assert!(!k.key(0x1e, true));
        send(&mut k, &[0xf4]);
        assert!(k.key(0x1e, true) && !k.key(0x7000, true));
    }

    #[test]
    fn a_full_queue_drops_whole_events() {
        let mut k = Keyboard::default();
        let taken = (0..1000).filter(|_| k.key(scancode::PAUSE, true)).count();
        assert_eq!(taken, QUEUE / 8);
        assert_eq!(std::iter::from_fn(|| k.pop()).count(), taken * 8);
    }
}
