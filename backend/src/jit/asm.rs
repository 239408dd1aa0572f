//! Code written by hand that generated code and Rust meet in: ways in and out, stubs that preserve every register, jumps through the
//! jump cache, thunks of regions.
//!
//! UNSAFE: naked functions; who calls them is generated code, or `VcpuBlock::run_code`.
#![allow(unsafe_code)]

use super::runtime::{ACROSS, func};
use crate::far::{Far, Key};
use crate::jumps::{JC_FACTOR, JC_MASK, JC_SHIFT, JcEntry};
use crate::vblock::{BASE, Engine, Why};
use std::arch::naked_asm;
use std::mem::offset_of;

/// Calls function `$index` of `Engine::fns` with every register preserved: the compiler knows nothing of who calls.
#[cfg(target_arch = "x86_64")]
macro_rules! preserving {
    ($index:expr, [$($tail:literal),*], $($operands:tt)*) => {
        naked_asm!(
            "push rbp",
            "mov rbp, rsp",
            "push rax",
            "push rcx",
            "push rdx",
            "push rsi",
            "push rdi",
            "push r8",
            "push r9",
            "push r10",
            "push r11",
            "and rsp, -16",
            "sub rsp, 256",
            "movaps [rsp], xmm0",
            "movaps [rsp + 16], xmm1",
            "movaps [rsp + 32], xmm2",
            "movaps [rsp + 48], xmm3",
            "movaps [rsp + 64], xmm4",
            "movaps [rsp + 80], xmm5",
            "movaps [rsp + 96], xmm6",
            "movaps [rsp + 112], xmm7",
            "movaps [rsp + 128], xmm8",
            "movaps [rsp + 144], xmm9",
            "movaps [rsp + 160], xmm10",
            "movaps [rsp + 176], xmm11",
            "movaps [rsp + 192], xmm12",
            "movaps [rsp + 208], xmm13",
            "movaps [rsp + 224], xmm14",
            "movaps [rsp + 240], xmm15",
            "lea rdi, [r15 - {base}]",
            "call [r15 + {function}]",
            "movaps xmm0, [rsp]",
            "movaps xmm1, [rsp + 16]",
            "movaps xmm2, [rsp + 32]",
            "movaps xmm3, [rsp + 48]",
            "movaps xmm4, [rsp + 64]",
            "movaps xmm5, [rsp + 80]",
            "movaps xmm6, [rsp + 96]",
            "movaps xmm7, [rsp + 112]",
            "movaps xmm8, [rsp + 128]",
            "movaps xmm9, [rsp + 144]",
            "movaps xmm10, [rsp + 160]",
            "movaps xmm11, [rsp + 176]",
            "movaps xmm12, [rsp + 192]",
            "movaps xmm13, [rsp + 208]",
            "movaps xmm14, [rsp + 224]",
            "movaps xmm15, [rsp + 240]",
            "lea rsp, [rbp - 72]",
            "pop r11",
            "pop r10",
            "pop r9",
            "pop r8",
            "pop rdi",
            "pop rsi",
            "pop rdx",
            "pop rcx",
            "pop rax",
            "pop rbp",
            $($tail,)*
            "ret",
            base = const BASE,
            function = const from_base(offset_of!(Engine, fns) + 8 * $index),
            $($operands)*
        )
    };
}

/// Calls `access`. The host's flags are then `B`: the access hits; `E`: it has been done across two pages, and rcx is the addend by
/// which its address leads to `Engine::vec_a`; `A`: it cannot be done.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn access_stub() {
    preserving!(
        func::ACCESS,
        [
            "cmp dword ptr [r15 + {status}], {across}",
            "jne 2f",
            "lea rcx, [r15 + {value}]",
            "sub rcx, [r15 + {addr}]",
            "cmp eax, eax",
            "2:"
        ],
        across = const ACROSS,
        status = const from_base(offset_of!(Engine, status)),
        value = const from_base(offset_of!(Engine, vec_a)),
        addr = const from_base(offset_of!(Engine, slow_addr)),
    )
}

/// Calls `locked`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn locked_stub() {
    preserving!(func::LOCKED, [],)
}

/// Calls `x87_live`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn x87_live_stub() {
    preserving!(func::X87_LIVE, [],)
}

/// Calls `x87_home`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn x87_home_stub() {
    preserving!(func::X87_HOME, [],)
}

