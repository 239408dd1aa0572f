// Exceptions in 32- and 16-bit protected mode and virtual-8086 mode: vector, error code, pushed EIP, CS, flags, place of the frame
// (SDM 3A chapter 6; section 20 "8086 Emulation").
#include "kernel.h"

enum kind { FAULT, TRAP, NONE };
#define R_K 1
#define R_U 2
#define R_KU 3
#define R_K16 4
#define R_U16 8
#define R_16 12
#define R_V 16
#define R_ALL16 28
// Bits of `also`.
#define A_AC 1
#define A_IOPL 2
#define A_OF 4

struct row {
    const char *name, *manual, *code, *at, *end;
    void (*prepare)(void);
    u32 error;
    u8 modes, vector, kind, also;
};

static void ts(void) { set_cr0(cr0() | CR0_TS); }
static void em(void) { set_cr0(cr0() | CR0_EM); }
static void am(void) { set_cr0(cr0() | CR0_AM); }
static void ne(void) { set_cr0(cr0() | CR0_NE); }
static void umip(void) { set_cr4(cr4() | CR4_UMIP); }
static void tsd(void) { set_cr4(cr4() | CR4_TSD); }
static void de_on(void) { set_cr4(cr4() | CR4_DE); }
static void closed3(void) { set_gate(BP, 0, true); }
static void absent_de(void) { set_gate(DE, 0, false); }
static void absent_ud(void) { set_gate(UD, 0, false); }
static void absent_pf(void) { set_gate(PF, 0, false); }
static void absent90(void) { set_gate(0x90, 3, false); }
static void short_idt(void) { set_idt_limit(0x90 * 8 + 6); }
static void outer_handler(void) { idt[UD] = (idt[UD] & ~0xffff0000ULL) | (u64)CODE3 << 16; }
static void conforming_handler(void) {
    gdt[TEST_SEL / 8] = descriptor(0, 0xfffff, 0x9f, 0xc);
    idt[UD] = (idt[UD] & ~0xffff0000ULL) | TEST_SEL << 16;
}
static void data_handler(void) { idt[UD] = (idt[UD] & ~0xffff0000ULL) | DATA0 << 16; }
static void null_handler(void) { idt[UD] &= ~0xffff0000ULL; }
static void beyond_handler(void) { idt[UD] = (idt[UD] & ~0xffff0000ULL) | 0x1000 << 16; }
static void absent_handler(void) {
    gdt[TEST_SEL / 8] = descriptor(0, 0xfffff, 0x1b, 0xc);
    idt[UD] = (idt[UD] & ~0xffff0000ULL) | TEST_SEL << 16;
}
static void call_gate_in_idt(void) { idt[UD] = (idt[UD] & ~0xff0000000000ULL) | 0x8c0000000000; }
static void ss0_null(void) { tss.ss0 = 0; }
static void ss0_code(void) { tss.ss0 = CODE0; }
static void ss0_rpl(void) { tss.ss0 = DATA3; }
static void ss0_beyond(void) { tss.ss0 = 0x1000; }
static void ss0_absent(void) { tss.ss0 = TEST_SEL, gdt[TEST_SEL / 8] = descriptor(0, 0xfffff, 0x13, 0xc); }
static void ss0_small(void) { tss.ss0 = TEST_SEL, gdt[TEST_SEL / 8] = descriptor(0, 0x1000, 0x93, 4); }
// Ports: 80h is allowed, its neighbours are not; the map ends behind 9Fh.
static u8 with_map[sizeof(struct tss) + 24];
static void io_map(void) {
    memcpy(with_map, &tss, sizeof tss);
    memset(with_map + sizeof tss, 0xff, 24);
    with_map[sizeof tss + 16] = 0xfe;
    with_map[sizeof tss + 17] = 0;
    gdt[TSS_SEL / 8] = descriptor((u32)with_map, sizeof tss + 20 - 1, 0x89, 0);
    asmv("ltr %w0" ::"r"(TSS_SEL));
}

