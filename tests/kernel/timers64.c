// The 8254's modes as its status and counts show them, the 8259A's registers and ends of interrupt, the I/O APIC's registers and
// delivery (data sheets of the 8254, 8259A and 82093AA).
#include "kernel.h"

#define APIC 0xfee00000
#define IOAPIC 0xfec00000
static void apic(u32 r, u32 v) { *(volatile u32 *)(word)(APIC + r) = v; }
static u32 io_get(u32 r) { *(volatile u32 *)(word)IOAPIC = r; return *(volatile u32 *)(word)(IOAPIC + 0x10); }
static void io_put(u32 r, u32 v) { *(volatile u32 *)(word)IOAPIC = r; *(volatile u32 *)(word)(IOAPIC + 0x10) = v; }

SNIPPET(wait_open, 64, "", "sti\n1: pause\ndec %rcx\njnz 1b\ncli");

SNIPPET(send_nmi, 64, "", "movl $0x4400,(%rdi)\n1: pause\njmp 1b");

// The vector that comes with interrupts on, within `turns`; -1 for none.
static int comes(word turns) {
    prepare(wait_open, K);
    ctx.r[RCX] = turns;
    run(&ctx);
    return ctx.vector == DONE ? -1 : (int)ctx.vector;
}
#define NONE_COMES 2000
#define SURELY 200000000

// --- 8254

static void control(u8 v) { outb(0x43, v); }
static u8 status(int n) { control(0xe0 | 2 << n); return inb(0x40 + n); }
static u32 count(int n) { control(0xd0 | 2 << n); u32 low = inb(0x40 + n); return low | inb(0x40 + n) << 8; }
static void load(int n, u32 v) { outb(0x40 + n, v), outb(0x40 + n, v >> 8); }
static bool becomes(int n, u8 mask, u8 want) {
    for (int i = 0; i < 10000000; i++)
        if ((status(n) & mask) == want) return true;
    return false;
}

static void pit(void) {
    // Counter 2 with its gate.
    outb(0x61, inb(0x61) & ~3);
    control(0xb0);
    check((status(2) & 0xbf) == 0x30, "8254 Mode 0", "mode 0: OUT is low from the control word on: status %x", (word)status(2));
    check(status(2) & 0x40, "8254 Read-Back", "no count yet: null count in %x", (word)status(2));
    load(2, 1000);
    u32 a = count(2), b = count(2);
    check(a == b && a <= 1000 && !(status(2) & 0x80), "8254 Mode 0", "gate low: the count stands at %x, %x", (word)a, (word)b);
    outb(0x61, inb(0x61) | 1);
    check(becomes(2, 0x80, 0x80), "8254 Mode 0", "gate high: OUT rises");
    check(inb(0x61) & 0x20, "port 61h", "OUT of counter 2 in bit 5");
    load(2, 0xffff);
    check(!(status(2) & 0x80), "8254 Mode 0", "a new count: OUT is low again: %x", (word)status(2));
    control(0x80);
    a = inb(0x42) | inb(0x42) << 8;
    control(0x80);
    for (volatile int i = 0; i < 1000; i++) {
    }
    u32 first = inb(0x42), second = inb(0x42);
    b = inb(0x42) | inb(0x42) << 8;
    check((first | second << 8) > b && b < a, "8254 Counter Latch", "a latched count stands, then the count goes on: %x %x %x", (word)a,
          (word)(first | second << 8), (word)b);
    // Mode 1: OUT is high until the gate rises.
    outb(0x61, inb(0x61) & ~1);
    control(0xb2);
    load(2, 100);
    check(status(2) & 0x80, "8254 Mode 1", "OUT is high before the trigger: %x", (word)status(2));
    outb(0x61, inb(0x61) | 1);
    check(becomes(2, 0x80, 0x80), "8254 Mode 1", "OUT is high after the pulse");
    // Mode 2: reloads; mode 3: a square wave; both stop with OUT high when the gate is low.
    for (int mode = 2; mode < 4; mode++) {
        control(0xb0 | mode << 1);
        load(2, 20000);
        bool high = becomes(2, 0x80, 0x80);
        bool low = mode == 2 || becomes(2, 0x80, 0);
        outb(0x61, inb(0x61) & ~1);
        check(high && low && status(2) & 0x80, "8254 Mode 2, 3", "mode %d: OUT %x with the gate low", mode, (word)status(2));
        outb(0x61, inb(0x61) | 1);
        check((status(2) & 0x3f) == (0x30 | mode << 1), "8254 Read-Back", "mode %d: status %x", mode, (word)status(2));
        bool even = true;
        for (int i = 0; i < 50; i++) even &= mode == 2 || !(count(2) & 1);
        check(even, "8254 Mode 3", "counts by two");
    }
    // Modes 6 and 7 are 2 and 3.
    control(0xbc);
    check((status(2) & 0xe) == 4 || (status(2) & 0xe) == 0xc, "8254 Control Word", "mode 6: status %x", (word)status(2));
    // One byte at a time.
    control(0x90);
    outb(0x42, 50);
    check((status(2) & 0x30) == 0x10, "8254 Read-Back", "low byte only: status %x", (word)status(2));
    check(becomes(2, 0x80, 0x80), "8254 Mode 0", "low byte only: it counts");
    control(0xa0);
    outb(0x42, 1);
    check((status(2) & 0x30) == 0x20 && becomes(2, 0x80, 0x80), "8254 Mode 0", "high byte only: it counts");
    // BCD.
    control(0xb1);
    load(2, 0x9999);
    bool decimal = true;
    for (int i = 0; i < 100; i++) {
        u32 c = count(2);
        decimal &= (c & 15) < 10 && (c >> 4 & 15) < 10 && (c >> 8 & 15) < 10 && c >> 12 < 10;
    }
    check(decimal && status(2) & 1, "8254 BCD", "decimal digits");
    outb(0x61, inb(0x61) & ~1);
}

