//! Runs one instruction on the host with a whole x87/SSE state loaded.

use super::Area;
use memmap2::{Mmap, MmapMut};
use std::mem::offset_of;

/// Machine code around one instruction: a function of `*mut Area` (System V: RDI).
pub struct Runner(Mmap);

impl Runner {
    /// `insn` may use RAX, RCX, RDX, [RSI] and flags.
    pub fn new(insn: &[u8]) -> Runner {
        let mut c = Vec::new();
        let at = |c: &mut Vec<u8>, opcode: &[u8], off: usize| {
            c.extend_from_slice(opcode);
            c.extend_from_slice(&(off as u32).to_le_bytes());
        };
        let gpr = offset_of!(Area, gpr);
        at(&mut c, &[0x48, 0x8d, 0xb7], offset_of!(Area, mem)); // lea rsi, [rdi+]
        at(&mut c, &[0x48, 0x0f, 0xae, 0x87], offset_of!(Area, host)); // fxsave64 [rdi+]
        at(&mut c, &[0x48, 0x0f, 0xae, 0x8f], 0); // fxrstor64 [rdi]
        let upper = |c: &mut Vec<u8>, opcode: u8| {
            for i in 0..if is_x86_feature_detected!("avx") { 16u8 } else { 0 } {
                // vinsertf128 ymmI, ymmI, [rdi+], 1 or vextractf128 [rdi+], ymmI, 1
                let vvvv = if opcode == 0x18 { !i & 15 } else { 15 };
                let rex = 0x63 | if i < 8 { 0x80 } else { 0 };
                at(c, &[0xc4, rex, vvvv << 3 | 5, opcode, (i & 7) << 3 | 0x87], offset_of!(Area, upper) + 16 * usize::from(i));
                c.push(1);
            }
        };
        upper(&mut c, 0x18);
        at(&mut c, &[0xff, 0xb7], gpr + 24); // push qword [rdi+]
        c.push(0x9d); // popfq
        at(&mut c, &[0x48, 0x8b, 0x87], gpr); // mov rax, [rdi+]
        at(&mut c, &[0x48, 0x8b, 0x8f], gpr + 8);
        at(&mut c, &[0x48, 0x8b, 0x97], gpr + 16);
        c.extend_from_slice(insn);
        at(&mut c, &[0x48, 0x89, 0x87], gpr); // mov [rdi+], rax
        at(&mut c, &[0x48, 0x89, 0x8f], gpr + 8);
        at(&mut c, &[0x48, 0x89, 0x97], gpr + 16);
        c.push(0x9c); // pushfq
        at(&mut c, &[0x8f, 0x87], gpr + 24); // pop qword [rdi+]
        at(&mut c, &[0x48, 0x0f, 0xae, 0x87], 0); // fxsave64 [rdi]
        upper(&mut c, 0x19);
        if is_x86_feature_detected!("avx") {
            c.extend_from_slice(&[0xc5, 0xf8, 0x77]); // vzeroupper
        }
        c.extend_from_slice(&[0xdb, 0xe2]); // fnclex
        at(&mut c, &[0x48, 0x0f, 0xae, 0x8f], offset_of!(Area, host)); // fxrstor64 [rdi+]
        c.extend_from_slice(&[0xfc, 0xc3]); // cld; ret
        let mut m = MmapMut::map_anon(4096).expect("a page");
        m[..c.len()].copy_from_slice(&c);
        Runner(m.make_exec().expect("executable page"))
    }

    pub fn run(&self, a: &mut Area) {
        // SAFETY: the page holds a complete function with this signature; it preserves what the ABI asks for.
        let f: extern "sysv64" fn(*mut Area) = unsafe { std::mem::transmute(self.0.as_ptr()) };
        f(a);
    }
}
