// What the TLB may keep: global pages, INVLPG, CR3, CR4.PGE, PCID and INVPCID (SDM 3A 4.10); memory type registers (SDM 3A 11.11,
// 11.12) and checks of other MSRs (SDM 4).
#include "kernel.h"

enum { P = 1, W = 2, G = 0x100 };
static u64 tables[3][512] __attribute__((aligned(4096)));
static volatile u32 pages[2][1024] __attribute__((aligned(4096)));
extern u64 pml4[];
#define VA (7ULL << 39)
#define VALUE (*(volatile u32 *)VA)

static void map(int page, u64 flags) { tables[2][0] = (u64)pages[page] | P | W | flags; }

// Touches the page so that the processor may keep its translation, then maps another there.
static void change(u64 flags) {
    map(0, flags);
    invlpg(VA);
    (void)VALUE;
    map(1, flags);
}

// What must be seen: 1 if the old translation must be gone, 0 if it may stay. `expect` tells.
static void must_see_new(const char *what) { check(VALUE == 0x22222222, "SDM 3A 4.10.4.1", "%s: old page seen: %x", what, (word)VALUE); }

SNIPPET(do_invpcid, 64, "", "invpcid (%rdi),%rax");
SNIPPET(do_cr3, 64, "", "mov %rax,%cr3");
SNIPPET(do_cr4, 64, "", "mov %rax,%cr4");

static bool faults(const char *code, word rax, const void *rdi) {
    prepare(code, K);
    ctx.r[RAX] = rax;
    ctx.r[RDI] = (word)rdi;
    run(&ctx);
    return ctx.vector == GP && ctx.error == 0;
}

static void tlb(void) {
    pages[0][0] = 0x11111111;
    pages[1][0] = 0x22222222;
    pml4[7] = (u64)tables[0] | P | W;
    tables[0][0] = (u64)tables[1] | P | W;
    tables[1][0] = (u64)tables[2] | P | W;
    change(0);
    invlpg(VA);
    must_see_new("INVLPG");
    change(0);
    invlpg(VA + 0xfff);
    must_see_new("INVLPG of the page's last byte");
    change(G);
    invlpg(VA);
    must_see_new("INVLPG of a global page");
    change(0);
    set_cr3(cr3());
    must_see_new("MOV to CR3");
    change(G);
    set_cr4(cr4() & ~CR4_PGE);
    set_cr4(cr4() | CR4_PGE);
    must_see_new("CR4.PGE off and on, global page");
    change(G);
    word c0 = cr0();
    (void)c0;
    // An upper entry: INVLPG and MOV to CR3 drop what was kept of it.
    change(0);
    map(0, 0);
    static u64 other[512] __attribute__((aligned(4096)));
    other[0] = (u64)pages[1] | P | W;
    tables[1][0] = (u64)other | P | W;
    invlpg(VA);
    must_see_new("INVLPG after an upper entry changed");
    tables[1][0] = (u64)tables[2] | P | W;
    invlpg(VA);
    (void)VALUE;
    tables[1][0] = (u64)other | P | W;
    set_cr3(cr3());
    must_see_new("MOV to CR3 after an upper entry changed");
    tables[1][0] = (u64)tables[2] | P | W;
    set_cr3(cr3());
    // A page that becomes writable needs nothing more than the fault it caused.
    map(0, 0);
    tables[2][0] &= ~(u64)W;
    invlpg(VA);
    (void)VALUE;
    tables[2][0] |= W;
    VALUE = 0x11111111;
    check(true, "SDM 3A 4.10.4.3", "more rights are seen without INVLPG");
    // Dirty: set by the first write also where the page has been read.
    map(0, 0);
    invlpg(VA);
    (void)VALUE;
    bool clean = !(tables[2][0] & 0x40) && tables[2][0] & 0x20;
    VALUE = 0x11111111;
    check(clean && tables[2][0] & 0x40, "SDM 3A 4.8", "dirty on the first write: %X", tables[2][0]);

    if (has(1, 2, 17)) {
        check(faults(do_cr4, cr4() | CR4_PCIDE, 0) == ((cr3() & 0xfff) != 0), "SDM 3A 4.10.1", "CR4.PCIDE with CR3 %x", cr3());
        set_cr4(cr4() | CR4_PCIDE);
        word root = cr3();
        change(0);
        set_cr3(root | 1);
        must_see_new("another PCID sees its own");
        set_cr3(root);
        must_see_new("MOV to CR3 without bit 63 drops its PCID");
        change(0);
        set_cr3(root | 1ULL << 63);
        check(VALUE == 0x11111111 || VALUE == 0x22222222, "SDM 3A 4.10.4.1", "MOV to CR3 with bit 63 may keep");
        check(!(cr3() >> 63), "SDM 2B MOV", "bit 63 of CR3 is not stored: %x", cr3());
        check(faults(do_cr3, root | 1ULL << 62, 0), "SDM 2B MOV", "CR3 bit 62 is reserved");
        invlpg(VA);
        if (has(7, 1, 10)) {
            change(0);
            invpcid(0, 0, VA);
            must_see_new("INVPCID 0");
            change(0);
            invpcid(1, 0, 0);
            must_see_new("INVPCID 1");
            change(G);
            invpcid(2, 0, 0);
            must_see_new("INVPCID 2, global page");
            change(0);
            invpcid(3, 0, 0);
            must_see_new("INVPCID 3");
            static Invpcid d;
            check(faults(do_invpcid, 4, &d), "SDM 2A INVPCID", "INVPCID 4");
            d.pcid = 0x1000;
            check(faults(do_invpcid, 0, &d), "SDM 2A INVPCID", "INVPCID with reserved bits");
            d.pcid = 0;
            d.va = 1ULL << 63;
            check(faults(do_invpcid, 0, &d), "SDM 2A INVPCID", "INVPCID 0 of a bad address");
        }
        change(0);
        set_cr4(cr4() & ~CR4_PCIDE);
        must_see_new("CR4.PCIDE off");
    }
    pml4[7] = 0;
    set_cr3(cr3());
}

