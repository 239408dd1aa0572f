//! Helpers: slow instructions as functions that generated code calls. Each topic file lists its rows with `rows!`; the
//! topics listed here, in order, make the table, and a helper's id is its place in it.

use arch_x86::CpuState;
use ir::{Effects, HelperDesc};
use vm_core::{Fault, GuestEnv};

/// An engine that runs x86.
pub trait Env: GuestEnv<Cpu = CpuState> {}
impl<E: GuestEnv<Cpu = CpuState>> Env for E {}

/// Code of a helper. `Err` raises the exception at the current instruction.
pub type Helper<E> = fn(&mut E, u64, u64, u64) -> Result<u64, Fault>;

/// What all helpers return.
pub type Res = Result<u64, Fault>;

/// A pure function of its operands.
pub const PURE: Effects = Effects::NONE;
/// Reads state, no more.
pub const READS: Effects = Effects::READS_STATE;
/// Reads state and may raise.
pub const CHECKS: Effects = Effects::READS_STATE.or(Effects::MAY_LEAVE);
/// Reads and writes state, cannot raise.
pub const STATE: Effects = Effects::READS_STATE.or(Effects::WRITES_STATE);
/// Touches nothing, but what memory accesses stand before and after matters to other CPUs.
pub const BARRIER: Effects = Effects::READS_MEM.or(Effects::WRITES_MEM);
/// Anything: state, memory, exceptions.
pub const ANY: Effects = STATE.or(Effects::READS_MEM).or(Effects::WRITES_MEM).or(Effects::MAY_LEAVE);

/// Rows of a topic: `ID = function(number of operands) effects;`. Gives the ids, `DESCS`, `COUNT` and `table`.
macro_rules! rows {
    (topic $topic:ident; $($(#[$m:meta])* $id:ident = $f:ident($args:expr) $eff:expr;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u16)]
        enum Row { $($id,)* COUNT }
        pub const COUNT: u16 = Row::COUNT as u16;
        $($(#[$m])* pub const $id: ir::HelperId = ir::HelperId(super::base(super::Topic::$topic) + Row::$id as u16);)*
        pub const DESCS: &[ir::HelperDesc] = &[$(ir::HelperDesc { name: stringify!($f), args: $args, effects: $eff },)*];
        pub fn extend_table<E: $crate::helpers::Env>(_t: &mut Vec<$crate::helpers::Helper<E>>) {
            $(_t.push($f::<E>);)*
        }
    };
}

macro_rules! topics {
    ($($topic:ident,)*) => {
        $(pub mod $topic;)*
        #[allow(non_camel_case_types, dead_code)]
        #[derive(Clone, Copy)]
        pub(crate) enum Topic { $($topic,)* }
        const COUNTS: &[u16] = &[$($topic::COUNT,)*];

        /// Descriptions, in id order.
        pub fn descs() -> Vec<HelperDesc> {
            [$($topic::DESCS,)*].concat()
        }

        /// Code, in id order.
        pub fn table<E: Env>() -> Vec<Helper<E>> {
            let mut t = Vec::new();
            $($topic::extend_table(&mut t);)*
            t
        }
    };
}

/// Id of the first helper of a topic.
pub(crate) const fn base(topic: Topic) -> u16 {
    let (mut i, mut sum) = (0, 0);
    while i < topic as usize {
        sum += COUNTS[i];
        i += 1;
    }
    sum
}

topics! { flags, div, shift, bmi, bcd, stack, string, atomic, io, segment, system, sse, vector, masked, x87, }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_index_the_descriptions() {
        let d = descs();
        assert_eq!(d.len(), COUNTS.iter().map(|c| usize::from(*c)).sum::<usize>());
        assert_eq!(d[usize::from(flags::FLAGS.0)].name, "eflags_of");
        assert_eq!(d[usize::from(div::DIV64.0)].name, "div64");
    }
}