// --- 8259A

static void pic_init(u8 icw4) {
    outb(0x20, 0x11), outb(0x21, 0x20), outb(0x21, 4), outb(0x21, icw4);
    outb(0xa0, 0x11), outb(0xa1, 0x28), outb(0xa1, 2), outb(0xa1, 1);
    outb(0x21, 0xff), outb(0xa1, 0xff);
}
static u8 irr(u16 p) { outb(p, 0x0a); return inb(p); }
static u8 isr(u16 p) { outb(p, 0x0b); return inb(p); }
// Counter 0, once.
static void tick(void) { control(0x30), load(0, 200); }
// Waits until it has asked: the line follows OUT when it pleases.
static void ticked(void) {
    becomes(0, 0x80, 0x80);
    for (int i = 0; i < 1000000 && !(irr(0x20) & 1); i++) asmv("pause");
}

static void pic(void) {
    apic(0xf0, 0x1ff);
    apic(0x350, 0x700);
    pic_init(1);
    check(inb(0x21) == 0xff && inb(0xa1) == 0xff, "8259A OCW1", "mask %x %x", (word)inb(0x21), (word)inb(0xa1));
    outb(0x21, 0xa5);
    check(inb(0x21) == 0xa5, "8259A OCW1", "mask %x", (word)inb(0x21));
    outb(0x21, 0xff);
    check(isr(0x20) == 0 && isr(0xa0) == 0, "8259A OCW3", "nothing in service: %x %x", (word)isr(0x20), (word)isr(0xa0));
    tick(), ticked();
    check(irr(0x20) & 1, "8259A IRR", "IRQ 0 asks: %x", (word)irr(0x20));
    int v = comes(NONE_COMES);
    check(v == -1, "8259A OCW1", "it is masked: vector %d", v);
    outb(0x21, 0xfe);
    v = comes(SURELY);
    check(v == 0x20 && isr(0x20) == 1, "8259A ICW2", "vector %d, in service %x", v, (word)isr(0x20));
    tick(), ticked();
    check(comes(NONE_COMES) == -1, "8259A Fully Nested Mode", "not again before its end");
    outb(0x20, 0x20);
    v = comes(SURELY);
    check(v == 0x20, "8259A EOI", "behind the end: vector %d", v);
    outb(0x20, 0x60);
    check(isr(0x20) == 0, "8259A OCW2", "specific end: %x", (word)isr(0x20));
    // Automatic end.
    pic_init(3);
    outb(0x21, 0xfe);
    tick();
    v = comes(SURELY);
    check(v == 0x20 && isr(0x20) == 0, "8259A AEOI", "vector %d, in service %x", v, (word)isr(0x20));
    // Polled.
    pic_init(1);
    outb(0x21, 0xfe);
    tick(), ticked();
    outb(0x20, 0x0c);
    u8 polled = inb(0x20);
    check(polled == 0x80 && isr(0x20) == 1, "8259A Poll", "polled %x, in service %x", (word)polled, (word)isr(0x20));
    outb(0x20, 0x20);
    outb(0x20, 0x0c);
    check(!(inb(0x20) & 0x80), "8259A Poll", "nothing to poll");
    // ELCR: which lines can be level-triggered.
    outb(0x4d0, 0xff), outb(0x4d1, 0xff);
    check(inb(0x4d0) == 0xf8 && inb(0x4d1) == 0xde, "ICH9 ELCR", "ELCR %x %x", (word)inb(0x4d0), (word)inb(0x4d1));
    outb(0x4d0, 0), outb(0x4d1, 0);
    outb(0x21, 0xff);
}

