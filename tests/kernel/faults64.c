// Exceptions in 64-bit and compatibility mode: vector, error code, pushed RIP, CS, SS, RSP and flags of each (SDM 3A chapter 6).
#include "kernel.h"

// KIND: F a fault (RIP of the instruction, RF pushed as 1), T a trap (RIP behind it, RF as 0), N none.
enum kind { FAULT, TRAP, NONE };
// #UD where the processor is AMD's (APM 3 SYSENTER: not in long mode), else #GP.
#define BY_VENDOR 255
#define R_K 1
#define R_U 2
#define R_KU 3
#define R_C 4
#define R_H 8
// Bits of `also`.
#define A_AC 1
#define A_IOPL 2

struct row {
    const char *name, *manual, *code, *at, *end;
    void (*prepare)(void);
    u32 error;
    u8 modes, vector, kind, also;
};

static void ts(void) { set_cr0(cr0() | CR0_TS); }
static void ts_mp(void) { set_cr0(cr0() | CR0_TS | CR0_MP); }
static void ts_no_mp(void) { set_cr0((cr0() | CR0_TS) & ~CR0_MP); }
static void em(void) { set_cr0(cr0() | CR0_EM); }
static void am(void) { set_cr0(cr0() | CR0_AM); }
static void no_osfxsr(void) { set_cr4(cr4() & ~CR4_OSFXSR); }
static void no_xmm(void) { set_cr4(cr4() & ~CR4_OSXMM); }
static void tsd(void) { set_cr4(cr4() | CR4_TSD); }
static void umip(void) { set_cr4(cr4() | CR4_UMIP); }
static void de_on(void) { set_cr4(cr4() | CR4_DE); }
static void no_sce(void) { wrmsr(EFER, rdmsr(EFER) & ~(u64)EFER_SCE); }
static void closed3(void) { set_gate(BP, 0, true); }
static void absent90(void) { set_gate(0x90, 3, false); }
static void absent_ud(void) { set_gate(UD, 0, false); }
static void absent_de(void) { set_gate(DE, 0, false); }
static void absent_pf(void) { set_gate(PF, 0, false); }
static void absent_gp(void) { set_gate(GP, 0, false); }
static void absent_nm(void) { ts(), set_gate(NM, 0, false); }
static void short_idt(void) { set_idt_limit(0x90 * 16 + 14); }
static void seg(u64 d) { gdt[TEST_SEL / 8] = d; }
static void not_present_data(void) { seg(0x00cf73000000ffff); }
static void not_present_code(void) { seg(0x00af7b000000ffff); }
static void absent_code0(void) { seg(0x00af1b000000ffff); }
static void exec_only(void) { seg(0x00aff9000000ffff); }
static void data_dpl0(void) { seg(0x00cf93000000ffff); }
static void read_only(void) { seg(0x00cff1000000ffff); }
static void read_only0(void) { seg(0x00cf91000000ffff); }
static void l_and_d(void) { seg(0x00effb000000ffff); }
static void ldt_absent(void) { seg(0x0000020000000fff); }
static void busy_tss(void) { seg(0x00008b0000000fff); }
static void absent_tss(void) { seg(0x0000090000000fff); }
static void gate_bad_type(void) { seg(0x0000850000080000); }
static void gate_low_dpl(void) { seg(0x00008c0000080000); }
static void gate_absent(void) { seg(0x00006c0000080000); }
static void gate_data(void) { seg(0x0000ec0000100000); }
static void gate_32(void) { seg(0x0000ec0000180000); }
static void gate_upper(void) { seg(0x0000ec0000080000), gdt[TEST_SEL / 8 + 1] = 0x1f0000000000; }
static void gate_far_away(void) { seg(0x0000ec0000080000), gdt[TEST_SEL / 8 + 1] = 0x80000000; }

#define FILL15 ".fill 14,1,0x66\n"
#define BAD "mov $0x8000000000000000,%rbx\n"
#define FAR(sel) "movl $0,data\nmovw $" sel ",data+4\n"
// Behind the data page of 8 KiB and its alias nothing else is watched.
#define PTR "data+0x40000000"

