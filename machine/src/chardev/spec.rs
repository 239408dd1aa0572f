//! What a back end is made from.

use crate::options::{CharBackend, SocketAddress};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    /// `signal`: Ctrl-C and Ctrl-\ end the emulator and do not reach the guest.
    Stdio {
        signal: bool,
    },
    /// Output only.
    File {
        path: PathBuf,
        append: bool,
    },
    /// One client after another; while one is served the next waits. `wait`: return when the first has come.
    /// An empty TCP host stands for all addresses.
    Server {
        address: SocketAddress,
        wait: bool,
    },
    /// With `reconnect`, a lost or missing server is tried again after that time. An empty TCP host is this one.
    Client {
        address: SocketAddress,
        reconnect: Option<Duration>,
    },
    /// A pseudo-terminal; its path is told on standard error and in `info chardev`.
    Pty,
}

impl From<&CharBackend> for Kind {
    fn from(b: &CharBackend) -> Self {
        match b {
            CharBackend::Null => Self::Null,
            CharBackend::Pty => Self::Pty,
            CharBackend::Stdio { signal } => Self::Stdio { signal: *signal },
            CharBackend::File { path, append } => Self::File { path: path.clone(), append: *append },
            // Sockets never delay small writes, with `nodelay` or without.
            CharBackend::Socket { address, server: true, wait, .. } => Self::Server { address: address.clone(), wait: *wait },
            CharBackend::Socket { address, reconnect, .. } => Self::Client { address: address.clone(), reconnect: *reconnect },
        }
    }
}
