//! Debug console port (402h): every byte written goes to the host; a read gives E9h, by which software finds it.

use super::CharSink;
use std::sync::Arc;
use vm_core::{PortIo, Stateless};

const PRESENT: u32 = 0xe9;

/// The port; it has no state.
pub struct DebugCon {
    sink: Arc<dyn CharSink>,
}

impl DebugCon {
    pub fn new(sink: Arc<dyn CharSink>) -> Self {
        Self { sink }
    }
}

impl Stateless for DebugCon {
    const NAME: &'static str = "debugcon";

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for DebugCon {
    fn read(&mut self, _: u32, _: u16, _: u8) -> u32 {
        PRESENT
    }

    fn write(&mut self, _: u32, _: u16, _: u8, value: u32) {
        self.sink.write(&[value as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chr::NullSink;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Kept(Mutex<Vec<u8>>);

    impl CharSink for Kept {
        fn write(&self, bytes: &[u8]) {
            self.0.lock().extend(bytes);
        }
        fn input_wanted(&self) {}
    }

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| DebugCon::new(Arc::new(NullSink)), 1, 1);
    }

    #[test]
    fn bytes_reach_the_sink() {
        let kept = Arc::new(Kept::default());
        let mut d = DebugCon::new(kept.clone());
        assert_eq!(d.read(0, 0, 1), 0xe9);
        b"hi\n".iter().for_each(|b| d.write(0, 0, 1, u32::from(*b)));
        assert_eq!(*kept.0.lock(), b"hi\n");
    }
}
