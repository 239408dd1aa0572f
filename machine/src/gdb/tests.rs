//! Damaged and hostile input for the protocol's parsers.
use super::packet::{Frame, Framer};
use super::resume;
use super::stops::List;
use proptest::prelude::*;

proptest! {
    #[test]
    fn no_bytes_break_the_parsers(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut framer = Framer::default();
        for b in &bytes {
            if let Some(Frame::Packet(p)) = framer.push(*b) {
                let _ = resume::thread(&p);
            }
        }
        let _ = resume::actions(&bytes, 4, 7);
        let mut list = List::default();
        let _ = list.insert(&bytes, false, super::Arch::X64);
        let _ = list.remove(&bytes);
        list.plan();
    }
}
