// Descriptor tables of the 64-bit kernel, and where code under test runs.
#include "kernel.h"

struct ctx ctx;
u64 idt[512] __attribute__((aligned(4096)));
u8 data[8192] __attribute__((aligned(4096)));
extern char stubs[];
static u64 idt_copy[512], gdt_copy[64];
static struct { u32 reserved; u64 rsp[3], reserved2, ist[7], reserved3; u16 reserved4, iomap; } __attribute__((packed)) tss;

static void load(const void *table, u16 limit, bool is_idt) {
    struct { u16 limit; u64 base; } __attribute__((packed)) t = { limit, (u64)table };
    if (is_idt) asmv("lidt %0" ::"m"(t));
    else asmv("lgdt %0" ::"m"(t));
}

void set_gate(int vector, int dpl, bool present) {
    u64 at = (u64)stubs + vector * 16;
    u64 flags = (present ? 0x8e00 : 0x0e00) | dpl << 13 | (vector == DF);
    idt[vector * 2] = (at & 0xffff) | CODE0 << 16 | flags << 32 | (at >> 16 & 0xffff) << 48;
    idt[vector * 2 + 1] = at >> 32;
}

void set_idt_limit(int limit) { load(idt, limit, true); }

void setup(void) {
    for (int v = 0; v < 256; v++) set_gate(v, v == BP || v == OF || v == DONE ? 3 : 0, true);
    tss.rsp[0] = (u64)trap_stack_top;
    tss.ist[0] = (u64)trap_stack_top;
    tss.iomap = sizeof tss;
    u64 at = (u64)&tss;
    gdt[TSS_SEL / 8] = (sizeof tss - 1) | (at & 0xffffff) << 16 | 0x89ULL << 40 | (at >> 24 & 0xff) << 56;
    gdt[TSS_SEL / 8 + 1] = at >> 32;
    load(gdt, 511, false);
    set_idt_limit(4095);
    asmv("ltr %w0" ::"r"(TSS_SEL));
    memcpy(idt_copy, idt, sizeof idt);
    memcpy(gdt_copy, gdt, sizeof gdt_copy);
}

void restore_tables(void) {
    memcpy(idt, idt_copy, sizeof idt);
    memcpy(gdt, gdt_copy, sizeof gdt_copy);
    set_idt_limit(4095);
}

void enter(struct ctx *c);

void run(struct ctx *c) {
    enter(c);
#ifdef DIVIDES
    // As INT n would have it. Only `paging` has code above 4 GiB, where nothing else divides.
    const u8 *at = (const u8 *)(c->ip & ~(word)USER);
    bool far = c->ip >> 32;
    if (c->vector == DE && (far || (at[0] == 0xf6 && at[1] == 0x35))) {
        c->vector = DONE;
        c->ip += 2;
        c->flags &= ~(word)F_RF;
    }
#endif
}

word user(const void *p) { return (word)p + USER; }

word place(const char *p, const char *code, enum mode m) {
    switch (m) {
    case K: return (word)p;
    case C16: return p - code;
    default: return user(p);
    }
}

void prepare(const char *code, enum mode m) {
    static const u16 cs[] = { CODE0, CODE3, CODE3_32, CODE3_16 };
    ctx = (struct ctx){ 0 };
    ctx.ip = place(code, code, m);
    ctx.cs = cs[m];
    ctx.ss = m == K ? DATA0 : DATA3;
    ctx.ds = ctx.ss;
    ctx.r[RSP] = m == K ? (word)snippet_stack_top : user(user_stack_top);
    ctx.flags = 2;
    u64 base = user(code);
    gdt[CODE3_16 / 8] = 0xffff | (base & 0xffffff) << 16 | 0xfbULL << 40 | (base >> 24 & 0xff) << 56;
}

bool has(int leaf, int reg, int bit) {
    u32 r[4];
    asmv("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
    return r[reg] >> bit & 1;
}

SNIPPET(do_rdmsr, 64, "", "rdmsr");
SNIPPET(do_wrmsr, 64, "", "wrmsr");

int try_rdmsr(u32 n, u64 *v) {
    prepare(do_rdmsr, K);
    ctx.r[RCX] = n;
    run(&ctx);
    if (v) *v = (u32)ctx.r[RAX] | ctx.r[RDX] << 32;
    return ctx.vector == DONE ? -1 : (int)ctx.vector;
}

int try_wrmsr(u32 n, u64 v) {
    prepare(do_wrmsr, K);
    ctx.r[RCX] = n;
    ctx.r[RAX] = (u32)v;
    ctx.r[RDX] = v >> 32;
    run(&ctx);
    return ctx.vector == DONE ? -1 : (int)ctx.vector;
}

// An exception of the kernel's own.
void died(word *frame) {
    print("FAIL exception %d error %x at %x:%x flags %x cr2 %x\n", (int)frame[0], frame[1], frame[3], frame[2], frame[4], cr2());
    leave(1);
}
