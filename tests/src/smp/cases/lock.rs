//! Read-modify-write instructions on shared memory, in all sizes: no update is lost, no neighbour is changed.

use crate::smp::Emit;
use crate::smp::asm::Asm;
use iced_x86::code_asm::*;

/// A register in its four sizes.
type Register = (AsmRegister8, AsmRegister16, AsmRegister32, AsmRegister64);

const A: Register = (al, ax, eax, rax);
const C: Register = (cl, cx, ecx, rcx);
const SIZES: [u32; 4] = [1, 2, 4, 8];

/// The operand at RDI, and one instruction on it in any size.
macro_rules! sized {
    ($size:expr, $g:expr, $op:ident) => {
        $g.$op(operand($size))
    };
    ($size:expr, $g:expr, $op:ident, $r:expr) => {
        match $size {
            1 => $g.$op(byte_ptr(rdi), $r.0),
            2 => $g.$op(word_ptr(rdi), $r.1),
            4 => $g.$op(dword_ptr(rdi), $r.2),
            _ => $g.$op(qword_ptr(rdi), $r.3),
        }
    };
}

/// The memory operand at RDI.
pub fn operand(size: u32) -> AsmMemoryOperand {
    match size {
        1 => byte_ptr(rdi),
        2 => word_ptr(rdi),
        4 => dword_ptr(rdi),
        _ => qword_ptr(rdi),
    }
}

/// The value at RDI in R8.
pub fn read(g: &mut Asm, size: u32) -> Emit {
    match size {
        1 | 2 => g.movzx(r8d, operand(size)),
        4 => g.mov(r8d, dword_ptr(rdi)),
        _ => g.mov(r8, qword_ptr(rdi)),
    }
}

/// R9 cut to a size.
fn cut(g: &mut Asm, size: u32) -> Emit {
    let bits = 64 - 8 * size as i32;
    g.shl(r9, bits)?;
    g.shr(r9, bits)
}

/// One operation on the counter at RDI by each processor in each round, and R9 made of the number of operations in RAX.
struct Op {
    name: &'static str,
    sizes: &'static [u32],
    emit: fn(&mut Asm, u32) -> Emit,
    want: fn(&mut Asm) -> Emit,
}

fn times(g: &mut Asm, n: i32) -> Emit {
    g.imul_3(r9, rax, n)
}

const OPS: &[Op] = &[
    Op { name: "lock inc", sizes: &SIZES, emit: |g, s| sized!(s, g.lock(), inc), want: |g| times(g, 1) },
    Op { name: "lock dec", sizes: &SIZES, emit: |g, s| sized!(s, g.lock(), dec), want: |g| times(g, -1) },
    Op { name: "lock add", sizes: &SIZES, emit: add, want: |g| times(g, 3) },
    Op { name: "lock sub", sizes: &SIZES, emit: |g, s| g.lock().sub(operand(s), 5), want: |g| times(g, -5) },
    Op { name: "lock adc", sizes: &SIZES, emit: adc, want: |g| times(g, 1) },
    Op { name: "lock sbb", sizes: &SIZES, emit: sbb, want: |g| times(g, -1) },
    Op { name: "lock xadd", sizes: &SIZES, emit: xadd, want: |g| times(g, 7) },
    Op { name: "lock not", sizes: &SIZES, emit: |g, s| sized!(s, g.lock(), not), want: parity },
    Op { name: "lock neg", sizes: &SIZES, emit: |g, s| sized!(s, g.lock(), neg), want: sign },
    Op { name: "lock cmpxchg", sizes: &SIZES, emit: cmpxchg, want: |g| times(g, 1) },
    Op { name: "lock cmpxchg8b", sizes: &[8], emit: cmpxchg8b, want: halves },
];

/// All ones after an odd number of operations.
fn parity(g: &mut Asm) -> Emit {
    g.mov(r9, rax)?;
    g.and(r9, 1)?;
    g.neg(r9)
}

/// -1 after an odd number of operations; they begin with 1.
fn sign(g: &mut Asm) -> Emit {
    parity(g)?;
    g.lea(r9, ptr(r9 + r9 + 1))
}

fn add(g: &mut Asm, size: u32) -> Emit {
    g.mov(ecx, 3)?;
    sized!(size, g.lock(), add, C)
}

fn adc(g: &mut Asm, size: u32) -> Emit {
    g.stc()?;
    g.lock().adc(operand(size), 0)
}

fn sbb(g: &mut Asm, size: u32) -> Emit {
    g.stc()?;
    g.lock().sbb(operand(size), 0)
}

/// Changes RAX.
pub fn xadd(g: &mut Asm, size: u32) -> Emit {
    g.mov(eax, 7)?;
    sized!(size, g.lock(), xadd, A)
}

/// Adds one; changes RAX and RCX.
pub fn cmpxchg(g: &mut Asm, size: u32) -> Emit {
    sized_load(g, size)?;
    g.again(
        |a, l| a.jne(l),
        |g| {
            g.lea(rcx, ptr(rax + 1))?;
            sized!(size, g.lock(), cmpxchg, C)
        },
    )
}

