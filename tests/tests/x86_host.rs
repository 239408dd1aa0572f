//! The integer instruction set against the host processor: the same random instruction runs natively and on the reference
//! interpreter, with and without the passes; registers, memory and defined flags must agree.
#![cfg(target_arch = "x86_64")]

use arch_x86::cpuid::CpuConfigured;
use arch_x86::flags::{Cc, bit};
use arch_x86::{CpuState, Mode};
use frontend_x86::testing::{CodePage, FlatEnv, FlatMemory};
use frontend_x86::{X86, helpers};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use ir::{Block, Frontend, Interp, Outcome};
use rhea_tests::hostrun::{HostRun, Regs, interpret};
use vm_core::testing::Rng;

const PAGE: usize = 4096;
const CASES: usize = 300_000;

/// Small numbers, edges and random bits.
fn value(rng: &mut Rng) -> u64 {
    let r = rng.next_u64();
    match rng.below(6) {
        0 => r & 0xff,
        1 => (r as i8) as u64,
        2 => 1u64 << (r & 63),
        3 => (1u64 << (r & 63)).wrapping_sub(1),
        4 => (r as i32) as u64,
        _ => r,
    }
}

/// How an instruction is encoded.
#[derive(Clone, Copy)]
enum Form {
    /// No operands in a ModRM byte; immediate bytes.
    Plain(u8),
    /// ModRM with any register, `bytes` of immediate (9: of the operand size, 4 at most).
    Reg(u8),
    /// ModRM with this extension, and immediate.
    Ext(u8, u8),
    /// Register in the opcode's low bits.
    Low,
}

const OPSIZE: u8 = 9;

/// Opcode bytes and form. Those that end in an odd byte or are marked have 8-bit forms at the even opcode.
fn table() -> Vec<(Vec<u8>, Form)> {
    use Form::*;
    let mut t: Vec<(Vec<u8>, Form)> = Vec::new();
    for op in 0..8u8 {
        (0..4).for_each(|f| t.push((vec![op * 8 + f], Reg(0))));
        t.push((vec![op * 8 + 4], Plain(1)));
        t.push((vec![op * 8 + 5], Plain(OPSIZE)));
        t.extend([(vec![0x80], Ext(op, 1)), (vec![0x81], Ext(op, OPSIZE)), (vec![0x83], Ext(op, 1))]);
        for o in [0xc0, 0xc1] {
            t.push((vec![o], Ext(op, 1)));
        }
        for o in [0xd0, 0xd1, 0xd2, 0xd3] {
            t.push((vec![o], Ext(op, 0)));
        }
    }
    for o in [0xfe, 0xff] {
        t.extend([(vec![o], Ext(0, 0)), (vec![o], Ext(1, 0))]);
    }
    t.extend([(vec![0xf6], Ext(0, 1)), (vec![0xf7], Ext(0, OPSIZE))]);
    for e in 2..8 {
        t.extend([(vec![0xf6], Ext(e, 0)), (vec![0xf7], Ext(e, 0))]);
    }
    for o in [0x84u8, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x63] {
        t.push((vec![o], Reg(0)));
    }
    t.extend([(vec![0xa8], Plain(1)), (vec![0xa9], Plain(OPSIZE)), (vec![0x69], Reg(OPSIZE)), (vec![0x6b], Reg(1))]);
    t.extend([(vec![0xc6], Ext(0, 1)), (vec![0xc7], Ext(0, OPSIZE))]);
    for o in [0x98u8, 0x99, 0x9e, 0x9f, 0xf5, 0xf8, 0xf9, 0xfc, 0xfd, 0xd7, 0x90, 0x9c] {
        t.push((vec![o], Plain(0)));
    }
    for o in [0xb0u8, 0xb1, 0xc0, 0xc1, 0xa3, 0xab, 0xb3, 0xbb, 0xaf, 0xbc, 0xbd, 0xb6, 0xb7, 0xbe, 0xbf, 0xa5, 0xad] {
        t.push((vec![0x0f, o], Reg(0)));
    }
    for o in [0xa4u8, 0xac] {
        t.push((vec![0x0f, o], Reg(1)));
    }
    (4..8).for_each(|e| t.push((vec![0x0f, 0xba], Ext(e, 1))));
    (0x40..0x50u8).for_each(|o| t.push((vec![0x0f, o], Reg(0))));
    (0x90..0xa0u8).for_each(|o| t.push((vec![0x0f, o], Ext(0, 0))));
    t.push((vec![0x0f, 0xc7], Ext(1, 0)));
    t.extend([(vec![0x0f, 0xc8], Low), (vec![0x50], Low), (vec![0x58], Low)]);
    t.push((vec![0x8d], Reg(0)));
    t.extend([(vec![0x0f, 0xb8], Reg(0)), (vec![0x0f, 0x38, 0xf0], Reg(0)), (vec![0x0f, 0x38, 0xf1], Reg(0))]);
    for o in [0xa4u8, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf] {
        t.push((vec![o], Plain(0)));
    }
    // CRC32, ADCX, ADOX with their prefix in front.
    use std::is_x86_feature_detected as has;
    if has!("sse4.2") {
        t.extend([0xf0u8, 0xf1].map(|o| (vec![0xf2, 0x0f, 0x38, o], Reg(0))));
    }
    if has!("adx") {
        t.extend([0x66u8, 0xf3].map(|p| (vec![p, 0x0f, 0x38, 0xf6], Reg(0))));
    }
    if has!("bmi1") && has!("bmi2") {
        t.extend(vex_table());
    }
    t
}

