//! Memory as helpers, event delivery and slow paths see it: `GuestEnv` on `VcpuBlock`. Fills the TLB, splits page-crossing
//! accesses, reaches devices, and finds writes to translated code.

use crate::tlb::{Entry, Serves, Withheld, index};
use crate::vblock::{LEAVE, VcpuBlock};
use std::ops::Range;
use std::sync::atomic::Ordering;
use vm_core::guest::{Flush, GuestCpu, Mapping, PhysMem};
use vm_core::{Access, CpuIo, Fault, GuestEnv, Pa, PageBits, Ram, Target, Va, dlog};

/// Physical memory for page walks: RAM and whatever else lies there.
pub struct WalkMem<'a> {
    io: &'a dyn CpuIo,
    ram: &'a Ram,
    plain: Range<u64>,
}

impl<'a> WalkMem<'a> {
    pub fn new(io: &'a dyn CpuIo) -> Self {
        Self { io, ram: io.ram(), plain: io.plain() }
    }

    #[inline]
    fn target(&self, pa: Pa) -> Target {
        if self.plain.contains(&pa.0) { Target::Ram { offset: pa.0, writable: true } } else { self.io.target(pa) }
    }

    #[inline]
    fn read(&self, pa: Pa, size: u8) -> u64 {
        match self.target(pa) {
            Target::Ram { offset, .. } if offset & 0xfff <= 4096 - u64::from(size) => self.ram.read_uint(offset, size),
            _ => self.io.mmio_read(pa, size),
        }
    }

    fn writable(&self, pa: Pa) -> Option<u64> {
        match self.target(pa) {
            Target::Ram { offset, writable: true } => Some(offset),
            _ => None,
        }
    }
}

impl PhysMem for WalkMem<'_> {
    fn read_u64(&self, pa: Pa) -> u64 {
        self.read(pa, 8)
    }

    fn read_u32(&self, pa: Pa) -> u32 {
        self.read(pa, 4) as u32
    }

    fn cas_u64(&self, pa: Pa, old: u64, new: u64) -> bool {
        // Page tables in ROM or MMIO: the accessed and dirty bits are lost, as on hardware.
        self.writable(pa).is_none_or(|o| self.ram.cas_u64(o & !7, old, new))
    }

    fn cas_u32(&self, pa: Pa, old: u32, new: u32) -> bool {
        self.writable(pa).is_none_or(|o| self.ram.cas_u32(o & !3, old, new))
    }
}

