// The first disk of the ICH9's AHCI (AHCI 1.3.1).
#include "guest.h"

#define BLOCK 512
#define START 1
#define RECEIVE 0x10
#define HOST_TO_DEVICE 0x27
#define BY_COMMAND 0x80
#define IDENTIFY 0xec
#define READ 0x25
#define WRITE 0x35
#define FLUSH 0xea

static u32 hba, port;
static u32 *list, *table;
static volatile u32 told;

static void on_irq(void *arg) {
    (void)arg;
    u32 which = REG32(port + 0x10);
    REG32(port + 0x10) = which;
    REG32(hba + 8) = 1;
    told += which != 0;
}

// In slot 0, with its data in two parts.
static void command(u8 what, u32 block, u32 count, void *data, bool write) {
    u32 len = count * BLOCK, part = len / 2;
    u8 *fis = (u8 *)table;
    memset(table, 0, 0x100);
    fis[0] = HOST_TO_DEVICE;
    fis[1] = BY_COMMAND;
    fis[2] = what;
    fis[4] = block;
    fis[5] = block >> 8;
    fis[6] = block >> 16;
    fis[7] = 0x40;
    fis[12] = count;
    u32 *prd = table + 32;
    prd[0] = (u32)data;
    prd[3] = part - 1;
    prd[4] = (u32)data + part;
    prd[7] = len - part - 1;
    list[0] = 5 | (write ? 0x40 : 0) | (len ? 2 << 16 : 0);
    list[1] = 0;
    u32 before = told;
    REG32(port + 0x38) = 1;
    asmv("cli");
    while (told == before) sleep_while(&told, before);
    must(!(REG32(port + 0x38) & 1) && !(REG32(port + 0x20) & 0x81), "an AHCI command");
    must(list[1] == len, "bytes of an AHCI command");
}

void ahci(struct pci *p) {
    hba = bar(p, 5);
    port = hba + 0x100;
    on_interrupt(p, 0, on_irq, 0);
    list = pages(0x400);
    u32 *received = pages(0x100);
    table = pages(0x100);
    list[2] = (u32)table;
    REG32(port) = (u32)list;
    REG32(port + 4) = 0;
    REG32(port + 8) = (u32)received;
    REG32(port + 12) = 0;
    REG32(port + 0x30) = 0xffffffff;
    REG32(port + 0x10) = 0xffffffff;
    REG32(port + 0x18) |= RECEIVE;
    REG32(port + 0x18) |= START;
    REG32(port + 0x14) = 3;
    REG32(hba + 4) |= 2;
    u16 *id = pages(BLOCK);
    u8 *data = pages(8 * BLOCK);
    command(IDENTIFY, 0, 1, id, false);
    print("ahci: %d blocks, ", id[100] | id[101] << 16);
    command(READ, 0, 8, data, false);
    print("read %x, ", sum(data, 8 * BLOCK));
    for (u32 i = 0; i < 8 * BLOCK; i++) data[i] = ~data[i];
    command(WRITE, 8, 8, data, true);
    command(FLUSH, 0, 0, 0, false);
    print("%d interrupts\n", told);
    REG32(hba + 4) &= ~2u;
}
