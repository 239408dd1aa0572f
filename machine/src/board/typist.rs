//! Somebody at the keyboard: presses keys, and lets them go some guest time later.

use devices::input::i8042::I8042;
use devices::input::scancode::Key;
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::Clock;
use vm_core::clock::{Ns, Timer};

/// Groups of keys that are held at a time, at most.
const MAX_HELD: usize = 64;
const NS_PER_MS: Ns = 1_000_000;

pub struct Typist {
    keyboard: Arc<Mutex<I8042>>,
    timer: Timer,
    /// When each group is let go; in no order.
    held: Mutex<Vec<(Ns, Vec<Key>)>>,
}

impl Typist {
    pub fn new(keyboard: Arc<Mutex<I8042>>, clock: &Clock) -> Arc<Self> {
        let new = Arc::new(Self { keyboard, timer: clock.timer("keys"), held: Mutex::default() });
        let weak = Arc::downgrade(&new);
        new.timer.bind(move |now| {
            if let Some(t) = weak.upgrade() {
                t.let_go(now);
            }
        });
        new
    }

    /// Presses keys in this order, and lets them go in the reverse one after `ms` milliseconds. `Err`: one line for the user.
    pub fn press(&self, keys: Vec<Key>, ms: u64) -> Result<(), String> {
        let mut held = self.held.lock();
        if held.len() == MAX_HELD {
            return Err("too many keys are held already".into());
        }
        let down = |k: &Key| self.keyboard.lock().key(*k, true);
        let taken = keys.iter().take_while(|k| down(k)).count();
        if taken > 0 {
            let until = self.timer.now().saturating_add(ms.saturating_mul(NS_PER_MS));
            held.push((until, keys[..taken].to_vec()));
            self.timer.arm(held.iter().map(|h| h.0).min().unwrap_or(until));
        }
        match taken == keys.len() {
            true => Ok(()),
            false => Err("the guest has turned the keyboard off, or does not read it".into()),
        }
    }

    fn let_go(&self, now: Ns) {
        let mut held = self.held.lock();
        let due = |h: &(Ns, Vec<Key>)| h.0 <= now;
        held.iter().filter(|h| due(h)).flat_map(|h| h.1.iter().rev()).for_each(|k| {
            self.keyboard.lock().key(*k, false);
        });
        held.retain(|h| !due(h));
        if let Some(next) = held.iter().map(|h| h.0).min() {
            self.timer.arm(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::input::i8042::{REGION_COMMAND, REGION_DATA, Wires};
    use vm_core::{IrqLine, PortIo};

    fn read(k: &Arc<Mutex<I8042>>) -> Vec<u32> {
        let byte = || {
            let mut k = k.lock();
            (k.read(REGION_COMMAND, 0, 1) & 1 != 0).then(|| k.read(REGION_DATA, 0, 1))
        };
        std::iter::from_fn(byte).collect()
    }

    #[test]
    fn keys_go_down_and_up_again_in_guest_time() {
        let no = || IrqLine::unconnected();
        let wires = Wires { kbd_irq: no(), aux_irq: no(), reset: Box::new(|| ()), a20: Box::new(|_| ()) };
        let (k, clock) = (Arc::new(Mutex::new(I8042::new(wires))), Clock::new());
        let t = Typist::new(k.clone(), &clock);
        t.press(vec![0x1d, 0x1e], 100).unwrap();
        t.press(vec![0x30], 50).unwrap();
        assert_eq!(read(&k), [0x1d, 0x1e, 0x30]);
        clock.set(60 * NS_PER_MS);
        clock.run_expired();
        assert_eq!(read(&k), [0xb0]);
        clock.set(100 * NS_PER_MS);
        clock.run_expired();
        assert_eq!(read(&k), [0x9e, 0x9d]);
        // A guest that does not read.
        let refused = (0..200).find_map(|_| t.press(vec![0x1e], 1000).err());
        assert!(refused.is_some_and(|e| e.contains("does not read") || e.contains("too many")));
    }
}
