// Local APIC: registers and their access rules in xAPIC and x2APIC mode, mode changes by IA32_APIC_BASE, self-IPIs, timer (SDM 3A
// chapter 10 "Advanced Programmable Interrupt Controller").
#include "kernel.h"

#define APIC 0xfee00000
#define APIC_BASE 0x1b
#define EN 0x800
#define EXTD 0x400

static u32 get(u32 r) { return *(volatile u32 *)(word)(APIC + r); }
static void put(u32 r, u32 v) { *(volatile u32 *)(word)(APIC + r) = v; }

// Register, bits that can be written in xAPIC mode, value to write besides.
static const struct { u16 reg; u32 writable; const char *name; } xapic[] = {
    { 0x80, 0xff, "TPR" },          { 0xd0, 0xff000000, "LDR" },     { 0xe0, 0xf0000000, "DFR" },      { 0xf0, 0x13ff, "SVR" },
    { 0x310, 0xff000000, "ICR 2" }, { 0x320, 0x700ff, "LVT timer" }, { 0x330, 0x107ff, "LVT thermal" }, { 0x340, 0x107ff, "LVT counters" },
    { 0x350, 0x1a7ff, "LVT LINT0" }, { 0x360, 0x1a7ff, "LVT LINT1" }, { 0x370, 0x100ff, "LVT error" },  { 0x3e0, 0xb, "divide" },
};

static void registers(void) {
    put(0xf0, 0x1ff);
    for (unsigned i = 0; i < sizeof xapic / sizeof *xapic; i++) {
        u32 r = xapic[i].reg, old = get(r), w = xapic[i].writable;
        bool lvt = r >= 0x320 && r < 0x380;
        // Masked, so that nothing comes of it; the software-enable bit stays.
        u32 keep = lvt ? 1 << 16 : r == 0xf0 ? 0x100 : 0;
        put(r, 0xffffffff);
        u32 ones = get(r);
        put(r, keep);
        u32 zeros = get(r);
        put(r, old);
        u32 fixed = r == 0xe0 ? 0x0fffffff : 0;
        check(ones == (w | fixed) && zeros == (keep | fixed), "SDM 3A 10.4.1", "%s: ones read %x, zeros %x", xapic[i].name, (word)ones, (word)zeros);
    }
    // Read-only.
    static const u16 ro[] = { 0x30, 0xa0, 0x100, 0x180, 0x200, 0x390 };
    for (unsigned i = 0; i < sizeof ro / sizeof *ro; i++) {
        u32 old = get(ro[i]);
        put(ro[i], ~old);
        check(get(ro[i]) == old, "SDM 3A 10.4.1", "register %x is read-only", (word)ro[i]);
    }
    check((get(0x30) & 0xff) >= 0x10 && (get(0x30) >> 16 & 0xff) >= 5, "SDM 3A 10.4.8", "version %x", (word)get(0x30));
    // A write to ESR brings the errors since the last one: there is no register 40h.
    put(0x370, 1 << 16);
    put(0x280, 0);
    put(0x40, 0);
    put(0x280, 0);
    check(get(0x280) == 0x80, "SDM 3A 10.5.3", "illegal register: ESR %x", (word)get(0x280));
    put(0x280, 0);
    // TPR is CR8.
    put(0x80, 0x50);
    word cr8;
    asmv("mov %%cr8,%0" : "=r"(cr8));
    check(cr8 == 5, "SDM 3A 10.8.6.1", "CR8 %x after TPR 50h", cr8);
    asmv("mov %0,%%cr8" ::"r"(9L));
    check(get(0x80) == 0x90 && get(0xa0) == 0x90, "SDM 3A 10.8.6.1", "TPR %x PPR %x after CR8 9", (word)get(0x80), (word)get(0xa0));
    put(0x80, 0);
}

SNIPPET(wait_sti, 64, "", "sti\nnop\nnop\nnop\ncli");

// What arrives with interrupts enabled for a moment; -1 for nothing.
static int arrives(void) {
    prepare(wait_sti, K);
    run(&ctx);
    return ctx.vector == DONE ? -1 : (int)ctx.vector;
}

