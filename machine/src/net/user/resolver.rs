//! The host's name server, from a file of resolv.conf(5)'s form.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PORT: u16 = 53;
/// How long the file is believed.
const FRESH: Duration = Duration::from_secs(2);
/// Longest file that is read.
const LONGEST: u64 = 1 << 16;

/// See the module.
pub struct Resolver {
    path: PathBuf,
    found: Option<SocketAddr>,
    at: Option<Instant>,
}

/// The first name server. Besides an address, `[ADDRESS]:PORT` is taken, as OpenBSD has it.
fn first(text: &str) -> Option<SocketAddr> {
    let servers = text.lines().filter_map(|l| l.trim().strip_prefix("nameserver"));
    let address = |s: &str| {
        let s = s.split_whitespace().next()?;
        let split = s.strip_prefix('[').and_then(|s| s.split_once("]:"));
        match split {
            Some((a, port)) => Some(SocketAddr::new(a.parse().ok()?, port.parse().ok()?)),
            None => Some(SocketAddr::new(s.parse::<IpAddr>().ok()?, PORT)),
        }
    };
    servers.filter(|s| s.starts_with(char::is_whitespace)).find_map(address)
}

impl Resolver {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), found: None, at: None }
    }

    pub fn address(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.at.is_none_or(|at| now.saturating_duration_since(at) > FRESH) {
            self.at = Some(now);
            let short = std::fs::metadata(&self.path).is_ok_and(|m| m.is_file() && m.len() <= LONGEST);
            self.found = if short { std::fs::read_to_string(&self.path).ok().as_deref().and_then(first) } else { None };
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_server_counts() {
        let some = |s: &str| Some(s.parse().unwrap());
        assert_eq!(first("# x\nsearch a.b\n nameserver 10.1.2.3 # c\nnameserver 1.1.1.1"), some("10.1.2.3:53"));
        assert_eq!(first("nameserver nonsense\nnameserver ::1\n"), some("[::1]:53"));
        assert_eq!(first("nameserver [127.0.0.1]:5353"), some("127.0.0.1:5353"));
        assert_eq!(first("nameservers 1.1.1.1\nnameserver"), None);
    }
}
