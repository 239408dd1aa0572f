// Virtual-8086 mode extensions: what CLI, STI, PUSHF, POPF, IRET and INT n do with CR4.VME at IOPL 0 and 3 (SDM 3A 20.3), and
// CLI and STI with CR4.PVI (SDM 3A 20.4).
#include "kernel.h"

#define V(name, pre, at) SNIPPET(v_##name, 16, pre, at)
V(cli, "", "cli");
V(sti, "", "sti");
V(pushf, "", "pushf");
V(pushfd, "", "pushfl");
V(popf, "push $0x0202", "popf");
V(popf_clear, "push $0x0001", "popf");
V(popf_tf, "push $0x0102", "popf");
V(popfd, "pushl $0x0202", "popfl");
V(iret, "push $0x0202\npush $0x2000\npush $1f-v_iret", "iret\n1:");
V(iret_tf, "push $0x0102\npush $0x2000\npush $0", "iret");
V(iretd, "pushl $0x0202\npushl $0x2000\npushl $0", "iretl");
V(int21, "", "int $0x21");
V(int3, "", "int3");
// The end of what is at an 8086's own vector.
V(handler, "", "");
SNIPPET(p_cli, 32, "", "cli");
SNIPPET(p_sti, 32, "", "sti");

// A TSS with the redirection bitmap: INT 21h goes to the 8086's own handler, the others to the monitor.
static struct { struct tss tss; u8 redirect[32], io[9]; } __attribute__((packed)) vme_tss;
#define HANDLER 0x1000

static void tss_with(bool redirect) {
    memcpy(&vme_tss.tss, &tss, sizeof tss);
    memset(vme_tss.redirect, 0xff, sizeof vme_tss.redirect);
    memset(vme_tss.io, 0xff, sizeof vme_tss.io);
    if (redirect) vme_tss.redirect[0x21 / 8] &= ~(1 << (0x21 & 7));
    vme_tss.tss.iomap = sizeof(struct tss) + 32;
    gdt[TSS_SEL / 8] = descriptor((u32)&vme_tss, sizeof vme_tss - 1, 0x89, 0);
    asmv("ltr %w0" ::"r"(TSS_SEL));
}

static void start(const char *code, u32 flags, bool redirect) {
    prepare(code, V86);
    memcpy((void *)(V86_CODE + HANDLER), v_handler, 8);
    *(u32 *)(0x21 * 4) = (V86_CODE >> 4) << 16 | HANDLER;
    // The 8086's vectors lie in a page for supervisors: they are read with the program's rights.
    ctx.flags |= flags;
    tss_with(redirect);
    set_cr4(cr4() | CR4_VME);
    run(&ctx);
    set_cr4(cr4() & ~CR4_VME);
    restore_tables();
    asmv("ltr %w0" ::"r"(TSS_SEL));
}

// The end marker is an INT itself, which is for the monitor: at IOPL 0 that is #GP at it.
static bool ended(const char *end, const char *code) {
    u32 at = end - code;
    return ctx.flags & F_IOPL3 ? ctx.vector == DONE && ctx.ip == at + 2 : ctx.vector == GP && ctx.error == 0 && ctx.ip == at;
}

