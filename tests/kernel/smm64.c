// System management mode: entry by the local APIC and by the APM port, the state save map, relocation, what RSM brings back (SDM
// 3C chapter 31; the map of AMD APM 2 10.2.3).
#include "kernel.h"

#define SMBASE 0x30000
#define OTHER 0x50000
#define APIC 0xfee00000
#define ICR 0x300
#define ICR_HIGH 0x310
#define SMI_EN 0x630
#define SMI_STS 0x634
#define APM_CNT 0xb2

// The handler, 16-bit, run at SMBASE + 8000h: counts, keeps CS, CR0, EFLAGS; what it is told to at 7000h: set SMBASE, change
// RAX, go on behind HLT, tell of RSM's state.
extern const char handler[], handler_end[];
__asm__(".pushsection .snippets,\"ax\"\n.code16\nhandler:\n"
        "addl $1,%ds:0x7000\n"
        "mov %cs,%ax\nmov %ax,%ds:0x7004\n"
        "mov %cr0,%eax\nmov %eax,%ds:0x7008\n"
        "pushfl\npopl %eax\nmov %eax,%ds:0x700c\n"
        "movl %cs:0xfefc,%eax\nmov %eax,%ds:0x7010\n"
        "movl %cs:0xff00,%eax\nmov %eax,%ds:0x7014\n"
        "movl %cs:0xff78,%eax\nmov %eax,%ds:0x7018\n"
        "movzbl %cs:0xfec9,%eax\nmov %eax,%ds:0x701c\n"
        "mov %cr4,%eax\nmov %eax,%ds:0x7030\n"
        "movl %ds:0x7020,%eax\ntest %eax,%eax\njz 1f\nmovl %eax,%cs:0xff00\n"
        "1: movl %ds:0x7024,%eax\ntest %eax,%eax\njz 1f\nmovl %eax,%cs:0xfff8\n"
        "1: movl %ds:0x7028,%eax\ntest %eax,%eax\njz 1f\nmovb $0,%cs:0xfec9\n"
        "1: rsm\n"
        "handler_end:\n" NATIVE ".popsection");

struct told { u32 count, cs, cr0, flags, revision, base, rip, halted, new_base, new_rax, go_on, pad, cr4; };
static volatile struct told *const told = (struct told *)0x7000;

static void apic(u32 r, u32 v) { *(volatile u32 *)(word)(APIC + r) = v; }

static inline void out32(u16 port, u32 v) { asmv("outl %0,%1" ::"a"(v), "Nd"(port)); }
static inline u32 in32(u16 port) { u32 v; asmv("inl %1,%0" : "=a"(v) : "Nd"(port)); return v; }

// An SMI to itself.
// It comes when it comes: the code waits for the count to change.
SNIPPET(by_icr, 64, "mov 0x7000,%edx", "movl $0x4200,(%rdi)\n1: pause\ncmp %edx,0x7000\nje 1b");
SNIPPET(by_port, 64, "mov $0xb2,%edx", "outb %al,%dx\n.rept 200\npause\n.endr");

static void smi(const char *code, enum mode m) {
    apic(ICR_HIGH, 0);
    prepare(code, m);
    for (int i = 0; i < 16; i++)
        if (i != RSP && i != RDI && i != RDX) ctx.r[i] = 0x1111111111111111 * (i + 1);
    ctx.r[RAX] &= 0xff;
    ctx.r[RDI] = APIC + ICR;
    if (m == U) ctx.flags |= F_IOPL3;
    run(&ctx);
}

static bool kept(void) {
    bool ok = true;
    for (int i = 1; i < 16; i++)
        if (i != RSP && i != RDI && i != RDX) ok &= ctx.r[i] == 0x1111111111111111ULL * (i + 1);
    return ok;
}

void smm(void) {
    // The first MiB is for supervisors here; both places lie in RAM.
    memcpy((void *)(u64)(SMBASE + 0x8000), handler, handler_end - handler);
    memcpy((void *)(u64)(OTHER + 0x8000), handler, handler_end - handler);
    memset((void *)told, 0, sizeof *told);
    word c0 = cr0(), c3 = cr3(), c4 = cr4();
    u64 efer = rdmsr(EFER);
    smi(by_icr, K);
    check(told->count == 1 && ctx.vector == DONE, "SDM 3C 31.2", "SMI by ICR: count %d, vector %d", (int)told->count, (int)ctx.vector);
    check((told->cs & 0xffff) == SMBASE >> 4 && !(told->cr0 & (CR0_PE | CR0_PG | CR0_EM | CR0_TS)) && told->flags == 2 && told->cr4 == 0,
          "SDM 3C 31.4.1", "SMI: cs %x cr0 %x flags %x cr4 %x", (word)told->cs, (word)told->cr0, (word)told->flags, (word)told->cr4);
    check(told->revision == 0x20064 && told->base == SMBASE && told->halted == 0, "APM 2 10.2.3", "SMI: revision %x base %x halted %x",
          (word)told->revision, (word)told->base, (word)told->halted);
    check(told->rip > (u32)(word)by_icr_at && told->rip <= (u32)(word)by_icr_end, "APM 2 10.2.3", "SMI: rip %x", (word)told->rip);
    check(kept() && ctx.ip == (word)by_icr_end + 2 && ctx.cs == CODE0 && cr0() == c0 && cr3() == c3 && cr4() == c4 && rdmsr(EFER) == efer,
          "SDM 3C 31.6", "RSM: registers as they were, rip %x cs %x cr0 %x cr4 %x", ctx.ip, ctx.cs, cr0(), cr4());

    // The port: not before it is enabled.
    smi(by_port, K);
    check(told->count == 1, "ICH9 SMI_EN", "APM port, disabled: count %d", (int)told->count);
    out32(SMI_EN, 0x21);
    smi(by_port, K);
    check(told->count == 2 && ctx.vector == DONE && kept(), "ICH9 SMI_EN", "APM port: count %d", (int)told->count);
    check(in32(SMI_STS) & 0x20 && inb(APM_CNT) == 0x11, "ICH9 SMI_STS", "APM port: status %x command %x", (word)in32(SMI_STS), (word)inb(APM_CNT));
    out32(SMI_STS, 0x20);
    check(!(in32(SMI_STS) & 0x20), "ICH9 SMI_STS", "APM port: status cleared");
    smi(by_port, U);
    check(told->count == 3 && ctx.vector == DONE && kept() && ctx.cs == CODE3 && ctx.ss == DATA3, "SDM 3C 31.6", "SMI from CPL 3: count %d vector %d cs %x",
          (int)told->count, (int)ctx.vector, ctx.cs);
    out32(SMI_EN, 0);

    // The handler changes RAX.
    told->new_rax = 0x12345678;
    smi(by_icr, K);
    check(ctx.r[RAX] == 0x12345678, "SDM 3C 31.4", "RAX changed in the map: %x", ctx.r[RAX]);
    told->new_rax = 0;

    // SMBASE moves, and back.
    told->new_base = OTHER;
    smi(by_icr, K);
    told->new_base = SMBASE;
    smi(by_icr, K);
    check((told->cs & 0xffff) == OTHER >> 4 && told->base == OTHER && told->count == 6, "SDM 3C 31.11", "relocated: cs %x base %x count %d",
          (word)told->cs, (word)told->base, (int)told->count);
    told->new_base = 0;
    smi(by_icr, K);
    check((told->cs & 0xffff) == SMBASE >> 4 && told->count == 7, "SDM 3C 31.11", "relocated back: cs %x", (word)told->cs);
    group("system management mode");
}
