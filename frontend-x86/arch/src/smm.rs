//! System management mode: the system management interrupt, the state save map and RSM (SDM 3C chapter 31 "System Management
//! Mode"; the map is that of AMD64 processors, AMD APM volume 2 §10.2.3, on all models).

use crate::debug::{dr6, dr7};
use crate::flags::{KNOWN, bit};
use crate::paging::load_pdptes;
use crate::state::{CpuState, PendingEvent, SegReg, Segment, cr0, cr4};
use vm_core::guest::{Flush, GuestEnv};
use vm_core::{CpuIo, Fault, Pa, dlog};

/// Where the handler starts, from SMBASE.
const ENTRY: u64 = 0x8000;
/// Offsets of fields from SMBASE.
mod at {
    pub const ES: u64 = 0xfe00;
    pub const GDTR: u64 = 0xfe60;
    pub const LDTR: u64 = 0xfe70;
    pub const IDTR: u64 = 0xfe80;
    pub const TR: u64 = 0xfe90;
    pub const AUTO_HALT: u64 = 0xfec9;
    pub const NMI_MASK: u64 = 0xfeca;
    pub const EFER: u64 = 0xfed0;
    pub const REVISION: u64 = 0xfefc;
    pub const SMBASE: u64 = 0xff00;
    pub const CR4: u64 = 0xff48;
    pub const CR3: u64 = 0xff50;
    pub const CR0: u64 = 0xff58;
    pub const DR7: u64 = 0xff60;
    pub const DR6: u64 = 0xff68;
    pub const RFLAGS: u64 = 0xff70;
    pub const RIP: u64 = 0xff78;
    /// RAX; the others lie below, in the encoding's order.
    pub const RAX: u64 = 0xfff8;
}
/// SMBASE can be relocated; no restart of I/O instructions.
const REVISION: u64 = 0x2_0064;
/// Attributes in the map: bits 8 to 15 and 20 to 23 of a descriptor's upper half, 8 lower.
const ATTR: u64 = 0xf0ff;

/// The map of one processor in physical memory.
struct Map<'a> {
    io: &'a dyn CpuIo,
    base: u64,
}

impl Map<'_> {
    fn place(&self, offset: u64) -> Pa {
        Pa(self.base.wrapping_add(offset) & 0xffff_ffff)
    }

    fn get(&self, offset: u64, size: u8) -> u64 {
        self.io.mmio_read(self.place(offset), size)
    }

    fn put(&self, offset: u64, size: u8, v: u64) {
        self.io.mmio_write(self.place(offset), size, v);
    }

    fn put_segment(&self, offset: u64, s: &Segment) {
        let present = if s.usable() { s.attr } else { s.attr & !Segment::P };
        self.put(offset, 2, s.selector.into());
        self.put(offset + 2, 2, u64::from(present >> 8) & ATTR);
        self.put(offset + 4, 4, s.limit.into());
        self.put(offset + 8, 8, s.base);
    }

    fn segment(&self, offset: u64) -> Segment {
        let attr = ((self.get(offset + 2, 2) & ATTR) as u32) << 8;
        let attr = if attr & Segment::P != 0 { attr } else { attr | Segment::UNUSABLE };
        let (selector, limit) = (self.get(offset, 2) as u16, self.get(offset + 4, 4) as u32);
        Segment { base: self.get(offset + 8, 8), limit, attr, selector }
    }
}

fn save(map: &Map<'_>, cpu: &CpuState) {
    for (s, seg) in (0..).zip(&cpu.seg) {
        map.put_segment(at::ES + 16 * s, seg);
    }
    map.put_segment(at::LDTR, &cpu.ldt);
    map.put_segment(at::TR, &cpu.tr);
    for (offset, t) in [(at::GDTR, cpu.gdt), (at::IDTR, cpu.idt)] {
        map.put(offset + 4, 2, t.limit.into());
        map.put(offset + 8, 8, t.base);
    }
    // I/O trap and restart are not there.
    (0xfea0..at::EFER).step_by(8).for_each(|offset| map.put(offset, 8, 0));
    map.put(at::AUTO_HALT, 1, cpu.halted.into());
    map.put(at::NMI_MASK, 1, cpu.nmi_blocked.into());
    map.put(at::REVISION, 4, REVISION);
    map.put(at::SMBASE, 4, cpu.smbase);
    let rflags = cpu.rflags();
    let words = [
        (at::EFER, cpu.efer),
        (at::CR4, cpu.cr4),
        (at::CR3, cpu.cr3),
        (at::CR0, cpu.cr0),
        (at::DR7, cpu.dr[7]),
        (at::DR6, cpu.dr[6]),
        (at::RFLAGS, rflags),
        (at::RIP, cpu.rip),
    ];
    words.iter().for_each(|&(offset, v)| map.put(offset, 8, v));
    for (i, r) in (0..).zip(&cpu.gpr) {
        map.put(at::RAX - 8 * i, 8, *r);
    }
}