#define ROW(name, set, redirect, condition)                                                                                       \
    do {                                                                                                                          \
        start(v_##name, set, redirect);                                                                                           \
        bool end = ended(v_##name##_end, v_##name), at = ctx.ip == (word)(v_##name##_at - v_##name);                              \
        (void)end, (void)at;                                                                                                      \
        u16 *sp = (u16 *)(V86_STACK + (u16)ctx.r[RSP]);                                                                           \
        (void)sp;                                                                                                                 \
        check(condition, "SDM 3A 20.3", "v86 " #name ", flags " #set ": " #condition ": vector %d error %x cs:ip %x:%x sp %x flags %x",\
              (int)ctx.vector, ctx.error, ctx.cs, ctx.ip, ctx.r[RSP], ctx.flags);                                                 \
    } while (0)

#define GP0 (at && ctx.vector == GP && ctx.error == 0)

void vme(void) {
    if (!has(1, 3, 1)) {
        check(false, "SDM 2A CPUID", "there is no VME");
        return group("virtual interrupts");
    }
    // The page of the vectors, for the 8086.
    u32 *low = (u32 *)(directory[0] & ~0xfffu);
    low[0] |= 4;
    set_cr3(cr3());
    ROW(cli, F_VIF, false, end && !(ctx.flags & F_VIF));
    ROW(cli, F_VIF | F_VIP, false, end && !(ctx.flags & F_VIF) && ctx.flags & F_VIP);
    ROW(cli, F_VIF | F_IOPL3 | F_IF, false, end && ctx.flags & F_VIF && !(ctx.flags & F_IF));
    ROW(sti, 0, false, end && ctx.flags & F_VIF && !(ctx.flags & F_IF));
    ROW(sti, F_VIP, false, GP0);
    ROW(sti, F_VIP | F_IOPL3, false, end && !(ctx.flags & F_VIF) && ctx.flags & F_IF);
    ROW(pushf, 0, false, end && (*sp & 0x3200) == 0x3000);
    ROW(pushf, F_VIF, false, end && (*sp & 0x3200) == 0x3200);
    ROW(pushf, F_VIF | F_IOPL3, false, end && (*sp & 0x3200) == 0x3000);
    ROW(pushfd, F_VIF, false, GP0);
    ROW(pushfd, F_VIF | F_IOPL3, false, end && !(((u32 *)sp)[0] & F_VM) && ((u32 *)sp)[0] & F_VIF);
    ROW(popf, 0, false, end && ctx.flags & F_VIF && !(ctx.flags & (F_IF | F_IOPL3)));
    ROW(popf, F_VIP, false, GP0);
    ROW(popf_clear, F_VIF | F_VIP, false, end && !(ctx.flags & F_VIF) && ctx.flags & F_CF);
    ROW(popf_tf, 0, false, GP0);
    ROW(popfd, 0, false, GP0);
    ROW(popf, F_IOPL3 | F_VIP, false, end && ctx.flags & F_IF && !(ctx.flags & F_VIF));
    ROW(iret, 0, false, end && ctx.flags & F_VIF && !(ctx.flags & F_IF) && (u16)ctx.r[RSP] == 0x8000);
    ROW(iret, F_VIP, false, GP0);
    ROW(iret_tf, 0, false, GP0);
    ROW(iretd, 0, false, GP0);
    ROW(iret, F_IOPL3, false, end && ctx.flags & F_IF);
    // INT 21h.
    ROW(int21, 0, false, GP0);
    ROW(int21, F_IOPL3, false, at && ctx.vector == GP && ctx.error == 0x21 * 8 + 2);
    ROW(int21, F_VIF, true,
        ctx.vector == GP && ctx.cs == V86_CODE >> 4 && ctx.ip == HANDLER && !(ctx.flags & F_VIF) && (u16)ctx.r[RSP] == 0x8000 - 6 &&
            sp[0] == (u16)(v_int21_end - v_int21) && sp[1] == V86_CODE >> 4 && (sp[2] & 0x3200) == 0x3200);
    ROW(int21, 0, true, ctx.vector == GP && ctx.ip == HANDLER && (sp[2] & 0x3200) == 0x3000);
    ROW(int21, F_IOPL3 | F_IF, true,
        ctx.vector == DONE && ctx.ip == HANDLER + 2 && !(ctx.flags & F_IF) && (sp[2] & 0x3200) == 0x3200);
    // INT3 is never redirected.
    ROW(int3, 0, true, ctx.vector == BP && ctx.ip == 1);
    low[0] &= ~4u;
    set_cr3(cr3());
    // Protected mode at CPL 3.
    for (int i = 0; i < 6; i++) {
        bool sti = i & 1, iopl = i >= 4;
        u32 flags = i >= 2 && !iopl ? F_VIP : 0;
        prepare(sti ? p_sti : p_cli, U);
        ctx.flags |= flags | (iopl ? F_IOPL3 : 0) | (sti ? 0 : F_VIF);
        set_cr4(cr4() | CR4_PVI);
        run(&ctx);
        set_cr4(cr4() & ~CR4_PVI);
        bool gp = sti && flags;
        bool ok = ctx.vector == (gp ? GP : DONE);
        if (!gp && !iopl) ok &= !(ctx.flags & F_VIF) == !sti;
        if (iopl) ok &= !(ctx.flags & F_IF) == !sti && !(ctx.flags & F_VIF) == sti;
        check(ok, "SDM 3A 20.4", "pvi %s: vector %d flags %x", sti ? "sti" : "cli", (int)ctx.vector, ctx.flags);
    }
    group("virtual interrupts");
}