/// VEX encodings of BMI1 and BMI2: prefix (0 none, 1 66, 2 F3, 3 F2) and map in the first byte, which `case` makes a VEX
/// prefix of, then the opcode.
fn vex_table() -> Vec<(Vec<u8>, Form)> {
    use Form::*;
    let vex = |pp: u8, map: u8, op: u8| vec![VEX, pp << 5 | map, op];
    let mut t: Vec<_> = (1..4u8).map(|e| (vex(0, 2, 0xf3), Ext(e, 0))).collect();
    t.extend([0, 2, 3].map(|pp| (vex(pp, 2, 0xf5), Reg(0))));
    t.extend([0, 1, 2, 3].map(|pp| (vex(pp, 2, 0xf7), Reg(0))));
    t.extend([(vex(0, 2, 0xf2), Reg(0)), (vex(3, 2, 0xf6), Reg(0)), (vex(3, 3, 0xf0), Reg(1))]);
    t
}

const VEX: u8 = 0xc4;

/// Three-byte VEX prefix and opcode of a row of `vex_table` (SDM 2 "VEX Prefix"); `reg`, `rm` are extended by it, `v` is the
/// register in vvvv.
fn vex(code: &mut Vec<u8>, op: &[u8], (reg, rm, v): (u8, u8, u8), w: bool) {
    let (pp, map) = (op[1] >> 5, op[1] & 0x1f);
    let unused = map == 3;
    let v = if unused { 0 } else { v };
    code.extend([VEX, (!reg >> 3 & 1) << 7 | 0x40 | (!rm >> 3 & 1) << 5 | map, u8::from(w) << 7 | (!v & 15) << 3 | pp, op[2]]);
}

/// Pointer registers of memory forms: RBX in the middle of the page, RSI, RDI, RSP, RBP elsewhere in it.
const POINTERS: [(usize, u64); 5] = [(3, 2048), (6, 1024), (7, 3072), (4, 512), (5, 3584)];

struct Case {
    code: Vec<u8>,
    regs: Regs,
}

