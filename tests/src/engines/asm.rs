//! A small x86 encoder for random programs: opcode bytes, registers and one memory form at a time.

/// Register or memory operand.
#[derive(Clone, Copy, Debug)]
pub enum Rm {
    Reg(u8),
    /// Base register, displacement.
    Mem(u8, i32),
    /// Base, index, log2 of the scale, displacement.
    Index(u8, u8, u8, i32),
    Abs(u32),
}

/// Encodes one instruction. `size`: 1, 2, 4, 8 for integer operand sizes (the opcode is not changed), 0 for none.
pub fn encode(long: bool, prefix: &[u8], size: u8, opcode: &[u8], reg: u8, rm: Rm, imm: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if size == 2 {
        out.push(0x66);
    }
    out.extend_from_slice(prefix);
    let (x, b) = match rm {
        Rm::Reg(r) | Rm::Mem(r, _) => (0, r),
        Rm::Index(b, x, ..) => (x, b),
        Rm::Abs(_) => (0, 0),
    };
    let byte_reg = size == 1 && (reg >= 4 || matches!(rm, Rm::Reg(r) if r >= 4));
    let rex = u8::from(size == 8) << 3 | (reg >> 3 & 1) << 2 | (x >> 3 & 1) << 1 | b >> 3 & 1;
    if long && (rex != 0 || byte_reg) {
        out.push(0x40 | rex);
    }
    out.extend_from_slice(opcode);
    modrm(&mut out, reg & 7, rm);
    out.extend_from_slice(imm);
    out
}

fn modrm(out: &mut Vec<u8>, reg: u8, rm: Rm) {
    let (sib, disp) = match rm {
        Rm::Reg(r) => {
            out.push(0xc0 | reg << 3 | r & 7);
            return;
        }
        Rm::Abs(a) => {
            out.extend_from_slice(&[reg << 3 | 4, 0x25]);
            out.extend_from_slice(&a.to_le_bytes());
            return;
        }
        Rm::Mem(b, d) if b & 7 == 4 => (Some(0x24), d),
        Rm::Mem(_, d) => (None, d),
        Rm::Index(b, x, s, d) => (Some(s << 6 | (x & 7) << 3 | b & 7), d),
    };
    let base = match rm {
        Rm::Mem(b, _) => b & 7,
        _ => 4,
    };
    let short = i8::try_from(disp).is_ok();
    out.push(if short { 0x40 } else { 0x80 } | reg << 3 | base);
    out.extend(sib);
    let bytes = disp.to_le_bytes();
    out.extend_from_slice(if short { &bytes[..1] } else { &bytes });
}
