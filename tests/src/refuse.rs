//! Programs whose system calls the host's kernel refuses, as this file's filter tells it to (seccomp(2)): so errors that hardly ever
//! happen are seen, in the program as it is.
//!
//! UNSAFE: has a child process install its filter between fork and exec, by two system calls that only read what is borrowed.
#![allow(unsafe_code)]

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Offsets in `seccomp_data`: the call's number, its arguments' low halves.
const NUMBER: u32 = 0;
const ARGUMENT: [u32; 3] = [16, 24, 32];

/// A call that is refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Number of the system call.
    pub call: libc::c_long,
    /// Arguments (0 to 2) that it must have, by their low 32 bits.
    pub with: &'static [(usize, u32)],
    /// What comes of it; 0: the call returns 0.
    pub errno: i32,
}

impl Refusal {
    /// Of an `ioctl`.
    pub const fn ioctl(with: &'static [(usize, u32)], errno: i32) -> Self {
        Self { call: libc::SYS_ioctl, with, errno }
    }
}

fn filter(refusals: &[Refusal]) -> Vec<sock_filter> {
    let op = |code: u32, k| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |at| op(BPF_LD | BPF_W | BPF_ABS, at);
    let mut all = Vec::new();
    for r in refusals {
        let mut tests = vec![(NUMBER, r.call as u32)];
        tests.extend(r.with.iter().map(|(n, v)| (ARGUMENT[*n], *v)));
        for (i, (at, value)) in tests.iter().enumerate() {
            // Past what is left of this refusal.
            let behind = 2 * (tests.len() - 1 - i) + 1;
            all.push(load(*at));
            all.push(sock_filter { jf: behind as u8, ..op(BPF_JMP | BPF_JEQ | BPF_K, *value) });
        }
        all.push(op(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | r.errno as u32));
    }
    all.push(op(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW));
    all
}

/// Has the program of `command` be refused these calls.
pub fn refuse(command: &mut Command, refusals: &[Refusal]) {
    let mut ops = filter(refusals);
    let install = move || {
        let program = sock_fprog { len: ops.len() as u16, filter: ops.as_mut_ptr() };
        // SAFETY: neither call changes memory; the second reads the filter, which lives until it returns.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(install) };
}
