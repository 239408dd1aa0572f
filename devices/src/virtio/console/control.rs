//! Control messages of the virtio console device (virtio 1.2 §5.3.6.2).

use crate::virtio::{Chain, Queues};
use vm_core::Pa;

pub const DEVICE_READY: u16 = 0;
pub const PORT_ADD: u16 = 1;
pub const PORT_READY: u16 = 3;
pub const CONSOLE_PORT: u16 = 4;
pub const PORT_OPEN: u16 = 6;
pub const PORT_NAME: u16 = 7;

const BYTES: usize = 8;

/// One message; a name follows only from device to driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: u32,
    pub event: u16,
    pub value: u16,
    pub name: Vec<u8>,
}

/// Puts a message into the driver's next buffer; `false` if there is none.
pub fn send(queues: &mut Queues, queue: usize, m: &Message) -> bool {
    let mut bytes = m.id.to_le_bytes().to_vec();
    bytes.extend(m.event.to_le_bytes());
    bytes.extend(m.value.to_le_bytes());
    bytes.extend(&m.name);
    let chain = match queues.pop(queue) {
        Some(c) => c,
        None if queues.rearm(queue) => match queues.pop(queue) {
            Some(c) => c,
            None => return false,
        },
        None => return false,
    };
    let n = super::port::fill(queues, &chain, &mut bytes.iter().copied());
    queues.push(queue, chain.head, n);
    true
}

/// Reads a message of the driver's.
pub fn receive(queues: &Queues, chain: &Chain) -> Option<Message> {
    let mut bytes = [0; BYTES];
    let mut have = 0;
    for s in &chain.readable {
        let n = (BYTES - have).min(s.len as usize);
        queues.master().read(Pa(s.pa), &mut bytes[have..have + n]);
        have += n;
    }
    let [a, b, c, d, e, f, g, h] = bytes;
    let (id, event, value) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
    (have == BYTES).then_some(Message { id, event, value, name: Vec::new() })
}
