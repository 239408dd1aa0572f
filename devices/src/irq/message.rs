//! Interrupt messages between APICs, and their form as MSI writes (SDM 3A "Message Signalled Interrupts").

use vm_core::dlog;

/// MSI writes go to FEExxxxxh.
const MSI_BASE: u64 = 0xfee0_0000;
const ADDR_DEST_SHIFT: u32 = 12;
const ADDR_REDIRECT: u64 = 1 << 3;
const ADDR_LOGICAL: u64 = 1 << 2;
const DATA_ASSERT: u32 = 1 << 14;
const DATA_LEVEL: u32 = 1 << 15;

/// Delivery mode, as coded in ICR, LVT, redirection entries and MSI data. 011b is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Fixed = 0,
    LowestPriority = 1,
    Smi = 2,
    Nmi = 4,
    Init = 5,
    StartUp = 6,
    ExtInt = 7,
}

impl Delivery {
    /// From a 3-bit field; `None` for the reserved code.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// Who is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dest {
    /// One APIC ID.
    Physical(u32),
    /// Message destination address of an 8-bit sender, compared with LDR under DFR.
    Logical(u8),
    /// The same of an x2APIC sender: cluster in bits 31:16.
    LogicalX2(u32),
    All,
    /// All but the APIC whose index on the bus is given.
    Others(usize),
    /// The APIC whose index on the bus is given.
    This(usize),
}

impl Dest {
    /// The 8-bit form of xAPIC, I/O APIC and MSI; FFh is a broadcast in both modes.
    pub fn narrow(logical: bool, id: u8) -> Self {
        match (logical, id) {
            (_, 0xff) => Self::All,
            (true, _) => Self::Logical(id),
            (false, _) => Self::Physical(id.into()),
        }
    }

    /// The 32-bit form of x2APIC.
    pub fn wide(logical: bool, id: u32) -> Self {
        match (logical, id) {
            (_, 0xffff_ffff) => Self::All,
            (true, _) => Self::LogicalX2(id),
            (false, _) => Self::Physical(id),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub dest: Dest,
    pub delivery: Delivery,
    pub vector: u8,
    /// Level triggered: its EOI is broadcast to the I/O APICs.
    pub level: bool,
}

/// MSI address and data of a message of an I/O APIC.
pub fn compose_msi(dest: u8, logical: bool, delivery: Delivery, vector: u8, level: bool) -> (u64, u32) {
    let redirect = if delivery == Delivery::LowestPriority { ADDR_REDIRECT } else { 0 };
    let mode = if logical { ADDR_LOGICAL } else { 0 };
    let addr = MSI_BASE | u64::from(dest) << ADDR_DEST_SHIFT | redirect | mode;
    let trigger = if level { DATA_LEVEL } else { 0 };
    (addr, u32::from(vector) | (delivery as u32) << 8 | DATA_ASSERT | trigger)
}

/// Decodes an MSI write; `None` if it asks for nothing.
pub fn decode_msi(addr: u64, data: u32) -> Option<Message> {
    if addr >> 20 != MSI_BASE >> 20 {
        dlog!(GUEST_ERRORS, "msi: address {addr:#x} is not FEExxxxxh");
        return None;
    }
    let Some(delivery) = Delivery::from_bits(data >> 8) else {
        dlog!(GUEST_ERRORS, "msi: reserved delivery mode in data {data:#x}");
        return None;
    };
    let level = data & DATA_LEVEL != 0;
    if level && data & DATA_ASSERT == 0 {
        return None;
    }
    let logical = addr & ADDR_LOGICAL != 0;
    // A redirection hint lets the chipset choose among the addressed set.
    let delivery = match delivery {
        Delivery::Fixed if logical && addr & ADDR_REDIRECT != 0 => Delivery::LowestPriority,
        d => d,
    };
    let dest = Dest::narrow(logical, (addr >> ADDR_DEST_SHIFT) as u8);
    Some(Message { dest, delivery, vector: data as u8, level })
}
