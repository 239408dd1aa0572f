//! One port of a virtio console device: its two queues, what it holds for them, and what the driver is still to be told.

use super::PortConfig;
use super::control::{self, Message};
use crate::block::Segment;
use crate::virtio::{Chain, Queues};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use vm_core::Pa;

/// Input kept for a driver that has no buffers ready.
const INPUT: usize = 4096;
/// Output that is moved in one turn, so that the device's lock is free again soon.
const TURN: usize = 64 << 10;
/// Bytes moved at once.
const PIECE: usize = 4096;
/// Requests that are done in one turn.
const REQUESTS: usize = 256;

// What the driver is still to be told, in this order.
const ADD: u8 = 1;
const CONSOLE: u8 = 2;
const NAME: u8 = 4;
const OPEN: u8 = 8;

/// Output that the back end has not taken yet: what is left of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sending {
    head: u16,
    left: VecDeque<Segment>,
}

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    nr: u32,
    console: bool,
    name: String,
    ready: bool,
    guest_open: bool,
    told_open: bool,
    due: u8,
    input: Vec<u8>,
    sending: Option<Sending>,
}

pub struct Port {
    pub config: PortConfig,
    /// Somebody is at the host's end. Consoles are always open.
    host_open: bool,
    /// What the driver was told last of that.
    told_open: bool,
    /// The driver knows the port.
    ready: bool,
    /// A program in the guest has it open.
    guest_open: bool,
    due: u8,
    input: VecDeque<u8>,
    sending: Option<Sending>,
}

/// Writes bytes into a request's buffers; gives how many.
pub fn fill(queues: &Queues, chain: &Chain, bytes: &mut dyn Iterator<Item = u8>) -> u32 {
    let mut given = 0;
    for s in &chain.writable {
        let part: Vec<u8> = bytes.take(s.len as usize).collect();
        queues.master().write(Pa(s.pa), &part);
        given += part.len() as u32;
        if part.len() < s.len as usize {
            break;
        }
    }
    given
}

impl Port {
    pub fn new(config: PortConfig) -> Self {
        let host_open = config.console;
        let (told_open, ready, guest_open, due, input, sending) = Default::default();
        Self { config, host_open, told_open, ready, guest_open, due, input, sending }
    }

    fn rx(&self) -> usize {
        if self.config.nr == 0 { 0 } else { 2 * (self.config.nr as usize + 1) }
    }

    /// Bytes of input that it takes now.
    pub fn room(&self) -> usize {
        if self.guest_open { INPUT.saturating_sub(self.input.len()) } else { 0 }
    }

