//! Differential campaigns against the host processor: random instructions run natively in this process and on the
//! translating engine, in the same address space layout and at the same privilege.
//!
//! `native` runs one case on the host, `guest` on an engine; `forms` finds all encodings, `draw` makes instructions of
//! them and `case` states for these; `masks` is what the manuals leave open; `campaign` runs, compares, counts, shrinks.

pub mod bench;
pub mod campaign;
pub mod case;
pub mod draw;
pub mod forms;
pub mod guest;
pub mod masks;
pub mod native;
pub mod print;
pub mod record;
pub mod sequence;

use arch_x86::F80;

/// Linear addresses that native process and guest have in common.
pub mod at {
    /// Code, which can be read and executed.
    pub const CODE: u64 = 0x20_0000;
    pub const CODE_SIZE: u64 = 0x1_0000;
    /// Two pages of data, then one that is absent, then two of data, one that can only be read, and none.
    pub const DATA: u64 = 0xbab000;
    pub const ABSENT: u64 = 0xbad000;
    pub const DATA2: u64 = 0xbae000;
    pub const READ_ONLY: u64 = 0xbb0000;
    pub const END: u64 = 0xbb1000;
    /// A page that only loops of programs use: their counters, of four bytes.
    pub const COUNTER: u64 = 0x1f_1000;
    pub const COUNTERS: usize = 8;
}

/// Bytes of data memory: `DATA`, `DATA2` and `READ_ONLY`, without the hole.
pub const DATA_SIZE: usize = 5 * 4096;
pub type Memory = [u8; DATA_SIZE];

/// Where the byte at a linear address lies in `Memory`.
pub fn place(addr: u64) -> Option<usize> {
    match addr {
        at::DATA..at::ABSENT => Some((addr - at::DATA) as usize),
        at::DATA2..at::END => Some((addr - at::DATA2) as usize + 0x2000),
        _ => None,
    }
}

/// Linear address of a byte of `Memory`.
pub fn address(place: usize) -> u64 {
    if place < 0x2000 { at::DATA + place as u64 } else { at::DATA2 + place as u64 - 0x2000 }
}

/// What user-mode code can change of the processor.
#[repr(C)]
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// In the encoding's order.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub flags: u64,
    pub xmm: [u128; 16],
    /// Upper halves of YMM0..15.
    pub ymmh: [u128; 16],
    /// ST(0)..ST(7).
    pub st: [F80; 8],
    pub mxcsr: u32,
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged, by physical register, as in FXSAVE.
    pub ftw: u8,
    /// Pointers of the last x87 instruction and its operand, and its opcode: results only, 0 at the start.
    pub fip: u64,
    pub fdp: u64,
    pub fop: u16,
}

impl State {
    /// All zero but for the control words, which mask everything, and IF.
    pub fn new() -> State {
        State {
            gpr: [0; 16],
            rip: at::CODE,
            flags: 0x202,
            xmm: [0; 16],
            ymmh: [0; 16],
            st: [F80::default(); 8],
            mxcsr: 0x1f80,
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fip: 0,
            fdp: 0,
            fop: 0,
        }
    }
}

impl State {
    /// Makes ES and B of the x87 status word what the exceptions in it say.
    pub fn summarise(&mut self) {
        self.fsw = if self.fsw & !self.fcw & 0x3f != 0 { self.fsw | 0x8080 } else { self.fsw & !0x8080 };
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// How a run ended: always by an exception, INT3 behind the code if by nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    pub vector: u8,
    /// 0 where the exception has none.
    pub error: u32,
    /// Of a page fault, else 0.
    pub addr: u64,
}

/// Code is 32-bit code or 64-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bits {
    B32,
    B64,
}

impl Bits {
    pub fn count(self) -> u32 {
        if self == Bits::B32 { 32 } else { 64 }
    }
}