/// Where an access that lies in one page goes.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Byte offset in RAM.
    Ram {
        offset: u64,
        writable: bool,
        bits: PageBits,
    },
    Mmio(Pa),
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Translates one address, filling the TLB where the page may be entered there.
    pub fn place(&mut self, va: Va, access: Access, ctx: usize) -> Result<Place, Fault> {
        let io = self.machine();
        if let Some(offset) = self.recall(va.0, access, ctx) {
            let bits = io.ram().page_bits(offset >> 12);
            return Ok(Place::Ram { offset, writable: access == Access::Write, bits });
        }
        let mem = WalkMem::new(io);
        let walked = self.cpu.walk(va, access, ctx, &mem);
        dlog!(MMU, "{access:?} {va:?} context {ctx}: {walked:x?}");
        let m = walked?;
        let pa = Pa(m.page.0 | va.0 & 0xfff);
        self.access_at(pa);
        match mem.target(pa) {
            Target::Mmio => Ok(Place::Mmio(pa)),
            Target::Ram { offset, writable } => {
                if access == Access::Write {
                    io.ram().about_to_write(offset);
                }
                let mut bits = io.ram().page_bits(offset >> 12);
                if access == Access::Write && bits.contains(PageBits::DIRTY_LOG) {
                    io.ram().note_write(offset >> 12);
                    bits -= PageBits::DIRTY_LOG;
                }
                self.enter(va.0, ctx, &m, offset & !0xfff, writable, bits);
                Ok(Place::Ram { offset, writable, bits })
            }
        }
    }

    fn enter(&mut self, va: u64, ctx: usize, m: &Mapping, page_offset: u64, writable: bool, bits: PageBits) {
        let host = (self.machine().ram().host_base() as u64).wrapping_add(page_offset);
        let watched = self.cpu.watches(Va(va));
        let (reads_seen, writes_seen) = self.debug_watches(va, m.page.0);
        let mut write = m.write && writable && bits.is_empty() && !watched;
        if let (true, Some(member)) = (write, &self.cache.member) {
            write = member.may_write(self.machine().ram(), page_offset >> 12);
        }
        let told = self.observing.is_some();
        let read = m.read && !bits.contains(PageBits::WATCHED) && !watched && !told;
        let write = write && !told;
        // Locked instructions read too, by entries for writing.
        let serves =
            Serves { read: read && !reads_seen, write: write && !writes_seen && !reads_seen, exec: m.exec, global: m.global };
        let addend = host.wrapping_sub(va & !0xfff);
        self.fills.fill(&mut self.eng.tlb, va, ctx, serves, addend);
        if m.shift > 12 {
            self.large.add(va, m.shift, m.global);
        }
        if reads_seen || writes_seen {
            self.fills.withhold(va, ctx, addend, (read, write), Withheld::Watched);
        } else if m.write && writable && bits == PageBits::CODE && !watched && !told && self.cache.member.is_none() {
            self.fills.withhold(va, ctx, addend, (false, true), Withheld::Code);
        }
    }

    /// RAM offset of a page that another has just pushed out of the TLB. Entries that serve writes are of writable RAM.
    fn recall(&mut self, va: u64, access: Access, ctx: usize) -> Option<u64> {
        let tag: fn(&Entry) -> u64 = match access {
            Access::Read => |e| e.read,
            Access::Write => |e| e.write,
            Access::Execute => |e| e.exec,
        };
        self.fills.recall(&mut self.eng.tlb, va, ctx, tag).then(|| self.quick(va, 1, access, ctx))?
    }

    /// RAM offset of a TLB hit, the common case of `place`.
    pub fn quick(&self, va: u64, size: u8, access: Access, ctx: usize) -> Option<u64> {
        let e = &self.eng.tlb.0[ctx][index(va)];
        let tag = match access {
            Access::Read => e.read,
            Access::Write => e.write,
            Access::Execute => e.exec,
        };
        let hit = va.wrapping_sub(tag) <= 4096 - u64::from(size);
        hit.then(|| va.wrapping_add(e.addend).wrapping_sub(self.machine().ram().host_base() as u64))
    }

    /// RAM offsets and lengths of the two parts of up to a page of bytes, of which the second may be empty, if the TLB serves both.
    fn quick_block(&self, va: u64, len: usize, access: Access, ctx: usize) -> Option<[(u64, usize); 2]> {
        let here = len.min(4096 - (va & 0xfff) as usize);
        let first = self.quick(va, 1, access, ctx)?;
        let second = if here < len { self.quick(va.wrapping_add(here as u64), 1, access, ctx)? } else { first };
        (len - here <= 4096).then_some([(first, here), (second, len - here)])
    }

    /// RAM offset of a hit in a page whose entry withholds the access, for reasons that do not concern it: the debugger watches other
    /// bytes, code came from others. `value`: what is to be stored, if that is known.
    pub fn quick_withheld(&self, va: u64, size: u8, access: Access, ctx: usize, value: Option<u128>) -> Option<u64> {
        let why = self.fills.withheld(&self.eng.tlb, va, size, access == Access::Write, ctx)?;
        let e = &self.eng.tlb.0[ctx][index(va)];
        let offset = va.wrapping_add(e.addend).wrapping_sub(self.machine().ram().host_base() as u64);
        let concerned = match why {
            Withheld::Watched => self.debug_cares(va, size, access),
            // A page of which no code is left should be entered anew, and one that is watched meanwhile.
            Withheld::Code => {
                let (from, len) = self.changed(offset, size.into(), value);
                self.machine().ram().page_bits(offset >> 12) != PageBits::CODE || !self.cache.lies_beside(from, len)
            }
        };
        (!concerned).then_some(offset)
    }

    /// Of a store to a page that code came from, the bytes from the first that changes to the last (offset and length, perhaps 0): a
    /// guest that makes code anew writes much of it as it was. All where the value is not known.
    fn changed(&self, offset: u64, len: u64, value: Option<u128>) -> (u64, u64) {
        let Some(value) = value else { return (offset, len) };
        let (ram, bytes) = (self.machine().ram(), value.to_le_bytes());
        let differs = |k: &u64| ram.read_uint(offset + k, 1) != u64::from(bytes[*k as usize]);
        let Some(first) = (0..len).find(differs) else { return (offset, 0) };
        let last = (first..len).rfind(differs).unwrap_or(first);
        (offset + first, last + 1 - first)
    }

    /// RAM offset of an address that the TLB serves, perhaps after a walk; `None`: MMIO, ROM, code or a watched page.
    fn plain(&mut self, va: Va, access: Access, ctx: usize) -> Result<Option<u64>, Fault> {
        if let Some(offset) = self.quick(va.0, 1, access, ctx) {
            return Ok(Some(offset));
        }
        self.place(va, access, ctx)?;
        Ok(self.quick(va.0, 1, access, ctx))
    }

    /// The same for a write of `len` bytes, which may be to code as well: that has been seen to, but other vCPUs must be told
    /// afterwards. The instruction's own page is left to single stores, each of which it may see.
    fn plain_write(&mut self, va: Va, len: u64, ctx: usize) -> Result<Option<u64>, Fault> {
        if let Some(offset) = self.quick(va.0, 1, Access::Write, ctx) {
            return Ok(Some(offset));
        }
        let place = self.place(va, Access::Write, ctx)?;
        if let Some(offset) = self.quick(va.0, 1, Access::Write, ctx) {
            return Ok(Some(offset));
        }
        let seen = self.observing.is_some() || self.debugging.is_some() || self.cpu.watches(va);
        match place {
            Place::Ram { offset, writable: true, bits } if bits == PageBits::CODE && !seen && !self.runs_in(offset) => {
                self.write_to_code_page(offset, len, None)?;
                Ok(Some(offset))
            }
            _ => Ok(None),
        }
    }

    /// Whether bytes of the instruction at the program counter may lie in the page of a RAM offset.
    fn runs_in(&self, offset: u64) -> bool {
        const LONGEST: u64 = 15;
        let (pc, ctx) = (self.cpu.linear(self.cpu.pc()).0, C::mode_ctx(self.cpu.mode()));
        let in_page = |va: u64| self.quick(va, 1, Access::Execute, ctx).is_none_or(|o| o >> 12 == offset >> 12);
        in_page(pc) || in_page(pc.wrapping_add(LONGEST - 1))
    }

    fn read_place(&mut self, p: Place, size: u8) -> u64 {
        match p {
            Place::Ram { offset, .. } => self.machine().ram().read_uint(offset, size),
            Place::Mmio(pa) => self.machine().mmio_read(pa, size),
        }
    }

    /// Before a device is accessed. `Err`: where instructions are counted the accessing one must run alone.
    fn reach(&mut self, p: Place) -> Result<(), Fault> {
        if self.count.is_some() && matches!(p, Place::Mmio(_)) {
            if !self.eng.single {
                return Err(LEAVE);
            }
            self.publish_count();
        }
        Ok(())
    }

    fn write_place(&mut self, p: Place, size: u8, v: u64) -> Result<(), Fault> {
        self.reach(p)?;
        match p {
            Place::Mmio(pa) => self.machine().mmio_write(pa, size, v),
            Place::Ram { writable: false, offset, .. } => dlog!(GUEST_ERRORS, "write to ROM at RAM offset {offset:#x}"),
            Place::Ram { offset, bits, .. } => {
                if bits.contains(PageBits::CODE) {
                    self.write_to_code_page(offset, size.into(), Some(v.into()))?;
                }
                self.machine().ram().store_uint(offset, size, v);
                self.tell_peers(offset, size.into());
            }
        }
        Ok(())
    }

    /// After a store that no TLB entry served: other vCPUs may have translated what it changed.
    pub fn tell_peers(&self, offset: u64, len: u64) {
        if let Some(member) = &self.cache.member {
            member.wrote(self.machine().ram(), offset, len);
        }
    }

    /// A store is about to change bytes of a page that translated code came from. `Err`: it concerns a block that may be
    /// running, so the instruction must run alone first. `value`: what is to be stored, if that is known.
    pub fn write_to_code_page(&mut self, offset: u64, len: u64, value: Option<u128>) -> Result<(), Fault> {
        let (offset, len) = self.changed(offset, len, value);
        if !self.cache.overlaps(offset, len) {
            // Claimed for code that was not kept: stores need not come this way again.
            if !self.cache.has_code(offset >> 12) {
                self.cache.release_page(self.machine().ram(), offset >> 12);
            }
            return Ok(());
        }
        if !self.eng.single {
            return Err(LEAVE);
        }
        self.cache.note_write(offset, len);
        Ok(())
    }
}

