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
        "1: movl %ds:0x7034,%ebx\ntest %ebx,%ebx\njz 1f\nmovl %ds:(%ebx),%eax\nmov %eax,%ds:0x7038\nmov %ds:0x703c,%eax\nmovl %eax,%ds:(%ebx)\n"
        "1: rsm\n"
        "handler_end:\n" NATIVE ".popsection");

struct told { u32 count, cs, cr0, flags, revision, base, rip, halted, new_base, new_rax, go_on, pad, cr4, look, seen, leave; };
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

// --- memory for system management mode alone (Intel 3 Series Express Chipset, "SMRAM", "ESMRAMC")

#define SMRAM 0x9d
#define ESMRAMC 0x9e
#define LOW_SMRAM 0xa0000
// In video memory's text buffer.
#define VIDEO 0xb8f00
#define ENABLE 8
#define LOCK 0x10
#define OPEN 0x40
#define MIB 0x100000

static u8 bridge(u8 r) { out32(0xcf8, 0x80000000 | (r & ~3)); return inb(0xcfc + (r & 3)); }
static void set_bridge(u8 r, u8 v) { out32(0xcf8, 0x80000000 | (r & ~3)); outb(0xcfc + (r & 3), v); }
static u32 get(word at) { return *(volatile u32 *)at; }
static void put32(word at, u32 v) { *(volatile u32 *)at = v; }

// What the handler sees at an address, where it leaves another value.
static u32 from_inside(word at, u32 leave) {
    told->look = at, told->leave = leave;
    smi(by_icr, K);
    told->look = 0;
    return told->seen;
}

static void hidden(void) {
    const char *manual = "Intel 3 Series SMRAM";
    u32 n = told->count;
    check(bridge(SMRAM) == 2 && bridge(ESMRAMC) == 0x38, manual, "registers after reset: %x %x", (word)bridge(SMRAM), (word)bridge(ESMRAMC));
    put32(VIDEO, 0x07410742);
    check(get(VIDEO) == 0x07410742, manual, "video memory: %x", (word)get(VIDEO));
    check(from_inside(VIDEO, 0x07430744) == 0x07410742 && get(VIDEO) == 0x07430744, manual, "disabled: video memory from inside too: %x, then %x",
          (word)told->seen, (word)get(VIDEO));
    set_bridge(SMRAM, ENABLE | OPEN);
    put32(VIDEO, 0x12345678);
    memcpy((void *)(word)(LOW_SMRAM + 0x8000), handler, handler_end - handler);
    bool same = true;
    for (int i = 0; i < handler_end - handler; i++) same &= ((volatile u8 *)(word)(LOW_SMRAM + 0x8000))[i] == (u8)handler[i];
    check(same && get(VIDEO) == 0x12345678, manual, "open: memory for all: %x", (word)get(VIDEO));
    set_bridge(SMRAM, ENABLE);
    check(get(VIDEO) == 0x07430744, manual, "closed: video memory is as it was: %x", (word)get(VIDEO));
    check(get(LOW_SMRAM + 0x8000) == 0xffffffff, manual, "closed: the handler is not seen: %x", (word)get(LOW_SMRAM + 0x8000));
    check(from_inside(VIDEO, 0x9abcdef0) == 0x12345678 && get(VIDEO) == 0x07430744, manual, "from inside: memory %x; outside %x",
          (word)told->seen, (word)get(VIDEO));
    put32(VIDEO, 0x07450746);
    check(from_inside(VIDEO, 0x9abcdef0) == 0x9abcdef0, manual, "from inside: what the handler left, %x", (word)told->seen);
    // The handler moves there.
    told->new_base = LOW_SMRAM;
    smi(by_icr, K);
    told->new_base = 0;
    smi(by_icr, K);
    check((told->cs & 0xffff) == LOW_SMRAM >> 4 && told->base == LOW_SMRAM && ctx.vector == DONE && kept(), manual,
          "a handler in hidden memory: cs %x base %x vector %d", (word)told->cs, (word)told->base, (int)ctx.vector);
    told->new_rax = 0x7654321;
    smi(by_icr, K);
    check(ctx.r[RAX] == 0x7654321 && ctx.vector == DONE, manual, "and its state save map: %x", ctx.r[RAX]);
    told->new_rax = 0;
    check(told->count == n + 6 && get(VIDEO) == 0x07450746, manual, "count %d, video memory %x", (int)told->count, (word)get(VIDEO));

    // The last MiB of RAM.
    word end = 32 * MIB, top = end - MIB;
    put32(top - 4, 1), put32(top, 2), put32(end - 4, 3);
    set_bridge(ESMRAMC, 0x39);
    check(get(top - 4) == 1 && get(top) == 0xffffffff && get(end - 4) == 0xffffffff, "Intel 3 Series ESMRAMC", "TSEG from outside: %x %x %x",
          (word)get(top - 4), (word)get(top), (word)get(end - 4));
    put32(top, 7);
    check(from_inside(top, 5) == 2 && get(top) == 0xffffffff, "Intel 3 Series ESMRAMC", "TSEG from inside: %x, outside %x", (word)told->seen, (word)get(top));
    check(from_inside(end - 4, 6) == 3, "Intel 3 Series ESMRAMC", "TSEG's end from inside: %x", (word)told->seen);
    set_bridge(ESMRAMC, 0x3b);
    put32(top - 4, 9);
    check(get(top - 4) == 0xffffffff && get(end - 2 * MIB - 4) != 0xffffffff, "Intel 3 Series ESMRAMC", "TSEG of 2 MiB: %x", (word)get(top - 4));
    set_bridge(ESMRAMC, 0x38);
    check(get(top - 4) == 1 && get(top) == 5 && get(end - 4) == 6, "Intel 3 Series ESMRAMC", "TSEG off: %x %x %x", (word)get(top - 4), (word)get(top),
          (word)get(end - 4));

    // The lock closes, and holds until reset.
    set_bridge(SMRAM, ENABLE | OPEN | LOCK);
    check(bridge(SMRAM) == (2 | ENABLE | LOCK) && get(VIDEO) == 0x07450746, manual, "locked: %x, video memory %x", (word)bridge(SMRAM), (word)get(VIDEO));
    set_bridge(SMRAM, OPEN), set_bridge(ESMRAMC, 1);
    check(bridge(SMRAM) == (2 | ENABLE | LOCK) && bridge(ESMRAMC) == 0x38 && get(VIDEO) == 0x07450746, manual, "and stays so: %x %x %x",
          (word)bridge(SMRAM), (word)bridge(ESMRAMC), (word)get(VIDEO));
    smi(by_icr, K);
    check(told->count == n + 9 && ctx.vector == DONE, manual, "the handler runs on: %d", (int)told->count);
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
    hidden();
    group("system management mode");
}
