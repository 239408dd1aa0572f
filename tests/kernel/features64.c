// Instructions with rules of their own: XSAVES and its like, XSETBV, FSGSBASE, RDPID, MONITOR and MWAIT, INS and OUTS that fault,
// CLFLUSHOPT and CLWB, RDRAND, the TSC deadline (SDM 2; SDM 1 chapter 13; SDM 3A 10.5.4.1).
#include "kernel.h"

#define APIC 0xfee00000
static void apic(u32 r, u32 v) { *(volatile u32 *)(word)(APIC + r) = v; }
#define F(name, at) SNIPPET(s_##name, 64, "", at)
F(xsaves, "xsaves (%rdi)");
F(xsavec, "xsavec (%rdi)");
F(xrstors, "xrstors (%rdi)");
F(xrstor, "xrstor (%rdi)");
F(xgetbv, "xgetbv");
F(xsetbv, "xsetbv");
F(wrfsbase, "wrfsbase %rax");
F(wrgsbase32, "wrgsbase %ebx");
F(rdfsbase, "rdfsbase %rax");
SNIPPET(s_wrfsbase_32, 32, "", ".byte 0xf3,0x0f,0xae,0xd0");
F(rdpid, "rdpid %rax");
F(rdtscp, "rdtscp");
F(monitor, "monitor");
F(mwait, "mwait");
F(wait, "xor %ecx,%ecx\nxor %edx,%edx\nmonitor\nsti\nmwait\nnop");
F(insb, "rep insb");
F(outsb, "rep outsb");
F(outsl, "outsl");
F(clflush, "clflush (%rdi)");
F(clflushopt, "clflushopt (%rdi)");
F(clwb, "clwb (%rdi)");
F(lock_clwb, ".byte 0xf0\nclwb (%rdi)");
F(rdrand, "rdrand %rax\npushf\npop %rbx");
F(rdseed, "rdseed %eax\npushf\npop %rbx");
SNIPPET(s_wait_open, 64, "", "sti\n1: pause\ndec %rcx\njnz 1b\ncli");

static void go(const char *code, enum mode m, word ax, word cx, word dx, word di, word flags) {
    prepare(code, m);
    ctx.r[RAX] = ax, ctx.r[RCX] = cx, ctx.r[RDX] = dx, ctx.r[RDI] = di, ctx.flags |= flags;
    run(&ctx);
}

#define ROW(manual, what, condition) check(condition, manual, what ": " #condition ": vector %d error %x ip %x", (int)ctx.vector, ctx.error, ctx.ip)
#define IS_GP (ctx.vector == GP && ctx.error == 0)
#define HEADER ((u64 *)(data + 512))
#define COMPACTED (1ULL << 63)

// A header, then XRSTORS of all in it.
static bool refused(const char *code, u64 there, u64 format, u64 rest) {
    HEADER[0] = there, HEADER[1] = format, HEADER[2] = rest;
    go(code, K, 7, 0, 0, (word)data, 0);
    return IS_GP;
}

