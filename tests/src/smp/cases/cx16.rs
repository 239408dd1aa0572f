//! CMPXCHG16B: both halves change together, for it and for loads of 8 bytes in either order.

use crate::smp::Emit;
use crate::smp::asm::Asm;
use iced_x86::code_asm::*;

/// The high half is the low one plus this.
const APART: i64 = 0x1234_5678_9abc_def0;

/// RDX:RAX is a pair; R11 is `APART`.
fn check_pair(g: &mut Asm) -> Emit {
    g.mov(r8, rdx)?;
    g.lea(r9, ptr(rax + r11))?;
    g.check_equal("the halves that cmpxchg16b read are of two times")
}

/// The pair in RDX:RAX by a comparison that fails, or one that changes nothing.
fn read(g: &mut Asm) -> Emit {
    for r in [rax, rdx, rbx, rcx] {
        g.mov(r, -1i64)?;
    }
    g.lock().cmpxchg16b(xmmword_ptr(rdi))
}

fn add_one(g: &mut Asm) -> Emit {
    g.again(
        |a, l| a.jne(l),
        |g| {
            g.lea(rbx, ptr(rax + 1))?;
            g.lea(rcx, ptr(rdx + 1))?;
            g.lock().cmpxchg16b(xmmword_ptr(rdi))
        },
    )
}

/// Loads of one half and the other: the later one is not older.
fn plain(g: &mut Asm) -> Emit {
    g.mov(r9, qword_ptr(rdi))?;
    g.mov(r8, qword_ptr(rdi + 8))?;
    g.sub(r8, r11)?;
    g.cmp(r8, r9)?;
    g.fail_unless(|a, l| a.jae(l), "the high half is older than the low one that was read before it")?;
    g.mov(r9, qword_ptr(rdi + 8))?;
    g.mov(r8, qword_ptr(rdi))?;
    g.sub(r9, r11)?;
    g.cmp(r8, r9)?;
    g.fail_unless(|a, l| a.jae(l), "the low half is older than the high one that was read before it")
}

pub fn test(g: &mut Asm) -> Emit {
    let pair = g.var(16);
    g.mov(r11, APART)?;
    g.alone(|g| g.mov(qword_ptr(pair + 8), r11))?;
    g.mov(edi, pair)?;
    g.rounds(|g| {
        read(g)?;
        check_pair(g)?;
        add_one(g)?;
        check_pair(g)?;
        read(g)?;
        check_pair(g)?;
        plain(g)
    })?;
    g.alone(|g| {
        g.mov(r8, qword_ptr(pair))?;
        g.mov(r9, r14)?;
        g.imul_2(r9, r13)?;
        g.check_equal("lock cmpxchg16b")?;
        g.mov(r8, qword_ptr(pair + 8))?;
        g.add(r9, r11)?;
        g.check_equal("the high half of lock cmpxchg16b")
    })
}