/// Takes the system management interrupt: saves the state and enters the handler (SDM 3C §31.4).
pub(crate) fn enter<E: GuestEnv<Cpu = CpuState>>(env: &mut E) {
    let (io, cpu) = (env.io(), env.cpu_ref());
    dlog!(INT, "SMI: cpl={} cs:rip={:04x}:{:016x}", cpu.cpl, cpu.seg(SegReg::Cs).selector, cpu.rip);
    io.set_smm(true);
    save(&Map { io, base: cpu.smbase }, cpu);
    let cpu = env.cpu();
    const FLAT: u32 = Segment::P | Segment::S | Segment::RW | Segment::ACCESSED | Segment::G;
    cpu.seg = [Segment { base: 0, limit: u32::MAX, attr: FLAT, selector: 0 }; 6];
    // The selector holds 16 of the bits of a base that may have more.
    let (base, selector) = (cpu.smbase, (cpu.smbase >> 4) as u16);
    *cpu.seg_mut(SegReg::Cs) = Segment { base, limit: u32::MAX, attr: FLAT | Segment::CODE, selector };
    cpu.rip = ENTRY;
    cpu.cr0 &= !(cr0::PE | cr0::EM | cr0::TS | cr0::PG);
    (cpu.cr4, cpu.efer) = (0, 0);
    cpu.dr[7] = 0x400;
    cpu.cpl = 0;
    (cpu.smm, cpu.nmi_blocked, cpu.halted, cpu.monitor) = (true, true, false, None);
    cpu.pending = PendingEvent::default();
    cpu.set_rflags(bit::ONE);
    env.flush(Flush::All);
}

/// The state that the map holds, with the rest of `cpu`; `None` if there is no such state.
fn load(map: &Map<'_>, cpu: &CpuState) -> Option<CpuState> {
    let mut cpu = cpu.clone();
    (cpu.cr0, cpu.cr3) = (map.get(at::CR0, 8) | cr0::ET, map.get(at::CR3, 8));
    (cpu.cr4, cpu.efer) = (map.get(at::CR4, 8), map.get(at::EFER, 8));
    for s in SegReg::ALL {
        *cpu.seg_mut(s) = map.segment(at::ES + 16 * s as u64);
    }
    (cpu.ldt, cpu.tr) = (map.segment(at::LDTR), map.segment(at::TR));
    for (offset, t) in [(at::GDTR, &mut cpu.gdt), (at::IDTR, &mut cpu.idt)] {
        (t.limit, t.base) = (map.get(offset + 4, 2) as u16, map.get(offset + 8, 8));
    }
    for (i, r) in (0..).zip(&mut cpu.gpr) {
        *r = map.get(at::RAX - 8 * i, 8);
    }
    cpu.rip = map.get(at::RIP, 8);
    cpu.dr[6] = map.get(at::DR6, 8) & dr6::WRITABLE | dr6::ONES;
    cpu.dr[7] = map.get(at::DR7, 8) & dr7::WRITABLE | dr7::ONES;
    cpu.smbase = map.get(at::SMBASE, 4);
    (cpu.halted, cpu.nmi_blocked) = (map.get(at::AUTO_HALT, 1) & 1 != 0, map.get(at::NMI_MASK, 1) & 1 != 0);
    cpu.smm = false;
    let flags = map.get(at::RFLAGS, 8) & KNOWN | bit::ONE;
    cpu.cpl = match (cpu.protected(), flags & bit::VM != 0) {
        (false, _) => 0,
        (true, true) => 3,
        (true, false) => cpu.seg(SegReg::Ss).dpl(),
    };
    cpu.plausible(flags).ok()?;
    if cpu.paging() && cpu.cr4 & cr4::PAE != 0 && !cpu.long_mode() {
        let mask = crate::paging::a20_mask(&cpu);
        cpu.pdpte = load_pdptes(cpu.cr3, |pa| map.io.mmio_read(Pa(pa & mask), 8))?;
    }
    cpu.set_rflags(flags);
    Some(cpu)
}

/// RSM: back to what was interrupted. Errors: #UD outside system management mode. A state that cannot be is a shutdown.
pub fn rsm<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<(), Fault> {
    if !env.cpu_ref().smm {
        return Err(crate::fault::ud());
    }
    let map = Map { io: env.io(), base: env.cpu_ref().smbase };
    let Some(cpu) = load(&map, env.cpu_ref()) else {
        dlog!(GUEST_ERRORS, "RSM to a state that cannot be: shutdown");
        // No handler can be reached: the fault of this ends in one.
        let cpu = env.cpu();
        cpu.idt.limit = 0;
        cpu.cr0 &= !cr0::PE;
        cpu.update_mode();
        return Err(crate::fault::gp(0));
    };
    env.io().set_smm(cpu.smm);
    *env.cpu() = cpu;
    env.flush(Flush::All);
    Ok(())
}
