//! The translating engine under the bare guest's cases. What the reference interpreter reports directly is observed
//! through the architecture here: HLT behind the code, and exceptions through an IDT (SDM 3A "Interrupt and Exception Handling").

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use arch_x86::state::{cr0, efer};
use arch_x86::{CpuState, Segment};
use backend::{Helper, Settings, VcpuBlock};
use frontend_x86::{X86, helpers};
use vm_core::{Events, Fault, Ram, StopReason, Vcpu, VcpuSignals};

use super::engine::{Engine, Stop};
use super::{ABSENT, CODE, Guest, NoIo};
use crate::counters;

const PAGE: u64 = 4096;
const RAM_SIZE: u64 = 16 << 20;
/// Pages that cases may use: the first 64 KiB, and two pages on each side of the absent one.
const PAGES: std::ops::Range<u64> = 0..16;
const NEIGHBOURS: [u64; 4] = [ABSENT.start / PAGE - 2, ABSENT.start / PAGE - 1, ABSENT.end / PAGE, ABSENT.end / PAGE + 1];

// The system's structures; linear addresses are physical ones.
const IDT: u64 = 0x10_0000;
const GDT: u64 = 0x10_1000;
const TSS: u64 = 0x10_2000;
const HANDLERS: u64 = 0x10_3000;
const FAULT_STACK: u64 = 0x10_5000;
const TABLES: u64 = 0x11_0000;

const HLT: u8 = 0xf4;
/// Longest run of one case.
const LIMIT: Duration = Duration::from_secs(20);

/// The translating engine with some settings.
pub struct Translating {
    pub name: &'static str,
    pub jit: bool,
    pub tier1: bool,
    pub single_block_regions: bool,
    /// As in `Settings`.
    pub hot: u32,
}

impl Engine for Translating {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&self, guest: &mut Guest, len: usize) -> Result<Stop, String> {
        if let Some(a) = guest.memory.keys().find(|a| !usable(**a / PAGE)) {
            return Ok(Stop::Unfit(format!("memory at {a:x} lies outside this engine's machine")));
        }
        let long = guest.cpu.efer & efer::LMA != 0;
        let signals = Arc::new(VcpuSignals::default());
        let ram = Ram::new(RAM_SIZE).map_err(|e| e.to_string())?;
        ram.add_listener(signals.clone());
        let before = fill(&ram, guest, len);
        system(&ram, guest, long);
        let fe = Arc::new(X86::new(guest.cpu.features));
        let table: Arc<[Helper<CpuState>]> = helpers::table::<VcpuBlock<CpuState>>().into();
        let mut engine = backend::Engine::new(fe, guest.cpu.clone(), table, self.settings(), None).map_err(|e| e.to_string())?;
        signals.set_kick(engine.kick());
        let io = NoIo { size: RAM_SIZE, ..NoIo::new(ram, signals.clone()) };
        let stop = within(&signals, || engine.run(&io));
        // Every block is to be compiled before it runs.
        let compiled = counters::compiled(&engine.info_jit());
        if self.jit != (compiled > 0) {
            return Err(format!("{compiled} blocks or regions were compiled"));
        }
        let tables = (guest.cpu.cr0, guest.cpu.cr3);
        guest.cpu = engine.cpu().clone();
        if (guest.cpu.cr0, guest.cpu.cr3) != tables {
            return Ok(Stop::Unfit("the case changes paging".into()));
        }
        if io.strays.load(Ordering::Relaxed) != 0 {
            return Ok(Stop::Unfit("an access outside this engine's memory".into()));
        }
        collect(&io.ram, guest, &before);
        match stop {
            StopReason::Halted => halted(&io.ram, guest, len, long),
            StopReason::Stopped | StopReason::Limit | StopReason::Debug(_) => Err("the code does not end".into()),
            StopReason::TripleFault if long => Err("triple fault".into()),
            StopReason::TripleFault => Ok(Stop::Unfit("an exception here would push onto the case's own stack".into())),
        }
    }
}

impl Translating {
    fn settings(&self) -> Settings {
        Settings {
            jit: self.jit,
            threshold: 0,
            tier1: self.tier1,
            hot: self.hot,
            single_block_regions: self.single_block_regions,
            bisect: None,
            background: false,
            max_insns: backend::MAX_INSNS,
            counter: None,
            perfmap: None,
        }
    }
}

fn usable(page: u64) -> bool {
    PAGES.contains(&page) || NEIGHBOURS.contains(&page)
}

/// Runs `f`; stops the CPU if that takes too long.
fn within(signals: &VcpuSignals, f: impl FnOnce() -> StopReason) -> StopReason {
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|s| {
        s.spawn(move || {
            if wait.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                signals.raise(Events::STOP);
            }
        });
        let stop = f();
        drop(done);
        stop
    })
}

type Pages = Vec<(u64, [u8; PAGE as usize])>;

