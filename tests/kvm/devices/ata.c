// The first disk of the PIIX3's IDE (ATA/ATAPI-6; Intel PIIX3 "bus master IDE registers"): by programmed I/O, then by DMA.
#include "guest.h"

#define PORT 0x1f0
#define CONTROL 0x3f6
#define IRQ 14
#define BLOCK 512
#define BUSY 0x80
#define DATA 8
#define BAD 1

static volatile u32 told;
static u8 last;
static u32 master;

static void on_irq(void *arg) {
    (void)arg;
    last = inb(PORT + 7);
    told++;
}

static void command(u8 what, u32 block, u8 count) {
    outb(PORT + 6, 0xe0 | block >> 24);
    outb(PORT + 2, count);
    outb(PORT + 3, block);
    outb(PORT + 4, block >> 8);
    outb(PORT + 5, block >> 16);
    outb(PORT + 7, what);
}

static void wait_irq(u32 before) {
    asmv("cli");
    while (told == before) sleep_while(&told, before);
    must(!(last & (BUSY | BAD)), "an IDE command");
}

// Blocks by `insw` and `outsw`; an interrupt comes before each that is read, and after each that is written.
static void pio_in(u8 what, u32 block, u32 count, void *to) {
    u32 before = told;
    command(what, block, count);
    for (u32 n = 0; n < count; n++) {
        wait_irq(before++);
        must(last & DATA, "no data");
        u32 words = BLOCK / 2;
        asmv("rep insw" : "+D"(to), "+c"(words) : "d"(PORT) : "memory");
    }
}

static void pio_out(u32 block, u32 count, const void *from) {
    u32 before = told;
    command(0x30, block, count);
    for (u32 n = 0; n < count; n++) {
        while ((inb(CONTROL) & (BUSY | DATA)) != DATA) {
        }
        u32 words = BLOCK / 2;
        asmv("rep outsw" : "+S"(from), "+c"(words) : "d"(PORT) : "memory");
        wait_irq(before++);
    }
}

static void dma(bool in, u32 block, u32 count, void *data) {
    // In two parts.
    u32 *table = pages(16), len = count * BLOCK, part = len / 2;
    table[0] = (u32)data;
    table[1] = part;
    table[2] = (u32)data + part;
    table[3] = (len - part) | 1u << 31;
    outl(master + 4, (u32)table);
    outb(master + 2, 6);
    u32 before = told;
    command(in ? 0xc8 : 0xca, block, count);
    outb(master, in ? 9 : 1);
    wait_irq(before);
    u8 s = inb(master + 2);
    outb(master, 0);
    must((s & 7) == 4, "the bus master's end");
}

void ide(struct pci *p) {
    on_isa(IRQ, false, on_irq, 0);
    master = bar(p, 4);
    outb(CONTROL, 0);
    u16 *id = pages(BLOCK);
    u8 *data = pages(8 * BLOCK), *again = pages(8 * BLOCK);
    pio_in(0xec, 0, 1, id);
    print("ide: %d blocks, ", id[60] | id[61] << 16);
    pio_in(0x20, 0, 4, data);
    print("read %x, ", sum(data, 4 * BLOCK));
    for (u32 i = 0; i < 4 * BLOCK; i++) data[i] = ~data[i];
    pio_out(8, 4, data);
    dma(true, 0, 8, again);
    print("by dma %x, ", sum(again, 8 * BLOCK));
    for (u32 i = 4 * BLOCK; i < 8 * BLOCK; i++) again[i] = ~again[i];
    dma(false, 12, 4, again + 4 * BLOCK);
    u32 before = told;
    command(0xe7, 0, 0);
    wait_irq(before);
    print("%d interrupts\n", told);
}
