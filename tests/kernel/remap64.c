// Code whose page is mapped elsewhere: by jumps and calls from another page, and by an instruction in two pages. Each is run until
// an engine may have compiled and linked it (SDM 3A 4.10.4).
#include "kernel.h"

enum { P = 1, W = 2, G = 0x100, OFTEN = 3000 };
#define VA (6ULL << 39)
#define CALLS VA
#define JUMPS (VA + 0x20)
#define STRADDLES (VA + 0xffe)
#define TARGET (VA + 0x1010)
#define CALLER (VA + 0x2000)

static u64 tables[3][512] __attribute__((aligned(4096)));
// Another address space, which has the target elsewhere.
static u64 other_root[512] __attribute__((aligned(4096))), other[3][512] __attribute__((aligned(4096)));
static u8 source[4096] __attribute__((aligned(4096))), target[2][4096] __attribute__((aligned(4096)));
static u8 caller[2][4096] __attribute__((aligned(4096)));
extern u64 pml4[];

static void put(u8 *to, const char *bytes, int n) {
    for (int i = 0; i < n; i++) to[i] = (u8)bytes[i];
}

static void write_code(void) {
    put(source, "\xe8\x0b\x10\x00\x00\xc3", 6);     // call TARGET; ret
    put(source + 0x20, "\xe9\xeb\x0f\x00\x00", 5);  // jmp TARGET
    put(source + 0xffe, "\xb8\x00", 2);             // mov $0x...00,%eax: the rest is in the target's page
    put(target[0], "\x01\x00\x00\xc3", 4);
    put(target[1], "\x02\x00\x00\xc3", 4);
    put(target[0] + 0x10, "\xb8\x01\x00\x00\x00\xc3", 6);  // mov $1,%eax; ret
    put(target[1] + 0x10, "\xb8\x02\x00\x00\x00\xc3", 6);
    put(target[0] + 0x30, "\xff\x64\x24\x08", 4);  // jmp *8(%rsp)
    for (int n = 0; n < 2; n++) {
        // push %rdi; call *(%rsp) twice; pop %rcx; mov $n+1,%eax; ret
        put(caller[n], "\x57\xff\x14\x24\xff\x14\x24\x59\xb8\x00\x00\x00\x00\xc3", 14);
        // The same by TARGET + 20h.
        put(caller[n] + 0x20, "\x57\xe8\x0a\xf0\xff\xff\xe8\x05\xf0\xff\xff\x59\xb8\x00\x00\x00\x00\xc3", 18);
        caller[n][9] = caller[n][0x2d] = (u8)(n + 1);
    }
}

static void tree(u64 *root, u64 (*t)[512], int page, u64 flags) {
    root[6] = (u64)t[0] | P | W;
    t[0][0] = (u64)t[1] | P | W;
    t[1][0] = (u64)t[2] | P | W;
    t[2][0] = (u64)source | P | flags;
    t[2][1] = (u64)target[page] | P | flags;
}

static u32 call(u64 at) { return ((u32(*)(void))at)(); }

// What the three ways of getting there found; 0: different things.
static u32 found(void) {
    u32 a = call(CALLS), b = call(JUMPS), c = call(STRADDLES) >> 8;
    return a == b && b == c ? a : 0;
}

static void often(u32 expect, const char *what) {
    u32 wrong = 0;
    for (int i = 0; i < OFTEN; i++) wrong += found() != expect;
    check(wrong == 0, "SDM 3A 4.10.4", "%s: %x of many runs wrong", what, (word)wrong);
}

static void switch_to(int page) { tables[2][1] = (u64)target[page] | P | (tables[2][1] & G); }

enum how { INVLPG, CR3, PGE, ROOT, HOWS };

static void change(enum how how) {
    word root = cr3();
    switch (how) {
    case INVLPG: invlpg(VA + 0x1000); break;
    case CR3: set_cr3(root); break;
    case PGE: set_cr4(cr4() & ~CR4_PGE), set_cr4(cr4() | CR4_PGE); break;
    default: set_cr3((word)other_root), set_cr3(root);
    }
}

