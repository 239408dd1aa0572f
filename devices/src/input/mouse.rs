//! PS/2 mouse with the IntelliMouse wheel (IBM PS/2 Technical Reference, "Mouse"; the wheel is Microsoft's extension).

use super::keyboard::{ACK, RESEND, TEST_PASSED};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use vm_core::dlog;

mod cmd {
    pub const SCALE_1_1: u8 = 0xe6;
    pub const SCALE_2_1: u8 = 0xe7;
    pub const RESOLUTION: u8 = 0xe8;
    pub const STATUS: u8 = 0xe9;
    pub const STREAM: u8 = 0xea;
    pub const READ_DATA: u8 = 0xeb;
    pub const END_WRAP: u8 = 0xec;
    pub const WRAP: u8 = 0xee;
    pub const REMOTE: u8 = 0xf0;
    pub const READ_ID: u8 = 0xf2;
    pub const RATE: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

/// Button bits of `Mouse::motion` and of the packet's first byte.
pub const LEFT: u8 = 1;
pub const RIGHT: u8 = 2;
pub const MIDDLE: u8 = 4;

const BUTTONS: u8 = 7;
/// Sample rates that, set one after the other, turn the wheel on.
const WHEEL_KNOCK: [u8; 3] = [200, 100, 80];
const ID_PLAIN: u8 = 0;
const ID_WHEEL: u8 = 3;
/// Movement that is kept for a guest that does not read.
const MAX_PENDING: i32 = 4096;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mouse {
    /// Answers to commands; they go before movement.
    replies: VecDeque<u8>,
    /// Rest of the movement packet being sent: at most one.
    packet: VecDeque<u8>,
    enabled: bool,
    remote: bool,
    wrap: bool,
    scale_2_1: bool,
    rate: u8,
    resolution: u8,
    id: u8,
    last_rates: [u8; 3],
    dx: i32,
    dy: i32,
    dz: i32,
    buttons: u8,
    sent_buttons: u8,
    expects: Option<u8>,
    last: u8,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            replies: VecDeque::new(),
            packet: VecDeque::new(),
            enabled: false,
            remote: false,
            wrap: false,
            scale_2_1: false,
            rate: 100,
            resolution: 2,
            id: ID_PLAIN,
            last_rates: [0; 3],
            dx: 0,
            dy: 0,
            dz: 0,
            buttons: 0,
            sent_buttons: 0,
            expects: None,
            last: 0,
        }
    }
}

impl Mouse {
    /// Moves the mouse: `dx` to the right, `dy` down, `dz` wheel notches towards the user; `buttons` held now.
    pub fn motion(&mut self, dx: i32, dy: i32, dz: i32, buttons: u8) {
        let add = |a: i32, b: i32| a.saturating_add(b).clamp(-MAX_PENDING, MAX_PENDING);
        self.buttons = buttons & BUTTONS;
        if self.enabled || self.remote {
            self.dx = add(self.dx, dx);
            self.dy = add(self.dy, dy.saturating_neg());
            self.dz = add(self.dz, dz);
        }
    }

    /// The next byte for the controller.
    pub(super) fn pop(&mut self) -> Option<u8> {
        if self.replies.is_empty() && self.packet.is_empty() && self.must_report() {
            let packet = self.take_packet();
            self.packet.extend(packet);
        }
        let b = self.replies.pop_front().or_else(|| self.packet.pop_front())?;
        self.last = b;
        Some(b)
    }

    fn must_report(&self) -> bool {
        let news = (self.dx, self.dy) != (0, 0) || self.buttons != self.sent_buttons || (self.dz != 0 && self.id == ID_WHEEL);
        self.enabled && !self.remote && !self.wrap && news
    }

    /// The movement packet; what does not fit one stays for the next.
    fn take_packet(&mut self) -> Vec<u8> {
        let take = |v: &mut i32, limit: i32| {
            let part = (*v).clamp(-limit, limit);
            *v -= part;
            part
        };
        let (mut dx, mut dy) = (take(&mut self.dx, 127), take(&mut self.dy, 127));
        let dz = take(&mut self.dz, 7);
        if self.scale_2_1 && !self.remote {
            (dx, dy) = (scaled(dx), scaled(dy));
        }
        self.sent_buttons = self.buttons;
        let sign = |v: i32, bit: u8| if v < 0 { bit } else { 0 };
        let mut packet = vec![8 | self.buttons | sign(dx, 0x10) | sign(dy, 0x20), dx as u8, dy as u8];
        if self.id == ID_WHEEL {
            packet.push(dz as u8);
        }
        packet
    }

    fn reply(&mut self, bytes: &[u8]) {
        self.replies.extend(bytes);
    }

    /// A byte from the controller (command D4h).
    pub(super) fn write(&mut self, v: u8) {
        self.replies.clear();
        if self.wrap && !matches!(v, cmd::END_WRAP | cmd::RESET) {
            return self.reply(&[v]);
        }
        match self.expects.take() {
            Some(cmd::RATE) => self.set_rate(v),
            Some(_) => self.set_resolution(v),
            None => self.command(v),
        }
    }