static void interrupts(void (*send)(u32 vector), void (*eoi)(void), void (*tpr)(u32), const char *mode) {
    send(0x71);
    int v = arrives();
    check(v == 0x71, "SDM 3A 10.6", "%s: self-IPI 71h: %d", mode, v);
    check(ctx.ip == (word)wait_sti + 2, "SDM 2B STI", "%s: one instruction behind STI, at %x not %x", mode, ctx.ip, (word)wait_sti + 2);
    // In service: the same class and lower ones wait.
    send(0x7f);
    v = arrives();
    check(v == -1, "SDM 3A 10.8.3.1", "%s: 7fh while 71h is in service: %d", mode, v);
    send(0x81);
    v = arrives();
    check(v == 0x81, "SDM 3A 10.8.3.1", "%s: 81h while 71h is in service: %d", mode, v);
    eoi();
    v = arrives();
    check(v == -1, "SDM 3A 10.8.5", "%s: 71h is still in service: %d", mode, v);
    eoi();
    v = arrives();
    check(v == 0x7f, "SDM 3A 10.8.5", "%s: then 7fh: %d", mode, v);
    eoi();
    // The task priority.
    tpr(0x90);
    send(0x95);
    v = arrives();
    check(v == -1, "SDM 3A 10.8.3.1", "%s: 95h with TPR 90h: %d", mode, v);
    tpr(0x8f);
    v = arrives();
    check(v == 0x95, "SDM 3A 10.8.3.1", "%s: 95h with TPR 8fh: %d", mode, v);
    eoi();
    tpr(0);
    // Two at once: the higher first.
    send(0x31);
    send(0xe1);
    v = arrives();
    check(v == 0xe1, "SDM 3A 10.8.3", "%s: e1h before 31h: %d", mode, v);
    eoi();
    v = arrives();
    check(v == 0x31, "SDM 3A 10.8.3", "%s: then 31h: %d", mode, v);
    eoi();
}

static void x_send(u32 vector) { put(0x300, 0x44000 | vector); }
static void x_eoi(void) { put(0xb0, 0); }
static void x_tpr(u32 v) { put(0x80, v); }
static void x2_send(u32 vector) { wrmsr(0x83f, vector); }
static void x2_eoi(void) { wrmsr(0x80b, 0); }
static void x2_tpr(u32 v) { wrmsr(0x808, v); }

static void base(const char *what, u64 v, bool allowed) {
    int vector = try_wrmsr(APIC_BASE, v);
    u64 now = rdmsr(APIC_BASE);
    check(allowed ? vector == -1 && now == v : vector == GP && now != v, "SDM 3A 10.12.5", "%s: IA32_APIC_BASE = %X: vector %d, now %X", what, v, vector, now);
}

// x2APIC registers: whether they can be read, and bits that can be written (all zeros: none but 0).
enum { RO = 1, WO = 2, RW = 3 };
static const struct { u16 reg; u8 access; u64 writable; } x2apic[] = {
    { 0x02, RO, 0 },      { 0x03, RO, 0 },       { 0x08, RW, 0xff },    { 0x0a, RO, 0 },       { 0x0b, WO, 0 },       { 0x0d, RO, 0 },
    { 0x0f, RW, 0x13ff }, { 0x10, RO, 0 },       { 0x17, RO, 0 },       { 0x18, RO, 0 },       { 0x1f, RO, 0 },       { 0x20, RO, 0 },
    { 0x27, RO, 0 },      { 0x28, RW, 0 },       { 0x32, RW, 0x710ff }, { 0x33, RW, 0x117ff }, { 0x34, RW, 0x117ff }, { 0x35, RW, 0x1f7ff },
    { 0x36, RW, 0x1f7ff }, { 0x37, RW, 0x110ff }, { 0x38, RW, 0xffffffff }, { 0x39, RO, 0 },   { 0x3e, RW, 0xb },
};

