//! Exceptions as values (SDM 3A chapter 6 "Interrupt and Exception Handling").

use vm_core::Fault;

/// Vector numbers (SDM 3A table 6-1).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// Page-fault error code bits (SDM 3A "Interrupt 14").
pub mod pf {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
}

const fn plain(vector: u8) -> Fault {
    Fault { vector, error: None, addr: 0 }
}

const fn coded(vector: u8, error: u32) -> Fault {
    Fault { vector, error: Some(error), addr: 0 }
}

pub const fn de() -> Fault {
    plain(vector::DE)
}
pub const fn ud() -> Fault {
    plain(vector::UD)
}
pub const fn nm() -> Fault {
    plain(vector::NM)
}
pub const fn mf() -> Fault {
    plain(vector::MF)
}
pub const fn xm() -> Fault {
    plain(vector::XM)
}
pub const fn br() -> Fault {
    plain(vector::BR)
}
pub const fn ac() -> Fault {
    coded(vector::AC, 0)
}
pub const fn gp(error: u32) -> Fault {
    coded(vector::GP, error)
}
pub const fn ss(error: u32) -> Fault {
    coded(vector::SS, error)
}
pub const fn np(error: u32) -> Fault {
    coded(vector::NP, error)
}
pub const fn ts(error: u32) -> Fault {
    coded(vector::TS, error)
}
/// Page fault at linear address `addr`.
pub const fn page(addr: u64, error: u32) -> Fault {
    Fault { vector: vector::PF, error: Some(error), addr }
}