// A large page: INVLPG of any address in it drops all that was kept of it, however small the pieces.
static void large_page(void) {
    enum { PS = 0x80, SIZE = 2 << 20, STEP = 0x11000 };
    // Nothing else uses this RAM. At each step lies a function that returns the frame's number.
    static const u64 frames[2] = { 20 << 20, 22 << 20 };
    static const u64 kept[] = { 0, G };
    for (int i = 0; i < 2; i++)
        for (int at = 0; at + 6 <= SIZE; at += STEP) {
            *(volatile u8 *)(frames[i] + at) = 0xb8; // MOV EAX, imm32
            *(volatile u32 *)(frames[i] + at + 1) = 0x1000 + i;
            *(volatile u8 *)(frames[i] + at + 5) = 0xc3; // RET
        }
    pml4[7] = (u64)tables[0] | P | W;
    for (int k = 0; k < 2; k++) {
        tables[1][0] = frames[0] | P | W | PS | kept[k];
        invlpg(VA);
        // Often enough to be compiled.
        for (int n = 0; n < 300; n++)
            for (int at = 0; at + 6 <= SIZE; at += STEP) (void)((u32(*)(void))(VA + at))();
        tables[1][0] = frames[1] | P | W | PS | kept[k];
        invlpg(VA + SIZE - 0x1234);
        int old_data = 0, old_code = 0;
        for (int at = 0; at + 6 <= SIZE; at += STEP) {
            old_data += *(volatile u32 *)(VA + at + 1) != 0x1001;
            old_code += ((u32(*)(void))(VA + at))() != 0x1001;
        }
        check(!old_data, "SDM 3A 4.10.4.1", "INVLPG of a large page%s: old data in %d places", kept[k] ? ", global" : "", old_data);
        check(!old_code, "SDM 3A 4.10.4.1", "INVLPG of a large page%s: old code in %d places", kept[k] ? ", global" : "", old_code);
    }
    tables[1][0] = 0;
    pml4[7] = 0;
    set_cr4(cr4() ^ CR4_PGE);
    set_cr4(cr4() ^ CR4_PGE);
}

// MSR, bits that may be written, whether all values of the bits are allowed is up to the rows below.
static void value(u32 msr, u64 v, bool allowed, const char *what) {
    u64 old = rdmsr(msr);
    int vector = try_wrmsr(msr, v);
    u64 now = rdmsr(msr);
    if (vector == -1) wrmsr(msr, old);
    check(allowed ? vector == -1 && now == v : vector == GP && now == old, "SDM 4", "%s: MSR %x = %X: vector %d, reads %X", what, (word)msr, v, vector, now);
}