static void xsaves(void) {
    word c4 = cr4();
    set_cr4(c4 & ~CR4_OSXSAVE);
    go(s_xsaves, K, 7, 0, 0, (word)data, 0);
    ROW("SDM 2 XSAVES", "without CR4.OSXSAVE", ctx.vector == UD);
    go(s_xgetbv, K, 0, 0, 0, 0, 0);
    ROW("SDM 2 XGETBV", "without CR4.OSXSAVE", ctx.vector == UD);
    set_cr4(c4 | CR4_OSXSAVE);
    go(s_xsetbv, K, 7, 0, 0, 0, 0);
    ROW("SDM 2 XSETBV", "x87, SSE and AVX", ctx.vector == DONE);
    go(s_xgetbv, K, 0, 0, 0, 0, 0);
    ROW("SDM 2 XGETBV", "XCR0", ctx.vector == DONE && (u32)ctx.r[RAX] == 7 && ctx.r[RDX] == 0);
    go(s_xgetbv, U, 0, 1, 0, 0, 0);
    ROW("SDM 2 XGETBV", "in use", ctx.vector == DONE && !(ctx.r[RAX] & ~7ULL));
    go(s_xgetbv, K, 0, 2, 0, 0, 0);
    ROW("SDM 2 XGETBV", "no such register", IS_GP);
    static const struct { u32 ax, cx, dx; } bad[] = { { 0, 0, 0 }, { 6, 0, 0 }, { 5, 0, 0 }, { 7, 1, 0 }, { 0x107, 0, 0 }, { 7, 0, 1 } };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        go(s_xsetbv, K, bad[i].ax, bad[i].cx, bad[i].dx, 0, 0);
        check(IS_GP, "SDM 2 XSETBV", "XCR%d = %x:%x: vector %d", (int)bad[i].cx, (word)bad[i].dx, (word)bad[i].ax, (int)ctx.vector);
    }
    go(s_xsetbv, U, 7, 0, 0, 0, 0);
    ROW("SDM 2 XSETBV", "at CPL 3", IS_GP);

    static const char *const all[] = { s_xsaves, s_xrstors };
    for (int i = 0; i < 2; i++) {
        go(all[i], U, 7, 0, 0, user(data), 0);
        ROW("SDM 2 XSAVES, XRSTORS", "at CPL 3", IS_GP);
        go(all[i], K, 7, 0, 0, (word)data + 32, 0);
        ROW("SDM 2 XSAVES, XRSTORS", "not aligned to 64", IS_GP);
        set_cr0(cr0() | CR0_TS);
        go(all[i], K, 7, 0, 0, (word)data, 0);
        set_cr0(cr0() & ~(word)CR0_TS);
        ROW("SDM 2 XSAVES, XRSTORS", "with CR0.TS", ctx.vector == NM);
    }
    memset(data, 0xaa, 1024);
    go(s_xsaves, K, 7, 0, 0, (word)data, 0);
    ROW("SDM 1 13.11", "XSAVES: the format is compacted", ctx.vector == DONE && HEADER[1] == (COMPACTED | 7) && !(HEADER[0] & ~7ULL));
    ROW("SDM 1 13.11", "the rest of the header is left", HEADER[2] == 0xaaaaaaaaaaaaaaaa);
    go(s_xrstors, K, 7, 0, 0, (word)data, 0);
    ROW("SDM 1 13.12", "XRSTORS: the rest must be 0", IS_GP);
    memset(data + 528, 0, 48);
    go(s_xrstors, K, 7, 0, 0, (word)data, 0);
    ROW("SDM 1 13.12", "XRSTORS", ctx.vector == DONE);
    go(s_xsaves, K, 3, 0, 0, (word)data, 0);
    ROW("SDM 1 13.11", "XSAVES of x87 and SSE", ctx.vector == DONE && HEADER[1] == (COMPACTED | 3));
    go(s_xsavec, U, ~0u, 0, ~0u, user(data), 0);
    ROW("SDM 1 13.10", "XSAVEC of all there is", ctx.vector == DONE && HEADER[1] == (COMPACTED | 7));
    ROW("SDM 1 13.12", "XRSTORS: the standard format", refused(s_xrstors, 0, 0, 0));
    ROW("SDM 1 13.12", "XRSTORS: a component that is not enabled", refused(s_xrstors, 0, COMPACTED | 0x107, 0));
    ROW("SDM 1 13.12", "XRSTORS: more there than in the format", refused(s_xrstors, 4, COMPACTED | 3, 0));
    ROW("SDM 1 13.8", "XRSTOR: compacted, more there", refused(s_xrstor, 4, COMPACTED | 3, 0));
    ROW("SDM 1 13.8", "XRSTOR: XCOMP_BV without bit 63", refused(s_xrstor, 0, 7, 0));
    ROW("SDM 1 13.8", "XRSTOR: a component that is not enabled", refused(s_xrstor, 0x200000, 0, 0));
    ROW("SDM 1 13.8", "XRSTOR: initial state", !refused(s_xrstor, 0, 0, 0) && ctx.vector == DONE);
    ROW("SDM 4 IA32_XSS", "no supervisor components", rdmsr(0xda0) == 0 && try_wrmsr(0xda0, 0x100) == GP && try_wrmsr(0xda0, 0) == -1);
    set_cr4(c4);
}

