//! Host instructions that loops cost, and their bytes, as golden text: a change of the emitters shows there, without a clock.
//! `INSTA_UPDATE=always` writes what is new into the file, to be looked at before it is committed.

use arch_x86::{CpuState, Mode};
use frontend_x86::X86;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::fmt::Write;
use std::sync::Arc;

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Bodies of loops. Each ends with its flags set for JNE.
const LOOPS: &[(&str, Body)] = &[
    ("sum of quadwords", |a| {
        a.add(rax, qword_ptr(rdi))?;
        a.add(rdi, 8)?;
        a.sub(ecx, 1)
    }),
    ("sum of doublewords", |a| {
        a.add(eax, dword_ptr(rdi + rcx * 4))?;
        a.sub(rcx, 1)
    }),
    ("copy of quadwords", |a| {
        a.mov(rax, qword_ptr(rsi + rcx * 8))?;
        a.mov(qword_ptr(rdi + rcx * 8), rax)?;
        a.sub(rcx, 1)
    }),
    ("copy of bytes", |a| {
        a.movzx(eax, byte_ptr(rsi))?;
        a.mov(byte_ptr(rdi), al)?;
        a.inc(rsi)?;
        a.inc(rdi)?;
        a.dec(rcx)
    }),
    ("bytes of registers", |a| {
        a.mov(al, byte_ptr(rsi))?;
        a.mov(byte_ptr(rdi), al)?;
        a.mov(al, byte_ptr(rsi + 1))?;
        a.xor(al, dl)?;
        a.mov(byte_ptr(rdi + 1), al)?;
        a.add(rsi, 2)?;
        a.add(rdi, 2)?;
        a.dec(rcx)
    }),
    ("fill", |a| {
        a.mov(qword_ptr(rdi), rax)?;
        a.add(rdi, 8)?;
        a.cmp(rdi, rdx)
    }),
    ("end of a string", |a| {
        a.inc(rdi)?;
        a.cmp(byte_ptr(rdi), 0)
    }),
    ("list", |a| {
        a.mov(rdi, qword_ptr(rdi))?;
        a.test(rdi, rdi)
    }),
    ("list with a count", |a| {
        a.inc(qword_ptr(rdi + 8))?;
        a.mov(rdi, qword_ptr(rdi))?;
        a.test(rdi, rdi)
    }),
    ("checksum by table", |a| {
        a.movzx(eax, byte_ptr(rsi))?;
        a.xor(al, dl)?;
        a.shr(edx, 8)?;
        a.xor(edx, dword_ptr(rbx + rax * 4))?;
        a.inc(rsi)?;
        a.dec(rcx)
    }),
    ("x87 sum of products", |a| {
        a.fld(qword_ptr(rsi))?;
        a.fmul(qword_ptr(rdi))?;
        a.faddp(st1, st0)?;
        a.add(rsi, 8)?;
        a.add(rdi, 8)?;
        a.dec(rcx)
    }),
    ("x87 comparison", |a| {
        a.fld(tword_ptr(rsi))?;
        a.fxch(st0, st1)?;
        a.fcomip(st0, st1)?;
        a.dec(rcx)
    }),
    ("xorshift", |a| {
        a.mov(rdx, rax)?;
        a.shl(rdx, 13)?;
        a.xor(rax, rdx)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 7)?;
        a.xor(rax, rdx)?;
        a.dec(ecx)
    }),
    ("multiply and add", |a| {
        a.imul_3(rax, rax, 0x1234_5677)?;
        a.add(rax, 99)?;
        a.dec(ecx)
    }),
    ("wide product", |a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.mul(rbx)?;
        a.add(r8, rax)?;
        a.adc(r9, rdx)?;
        a.add(rsi, 8)?;
        a.dec(ecx)
    }),
    ("division", |a| {
        a.xor(edx, edx)?;
        a.mov(rax, rbx)?;
        a.div(rcx)?;
        a.add(r8, rdx)?;
        a.dec(rcx)
    }),
    ("shift by CL", |a| {
        a.shl(rax, cl)?;
        a.xor(rdx, rax)?;
        a.dec(ecx)
    }),
    ("rotations", |a| {
        a.rol(eax, 7)?;
        a.ror(edx, 11)?;
        a.xor(eax, edx)?;
        a.dec(ecx)
    }),
    ("byte order", |a| {
        a.mov(eax, dword_ptr(rsi))?;
        a.bswap(eax)?;
        a.mov(dword_ptr(rsi), eax)?;
        a.add(rsi, 4)?;
        a.dec(ecx)
    }),
    ("counting bits", |a| {
        a.popcnt(rax, rbx)?;
        a.tzcnt(rdx, rbx)?;
        a.add(r8, rax)?;
        a.add(r8, rdx)?;
        a.dec(ecx)
    }),
    ("conditional move", |a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.cmp(rax, rbx)?;
        a.cmovg(rbx, rax)?;
        a.add(rsi, 8)?;
        a.dec(ecx)
    }),
    ("set by a condition", |a| {
        a.xor(eax, eax)?;
        a.cmp(rdx, rbx)?;
        a.setb(al)?;
        a.add(r8, rax)?;
        a.inc(rdx)?;
        a.dec(ecx)
    }),
    ("carry chain", |a| {
        a.mov(rax, qword_ptr(rsi + rcx * 8))?;
        a.adc(qword_ptr(rdi + rcx * 8), rax)?;
        a.inc(rcx)
    }),
    ("push and pop", |a| {
        a.push(rax)?;
        a.push(rdx)?;
        a.pop(rax)?;
        a.pop(rdx)?;
        a.dec(ecx)
    }),
    ("frame", |a| {
        a.mov(qword_ptr(rbp - 8), rax)?;
        a.mov(eax, dword_ptr(rbp - 16))?;
        a.add(eax, dword_ptr(rbp - 20))?;
        a.mov(dword_ptr(rbp - 24), eax)?;
        a.dec(ecx)
    }),
    ("extensions", |a| {
        a.movsx(eax, byte_ptr(rsi))?;
        a.movsxd(rdx, eax)?;
        a.movzx(ebx, dx)?;
        a.add(r8, rbx)?;
        a.dec(ecx)
    }),
    ("addresses", |a| {
        a.lea(rax, ptr(rdx + rbx * 4 + 12))?;
        a.lea(edx, ptr(rax + rax * 2))?;
        a.dec(ecx)
    }),
    ("bit tests", |a| {
        a.bt(rax, 5)?;
        a.setb(dl)?;
        a.btc(rax, 6)?;
        a.dec(ecx)
    }),
    ("floating point: dot product", |a| {
        a.movsd_2(xmm1, qword_ptr(rsi + rcx * 8))?;
        a.mulsd(xmm1, qword_ptr(rdi + rcx * 8))?;
        a.addsd(xmm0, xmm1)?;
        a.sub(rcx, 1)
    }),
    ("floating point: chain", |a| {
        a.mulsd(xmm0, xmm1)?;
        a.subsd(xmm0, xmm2)?;
        a.divsd(xmm0, xmm3)?;
        a.sqrtsd(xmm4, xmm0)?;
        a.sub(ecx, 1)
    }),
    ("floating point: conversion", |a| {
        a.cvtsi2sd(xmm0, ecx)?;
        a.addsd(xmm1, xmm0)?;
        a.cvttsd2si(rax, xmm1)?;
        a.sub(ecx, 1)
    }),
    ("floating point: comparison", |a| {
        a.addsd(xmm0, xmm1)?;
        a.comisd(xmm0, xmm2)
    }),
    ("vectors: sum", |a| {
        a.paddd(xmm0, xmmword_ptr(rsi))?;
        a.add(rsi, 16)?;
        a.sub(ecx, 1)
    }),
    ("vectors: copy", |a| {
        a.movdqu(xmm0, xmmword_ptr(rsi + rcx))?;
        a.movdqu(xmmword_ptr(rdi + rcx), xmm0)?;
        a.sub(rcx, 16)
    }),
    ("vectors: shuffles", |a| {
        a.pshufd(xmm1, xmm0, 0x1b)?;
        a.punpcklbw(xmm2, xmm1)?;
        a.shufps(xmm3, xmm2, 0x4e)?;
        a.palignr(xmm0, xmm3, 4)?;
        a.sub(ecx, 1)
    }),
    ("vectors: search for a byte", |a| {
        a.movdqu(xmm1, xmmword_ptr(rdi))?;
        a.pcmpeqb(xmm1, xmm0)?;
        a.pmovmskb(eax, xmm1)?;
        a.add(rdi, 16)?;
        a.cmp(eax, edx)
    }),
    ("vectors: 256 bits", |a| {
        a.vmovdqu(ymm0, ymmword_ptr(rsi + rcx))?;
        a.vpaddd(ymm0, ymm0, ymm1)?;
        a.vmovdqu(ymmword_ptr(rdi + rcx), ymm0)?;
        a.sub(rcx, 32)
    }),
    ("vectors: single precision", |a| {
        a.movaps(xmm0, xmmword_ptr(rsi + rcx))?;
        a.mulps(xmm0, xmm2)?;
        a.addps(xmm0, xmmword_ptr(rdi + rcx))?;
        a.movaps(xmmword_ptr(rdi + rcx), xmm0)?;
        a.sub(rcx, 16)
    }),
    ("vectors: multiply and add", |a| {
        a.vfmadd231pd(ymm0, ymm1, ymmword_ptr(rsi + rcx))?;
        a.vfnmadd213ss(xmm2, xmm3, xmm4)?;
        a.sub(rcx, 32)
    }),
    ("vectors: rounds of ciphers", |a| {
        a.aesenc(xmm0, xmm1)?;
        a.aesenclast(xmm0, xmm2)?;
        a.pclmulqdq(xmm3, xmm4, 0x11)?;
        a.sha256rnds2(xmm5, xmm6)?;
        a.sub(ecx, 1)
    }),
];