/// Writes the guest's memory, and HLT over the rest of the code's page. Returns what memory holds then.
fn fill(ram: &Ram, guest: &Guest, len: usize) -> Pages {
    let end = CODE + len as u64;
    let mut pages: Pages = PAGES.chain(NEIGHBOURS).map(|p| (p, [0; PAGE as usize])).collect();
    for (page, bytes) in &mut pages {
        for (a, b) in (*page * PAGE..).zip(bytes.iter_mut()) {
            let rest = if (end..CODE + PAGE).contains(&a) { HLT } else { 0 };
            *b = guest.memory.get(&a).copied().unwrap_or(rest);
        }
        ram.write(*page * PAGE, bytes);
    }
    pages
}

/// Brings what the run changed into the guest's memory.
fn collect(ram: &Ram, guest: &mut Guest, before: &Pages) {
    let mut now = [0; PAGE as usize];
    for (page, old) in before {
        ram.read(page * PAGE, &mut now);
        for ((a, o), n) in (page * PAGE..).zip(old).zip(now) {
            if *o != n {
                guest.memory.insert(a, n);
            }
        }
    }
}

/// Tables, and the registers that point to them. Outside long mode, where an exception has no stack of its own, the IDT
/// is empty and any exception ends in a triple fault.
fn system(ram: &Ram, guest: &mut Guest, long: bool) {
    let c = &mut guest.cpu;
    (c.gdt.base, c.gdt.limit) = (GDT, 0xff);
    (c.idt.base, c.idt.limit) = (IDT, if long { 0xfff } else { 0 });
    if !long {
        return;
    }
    ram.write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    ram.write(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    // IST1 (SDM 3A "64-Bit Mode Stack Management").
    ram.write(TSS + 0x24, &FAULT_STACK.to_le_bytes());
    c.tr = Segment { base: TSS, limit: 0xfff, attr: Segment::P | 11 << 8, selector: 0x18 };
    for v in 0..256 {
        let h = HANDLERS + v;
        ram.write(h, &[HLT]);
        let gate = u128::from(h & 0xffff | 8 << 16 | 1 << 32 | 0x8e << 40 | (h >> 16) << 48);
        ram.write(IDT + 16 * v, &gate.to_le_bytes());
    }
    page_tables(ram);
    c.cr0 |= cr0::PG | cr0::WP;
    c.efer |= efer::NXE;
    c.cr3 = TABLES;
}

/// Identity maps what there is; only the code and the handlers can be executed, so that a jump elsewhere is seen.
fn page_tables(ram: &Ram) {
    const USED: u64 = 0x63;
    const NX: u64 = 1 << 63;
    let put = |at: u64, entry: u64| ram.write(at, &entry.to_le_bytes());
    put(TABLES, (TABLES + 0x1000) | 3);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 3);
    for pt in 0..RAM_SIZE >> 21 {
        put(TABLES + 0x2000 + 8 * pt, (TABLES + 0x3000 + PAGE * pt) | 3);
    }
    let own = IDT / PAGE..FAULT_STACK / PAGE;
    for page in PAGES.chain(NEIGHBOURS).chain(own) {
        let code = [CODE, HANDLERS].contains(&(page * PAGE));
        put(TABLES + 0x3000 + 8 * page, (page * PAGE) | USED | if code { 0 } else { NX });
    }
}

/// Says what a HLT means: the end of the code, or an exception, whose frame then gives the state before it.
fn halted(ram: &Ram, guest: &mut Guest, len: usize, long: bool) -> Result<Stop, String> {
    let c = &mut guest.cpu;
    let at = c.rip.wrapping_sub(1);
    let end = CODE + len as u64;
    if (end..CODE + PAGE).contains(&at) {
        c.rip = at;
        return Ok(Stop::Left);
    }
    if (CODE..end).contains(&at) {
        return Ok(Stop::Unfit("HLT in the case itself".into()));
    }
    if !long || !(HANDLERS..HANDLERS + 256).contains(&at) {
        return Err(format!("halted at {at:x}"));
    }
    let vector = (at - HANDLERS) as u8;
    let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
    let words = if has_error { 6 } else { 5 };
    if c.gpr[4] != FAULT_STACK - 8 * words {
        return Err(format!("exception {vector:x} left rsp {:x}", c.gpr[4]));
    }
    let word = |n: u64| ram.read_uint(FAULT_STACK - 8 * n, 8);
    let (rip, error) = (word(5), has_error.then(|| word(6) as u32));
    (c.rip, c.gpr[4]) = (rip, word(2));
    c.set_rflags(word(3));
    if vector != 14 {
        return Ok(Stop::Fault(Fault { vector, error, addr: 0 }));
    }
    let addr = c.cr2;
    if addr == rip && !(CODE..end).contains(&rip) {
        return Ok(Stop::Left);
    }
    if !ABSENT.contains(&addr) {
        return Ok(Stop::Unfit(format!("an access at {addr:x}, outside this engine's memory")));
    }
    Ok(Stop::Fault(Fault { vector, error, addr }))
}
