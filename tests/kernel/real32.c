// Exceptions in real-address mode: FLAGS, CS and IP are pushed, no error code (SDM 3A 20.1).
#include "kernel.h"

#define PAGE 0x10000
struct registers { u32 r[8], ip, cs, flags, ss, vector, ds, es; };
static volatile struct registers *const regs = (struct registers *)(PAGE + 0xf00);
extern const char real_begin[], real_end[], real_stubs[];
extern struct { u16 limit; u32 base; } __attribute__((packed)) vectors;
void run_real(void);

enum kind { FAULT, TRAP };
struct row { const char *name, *manual, *code, *at, *end; u8 vector, kind; u32 bx, flags; };

#define ROWS(ROW)                                                                                                                 \
    ROW(int80, "20.1.3", 0x80, TRAP, 0, 0, "", "int $0x80")                                                                       \
    ROW(int3, "20.1.4", BP, TRAP, 0, 0, "", "int3")                                                                               \
    ROW(into, "20.1.4", OF, TRAP, 0, 0x800, "", "into")                                                                           \
    ROW(int1, "20.1.4", DB, TRAP, 0, 0, "", ".byte 0xf1")                                                                         \
    ROW(div, "20.1.4", DE, FAULT, 0, 0, "xor %dx,%dx\nxor %cx,%cx", "div %cx")                                                    \
    ROW(aam, "20.1.4", DE, FAULT, 0, 0, "", ".byte 0xd4,0")                                                                       \
    ROW(bound, "20.1.4", BR, FAULT, 0, 0, "movw $1,0\nmovw $5,2\nmov $6,%ax", "bound %ax,0")                                      \
    ROW(ud2, "20.1.4", UD, FAULT, 0, 0, "", "ud2")                                                                                \
    ROW(lock, "2A LOCK", UD, FAULT, 0, 0, "", ".byte 0xf0,0x90")                                                                  \
    ROW(arpl, "2A ARPL", UD, FAULT, 0, 0, "", "arpl %ax,%ax")                                                                     \
    ROW(lar, "2A LAR", UD, FAULT, 0, 0, "", "lar %ax,%ax")                                                                        \
    ROW(sldt, "2B SLDT", UD, FAULT, 0, 0, "", "sldt %ax")                                                                         \
    ROW(str, "2B STR", UD, FAULT, 0, 0, "", "str %ax")                                                                            \
    ROW(lldt, "2A LLDT", UD, FAULT, 0, 0, "", "lldt %ax")                                                                         \
    ROW(ltr, "2A LTR", UD, FAULT, 0, 0, "", "ltr %ax")                                                                            \
    ROW(vex, "1 14", UD, FAULT, 0, 0, "", ".byte 0xc5,0xf8,0x58,0xc0")                                                            \
    ROW(sysenter, "2B SYSENTER", GP, FAULT, 0, 0, "", "sysenter")                                                                 \
    ROW(syscall, "2B SYSCALL", UD, FAULT, 0, 0, "", "syscall")                                                                    \
    ROW(rsm, "2B RSM", UD, FAULT, 0, 0, "", "rsm")                                                                                \
    ROW(word, "20.1.1", GP, FAULT, 0xffff, 0, "", "mov (%bx),%ax")                                                                \
    ROW(word_write, "20.1.1", GP, FAULT, 0xffff, 0, "", "mov %ax,(%bx)")                                                          \
    ROW(dword, "20.1.1", GP, FAULT, 0xfffd, 0, "", "mov (%bx),%eax")                                                              \
    ROW(beyond, "20.1.1", GP, FAULT, 0x10000, 0, "", "movb (%ebx),%al")                                                           \
    ROW(stack, "20.1.1", SS, FAULT, 0xffff, 0, "mov %bx,%bp", "mov (%bp),%ax")                                                    \
    ROW(jmp_far_away, "2A JMP", GP, FAULT, 0x10000, 0, "", ".byte 0x66,0xff,0xe3")                                                \
    ROW(call_far_away, "2A CALL", GP, FAULT, 0x10000, 0, "", ".byte 0x66,0xff,0xd3")                                              \
    ROW(insn_15, "2A 2.3.11", 0x80, TRAP, 0, 0, ".fill 14,1,0x66\nnop", "int $0x80")                                              \
    ROW(insn_16, "2A 2.3.11", GP, FAULT, 0, 0, "", ".fill 15,1,0x66\nnop")                                                        \
    ROW(cr4, "2B MOV", GP, FAULT, 0, 0, "mov %cr4,%eax\nbts $31,%eax", "mov %eax,%cr4")                                           \
    ROW(pg, "2B MOV", GP, FAULT, 0, 0, "mov $0x80000010,%eax", "mov %eax,%cr0")                                                   \
    ROW(rdmsr, "2B RDMSR", GP, FAULT, 0, 0, "mov $0x12345678,%ecx", "rdmsr")                                                      \
    ROW(lgdt_reg, "2A LGDT", UD, FAULT, 0, 0, "", ".byte 0x0f,0x01,0xd7,0x90")                                                    \
    ROW(step, "3B 18.3.1.4", DB, TRAP, 0, 0x100, "", "nop")                                                                       \
    ROW(popf_step, "3B 18.3.1.4", DB, TRAP, 0, 0, "push $0x102", "popf\nnop")                                                     \
    ROW(flags, "2B POPF", 0x80, TRAP, 0, 0, "push $0x7002\npopf\npushf\npop %ax\nmov %ax,%bx", "int $0x80")