fn case(rng: &mut Rng, (op, form): &(Vec<u8>, Form), scratch: u64) -> Case {
    let string = matches!(op[..], [0xa4..=0xa7 | 0xaa..=0xaf]);
    let is_vex = op[0] == VEX;
    let memory = rng.below(2) == 0 || matches!(op[..], [0x0f, 0xc7] | [0x8d] | [0x0f, 0x38, _]);
    let (small, rex_w) = (rng.below(4) == 0, rng.below(3) == 0);
    let mut code = Vec::new();
    let lockable = memory && !is_vex && matches!(form, Form::Reg(0) | Form::Ext(..)) && rng.below(4) == 0;
    if lockable {
        code.push(0xf0);
    }
    if string && rng.below(2) == 0 {
        code.push(0xf2 | (rng.next_u64() & 1) as u8);
    }
    if matches!(op[..], [0x0f, 0xbc | 0xbd]) && rng.below(2) == 0 || matches!(op[..], [0x0f, 0xb8]) {
        code.push(0xf3);
    }
    let small = small && !is_vex;
    if small {
        code.push(0x66);
    }
    // A mandatory prefix stands before REX.
    let (prefix, op) = if matches!(op[0], 0x66 | 0xf2 | 0xf3) { op.split_at(1) } else { op.split_at(0) };
    code.extend(prefix);
    // No destination may be a pointer that a memory form or RSP needs: registers 0, 1, 2 and 8..=15, and their high bytes.
    let pick = |rng: &mut Rng| if rng.below(2) == 0 { rng.below(3) } else { 8 + rng.below(8) } as u8;
    let (reg, rm) = (pick(rng), if memory { 3 } else { pick(rng) });
    let high_byte = rng.below(4) == 0 && reg < 8 && rm < 8 && !rex_w;
    let rex = 0x40 | u8::from(rex_w) << 3 | (reg >> 3) << 2 | (rm >> 3);
    if is_vex {
        let ext = matches!(form, Form::Ext(..));
        let v = pick(rng);
        vex(&mut code, op, (if ext { 0 } else { reg }, rm, v), rex_w);
    } else {
        if rex != 0x40 || !high_byte {
            code.push(rex);
        }
        code.extend(op);
    }
    let imm = match *form {
        Form::Plain(n) => n,
        Form::Reg(n) => {
            let byte_form = op.len() == 1 && op[0] & 1 == 0 && high_byte;
            let reg = if byte_form { reg & 7 | 4 } else { reg & 7 };
            let reg = if byte_form && memory && reg == 7 { 4 } else { reg };
            code.push(if memory { 0x03 } else { 0xc0 | (rm & 7) } | reg << 3);
            n
        }
        Form::Ext(e, n) => {
            code.push(if memory { 0x03 } else { 0xc0 | (rm & 7) } | e << 3);
            n
        }
        Form::Low => {
            if let Some(l) = code.last_mut() {
                *l |= rm & 7;
            }
            0
        }
    };
    let imm = if imm == OPSIZE { if small && !rex_w { 2 } else { 4 } } else { imm };
    (0..imm).for_each(|_| code.push(rng.next_u64() as u8));
    let mut regs = Regs { gpr: std::array::from_fn(|_| value(rng)), flags: 2 };
    regs.flags |= rng.next_u64() & bit::ARITH | bit::IF;
    for (r, off) in POINTERS {
        regs.gpr[r] = scratch + off;
    }
    let bit_index = matches!(op[..], [0x0f, 0xa3 | 0xab | 0xb3 | 0xbb]) && memory;
    if bit_index || matches!(op[..], [0xd7]) {
        // Signed bit index or table index that stays in the page.
        [0, 1, 2].into_iter().chain(8..16).for_each(|r| regs.gpr[r] = (rng.next_u64() as i16 as i64 >> 3) as u64);
    }
    if string {
        regs.gpr[1] = rng.below(40);
        regs.flags |= if rng.below(2) == 0 { bit::DF } else { 0 };
    }
    Case { code, regs }
}

/// Flags that an instruction leaves undefined (SDM 2, "Flags Affected" of each).
fn undefined(m: Mnemonic, count: u64) -> u64 {
    use Mnemonic::*;
    const SZAP: u64 = bit::SF | bit::ZF | bit::AF | bit::PF;
    match m {
        And | Or | Xor | Test => bit::AF,
        Shl | Sal | Shr | Sar | Shld | Shrd => bit::AF | if count == 1 { 0 } else { bit::OF },
        Rol | Ror | Rcl | Rcr => {
            if count == 1 {
                0
            } else {
                bit::OF
            }
        }
        Mul | Imul => SZAP,
        Div | Idiv => bit::ARITH,
        Bt | Bts | Btr | Btc => bit::OF | bit::SF | bit::AF | bit::PF,
        Bsf | Bsr => bit::ARITH & !bit::ZF,
        Tzcnt | Lzcnt => bit::OF | bit::SF | bit::AF | bit::PF,
        Andn | Blsi | Blsmsk | Blsr | Bzhi => bit::AF | bit::PF,
        Bextr => bit::SF | bit::AF | bit::PF,
        _ => 0,
    }
}

