//! Which registers a client is told of, and their order: of a 64-bit CPU, or of a 32-bit one (GDB manual, "i386 Features"). gdb
//! unwinds the stack by that, whatever the CPU's mode is.

use super::regs::{Id, read};
use arch_x86::{CpuState, SegReg};
use std::sync::OnceLock;

/// What a client takes the CPU for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X64,
    I386,
}

/// A register of the target description.
#[derive(Clone, Debug)]
pub struct Reg {
    pub name: String,
    pub bits: u16,
    /// gdb's type.
    pub kind: &'static str,
    pub id: Id,
}

/// Registers of one feature of the target description.
pub struct Feature {
    pub name: &'static str,
    pub regs: Vec<Reg>,
}

/// General registers in gdb's order: name, number in the CPU.
const GPRS_64: [(&str, u8); 16] = [
    ("rax", 0),
    ("rbx", 3),
    ("rcx", 1),
    ("rdx", 2),
    ("rsi", 6),
    ("rdi", 7),
    ("rbp", 5),
    ("rsp", 4),
    ("r8", 8),
    ("r9", 9),
    ("r10", 10),
    ("r11", 11),
    ("r12", 12),
    ("r13", 13),
    ("r14", 14),
    ("r15", 15),
];
const GPRS_32: [(&str, u8); 8] = [("eax", 0), ("ecx", 1), ("edx", 2), ("ebx", 3), ("esp", 4), ("ebp", 5), ("esi", 6), ("edi", 7)];
const SELECTORS: [(&str, SegReg); 6] =
    [("cs", SegReg::Cs), ("ss", SegReg::Ss), ("ds", SegReg::Ds), ("es", SegReg::Es), ("fs", SegReg::Fs), ("gs", SegReg::Gs)];
const FPU: [&str; 8] = ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"];

fn reg(name: impl Into<String>, bits: u16, kind: &'static str, id: Id) -> Reg {
    Reg { name: name.into(), bits, kind, id }
}

impl Arch {
    pub fn of(i386: bool) -> Self {
        if i386 { Self::I386 } else { Self::X64 }
    }

    /// gdb's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::X64 => "i386:x86-64",
            Self::I386 => "i386",
        }
    }

    /// Registers by feature, in the order of their numbers.
    pub fn features(self) -> Vec<Feature> {
        let (gprs, pc, bits, int) = match self {
            Self::X64 => (&GPRS_64[..], "rip", 64, "int64"),
            Self::I386 => (&GPRS_32[..], "eip", 32, "int32"),
        };
        let kind = |i| if matches!(i, 4 | 5) { "data_ptr" } else { int };
        let mut core: Vec<Reg> = gprs.iter().map(|(n, i)| reg(*n, bits, kind(*i), Id::Gpr(*i))).collect();
        core.push(reg(pc, bits, "code_ptr", Id::Pc));
        core.push(reg("eflags", 32, "i386_eflags", Id::Flags));
        core.extend(SELECTORS.iter().map(|(n, s)| reg(*n, 32, "int32", Id::Selector(*s))));
        core.extend((0..8).map(|i| reg(format!("st{i}"), 80, "i387_ext", Id::St(i))));
        core.extend((0..).zip(FPU).map(|(i, n)| reg(n, 32, "int", Id::Fpu(i))));
        let vectors = 0..gprs.len() as u8;
        let mut sse: Vec<Reg> = vectors.clone().map(|i| reg(format!("xmm{i}"), 128, "vec128", Id::Xmm(i))).collect();
        sse.push(reg("mxcsr", 32, "i386_mxcsr", Id::Mxcsr));
        let avx = vectors.map(|i| reg(format!("ymm{i}h"), 128, "uint128", Id::YmmHigh(i))).collect();
        let bases = [SegReg::Fs, SegReg::Gs].into_iter().zip(["fs_base", "gs_base"]);
        let bases = bases.map(|(s, n)| reg(n, 64, "int64", Id::Base(s))).collect();
        // gdb knows this feature of 64-bit CPUs only.
        let segments = if self == Self::X64 { "org.gnu.gdb.i386.segments" } else { "rhea.i386.segments" };
        vec![
            Feature { name: "org.gnu.gdb.i386.core", regs: core },
            Feature { name: "org.gnu.gdb.i386.sse", regs: sse },
            Feature { name: "org.gnu.gdb.i386.avx", regs: avx },
            Feature { name: segments, regs: bases },
            Feature { name: "rhea.i386.system", regs: system() },
        ]
    }

    /// All registers by number.
    pub fn regs(self) -> &'static [Reg] {
        static ALL: [OnceLock<Vec<Reg>>; 2] = [const { OnceLock::new() }; 2];
        ALL[self as usize].get_or_init(|| self.features().into_iter().flat_map(|f| f.regs).collect())
    }

    /// What stop replies hold, as a client asks for it first: number and register of frame pointer, stack pointer and program
    /// counter; and how many bytes each has.
    pub fn told_first(self) -> ([(usize, Id); 3], usize) {
        match self {
            Self::X64 => ([(6, Id::Gpr(5)), (7, Id::Gpr(4)), (16, Id::Pc)], 8),
            Self::I386 => ([(5, Id::Gpr(5)), (4, Id::Gpr(4)), (8, Id::Pc)], 4),
        }
    }

    /// Lowest 64 bits of register `number`, for conditions.
    pub fn low(self, cpu: &CpuState, number: usize) -> Option<u64> {
        let r = self.regs().get(number)?;
        let v = read(cpu, 0, r.id) as u64;
        Some(if r.bits == 32 { v & 0xffff_ffff } else { v })
    }

    /// The value that a register of the CPU is to have if a client gives it this one: what the client does not see of it stays,
    /// unless it changes what it sees.
    pub fn whole(self, cpu: &CpuState, id: Id, v: u128) -> u128 {
        match (self, id) {
            (Self::I386, Id::Gpr(_) | Id::Pc) if read(cpu, 0, id) as u32 == v as u32 => read(cpu, 0, id),
            _ => v,
        }
    }
}

