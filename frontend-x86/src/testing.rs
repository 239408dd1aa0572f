//! What comparisons of single instructions with the host processor run in: one page of code, some bytes of memory, a CPU,
//! and no devices.

use arch_x86::CpuState;
use ir::{CodeFetch, Memory, Rmw, Ty, interp};
use vm_core::guest::Flush;
use vm_core::{Access, CpuIo, Fault, GuestEnv, Va};

/// A page of code; there is none after it.
pub struct CodePage(pub [u8; 4096]);

impl CodePage {
    /// `code` (at most a page), then no-ops.
    ///
    /// # Panics
    /// If it is longer.
    pub fn new(code: &[u8]) -> Self {
        let mut page = [0x90; 4096];
        page[..code.len()].copy_from_slice(code);
        Self(page)
    }
}

impl CodeFetch for CodePage {
    type Fault = ();
    fn page(&self) -> &[u8; 4096] {
        &self.0
    }
    fn next_page(&mut self) -> Result<&[u8; 4096], ()> {
        Err(())
    }
}

/// Memory at one linear address; an access elsewhere is a page fault.
pub struct FlatMemory {
    pub base: u64,
    pub bytes: Vec<u8>,
}

impl FlatMemory {
    fn at(&self, addr: u64, len: u64) -> Result<usize, Fault> {
        let off = addr.wrapping_sub(self.base);
        let inside = off.saturating_add(len) <= self.bytes.len() as u64;
        if inside { Ok(off as usize) } else { Err(arch_x86::fault::page(addr, 4)) }
    }
}

impl Memory for FlatMemory {
    type Fault = Fault;
    fn load(&mut self, addr: u64, ty: Ty, _: u16) -> Result<u128, Fault> {
        let (at, n) = (self.at(addr, ty.bytes().into())?, ty.bytes() as usize);
        let mut b = [0; 16];
        b[..n].copy_from_slice(&self.bytes[at..at + n]);
        Ok(u128::from_le_bytes(b))
    }
    fn store(&mut self, addr: u64, ty: Ty, value: u128, _: u16) -> Result<(), Fault> {
        let (at, n) = (self.at(addr, ty.bytes().into())?, ty.bytes() as usize);
        self.bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        Ok(())
    }
    fn rmw(&mut self, addr: u64, ty: Ty, kind: Rmw, value: u64, ctx: u16) -> Result<u64, Fault> {
        let old = self.load(addr, ty, ctx)? as u64;
        self.store(addr, ty, interp::rmw(ty, kind, old, value).into(), ctx)?;
        Ok(old)
    }
    fn cas(&mut self, addr: u64, ty: Ty, expected: u64, new: u64, ctx: u16) -> Result<u64, Fault> {
        let old = self.load(addr, ty, ctx)? as u64;
        self.store(addr, ty, if old == expected & ty.mask() { new } else { old }.into(), ctx)?;
        Ok(old)
    }
    fn probe(&mut self, addr: u64, len: u32, _: u16) -> Result<(), Fault> {
        self.at(addr, len.into()).map(|_| ())
    }
}

/// What helpers run in.
pub struct FlatEnv<'a> {
    pub cpu: &'a mut CpuState,
    pub mem: &'a mut FlatMemory,
}

impl GuestEnv for FlatEnv<'_> {
    type Cpu = CpuState;
    fn cpu(&mut self) -> &mut CpuState {
        self.cpu
    }
    fn cpu_ref(&self) -> &CpuState {
        self.cpu
    }
    fn io(&self) -> &dyn CpuIo {
        panic!("an instruction under test does I/O")
    }
    fn load(&mut self, va: Va, size: u8, _: usize) -> Result<u64, Fault> {
        self.mem.load(va.0, Ty::int(size.into()), 0).map(|v| v as u64)
    }
    fn store(&mut self, va: Va, size: u8, value: u64, _: usize) -> Result<(), Fault> {
        self.mem.store(va.0, Ty::int(size.into()), value.into(), 0)
    }
    fn probe(&mut self, va: Va, len: u64, _: Access, _: usize) -> Result<(), Fault> {
        self.mem.at(va.0, len).map(|_| ())
    }
    fn bulk_copy(&mut self, dst: Va, src: Va, len: u64, down: bool, _: usize) -> Result<u64, Fault> {
        let ahead = if down { src.0.wrapping_sub(dst.0) } else { dst.0.wrapping_sub(src.0) };
        if ahead < len {
            return Ok(0);
        }
        let (s, d) = (self.mem.at(src.0, len)?, self.mem.at(dst.0, len)?);
        self.mem.bytes.copy_within(s..s + len as usize, d);
        Ok(len)
    }
    fn bulk_fill(&mut self, dst: Va, size: u8, value: u64, count: u64, _: usize) -> Result<u64, Fault> {
        let n = usize::from(size);
        let d = self.mem.at(dst.0, count.saturating_mul(size.into()))?;
        (0..count as usize).for_each(|i| self.mem.bytes[d + i * n..][..n].copy_from_slice(&value.to_le_bytes()[..n]));
        Ok(count)
    }
    fn flush(&mut self, _: Flush) {}
}
