//! Virtio entropy device (virtio 1.2 §5.4).

use super::{Kind, Model, Queues};
use serde_json::{Value, json};
use vm_core::Pa;

/// Where random bytes come from.
pub type Source = Box<dyn FnMut(&mut [u8]) + Send>;

/// Bytes that one request gets at most: the driver asks again.
const MAX_BYTES: usize = 4096;

/// The device. A request that the source serves at once needs no thread.
pub struct Rng {
    source: Source,
}

impl Rng {
    pub fn new(source: Source) -> Self {
        Self { source }
    }
}

impl Model for Rng {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-rng", id: 4, transitional: 0x1005, class: 0x00_ff_00 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![8]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn kick(&mut self, index: usize, queues: &mut Queues) {
        // As many as the queue has places: a driver that adds on another CPU meanwhile tells of it.
        for _ in 0..16 {
            let Some(chain) = queues.pop(index) else {
                if queues.rearm(index) {
                    continue;
                }
                return;
            };
            let mut given = 0;
            for s in chain.writable {
                let n = (MAX_BYTES - given).min(s.len as usize);
                let mut bytes = vec![0; n];
                (self.source)(&mut bytes);
                queues.master().write(Pa(s.pa), &bytes);
                given += n;
            }
            queues.push(index, chain.head, given as u32);
        }
        queues.rearm(index);
    }

    fn reset(&mut self) {}

    fn save(&self) -> Value {
        json!({})
    }

    fn load(&mut self, _: &Value) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testkit::Driver;
    use super::*;

    fn rng() -> Rng {
        let mut n = 0;
        Rng::new(Box::new(move |b| {
            b.iter_mut().for_each(|x| {
                n += 1;
                *x = n as u8;
            })
        }))
    }

    #[test]
    fn saved_state_contract() {
        Driver::contract(rng);
    }

    #[test]
    fn requests_are_filled() {
        let mut d = Driver::modern(rng());
        d.start(0);
        d.add(0, &[], &[(0x8000, 3), (0x9000, 2)]);
        d.add(0, &[], &[(0xa000, 5000)]);
        d.notify(0);
        assert_eq!(d.used(0), [(0, 5), (2, 4096)]);
        assert_eq!((d.bytes(0x8000, 4), d.bytes(0x9000, 2)), (vec![1, 2, 3, 0], vec![4, 5]));
        assert_eq!(d.bytes(0xa000 + 4095, 2)[1], 0);
    }
}