    fn set_rate(&mut self, v: u8) {
        self.rate = v;
        self.last_rates = [self.last_rates[1], self.last_rates[2], v];
        if self.last_rates == WHEEL_KNOCK {
            self.id = ID_WHEEL;
        }
        self.reply(&[ACK]);
    }

    fn set_resolution(&mut self, v: u8) {
        self.resolution = v & 3;
        self.reply(&[ACK]);
    }

    fn command(&mut self, v: u8) {
        self.packet.clear();
        match v {
            cmd::RATE | cmd::RESOLUTION => self.expects = Some(v),
            cmd::SCALE_1_1 => self.scale_2_1 = false,
            cmd::SCALE_2_1 => self.scale_2_1 = true,
            cmd::STREAM => self.remote = false,
            cmd::REMOTE => self.remote = true,
            cmd::WRAP => self.wrap = true,
            cmd::END_WRAP => self.wrap = false,
            cmd::ENABLE => self.enabled = true,
            cmd::DISABLE => self.enabled = false,
            cmd::DEFAULTS => *self = Self { id: self.id, buttons: self.buttons, ..Self::default() },
            cmd::STATUS => return self.reply(&[ACK, self.status(), self.resolution, self.rate]),
            cmd::READ_ID => return self.reply(&[ACK, self.id]),
            cmd::READ_DATA => {
                let packet = self.take_packet();
                self.reply(&[ACK]);
                return self.reply(&packet);
            }
            cmd::RESEND => return self.reply(&[self.last]),
            cmd::RESET => {
                *self = Self { buttons: self.buttons, ..Self::default() };
                return self.reply(&[ACK, TEST_PASSED, ID_PLAIN]);
            }
            _ => {
                dlog!(UNIMP, "mouse: command {v:#x}");
                return self.reply(&[RESEND]);
            }
        }
        self.reply(&[ACK]);
    }

    /// First status byte: 6 remote, 5 enabled, 4 scaling 2:1, 2 left, 1 middle, 0 right.
    fn status(&self) -> u8 {
        let bit = |on: bool, n: u8| u8::from(on) << n;
        let button = |b, n| bit(self.buttons & b != 0, n);
        let modes = bit(self.remote, 6) | bit(self.enabled, 5) | bit(self.scale_2_1, 4);
        modes | button(LEFT, 2) | button(MIDDLE, 1) | button(RIGHT, 0)
    }

    /// Whether a loaded state keeps the bounds that running code keeps.
    pub(super) fn plausible(&self) -> bool {
        let small = |v: i32| (-MAX_PENDING..=MAX_PENDING).contains(&v);
        self.replies.len() <= 8 && self.packet.len() <= 4 && small(self.dx) && small(self.dy) && small(self.dz)
    }
}

/// Scaling 2:1 (IBM PS/2 Technical Reference, "Set Scaling 2:1").
fn scaled(v: i32) -> i32 {
    let big = match v.abs() {
        n @ (0 | 1) => n,
        2 => 1,
        3 => 3,
        4 => 6,
        5 => 9,
        n => 2 * n,
    };
    big * v.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(m: &mut Mouse) -> Vec<u8> {
        std::iter::from_fn(|| m.pop()).collect()
    }

    fn send(m: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|&b| {
                m.write(b);
                drain(m)
            })
            .collect()
    }

    #[test]
    fn reset_id_and_wheel() {
        let mut m = Mouse::default();
        assert_eq!(send(&mut m, &[0xff]), [0xfa, 0xaa, 0]);
        assert_eq!(send(&mut m, &[0xf2]), [0xfa, 0]);
        assert_eq!(send(&mut m, &[0xf3, 200, 0xf3, 100, 0xf3, 80]), [0xfa; 6]);
        assert_eq!(send(&mut m, &[0xf2]), [0xfa, 3]);
        assert_eq!(send(&mut m, &[0xe9]), [0xfa, 0, 2, 80]);
        assert_eq!(send(&mut m, &[0x11]), [0xfe]);
    }

    #[test]
    fn packets() {
        let mut m = Mouse::default();
        m.motion(1, 1, 0, 0);
        assert!(drain(&mut m).is_empty(), "not enabled");
        send(&mut m, &[0xf4]);
        m.motion(5, 3, 0, LEFT);
        assert_eq!(drain(&mut m), [0x29, 5, 0xfd]);
        m.motion(-130, 0, 0, LEFT);
        assert_eq!(drain(&mut m), [0x19, 0x81, 0, 0x19, 0xfd, 0]);
        m.motion(0, 0, 0, 0);
        assert_eq!(drain(&mut m), [8, 0, 0], "a released button reports");
        assert_eq!(send(&mut m, &[0xf0, 0xeb]), [0xfa, 0xfa, 8, 0, 0]);
    }

    #[test]
    fn movement_is_bounded() {
        let mut m = Mouse::default();
        send(&mut m, &[0xf4]);
        (0..10).for_each(|_| m.motion(i32::MAX, i32::MIN, i32::MAX, 0));
        assert!(m.plausible());
        assert!(drain(&mut m).len() <= 3 * 40);
    }
}