static void bases(void) {
    word c4 = cr4();
    u64 fs = rdmsr(0xc0000100), gs = rdmsr(0xc0000101);
    set_cr4(c4 & ~(word)CR4_FSGSBASE);
    go(s_rdfsbase, K, 0, 0, 0, 0, 0);
    ROW("SDM 2 RDFSBASE", "without CR4.FSGSBASE", ctx.vector == UD);
    set_cr4(c4 | CR4_FSGSBASE);
    go(s_wrfsbase, U, 0x123456789abc, 0, 0, 0, 0);
    ROW("SDM 2 WRFSBASE", "at CPL 3", ctx.vector == DONE && rdmsr(0xc0000100) == 0x123456789abc);
    go(s_rdfsbase, U, 0, 0, 0, 0, 0);
    ROW("SDM 2 RDFSBASE", "at CPL 3", ctx.vector == DONE && ctx.r[RAX] == 0x123456789abc);
    go(s_wrfsbase, K, 1ULL << 63, 0, 0, 0, 0);
    ROW("SDM 2 WRFSBASE", "not canonical", IS_GP && rdmsr(0xc0000100) == 0x123456789abc);
    wrmsr(0xc0000101, 1ULL << 40);
    prepare(s_wrgsbase32, K);
    ctx.r[RBX] = 0xfffffff012345678;
    run(&ctx);
    ROW("SDM 2 WRGSBASE", "32 bits", ctx.vector == DONE && rdmsr(0xc0000101) == 0x12345678);
    go(s_wrfsbase_32, C32, 0, 0, 0, 0, 0);
    ROW("SDM 2 WRFSBASE", "in compatibility mode", ctx.vector == UD);
    set_cr4(c4);
    wrmsr(0xc0000100, fs), wrmsr(0xc0000101, gs);
    // TSC_AUX.
    wrmsr(0xc0000103, 0x1234567);
    go(s_rdpid, U, ~0ULL, 0, 0, 0, 0);
    ROW("SDM 2 RDPID", "TSC_AUX", ctx.vector == DONE && ctx.r[RAX] == 0x1234567);
    go(s_rdtscp, U, ~0ULL, ~0ULL, ~0ULL, 0, 0);
    ROW("SDM 2 RDTSCP", "TSC_AUX", ctx.vector == DONE && ctx.r[RCX] == 0x1234567 && !(ctx.r[RAX] >> 32) && !(ctx.r[RDX] >> 32));
    set_cr4(c4 | CR4_TSD);
    go(s_rdtscp, U, 0, 0, 0, 0, 0);
    ROW("SDM 2 RDTSCP", "with CR4.TSD", IS_GP);
    go(s_rdpid, U, 0, 0, 0, 0, 0);
    ROW("SDM 2 RDPID", "with CR4.TSD", ctx.vector == DONE);
    set_cr4(c4);
    ROW("SDM 4 IA32_TSC_AUX", "reserved bits", try_wrmsr(0xc0000103, 1ULL << 32) == GP);
    for (int i = 0; i < 4; i++) {
        static const char *const random[] = { s_rdrand, s_rdseed };
        go(random[i & 1], i < 2 ? K : U, ~0ULL, 0, 0, 0, 0x8d5);
        ROW("SDM 2 RDRAND, RDSEED", "CF alone", ctx.vector == DONE && (ctx.r[RBX] & 0x8d5) == 1);
        if (i & 1) ROW("SDM 2 RDSEED", "32 bits", !(ctx.r[RAX] >> 32));
    }
}

static void monitors(void) {
    static const char *const both[] = { s_monitor, s_mwait };
    for (int i = 0; i < 2; i++) {
        go(both[i], U, user(data), 0, 0, 0, 0);
        ROW("SDM 2 MONITOR, MWAIT", "at CPL 3", ctx.vector == UD);
        go(both[i], K, (word)data, 2, 0, 0, 0);
        ROW("SDM 2 MONITOR, MWAIT", "unknown extensions", IS_GP);
        go(both[i], K, (word)data, 1ULL << 32, 0, 0, 0);
        ROW("SDM 2 MONITOR, MWAIT", "unknown extensions in RCX", IS_GP);
    }
    go(s_monitor, K, 1ULL << 63, 0, 0, 0, 0);
    ROW("SDM 2 MONITOR", "not canonical", IS_GP);
    go(s_monitor, K, 0x80000000, 0, 0, 0, 0);
    ROW("SDM 2 MONITOR", "a missing page", ctx.vector == PF && ctx.error == 0 && ctx.cr2 == 0x80000000);
    go(s_mwait, K, 0, 0, 0, 0, 0);
    ROW("SDM 2 MWAIT", "nothing is watched", ctx.vector == DONE);
    // An interrupt ends it; it returns behind MWAIT.
    apic(0xf0, 0x1ff);
    apic(0x310, 0), apic(0x300, 0x44050);
    go(s_wait, K, (word)data, 0, 0, 0, 0);
    ROW("SDM 2 MWAIT", "an interrupt ends it", ctx.vector == 0x50 && ctx.ip == (word)s_wait_end - 1);
    apic(0xb0, 0);
}

// Nothing is mapped from 2 GiB on; below is a page that can be written.
#define EDGE 0x80000000ULL