impl<C: GuestCpu> GuestEnv for VcpuBlock<C> {
    type Cpu = C;

    fn cpu(&mut self) -> &mut C {
        &mut self.cpu
    }

    fn cpu_ref(&self) -> &C {
        &self.cpu
    }

    fn io(&self) -> &dyn CpuIo {
        self.publish_count();
        self.machine()
    }

    fn iterations_left(&self) -> u64 {
        match (&self.count, self.eng.exit.load(Ordering::Relaxed)) {
            _ if self.stepping().is_some() || self.debug_due() => 0,
            (None, _) => u64::MAX,
            (Some(_), 0) => self.eng.budget,
            // A device has something to say, perhaps to the iteration that comes next.
            (Some(_), _) => 0,
        }
    }

    fn count_iterations(&mut self, n: u64) {
        self.observed_iteration();
        if self.count.is_some() {
            self.eng.budget -= n;
        }
    }

    fn load(&mut self, va: Va, size: u8, ctx: usize) -> Result<u64, Fault> {
        if let Some(offset) = self.quick(va.0, size, Access::Read, ctx) {
            return Ok(self.machine().ram().read_uint(offset, size));
        }
        self.access_begins();
        let v = self.load_slow(va, size, ctx)?;
        self.access_done(va.0, size, false, v.into());
        Ok(v)
    }