    pub fn take_input(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room());
        self.input.extend(&bytes[..n]);
        n
    }

    pub fn set_host_open(&mut self, open: bool) {
        self.host_open = open || self.config.console;
        if self.ready && self.told_open != self.host_open {
            self.due |= OPEN;
        }
    }

    /// The driver begins to ask for ports, or no longer does.
    pub fn announce(&mut self, on: bool) {
        self.due = if on { ADD } else { 0 };
        (self.ready, self.told_open) = (false, false);
    }

    /// The driver has made the port, or could not.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
        let name = if self.config.name.is_empty() { 0 } else { NAME };
        let console = if self.config.console { CONSOLE } else { 0 };
        let open = if self.host_open != self.told_open { OPEN } else { 0 };
        self.due = if ready { console | name | open } else { 0 };
    }

    pub fn set_guest_open(&mut self, open: bool) {
        self.guest_open = open;
        if !open {
            self.input.clear();
        }
        self.want_input();
    }

    /// The driver knows of one port only, which it may use as it likes.
    pub fn alone(&mut self) {
        self.guest_open = true;
        self.want_input();
    }

    /// Wakes the back end, which then asks for room, and lets the device go on.
    pub fn want_input(&self) {
        if let Some(sink) = &self.config.sink {
            sink.input_wanted();
        }
    }

    pub fn emergency(&self, byte: u8) {
        if let Some(sink) = self.config.sink.as_ref().filter(|s| s.room() > 0) {
            sink.write(&[byte]);
        }
    }

    /// What the driver is to be told next.
    pub fn next_message(&self) -> Option<(u8, Message)> {
        let message = |event, value, name| Message { id: self.config.nr, event, value, name };
        let what = self.due & self.due.wrapping_neg();
        let m = match what {
            ADD => message(control::PORT_ADD, 1, Vec::new()),
            CONSOLE => message(control::CONSOLE_PORT, 1, Vec::new()),
            NAME => message(control::PORT_NAME, 1, self.config.name.clone().into_bytes()),
            OPEN => message(control::PORT_OPEN, self.host_open.into(), Vec::new()),
            _ => return None,
        };
        Some((what, m))
    }

    pub fn told(&mut self, what: u8) {
        self.due &= !what;
        if what == OPEN {
            self.told_open = self.host_open;
        }
    }

    /// Moves input into the driver's buffers.
    pub fn pump_input(&mut self, queues: &mut Queues) {
        let (queue, before) = (self.rx(), self.input.len());
        for _ in 0..REQUESTS {
            if self.input.is_empty() {
                break;
            }
            let chain = match queues.pop(queue) {
                Some(c) => c,
                None if queues.rearm(queue) => continue,
                None => break,
            };
            let input = &mut self.input;
            let n = fill(queues, &chain, &mut std::iter::from_fn(|| input.pop_front()));
            queues.push(queue, chain.head, n);
        }
        if before >= INPUT && self.input.len() < INPUT {
            self.want_input();
        }
    }

    /// Moves the driver's output to the back end, as much as that takes.
    pub fn pump_output(&mut self, queues: &mut Queues) {
        let queue = self.rx() + 1;
        let mut left = TURN;
        for _ in 0..REQUESTS {
            if self.sending.is_none() {
                let chain = match queues.pop(queue) {
                    Some(c) => c,
                    None if queues.rearm(queue) => continue,
                    None => return,
                };
                self.sending = Some(Sending { head: chain.head, left: chain.readable.into() });
            }
            let Some(s) = &mut self.sending else { return };
            if !send(&self.config, s, queues, &mut left) {
                if left == 0 {
                    // The event loop goes on with it.
                    self.want_input();
                }
                return;
            }
            queues.push(queue, s.head, 0);
            self.sending = None;
        }
        self.want_input();
    }

    pub fn reset(&mut self) {
        (self.told_open, self.ready, self.guest_open, self.due) = (false, false, false, 0);
        self.input.clear();
        self.sending = None;
    }

    pub fn save(&self) -> Saved {
        let (nr, console, name) = (self.config.nr, self.config.console, self.config.name.clone());
        let (ready, guest_open, told_open, due) = (self.ready, self.guest_open, self.told_open, self.due);
        let (input, sending) = (self.input.iter().copied().collect(), self.sending.clone());
        Saved { nr, console, name, ready, guest_open, told_open, due, input, sending }
    }

    pub fn accepts(&self, s: &Saved) -> bool {
        let same = (s.nr, s.console, &s.name) == (self.config.nr, self.config.console, &self.config.name);
        same && s.input.len() <= INPUT && s.due < 2 * OPEN
    }

    pub fn load(&mut self, s: Saved) {
        (self.ready, self.guest_open, self.told_open, self.due) = (s.ready, s.guest_open, s.told_open, s.due);
        (self.input, self.sending) = (s.input.into(), s.sending);
        // The peer may be another one here.
        self.set_host_open(self.host_open);
    }
}

/// Moves what is left of a request. `false`: there is more.
fn send(config: &PortConfig, s: &mut Sending, queues: &Queues, left: &mut usize) -> bool {
    let Some(sink) = &config.sink else { return true };
    let mut piece = [0; PIECE];
    while let Some(first) = s.left.front_mut() {
        if first.len == 0 {
            s.left.pop_front();
            continue;
        }
        let n = PIECE.min(first.len as usize).min(*left).min(sink.room());
        if n == 0 {
            return false;
        }
        queues.master().read(Pa(first.pa), &mut piece[..n]);
        sink.write(&piece[..n]);
        first.pa = first.pa.wrapping_add(n as u64);
        first.len -= n as u32;
        *left -= n;
    }
    true
}