/// Masked count of a shift or rotate.
fn shift_count(insn: &Instruction, regs: &Regs, last: u32) -> u64 {
    let wide = insn.op0_register().size() == 8 || insn.memory_size().size() == 8;
    let raw = if insn.op_kind(last) == OpKind::Register { regs.gpr[1] } else { insn.immediate(last) };
    raw & if wide { 63 } else { 31 }
}

/// How the run on the interpreter ended.
enum End {
    Done(Regs),
    /// The instruction faults: nothing to compare.
    Faults,
}

fn run(x86: &X86, code: &[u8], insns: u32, optimize: bool, regs: &Regs, mem: &mut FlatMemory) -> End {
    let mode = 2 << Mode::CODE_SHIFT | Mode::FLAT | Mode::PE | Mode::LMA | Mode::OSFXSR | 3;
    let mut page = CodePage::new(code);
    let config = CpuConfigured { model: 0, features: [!0; 16], topology: arch_x86::Topology::SINGLE, dropped: Vec::new() };
    let mut cpu = CpuState::new(&config, 0);
    cpu.gpr = regs.gpr;
    cpu.mode = mode;
    cpu.eflags = regs.flags & !bit::ARITH | bit::ONE;
    cpu.set_cc(Cc::bits(regs.flags));
    let interp = Interp { layout: x86.layout(), helpers: x86.helpers(), mode };
    let mut at = 0;
    while at < code.len() as i64 {
        // All instructions in one block, so that the second knows what made the flags; a block that ended early goes on.
        let limit = if at == 0 { insns } else { 1 };
        let mut b = Block::default();
        x86.translate(mode, at as u32, limit, &mut page, &mut b).expect("the page can be fetched");
        ir::verify(&b, x86.layout(), x86.helpers()).expect("the block is well formed");
        if optimize {
            ir::optimize(&mut b, x86.layout(), x86.helpers());
        }
        let end = interpret(&interp, &b, &mut cpu, mem, |cpu, mem, id, [x, y, z]| {
            let mut env = FlatEnv { cpu, mem };
            helpers::table::<FlatEnv<'_>>()[usize::from(id.0)](&mut env, x, y, z)
        });
        at = match end {
            Outcome::Jump { to } | Outcome::ExitNext { to } => to,
            Outcome::Raise { .. } | Outcome::Fault { .. } => return End::Faults,
            other => panic!("{other:?}"),
        };
    }
    End::Done(Regs { gpr: cpu.gpr, flags: cpu.rflags() })
}

/// Results that the manual leaves open are not compared.
fn skip(insn: &Instruction, regs: &Regs) -> bool {
    use Mnemonic::*;
    match insn.mnemonic() {
        // A count above the operand size (SDM 2 "SHLD").
        Shld | Shrd => insn.op1_register().size() == 2 && shift_count(insn, regs, 2) > 16,
        // 16-bit BSWAP, and a scan of zero (checked by hand: the destination stays).
        Bswap => insn.op0_register().size() == 2,
        _ => false,
    }
}

fn is_shift(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd)
}

