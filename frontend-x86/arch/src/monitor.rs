//! MONITOR and MWAIT (SDM 2A, 2B): sleep until a store to a line of memory, or any event. A wake-up without a store is allowed
//! at any time, so the sleep is cut short now and then, and a store that leaves the value as it was may be overlooked that long.

use crate::fault::{gp, ud};
use crate::state::CpuState;
use std::time::{Duration, Instant};
use vm_core::guest::GuestEnv;
use vm_core::{Events, Fault, Va};

/// What is watched: the aligned 8 bytes at the address, in which the word that others store to lies.
const WATCHED: u8 = 8;
/// How long MWAIT sleeps at most, and from look to look: first short, for a CPU that is waited for right now.
const LONGEST: Duration = Duration::from_millis(10);
const FIRST_NAP: Duration = Duration::from_micros(20);
const LAST_NAP: Duration = Duration::from_millis(1);

fn privileged(cpu: &CpuState) -> Result<(), Fault> {
    if cpu.cpl == 0 { Ok(()) } else { Err(ud()) }
}

/// Extensions asked for: ECX, RCX in 64-bit code.
fn extensions(cpu: &CpuState) -> u64 {
    if cpu.mode().is_64() { cpu.gpr[1] } else { cpu.gpr[1] & 0xffff_ffff }
}

fn look<E: GuestEnv<Cpu = CpuState>>(env: &mut E, va: u64) -> Result<u64, Fault> {
    let ctx = env.cpu_ref().mode().ctx();
    env.load(Va(va & !u64::from(WATCHED - 1)), WATCHED, ctx)
}

/// MONITOR of a linear address. Errors: #UD above CPL 0, #GP(0), those of a one-byte load.
pub fn monitor<E: GuestEnv<Cpu = CpuState>>(env: &mut E, va: u64) -> Result<(), Fault> {
    privileged(env.cpu_ref())?;
    if extensions(env.cpu_ref()) != 0 {
        return Err(gp(0));
    }
    let value = look(env, va)?;
    env.cpu().monitor = Some((va, value));
    Ok(())
}

/// MWAIT. Bit 0 of ECX: interrupts end it even if masked. Errors: #UD above CPL 0, #GP(0).
pub fn mwait<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<(), Fault> {
    privileged(env.cpu_ref())?;
    if extensions(env.cpu_ref()) & !1 != 0 {
        return Err(gp(0));
    }
    let Some((va, value)) = env.cpu().monitor.take() else { return Ok(()) };
    if env.io().time_is_counted() {
        // Sleeping would bring no timer nearer, only hold the guest up.
        return Ok(());
    }
    let (start, mut nap) = (Instant::now(), FIRST_NAP);
    while start.elapsed() < LONGEST && look(env, va)? == value {
        env.io().signals().wait(Events::all(), nap);
        if !env.io().signals().pending().is_empty() {
            break;
        }
        nap = (nap * 2).min(LAST_NAP);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Env;

    const WORD: u64 = 0x8000;

    /// Time that MWAIT takes after MONITOR, and what `between` does.
    fn sleeps(between: impl FnOnce(&mut Env)) -> Duration {
        let mut e = Env::long(0);
        e.cpu.gpr[1] = 0;
        monitor(&mut e, WORD + 5).unwrap();
        between(&mut e);
        let start = Instant::now();
        mwait(&mut e).unwrap();
        assert_eq!(e.cpu.monitor, None);
        start.elapsed()
    }

    #[test]
    fn mwait_sleeps_until_a_store_an_event_or_for_a_while() {
        assert!(sleeps(|_| {}) >= LONGEST);
        assert!(sleeps(|e| e.io.ram.write(WORD, &[1])) < LONGEST);
        assert!(sleeps(|e| e.io.signals.raise(Events::INTR)) < LONGEST);
        assert!(sleeps(|e| e.cpu.monitor = None) < LONGEST, "nothing is watched");
    }

    #[test]
    fn only_the_kernel_may_wait_and_only_with_known_extensions() {
        let mut user = Env::long(3);
        assert_eq!((monitor(&mut user, WORD), mwait(&mut user)), (Err(ud()), Err(ud())));
        let mut e = Env::long(0);
        e.cpu.gpr[1] = 2;
        assert_eq!((monitor(&mut e, WORD), mwait(&mut e)), (Err(gp(0)), Err(gp(0))));
        e.cpu.gpr[1] = 1;
        assert_eq!((monitor(&mut e, WORD), mwait(&mut e)), (Err(gp(0)), Ok(())));
    }
}
