// The page-permission matrix: each combination of entries, control bits and kind of access, judged by a model of its own
// (SDM 3A chapter 4 "Paging") and compared with what the processor did: vector, error code, CR2, accessed and dirty bits.
#include "kernel.h"

enum { P = 1, RW = 2, US = 4, ACC = 0x20, DIRTY = 0x40, PS = 0x80 };
#define NX (1ULL << 63)
enum access { READ, WRITE, LOCKED, FETCH, ACCESSES };
enum { E_P = 1, E_W = 2, E_U = 4, E_RSVD = 8, E_I = 16, E_PK = 32 };

// Makes the model wrong, to see that it is told.
#ifndef WRONG_MODEL
#define WRONG_MODEL 0
#endif

#ifdef __x86_64__
#define BITS 64
#else
#define BITS 32
#endif
SNIPPET(do_read, BITS, "", "movl (%edi),%eax");
SNIPPET(do_write, BITS, "", "movl %eax,(%edi)");
SNIPPET(do_locked, BITS, "", "lock addl $0,(%edi)");
SNIPPET(do_fetch, BITS, "", ".byte 0xff,0xe7");
#ifdef __x86_64__
// With 64-bit addresses.
SNIPPET(do_read64, 64, "", "movl (%rdi),%eax");
SNIPPET(do_write64, 64, "", "movl %eax,(%rdi)");
SNIPPET(do_locked64, 64, "", "lock addl $0,(%rdi)");
static const char *const code[] = { do_read64, do_write64, do_locked64, do_fetch };
#else
static const char *const code[] = { do_read, do_write, do_locked, do_fetch };
#endif

// A page with what ends a piece of code at its start; tables below the root for the address under test, one for each level.
static u8 target[4096] __attribute__((aligned(4096)));
static u64 table[6][512] __attribute__((aligned(4096)));

// A paging mode: `root` is the top table, whose index bits start at `shift`; entries of `wide` ? 8 : 4 bytes.
struct format {
    const char *name;
    void *root;
    int levels;
    bool wide;
    // PAE: entries of the top level have no rights, and are loaded with CR3.
    bool pdptes;
    // A large page at this level is a reserved-bit fault (0: none); levels with large pages are bits of `large`.
    int large;
    u64 va;
};

static const struct format *f;
// The entries of the path by level, 1 the last table.
static u64 entry[6];
static int leaf;
static bool smap, smep, wp, nxe, ac, pke;
static u32 pkru;

static int shift(int level) { return f->wide ? 12 + 9 * (level - 1) : 12 + 10 * (level - 1); }

static void *slot(int level) {
    void *t = level == f->levels ? f->root : table[level];
    unsigned i = f->va >> shift(level) & (f->wide ? 511 : 1023);
    if (f->pdptes && level == 3) i &= 3;
    return f->wide ? (void *)((u64 *)t + i) : (void *)((u32 *)t + i);
}

static u64 stored(int level) { return f->wide ? *(u64 *)slot(level) : *(u32 *)slot(level); }

static void store(int level) {
    if (f->wide) *(u64 *)slot(level) = entry[level];
    else *(u32 *)slot(level) = entry[level];
}

static u64 reserved(int level) {
    u64 r = 0;
    if (!f->wide) return level == 2 && leaf == 2 ? 1 << 21 : 0;
    r = (1ULL << 52) - (1ULL << 40);
    if (!f->pdptes || level < 3) r |= nxe ? 0 : NX;
    if (f->pdptes) r |= 0x7ff0000000000000;
    if (level == leaf && leaf > 1) r |= (1ULL << shift(level)) - (1 << 13);
    if (level > 3) r |= PS;
    return r;
}

// What 4.6 "Access Rights" and 4.7 "Page-Fault Exceptions" say: the error code, or -1 if the access is allowed.
static int judge(enum access a, bool user_access) {
    bool write = a == WRITE || a == LOCKED, fetch = a == FETCH;
    int error = (write ? E_W : 0) | (user_access ? E_U : 0);
    if (fetch && (smep || (nxe && f->wide))) error |= E_I;
    bool us = true, rw = true, nx = false;
    for (int l = f->levels; l >= leaf; l--) {
        if (!(entry[l] & P)) return error;
        if (entry[l] & reserved(l)) return error | E_P | E_RSVD;
        if (f->pdptes && l == 3) continue;
        us &= (entry[l] & US) != 0;
        rw &= (entry[l] & RW) != 0;
        nx |= f->wide && (entry[l] & NX) != 0;
    }
    bool ok;
    if (fetch) ok = user_access ? us && !nx : !nx && !(us && smep);
    else if (user_access) ok = (us || WRONG_MODEL) && (!write || rw);
    else ok = !(us && smap && !ac) && (!write || rw || !wp);
    if (!fetch && pke && us) {
        int key = entry[leaf] >> 59 & 15;
        bool ad = pkru >> (2 * key) & 1, wd = pkru >> (2 * key + 1) & 1;
        if (ad || (wd && write && (user_access || wp))) return error | E_P | E_PK;
    }
    return ok ? -1 : (int)(error | E_P);
}