/// A loop as machine code, and its number of instructions.
fn assemble(body: Body) -> Result<(Vec<u8>, usize), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    body(&mut a)?;
    a.jne(top)?;
    let insns = a.instructions().len();
    a.ret()?;
    Ok((a.assemble(0)?, insns))
}

/// 64-bit user code with all that the CPU may have enabled.
fn mode() -> u64 {
    2 << Mode::CODE_SHIFT | Mode::FLAT | Mode::PE | Mode::LMA | Mode::OSFXSR | Mode::AVX | 3
}

#[test]
fn loops_cost_as_many_host_instructions_as_they_did() {
    let x86 = Arc::new(X86::new([!0; 16]));
    let mut table = String::new();
    let mut told = String::new();
    for (name, body) in LOOPS {
        let (code, insns) = assemble(*body).expect("it assembles");
        let host = backend::inspect::hot_path::<CpuState, _>(x86.clone(), mode(), &code).expect("a loop makes a region");
        let _ = writeln!(table, "{name:32} {insns:2} guest {:3} host {:4} bytes", host.insns.len(), host.bytes);
        let _ = writeln!(told, "{name}:\n  {}", host.insns.join("\n  "));
    }
    if std::env::var_os("RHEA_SHOW").is_some() {
        println!("{told}");
    }
    insta::assert_snapshot!(table);
}