/// Offset from r15 of a byte of `Engine`, which ends at the seam.
const fn from_base(in_engine: usize) -> i32 {
    in_engine as i32 - size_of::<Engine>() as i32 - BASE
}

/// Code that looks the program counter in rdi up in the jump cache: in rax the code that it has for it in this mode, where
/// `hit` goes on, or `miss`, as always while the exit flag is set. Uses rdx.
#[cfg(target_arch = "x86_64")]
macro_rules! through_jump_cache {
    (before: [$($before:literal),*], hit: [$($hit:literal),*], miss: [$($miss:literal),*], $($operands:tt)*) => {
        naked_asm!(
            $($before,)*
            "imul eax, edi, {factor}",
            "shr eax, {shift}",
            "and eax, {mask}",
            "mov rdx, [r15 + {tag}]",
            "cmp rdi, [r15 + rax + {jc_pc}]",
            "jne 4f",
            "cmp rdx, [r15 + rax + {jc_tag}]",
            "je 5f",
            "4:",
            "xor eax, {beside}",
            "cmp rdi, [r15 + rax + {jc_pc}]",
            "jne 2f",
            "cmp rdx, [r15 + rax + {jc_tag}]",
            "jne 2f",
            "5:",
            "mov rax, [r15 + rax + {jc_code}]",
            $($hit,)*
            "2:",
            "mov eax, dword ptr [r15 + {pc_off}]",
            "mov [r15 + rax - {seam}], rdi",
            $($miss,)*
            "mov rsp, [r15 + {out}]",
            "ret",
            seam = const BASE,
            pc_off = const from_base(offset_of!(Engine, pc_off)),
            factor = const JC_FACTOR as i32,
            shift = const JC_SHIFT,
            mask = const JC_MASK,
            beside = const size_of::<JcEntry>(),
            tag = const from_base(offset_of!(Engine, tag)),
            out = const from_base(offset_of!(Engine, way_out)),
            jc_pc = const from_base(offset_of!(Engine, jc)) + offset_of!(JcEntry, pc) as i32,
            jc_tag = const from_base(offset_of!(Engine, jc)) + offset_of!(JcEntry, tag) as i32,
            jc_code = const from_base(offset_of!(Engine, jc)) + offset_of!(JcEntry, code) as i32,
            $($operands)*
        )
    };
}

/// Jumped to by functions of Cranelift's with the program counter in the first argument register: enters the compiled code that the jump
/// cache has for it in this mode, or returns to the dispatcher (`Why::Miss`).
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn chain() {
    through_jump_cache!(before: [], hit: ["jmp rax"], miss: ["mov eax, {why}"], why = const Why::Miss as u32)
}

/// Jumped to by an edge out of the page that is not linked here and now: the program counter in rdi, the key that a link would have in rax,
/// its `Far` in rcx. Where the jump cache leads to what the edge is linked to, the link holds again.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn far() {
    through_jump_cache!(
        before: ["mov rsi, rax", "cmp qword ptr [rcx + {code}], 0", "je 2f"],
        hit: ["cmp rax, [rcx + {code}]", "jne 3f", "mov rdx, [rcx + {key}]", "mov [rdx], rsi", "3:", "jmp rax"],
        miss: [
            "mov rax, [rcx + {record}]",
            "mov [r15 + {cur}], rax",
            "mov eax, [rcx + {edge}]",
            "mov [r15 + {edge_number}], eax",
            "mov eax, {why}"
        ],
        why = const Why::Edge as u32,
        cur = const from_base(offset_of!(Engine, cur)),
        edge_number = const from_base(offset_of!(Engine, edge_number)),
        key = const offset_of!(Far, key) + Key::AT,
        code = const offset_of!(Far, code),
        record = const offset_of!(Far, record),
        edge = const offset_of!(Far, edge),
    )
}