static void describe(enum access a, bool user_access) {
    static const char *const names[] = { "read", "write", "locked", "fetch" };
    print("  %s %s cr0.wp %d smep %d smap %d nxe %d ac %d pke %d, entries", user_access ? "user" : "supervisor", names[a], wp, smep, smap,
          nxe, ac, pke);
    for (int l = f->levels; l >= leaf; l--) print(" %X", entry[l]);
    print("\n");
}

static void try(enum access a, bool user_access) {
    for (int l = f->levels; l >= leaf; l--) store(l);
    if (f->pdptes) set_cr3(cr3());
    invlpg(f->va);
    prepare(code[a], user_access ? U : K);
    ctx.r[RDI] = f->va + (a == FETCH ? 0 : 0x800);
    if (ac) ctx.flags |= F_AC;
    run(&ctx);
    int want = judge(a, user_access);
    bool ok;
    if (want < 0) {
        ok = ctx.vector == DONE;
        for (int l = f->levels; l >= leaf && ok; l--) {
            bool none = f->pdptes && l == 3;
            u64 ad = none ? 0 : ACC | (l == leaf && (a == WRITE || a == LOCKED) ? DIRTY : 0);
            ok = stored(l) == (entry[l] | ad);
        }
        ok = check(ok, "SDM 3A 4.8", "%s: allowed: vector %d error %x, leaf %X", f->name, (int)ctx.vector, ctx.error, stored(leaf));
    } else {
        ok = ctx.vector == PF && ctx.error == (word)want && ctx.cr2 == ctx.r[RDI] && !(stored(leaf) & DIRTY & ~entry[leaf]);
        ok = check(ok, "SDM 3A 4.7", "%s: error %x: vector %d error %x cr2 %x", f->name, (word)want, (int)ctx.vector, ctx.error, ctx.cr2);
    }
    if (!ok) describe(a, user_access);
}

static void path(void) {
    u64 all = P | RW | US;
    for (int l = f->levels; l > 1; l--) entry[l] = (u64)(word)table[l - 1] | (f->pdptes && l == 3 ? (u64)P : all);
    u64 page = (u64)(word)target & ~((1ULL << shift(leaf)) - 1);
    entry[leaf] = page | all | (leaf > 1 ? PS : 0);
}

static void accesses(void) {
    for (enum access a = READ; a < ACCESSES; a++) {
        // ID of a row: LOCKED is as WRITE, once.
        if (a == LOCKED && (smap || smep)) continue;
        try(a, false);
        try(a, true);
    }
}

static void entries(void) {
    // Rights of the leaf, all above permissive.
    for (int bits = 0; bits < 16; bits++) {
        path();
        entry[leaf] = (entry[leaf] & ~7ULL) | (bits & 7) | (bits & 8 && f->wide ? NX : 0);
        if (bits & 8 && !f->wide) continue;
        accesses();
    }
    // One entry above it takes something away, or has a reserved bit.
    for (int l = leaf + 1; l <= f->levels; l++) {
        bool rights = !(f->pdptes && l == 3);
        for (int kind = 0; kind < 6; kind++) {
            path();
            if (kind == 0) entry[l] &= ~(u64)P;
            else if (rights && kind == 1) entry[l] &= ~(u64)RW;
            else if (rights && kind == 2) entry[l] &= ~(u64)US;
            else if (rights && kind == 3 && f->wide) entry[l] |= NX;
            else if (rights && kind == 4 && f->wide) entry[l] |= 1ULL << 51;
            else if (kind == 5 && l > 3) entry[l] |= PS;
            else continue;
            accesses();
        }
    }
    // Reserved bits of the leaf.
    path();
    entry[leaf] |= f->wide ? 1ULL << 51 : leaf > 1 ? 1 << 21 : 0;
    accesses();
    if (f->wide && leaf > 1) {
        path();
        entry[leaf] |= 1 << 13;
        accesses();
    }
    if (f->wide) {
        path();
        entry[leaf] |= 1ULL << 40;
        accesses();
        // Bits 58:52 are for software, and so are 11:9; not so in PAE entries (62:52 reserved).
        path();
        entry[leaf] |= 1ULL << 52 | 7 << 9;
        accesses();
    }
}

