//! Networks of the host's: each behind one card, with a thread of its own.

mod dump;
mod link;
mod port;
mod tap;
pub mod user;

pub use port::Port;

use crate::options::{DumpConfig, HostForward, NetdevConfig, NetdevKind, Protocol, host_end, host_forward};
use crate::say;
use devices::net::NetBackend;
use dump::Dump;
use link::Link;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use user::{Lines, User};

/// Why a network cannot be had; one line each.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("-netdev {id}: hostfwd: {protocol} port {port} on {ip}: {source}", protocol = name(.forward.protocol), port = .forward.host.port(), ip = .forward.host.ip())]
    Forward { id: String, forward: Box<HostForward>, source: io::Error },
    #[error("-netdev {0}: {1}")]
    Host(String, #[source] io::Error),
    #[error("-object filter-dump: {path}: {source}", path = .0.display(), source = .1)]
    Dump(PathBuf, #[source] io::Error),
}

fn name(p: Protocol) -> &'static str {
    match p {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Icmp => "ICMP",
    }
}

/// What is behind a card.
enum Kind {
    User(User),
    Link(Link),
}

struct Net {
    port: Arc<Port>,
    kind: Kind,
}

/// All networks of a machine, by id.
#[derive(Default)]
pub struct Nets(BTreeMap<String, Net>);

impl Nets {
    /// `lines`: back ends that `guestfwd` names.
    pub fn open(list: &[NetdevConfig], dumps: &[DumpConfig], lines: &Lines) -> Result<Self, NetError> {
        let mut nets = BTreeMap::new();
        for c in list {
            let host = |e| NetError::Host(c.id.clone(), e);
            let offloads = matches!(c.kind, NetdevKind::User(_));
            let port = Arc::new(Port::new(offloads).map_err(host)?);
            for d in dumps.iter().filter(|d| d.netdev == c.id) {
                port.add_dump(Dump::create(&d.file, d.most).map_err(|e| NetError::Dump(d.file.clone(), e))?);
            }
            let kind = match &c.kind {
                NetdevKind::User(u) => Kind::User(User::start(&c.id, u, lines, port.clone()).map_err(|(f, e)| match f {
                    Some(f) => NetError::Forward { id: c.id.clone(), forward: Box::new(f), source: e },
                    None => host(e),
                })?),
                NetdevKind::Link(l) => Kind::Link(Link::start(&c.id, l, port.clone()).map_err(host)?),
            };
            nets.insert(c.id.clone(), Net { port, kind });
        }
        Ok(Self(nets))
    }

    /// Back ends by id, for the board.
    pub fn backends(&self) -> BTreeMap<String, Arc<dyn NetBackend>> {
        self.0.iter().map(|(id, n)| (id.clone(), n.port.clone() as Arc<dyn NetBackend>)).collect()
    }

    /// Whether frames may move. They do not while the machine stands still.
    pub fn set_running(&self, on: bool) {
        self.0.values().for_each(|n| n.port.set_running(on));
    }

    /// Text of `info usernet`.
    pub fn info_user(&self) -> String {
        let one = |(id, n): (&String, &Net)| match &n.kind {
            Kind::User(u) => Some(format!("{id}:\n{}", u.info())),
            Kind::Link(_) => None,
        };
        self.0.iter().filter_map(one).collect()
    }

    /// Text of `info network`, less the cards.
    pub fn describe(&self, id: &str) -> Option<String> {
        let n = self.0.get(id)?;
        Some(match &n.kind {
            Kind::User(u) => format!("{id}: index=0,type=user,{}", u.describe()),
            Kind::Link(l) => format!("{id}: index=0,{}", l.what),
        })
    }

    /// The user-mode network that a monitor's command is about, and the rest of its arguments.
    fn user<'a>(&self, args: &'a str) -> Result<(&User, &'a str), String> {
        let mut users = self.0.iter().filter_map(|(id, n)| match &n.kind {
            Kind::User(u) => Some((id, u)),
            Kind::Link(_) => None,
        });
        match args.split_once(char::is_whitespace) {
            Some((id, rest)) => {
                let found = users.find(|(i, _)| *i == id);
                found.map(|(_, u)| (u, rest.trim())).ok_or_else(|| format!("there is no user-mode network '{id}'"))
            }
            None => users.next().map(|(_, u)| (u, args)).ok_or_else(|| "there is no user-mode network".into()),
        }
    }

    /// `hostfwd_add [ID] FORWARD`.
    pub fn add_forward(&self, args: &str) -> Result<(), String> {
        let (user, text) = self.user(args)?;
        let f = host_forward(text)?;
        user.add_forward(&f).map_err(|e| format!("{} port {} on {}: {e}", name(f.protocol), f.host.port(), f.host.ip()))
    }

    /// `hostfwd_remove [ID] HOST_END`.
    pub fn remove_forward(&self, args: &str) -> Result<(), String> {
        let (user, text) = self.user(args)?;
        let (protocol, host): (Protocol, SocketAddrV4) = host_end(text)?;
        match user.remove_forward(protocol, host) {
            true => Ok(()),
            false => Err(format!("{} port {} on {} is not forwarded", name(protocol), host.port(), host.ip())),
        }
    }
}

/// Tells of networks that no card uses.
pub fn warn_unused(list: &[NetdevConfig], used: impl Fn(&str) -> bool) {
    for c in list.iter().filter(|c| !used(&c.id)) {
        say!("warning: -netdev {}: no card uses it", c.id);
    }
}
