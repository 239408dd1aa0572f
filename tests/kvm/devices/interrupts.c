// Interrupt controllers, and who is called at which interrupt.
#include "guest.h"

#define FIRST 0x20
#define VECTORS 0x60
// Vectors: ISA interrupts by the 8259s, inputs of the I/O APIC, messages.
#define ISA 0x20
#define INPUTS 0x30
#define MESSAGES 0x50
#define LAPIC 0xfee00000
#define IOAPIC 0xfec00000
#define SHARERS 4

enum way way;
u64 idt[FIRST + VECTORS];
extern char stubs[];
static struct { void (*f)(void *); void *arg; } called[VECTORS][SHARERS];

static void call_at(u32 vector, void (*f)(void *), void *arg) {
    for (u32 i = 0; i < SHARERS; i++) {
        if (!called[vector - FIRST][i].f) {
            called[vector - FIRST][i].f = f;
            called[vector - FIRST][i].arg = arg;
            return;
        }
    }
    must(false, "too many share an interrupt");
}

void interrupt(u32 vector) {
    for (u32 i = 0; i < SHARERS && called[vector - FIRST][i].f; i++) called[vector - FIRST][i].f(called[vector - FIRST][i].arg);
    if (vector >= INPUTS) {
        REG32(LAPIC + 0xb0) = 0;
        return;
    }
    if (vector >= ISA + 8) outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

// Both 8259s, with 10 and 11, which are PCI's, by level, and all masked.
static void pics(void) {
    for (u32 port = 0x20, n = 0; n < 2; port = 0xa0, n++) {
        outb(port, 0x11);
        outb(port + 1, ISA + 8 * n);
        outb(port + 1, n ? 2 : 4);
        outb(port + 1, 1);
        outb(port + 1, 0xff);
    }
    outb(0x4d1, 0x0c);
}

void interrupts(void) {
    for (u32 v = 0; v < VECTORS; v++) {
        u32 at = (u32)stubs + 16 * v;
        idt[FIRST + v] = (at & 0xffff) | 8 << 16 | (u64)(0x8e00 | (at & 0xffff0000)) << 32;
    }
    struct { u16 limit; u32 base; } __attribute__((packed)) t = { sizeof idt - 1, (u32)idt };
    asmv("lidt %0" ::"m"(t));
    pics();
    REG32(LAPIC + 0xf0) = 0x1ff;
    // LINT0 is the 8259s', for those who use them.
    REG32(LAPIC + 0x350) = way == PIC ? 0x700 : 0x10000;
}

u8 on_message(void (*f)(void *), void *arg) {
    static u8 next = MESSAGES;
    call_at(next, f, arg);
    return next++;
}

void on_input(u32 input, bool level, void (*f)(void *), void *arg) {
    call_at(INPUTS + input, f, arg);
    REG32(IOAPIC) = 0x11 + 2 * input;
    REG32(IOAPIC + 0x10) = 0;
    REG32(IOAPIC) = 0x10 + 2 * input;
    REG32(IOAPIC + 0x10) = (INPUTS + input) | (level ? 0x8000 : 0);
}

static void unmask(u32 n) {
    u32 mask = ~(1u << n);
    // The second 8259 comes by input 2 of the first.
    if (n >= 8) mask &= ~4u;
    outb(0x21, inb(0x21) & mask);
    outb(0xa1, inb(0xa1) & mask >> 8);
}

void on_isa(u32 n, bool level, void (*f)(void *), void *arg) {
    if (way != PIC) {
        on_input(n, level, f, arg);
        return;
    }
    call_at(ISA + n, f, arg);
    unmask(n);
}

void sleep_while(volatile u32 *at, u32 old) {
    while (*at == old) asmv("sti; hlt; cli");
}