static void remapped(u64 flags, enum how how, const char *what) {
    tree(pml4, tables, 0, flags);
    change(PGE);
    often(1, what);
    for (int n = 0; n < 6; n++) {
        int page = (n + 1) & 1;
        switch_to(page);
        change(how);
        u32 now = found();
        check(now == (u32)page + 1, "SDM 3A 4.10.4.1", "%s: old code runs: %x", what, (word)now);
        often(page + 1, what);
    }
}

static void between_spaces(void) {
    tree(pml4, tables, 0, 0);
    for (int i = 0; i < 512; i++) other_root[i] = pml4[i];
    tree(other_root, other, 1, 0);
    change(PGE);
    word root = cr3();
    u32 wrong = 0;
    for (int i = 0; i < OFTEN; i++) {
        set_cr3((word)other_root);
        wrong += found() != 2;
        set_cr3(root);
        wrong += found() != 1;
    }
    check(wrong == 0, "SDM 3A 4.10.4.1", "two address spaces: %x runs saw the other's code", (word)wrong);
}

// The page of a call is mapped elsewhere before the call returns: what follows the call is the new page's.
static struct { int page, moves, count; enum how how; } moving;

static void move_caller(void) {
    if (!moving.moves || moving.count++ % 3) return;
    moving.page ^= 1;
    tables[2][2] = (u64)caller[moving.page] | P;
    if (moving.how == INVLPG) invlpg(CALLER);
    else change(moving.how);
}

static void moved_callers(enum how how, const char *what) {
    tree(pml4, tables, 0, 0);
    for (int direct = 0; direct < 2; direct++) {
        u32 (*code)(void (*)(void)) = (void *)(CALLER + (direct ? 0x20 : 0));
        moving.how = how, moving.page = 0, moving.moves = 0;
        tables[2][2] = (u64)caller[0] | P;
        change(PGE);
        u32 wrong = 0;
        for (int i = 0; i < 2 * OFTEN; i++) {
            moving.moves = i > OFTEN;
            wrong += code(move_caller) != (u32)moving.page + 1;
        }
        check(wrong == 0, "SDM 3A 4.10.4.1", "%s, %x: %x returns to old code", what, (word)direct, (word)wrong);
    }
}

static void unmapped(u64 at, u64 cr2, const char *what) {
    tree(pml4, tables, 0, 0);
    change(PGE);
    often(1, what);
    tables[2][1] = 0;
    invlpg(VA + 0x1000);
    prepare((const char *)at, K);
    run(&ctx);
    check(ctx.vector == PF && ctx.cr2 == cr2, "SDM 3A 4.7", "%s: vector %x at %X", what, ctx.vector, ctx.cr2);
}

// Address spaces with identifiers (SDM 3A 4.10.1): MOV to CR3 with bit 63 may find what was kept of each.
#define KEEP (1ULL << 63)
#define DATA (VA + 0x3000)
static u8 shared[4096] __attribute__((aligned(4096)));

static void go_to(u64 pcid, u64 keep) { set_cr3((pcid ? (word)other_root : (word)pml4) | pcid | keep); }

static void alternate(u64 pcids, u32 expect, const char *what) {
    u32 wrong = 0;
    for (int i = 0; i < OFTEN; i++) {
        u64 pcid = 1 + i % pcids;
        go_to(pcid, KEEP);
        wrong += found() != expect;
        go_to(0, KEEP);
        wrong += found() != 1;
    }
    check(wrong == 0, "SDM 3A 4.10.1", "%s: %x runs saw another's code", what, (word)wrong);
}

enum { PAGE_OF_ONE, ALL_OF_ONE, ALL_AND_GLOBAL, ALL, NOT_KEPT, PGE_OFF_AND_ON, DROPS };

// The other space's code is mapped elsewhere while the processor is in this one.
static void changed_while_away(int how) {
    static const char *const names[] = { "INVPCID 0", "INVPCID 1", "INVPCID 2", "INVPCID 3", "MOV to CR3 without bit 63", "CR4.PGE" };
    u32 wrong = 0;
    for (int n = 0; n < 20; n++) {
        int page = n & 1;
        other[2][1] = (u64)target[page] | P;
        if (how < NOT_KEPT) invpcid(how, 1, VA + 0x1000);
        if (how == PGE_OFF_AND_ON) change(PGE);
        go_to(1, how == NOT_KEPT ? 0 : KEEP);
        for (int i = 0; i < 50; i++) wrong += found() != (u32)page + 1;
        go_to(0, KEEP);
        wrong += found() != 1;
    }
    check(wrong == 0, "SDM 3A 4.10.4.1", "%s of a space that was left: %x runs saw old code", names[how], (word)wrong);
}

