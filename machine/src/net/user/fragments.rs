//! Putting IPv4 packets together that the guest has sent in fragments (RFC 791 §3.2): few at a time, and not for long.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Packets under way, fragments of each, and how long they may take.
const PACKETS: usize = 16;
const PIECES: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the longest packet.
const LONGEST: usize = 65535;

/// What fragments of one packet have in common.
pub type Key = (Ipv4Addr, Ipv4Addr, u8, u16);

struct Packet {
    key: Key,
    data: Vec<u8>,
    have: Vec<(usize, usize)>,
    len: Option<usize>,
    born: Instant,
}

#[derive(Default)]
pub struct Fragments(VecDeque<Packet>);

impl Fragments {
    /// Takes a fragment, and gives the payload of a packet that is whole now.
    pub fn add(&mut self, key: Key, at: usize, payload: &[u8], more: bool, now: Instant) -> Option<Vec<u8>> {
        self.0.retain(|p| now.saturating_duration_since(p.born) < PATIENCE);
        let i = match self.0.iter().position(|p| p.key == key) {
            Some(i) => i,
            None => {
                if self.0.len() == PACKETS {
                    self.0.pop_front();
                }
                self.0.push_back(Packet { key, data: Vec::new(), have: Vec::new(), len: None, born: now });
                self.0.len() - 1
            }
        };
        let p = &mut self.0[i];
        let end = at + payload.len();
        let overlaps = p.have.iter().any(|(a, b)| at < *b && *a < end);
        let bad = end > LONGEST
            || payload.is_empty()
            || more && !payload.len().is_multiple_of(8)
            || p.len.is_some_and(|n| end > n || !more);
        if overlaps || bad || p.have.len() == PIECES {
            // What overlaps is an attack or a repetition: none of it is of use (RFC 5722, for IPv6, says why).
            self.0.remove(i);
            return None;
        }
        if p.data.len() < end {
            p.data.resize(end, 0);
        }
        p.data[at..end].copy_from_slice(payload);
        p.have.push((at, end));
        if !more {
            p.len = Some(end);
        }
        let whole = p.len.is_some_and(|n| n == p.data.len() && p.have.iter().map(|(a, b)| b - a).sum::<usize>() == n);
        whole.then(|| self.0.remove(i).map(|p| p.data)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_together_in_any_order_and_nothing_else_does() {
        let now = Instant::now();
        let key = (Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST, 17, 9);
        let mut f = Fragments::default();
        assert_eq!(f.add(key, 16, &[3; 5], false, now), None);
        assert_eq!(f.add(key, 0, &[1; 8], true, now), None);
        assert_eq!(f.add(key, 8, &[2; 8], true, now), Some([&[1; 8][..], &[2; 8], &[3; 5]].concat()));
        assert_eq!(f.add(key, 0, &[1; 8], true, now), None);
        assert_eq!(f.add(key, 4, &[1; 8], false, now), None, "overlaps");
        assert_eq!(f.add(key, 65528, &[1; 8], false, now), None, "too long");
        assert_eq!(f.add(key, 0, &[1; 7], true, now), None, "no multiple of 8");
        assert!(f.0.is_empty());
        for id in 0..100 {
            f.add((key.0, key.1, 17, id), 0, &[1; 8], true, now);
        }
        assert_eq!(f.0.len(), PACKETS);
        f.add(key, 0, &[1; 8], true, now + PATIENCE);
        assert_eq!(f.0.len(), 1);
    }
}
