//! What network devices ask of the host: a back end that takes frames and has frames, and does all its work on a thread of its own.

pub mod checksum;
mod frame;
pub mod testkit;

pub use frame::{Body, Family, Frame, Offload};

use serde_json::Value;

/// Bytes of an Ethernet header without tags.
pub const ETH_HEADER: usize = 14;
/// Bytes of the longest frame: an IP packet of 64 KiB behind a header with one VLAN tag.
pub const MAX_FRAME: usize = ETH_HEADER + 4 + 65535;

pub type Mac = [u8; 6];

/// What the guest's driver takes in frames that it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// Checksums that are not filled in.
    pub checksum: bool,
    /// TCP segments of up to 64 KiB over IPv4, and over IPv6.
    pub tso4: bool,
    pub tso6: bool,
}

/// A host network behind one device. `send`, `next` and `put_back` are called by the back end's own thread, when it has told the
/// device that it is its turn, and with the device's lock held; they never wait.
pub trait NetBackend: Send + Sync {
    /// Frames may come with `Offload`s, and go with them.
    fn offloads(&self) -> bool;
    /// Whether there is a link.
    fn link(&self) -> bool;
    /// What the driver takes from now on; nothing without a driver.
    fn driver_takes(&self, what: Takes);
    /// The driver has frames, or room for frames: `turn` is wanted soon. Never waits.
    fn kick(&self);
    /// Whether the caller is the back end's thread and the machine runs. Asking ends the turn.
    fn turn(&self) -> bool;
    /// No frame can be taken now; a turn follows when one can.
    fn full(&self) -> bool;
    /// A frame of the guest's.
    fn send(&self, frame: Frame);
    /// A frame for the guest.
    fn next(&self) -> Option<Frame>;
    /// What `next` gave has no room at the driver's.
    fn put_back(&self, frame: Frame);
    /// How the device is told that it is its turn. Called without the device's lock.
    fn attach(&self, device: Box<dyn Fn() + Send + Sync>);
    /// Forgets frames that wait for the device.
    fn reset(&self);
    /// What the other side of a move must know; the machine stands still.
    fn save(&self) -> Value;
    /// Takes what another back end's `save` has given; what it does not know it leaves.
    fn load(&self, saved: &Value);
}

/// A back end that is not there: takes nothing and has nothing, for trying saved states.
pub struct Absent {
    pub offloads: bool,
}

impl NetBackend for Absent {
    fn offloads(&self) -> bool {
        self.offloads
    }
    fn link(&self) -> bool {
        false
    }
    fn driver_takes(&self, _: Takes) {}
    fn kick(&self) {}
    fn turn(&self) -> bool {
        false
    }
    fn full(&self) -> bool {
        true
    }
    fn send(&self, _: Frame) {}
    fn next(&self) -> Option<Frame> {
        None
    }
    fn put_back(&self, _: Frame) {}
    fn attach(&self, _: Box<dyn Fn() + Send + Sync>) {}
    fn reset(&self) {}
    fn save(&self) -> Value {
        Value::Null
    }
    fn load(&self, _: &Value) {}
}