// Code is written from another space, or by entries that were kept from before it was code.
static void written_while_away(void) {
    u32 wrong = 0;
    for (int i = 0; i < 200; i++) {
        u8 value = (u8)(i + 3);
        target[1][0] = target[1][0x11] = value;
        go_to(1, KEEP);
        wrong += found() != value;
        *(volatile u8 *)(DATA + 1) = value;
        go_to(0, KEEP);
        wrong += call(DATA) != value;
    }
    target[1][0] = target[1][0x11] = 2;
    check(wrong == 0, "SDM 3A 11.6", "code written in another space: %x old runs", (word)wrong);
}

static void with_identifiers(void) {
    if (!has(1, 2, 17)) return;
    tree(pml4, tables, 0, 0);
    for (int i = 0; i < 512; i++) other_root[i] = pml4[i];
    tree(other_root, other, 1, 0);
    put(shared, "\xb8\x00\x00\x00\x00\xc3", 6);
    tables[2][3] = (u64)shared | P;
    other[2][3] = (u64)shared | P | W;
    set_cr4(cr4() | CR4_PCIDE);
    alternate(1, 2, "two identifiers");
    alternate(11, 2, "twelve identifiers");
    for (int how = has(7, 1, 10) ? 0 : NOT_KEPT; how < DROPS; how++) changed_while_away(how);
    other[2][1] = (u64)target[1] | P;
    go_to(1, 0), go_to(0, 0);
    written_while_away();
    alternate(1, 2, "two identifiers after all that");
    set_cr4(cr4() & ~CR4_PCIDE);
}

// Computed targets that are not canonical, by code that has gone elsewhere so often that an engine may know its targets.
SNIPPET(jump_to, 64, "", "jmp *%rax");
SNIPPET(return_to, 64, "", "push %rax\nret");
SNIPPET(call_to, 64, "", "call *%rax");

static void not_canonical(const char *code, const char *end, const char *at, word pushed, const char *what) {
    u32 wrong = 0;
    for (int n = 0; n < 300; n++) {
        prepare(code, K);
        ctx.r[RAX] = (word)end;
        run(&ctx);
        wrong += ctx.vector != DONE;
    }
    prepare(code, K);
    word rsp = ctx.r[RSP];
    ctx.r[RAX] = 1ULL << 60;
    run(&ctx);
    bool right = ctx.vector == GP && ctx.error == 0 && ctx.ip == (word)at && ctx.r[RSP] == rsp - pushed;
    check(right && !wrong, "SDM 2 JMP", "%s to no canonical address: vector %d at %X, %x wrong before", what, (int)ctx.vector, ctx.ip, (word)wrong);
}

void remap(void) {
    write_code();
    tree(pml4, tables, 0, 0);
    for (int i = 0; i < 512; i++) other_root[i] = pml4[i];
    remapped(0, INVLPG, "INVLPG");
    remapped(0, CR3, "MOV to CR3");
    remapped(0, ROOT, "another CR3 and back");
    remapped(0, PGE, "CR4.PGE");
    remapped(G, INVLPG, "INVLPG of global code");
    remapped(G, PGE, "CR4.PGE and global code");
    moved_callers(INVLPG, "INVLPG of a caller's page");
    moved_callers(CR3, "MOV to CR3 in a callee");
    moved_callers(PGE, "CR4.PGE in a callee");
    between_spaces();
    with_identifiers();
    unmapped(CALLS, TARGET, "call to an absent page");
    unmapped(JUMPS, TARGET, "jump to an absent page");
    unmapped(STRADDLES, VA + 0x1000, "absent second page");
    not_canonical(jump_to, jump_to_end, jump_to_at, 0, "jump");
    not_canonical(return_to, return_to_end, return_to_at + 1, 8, "return");
    not_canonical(call_to, call_to_end, call_to_at, 0, "call");
    pml4[6] = 0;
    set_cr3(cr3());
    group("code mapped elsewhere");
}
