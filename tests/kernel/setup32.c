// Descriptor tables and page tables of the 32-bit kernel, and where code under test runs.
#include "kernel.h"

struct ctx ctx;
u64 idt[256] __attribute__((aligned(4096)));
u8 data[8192] __attribute__((aligned(4096)));
u32 directory[1024] __attribute__((aligned(4096)));
u64 pdpt[4] __attribute__((aligned(32)));
struct tss tss, df_tss;
extern char stubs[];
static u32 low_table[1024] __attribute__((aligned(4096)));
static u64 pae_directory[4][512] __attribute__((aligned(4096)));
static u64 pae_low[2][512] __attribute__((aligned(4096)));
static u64 idt_copy[256], gdt_copy[64];

static void load(const void *table, u16 limit, bool is_idt) {
    struct { u16 limit; u32 base; } __attribute__((packed)) t = { limit, (u32)table };
    if (is_idt) asmv("lidt %0" ::"m"(t));
    else asmv("lgdt %0" ::"m"(t));
}

void set_gate(int vector, int dpl, bool present) {
    u32 at = (u32)stubs + vector * 16;
    u64 flags = (present ? 0x8e00 : 0x0e00) | dpl << 13;
    idt[vector] = (at & 0xffff) | CODE0 << 16 | flags << 32 | (u64)(at >> 16) << 48;
}

void set_idt_limit(int limit) { load(idt, limit, true); }

// A descriptor: base, limit in units of its granularity, bits 15:8 and 23:20 of the upper half.
u64 descriptor(u32 base, u32 limit, u32 access, u32 flags) {
    u32 low = (limit & 0xffff) | base << 16;
    u32 high = (base >> 16 & 0xff) | access << 8 | (limit & 0xf0000) | flags << 20 | (base & 0xff000000);
    return low | (u64)high << 32;
}

#define LOW_USER(page) ((page) >= 0x20 && (page) < 0x50)

static void tables(void) {
    for (u32 i = 0; i < 1024; i++) {
        u32 at = i << 22;
        directory[i] = at < USER ? at | 0xe3 : at < 2 * USER ? (at - USER) | 0xe7 : at | 0xe3;
        if (at >= 2 * USER && i < 0x3f0) directory[i] = 0;
        low_table[i] = i << 12 | (LOW_USER(i) ? 0x67 : 0x63);
    }
    directory[0] = (u32)low_table | 0x27;
    for (u32 q = 0; q < 4; q++) {
        pdpt[q] = (u32)pae_directory[q] | 1;
        for (u32 i = 0; i < 512; i++) {
            u64 at = (u64)q << 30 | i << 21;
            pae_directory[q][i] = at < USER ? at | 0xe3 : at < 2 * USER ? (at - USER) | 0xe7 : at >= 0xfc000000 ? at | 0xe3 : 0;
        }
    }
    for (u32 i = 0; i < 1024; i++) pae_low[i >> 9][i & 511] = i << 12 | (LOW_USER(i) ? 0x67 : 0x63);
    for (u32 i = 0; i < 2; i++) pae_directory[0][i] = (u32)pae_low[i] | 0x27;
}

void setup(void) {
    for (int v = 0; v < 256; v++) set_gate(v, v == BP || v == OF || v == DONE ? 3 : 0, true);
    tss.ss0 = DATA0;
    tss.esp0 = (u32)trap_stack_top;
    tss.iomap = sizeof tss;
    gdt[TSS_SEL / 8] = descriptor((u32)&tss, sizeof tss - 1, 0x89, 0);
    load(gdt, 511, false);
    set_idt_limit(2047);
    memcpy(idt_copy, idt, sizeof idt);
    memcpy(gdt_copy, gdt, sizeof gdt_copy);
    asmv("ltr %w0" ::"r"(TSS_SEL));
    tables();
    repage(cr4(), (u32)directory);
}

void restore_tables(void) {
    memcpy(idt, idt_copy, sizeof idt);
    memcpy(gdt, gdt_copy, sizeof gdt_copy);
    set_idt_limit(2047);
}

word user(const void *p) { return (word)p + USER; }

word place(const char *p, const char *code, enum mode m) {
    switch (m) {
    case K: return (word)p;
    case U: return user(p);
    default: return p - code;
    }
}

void prepare(const char *code, enum mode m) {
    static const u16 cs[] = { CODE0, CODE3, CODE0_16, CODE3_16, V86_CODE >> 4 };
    ctx = (struct ctx){ 0 };
    bool inner = m == K || m == K16;
    ctx.ip = place(code, code, m);
    ctx.cs = cs[m];
    ctx.ss = ctx.ds = ctx.es = ctx.fs = ctx.gs = inner ? DATA0 : DATA3;
    ctx.r[RSP] = inner ? (word)snippet_stack_top : user(user_stack_top);
    ctx.flags = 2;
    u32 base = m == K16 ? (u32)code : user(code);
    gdt[(m == K16 ? CODE0_16 : CODE3_16) / 8] = descriptor(base, 0xffff, m == K16 ? 0x9b : 0xfb, 0);
    if (m == V86) {
        ctx.flags |= F_VM;
        ctx.ss = V86_STACK >> 4;
        ctx.ds = ctx.es = ctx.fs = ctx.gs = V86_DATA >> 4;
        ctx.r[RSP] = 0x8000;
        memcpy((void *)V86_CODE, code, 256);
    }
}

bool has(int leaf, int reg, int bit) {
    u32 r[4];
    asmv("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
    return r[reg] >> bit & 1;
}

// An exception of the kernel's own.
void died(word *frame) {
    print("FAIL exception %d error %x at %x:%x flags %x cr2 %x\n", (int)frame[0], frame[1], frame[3], frame[2], frame[4], cr2());
    leave(1);
}
