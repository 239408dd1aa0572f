//! Which frames the driver wants, and the control queue by which it says so (virtio 1.2 §5.1.6.5).

use crate::net::Mac;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Classes of commands.
const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_VLAN: u8 = 2;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_OFFLOADS: u8 = 5;
/// Addresses of a table; with more of them all frames of its kind are taken.
const TABLE: usize = 64;
/// Longest command that is looked at.
pub const MAX_COMMAND: usize = 2 + 2 * (4 + 6 * 1024);

const BROADCAST: Mac = [0xff; 6];

/// Address and receive modes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    pub mac: Mac,
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Vec<Mac>,
    multicast: Vec<Mac>,
    vlans: BTreeSet<u16>,
}

impl Filter {
    /// As before any driver: everything is taken.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            vlans: BTreeSet::new(),
        }
    }

    /// Whether a saved filter can have been made by commands.
    pub fn is_sound(&self) -> bool {
        self.unicast.len() <= TABLE && self.multicast.len() <= TABLE && self.vlans.last().is_none_or(|v| *v < 4096)
    }

    /// Whether the driver wants the frame that starts like this; `vlans`: it names those that it wants.
    pub fn wants(&self, frame: &[u8], vlans: bool) -> bool {
        let (Some(to), tag) = (frame.first_chunk::<6>(), frame.get(12..16)) else { return false };
        if let (true, Some(&[0x81, 0x00, a, b])) = (vlans, tag)
            && !self.vlans.contains(&(u16::from_be_bytes([a, b]) & 0xfff))
        {
            return false;
        }
        if self.promiscuous {
            return true;
        }
        match to {
            &BROADCAST => !self.no_broadcast,
            to if to[0] & 1 != 0 => !self.no_multicast && (self.all_multicast || self.multicast.contains(to)),
            to => !self.no_unicast && (self.all_unicast || *to == self.mac || self.unicast.contains(to)),
        }
    }

    /// Carries out a command; `offloads` is set by one of them. `false`: it is none, or not offered.
    pub fn command(&mut self, bytes: &[u8], offloads: &mut Option<u64>) -> bool {
        let Some((&[class, command], data)) = bytes.split_first_chunk::<2>() else { return false };
        match (class, command) {
            (CLASS_RX, 0..=5) => {
                let Some(on) = data.first().map(|b| *b != 0) else { return false };
                *match command {
                    0 => &mut self.promiscuous,
                    1 => &mut self.all_multicast,
                    2 => &mut self.all_unicast,
                    3 => &mut self.no_multicast,
                    4 => &mut self.no_unicast,
                    _ => &mut self.no_broadcast,
                } = on;
                true
            }
            (CLASS_MAC, 0) => self.tables(data).is_some(),
            (CLASS_MAC, 1) => data.first_chunk().map(|mac| self.mac = *mac).is_some(),
            (CLASS_VLAN, 0 | 1) => {
                let Some(id) = data.first_chunk().map(|b| u16::from_le_bytes(*b)).filter(|v| *v < 4096) else { return false };
                match command {
                    0 => self.vlans.insert(id),
                    _ => self.vlans.remove(&id),
                };
                true
            }
            (CLASS_ANNOUNCE, 0) => true,
            (CLASS_OFFLOADS, 0) => {
                *offloads = data.first_chunk().map(|b| u64::from_le_bytes(*b));
                offloads.is_some()
            }
            _ => false,
        }
    }

    fn tables(&mut self, data: &[u8]) -> Option<()> {
        let table = |data: &mut &[u8]| -> Option<Vec<Mac>> {
            let (n, rest) = data.split_first_chunk()?;
            let len = usize::try_from(u32::from_le_bytes(*n)).ok()?.checked_mul(6)?;
            let (list, rest) = rest.split_at_checked(len)?;
            *data = rest;
            Some(list.chunks_exact(6).filter_map(|m| m.try_into().ok()).collect())
        };
        let mut data = data;
        let (unicast, multicast) = (table(&mut data)?, table(&mut data)?);
        // More than we keep: no frame that is wanted is lost.
        (self.all_unicast, self.unicast) = if unicast.len() > TABLE { (true, Vec::new()) } else { (self.all_unicast, unicast) };
        (self.all_multicast, self.multicast) =
            if multicast.len() > TABLE { (true, Vec::new()) } else { (self.all_multicast, multicast) };
        Some(())
    }
}