static void strings(void) {
    go(s_insb, K, 0, 16, 0x80, EDGE - 8, 0);
    ROW("SDM 2 INS", "into a missing page", ctx.vector == PF && ctx.error == 2 && ctx.cr2 == EDGE && ctx.r[RCX] == 8 && ctx.r[RDI] == EDGE);
    prepare(s_outsb, K);
    ctx.r[RSI] = EDGE - 8, ctx.r[RCX] = 16, ctx.r[RDX] = 0x80;
    run(&ctx);
    ROW("SDM 2 OUTS", "from a missing page", ctx.vector == PF && ctx.error == 0 && ctx.cr2 == EDGE && ctx.r[RCX] == 8 && ctx.r[RSI] == EDGE);
    ROW("SDM 2 OUTS", "restarts at itself", ctx.ip == (word)s_outsb && ctx.flags & F_RF);
    go(s_insb, U, 0, 4, 0x80, user(data), 0);
    ROW("SDM 2 INS", "without the right to ports", IS_GP && ctx.r[RCX] == 4 && ctx.r[RDI] == user(data));
    go(s_insb, U, 0, 0, 0x80, user(data), 0);
    ROW("SDM 2 INS", "none of them", IS_GP || ctx.vector == DONE);
    go(s_insb, U, 0, 4, 0x80, user(data), F_IOPL3);
    ROW("SDM 2 INS", "with IOPL 3", ctx.vector == DONE && ctx.r[RCX] == 0 && ctx.r[RDI] == user(data) + 4);
    prepare(s_outsl, K);
    ctx.r[RSI] = EDGE - 2, ctx.r[RDX] = 0x80;
    run(&ctx);
    ROW("SDM 2 OUTS", "across the edge", ctx.vector == PF && ctx.cr2 == EDGE && ctx.r[RSI] == EDGE - 2);
    static const char *const lines[] = { s_clflush, s_clflushopt, s_clwb };
    for (int i = 0; i < 3; i++) {
        go(lines[i], U, 0, 0, 0, user(data) + 3, 0);
        ROW("SDM 2 CLFLUSH", "at CPL 3", ctx.vector == DONE);
        go(lines[i], K, 0, 0, 0, EDGE, 0);
        ROW("SDM 2 CLFLUSH", "a missing page", ctx.vector == PF && ctx.error == 0 && ctx.cr2 == EDGE);
        go(lines[i], K, 0, 0, 0, 1ULL << 63, 0);
        ROW("SDM 2 CLFLUSH", "not canonical", IS_GP);
    }
    go(s_lock_clwb, K, 0, 0, 0, (word)data, 0);
    ROW("SDM 2 CLWB", "with LOCK", ctx.vector == UD);
}

#define DEADLINE 0x6e0
static u64 tsc(void) { u32 a, d; asmv("rdtsc" : "=a"(a), "=d"(d)); return a | (u64)d << 32; }
static int comes(word turns) {
    go(s_wait_open, K, 0, turns, 0, 0, 0);
    return ctx.vector == DONE ? -1 : (int)ctx.vector;
}

static void deadline(void) {
    const char *manual = "SDM 3A 10.5.4.1";
    apic(0x320, 0x10061);
    wrmsr(DEADLINE, tsc() + 1000);
    check(rdmsr(DEADLINE) == 0, manual, "not in its mode: ignored, reads %X", rdmsr(DEADLINE));
    apic(0x320, 0x40061);
    u64 far = tsc() + 1000000000000;
    wrmsr(DEADLINE, far);
    check(rdmsr(DEADLINE) == far && comes(2000) == -1, manual, "armed far away: %X", rdmsr(DEADLINE));
    u64 at = tsc() + 100000;
    wrmsr(DEADLINE, at);
    int v = comes(200000000);
    check(v == 0x61 && tsc() >= at && rdmsr(DEADLINE) == 0, manual, "comes, and is disarmed: %d, %X", v, rdmsr(DEADLINE));
    apic(0xb0, 0);
    wrmsr(DEADLINE, 1);
    v = comes(200000000);
    check(v == 0x61, manual, "one that is past comes at once: %d", v);
    apic(0xb0, 0);
    wrmsr(DEADLINE, tsc() + 10000000);
    wrmsr(DEADLINE, 0);
    check(rdmsr(DEADLINE) == 0 && comes(20000) == -1, manual, "0 disarms");
    wrmsr(DEADLINE, tsc() + 1000000000000);
    apic(0x320, 0x10061);
    check(rdmsr(DEADLINE) == 0, manual, "another mode disarms: %X", rdmsr(DEADLINE));
}

void features(void) {
    apic(0xf0, 0x1ff);
    xsaves();
    bases();
    if (has(1, 2, 3)) monitors();
    strings();
    deadline();
    group("XSAVES, FSGSBASE, MONITOR, INS and OUTS, TSC deadline");
}
