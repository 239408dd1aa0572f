//! Registers and memory: `g G p P m M X` (GDB manual, "Packets").

use super::{Answer, BAD_ADDRESS, INVALID, MAX_BYTES, Session};
use crate::gdb::memory;
use crate::gdb::packet::{hex, number, split, unhex};
use crate::gdb::regs::{self, Id};
use crate::runner::Runner;
use vm_core::CpuIo;

impl Session {
    /// All registers of the current vCPU, as bytes in gdb's order.
    pub(super) fn values(&self, ids: Vec<(Id, u16)>) -> Option<String> {
        let cpu = self.cpu;
        self.with(move |r| {
            let c = &mut r.cpus[cpu];
            let cr8 = c.io.cr8();
            let state = c.engine.cpu();
            ids.iter().map(|(id, bits)| hex(&regs::read(state, cr8, *id).to_le_bytes()[..usize::from(bits / 8)])).collect()
        })
    }

    pub(super) fn read_registers(&self) -> Answer {
        match self.values(self.arch.regs().iter().map(|r| (r.id, r.bits)).collect()) {
            Some(text) => text.into(),
            None => BAD_ADDRESS.into(),
        }
    }

    pub(super) fn read_register(&self, which: &[u8]) -> Answer {
        let reg = number(which).and_then(|n| self.arch.regs().get(usize::try_from(n).ok()?));
        match reg.and_then(|r| self.values(vec![(r.id, r.bits)])) {
            Some(text) => text.into(),
            None => INVALID.into(),
        }
    }

    pub(super) fn change(&self, mut changes: Vec<(Id, u128)>) -> Answer {
        let (cpu, arch) = (self.cpu, self.arch);
        if changes.iter().any(|(id, v)| *id == Id::Cr(8) && *v > 15) {
            return INVALID.into();
        }
        let done = self.with(move |r| {
            let c = &mut r.cpus[cpu];
            changes.iter_mut().for_each(|(id, v)| *v = arch.whole(c.engine.cpu(), *id, *v));
            let done = regs::write(c.engine.cpu(), &changes);
            if done {
                let cr8 = changes.iter().find(|(id, _)| *id == Id::Cr(8));
                cr8.into_iter().for_each(|(_, v)| c.io.set_cr8(*v as u8));
                c.engine.cpu_changed();
            }
            done
        });
        if done == Some(true) { "OK".into() } else { INVALID.into() }
    }

    pub(super) fn write_register(&self, args: &[u8]) -> Answer {
        let (which, value) = split(args, b'=');
        let reg = number(which).and_then(|n| self.arch.regs().get(usize::try_from(n).ok()?));
        match (reg, unhex(value)) {
            (Some(r), Some(bytes)) if bytes.len() == usize::from(r.bits / 8) => self.change(vec![(r.id, from_le(&bytes))]),
            _ => INVALID.into(),
        }
    }

    pub(super) fn write_registers(&self, text: &[u8]) -> Answer {
        let mut changes = Vec::new();
        let mut rest = text;
        for r in self.arch.regs() {
            let digits = usize::from(r.bits / 4);
            let Some(bytes) = rest.get(..digits).and_then(unhex) else { return INVALID.into() };
            changes.push((r.id, from_le(&bytes)));
            rest = &rest[digits..];
        }
        if rest.is_empty() { self.change(changes) } else { INVALID.into() }
    }

    pub(super) fn read_memory(&self, args: &[u8]) -> Answer {
        let (at, len) = split(args, b',');
        let (Some(at), Some(len)) = (number(at), number(len)) else { return INVALID.into() };
        let len = len.min(MAX_BYTES as u64) as usize;
        let (cpu, physical) = (self.cpu, self.physical);
        let read = move |r: &mut Runner| {
            let mut bytes = vec![0; len];
            let read = |r: &mut Runner, buf: &mut [u8]| match physical {
                true => memory::read_phys(&r.board, at, buf),
                false => memory::read_virt(r, cpu, at, buf),
            };
            if read(r, &mut bytes) {
                return bytes;
            }
            // What there is before the first page that is not there.
            let room = (4096 - at % 4096).min(len as u64) as usize;
            let mut good = 0;
            for end in (room..=len).step_by(4096) {
                if !read(r, &mut bytes[..end]) {
                    break;
                }
                good = end;
            }
            bytes.truncate(good);
            bytes
        };
        match self.with(read) {
            Some(bytes) if !bytes.is_empty() || len == 0 => hex(&bytes).into(),
            _ => BAD_ADDRESS.into(),
        }
    }

    pub(super) fn write_memory(&self, args: &[u8], decode: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Answer {
        let (place, data) = split(args, b':');
        let (at, len) = split(place, b',');
        let (Some(at), Some(len), Some(data)) = (number(at), number(len), decode(data)) else { return INVALID.into() };
        if data.len() as u64 != len {
            return INVALID.into();
        }
        let cpu = (!self.physical).then_some(self.cpu);
        match self.with(move |r| memory::write(r, cpu, at, &data)) {
            Some(true) => "OK".into(),
            _ => BAD_ADDRESS.into(),
        }
    }
}

fn from_le(bytes: &[u8]) -> u128 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | u128::from(*b))
}