    fn store(&mut self, va: Va, size: u8, value: u64, ctx: usize) -> Result<(), Fault> {
        if let Some(offset) = self.quick(va.0, size, Access::Write, ctx) {
            self.machine().ram().store_uint(offset, size, value);
            return Ok(());
        }
        self.access_begins();
        self.store_slow(va, size, value, ctx)?;
        self.access_done(va.0, size, true, value.into());
        Ok(())
    }

    fn probe(&mut self, va: Va, len: u64, access: Access, ctx: usize) -> Result<(), Fault> {
        let len = len.clamp(1, 4096);
        let mut at = va.0;
        let end = va.0.wrapping_add(len);
        while at != end {
            let n = (4096 - (at & 0xfff)).min(end.wrapping_sub(at));
            if self.quick(at, 1, access, ctx).is_none() {
                let p = self.place(Va(at), access, ctx)?;
                if let (Place::Ram { offset, bits, writable: true }, Access::Write) = (p, access)
                    && bits.contains(PageBits::CODE)
                {
                    self.write_to_code_page(offset, n, None)?;
                }
            }
            at = at.wrapping_add(n);
        }
        Ok(())
    }

    fn load_block(&mut self, va: Va, buf: &mut [u8], ctx: usize) -> bool {
        let Some([first, second]) = self.quick_block(va.0, buf.len(), Access::Read, ctx) else { return false };
        let ram = self.machine().ram();
        let (here, there) = buf.split_at_mut(first.1);
        ram.read(first.0, here);
        ram.read(second.0, there);
        true
    }

    fn store_block(&mut self, va: Va, bytes: &[u8], ctx: usize) -> bool {
        let Some([first, second]) = self.quick_block(va.0, bytes.len(), Access::Write, ctx) else { return false };
        let ram = self.machine().ram();
        let (here, there) = bytes.split_at(first.1);
        ram.store_bytes(first.0, here);
        ram.store_bytes(second.0, there);
        true
    }

    fn bulk_copy(&mut self, dst: Va, src: Va, len: u64, down: bool, ctx: usize) -> Result<u64, Fault> {
        let len = len.min(4096 - (dst.0 & 0xfff)).min(4096 - (src.0 & 0xfff));
        let overtakes = |to: u64, from: u64| (if down { from.wrapping_sub(to) } else { to.wrapping_sub(from) }) < len;
        if overtakes(dst.0, src.0) {
            return Ok(0);
        }
        // Each looked up once: the second page may push the first out of the TLB.
        let Some(from) = self.plain(src, Access::Read, ctx)? else { return Ok(0) };
        let Some(to) = self.plain_write(dst, len, ctx)? else { return Ok(0) };
        if overtakes(to, from) {
            return Ok(0);
        }
        self.machine().ram().copy_within(from, to, len);
        self.tell_peers(to, len);
        Ok(len)
    }

    fn bulk_fill(&mut self, dst: Va, size: u8, value: u64, count: u64, ctx: usize) -> Result<u64, Fault> {
        let count = count.min((4096 - (dst.0 & 0xfff)) / u64::from(size));
        if count == 0 {
            return Ok(0);
        }
        let len = count * u64::from(size);
        let Some(to) = self.plain_write(dst, len, ctx)? else { return Ok(0) };
        self.machine().ram().fill(to, size, value, count);
        self.tell_peers(to, len);
        Ok(count)
    }

    fn cas_128(&mut self, va: Va, expected: u128, new: u128, ctx: usize) -> Result<u128, Fault> {
        self.atomic_128(va.0, expected, new, ctx)
    }

