//! Opening of host back ends: terminal, files, sockets, pseudo-terminals.

use super::backend::{Link, Origin};
use super::output::Output;
use super::spec::Kind;
use super::term;
use crate::options::SocketAddress as Address;
use crate::say;
use std::fs::OpenOptions;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

/// Time for one attempt of a client to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn fd(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(l) => l.as_fd().try_clone_to_owned(),
            Self::Tcp(l) => l.as_fd().try_clone_to_owned(),
        }
    }

    /// The next client, non-blocking.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(l) => {
                let s = l.accept()?.0;
                s.set_nonblocking(true)?;
                Ok(s.into())
            }
            Self::Tcp(l) => tcp_ready(l.accept()?.0),
        }
    }
}

pub fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Null => "null".into(),
        Kind::Stdio { .. } => "stdio".into(),
        Kind::Pty => "pty".into(),
        Kind::File { path, .. } => format!("file {}", path.display()),
        Kind::Server { address, .. } => describe_address(address, "server"),
        Kind::Client { address, .. } => describe_address(address, "client"),
    }
}

fn describe_address(address: &Address, role: &str) -> String {
    match address {
        Address::Unix(p) => format!("unix socket {} ({role})", p.display()),
        Address::Tcp { host, port } => format!("tcp {host}:{port} ({role})"),
    }
}

/// The link and its description (which for a pty names the path to open).
pub fn link(kind: &Kind, label: &str, what: &str) -> io::Result<(Link, String)> {
    let fixed = |input, output| Link::new(Origin::Fixed, input, output);
    let link = match kind {
        Kind::Null => fixed(None, None),
        Kind::Stdio { signal } => {
            term::enter_raw(*signal)?;
            let input = io::stdin().as_fd().try_clone_to_owned()?;
            fixed(Some(Arc::new(input)), Some(Output::shared(io::stdout().as_fd().try_clone_to_owned()?)))
        }
        Kind::File { path, append } => {
            let file = OpenOptions::new().create(true).write(true).append(*append).truncate(!append).open(path)?;
            fixed(None, Some(Output::shared(file.into())))
        }
        Kind::Server { address, wait } => listen(address, *wait, label, what)?,
        Kind::Client { address, reconnect } => client(address, *reconnect)?,
        Kind::Pty => {
            let (fd, slave, path) = open_pty()?;
            say!("{label} is on {path}");
            let fd = Arc::new(fd);
            let link = fixed(Some(fd.clone()), Some(Output::nonblocking(fd)));
            return Ok((link.keeping(slave), format!("pty {path}")));
        }
    };
    Ok((link, what.into()))
}

fn listen(address: &Address, wait: bool, label: &str, what: &str) -> io::Result<Link> {
    let listener = match address {
        Address::Unix(path) => {
            // A socket left by an earlier run; anything else at that path is not ours to remove.
            if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                std::fs::remove_file(path)?;
            }
            Listener::Unix(UnixListener::bind(path)?)
        }
        Address::Tcp { host, port } if host.is_empty() => {
            Listener::Tcp(TcpListener::bind(("::", *port)).or_else(|_| TcpListener::bind(("0.0.0.0", *port)))?)
        }
        Address::Tcp { host, port } => Listener::Tcp(TcpListener::bind((host.as_str(), *port))?),
    };
    let first = if wait {
        say!("{label} waits for a connection on {what}");
        Some(listener.accept()?)
    } else {
        None
    };
    match &listener {
        Listener::Unix(l) => l.set_nonblocking(true)?,
        Listener::Tcp(l) => l.set_nonblocking(true)?,
    }
    let fd = Arc::new(listener.fd()?);
    let mut link = Link::new(Origin::Server { listener, fd }, None, None);
    if let Some(fd) = first {
        link.attach(fd);
    }
    Ok(link)
}

/// A client whose first attempt fails is an error, unless it is to try again.
fn client(address: &Address, reconnect: Option<Duration>) -> io::Result<Link> {
    let origin = Origin::Client { address: address.clone(), reconnect, next_try: None };
    let mut link = Link::new(origin, None, None);
    match connect(address) {
        Ok(fd) => link.attach(fd),
        Err(_) if reconnect.is_some() => link.detach(),
        Err(e) => return Err(e),
    }
    Ok(link)
}

pub fn connect(address: &Address) -> io::Result<OwnedFd> {
    match address {
        Address::Unix(path) => {
            let s = UnixStream::connect(path)?;
            s.set_nonblocking(true)?;
            Ok(s.into())
        }
        Address::Tcp { host, port } => {
            let host = if host.is_empty() { "localhost" } else { host };
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for a in (host, *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&a, CONNECT_LIMIT) {
                    Ok(s) => return tcp_ready(s),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
    }
}

fn tcp_ready(s: TcpStream) -> io::Result<OwnedFd> {
    s.set_nodelay(true)?;
    s.set_nonblocking(true)?;
    Ok(s.into())
}

/// A pseudo-terminal in raw mode, and the path of the side to open. We hold that side open too: without it the
/// master reports a hang-up for as long as nobody has it open.
fn open_pty() -> io::Result<(OwnedFd, OwnedFd, String)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    let slave = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut modes = rustix::termios::tcgetattr(&slave)?;
    modes.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &modes)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((master, slave.into(), path))
}