/// Control, debug and descriptor-table registers, hidden parts of segments, MMX.
fn system() -> Vec<Reg> {
    let control = [(0, "cr0_flags"), (2, "int64"), (3, "int64"), (4, "cr4_flags"), (8, "int64")];
    let mut r: Vec<Reg> = control.into_iter().map(|(n, t)| reg(format!("cr{n}"), 64, t, Id::Cr(n))).collect();
    r.push(reg("efer", 64, "efer_flags", Id::Efer));
    r.push(reg("xcr0", 64, "int64", Id::Xcr0));
    r.push(reg("k_gs_base", 64, "int64", Id::KernelGs));
    r.extend([0, 1, 2, 3, 6, 7].map(|n| reg(format!("dr{n}"), 64, "int64", Id::Dr(n))));
    for (n, s) in SELECTORS {
        if !matches!(s, SegReg::Fs | SegReg::Gs) {
            r.push(reg(format!("{n}_base"), 64, "int64", Id::Base(s)));
        }
        r.push(reg(format!("{n}_limit"), 32, "int32", Id::Limit(s)));
        r.push(reg(format!("{n}_attr"), 32, "int32", Id::Attr(s)));
    }
    for (i, n) in (0..).zip(["gdtr", "idtr"]) {
        r.push(reg(format!("{n}_base"), 64, "int64", Id::TableBase(i)));
        r.push(reg(format!("{n}_limit"), 32, "int32", Id::TableLimit(i)));
    }
    for (i, n) in (0..).zip(["ldtr", "tr"]) {
        r.push(reg(n, 32, "int32", Id::System(i, 0)));
        r.push(reg(format!("{n}_base"), 64, "int64", Id::System(i, 1)));
        r.push(reg(format!("{n}_limit"), 32, "int32", Id::System(i, 2)));
        r.push(reg(format!("{n}_attr"), 32, "int32", Id::System(i, 3)));
    }
    r.extend((0..8).map(|i| reg(format!("mm{i}"), 64, "uint64", Id::Mm(i))));
    r.push(reg("ip", 64, "int64", Id::Ip));
    r.push(reg("cpl", 32, "int32", Id::Cpl));
    r
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch_x86::models;

    fn cpu() -> CpuState {
        CpuState::new(&models::configure("max", &[]).unwrap(), 0)
    }

    #[test]
    fn numbers_are_those_of_the_description() {
        let mut c = cpu();
        (0..16).for_each(|i| c.gpr[i] = 0xffff_ffff_0000_0000 | i as u64);
        for (arch, names) in [(Arch::X64, ["rbp", "rsp", "rip"]), (Arch::I386, ["ebp", "esp", "eip"])] {
            let (first, width) = arch.told_first();
            for ((n, id), name) in first.into_iter().zip(names) {
                let r = &arch.regs()[n];
                assert_eq!((&*r.name, r.id, usize::from(r.bits)), (name, id, 8 * width));
            }
            for (n, r) in arch.regs().iter().enumerate() {
                let mask = if r.bits == 32 { 0xffff_ffff } else { u64::MAX };
                assert_eq!(arch.low(&c, n), Some(read(&c, 0, r.id) as u64 & mask), "{}", r.name);
            }
            assert_eq!(arch.low(&c, arch.regs().len()), None);
        }
    }

    #[test]
    fn what_a_32_bit_client_does_not_see_stays() {
        let mut c = cpu();
        c.gpr[3] = 0x1_0000_0005;
        assert_eq!(Arch::I386.whole(&c, Id::Gpr(3), 5), 0x1_0000_0005);
        assert_eq!((Arch::I386.whole(&c, Id::Gpr(3), 6), Arch::X64.whole(&c, Id::Gpr(3), 5)), (6, 5));
    }
}
