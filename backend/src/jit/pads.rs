//! Pads: what memory checks of compiled code jump to when they miss. The compiler knows a check only as a trap; when the
//! code is copied its conditional jump is pointed at a pad behind the code, which calls the register-preserving stub
//! (`runtime::access`) and jumps back to the access, or leaves the region. x86-64 hosts.

use super::runtime::func;
use crate::vblock::Engine;
use cranelift_codegen::ir::TrapCode;
use cranelift_codegen::{CompiledCode, MachTrap};
use std::mem::offset_of;

/// User trap code of memory checks.
pub const CHECK: u8 = 1;
/// Length of a near conditional jump (0F 8x rel32).
const JCC: usize = 6;

/// The region's code with a pad for each site; `None` if a check does not end in a near conditional jump.
pub fn with_pads(c: &CompiledCode, sites: &[u32], eng: fn(usize) -> i32) -> Option<Vec<u8>> {
    let mut code = c.code_buffer().to_vec();
    let checks = checks(c, &code, sites.len())?;
    let tail = code.len();
    push_tail(&mut code, eng);
    for (jump_end, info) in checks.into_iter().zip(sites) {
        if jump_end == 0 {
            continue;
        }
        let pad = code.len();
        point(&mut code, jump_end, pad);
        push_pad(&mut code, *info, jump_end, tail, eng);
    }
    Some(code)
}

/// End of each site's conditional jump, 0 for sites in code that cannot be reached. Site i has source location i + 1; so have
/// its compare, moves that the register allocator puts behind, and the ud2 that the jump leads to.
fn checks(c: &CompiledCode, code: &[u8], sites: usize) -> Option<Vec<usize>> {
    let is_check = |t: &&MachTrap| t.code == TrapCode::unwrap_user(CHECK);
    let mut traps: Vec<usize> = c.buffer.traps().iter().filter(is_check).map(|t| t.offset as usize).collect();
    traps.sort_unstable();
    let mut ends = vec![0; sites];
    for l in c.buffer.get_srclocs_sorted() {
        let (start, end) = (l.start as usize, l.end as usize);
        if l.loc.is_default() || end - start < JCC {
            continue;
        }
        let jump = (start..=end - JCC).map(|at| at + JCC).find(|e| leads_to_trap(code, *e, &traps));
        if let Some(e) = jump {
            *ends.get_mut(l.loc.bits() as usize - 1)? = e;
        }
    }
    let found = ends.iter().filter(|e| **e != 0).count();
    (found == traps.len()).then_some(ends)
}

/// Whether the bytes before `end` are a near conditional jump to one of the traps.
fn leads_to_trap(code: &[u8], end: usize, traps: &[usize]) -> bool {
    let i = &code[end - JCC..end];
    let target = end as i64 + i64::from(i32::from_le_bytes([i[2], i[3], i[4], i[5]]));
    i[0] == 0x0f && i[1] & 0xf0 == 0x80 && usize::try_from(target).is_ok_and(|t| traps.binary_search(&t).is_ok())
}

/// Points the rel32 that ends at `end` to `target`.
fn point(code: &mut [u8], end: usize, target: usize) {
    let rel = target as i32 - end as i32;
    code[end - 4..end].copy_from_slice(&rel.to_le_bytes());
}

fn push_jump(code: &mut Vec<u8>, opcode: &[u8], target: usize) {
    code.extend(opcode);
    code.extend([0; 4]);
    let end = code.len();
    point(code, end, target);
}

/// An instruction on a word of the engine state: opcode bytes with ModRM for [r15 + disp32], then the offset.
fn push_state(code: &mut Vec<u8>, opcode: [u8; 3], offset: i32) {
    code.extend(opcode);
    code.extend((offset - crate::vblock::BASE).to_le_bytes());
}

fn push_pad(code: &mut Vec<u8>, info: u32, back: usize, tail: usize, eng: fn(usize) -> i32) {
    // mov dword [slow_info], info
    push_state(code, [0x41, 0xc7, 0x87], eng(offset_of!(Engine, slow_info)));
    code.extend(info.to_le_bytes());
    // call [fns + ACCESS_STUB]
    push_state(code, [0x41, 0xff, 0x97], eng(offset_of!(Engine, fns) + 8 * func::ACCESS_STUB));
    // cmp dword [status], 0; je back; jmp tail
    push_state(code, [0x41, 0x83, 0xbf], eng(offset_of!(Engine, status)));
    code.push(0);
    push_jump(code, &[0x0f, 0x84], back);
    push_jump(code, &[0xe9], tail);
}

/// Leaves the region: drops its frame and returns the status. `asm::enter` restores what the region saved.
fn push_tail(code: &mut Vec<u8>, eng: fn(usize) -> i32) {
    // mov eax, [status]; mov rsp, rbp; pop rbp; ret
    push_state(code, [0x41, 0x8b, 0x87], eng(offset_of!(Engine, status)));
    code.extend([0x48, 0x89, 0xec, 0x5d, 0xc3]);
}