static void controls(u64 old_cr4) {
    for (int c = 0; c < 32; c++) {
        wp = c & 1;
        smep = c & 2;
        smap = c & 4;
        nxe = c & 8;
        ac = c & 16;
        if (ac && !smap) continue;
        // The interesting combinations of WP with the others.
        if (!wp && smep) continue;
        set_cr0(wp ? cr0() | CR0_WP : cr0() & ~CR0_WP);
        set_cr4(old_cr4 | (smep ? CR4_SMEP : 0) | (smap ? CR4_SMAP : 0));
        wrmsr(EFER, nxe ? rdmsr(EFER) | EFER_NXE : rdmsr(EFER) & ~(u64)EFER_NXE);
        entries();
    }
    wp = nxe = true;
    smep = smap = ac = false;
    set_cr0(cr0() | CR0_WP);
    set_cr4(old_cr4);
    wrmsr(EFER, rdmsr(EFER) | EFER_NXE);
}

#ifdef __x86_64__
static void set_pkru(u32 v) { asmv("wrpkru" ::"a"(v), "c"(0), "d"(0)); }

static void keys(u64 old_cr4) {
    set_cr4(old_cr4 | CR4_PKE);
    pke = true;
    for (int key = 0; key < 16; key += 5) {
        for (int bits = 0; bits < 8; bits++) {
            wp = bits & 4;
            set_cr0(wp ? cr0() | CR0_WP : cr0() & ~CR0_WP);
            // Key 0 is that of the kernel's own pages for users: their stack.
            pkru = (u32)(bits & 3) << (2 * key);
            for (int us = 0; us < 4; us++) {
                path();
                entry[leaf] = (entry[leaf] & ~6ULL) | us << 1 | (u64)key << 59;
                for (enum access a = READ; a < ACCESSES; a++) {
                    set_pkru(pkru);
                    try(a, false);
                    try(a, true);
                    set_pkru(0);
                }
            }
        }
    }
    pke = false;
    wp = true;
    set_cr0(cr0() | CR0_WP);
    set_cr4(old_cr4);
}
#endif

void permissions(const struct format *format) {
    f = format;
#ifdef DIVIDES
    // RCX is 0.
    target[0] = 0xf6;
    target[1] = 0xf1;
#else
    target[0] = 0xcd;
    target[1] = DONE;
#endif
    u64 old_cr4 = cr4();
    for (leaf = 1; leaf <= 3; leaf++) {
        if (!(f->large >> leaf & 1)) continue;
        controls(old_cr4);
#ifdef __x86_64__
        if (has(7, 2, 3)) keys(old_cr4);
#endif
    }
    leaf = f->levels;
    entry[leaf] = 0;
    store(leaf);
    set_cr3(cr3());
    group(f->name);
}

#ifdef __x86_64__
extern u64 pml4[], pml5[];
void relevel(u32 cr4, u32 cr3);

void paging(void) {
    // The leaf of a 1 GiB page is at 0, so all pages show the target at the same offset.
    u64 va = 3ULL << 39 | (u64)target;
    int large = 1 << 1 | 1 << 2 | (has(0x80000001, 3, 26) ? 1 << 3 : 0);
    permissions(&(struct format){ "4-level paging", pml4, 4, true, false, large, va });
    if (!has(7, 2, 16)) return;
    relevel(cr4() | CR4_LA57, (u32)(word)pml5);
    permissions(&(struct format){ "5-level paging", pml5, 5, true, false, large, 5ULL << 48 | (u64)target });
    relevel(cr4() & ~CR4_LA57, (u32)(word)pml4);
}
#else
void paging(void) {
    u32 old = cr4();
    // Without PSE, bit 7 of a directory entry is ignored: only 4 KiB pages.
    permissions(&(struct format){ "32-bit paging", directory, 2, false, false, 1 << 1 | 1 << 2, 0x80000000 | (u32)target });
    repage(old | CR4_PAE, (u32)pdpt);
    permissions(&(struct format){ "PAE paging", pdpt, 3, true, true, 1 << 1 | 1 << 2, 0x80000000 | (u32)target });
    repage(old, (u32)directory);
}
#endif
