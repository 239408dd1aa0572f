//! Opening a TAP device of the host's (Linux: Documentation/networking/tuntap.rst).

#![allow(unsafe_code)]

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Updater, ioctl};
use std::io;
use std::os::fd::OwnedFd;

const DEVICE: &str = "/dev/net/tun";
const TUNSETIFF: Opcode = 0x4004_54ca;
const IFF_TAP: i16 = 2;
/// No header in front of frames.
const IFF_NO_PI: i16 = 0x1000;
/// IFNAMSIZ, with the zero at the end.
const NAME: usize = 16;

/// struct ifreq, as this request uses it.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    flags: i16,
    rest: [u8; 22],
}

/// The TAP device of this name, which is made if there is none; an empty one lets the host choose.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let told = |e: rustix::io::Errno, what: &str| {
        let e = io::Error::from(e);
        let why = if e.kind() == io::ErrorKind::PermissionDenied {
            " (TAP devices need CAP_NET_ADMIN, or one made for this user)"
        } else {
            ""
        };
        io::Error::new(e.kind(), format!("{what}: {e}{why}"))
    };
    let fd = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| told(e, DEVICE))?;
    if name.len() >= NAME {
        return Err(io::Error::other(format!("{name}: names have at most {} characters", NAME - 1)));
    }
    let mut request = Request { name: [0; NAME], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, of 40 bytes, which `Request` is; it lives until the call returns.
    unsafe { ioctl(&fd, Updater::<TUNSETIFF, Request>::new(&mut request)) }.map_err(|e| told(e, name))?;
    Ok(fd)
}