#define P "data+0x40000000"
#define DIV "xor %edx,%edx\nxor %ecx,%ecx"
#define FPU "fninit\nmovw $0x37b," P "\nfldcw " P "\nfld1\nfldz\nfdivrp"

// ROW(id, bits, modes, manual, vector, error, kind, prepare, also, before, instruction)
#define ROWS(ROW)                                                                                                                 \
    ROW(div_zero, 32, R_KU, "6.15 #DE", DE, 0, FAULT, 0, 0, DIV, "div %ecx")                                                      \
    ROW(div_zero16, 16, R_ALL16, "6.15 #DE", DE, 0, FAULT, 0, 0, DIV, "div %cx")                                                  \
    ROW(int3, 32, R_KU, "6.15 #BP", BP, 0, TRAP, 0, 0, "", "int3")                                                                \
    ROW(int3_16, 16, R_ALL16, "6.15 #BP", BP, 0, TRAP, 0, 0, "", "int3")                                                          \
    ROW(int3_closed, 32, R_U, "6.12.1.1", GP, 3 * 8 + 2, FAULT, closed3, 0, "", "int3")                                           \
    ROW(int3_closed_v86, 16, R_V, "20.3.3", GP, 3 * 8 + 2, FAULT, closed3, 0, "", "int3")                                         \
    ROW(int1, 32, R_KU, "6.15 #DB", DB, 0, TRAP, 0, 0, "", ".byte 0xf1")                                                          \
    ROW(int1_v86, 16, R_V, "6.15 #DB", DB, 0, TRAP, 0, 0, "", ".byte 0xf1")                                                       \
    ROW(into, 32, R_KU, "6.15 #OF", OF, 0, TRAP, 0, A_OF, "", "into")                                                             \
    ROW(into16, 16, R_ALL16, "6.15 #OF", OF, 0, TRAP, 0, A_OF, "", "into")                                                        \
    ROW(into_not, 32, R_KU, "6.15 #OF", DONE, 0, NONE, 0, 0, "", "into")                                                          \
    ROW(bound, 32, R_KU, "6.15 #BR", BR, 0, FAULT, 0, 0, "movl $1," P "\nmovl $5,4+" P "\nmov $0,%eax", "bound %eax," P)          \
    ROW(bound_v86, 16, R_V, "6.15 #BR", BR, 0, FAULT, 0, 0, "movw $1,0\nmovw $5,2\nmov $6,%ax", "bound %ax,0")                    \
    ROW(ud2, 32, R_KU, "6.15 #UD", UD, 0, FAULT, 0, 0, "", "ud2")                                                                 \
    ROW(ud2_16, 16, R_ALL16, "6.15 #UD", UD, 0, FAULT, 0, 0, "", "ud2")                                                           \
    ROW(lock_nop, 32, R_KU, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0,0x90")                                                 \
    ROW(lock_16, 16, R_ALL16, "2A LOCK", UD, 0, FAULT, 0, 0, "", ".byte 0xf0,0x90")                                               \
    ROW(bound_reg, 32, R_KU, "2A BOUND", UD, 0, FAULT, 0, 0, "", ".byte 0x62,0xc0")                                               \
    ROW(les_reg, 32, R_KU, "2A LDS", UD, 0, FAULT, 0, 0, "", ".byte 0xc4,0xc0")                                                   \
    ROW(lea_reg, 32, R_KU, "2A LEA", UD, 0, FAULT, 0, 0, "", ".byte 0x8d,0xc0")                                                   \
    ROW(mov_cs, 32, R_KU, "2B MOV", UD, 0, FAULT, 0, 0, "mov $8,%eax", ".byte 0x8e,0xc8")                                         \
    ROW(mov_seg6, 32, R_KU, "2B MOV", UD, 0, FAULT, 0, 0, "", ".byte 0x8e,0xf0")                                                  \
    ROW(vex_v86, 16, R_V, "1 14", UD, 0, FAULT, 0, 0, "", ".byte 0xc5,0xf8,0x58,0xc0")                                            \
    ROW(syscall, 32, R_KU, "2B SYSCALL", UD, 0, FAULT, 0, 0, "", "syscall")                                                       \
    ROW(rsm, 32, R_KU, "2B RSM", UD, 0, FAULT, 0, 0, "", "rsm")                                                                   \
    ROW(insn_15, 32, R_KU, "2A 2.3.11", DONE, 0, NONE, 0, 0, "", ".fill 14,1,0x66\nnop")                                          \
    ROW(insn_16, 32, R_KU, "2A 2.3.11", GP, 0, FAULT, 0, 0, "", ".fill 15,1,0x66\nnop")                                           \
    ROW(insn_16_16, 16, R_ALL16, "2A 2.3.11", GP, 0, FAULT, 0, 0, "", ".fill 15,1,0x66\nnop")                                     \
    ROW(x87_ts, 32, R_KU, "6.15 #NM", NM, 0, FAULT, ts, 0, "", "fninit")                                                          \
    ROW(x87_ts16, 16, R_ALL16, "6.15 #NM", NM, 0, FAULT, ts, 0, "", "fninit")                                                     \
    ROW(x87_em, 32, R_KU, "6.15 #NM", NM, 0, FAULT, em, 0, "", "fninit")                                                          \
    ROW(sse_em, 32, R_KU, "6.15 #UD", UD, 0, FAULT, em, 0, "", "movaps %xmm0,%xmm1")                                              \
    ROW(mf_frstor, 32, R_KU, "6.15 #MF", MF, 0, FAULT, ne, 0, FPU "\nxor %eax,%eax\nmov %eax,%gs", "frstor %gs:(%ebx)")              \
    ROW(mf, 32, R_KU, "6.15 #MF", MF, 0, FAULT, ne, 0, FPU, "fwait")                                                              \
    ROW(xm, 32, R_KU, "6.15 #XM", XM, 0, FAULT, 0, 0, "movl $0x1f00," P "\nldmxcsr " P "\nxorps %xmm0,%xmm0", "divps %xmm0,%xmm0") \
    ROW(ac, 32, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $1+" P ",%ebx", "mov (%ebx),%eax")                                  \
    ROW(ac_pusha, 32, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "sub $2,%esp", "pusha")                                            \
    ROW(ac_popa, 32, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "sub $34,%esp", "popa")                                             \
    ROW(ac_limit, 32, R_U, "6.15 #GP", GP, 0, FAULT, am, A_AC, "mov $-1,%ebx", "mov (%ebx),%ax")                                  \
    ROW(ac_bound, 32, R_U, "6.15 #AC", DONE, 0, NONE, am, A_AC, "mov $2+" P ",%ebx\nmovw $0,(%ebx)\nmovw $9,2(%ebx)\nmov $5,%eax", "bound %ax,(%ebx)") \
    ROW(arpl_same, 32, R_U, "2A ARPL", DONE, 0, NONE, 0, 0, "mov $" P ",%ebx\nmovw $3,(%ebx)\nmov $2,%eax", "arpl %ax,%cs:(%ebx)")   \
    ROW(arpl_changes, 32, R_U, "2A ARPL", GP, 0, FAULT, 0, 0, "mov $" P ",%ebx\nmovw $1,(%ebx)\nmov $2,%eax", "arpl %ax,%cs:(%ebx)") \
    ROW(ac_far, 32, R_U, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $2+" P ",%ebx", "les (%ebx),%eax")                              \
    ROW(ac_v86, 16, R_V, "6.15 #AC", AC, 0, FAULT, am, A_AC, "mov $1,%bx", "mov (%bx),%ax")                                       \
    ROW(ac_kernel, 32, R_K, "6.15 #AC", DONE, 0, NONE, am, A_AC, "mov $1+" P ",%ebx", "mov (%ebx),%eax")                          \
    ROW(movaps_odd, 32, R_KU, "2B MOVAPS", GP, 0, FAULT, 0, 0, "mov $1+" P ",%ebx", "movaps (%ebx),%xmm0")                        \
    ROW(hlt, 32, R_U, "6.15 #GP", GP, 0, FAULT, 0, 0, "", "hlt")                                                                  \
    ROW(hlt16, 16, R_U16 | R_V, "6.15 #GP", GP, 0, FAULT, 0, 0, "", "hlt")                                                        \
    ROW(cli, 32, R_U, "2A CLI", GP, 0, FAULT, 0, 0, "", "cli")                                                                    \
    ROW(cli_v86, 16, R_V, "20.2.8", GP, 0, FAULT, 0, 0, "", "cli")                                                                \
    ROW(cli_v86_iopl, 16, R_V, "20.2.8", DONE, 0, NONE, 0, A_IOPL, "", "cli")                                                     \
    ROW(sti_v86, 16, R_V, "20.2.8", GP, 0, FAULT, 0, 0, "", "sti")                                                                \
    ROW(pushf_v86, 16, R_V, "20.2.8", GP, 0, FAULT, 0, 0, "", "pushf")                                                            \
    ROW(pushfd_v86, 16, R_V, "20.2.8", GP, 0, FAULT, 0, 0, "", "pushfl")                                                          \
    ROW(popf_v86, 16, R_V, "20.2.8", GP, 0, FAULT, 0, 0, "", "popf")                                                              \
    ROW(iret_v86, 16, R_V, "20.2.8", GP, 0, FAULT, 0, 0, "", "iret")                                                              \
    ROW(int_v86, 16, R_V, "20.2.8", GP, 0, FAULT, 0, 0, "", "int $0x90")                                                          \
    ROW(int_v86_iopl, 16, R_V, "20.3.3", GP, 0x90 * 8 + 2, FAULT, 0, A_IOPL, "", "int $0x90")                                     \
    ROW(pushf_v86_iopl, 16, R_V, "20.2.8", DONE, 0, NONE, 0, A_IOPL, "", "pushf")                                                 \
    ROW(iret_v86_iopl, 16, R_V, "20.2.8", GP, 0, FAULT, 0, A_IOPL, "pushl $0x20002\npushl $0x2000\npushl $0x10000", "iretl") \
    ROW(lar_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "lar %ax,%ax")                                                        \
    ROW(lsl_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "lsl %ax,%ax")                                                        \
    ROW(verr_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "verr %ax")                                                          \
    ROW(arpl_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "arpl %ax,%ax")                                                      \
    ROW(sldt_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "sldt %ax")                                                          \
    ROW(str_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "str %ax")                                                            \
    ROW(lldt_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "lldt %ax")                                                          \
    ROW(ltr_v86, 16, R_V, "20.2.7", UD, 0, FAULT, 0, 0, "", "ltr %ax")                                                            \
    ROW(lgdt_v86, 16, R_V, "2A LGDT", GP, 0, FAULT, 0, 0, "", "lgdt 0")                                                           \
    ROW(lmsw_v86, 16, R_V, "2A LMSW", GP, 0, FAULT, 0, 0, "", "lmsw %ax")                                                         \
    ROW(clts_v86, 16, R_V, "2A CLTS", GP, 0, FAULT, 0, 0, "", "clts")                                                             \
    ROW(mov_cr_v86, 16, R_V, "2B MOV", GP, 0, FAULT, 0, 0, "", "mov %cr0,%eax")                                                   \
    ROW(smsw_v86, 16, R_V, "2B SMSW", DONE, 0, NONE, 0, 0, "", "smsw %ax")                                                        \
    ROW(smsw_v86_umip, 16, R_V, "3A 2.5", GP, 0, FAULT, umip, 0, "", "smsw %ax")                                                  \
    ROW(in_v86, 16, R_V, "20.2.8.1", GP, 0, FAULT, 0, A_IOPL, "", "inb $0x80")                                                    \
    ROW(in_v86_map, 16, R_V, "20.2.8.1", DONE, 0, NONE, io_map, 0, "", "inb $0x80")                                               \
    ROW(out_map, 32, R_U, "1 19.5.2", DONE, 0, NONE, io_map, 0, "", "outb %al,$0x80")                                             \
    ROW(out_map_next, 32, R_U, "1 19.5.2", GP, 0, FAULT, io_map, 0, "", "outb %al,$0x81")                                         \
    ROW(out_map_wide, 32, R_U, "1 19.5.2", GP, 0, FAULT, io_map, 0, "", "outw %ax,$0x80")                                         \
    ROW(out_map_ok4, 32, R_U, "1 19.5.2", DONE, 0, NONE, io_map, 0, "", "outl %eax,$0x88")                                        \
    ROW(out_map_beyond, 32, R_U, "1 19.5.2", GP, 0, FAULT, io_map, 0, "", "outb %al,$0xa0")                                       \
    ROW(word_wrap_v86, 16, R_V, "20.1.1", GP, 0, FAULT, 0, 0, "mov $0xffff,%bx", "mov (%bx),%ax")                                 \
    ROW(stack_wrap_v86, 16, R_V, "20.1.1", SS, 0, FAULT, 0, 0, "mov $0xffff,%bp", "mov (%bp),%ax")                                \
    ROW(push_wrap_v86, 16, R_V, "20.1.1", SS, 0, FAULT, 0, 0, "mov $1,%sp", "push %ax")                                           \
    ROW(dword_wrap_v86, 16, R_V, "20.1.1", GP, 0, FAULT, 0, 0, "mov $0x10000,%ebx", "movb (%ebx),%al")                            \
    ROW(jmp_wrap_v86, 16, R_V, "2A JMP", GP, 0, FAULT, 0, 0, "mov $0x10000,%ebx", ".byte 0x66,0xff,0xe3")                         \
    ROW(lgdt, 32, R_U, "2A LGDT", GP, 0, FAULT, 0, 0, "", "lgdt " P)                                                              \
    ROW(mov_cr, 32, R_U, "2B MOV", GP, 0, FAULT, 0, 0, "", "mov %cr0,%eax")                                                       \
    ROW(mov_dr4_de, 32, R_K, "2B MOV", UD, 0, FAULT, de_on, 0, "", "mov %db4,%eax")                                               \
    ROW(rdtsc_tsd, 32, R_U, "2B RDTSC", GP, 0, FAULT, tsd, 0, "", "rdtsc")                                                        \
    ROW(rdtsc_tsd_v86, 16, R_V, "2B RDTSC", GP, 0, FAULT, tsd, 0, "", "rdtsc")                                                    \
    ROW(cr0_pg_no_pe, 32, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov $0x80000010,%eax", "mov %eax,%cr0")                             \
    ROW(cr4_reserved, 32, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr4,%eax\nbts $31,%eax", "mov %eax,%cr4")                      \
    ROW(cr4_pcide, 32, R_K, "2B MOV", GP, 0, FAULT, 0, 0, "mov %cr4,%eax\nbts $17,%eax", "mov %eax,%cr4")                         \
    ROW(ss_null, 32, R_KU, "2B MOV", GP, 0, FAULT, 0, 0, "xor %eax,%eax", "mov %eax,%ss")                                         \
    ROW(ds_null_use, 32, R_KU, "6.15 #GP", GP, 0, FAULT, 0, 0, "xor %eax,%eax\nmov %eax,%es", "mov %es:" P ",%eax")               \
    ROW(cs_write, 32, R_KU, "5.3", GP, 0, FAULT, 0, 0, "", "mov %eax,%cs:" P)                                                     \
    ROW(page_absent, 32, R_K, "6.15 #PF", PF, 0, FAULT, 0, 0, "", "mov 0xc0000000,%eax")                                          \
    ROW(page_absent_u, 32, R_U, "6.15 #PF", PF, 4, FAULT, 0, 0, "", "mov 0xc0000000,%eax")                                        \
    ROW(page_v86, 16, R_V, "6.15 #PF", PF, 7, FAULT, 0, 0, "mov $0x6000,%ax\nmov %ax,%es", "mov %al,%es:0")                       \
    ROW(iret_nt, 32, R_KU, "2A IRET", TS, 0, FAULT, 0, 0, "pushl $0x4002\npopf", "iret")                                          \
    ROW(iret_inner, 32, R_U, "2A IRET", GP, 8, FAULT, 0, 0, "pushf\npush $8\npush $0", "iret")                                    \
    ROW(iret_null, 32, R_KU, "2A IRET", GP, 0, FAULT, 0, 0, "pushf\npush $0\npush $0", "iret")                                    \
    ROW(iret_limit, 32, R_K, "2A IRET", GP, 0, FAULT, 0, 0, "pushf\npush $0x18\npush $0x10000", "iret")                           \
    ROW(iret_out_ss, 32, R_K, "2A IRET", GP, 0x10, FAULT, 0, 0, "push $0x10\npush $0\npushf\npush $0x23\npush $0", "iret")        \
    ROW(retf_inner, 32, R_U, "2B RET", GP, 8, FAULT, 0, 0, "push $8\npush $0", "lret")                                            \
    ROW(handler_outer, 32, R_K, "6.12.1", GP, CODE3 - 3 + 1, FAULT, outer_handler, 0, "", "ud2")                                      \
    ROW(handler_outer_v86, 16, R_V, "20.3.1.1", GP, CODE3 - 3 + 1, FAULT, outer_handler, 0, "", "ud2")                            \
    ROW(handler_conforming_v86, 16, R_V, "20.3.1.1", GP, TEST_SEL + 1, FAULT, conforming_handler, 0, "", "ud2")                   \
    ROW(handler_data, 32, R_KU, "6.12.1", GP, DATA0 + 1, FAULT, data_handler, 0, "", "ud2")                                       \
    ROW(handler_null, 32, R_KU, "6.12.1", GP, 1, FAULT, null_handler, 0, "", "ud2")                                               \
    ROW(handler_beyond, 32, R_KU, "6.12.1", GP, 0x1001, FAULT, beyond_handler, 0, "", "ud2")                                      \
    ROW(handler_absent, 32, R_KU, "6.12.1", NP, TEST_SEL + 1, FAULT, absent_handler, 0, "", "ud2")                                \
    ROW(gate_type, 32, R_KU, "6.11", GP, 6 * 8 + 3, FAULT, call_gate_in_idt, 0, "", "ud2")                                        \
    ROW(gate_absent, 32, R_KU, "6.15 #NP", NP, 6 * 8 + 3, FAULT, absent_ud, 0, "", "ud2")                                         \
    ROW(int_absent, 32, R_KU, "6.15 #NP", NP, 0x90 * 8 + 2, FAULT, absent90, 0, "", "int $0x90")                                  \
    ROW(int_beyond, 32, R_KU, "6.10", GP, 0x90 * 8 + 2, FAULT, short_idt, 0, "", "int $0x90")                                     \
    ROW(df_de, 32, R_KU, "6.15 #DF", DF, 0, FAULT, absent_de, 0, DIV, "div %ecx")                                                 \
    ROW(df_pf, 32, R_KU, "6.15 #DF", DF, 0, FAULT, absent_pf, 0, "", "mov 0xc0000000,%eax")                                       \
    ROW(df_v86, 16, R_V, "6.15 #DF", DF, 0, FAULT, absent_de, 0, DIV, "div %ecx")

#define CODE(id, bits, modes, manual, vector, error, kind, prepare, also, pre, at) SNIPPET(f_##id, bits, pre, at);
ROWS(CODE)
#define ENTRY(id, bits, modes, manual, vector, error, kind, prepare, also, pre, at)                                               \
    { #id, manual, f_##id, f_##id##_at, f_##id##_end, prepare, error, modes, vector, kind, also },
static const struct row rows[] = { ROWS(ENTRY) };

static const char *const names[] = { "K", "U", "K16", "U16", "V86" };

// The TSS as the code under test left it.
static struct tss left;

static void enter(const struct row *r, enum mode m) {
    word old0 = cr0(), old4 = cr4();
    struct tss old_tss = tss;
    prepare(r->code, m);
    if (r->also & A_AC) ctx.flags |= F_AC;
    if (r->also & A_IOPL) ctx.flags |= F_IOPL3;
    if (r->also & A_OF) ctx.flags |= 0x800;
    if (r->prepare) r->prepare();
    run(&ctx);
    set_cr0(old0);
    set_cr4(old4);
    left = tss;
    tss = old_tss;
    restore_tables();
    asmv("ltr %w0" ::"r"(TSS_SEL));
}

static void one(const struct row *r, enum mode m) {
    enter(r, m);
    word cs = m == V86 ? V86_CODE >> 4 : (word[]){ CODE0, CODE3, CODE0_16, CODE3_16 }[m];
    word ip = r->kind == FAULT ? place(r->at, r->code, m) : place(r->end, r->code, m);
    // In v86 mode without IOPL 3 the end itself is a #GP.
    bool done_gp = r->kind == NONE && m == V86 && !(r->also & A_IOPL);
    if (r->kind == NONE && !done_gp) ip += 2;
    u8 vector = done_gp ? GP : r->vector;
    bool rf = (r->kind == FAULT || done_gp) && vector != DF;
    bool ok = ctx.vector == vector && ctx.error == r->error && ctx.ip == ip && ctx.cs == cs && !(ctx.flags & F_RF) == !rf;
    ok &= !(ctx.flags & F_VM) == (m != V86);
    // From an outer level: five words on the inner stack, nine from v86 mode, below them the error code.
    word top = ctx.frame + (m == V86 ? 36 : 20);
    if (m == U || m == U16 || m == V86) ok &= top == (word)trap_stack_top;
    check(ok, r->manual, "%s %s: vector %d error %x eip %x (want %x) cs %x ss %x esp %x flags %x frame %x", r->name, names[m],
          (int)ctx.vector, ctx.error, ctx.ip, ip, ctx.cs, ctx.ss, ctx.r[RSP], ctx.flags, ctx.frame);
}

// Inner stacks that cannot be used: the exception is #TS or #SS, and its own delivery meets the same, so it ends in #DF, whose
// gate leads to a task with a stack of its own. Here with #UD from CPL 3.
static const struct { const char *name; void (*prepare)(void); } stacks[] = {
    { "null ss0", ss0_null },     { "ss0 is code", ss0_code },  { "ss0 of CPL 3", ss0_rpl },
    { "ss0 beyond", ss0_beyond }, { "absent ss0", ss0_absent }, { "small ss0", ss0_small },
};
extern struct tss df_tss;
extern char stubs[];

static void bad_stacks(void) {
    for (unsigned i = 0; i < sizeof stacks / sizeof stacks[0]; i++) {
        static const struct row ud = { "", "", f_ud2, f_ud2_at, f_ud2_end, 0, 0, R_U, UD, FAULT, 0 };
        struct row r = ud;
        r.prepare = stacks[i].prepare;
        df_tss = tss;
        df_tss.eip = (u32)stubs + 16 * DF;
        df_tss.cs = CODE0;
        df_tss.ss = df_tss.ds = df_tss.es = df_tss.fs = df_tss.gs = DATA0;
        df_tss.r[4] = (u32)trap_stack_top - 64;
        df_tss.cr3 = cr3();
        df_tss.eflags = 2;
        gdt[0x48 / 8] = descriptor((u32)&df_tss, sizeof df_tss - 1, 0x89, 0);
        idt[DF] = 0x48 << 16 | 0x8500ULL << 32;
        enter(&r, U);
        // What the task was entered with: error code 0, no frame; it is nested in the first.
        check(ctx.vector == DF && ctx.error == 0 && df_tss.link == TSS_SEL && left.cs == CODE3 && left.eip == place(f_ud2_at, f_ud2, U), "6.15 #DF",
              "#UD with %s: vector %d error %x link %x cs:eip %x:%x", stacks[i].name, (int)ctx.vector, ctx.error, (word)df_tss.link,
              (word)left.cs, (word)left.eip);
        asmv("pushf\nandl $~0x4000,(%%esp)\npopf" ::: "memory");
    }
}

void faults(void) {
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (enum mode m = K; m < MODES; m++)
            if (rows[i].modes >> m & 1) one(&rows[i], m);
    bad_stacks();
    group("exceptions");
}
