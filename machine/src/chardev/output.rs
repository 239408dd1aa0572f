//! Bounded output to a peer that may read slowly or never.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes kept for a peer that does not read.
pub const BUFFER: usize = 64 << 10;
/// Longest wait of a writer for a peer that has stopped reading.
pub const STALL_LIMIT: Duration = Duration::from_millis(100);
/// A terminal or pipe that polls writable takes this much without blocking.
const SAFE_CHUNK: usize = 256;

/// Where bytes go.
pub struct Output {
    fd: Arc<OwnedFd>,
    /// The descriptor may block: write only when it polls ready, in small pieces.
    may_block: bool,
    pending: VecDeque<u8>,
    stalled: bool,
    broken: bool,
    /// Bytes lost.
    pub dropped: u64,
}

impl Output {
    /// `fd` is non-blocking.
    pub fn nonblocking(fd: Arc<OwnedFd>) -> Self {
        Self { fd, may_block: false, pending: VecDeque::new(), stalled: false, broken: false, dropped: 0 }
    }

    /// `fd` is shared with other programs, whose view must not become non-blocking: a terminal or pipe is opened anew.
    pub fn shared(fd: OwnedFd) -> Self {
        let kind = rustix::fs::fstat(&fd).map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode));
        if matches!(kind, FileType::CharacterDevice | FileType::Fifo) {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            if let Ok(own) = rustix::fs::open(path, flags, Mode::empty()) {
                return Self::nonblocking(Arc::new(own));
            }
        }
        Self { may_block: kind != FileType::RegularFile, ..Self::nonblocking(Arc::new(fd)) }
    }

    /// The descriptor to wait for, while bytes are pending.
    pub fn waits_for(&self) -> Option<Arc<OwnedFd>> {
        (!self.pending.is_empty() && !self.broken).then(|| self.fd.clone())
    }

    /// The peer has gone or the descriptor has failed: all further output is lost.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    pub fn write(&mut self, mut bytes: &[u8]) {
        while !self.broken {
            let n = bytes.len().min(BUFFER.saturating_sub(self.pending.len()));
            self.pending.extend(&bytes[..n]);
            bytes = &bytes[n..];
            self.flush();
            if bytes.is_empty() || (self.pending.len() >= BUFFER && !self.wait_for_room()) {
                break;
            }
        }
        self.dropped += bytes.len() as u64;
    }

    /// Takes all of `bytes` without waiting, or nothing if more than `limit` bytes would be pending then.
    pub fn offer(&mut self, bytes: &[u8], limit: usize) -> bool {
        if self.pending.len() + bytes.len() > limit {
            self.flush();
        }
        let fits = !self.broken && self.pending.len() + bytes.len() <= limit;
        if fits {
            self.pending.extend(bytes);
            self.flush();
        } else {
            self.dropped += bytes.len() as u64;
        }
        fits
    }

    /// Bytes that `write` takes without waiting; those for nobody are as many as there are.
    pub fn room(&self) -> usize {
        if self.broken { usize::MAX } else { BUFFER.saturating_sub(self.pending.len()) }
    }

    /// Bytes that the peer has not taken yet.
    pub fn backlog(&self) -> usize {
        self.pending.len()
    }

    /// Gives the peer up: what is pending and all further output is lost.
    pub fn give_up(&mut self) {
        self.broken = true;
        self.dropped += self.pending.len() as u64;
        self.pending = VecDeque::new();
    }

    /// Waits until the full buffer has shrunk, `STALL_LIMIT` at most, and not at all for a peer that has stalled.
    fn wait_for_room(&mut self) -> bool {
        let end = Instant::now() + STALL_LIMIT;
        while self.pending.len() >= BUFFER && !self.stalled && !self.broken {
            let left = end.saturating_duration_since(Instant::now());
            self.stalled = left.is_zero() || !self.wait(left);
            self.flush();
            if self.pending.len() >= BUFFER {
                // Terminals may poll writable and then take nothing.
                std::thread::sleep(Duration::from_millis(1).min(left));
            }
        }
        self.pending.len() < BUFFER
    }

    /// Waits until the peer takes bytes.
    fn wait(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        poll(&mut [PollFd::new(&*self.fd, PollFlags::OUT)], limit.as_ref()).is_ok_and(|n| n > 0)
    }

    /// Writes what the peer takes now.
    pub fn flush(&mut self) {
        while !self.pending.is_empty() && !self.broken {
            if self.may_block && !self.wait(Duration::ZERO) {
                return;
            }
            let (head, _) = self.pending.as_slices();
            let head = if self.may_block { &head[..head.len().min(SAFE_CHUNK)] } else { head };
            match rustix::io::write(&*self.fd, head) {
                Ok(n) => {
                    self.pending.drain(..n);
                    self.stalled = false;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.give_up(),
            }
        }
    }

    /// Gives the peer up to `limit` to take what is pending, before the program ends.
    pub fn drain(&mut self, limit: Duration) {
        self.flush();
        if !self.pending.is_empty() && self.wait(limit) {
            self.flush();
        }
    }
}