fn sized_load(g: &mut Asm, size: u32) -> Emit {
    match size {
        1 => g.mov(al, byte_ptr(rdi)),
        2 => g.mov(ax, word_ptr(rdi)),
        4 => g.mov(eax, dword_ptr(rdi)),
        _ => g.mov(rax, qword_ptr(rdi)),
    }
}

/// The low half counts up, the high half down.
fn cmpxchg8b(g: &mut Asm, _: u32) -> Emit {
    g.xor(eax, eax)?;
    g.xor(edx, edx)?;
    g.again(
        |a, l| a.jne(l),
        |g| {
            g.lea(ebx, ptr(rax + 1))?;
            g.lea(ecx, ptr(rdx - 1))?;
            g.lock().cmpxchg8b(qword_ptr(rdi))
        },
    )
}

fn halves(g: &mut Asm) -> Emit {
    g.mov(ecx, eax)?;
    g.neg(eax)?;
    g.mov(r9d, eax)?;
    g.shl(r9, 32)?;
    g.or(r9, rcx)
}

/// R8 and R9 of the counter at RDI when all is done.
pub fn check(g: &mut Asm, size: u32, what: &str, want: fn(&mut Asm) -> Emit) -> Emit {
    read(g, size)?;
    g.mov(rax, r14)?;
    g.imul_2(rax, r13)?;
    want(g)?;
    cut(g, size)?;
    g.check_equal(what)
}

/// A lock taken by `take` (which says by ZF that it was free) and given back by `give`, around a counter that is not atomic.
struct Mutex {
    name: &'static str,
    take: fn(&mut Asm, u32) -> Emit,
    give: fn(&mut Asm, u32) -> Emit,
    sizes: &'static [u32],
}

/// Loops of one instruction are this power of two times longer.
const TIGHT: i32 = 7;
/// How often a lock is tried: seconds, on an interpreter a minute.
const TRIES: u32 = 1 << 28;
/// Bit of a word that `BTS` takes by an immediate or by a register.
const BIT: u32 = 13;

const MUTEXES: &[Mutex] = &[
    Mutex { name: "xchg, plain store", take: take_xchg, give: |g, s| g.mov(operand(s), 0), sizes: &SIZES },
    Mutex { name: "xchg, xchg", take: take_xchg, give: give_xchg, sizes: &SIZES },
    Mutex { name: "bts and btr of an immediate", take: take_bts, give: give_btr, sizes: &[2, 4, 8] },
    Mutex { name: "bts and btr of a register", take: take_bts_register, give: give_btr_register, sizes: &[2, 4, 8] },
    Mutex { name: "btc and btr", take: take_bts, give: give_btc, sizes: &[2, 4, 8] },
];

fn take_xchg(g: &mut Asm, size: u32) -> Emit {
    g.mov(eax, 1)?;
    sized!(size, g, xchg, A)?;
    g.test(al, al)
}

fn give_xchg(g: &mut Asm, size: u32) -> Emit {
    g.xor(eax, eax)?;
    sized!(size, g, xchg, A)
}

/// CF in ZF's place: ZF where the bit was clear.
fn carry_to_zero(g: &mut Asm) -> Emit {
    g.sbb(eax, eax)?;
    g.test(eax, eax)
}

fn take_bts(g: &mut Asm, size: u32) -> Emit {
    g.sure_lock().bts(operand(size), BIT)?;
    carry_to_zero(g)
}

fn held(g: &mut Asm) -> Emit {
    g.mov(r8, rdi)?;
    g.mov(r9, rbp)?;
    g.fail_unless(|a, l| a.jb(l), "the bit of a lock was clear while it was held")
}

fn give_btr(g: &mut Asm, size: u32) -> Emit {
    g.sure_lock().btr(operand(size), BIT)?;
    held(g)
}

fn give_btc(g: &mut Asm, size: u32) -> Emit {
    g.sure_lock().btc(operand(size), BIT)?;
    held(g)
}

/// The bit lies behind the operand that the instruction names: bit offsets in registers reach anywhere.
const FAR_BIT: u32 = 64 + BIT;

fn take_bts_register(g: &mut Asm, size: u32) -> Emit {
    g.mov(ecx, FAR_BIT)?;
    match size {
        2 => g.sure_lock().bts(word_ptr(rdi), cx),
        4 => g.sure_lock().bts(dword_ptr(rdi), ecx),
        _ => g.sure_lock().bts(qword_ptr(rdi), rcx),
    }?;
    carry_to_zero(g)
}

fn give_btr_register(g: &mut Asm, size: u32) -> Emit {
    g.mov(ecx, FAR_BIT)?;
    match size {
        2 => g.sure_lock().btr(word_ptr(rdi), cx),
        4 => g.sure_lock().btr(dword_ptr(rdi), ecx),
        _ => g.sure_lock().btr(qword_ptr(rdi), rcx),
    }?;
    held(g)
}