/// Jumped to by blocks with the program counter in rdi, the mode's tag and the exit flag in rcx, and in rax the offset of an entry of the
/// jump cache that is not theirs: looks into the one beside it. Now and then that is left to the dispatcher (`VcpuBlock::jc_promote`).
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn second() {
    naked_asm!(
        "xor eax, {beside}",
        "cmp rdi, [r15 + rax + {jc_pc}]",
        "jne 2f",
        "cmp rcx, [r15 + rax + {jc_tag}]",
        "jne 2f",
        "dec dword ptr [r15 + {left}]",
        "je 2f",
        "jmp [r15 + rax + {jc_code}]",
        "2:",
        "mov eax, dword ptr [r15 + {pc_off}]",
        "mov [r15 + rax - {seam}], rdi",
        "mov eax, {miss}",
        "mov rsp, [r15 + {out}]",
        "ret",
        seam = const BASE,
        pc_off = const from_base(offset_of!(Engine, pc_off)),
        beside = const size_of::<JcEntry>(),
        jc_pc = const from_base(offset_of!(Engine, jc)) + offset_of!(JcEntry, pc) as i32,
        jc_tag = const from_base(offset_of!(Engine, jc)) + offset_of!(JcEntry, tag) as i32,
        jc_code = const from_base(offset_of!(Engine, jc)) + offset_of!(JcEntry, code) as i32,
        left = const from_base(offset_of!(Engine, second_places)),
        miss = const Why::Miss as u32,
        out = const from_base(offset_of!(Engine, way_out)),
    )
}

/// Jumped to where a block ends that may have changed anything, with the program counter in the state: drops the frames of
/// guest calls and goes on where `go_on` says, or returns to the dispatcher.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn go_on_stub() {
    naked_asm!(
        "mov rsp, [r15 + {stack}]",
        "sub rsp, 8",
        "lea rdi, [r15 - {base}]",
        "call [r15 + {function}]",
        "add rsp, 8",
        "test rax, rax",
        "je 2f",
        "mov r14, [r15 + {table}]",
        "mov edi, dword ptr [r15 + {pc_off}]",
        "mov rdi, [r15 + rdi - {base}]",
        "jmp rax",
        "2:",
        "mov rsp, [r15 + {out}]",
        "ret",
        out = const from_base(offset_of!(Engine, way_out)),
        pc_off = const from_base(offset_of!(Engine, pc_off)),
        table = const from_base(offset_of!(Engine, table)),
        stack = const from_base(offset_of!(Engine, stack_base)),
        base = const BASE,
        function = const from_base(offset_of!(Engine, fns) + 8 * func::GO_ON),
    )
}

/// Stands for the code of a block that has none, with the program counter in rdi: returns to the dispatcher (`Why::Miss`).
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn miss() {
    naked_asm!(
        "mov eax, dword ptr [r15 + {pc_off}]",
        "mov [r15 + rax - {seam}], rdi",
        "mov eax, {miss}",
        "mov rsp, [r15 + {out}]",
        "ret",
        seam = const BASE,
        pc_off = const from_base(offset_of!(Engine, pc_off)),
        miss = const Why::Miss as u32,
        out = const from_base(offset_of!(Engine, way_out)),
    )
}

/// Address of code that returns to the dispatcher with `Why::Miss`.
pub fn miss_address() -> u64 {
    miss as *const () as u64
}

/// As `miss`, of jump-cache entries that no longer hold.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn stale() {
    // Told from `miss` by its address alone, so the code may not be the same.
    naked_asm!(
        "mov eax, dword ptr [r15 + {pc_off}]",
        "mov [r15 + rax - {seam}], rdi",
        "mov eax, {miss}",
        "nop",
        "mov rsp, [r15 + {out}]",
        "ret",
        seam = const BASE,
        pc_off = const from_base(offset_of!(Engine, pc_off)),
        miss = const Why::Miss as u32,
        out = const from_base(offset_of!(Engine, way_out)),
    )
}

/// Address of that.
pub fn stale_address() -> u64 {
    stale as *const () as u64
}

const _: () = assert!(size_of::<JcEntry>() == 32);

/// Bytes of a thunk, and where in it the entry is that has the program counter in rdi; the entry at its start takes the page's from the
/// state.
pub const THUNK: usize = 41;
pub const THUNK_FULL: usize = 17;

/// What thunks need to know of the guest's state: offsets from the seam, mask of program counters.
pub struct PcSlots {
    pub pc: i32,
    pub page: i32,
    pub mask: u64,
}