static void x2_registers(void) {
    for (u32 r = 0; r < 0x40; r++) {
        unsigned access = 0;
        u64 writable = 0;
        for (unsigned i = 0; i < sizeof x2apic / sizeof *x2apic; i++)
            if (x2apic[i].reg == r) access = x2apic[i].access, writable = x2apic[i].writable;
        bool vectors = r >= 0x10 && r < 0x28;
        if (vectors) access = RO;
        // ICR and SELF IPI would send something.
        if (r == 0x30 || r == 0x3f) continue;
        u64 v = 0;
        int vector = try_rdmsr(0x800 + r, &v);
        check(access & RO ? vector == -1 : vector == GP, "SDM 3A table 10-6", "x2APIC: read of %x: vector %d", (word)(0x800 + r), vector);
        u64 old = access & RO ? v : 0;
        u64 value = r == 0x0f ? 0x1ff : access == RW && r >= 0x32 && r <= 0x37 ? 1 << 16 : 0;
        vector = try_wrmsr(0x800 + r, value);
        check(access & WO ? vector == -1 : vector == GP, "SDM 3A table 10-6", "x2APIC: write of %X to %x: vector %d", value, (word)(0x800 + r), vector);
        if (!(access & WO)) continue;
        for (int bit = 0; bit < 64; bit++) {
            // Masks and modes that would let something come are left alone.
            if (writable >> bit & 1) continue;
            vector = try_wrmsr(0x800 + r, value | 1ULL << bit);
            check(vector == GP, "SDM 3A 10.12.1.2", "x2APIC: reserved bit %d of %x: vector %d", bit, (word)(0x800 + r), vector);
        }
        if (access == RW && r != 0x28) wrmsr(0x800 + r, old);
    }
    check(try_rdmsr(0x83f, 0) == GP, "SDM 3A table 10-6", "x2APIC: SELF IPI is write-only");
    check(try_rdmsr(0x831, 0) == GP && try_wrmsr(0x831, 0) == GP, "SDM 3A table 10-6", "x2APIC: there is no 831h");
    check(try_wrmsr(0x830, 1ULL << 20) == GP && try_wrmsr(0x830, 1 << 13) == GP, "SDM 3A 10.12.9", "x2APIC: reserved bits of ICR");
    u64 id = rdmsr(0x802), ldr = rdmsr(0x80d);
    check(ldr == ((id >> 4) << 16 | 1 << (id & 15)), "SDM 3A 10.12.10.2", "x2APIC: LDR %X of id %X", ldr, id);
    // ICR to itself by physical and logical destination.
    wrmsr(0x830, id << 32 | 0x4061);
    int v = arrives();
    check(v == 0x61, "SDM 3A 10.12.9", "x2APIC: physical destination: %d", v);
    wrmsr(0x80b, 0);
    wrmsr(0x830, ldr << 32 | 0x4862);
    v = arrives();
    check(v == 0x62, "SDM 3A 10.12.10", "x2APIC: logical destination: %d", v);
    wrmsr(0x80b, 0);
}

void apic(void) {
    // The 8259s stay silent.
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    registers();
    interrupts(x_send, x_eoi, x_tpr, "xAPIC");
    u64 b = rdmsr(APIC_BASE);
    check(b & EN && !(b & EXTD) && b & 0x100, "SDM 3A 10.4.4", "IA32_APIC_BASE %X", b);
    for (u32 r = 0x800; r < 0x840; r++) check(try_rdmsr(r, 0) == GP, "SDM 3A 10.12.2", "xAPIC: MSR %x can be read", (word)r);
    base("reserved bit 0", b | 1, false);
    base("reserved bit 9", b | 0x200, false);
    base("address beyond the width", b | 1ULL << 52, false);
    if (has(1, 2, 21)) {
        base("x2APIC without EN", (b & ~(u64)EN) | EXTD, false);
        base("to x2APIC", b | EXTD, true);
        base("from x2APIC to xAPIC", b, false);
        x2_registers();
        interrupts(x2_send, x2_eoi, x2_tpr, "x2APIC");
        check(get(0x20) == 0xffffffff || get(0x20) == 0, "SDM 3A 10.12.2", "x2APIC: the page does not answer: %x", (word)get(0x20));
        base("x2APIC: EN off alone", (b & ~(u64)EN) | EXTD, false);
        base("from x2APIC to disabled", b & ~(u64)EN, true);
        base("from disabled to x2APIC", b | EXTD, false);
        base("from disabled to xAPIC", b, true);
    } else {
        base("x2APIC that is not there", b | EXTD, false);
    }
    check(get(0xf0) == 0xff, "SDM 3A 10.4.7.1", "SVR %x after it was disabled", (word)get(0xf0));
    put(0xf0, 0x1ff);
    group("local APIC");
}
