//! The `-d` log: one table of items, one mask, one output. Off costs one predictable branch.

use parking_lot::Mutex;
use std::fmt::Arguments;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

macro_rules! items {
    ($($name:ident = $bit:expr, $text:expr, $help:expr;)*) => {
        bitflags::bitflags! {
            /// Items of `-d`, with QEMU's names.
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct Item: u32 { $(const $name = 1 << $bit;)* }
        }
        /// Name and help of each item, for `-d help` and parsing.
        pub const ITEMS: &[(&str, Item, &str)] = &[$(($text, Item::$name, $help),)*];
    };
}

items! {
    IN_ASM = 0, "in_asm", "guest instructions of each block translated";
    OP = 1, "op", "IR of each block as translated";
    OP_OPT = 2, "op_opt", "IR of each block after the passes";
    CLIF = 3, "clif", "Cranelift IR of each region compiled";
    OUT_ASM = 4, "out_asm", "host instructions of each region compiled";
    INT = 5, "int", "interrupts and exceptions";
    CPU = 6, "cpu", "CPU state before each block entered from the dispatcher";
    EXEC = 7, "exec", "each block entered from the dispatcher";
    MMU = 8, "mmu", "page walks and page faults";
    TLB = 9, "tlb", "TLB flushes";
    SMC = 10, "smc", "invalidation of translated code";
    NOCHAIN = 11, "nochain", "do not link blocks, so that exec and cpu show every one";
    UNIMP = 12, "unimp", "what the guest asks for and is not implemented";
    GUEST_ERRORS = 13, "guest_errors", "what the guest does wrong (bad register values, accesses to nothing)";
    HASH = 14, "hash", "a hash of the machine's state each N instructions, with the further item every=N (-icount only)";
}

static MASK: AtomicU32 = AtomicU32::new(0);
static FILTERED: AtomicBool = AtomicBool::new(false);
static FILTER: Mutex<Vec<Range<u64>>> = Mutex::new(Vec::new());
static OUT: Mutex<Option<Box<dyn Write + Send>>> = Mutex::new(None);

pub fn set_mask(items: Item) {
    MASK.store(items.bits(), Ordering::Relaxed);
}

pub fn mask() -> Item {
    Item::from_bits_truncate(MASK.load(Ordering::Relaxed))
}

#[inline]
pub fn enabled(item: Item) -> bool {
    MASK.load(Ordering::Relaxed) & item.bits() != 0
}

/// Sets the output (`-D FILE`); without it lines go to standard error.
pub fn set_output(out: Box<dyn Write + Send>) {
    *OUT.lock() = Some(out);
}

/// Restricts in_asm, op, op_opt, clif, out_asm, exec and cpu to these guest addresses (`-dfilter`).
pub fn set_filter(ranges: Vec<Range<u64>>) {
    FILTERED.store(!ranges.is_empty(), Ordering::Relaxed);
    *FILTER.lock() = ranges;
}

pub fn in_filter(addr: u64) -> bool {
    !FILTERED.load(Ordering::Relaxed) || FILTER.lock().iter().any(|r| r.contains(&addr))
}

/// Writes text as it is; errors of the output are ignored, as a log must not stop the guest.
pub fn write(text: Arguments<'_>) {
    let mut out = OUT.lock();
    let _ = match out.as_mut() {
        Some(w) => w.write_fmt(text),
        None => std::io::stderr().lock().write_fmt(text),
    };
}

/// Flushes the output; called before the program ends.
pub fn flush() {
    if let Some(w) = OUT.lock().as_mut() {
        let _ = w.flush();
    }
}

/// `dlog!(UNIMP, "text {}", x)`: one line, if the item is on.
#[macro_export]
macro_rules! dlog {
    ($item:ident, $($arg:tt)*) => {
        if $crate::log::enabled($crate::log::Item::$item) {
            $crate::log::write(format_args!("{}\n", format_args!($($arg)*)));
        }
    };
}