fn mutex(g: &mut Asm, m: &Mutex, size: u32, counter: u32) -> Emit {
    let (mut again, mut taken) = (g.create_label(), g.create_label());
    let lock = g.var(16);
    g.mov(edi, lock)?;
    g.mov(r11d, TRIES)?;
    g.mark(&mut again)?;
    (m.take)(g, size)?;
    g.je(taken)?;
    g.pause()?;
    g.dec(r11d)?;
    g.jne(again)?;
    g.mov(r8, rdi)?;
    g.mov(r9, rbp)?;
    g.test(r11d, r11d)?;
    g.fail_unless(|a, l| a.jne(l), &format!("lock of {size} bytes by {} was not given back", m.name))?;
    g.mark(&mut taken)?;
    g.mov(rax, qword_ptr(counter))?;
    g.inc(rax)?;
    g.mov(qword_ptr(counter), rax)?;
    (m.give)(g, size)
}

/// A bit of one's own in a word that others change too: set by OR, cleared by AND, changed by XOR and BTC.
fn own_bit(g: &mut Asm, size: u32, at: u32) -> Emit {
    let bits = 8 * size;
    // RDI: the operand; R10: the bit's mask; R11: its number.
    g.mov(r11d, r15d)?;
    g.and(r11d, bits as i32 - 1)?;
    g.mov(ecx, r11d)?;
    g.mov(r10d, 1)?;
    g.shl(r10, cl)?;
    g.mov(eax, r15d)?;
    g.shr(eax, bits.trailing_zeros())?;
    g.imul_3(eax, eax, size as i32)?;
    g.lea(edi, ptr(rax + at))?;
    let is = |g: &mut Asm, set: bool, what: &str| -> Emit {
        read(g, size)?;
        g.mov(r9, r10)?;
        g.test(r8, r9)?;
        g.fail_unless(if set { |a, l| a.jne(l) } else { |a, l| a.je(l) }, what)
    };
    g.mov(rcx, r10)?;
    sized!(size, g.lock(), or, C)?;
    is(g, true, "lock or was lost")?;
    g.mov(rcx, r10)?;
    g.not(rcx)?;
    sized!(size, g.lock(), and, C)?;
    is(g, false, "lock and was lost")?;
    for set in [true, false] {
        g.mov(rcx, r10)?;
        sized!(size, g.lock(), xor, C)?;
        is(g, set, "lock xor was lost")?;
    }
    if size > 1 {
        for set in [true, false] {
            match size {
                2 => g.lock().btc(word_ptr(rdi), r11w),
                4 => g.lock().btc(dword_ptr(rdi), r11d),
                _ => g.lock().btc(qword_ptr(rdi), r11),
            }?;
            is(g, set, "lock btc was lost")?;
        }
    }
    Ok(())
}

pub fn test(g: &mut Asm) -> Emit {
    let mut counters = Vec::new();
    for (op, size) in OPS.iter().flat_map(|o| o.sizes.iter().map(move |s| (o, *s))) {
        counters.push((op, size, g.var(16)));
    }
    let mut mutexes = Vec::new();
    for (m, size) in MUTEXES.iter().flat_map(|m| m.sizes.iter().map(move |s| (m, *s))) {
        mutexes.push((m, size, g.var(8)));
    }
    let words: Vec<u32> = SIZES.iter().map(|_| g.var(64)).collect();
    g.alone(|g| {
        for (_, _, at) in counters.iter().filter(|(op, ..)| op.name == "lock neg") {
            g.mov(dword_ptr(*at), 1)?;
        }
        Ok(())
    })?;
    // Each in a loop of its own, so that the processors meet at it.
    for (op, size, at) in &counters {
        g.barrier()?;
        g.shl(r13, TIGHT)?;
        g.mov(edi, *at)?;
        g.rounds(|g| (op.emit)(g, *size))?;
        g.shr(r13, TIGHT)?;
    }
    g.rounds(|g| {
        for (m, size, at) in &mutexes {
            mutex(g, m, *size, *at)?;
        }
        for (size, at) in SIZES.iter().zip(&words) {
            own_bit(g, *size, *at)?;
        }
        Ok(())
    })?;
    g.alone(|g| {
        for (op, size, at) in &counters {
            g.mov(edi, *at)?;
            g.shl(r13, TIGHT)?;
            check(g, *size, &format!("{} of {size} bytes", op.name), op.want)?;
            g.shr(r13, TIGHT)?;
            // What lies behind the counter has not been touched.
            if *size < 8 {
                g.mov(r8, qword_ptr(*at))?;
                g.shr(r8, 8 * *size as i32)?;
                g.xor(r9d, r9d)?;
                g.check_equal(&format!("neighbours of {} of {size} bytes", op.name))?;
            }
        }
        for (m, size, at) in &mutexes {
            g.mov(edi, *at)?;
            check(g, 8, &format!("lock of {size} bytes by {}", m.name), |g| times(g, 1))?;
        }
        Ok(())
    })
}
