//! Virtio console device (virtio 1.2 §5.3): consoles and named serial ports on character back ends, with flow control both ways.

mod control;
mod port;

use super::{Kind, Model, Queues};
use crate::chr::CharSink;
use control::Message;
use port::{Port, Saved};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use vm_core::dlog;

const F_MULTIPORT: u64 = 1 << 1;
const F_EMERG_WRITE: u64 = 1 << 2;

const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;
const QUEUE: u16 = 128;
/// Offset of `emerg_wr` in the configuration.
const EMERG_WR: u64 = 8;

/// Ports at most: their queues have MSI-X vectors of their own.
pub const MAX_PORTS: u32 = 31;

/// One port. Ports without a sink take output and lose it.
pub struct PortConfig {
    /// Number of the port, below the device's `max_ports`.
    pub nr: u32,
    /// The guest uses it as a console (hvc); others are named character devices.
    pub console: bool,
    pub name: String,
    pub sink: Option<Arc<dyn CharSink>>,
}

#[derive(Serialize, Deserialize)]
struct State {
    ready: bool,
    ports: Vec<Saved>,
}

/// The device.
pub struct Console {
    /// In the order of their numbers.
    ports: Vec<Port>,
    max_ports: u32,
    features: u64,
    /// The driver wants to know of ports.
    ready: bool,
}

impl Console {
    /// `max_ports`: 1..=`MAX_PORTS`; ports with a number beyond it are left out.
    pub fn new(max_ports: u32, ports: Vec<PortConfig>) -> Self {
        let max_ports = max_ports.clamp(1, MAX_PORTS);
        let mut ports: Vec<_> = ports.into_iter().filter(|p| p.nr < max_ports).map(Port::new).collect();
        ports.sort_by_key(|p| p.config.nr);
        Self { ports, max_ports, features: 0, ready: false }
    }

    fn multiport(&self) -> bool {
        self.features & F_MULTIPORT != 0
    }

    fn port(&mut self, nr: u32) -> Option<&mut Port> {
        self.ports.iter_mut().find(|p| p.config.nr == nr)
    }

    /// Bytes that `receive` would take now for a port.
    pub fn room(&mut self, nr: u32) -> usize {
        self.port(nr).map_or(0, |p| p.room())
    }

    /// Takes input for a port from the front of `bytes`; gives how many.
    pub fn receive(&mut self, nr: u32, bytes: &[u8], queues: &mut Queues) -> usize {
        let Some(p) = self.port(nr) else { return 0 };
        let n = p.take_input(bytes);
        p.pump_input(queues);
        n
    }

    /// Somebody is at the other end of a port, or has gone.
    pub fn set_open(&mut self, nr: u32, open: bool, queues: &mut Queues) {
        if let Some(p) = self.port(nr) {
            p.set_host_open(open);
        }
        self.service(queues);
    }

    /// Gives the driver what it is to be told, as long as it has buffers for it.
    fn tell(&mut self, queues: &mut Queues) {
        if !self.ready {
            return;
        }
        for p in &mut self.ports {
            while let Some((what, message)) = p.next_message() {
                if !control::send(queues, CONTROL_RX, &message) {
                    return;
                }
                p.told(what);
            }
        }
    }

    /// What the driver says.
    fn hear(&mut self, queues: &mut Queues) {
        // A driver that adds more and more on another CPU is heard in turns.
        for _ in 0..2 * QUEUE {
            let chain = match queues.pop(CONTROL_TX) {
                Some(c) => c,
                None if queues.rearm(CONTROL_TX) => continue,
                None => return,
            };
            match control::receive(queues, &chain) {
                Some(m) => self.obey(m),
                None => dlog!(GUEST_ERRORS, "virtio-console: a control message that is none"),
            }
            queues.push(CONTROL_TX, chain.head, 0);
        }
        self.ports.iter().for_each(Port::want_input);
    }

    fn obey(&mut self, m: Message) {
        match m.event {
            control::DEVICE_READY => {
                self.ready = m.value == 1;
                let ready = self.ready;
                self.ports.iter_mut().for_each(|p| p.announce(ready));
            }
            control::PORT_READY | control::PORT_OPEN => match self.port(m.id) {
                Some(p) if m.event == control::PORT_READY => p.set_ready(m.value == 1),
                Some(p) => p.set_guest_open(m.value == 1),
                None => dlog!(GUEST_ERRORS, "virtio-console: event {} for port {}, which is not there", m.event, m.id),
            },
            other => dlog!(GUEST_ERRORS, "virtio-console: control event {other}"),
        }
    }

    /// What a queue is for: port and direction; `None`: control.
    fn queue_user(index: usize) -> Option<(u32, bool)> {
        match index {
            0 | 1 => Some((0, index == 0)),
            CONTROL_RX | CONTROL_TX => None,
            n => Some((n as u32 / 2 - 1, n.is_multiple_of(2))),
        }
    }
}

impl Model for Console {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-console", id: 3, transitional: 0x1003, class: 0x07_80_00 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE; 2 * (self.max_ports as usize + 1)]
    }

    fn features(&self) -> u64 {
        F_MULTIPORT | F_EMERG_WRITE
    }

    fn start(&mut self, features: u64) {
        self.features = features;
        if !self.multiport()
            && let Some(p) = self.port(0)
        {
            p.alone();
        }
    }

    /// struct virtio_console_config (§5.3.4).
    fn config(&self) -> Vec<u8> {
        let mut c = vec![0; 12];
        c[4..8].copy_from_slice(&self.max_ports.to_le_bytes());
        c
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (EMERG_WR, [byte, ..]) = (offset, data)
            && let Some(p) = self.ports.iter().find(|p| p.config.console)
        {
            p.emergency(*byte);
        }
    }

    fn kick(&mut self, index: usize, queues: &mut Queues) {
        if index >= CONTROL_RX && !self.multiport() {
            return;
        }
        // Control messages and buffers for them: `service` looks.
        let Some((nr, input)) = Self::queue_user(index) else { return };
        match self.port(nr) {
            Some(p) if input => p.pump_input(queues),
            Some(p) => p.pump_output(queues),
            None => {}
        }
    }

    fn service(&mut self, queues: &mut Queues) {
        if self.multiport() {
            self.hear(queues);
            self.tell(queues);
        }
        for p in &mut self.ports {
            p.pump_input(queues);
            p.pump_output(queues);
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.ready = false;
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn save(&self) -> Value {
        let ports = self.ports.iter().map(Port::save).collect();
        serde_json::to_value(State { ready: self.ready, ports }).expect("plain data with string keys")
    }

    fn load(&mut self, saved: &Value) -> Result<(), String> {
        let s = State::deserialize(saved).map_err(|e| e.to_string())?;
        if s.ports.len() != self.ports.len() || !self.ports.iter().zip(&s.ports).all(|(p, s)| p.accepts(s)) {
            return Err("the machine has other ports than the one that was saved".into());
        }
        self.ready = s.ready;
        self.ports.iter_mut().zip(s.ports).for_each(|(p, s)| p.load(s));
        Ok(())
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
