//! From a PVH entry or a start-up IPI to 64-bit mode.

use super::Emit;
use super::image::Image;
use super::layout::*;
use iced_x86::code_asm::*;

/// Where the first and the others enter 64-bit code.
pub struct Entries {
    /// RBX: the `hvm_start_info`.
    pub first: u64,
    pub other: u64,
}

/// CR4.PAE, CR4.OSFXSR, CR4.OSXMMEXCPT.
const CR4: u32 = 0x620;
/// CR0: PG, WP, NE, MP, PE.
const CR0: u32 = 0x8001_0023;
const EFER: u32 = 0xc000_0080;
const EFER_LME: i32 = 1 << 8;

/// 32-bit entry of the processors that the trampoline brings up; the first one's is `BOOT`.
const OTHER32: u32 = BOOT + 0x400;

/// Adds both ways in.
pub fn put(image: &mut Image, entries: &Entries) -> Emit {
    image.put(BOOT, &enter_long_mode(BOOT, entries.first)?);
    image.put(OTHER32, &enter_long_mode(OTHER32, entries.other)?);
    Ok(())
}

/// Real-mode code for `TRAMPOLINE`, which a start-up IPI enters with CS = `TRAMPOLINE` / 16 and IP = 0.
pub fn trampoline() -> Vec<u8> {
    const OPERAND: u8 = 0x20;
    let mut code = vec![
        0xfa, // cli
        0x8c, 0xc8, // mov ax, cs
        0x8e, 0xd8, // mov ds, ax
        0x0f, 0x01, 0x16, OPERAND, 0, // lgdt [OPERAND]
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0c, 0x01, // or al, PE
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0x66, 0xea, // jmp CODE32:OTHER32
    ];
    code.extend(OTHER32.to_le_bytes());
    code.extend(CODE32.to_le_bytes());
    assert!(code.len() <= usize::from(OPERAND));
    code.resize(usize::from(OPERAND), 0);
    code.extend(0x1f_u16.to_le_bytes());
    code.extend(GDT.to_le_bytes());
    code
}

/// 32-bit code without paging, EBX kept.
fn enter_long_mode(at: u32, target: u64) -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.cli()?;
    // CS is flat; DS may still be the trampoline's.
    a.lgdt(ptr(GDTR).cs())?;
    a.mov(eax, u32::from(DATA))?;
    for s in [ds, es, ss, fs, gs] {
        a.mov(s, eax)?;
    }
    a.mov(eax, CR4)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PML4)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, EFER)?;
    a.rdmsr()?;
    a.or(eax, EFER_LME)?;
    a.wrmsr()?;
    a.mov(eax, CR0)?;
    a.mov(cr0, eax)?;
    // A far jump to the 64-bit segment.
    a.db(&[0xea])?;
    a.dd(&[u32::try_from(target).expect("the guest lies below 4 GiB")])?;
    a.dw(&[CODE64])?;
    a.assemble(u64::from(at))
}
