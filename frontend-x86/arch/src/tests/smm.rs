//! System management mode: what entry and RSM keep, what is held back, states that cannot be.

use super::Env;
use crate::fault::{ud, vector};
use crate::flags::bit;
use crate::segment::v86_segment;
use crate::smm::rsm;
use crate::state::{SegReg, cr0};
use vm_core::Events;
use vm_core::guest::GuestCpu;

const MAP: u64 = 0x3_0000;
const AUTO_HALT: u64 = MAP + 0xfec9;

/// Takes a system management interrupt.
fn smi(e: &mut Env) {
    e.io.signals.raise(Events::SMI);
    assert_eq!(GuestCpu::deliver_event(e), Ok(true));
    assert!(e.cpu.smm && !e.io.signals.pending().contains(Events::SMI));
}

#[test]
fn every_mode_comes_back_as_it_was() {
    let v86 = || {
        let mut e = Env::protected(3);
        for s in SegReg::ALL {
            *e.cpu.seg_mut(s) = v86_segment(0x1234 + s as u16);
        }
        e.cpu.set_rflags(bit::ONE | bit::VM | bit::IOPL | bit::CF);
        e
    };
    for mut e in [Env::real(), Env::protected(0), Env::protected(3), Env::long(0), Env::long(3), v86()] {
        for (r, v) in e.cpu.gpr.iter_mut().zip(0x1_0001u64..).filter(|(r, _)| **r == 0) {
            *r = v * 0x1_0000_1001;
        }
        e.cpu.dr[7] = 0x403;
        e.cpu.update_mode();
        let before = e.cpu.clone();
        smi(&mut e);
        let cs = *e.cpu.seg(SegReg::Cs);
        assert_eq!((e.cpu.rip, cs.base, cs.selector, cs.limit), (0x8000, MAP, 0x3000, u32::MAX));
        assert_eq!((e.cpu.cpl, e.cpu.cr4, e.cpu.efer, e.cpu.dr[7], e.cpu.rflags()), (0, 0, 0, 0x400, 2));
        assert_eq!(e.cpu.cr0 & (cr0::PE | cr0::PG), 0);
        rsm(&mut e).unwrap();
        let mut after = e.cpu.clone();
        // Lazy flags may be kept in another form.
        assert_eq!(after.rflags(), before.rflags());
        after.set_cc(before.cc());
        after.eflags = before.eflags;
        assert_eq!(after, before);
    }
}

#[test]
fn a_halted_processor_halts_again_unless_the_handler_says_no() {
    for clear in [false, true] {
        let mut e = Env::long(0);
        e.cpu.halted = true;
        smi(&mut e);
        assert_eq!((e.cpu.halted, e.peek(AUTO_HALT, 1)), (false, 1));
        if clear {
            e.poke(AUTO_HALT, 1, 0);
        }
        rsm(&mut e).unwrap();
        assert_eq!(e.cpu.halted, !clear);
    }
}

#[test]
fn events_wait_for_rsm() {
    let mut e = Env::long(0);
    smi(&mut e);
    e.io.signals.raise(Events::SMI | Events::NMI | Events::INIT);
    assert_eq!(GuestCpu::deliver_event(&mut e), Ok(false));
    rsm(&mut e).unwrap();
    assert_eq!(e.io.signals.pending(), Events::SMI | Events::NMI | Events::INIT);
    assert_eq!(GuestCpu::deliver_event(&mut e), Ok(true));
    assert_eq!(e.cpu.rip, 0xfff0, "INIT comes first");
}

#[test]
fn rsm_elsewhere_is_undefined_and_a_wrong_state_a_shutdown() {
    let mut e = Env::long(0);
    assert_eq!(rsm(&mut e), Err(ud()));
    // Paging without protection; long mode without PAE; a reserved bit of CR4.
    for (offset, v) in [(0xff58, 0x8000_0010u64), (0xff48, 0), (0xff48, 1 << 31 | 0x20)] {
        let mut e = Env::long(0);
        smi(&mut e);
        e.poke(MAP + offset, 8, v);
        let f = rsm(&mut e).unwrap_err();
        assert_eq!(f.vector, vector::GP);
        assert!(GuestCpu::deliver_fault(&mut e, f).is_err(), "{offset:#x}");
    }
}
