//! Devices whose work is done by other threads, which wake them when some is done.

use parking_lot::Mutex;
use std::sync::Arc;

/// Puts a device in a cell. `set_wake` gives it what those threads call: `service`, with the cell locked; nothing once the cell is gone.
pub fn shared<D: Send + 'static>(
    device: D,
    set_wake: impl FnOnce(&mut D, Box<dyn Fn() + Send + Sync>),
    service: fn(&mut D),
) -> Arc<Mutex<D>> {
    let cell = Arc::new(Mutex::new(device));
    let weak = Arc::downgrade(&cell);
    let wake = move || {
        if let Some(d) = weak.upgrade() {
            service(&mut d.lock());
        }
    };
    set_wake(&mut cell.lock(), Box::new(wake));
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_woken_while_there_is_one() {
        let mut wake = None;
        let cell = shared(0, |_, w| wake = Some(w), |n: &mut u32| *n += 1);
        let wake = wake.unwrap();
        wake();
        assert_eq!(*cell.lock(), 1);
        drop(cell);
        wake();
    }
}