static void msrs(void) {
    u64 cap = rdmsr(0xfe);
    check((cap & 0xff) == 8 && cap & 0x100 && cap & 0x400, "SDM 3A 11.11.1", "IA32_MTRRCAP %X", cap);
    check(try_wrmsr(0xfe, cap) == GP, "SDM 3A 11.11.1", "IA32_MTRRCAP is read-only");
    for (int t = 0; t < 256; t++) {
        bool mtrr = t == 0 || t == 1 || t == 4 || t == 5 || t == 6;
        u64 pat = rdmsr(0x277);
        value(0x277, (pat & ~0xff0000ULL) | (u64)t << 16, mtrr || t == 7, "PAT type");
        value(0x250, t * 0x0101010101010101ULL, mtrr, "MTRR fix64K type");
        value(0x259, (u64)t << 56, mtrr, "MTRR fix16K type");
        value(0x26f, (u64)t << 8, mtrr, "MTRR fix4K type");
        value(0x204, 0x1000000 | t, mtrr, "MTRR base type");
        value(0x2ff, 0xc00 | t, mtrr, "MTRR default type");
    }
    for (int n = 0; n < 8; n++) {
        value(0x200 + 2 * n, 0xffffff000 | 6, true, "MTRR base");
        value(0x200 + 2 * n, 0x100 | 6, false, "MTRR base, reserved bit 8");
        value(0x200 + 2 * n, 1ULL << 40, false, "MTRR base, beyond the width");
        value(0x201 + 2 * n, 0xfffffff800, true, "MTRR mask");
        value(0x201 + 2 * n, 0x400, false, "MTRR mask, reserved bit 10");
        value(0x201 + 2 * n, 1ULL << 40, false, "MTRR mask, beyond the width");
    }
    for (int bit = 0; bit < 64; bit++) {
        bool known = bit == 10 || bit == 11;
        if (bit >= 3) value(0x2ff, 6 | 1ULL << bit, known, "IA32_MTRR_DEF_TYPE");
        // Of EFER: SCE, NXE; LME and LMA cannot change here.
        u64 efer = rdmsr(EFER);
        bool reserved = bit != 0 && bit != 8 && bit != 10 && bit != 11 && bit != 12 && bit != 13 && bit != 14 && bit != 15;
        if (reserved) value(EFER, efer | 1ULL << bit, false, "IA32_EFER");
        // Addresses must be canonical.
        static const u32 address[] = { 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000102, 0x175, 0x176 };
        for (unsigned i = 0; i < sizeof address / sizeof *address; i++) value(address[i], 1ULL << bit, bit < 47, "address");
    }
    value(0xc0000102, 0xffff800000000000, true, "KERNEL_GS_BASE");
    value(0xc0000102, 0xffff000000000000, false, "KERNEL_GS_BASE");
    value(0xc0000084, 1ULL << 32, false, "IA32_FMASK");
    value(0xc0000103, 1ULL << 32, false, "IA32_TSC_AUX");
    value(0xc0000103, 0xffffffff, true, "IA32_TSC_AUX");
    value(0xda0, 0, true, "IA32_XSS");
    value(0xda0, 1, false, "IA32_XSS");
    static const u32 none[] = { 0x7ff, 0x900, 0x10000, 0xc0000085, 0xc0000104, 0xc0011fff, 0x40000000, 0xffffffff };
    for (unsigned i = 0; i < sizeof none / sizeof *none; i++)
        check(try_rdmsr(none[i], 0) == GP && try_wrmsr(none[i], 0) == GP, "SDM 2B RDMSR", "MSR %x is not there", (word)none[i]);
    // LMA is read-only: writing it as it is, and as it is not.
    u64 efer = rdmsr(EFER);
    check(try_wrmsr(EFER, efer & ~0x400ULL) == -1 && rdmsr(EFER) == efer, "APM 2 3.1.7", "EFER.LMA written as 0: %X", rdmsr(EFER));
    u64 tsc = rdmsr(0x10), later = rdmsr(0x10);
    wrmsr(0x10, 0x123456789abc);
    u64 set = rdmsr(0x10);
    check(later > tsc && set >= 0x123456789abc && set < 0x123500000000, "SDM 3B 17.17", "TSC %X, %X, set %X", tsc, later, set);
}

void memory(void) {
    tlb();
    large_page();
    group("TLB and PCID");
    if (left_out("part", "msrs")) return;
    msrs();
    group("MSRs");
}