/// Sometimes a second instruction, if the first defines all flags but AF and the second's operands stay in the page
/// whatever the first computed. `mask`: flags that the first defines.
fn follower(rng: &mut Rng, table: &[(Vec<u8>, Form)], base: u64, mask: u64) -> Option<(Vec<u8>, Instruction)> {
    use Mnemonic::*;
    if rng.below(3) == 0 || mask & bit::ARITH | bit::AF != bit::ARITH {
        return None;
    }
    let row = &table[rng.below(table.len() as u64) as usize];
    if matches!(row.0[..], [0xa4..=0xa7 | 0xaa..=0xaf | 0xd7]) {
        return None;
    }
    let c = case(rng, row, base);
    let insn = Decoder::new(64, &c.code, DecoderOptions::NONE).decode();
    let far = matches!(insn.mnemonic(), Bt | Bts | Btr | Btc) && insn.op0_kind() == OpKind::Memory;
    let open = matches!(insn.mnemonic(), Lahf | Pushfq | Pushf | Shld | Shrd | Bswap);
    let whole = !insn.is_invalid() && insn.len() == c.code.len();
    (whole && !far && !open).then_some((c.code, insn))
}

fn flags_mask(insn: &Instruction, regs: &Regs) -> u64 {
    let last = insn.op_count().saturating_sub(1);
    let shifts = is_shift(insn.mnemonic());
    let count = if shifts { shift_count(insn, regs, last) } else { 0 };
    let open = if shifts && count == 0 { 0 } else { undefined(insn.mnemonic(), count) };
    (bit::ARITH | bit::DF) & !open
}

#[test]
fn integer_instructions_agree_with_the_host() {
    let mut host = HostRun::new().expect("the host maps memory");
    let x86 = X86::new([!0; 16]);
    let table = table();
    let mut rng = Rng(0x2545_f491_4f6c_dd1d);
    let base = host.scratch_addr();
    let (mut compared, mut bad) = (0u32, Vec::new());
    for round in 0..CASES {
        let c = case(&mut rng, &table[round % table.len()], base);
        let insn = Decoder::new(64, &c.code, DecoderOptions::NONE).decode();
        if insn.is_invalid() || insn.len() != c.code.len() || skip(&insn, &c.regs) {
            continue;
        }
        // The operand page, at the host's address of it.
        let mut mem = FlatMemory { base, bytes: vec![0; PAGE] };
        mem.bytes.chunks_mut(8).for_each(|b| b.copy_from_slice(&value(&mut rng).to_le_bytes()));
        host.scratch().copy_from_slice(&mem.bytes[..]);
        let first_mask = flags_mask(&insn, &c.regs);
        let (mut code, mut mask, mut text, mut insns) = (c.code.clone(), first_mask, insn.to_string(), 1);
        if let Some((second, i)) = follower(&mut rng, &table, base, first_mask) {
            code.extend(second);
            mask &= if is_shift(i.mnemonic()) { 0 } else { flags_mask(&i, &c.regs) };
            text += &format!("; {i}");
            insns = 2;
        }
        let End::Done(ours) = run(&x86, &code, insns, round / table.len() % 2 == 1, &c.regs, &mut mem) else { continue };
        let theirs = host.run(&code, &c.regs);
        let same_memory = host.scratch()[..] == mem.bytes[..];
        compared += 1;
        if ours.gpr != theirs.gpr || (ours.flags ^ theirs.flags) & mask != 0 || !same_memory {
            let at = (0..PAGE).find(|i| host.scratch()[*i] != mem.bytes[*i]);
            let regs: Vec<_> = (0..16)
                .filter(|i| ours.gpr[*i] != theirs.gpr[*i])
                .map(|i| (i, c.regs.gpr[i], ours.gpr[i], theirs.gpr[i]))
                .collect();
            bad.push((insn.mnemonic(), format!(
                "{text} {:02x?} (round {round}): flags in {:x} ours {:x} host {:x} (mask {mask:x}); (register, in, ours, host) {regs:x?}; memory differs at {at:?}",
                code, c.regs.flags, ours.flags, theirs.flags)));
        }
    }
    assert!(compared as usize > CASES / 2, "only {compared} cases ran");
    let mut kinds: Vec<_> = bad.iter().map(|(m, _)| *m).collect();
    kinds.sort_by_key(|m| *m as u32);
    kinds.dedup();
    let first: Vec<_> =
        kinds.iter().flat_map(|k| bad.iter().filter(move |(m, _)| m == k).take(2)).map(|(_, t)| t.as_str()).collect();
    assert!(bad.is_empty(), "{} of {compared} differ:\n{}", bad.len(), first.join("\n"));
}