// --- I/O APIC

static void ioapic(void) {
    u32 version = io_get(1);
    check((version & 0xff) >= 0x11 && version >> 16 == 0x17, "82093AA IOAPICVER", "version %x", (word)version);
    u32 id = io_get(0);
    io_put(0, 0xffffffff);
    check(io_get(0) == 0x0f000000, "82093AA IOAPICID", "id %x", (word)io_get(0));
    io_put(0, id);
    for (u32 n = 0; n < 24; n++) {
        u32 low = io_get(0x10 + 2 * n), high = io_get(0x11 + 2 * n);
        io_put(0x11 + 2 * n, 0xffffffff);
        io_put(0x10 + 2 * n, 0x000157ff);
        // Delivery status and remote IRR cannot be written.
        u32 got = io_get(0x10 + 2 * n), dest = io_get(0x11 + 2 * n);
        io_put(0x10 + 2 * n, low);
        io_put(0x11 + 2 * n, high);
        check((got & ~0x2000) == 0x107ff + 0 && dest == 0xff000000 && low & 1 << 16, "82093AA IOREDTBL", "entry %d: %x %x, first %x", (int)n,
              (word)got, (word)dest, (word)low);
    }
    check(io_get(0x40) == 0 || io_get(0x40) == 0xffffffff, "82093AA", "no register 40h: %x", (word)io_get(0x40));
    // Counter 0 at input 2, edge-triggered, to this processor.
    apic(0x350, 1 << 16);
    io_put(0x15, 0);
    io_put(0x14, 0x77);
    tick();
    int v = comes(SURELY);
    check(v == 0x77, "82093AA IOREDTBL", "input 2: vector %d", v);
    apic(0xb0, 0);
    io_put(0x14, 0x10077);
    tick(), ticked();
    check(comes(NONE_COMES) == -1, "82093AA IOREDTBL", "masked");
    // OUT goes low, so that its rise, which the input may see late, is not taken for the next one.
    control(0x30);
    // Logical destination.
    apic(0xd0, 0x02000000);
    io_put(0x15, 0x02000000);
    io_put(0x14, 0x878);
    tick();
    v = comes(SURELY);
    check(v == 0x78, "82093AA IOREDTBL", "logical destination: vector %d", v);
    apic(0xb0, 0);
    // NMI: while one is being served, so that it waits for the IRET into the code that it is to interrupt.
    prepare(send_nmi, K);
    ctx.r[RDI] = APIC + 0x300;
    run(&ctx);
    io_put(0x15, 0);
    io_put(0x14, 0x400);
    tick();
    becomes(0, 0x80, 0x80);
    v = comes(SURELY);
    check(v == NMI, "82093AA IOREDTBL", "NMI: vector %d", v);
    io_put(0x14, 0x10000);
}

// Takes what rows have left on its way.
static void drain(void) {
    while (comes(NONE_COMES) != -1) apic(0xb0, 0);
}

void timers(void) {
    drain();
    pit();
    pic();
    ioapic();
    drain();
    group("8254, 8259A, I/O APIC");
}
