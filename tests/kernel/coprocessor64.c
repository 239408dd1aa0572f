// x87 exceptions with CR0.NE clear: FERR#, IRQ 13, port F0h and IGNNE# (SDM 1 8.7.2 and appendix D; ICH9 "COPROC_ERR").
#include "kernel.h"

#define IRQ13 0x2d
#define APIC 0xfee00000
static void apic(u32 r, u32 v) { *(volatile u32 *)(word)(APIC + r) = v; }

// Division by zero is unmasked in `control`, which lies beside.
#define DIVIDE "fninit\nfldcw control\nfldz\nfld1\nfdiv %st(1),%st\n"
#define X87(name, at) SNIPPET(x_##name, 64, DIVIDE "sti\nnop", at)
__asm__(".pushsection .snippets,\"ax\"\n.balign 4\ncontrol: .word 0x37b\n.popsection\n");
X87(wait, "fwait");
X87(add, "faddp");
X87(load, "fldenv data");
X87(mmx, "movq %mm1,%mm2");
X87(two, "fld1\nfld1");
// These do not wait.
X87(status, "fnstsw %ax\nmov %eax,%ebx\nfnclex\nfwait");
X87(save, "fnsave data\nfwait");
X87(init, "fninit\nfwait");
SNIPPET(x_closed, 64, DIVIDE "mov $1000,%ecx\n1: loop 1b", "fnclex\nfwait");

#define ROW(what, condition) check(condition, "SDM 1 8.7.2", what ": " #condition ": vector %d ip %x", (int)ctx.vector, ctx.ip)

static void end_of_interrupt(void) { outb(0xa0, 0x20), outb(0x20, 0x20); }

// Nothing waits any more.
static void quiet(void) {
    asmv("fnclex");
    outb(0xf0, 0);
    end_of_interrupt();
}

static void start(const char *code) {
    asmv("fninit");
    prepare(code, K);
    run(&ctx);
}

static bool asserted(const char *at) { return ctx.vector == IRQ13 && ctx.ip == (word)at; }

// IRQ 13 at the instruction that waits; then it goes on ignoring the exception, and the next is told anew.
static void ignores(const char *code, const char *at, const char *end) {
    start(code);
    check(asserted(at), "SDM 1 8.7.2", "before the instruction that waits: vector %d ip %x", (int)ctx.vector, ctx.ip);
    outb(0xf0, 0);
    end_of_interrupt();
    run(&ctx);
    check(ctx.vector == DONE && ctx.ip == (word)end + 2, "SDM 1 D.2", "IGNNE#: it goes on: vector %d ip %x", (int)ctx.vector, ctx.ip);
    quiet();
}

void coprocessor(void) {
    word zero = cr0();
    apic(0xf0, 0x1ff);
    apic(0x350, 0x700);
    outb(0x20, 0x11), outb(0x21, 0x20), outb(0x21, 4), outb(0x21, 1);
    outb(0xa0, 0x11), outb(0xa1, 0x28), outb(0xa1, 2), outb(0xa1, 1);
    outb(0x21, 0xfb), outb(0xa1, 0xdf);

    set_cr0((zero | CR0_NE) & ~0xeUL);
    start(x_wait);
    ROW("NE set: #MF", ctx.vector == MF && ctx.ip == (word)x_wait_at);
    quiet();

    set_cr0(zero & ~(CR0_NE | 0xeUL));
    ignores(x_wait, x_wait_at, x_wait_end);
    ignores(x_add, x_add_at, x_add_end);
    ignores(x_load, x_load_at, x_load_end);
    ignores(x_mmx, x_mmx_at, x_mmx_end);
    ignores(x_two, x_two_at, x_two_end);

    // The handler clears the exception: the instruction runs, and IGNNE# has ended.
    start(x_add);
    ROW("again", asserted(x_add_at));
    outb(0xf0, 0);
    asmv("fnclex");
    end_of_interrupt();
    run(&ctx);
    ROW("cleared by the handler", ctx.vector == DONE);
    start(x_wait);
    ROW("IGNNE# ends with the exception", asserted(x_wait_at));
    // First the exception, then the port.
    asmv("fnclex");
    outb(0xf0, 0);
    end_of_interrupt();
    start(x_wait);
    ROW("the port after the exception leaves no IGNNE#", asserted(x_wait_at));
    quiet();

    start(x_status);
    ROW("FNSTSW does not wait, FNCLEX ends it", ctx.vector == DONE && ctx.r[RBX] & 0x80);
    start(x_save);
    ROW("FNSAVE", ctx.vector == DONE);
    start(x_init);
    ROW("FNINIT", ctx.vector == DONE);
    start(x_closed);
    ROW("without an instruction that waits nothing comes", ctx.vector == DONE);

    // What is pending becomes #MF when NE is set.
    start(x_wait);
    ROW("pending", asserted(x_wait_at));
    end_of_interrupt();
    set_cr0(cr0() | CR0_NE);
    run(&ctx);
    ROW("NE set meanwhile: #MF", ctx.vector == MF && ctx.ip == (word)x_wait_at);
    quiet();
    set_cr0(zero);
    outb(0x21, 0xff), outb(0xa1, 0xff);
    apic(0x350, 1 << 16);
    group("x87 exceptions by IRQ 13");
}