// ROW(id, bits, modes, manual, vector, error, kind, prepare, also, before, instruction)
#define ROWS(ROW)                                                                                                                 \
    ROW(div_zero, 64, R_KU, "6.15 #DE", DE, 0, FAULT, 0, 0, "xor %edx,%edx\nxor %ecx,%ecx\nmov $5,%eax", "div %ecx")              \
    ROW(div_overflow, 64, R_KU, "6.15 #DE", DE, 0, FAULT, 0, 0, "mov $1,%edx\nmov $1,%ecx", "div %rcx")                           \
    ROW(idiv_min, 64, R_KU, "6.15 #DE", DE, 0, FAULT, 0, 0, "mov $0x80000000,%eax\ncltd\nmov $-1,%ecx", "idiv %ecx")              \
    ROW(aam_zero, 32, R_C, "6.15 #DE", DE, 0, FAULT, 0, 0, "", ".byte 0xd4,0")                                                    \
    ROW(aam_zero16, 16, R_H, "6.15 #DE", DE, 0, FAULT, 0, 0, "", ".byte 0xd4,0")                                                  \
    ROW(int3, 64, R_KU, "6.15 #BP", BP, 0, TRAP, 0, 0, "", "int3")                                                                \
    ROW(int3_32, 32, R_C, "6.15 #BP", BP, 0, TRAP, 0, 0, "", "int3")                                                              \
    ROW(int3_16, 16, R_H, "6.15 #BP", BP, 0, TRAP, 0, 0, "", "int3")                                                              \
    ROW(int_3, 64, R_KU, "6.15 #BP", BP, 0, TRAP, 0, 0, "", ".byte 0xcd,3")                                                       \
    ROW(int3_closed, 64, R_U, "6.12.1.1", GP, 3 * 8 + 2, FAULT, closed3, 0, "", "int3")                                           \
    ROW(int_open, 64, R_K, "6.12.1.1", CLOSED, 0, TRAP, 0, 0, "", "int $0x81")                                                    \
    ROW(int_closed, 64, R_U, "6.12.1.1", GP, CLOSED * 8 + 2, FAULT, 0, 0, "", "int $0x81")                                        \
    ROW(int_df, 64, R_U, "6.12.1.1", GP, 8 * 8 + 2, FAULT, 0, 0, "", "int $8")                                                    \
    ROW(int_absent, 64, R_KU, "6.15 #NP", NP, 0x90 * 8 + 2, FAULT, absent90, 0, "", "int $0x90")                                  \
    ROW(int_beyond, 64, R_KU, "6.10", GP, 0x90 * 8 + 2, FAULT, short_idt, 0, "", "int $0x90")                                     \
    ROW(int1, 64, R_KU, "6.15 #DB", DB, 0, TRAP, 0, 0, "", ".byte 0xf1")                                                          \
    ROW(into, 32, R_C, "6.15 #OF", OF, 0, TRAP, 0, 0, "mov $0x7f,%al\nadd $1,%al", "into")                                        \
    ROW(into_not, 32, R_C, "6.15 #OF", DONE, 0, NONE, 0, 0, "xor %eax,%eax", "into")                                              \
    ROW(into_64, 64, R_KU, "2A opcode map", UD, 0, FAULT, 0, 0, "", ".byte 0xce")                                                 \
    ROW(bound, 32, R_C, "6.15 #BR", BR, 0, FAULT, 0, 0, "movl $1," PTR "\nmovl $5,4+" PTR "\nmov $6,%eax", "bound %eax," PTR)     \
    ROW(bound_ok, 32, R_C, "6.15 #BR", DONE, 0, NONE, 0, 0, "movl $1," PTR "\nmovl $5,4+" PTR "\nmov $5,%eax", "bound %eax," PTR) \
    ROW(ud2, 64, R_KU, "6.15 #UD", UD, 0, FAULT, 0, 0, "", "ud2")                                                                 \
    ROW(ud1, 64, R_KU, "6.15 #UD", UD, 0, FAULT, 0, 0, "", ".byte 0x0f,0xb9,0xc0")                                                \
    ROW(ud0, 64, R_KU, "6.15 #UD", UD, 0, FAULT, 0, 0, "", ".byte 0x0f,0xff,0xc0")                                                \
    ROW(ud2_32, 32, R_C, "6.15 #UD", UD, 0, FAULT, 0, 0, "", "ud2")                                                               \
    ROW(push_es, 64, R_KU, "2A opcode map", UD, 0, FAULT, 0, 0, "", ".byte 6")                                                    \
    ROW(daa, 64, R_KU, "2A DAA", UD, 0, FAULT, 0, 0, "", ".byte 0x27")                                                            \
    ROW(pusha, 64, R_KU, "2B PUSHA", UD, 0, FAULT, 0, 0, "", ".byte 0x60")                                                        \
    ROW(call_far_imm, 64, R_KU, "2A CALL", UD, 0, FAULT, 0, 0, "", ".byte 0x9a,0,0,0,0,8,0")                                      \
    ROW(salc, 64, R_KU, "2A opcode map", UD, 0, FAULT, 0, 0, "", ".byte 0xd6")                                                    \
    ROW(mov_cs, 64, R_KU, "2B MOV", UD, 0, FAULT, 0, 0, "mov $8,%eax", ".byte 0x8e,0xc8")                                         \
    ROW(mov_cr1, 64, R_KU, "2B MOV", UD, 0, FAULT, 0, 0, "", ".byte 0x0f,0x20,0xc8")                                              \
    ROW(mov_to_cr5, 64, R_KU, "2B MOV", UD, 0, FAULT, 0, 0, "", ".byte 0x0f,0x22,0xe8")                                           \
    ROW(rsm, 64, R_KU, "2B RSM", UD, 0, FAULT, 0, 0, "", "rsm")                                                                   \
    ROW(vmcall, 64, R_KU, "3C VMCALL", UD, 0, FAULT, 0, 0, "", "vmcall")                                                          \
    ROW(lock_nop, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0,0x90")                                                 \
    ROW(lock_mov, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\nmov %eax," PTR)                                       \
    ROW(lock_reg, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\nadd %eax,%ebx")                                       \
    ROW(lock_load, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\nadd " PTR ",%eax")                                   \
    ROW(lock_cmp, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\ncmp %eax," PTR)                                       \
    ROW(lock_cmpi, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\ncmpl $1," PTR)                                       \
    ROW(lock_test, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\ntestl $1," PTR)                                      \
    ROW(lock_bt, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\nbtl $1," PTR)                                          \
    ROW(lock_shl, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\nshll " PTR)                                           \
    ROW(lock_push, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\npush %rax")                                          \
    ROW(lock_stos, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\nstosb")                                              \
    ROW(lock_xchg_reg, 64, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0\nxchg %eax,%ecx")                                 \
    ROW(lock_bts, 64, R_KU, "2A LOCK", DONE, 0, NONE, 0, 0, "", "lock btsl $1," PTR)                                              \
    ROW(lock_neg, 64, R_KU, "2A LOCK", DONE, 0, NONE, 0, 0, "", "lock negl " PTR)                                                 \
    ROW(lock_xadd, 64, R_KU, "2A LOCK", DONE, 0, NONE, 0, 0, "", "lock xaddl %eax," PTR)                                          \
    ROW(lock_vex, 64, R_KU, "2A 2.3.2", UD, 0, FAULT, 0, 0, "", ".byte 0xf0,0xc4,0xe2,0x70,0xf2,0xc1")                            \
    ROW(rex_vex, 64, R_KU, "2A 2.3.4", UD, 0, FAULT, 0, 0, "", ".byte 0x48,0xc4,0xe2,0x70,0xf2,0xc1")                             \
    ROW(p66_vex, 64, R_KU, "2A 2.3.3", UD, 0, FAULT, 0, 0, "", ".byte 0x66,0xc4,0xe2,0x70,0xf2,0xc1")                             \
    ROW(insn_15, 64, R_KU, "2A 2.3.11", DONE, 0, NONE, 0, 0, "", FILL15 "nop")                                                    \
    ROW(insn_16, 64, R_KU, "2A 2.3.11", GP, 0, FAULT, 0, 0, "", FILL15 ".byte 0x66\nnop")                                         \
    ROW(insn_17_add, 64, R_KU, "2A 2.3.11", GP, 0, FAULT, 0, 0, "", ".fill 11,1,0x2e\naddl $0x12345678,data(%rip)")               \
    ROW(x87_ts, 64, R_KU, "6.15 #NM", NM, 0, FAULT, ts, 0, "", "fninit")                                                          \
    ROW(mmx_ts, 64, R_KU, "6.15 #NM", NM, 0, FAULT, ts, 0, "", "emms")                                                            \
    ROW(sse_ts, 64, R_KU, "6.15 #NM", NM, 0, FAULT, ts, 0, "", "movaps %xmm0,%xmm1")                                              \
    ROW(fxsave_ts, 64, R_KU, "6.15 #NM", NM, 0, FAULT, ts, 0, "", "fxsave " PTR)                                                  \
    ROW(wait_ts_mp, 64, R_KU, "6.15 #NM", NM, 0, FAULT, ts_mp, 0, "", "fwait")                                                    \
    ROW(wait_ts, 64, R_KU, "6.15 #NM", DONE, 0, NONE, ts_no_mp, 0, "", "fwait")                                                   \
    ROW(x87_em, 64, R_KU, "6.15 #NM", NM, 0, FAULT, em, 0, "", "fninit")                                                          \
    ROW(sse_em, 64, R_KU, "6.15 #UD", UD, 0, FAULT, em, 0, "", "movaps %xmm0,%xmm1")                                              \
    ROW(mmx_em, 64, R_KU, "6.15 #UD", UD, 0, FAULT, em, 0, "", "emms")                                                            \
    ROW(sse_no_fxsr, 64, R_KU, "6.15 #UD", UD, 0, FAULT, no_osfxsr, 0, "", "movaps %xmm0,%xmm1")                                  \
    ROW(crc32_no_fxsr, 64, R_KU, "2A CRC32", DONE, 0, NONE, no_osfxsr, 0, "", "crc32b %al,%ecx")                                  \
    ROW(avx_off, 64, R_KU, "1 14.5", UD, 0, FAULT, 0, 0, "", "vaddps %xmm0,%xmm0,%xmm0")                                          \
    ROW(xgetbv_off, 64, R_KU, "2D XGETBV", UD, 0, FAULT, 0, 0, "xor %ecx,%ecx", "xgetbv")                                         \
    ROW(xm, 64, R_KU, "6.15 #XM", XM, 0, FAULT, 0, 0, "movl $0x1f00," PTR "\nldmxcsr " PTR "\nxorps %xmm0,%xmm0", "divps %xmm0,%xmm0") \
    ROW(xm_ud, 64, R_KU, "6.15 #XM", UD, 0, FAULT, no_xmm, 0, "movl $0x1f00," PTR "\nldmxcsr " PTR "\nxorps %xmm0,%xmm0", "divps %xmm0,%xmm0") \
    ROW(xm_off, 64, R_KU, "6.15 #XM", DONE, 0, NONE, 0, 0, "movl $0x1f80," PTR "\nldmxcsr " PTR "\nxorps %xmm0,%xmm0", "divps %xmm0,%xmm0") \
    ROW(mxcsr_reserved, 64, R_KU, "2B LDMXCSR", GP, 0, FAULT, 0, 0, "movl $0x11f80," PTR, "ldmxcsr " PTR)                         \
    ROW(mf, 64, R_KU, "6.15 #MF", MF, 0, FAULT, 0, 0, "fninit\nmovw $0x37b," PTR "\nfldcw " PTR "\nfld1\nfldz\nfdivrp", "fwait")  \
    ROW(mf_next, 64, R_KU, "6.15 #MF", MF, 0, FAULT, 0, 0, "fninit\nmovw $0x37b," PTR "\nfldcw " PTR "\nfld1\nfldz\nfdivrp", "fld1") \
    ROW(mf_mmx, 64, R_KU, "6.15 #MF", MF, 0, FAULT, 0, 0, "fninit\nmovw $0x37b," PTR "\nfldcw " PTR "\nfld1\nfldz\nfdivrp", "movd %eax,%mm0") \
    ROW(mf_none, 64, R_KU, "1 8.6", DONE, 0, NONE, 0, 0, "fninit\nmovw $0x37b," PTR "\nfldcw " PTR "\nfld1\nfldz\nfdivrp", "fnclex") \
    ROW(hlt, 64, R_U, "6.15 #GP", GP, 0, FAULT, 0, 0, "", "hlt")                                                                  \
    ROW(cli, 64, R_U, "2A CLI", GP, 0, FAULT, 0, 0, "", "cli")                                                                    \
    ROW(sti, 64, R_U, "2B STI", GP, 0, FAULT, 0, 0, "", "sti")                                                                    \
    ROW(cli_iopl, 64, R_U, "2A CLI", DONE, 0, NONE, 0, A_IOPL, "", "cli")                                                         \
    ROW(in, 64, R_U, "1 19.5", GP, 0, FAULT, 0, 0, "", "inb $0x80")                                                               \
    ROW(out, 64, R_U, "1 19.5", GP, 0, FAULT, 0, 0, "mov $0x80,%edx", "outl %eax,%dx")                                            \
    ROW(out_iopl, 64, R_U, "1 19.5", DONE, 0, NONE, 0, A_IOPL, "mov $0x80,%edx", "outb %al,%dx")                                  \
    ROW(ins, 64, R_U, "1 19.5", GP, 0, FAULT, 0, 0, "mov $0x80,%edx\nmov $" PTR ",%edi", "insb")                                  \
    ROW(clts, 64, R_U, "2A CLTS", GP, 0, FAULT, 0, 0, "", "clts")                                                                 \
    ROW(invd, 64, R_U, "2A INVD", GP, 0, FAULT, 0, 0, "", "invd")                                                                 \
    ROW(wbinvd, 64, R_U, "2D WBINVD", GP, 0, FAULT, 0, 0, "", "wbinvd")                                                           \
    ROW(invlpg, 64, R_U, "2A INVLPG", GP, 0, FAULT, 0, 0, "", "invlpg (%rax)")                                                    \
    ROW(invlpg_bad, 64, R_K, "2A INVLPG", DONE, 0, NONE, 0, 0, BAD, "invlpg (%rbx)")                                              \
    ROW(lgdt, 64, R_U, "2A LGDT", GP, 0, FAULT, 0, 0, "", "lgdt " PTR)                                                            \
    ROW(lgdt_bad, 64, R_K, "2A LGDT", GP, 0, FAULT, 0, 0, BAD "mov %rbx,data+2", "lgdt data")                                     \
    ROW(lidt, 64, R_U, "2A LIDT", GP, 0, FAULT, 0, 0, "", "lidt " PTR)                                                            \
    ROW(lldt, 64, R_U, "2A LLDT", GP, 0, FAULT, 0, 0, "xor %eax,%eax", "lldt %ax")                                                \
    ROW(ltr, 64, R_U, "2A LTR", GP, 0, FAULT, 0, 0, "xor %eax,%eax", "ltr %ax")                                                   \
    ROW(lmsw, 64, R_U, "2A LMSW", GP, 0, FAULT, 0, 0, "", "lmsw %ax")                                                             \
    ROW(swapgs, 64, R_U, "2B SWAPGS", GP, 0, FAULT, 0, 0, "", "swapgs")                                                           \
    ROW(swapgs_32, 32, R_C, "2B SWAPGS", UD, 0, FAULT, 0, 0, "", ".byte 0x0f,0x01,0xf8")                                          \
    ROW(mov_cr0_user, 64, R_U, "2B MOV", GP, 0, FAULT, 0, 0, "", "mov %cr0,%rax")                                                 \
    ROW(mov_dr_user, 64, R_U, "2B MOV", GP, 0, FAULT, 0, 0, "", "mov %dr7,%rax")                                                  \
    ROW(mov_dr4_de, 64, R_K, "2B MOV", UD, 0, FAULT, de_on, 0, "", "mov %dr4,%rax")                                               \
    ROW(mov_dr4, 64, R_K, "2B MOV", DONE, 0, NONE, 0, 0, "", "mov %dr4,%rax")                                                     \
    ROW(mov_dr7_high, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, BAD, "mov %rbx,%dr7")                                                \
    ROW(rdmsr_user, 64, R_U, "2B RDMSR", GP, 0, FAULT, 0, 0, "mov $0x10,%ecx", "rdmsr")                                           \
    ROW(wrmsr_user, 64, R_U, "2D WRMSR", GP, 0, FAULT, 0, 0, "mov $0x10,%ecx", "wrmsr")                                           \
    ROW(rdmsr_none, 64, R_K, "2B RDMSR", GP, 0, FAULT, 0, 0, "mov $0x12345678,%ecx", "rdmsr")                                     \
    ROW(rdpmc_user, 64, R_U, "2B RDPMC", GP, 0, FAULT, 0, 0, "xor %ecx,%ecx", "rdpmc")                                            \
    ROW(rdtsc_tsd, 64, R_U, "2B RDTSC", GP, 0, FAULT, tsd, 0, "", "rdtsc")                                                        \
    ROW(rdtscp_tsd, 64, R_U, "2B RDTSCP", GP, 0, FAULT, tsd, 0, "", "rdtscp")                                                     \
    ROW(rdtsc_tsd0, 64, R_K, "2B RDTSC", DONE, 0, NONE, tsd, 0, "", "rdtsc")                                                      \
    ROW(sgdt_umip, 64, R_U, "3A 2.5", GP, 0, FAULT, umip, 0, "", "sgdt " PTR)                                                     \
    ROW(sidt_umip, 64, R_U, "3A 2.5", GP, 0, FAULT, umip, 0, "", "sidt " PTR)                                                     \
    ROW(sldt_umip, 64, R_U, "3A 2.5", GP, 0, FAULT, umip, 0, "", "sldt %ax")                                                      \
    ROW(str_umip, 64, R_U, "3A 2.5", GP, 0, FAULT, umip, 0, "", "str %ax")                                                        \
    ROW(smsw_umip, 64, R_U, "3A 2.5", GP, 0, FAULT, umip, 0, "", "smsw %ax")                                                      \
    ROW(smsw_umip0, 64, R_K, "3A 2.5", DONE, 0, NONE, umip, 0, "", "smsw %ax")                                                    \
    ROW(smsw, 64, R_KU, "2B SMSW", DONE, 0, NONE, 0, 0, "", "smsw %ax")                                                           \
    ROW(rdfsbase_off, 64, R_KU, "2B RDFSBASE", UD, 0, FAULT, 0, 0, "", "rdfsbase %rax")                                           \
    ROW(rdpkru_off, 64, R_KU, "2B RDPKRU", UD, 0, FAULT, 0, 0, "xor %ecx,%ecx", "rdpkru")                                         \
    ROW(clac_user, 64, R_U, "2A CLAC", UD, 0, FAULT, 0, 0, "", "clac")                                                            \
    ROW(stac, 64, R_K, "2B STAC", DONE, 0, NONE, 0, 0, "", "stac")                                                                \
    ROW(cr0_pg_no_pe, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov $0x80000010,%eax", "mov %rax,%cr0")                             \
    ROW(cr0_nw_no_cd, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr0,%rax\nor $0x20000000,%rax", "mov %rax,%cr0")               \
    ROW(cr0_high, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr0,%rax\nbts $32,%rax", "mov %rax,%cr0")                          \
    ROW(cr0_no_pg, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr0,%rax\nbtr $31,%rax", "mov %rax,%cr0")                         \
    ROW(cr3_reserved, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr3,%rax\nbts $52,%rax", "mov %rax,%cr3")                      \
    ROW(cr4_no_pae, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr4,%rax\nbtr $5,%rax", "mov %rax,%cr4")                         \
    ROW(cr4_reserved, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr4,%rax\nbts $31,%rax", "mov %rax,%cr4")                      \
    ROW(cr4_la57, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr4,%rax\nbtc $12,%rax", "mov %rax,%cr4")                          \
    ROW(cr8_high, 64, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov $16,%eax", "mov %rax,%cr8")                                         \
    ROW(efer_reserved, 64, R_K, "4 IA32_EFER", GP, 0, FAULT, 0, 0, "mov $0xc0000080,%ecx\nrdmsr\nbts $31,%eax", "wrmsr")          \
    ROW(efer_lme, 64, R_K, "3A 9.8.5", GP, 0, FAULT, 0, 0, "mov $0xc0000080,%ecx\nrdmsr\nbtc $8,%eax", "wrmsr")                   \
    ROW(load_bad, 64, R_KU, "1 3.3.7.1", GP, 0, FAULT, 0, 0, BAD, "mov (%rbx),%eax")                                              \
    ROW(store_bad, 64, R_KU, "1 3.3.7.1", GP, 0, FAULT, 0, 0, BAD, "mov %eax,(%rbx)")                                             \
    ROW(load_bad_fs, 64, R_KU, "6.15 #GP", GP, 0, FAULT, 0, 0, BAD "mov %rbx,%rbp", "mov %fs:(%rbp),%eax")                        \
    ROW(rep_bad, 64, R_KU, "1 3.3.7.1", GP, 0, FAULT, 0, 0, BAD "mov %rbx,%rdi\nmov $1,%ecx", "rep stosb")                        \
    ROW(rep_none, 64, R_KU, "2B REP", DONE, 0, NONE, 0, 0, BAD "mov %rbx,%rdi\nxor %ecx,%ecx", "rep stosb")                       \
    ROW(load_bad_stack, 64, R_KU, "6.15 #SS", SS, 0, FAULT, 0, 0, BAD "mov %rbx,%rbp", "mov (%rbp),%eax")                         \
    ROW(load_bad_r13, 64, R_KU, "6.15 #GP", GP, 0, FAULT, 0, 0, BAD "mov %rbx,%r13", "mov (%r13),%eax")                           \
    ROW(sse_bad_stack, 64, R_KU, "6.15 #SS", SS, 0, FAULT, 0, 0, BAD "mov %rbx,%rbp", "movups (%rbp),%xmm0")                      \
    ROW(jmp_bad, 64, R_KU, "2A JMP", GP, 0, FAULT, 0, 0, BAD, "jmp *%rbx")                                                        \
    ROW(jmp_bad_mem, 64, R_KU, "2A JMP", GP, 0, FAULT, 0, 0, BAD "mov %rbx," PTR, "jmp *" PTR)                                    \
    ROW(call_bad, 64, R_KU, "2A CALL", GP, 0, FAULT, 0, 0, BAD, "call *%rbx")                                                     \
    ROW(ret_bad, 64, R_KU, "2B RET", GP, 0, FAULT, 0, 0, BAD "push %rbx", "ret")                                                  \
    ROW(push_bad, 64, R_U, "6.15 #SS", SS, 0, FAULT + 8, 0, 0, BAD "mov %rbx,%rsp", "push %rax")                                  \
    ROW(pop_bad, 64, R_U, "6.15 #SS", SS, 0, FAULT + 8, 0, 0, BAD "mov %rbx,%rsp", "pop %rax")                                    \
    ROW(leave_bad, 64, R_U, "6.15 #SS", SS, 0, FAULT, 0, 0, BAD "mov %rbx,%rbp", "leave")                                         \
    ROW(push_bad_mem, 64, R_KU, "6.15 #GP", GP, 0, FAULT, 0, 0, BAD, "pushq (%rbx)")                                              \
    ROW(push_bad_df, 64, R_K, "6.15 #DF", DF, 0, FAULT + 8, 0, 0, BAD "mov %rbx,%rsp", "push %rax")                               \
    ROW(movaps_odd, 64, R_KU, "2B MOVAPS", GP, 0, FAULT, 0, 0, "mov $1+" PTR ",%ebx", "movaps (%rbx),%xmm0")                      \
    ROW(fxsave_odd, 64, R_KU, "2A FXSAVE", GP, 0, FAULT, 0, 0, "mov $8+" PTR ",%ebx", "fxsave (%rbx)")                            \
    ROW(cx16_odd, 64, R_KU, "2A CMPXCHG16B", GP, 0, FAULT, 0, 0, "mov $8+" PTR ",%edi", "cmpxchg16b (%rdi)")                      \
    ROW(ac, 64, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $1+" PTR ",%ebx", "mov (%rbx),%eax")                                \
    ROW(ac_word, 64, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $1+" PTR ",%ebx", "mov %ax,(%rbx)")                            \
    ROW(ac_quad, 64, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $4+" PTR ",%ebx", "mov %rax,(%rbx)")                           \
    ROW(ac_movups, 64, R_U, "6.15 #AC", DONE, 0, NONE, am, A_AC, "mov $4+" PTR ",%ebx", "movb (%rbx),%al")                        \
    ROW(ac_fld80, 64, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $4+" PTR ",%ebx", "fldt (%rbx)")                              \
    ROW(ac_off, 64, R_U, "6.15 #AC", DONE, 0, NONE, am, 0, "mov $1+" PTR ",%ebx", "mov (%rbx),%eax")                              \
    ROW(ac_kernel, 64, R_K, "6.15 #AC", DONE, 0, NONE, am, A_AC, "mov $1+" PTR ",%ebx", "mov (%rbx),%eax")                        \
    ROW(ac_enter, 64, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "sub $4,%rsp", "enter $0,$0")                                      \
    ROW(ac_maskmov, 64, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $4+" PTR ",%edi", "maskmovdqu %xmm1,%xmm0")                  \
    ROW(ac_maskmov_8, 64, R_U, "6.15 #AC", DONE, 0, NONE, am, A_AC, "mov $8+" PTR ",%edi", "maskmovdqu %xmm1,%xmm0")              \
    ROW(ac_bad, 64, R_U, "6.15 #GP", GP, 0, FAULT, am, A_AC, "mov $0x8000000000000001,%rbx", "mov (%rbx),%eax")                   \
    ROW(ac_bad_ss, 64, R_U, "6.15 #SS", SS, 0, FAULT, am, A_AC, "mov $0x8000000000000001,%rbp", "mov (%rbp),%eax")                \
    ROW(edge, 64, R_U, "6.15 #GP", GP, 0, FAULT, 0, 0, "mov $0x7ffffffffffe,%rbx", "mov (%rbx),%eax")                             \
    ROW(edge_ss, 64, R_U, "6.15 #SS", SS, 0, FAULT, 0, 0, "mov $0x7ffffffffffe,%rbp", "mov %eax,(%rbp)")                          \
    ROW(edge_high, 64, R_U, "6.15 #GP", GP, 0, FAULT, 0, 0, "mov $0xffff7ffffffffffe,%rbx", "mov (%rbx),%eax")                    \
    ROW(edge_vector, 64, R_U, "6.15 #GP", GP, 0, FAULT, 0, 0, "mov $0x7ffffffffff8,%rbx", "movups (%rbx),%xmm0")                  \
    ROW(ac_push, 64, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "sub $1,%rsp", "push %rax")                                         \
    ROW(ac_32, 32, R_C, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $1+" PTR ",%ebx", "mov (%ebx),%eax")                             \
    ROW(ds_beyond, 64, R_KU, "2B MOV", GP, 0x1000, FAULT, 0, 0, "mov $0x1003,%eax", "mov %eax,%ds")                               \
    ROW(ds_null, 64, R_KU, "2B MOV", DONE, 0, NONE, 0, 0, "mov $3,%eax", "mov %eax,%ds")                                          \
    ROW(ds_absent, 64, R_KU, "6.15 #NP", NP, TEST_SEL, FAULT, not_present_data, 0, "mov $0x63,%eax", "mov %eax,%ds")              \
    ROW(ds_exec, 64, R_KU, "2B MOV", GP, TEST_SEL, FAULT, exec_only, 0, "mov $0x63,%eax", "mov %eax,%ds")                         \
    ROW(ds_dpl, 64, R_U, "2B MOV", GP, TEST_SEL, FAULT, data_dpl0, 0, "mov $0x60,%eax", "mov %eax,%ds")                           \
    ROW(ds_rpl, 64, R_K, "2B MOV", GP, TEST_SEL, FAULT, data_dpl0, 0, "mov $0x63,%eax", "mov %eax,%ds")                           \
    ROW(ds_tss, 64, R_KU, "2B MOV", GP, TSS_SEL, FAULT, 0, 0, "mov $0x43,%eax", "mov %eax,%ds")                                   \
    ROW(ds_ldt, 64, R_KU, "2B MOV", GP, 4, FAULT, 0, 0, "mov $7,%eax", "mov %eax,%ds")                                            \
    ROW(ss_null_user, 64, R_U, "2B MOV", GP, 0, FAULT, 0, 0, "mov $3,%eax", "mov %eax,%ss")                                       \
    ROW(ss_null_kernel, 64, R_K, "2B MOV", DONE, 0, NONE, 0, 0, "mov $0,%eax", "mov %eax,%ss")                                    \
    ROW(ss_rpl, 64, R_K, "2B MOV", GP, 0x28, FAULT, 0, 0, "mov $0x2b,%eax", "mov %eax,%ss")                                       \
    ROW(ss_rpl_user, 64, R_U, "2B MOV", GP, 0x28, FAULT, 0, 0, "mov $0x28,%eax", "mov %eax,%ss")                                  \
    ROW(ss_read_only, 64, R_U, "2B MOV", GP, TEST_SEL, FAULT, read_only, 0, "mov $0x63,%eax", "mov %eax,%ss")                     \
    ROW(ss_absent, 64, R_U, "6.15 #SS", SS, TEST_SEL, FAULT, not_present_data, 0, "mov $0x63,%eax", "mov %eax,%ss")               \
    ROW(ss_ro_kernel, 64, R_K, "2B MOV", GP, TEST_SEL, FAULT, read_only0, 0, "mov $0x60,%eax", "mov %eax,%ss")                    \
    ROW(jmpf_null, 64, R_KU, "2A JMP", GP, 0, FAULT, 0, 0, "movl $0," PTR "\nmovw $0,4+" PTR, "ljmp *" PTR)                       \
    ROW(jmpf_data, 64, R_U, "2A JMP", GP, 0x28, FAULT, 0, 0, "movl $0," PTR "\nmovw $0x2b,4+" PTR, "ljmp *" PTR)                  \
    ROW(jmpf_absent, 64, R_U, "6.15 #NP", NP, TEST_SEL, FAULT, not_present_code, 0, "movl $0," PTR "\nmovw $0x63,4+" PTR, "ljmp *" PTR) \
    ROW(jmpf_dpl, 64, R_U, "2A JMP", GP, 8, FAULT, 0, 0, "movl $0," PTR "\nmovw $8,4+" PTR, "ljmp *" PTR)                         \
    ROW(jmpf_l_and_d, 64, R_U, "2A JMP", GP, TEST_SEL, FAULT, l_and_d, 0, "movl $0," PTR "\nmovw $0x63,4+" PTR, "ljmp *" PTR)     \
    ROW(jmpf_tss, 64, R_K, "2A JMP", GP, TSS_SEL, FAULT, 0, 0, "movl $0," PTR "\nmovw $0x40,4+" PTR, "ljmp *" PTR)                \
    ROW(callf_bad_gate, 64, R_K, "2A CALL", GP, TEST_SEL, FAULT, gate_bad_type, 0, "movl $0," PTR "\nmovw $0x60,4+" PTR, "lcall *" PTR) \
    ROW(callf_dpl, 64, R_U, "2A CALL", GP, TEST_SEL, FAULT, gate_low_dpl, 0, "movl $0," PTR "\nmovw $0x60,4+" PTR, "lcall *" PTR) \
    ROW(callf_absent, 64, R_U, "6.15 #NP", NP, TEST_SEL, FAULT, gate_absent, 0, "movl $0," PTR "\nmovw $0x60,4+" PTR, "lcall *" PTR) \
    ROW(callf_to_data, 64, R_U, "2A CALL", GP, 0x10, FAULT, gate_data, 0, "movl $0," PTR "\nmovw $0x60,4+" PTR, "lcall *" PTR)    \
    ROW(callf_to_32, 64, R_U, "2A CALL", GP, 0x18, FAULT, gate_32, 0, "movl $0," PTR "\nmovw $0x60,4+" PTR, "lcall *" PTR)        \
    ROW(callf_upper, 64, R_U, "3A 5.8.3.1", GP, TEST_SEL, FAULT, gate_upper, 0, "movl $0," PTR "\nmovw $0x60,4+" PTR, "lcall *" PTR) \
    ROW(callf_target, 64, R_U, "2A CALL", GP, 0, FAULT, gate_far_away, 0, "movl $0," PTR "\nmovw $0x60,4+" PTR, "lcall *" PTR)    \
    ROW(lldt_type, 64, R_K, "2A LLDT", GP, 8, FAULT, 0, 0, "mov $8,%eax", "lldt %ax")                                             \
    ROW(lldt_absent, 64, R_K, "6.15 #NP", NP, TEST_SEL, FAULT, ldt_absent, 0, "mov $0x60,%eax", "lldt %ax")                       \
    ROW(lldt_null, 64, R_K, "2A LLDT", DONE, 0, NONE, 0, 0, "mov $0,%eax", "lldt %ax")                                            \
    ROW(ltr_null, 64, R_K, "2A LTR", GP, 0, FAULT, 0, 0, "mov $0,%eax", "ltr %ax")                                                \
    ROW(ltr_busy, 64, R_K, "2A LTR", GP, TEST_SEL, FAULT, busy_tss, 0, "mov $0x60,%eax", "ltr %ax")                               \
    ROW(ltr_absent, 64, R_K, "6.15 #NP", NP, TEST_SEL, FAULT, absent_tss, 0, "mov $0x60,%eax", "ltr %ax")                         \
    ROW(iret_cs_null, 64, R_U, "2A IRET", GP, 0, FAULT, 0, 0, "push $0x2b\npush %rsp\npushf\npush $0\npush $0", "iretq")          \
    ROW(iret_inner, 64, R_U, "2A IRET", GP, 8, FAULT, 0, 0, "push $0x2b\npush %rsp\npushf\npush $8\npush $0", "iretq")            \
    ROW(iret_ss_null, 64, R_U, "2A IRET", GP, 0, FAULT, 0, 0, "push $0\npush %rsp\npushf\npush $0x33\npush $0", "iretq")          \
    ROW(iret_ss_rpl, 64, R_K, "2A IRET", GP, 0x10, FAULT, 0, 0, "push $0x10\npush %rsp\npushf\npush $0x33\npush $0", "iretq")     \
    ROW(iret_absent, 64, R_K, "6.15 #NP", NP, TEST_SEL, FAULT, absent_code0, 0, "push $0x10\npush %rsp\npushf\npush $0x60\npush $0", "iretq") \
    ROW(iret_bad, 64, R_K, "2A IRET", GP, 0, FAULT, 0, 0, BAD "push $0x10\npush %rsp\npushf\npush $0x8\npush %rbx", "iretq")      \
    ROW(iret_nt, 64, R_K, "2A IRET", GP, 0, FAULT, 0, 0, "push $0x4002\npopf", "iretq")                                           \
    ROW(retf_cs_null, 64, R_KU, "2B RET", GP, 0, FAULT, 0, 0, "push $0\npush $0", "lretq")                                        \
    ROW(retf_inner, 64, R_U, "2B RET", GP, 8, FAULT, 0, 0, "push $8\npush $0", "lretq")                                           \
    ROW(syscall_off, 64, R_KU, "2B SYSCALL", UD, 0, FAULT, no_sce, 0, "", "syscall")                                              \
    ROW(sysret_user, 64, R_U, "2B SYSRET", GP, 0, FAULT, 0, 0, "", "sysretq")                                                     \
    ROW(sysenter_null, 64, R_KU, "2B SYSENTER", BY_VENDOR, 0, FAULT, 0, 0, "", "sysenter")                                               \
    ROW(sysexit_user, 64, R_U, "2B SYSEXIT", BY_VENDOR, 0, FAULT, 0, 0, "", "sysexitl")                                                   \
    ROW(fault_no_gate, 64, R_KU, "6.15 #NP", NP, 6 * 8 + 3, FAULT, absent_ud, 0, "", "ud2")                                       \
    ROW(nm_no_gate, 64, R_KU, "6.15 #NP", NP, 7 * 8 + 3, FAULT, absent_nm, 0, "", "fninit")                                       \
    ROW(df_de, 64, R_KU, "6.15 #DF", DF, 0, FAULT + 16, absent_de, 0, "xor %edx,%edx\nxor %ecx,%ecx", "div %ecx")                 \
    ROW(df_gp, 64, R_KU, "6.15 #DF", DF, 0, FAULT + 16, absent_gp, 0, BAD, "mov (%rbx),%eax")                                     \
    ROW(df_pf, 64, R_KU, "6.15 #DF", DF, 0, FAULT + 16, absent_pf, 0, "mov $0x90000000,%ebx", "mov (%rbx),%eax")                  \
    ROW(np_by_int_gp, 64, R_KU, "6.15 #DF", DF, 0, FAULT + 16, absent_gp, 0, "mov $0x1003,%eax", "mov %eax,%ds")

#define CODE(id, bits, modes, manual, vector, error, kind, prepare, also, pre, at) SNIPPET(f_##id, bits, pre, at);
ROWS(CODE)
#define ENTRY(id, bits, modes, manual, vector, error, kind, prepare, also, pre, at)                                               \
    { #id, manual, f_##id, f_##id##_at, f_##id##_end, prepare, error, modes, vector, kind, also },
static const struct row rows[] = { ROWS(ENTRY) };

static bool amd(void) {
    u32 a = 0, b, c, d;
    asmv("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return b == 0x68747541;
}

static void one(const struct row *r, enum mode m) {
    static const char *const names[] = { "K", "U", "C32", "C16" };
    if (left_out(r->name, names[m])) return;
    word old0 = cr0(), old4 = cr4();
    u64 efer = rdmsr(EFER);
    prepare(r->code, m);
    word sp = ctx.r[RSP];
    u16 cs = ctx.cs, ss = ctx.ss;
    if (r->also & A_AC) ctx.flags |= F_AC;
    if (r->also & A_IOPL) ctx.flags |= F_IOPL3;
    if (r->prepare) r->prepare();
    run(&ctx);
    set_cr0(old0);
    set_cr4(old4);
    wrmsr(EFER, efer);
    restore_tables();
    enum kind kind = r->kind & 3;
    word ip = kind == FAULT ? place(r->at, r->code, m) : place(r->end, r->code, m);
    if (kind == NONE) ip += 2;
    u8 vector = r->vector != BY_VENDOR ? r->vector : amd() ? UD : GP;
    bool rf = kind == FAULT && vector != DF;
    bool ok = ctx.vector == vector && ctx.error == r->error && ctx.ip == ip && ctx.cs == cs && !(ctx.flags & F_RF) == !rf;
    if (!(r->kind & 8) && kind != NONE) ok &= ctx.ss == ss && ctx.r[RSP] <= sp && ctx.r[RSP] + 64 > sp;
    // The frame of 64-bit mode lies at a multiple of 16 bytes, five quadwords below it (6.14.2).
    word top = ctx.frame + 40;
    ok &= (top & 15) == 0;
    if (m != K || r->vector == DF) ok &= top == (word)trap_stack_top;
    check(ok, r->manual, "%s %s: vector %d error %x rip %x (want %x) cs %x ss %x rsp %x flags %x frame %x", r->name, names[m],
          (int)ctx.vector, ctx.error, ctx.ip, ip, ctx.cs, ctx.ss, ctx.r[RSP], ctx.flags, ctx.frame);
}

void faults(void) {
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (enum mode m = K; m < MODES; m++)
            if (rows[i].modes >> m & 1) one(&rows[i], m);
    group("exceptions");
}