#define CODE(name, manual, vector, kind, bx, flags, pre, at) SNIPPET(r_##name, 16, pre, at);
ROWS(CODE)
#define ENTRY(name, manual, vector, kind, bx, flags, pre, at)                                                                     \
    { #name, manual, r_##name, r_##name##_at, r_##name##_end, vector, kind, bx, flags },
static const struct row rows[] = { ROWS(ENTRY) };

static void enter(const char *code, u32 bx, u32 flags) {
    memcpy((void *)V86_CODE, code, 256);
    memset((void *)regs, 0, sizeof *regs);
    regs->r[RBX] = bx;
    regs->r[RSP] = 0x8000;
    regs->cs = V86_CODE >> 4;
    regs->ss = V86_STACK >> 4;
    regs->ds = regs->es = V86_DATA >> 4;
    regs->flags = flags | 2;
    run_real();
}

void real(void) {
    memcpy((void *)PAGE, real_begin, real_end - real_begin);
    for (u32 v = 0; v < 256; v++) ((volatile u32 *)0)[v] = (PAGE >> 4) << 16 | (u32)(real_stubs - real_begin + 8 * v);
    // Selectors 50h and 58h: real mode's segments, before it is entered.
    gdt[0x50 / 8] = descriptor(PAGE, 0xffff, 0x9b, 0);
    gdt[0x58 / 8] = descriptor(PAGE, 0xffff, 0x93, 0);
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *r = &rows[i];
        enter(r->code, r->bx, r->flags);
        u32 ip = (r->kind == FAULT ? r->at : r->end) - r->code;
        bool ok = (regs->vector & 0xffff) == r->vector && (regs->ip & 0xffff) == ip && (regs->cs & 0xffff) == V86_CODE >> 4;
        // Three words were pushed: after them the stack is as it was.
        if (r->at == r->code) ok &= (regs->r[RSP] & 0xffff) == 0x8000;
        check(ok, r->manual, "real mode, %s: vector %d at %x:%x, sp %x flags %x", r->name, (int)regs->vector, (word)regs->cs, (word)regs->ip,
              (word)regs->r[RSP], (word)regs->flags);
    }
    // NT and IOPL can be set.
    check((regs->r[RBX] & 0x7000) == 0x7000, "SDM 2B POPF", "flags in real mode %x", (word)regs->r[RBX]);
    // A vector beyond the limit of the IDT; with a limit that holds 0 to 0Eh it is #GP.
    vectors.limit = 0x3b;
    enter(r_int80, 0, 0);
    vectors.limit = 0x3ff;
    check((regs->vector & 0xffff) == GP && (regs->ip & 0xffff) == 0, "SDM 3A 20.1.4", "INT beyond the IDT: vector %d at %x", (int)regs->vector,
          (word)regs->ip);
    restore_tables();
    group("real mode");
}