    fn alone(&mut self) -> Result<(), Fault> {
        if self.eng.single { Ok(()) } else { Err(LEAVE) }
    }

    fn relax(&mut self) {
        if self.cache.member.is_some() {
            std::thread::yield_now();
        }
    }

    fn flush(&mut self, what: Flush) {
        dlog!(TLB, "flush {what:?}");
        let large = if let Flush::Page(va) = what { self.large.find(va.0) } else { None };
        // Entries of one large page may be anywhere.
        match large.map_or(what, |global| if global { Flush::All } else { Flush::NonGlobal }) {
            Flush::All => {
                self.fills.flush_all(&mut self.eng.tlb);
                self.large.forget();
                self.code_moved();
            }
            Flush::NonGlobal => {
                self.fills.flush_local(&mut self.eng.tlb);
                self.large.forget_local();
                self.local_code_moved();
            }
            Flush::Switch { from, to, keep } => self.switch_space(from, to, keep),
            Flush::Left(id) => self.left.forget_one(id),
            Flush::Page(va) => {
                self.fills.flush_page(&mut self.eng.tlb, va.0);
                self.page_moved(va.0);
            }
        }
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// A load that the TLB does not serve.
    fn load_slow(&mut self, va: Va, size: u8, ctx: usize) -> Result<u64, Fault> {
        let first = 4096 - (va.0 & 0xfff);
        if u64::from(size) <= first {
            if let Some(offset) = self.quick_withheld(va.0, size, Access::Read, ctx, None) {
                return Ok(self.machine().ram().read_uint(offset, size));
            }
            let p = self.place(va, Access::Read, ctx)?;
            self.reach(p)?;
            self.debug_access(va.0, size, false)?;
            self.cpu.accessed(va, size, false);
            return Ok(self.read_place(p, size));
        }
        let first = first as u8;
        let lo = self.place(va, Access::Read, ctx)?;
        let hi = self.place(Va(va.0.wrapping_add(first.into())), Access::Read, ctx)?;
        self.reach(lo)?;
        self.reach(hi)?;
        self.debug_access(va.0, size, false)?;
        self.cpu.accessed(va, size, false);
        let lo = self.read_bytes(lo, first);
        let hi = self.read_bytes(hi, size - first);
        Ok(lo | hi << (8 * u32::from(first)))
    }

    /// A store that the TLB does not serve.
    fn store_slow(&mut self, va: Va, size: u8, value: u64, ctx: usize) -> Result<(), Fault> {
        let first = 4096 - (va.0 & 0xfff);
        if u64::from(size) <= first {
            if let Some(offset) = self.quick_withheld(va.0, size, Access::Write, ctx, Some(value.into())) {
                self.machine().ram().store_uint(offset, size, value);
                return Ok(());
            }
            let p = self.place(va, Access::Write, ctx)?;
            self.debug_access(va.0, size, true)?;
            self.cpu.accessed(va, size, true);
            return self.write_place(p, size, value);
        }
        let first = first as u8;
        let lo = self.place(va, Access::Write, ctx)?;
        let hi = self.place(Va(va.0.wrapping_add(first.into())), Access::Write, ctx)?;
        for (p, len, v) in [(lo, first, value), (hi, size - first, value >> (8 * u32::from(first)))] {
            if let Place::Ram { offset, bits, writable: true } = p
                && bits.contains(PageBits::CODE)
            {
                self.write_to_code_page(offset, len.into(), Some(v.into()))?;
            }
        }
        self.debug_access(va.0, size, true)?;
        self.cpu.accessed(va, size, true);
        self.write_bytes(lo, first, value)?;
        self.write_bytes(hi, size - first, value >> (8 * u32::from(first)))
    }

    /// Reads 1..=7 bytes of one page; devices see byte accesses.
    fn read_bytes(&mut self, p: Place, len: u8) -> u64 {
        (0..len).fold(0, |v, i| v | self.read_place(p.plus(i), 1) << (8 * u32::from(i)))
    }

    fn write_bytes(&mut self, p: Place, len: u8, v: u64) -> Result<(), Fault> {
        (0..len).try_for_each(|i| self.write_place(p.plus(i), 1, v >> (8 * u32::from(i))))
    }
}

impl Place {
    fn plus(self, n: u8) -> Place {
        match self {
            Place::Ram { offset, writable, bits } => Place::Ram { offset: offset + u64::from(n), writable, bits },
            Place::Mmio(pa) => Place::Mmio(Pa(pa.0 + u64::from(n))),
        }
    }
}