/// Appends a thunk that enters the region at byte `entry` of `code` at member `i`, which starts at a page offset: with the program counter in
/// rdi, or as a function of Cranelift's, with the program counter in the state, the number of the member in the first argument
/// register, and on the stack where to leave generated code from. (Where Cranelift compiles nothing else does: nobody looks for frames.)
#[cfg(target_arch = "x86_64")]
pub fn push_thunk(code: &mut Vec<u8>, i: usize, start: u32, entry: u32, slots: &PcSlots, function: bool) {
    let at = code.len();
    // mov rdi, [r15 + page]; add rdi, start
    code.extend([0x49, 0x8b, 0xbf]);
    code.extend((slots.page - BASE).to_le_bytes());
    code.extend([0x48, 0x81, 0xc7]);
    code.extend(start.to_le_bytes());
    code.extend(match slots.mask {
        u64::MAX => [0x0f, 0x1f, 0x00], // nop
        0xffff => [0x0f, 0xb7, 0xff],   // movzx edi, di
        _ => [0x90, 0x89, 0xff],        // nop; mov edi, edi
    });
    debug_assert_eq!(code.len() - at, THUNK_FULL);
    if function {
        // mov rsp, [r15 + way_out]; mov [r15 + pc], rdi; mov edi, i
        code.extend([0x49, 0x8b, 0xa7]);
        code.extend(from_base(offset_of!(Engine, way_out)).to_le_bytes());
        code.extend([0x49, 0x89, 0xbf]);
        code.extend((slots.pc - BASE).to_le_bytes());
        code.push(0xbf);
        code.extend((i as u32).to_le_bytes());
    }
    // jmp region
    code.push(0xe9);
    let rel = entry as i32 - (code.len() as i32 + 4);
    code.extend(rel.to_le_bytes());
    code.resize(at + THUNK, 0xcc);
}

/// Bytes of the host's stack for frames of guest calls, and how many there may be more or less.
const FRAMES: u32 = 32 << 10;
const SLACK: u32 = 8 << 10;
/// In place of a program counter, at which no call expects a return: of the frame that is always there. It is canonical, as all are where
/// frames lead (`tier1::target`).
const NOWHERE: i64 = -1;

/// Enters generated code with the program counter in rdi: fn(seam, code, pc) -> `Why`. Generated code preserves no register but the stack
/// pointer. Frames of guest calls (`tier1::calls`) lie below what is pushed here: where to leave from, and a frame. Who returns by that, to
/// `NOWHERE`, comes to the dispatcher, which looks it up.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn enter(_seam: *mut u8, _code: u64, _pc: u64) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "lea r15, [rdi + {base}]",
        "mov r14, [r15 + {table}]",
        "lea rax, [rip + 3f]",
        "push rax",
        "mov [r15 + {way_out}], rsp",
        "mov rax, {nowhere}",
        "push rax",
        "mov rdi, rdx",
        "call 2f",
        // A return to nowhere, with the frame's first word still there.
        "mov eax, dword ptr [r15 + {pc_off}]",
        "mov [r15 + rax - {base}], rdi",
        "mov eax, {lookup}",
        "mov rsp, [r15 + {way_out}]",
        "ret",
        "2:",
        "mov [r15 + {stack_base}], rsp",
        // Room for frames is where it was, but for what lies above on the stack. Else it is told by XCHG, which orders: whoever has
        // seen no exit flag then is seen by who sets it.
        "lea rax, [rsp - {frames}]",
        "mov rcx, rax",
        "sub rcx, [r15 + {stack_room}]",
        "add rcx, {slack}",
        "cmp rcx, 2 * {slack}",
        "jb 4f",
        "mov [r15 + {stack_room}], rax",
        "xchg [r15 + {stack_limit}], rax",
        "cmp dword ptr [r15 + {exit}], 0",
        "je 4f",
        "mov qword ptr [r15 + {stack_limit}], -1",
        "4:",
        "jmp rsi",
        "3:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        base = const BASE,
        table = const from_base(offset_of!(Engine, table)),
        nowhere = const NOWHERE,
        frames = const FRAMES,
        slack = const SLACK,
        exit = const from_base(offset_of!(Engine, exit)),
        stack_room = const from_base(offset_of!(Engine, stack_room)),
        lookup = const Why::Lookup as u32,
        pc_off = const from_base(offset_of!(Engine, pc_off)),
        stack_base = const from_base(offset_of!(Engine, stack_base)),
        stack_limit = const from_base(offset_of!(Engine, stack_limit)),
        way_out = const from_base(offset_of!(Engine, way_out)),
    )
}
