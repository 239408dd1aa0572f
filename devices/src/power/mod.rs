//! Ways for the guest to reset or end the machine.

pub mod debug_exit;
pub mod reset;
pub mod sleep;
pub mod smi;

/// What devices may ask of the machine. Called with the device's lock held: it only notes the request and returns.
pub trait PowerSink: Send + Sync {
    /// Reset of the whole machine.
    fn reset(&self);
    /// The guest has switched the machine off.
    fn power_off(&self);
    /// The program ends with this status (0..=255).
    fn exit(&self, status: i32);
}

#[cfg(test)]
pub mod testkit {
    //! A sink that remembers what was asked.

    use super::PowerSink;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[derive(Default)]
    pub struct Asked(Mutex<Vec<String>>);

    impl Asked {
        pub fn new() -> Arc<Self> {
            Arc::default()
        }

        /// What was asked since the last call.
        pub fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock())
        }
    }

    impl PowerSink for Asked {
        fn reset(&self) {
            self.0.lock().push("reset".into());
        }
        fn power_off(&self) {
            self.0.lock().push("power off".into());
        }
        fn exit(&self, status: i32) {
            self.0.lock().push(format!("exit {status}"));
        }
    }
}
