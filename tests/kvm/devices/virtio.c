// A virtio device behind any of its transports (virtio 1.2 4.1, 4.2, 2.7).
#include "guest.h"

// Of the high word of features.
#define VERSION_1 1
#define ACKNOWLEDGE 1
#define DRIVER 2
#define DRIVER_OK 4
#define FEATURES_OK 8
#define NEXT 1
#define IN 2
// Entries of a queue at most, where the driver chooses.
#define SIZE 64
#define INTX_QUEUE 1
#define INTX_CONFIG 2

static u8 status(struct virtio *v) {
    return v->transport == MMIO ? REG32(v->regs + 0x70) : v->transport == MODERN ? REG8(v->regs + 0x14) : inb(v->regs + 18);
}

static void set_status(struct virtio *v, u8 s) {
    if (v->transport == MMIO) REG32(v->regs + 0x70) = s;
    else if (v->transport == MODERN) REG8(v->regs + 0x14) = s;
    else outb(v->regs + 18, s);
}

static u32 legacy_config(struct virtio *v) { return v->regs + (way == MSI ? 24 : 20); }

u32 config32(struct virtio *v, u32 at) {
    if (v->transport == MMIO) return REG32(v->regs + 0x100 + at);
    return v->transport == MODERN ? REG32(v->device + at) : inl(legacy_config(v) + at);
}

void set_config32(struct virtio *v, u32 at, u32 value) {
    if (v->transport == MMIO) REG32(v->regs + 0x100 + at) = value;
    else if (v->transport == MODERN) REG32(v->device + at) = value;
    else outl(legacy_config(v) + at, value);
}

// What has happened, where a line says that something has.
static void on_line(void *arg) {
    struct virtio *v = arg;
    u8 isr;
    if (v->transport == MMIO) {
        isr = REG32(v->regs + 0x60);
        REG32(v->regs + 0x64) = isr;
    } else {
        isr = v->transport == MODERN ? REG8(v->isr) : inb(v->regs + 19);
    }
    v->told += isr & INTX_QUEUE;
    v->changed += isr / INTX_CONFIG & 1;
}

static void on_change(void *arg) { ((struct virtio *)arg)->changed++; }
static void on_queue(void *arg) { ((struct virtio *)arg)->told++; }

static void connect(struct virtio *v) {
    if (v->transport == MMIO) {
        u32 n = (v->regs & 0xfff) / 0x200;
        // Without ACPI they have ISA's.
        if (way == PIC) on_isa(5 + n, false, on_line, v);
        else on_input(16 + n, true, on_line, v);
    } else if (way == MSI) {
        on_interrupt(v->pci, 0, on_change, v);
        on_interrupt(v->pci, 1, on_queue, v);
    } else {
        on_interrupt(v->pci, 0, on_line, v);
    }
}

static void negotiate(struct virtio *v, u32 features) {
    set_status(v, 0);
    set_status(v, ACKNOWLEDGE);
    set_status(v, ACKNOWLEDGE | DRIVER);
    if (v->transport == LEGACY) {
        outl(v->regs + 4, inl(v->regs) & features);
        return;
    }
    bool mmio = v->transport == MMIO;
    u32 select = v->regs + (mmio ? 0x24 : 8), to = v->regs + (mmio ? 0x20 : 12);
    REG32(select) = 0;
    REG32(to) = features;
    REG32(select) = 1;
    REG32(to) = VERSION_1;
    set_status(v, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    must(status(v) & FEATURES_OK, "features are refused");
}

static void memory(struct queue *q, u32 size) {
    u32 ring = 16 * size + 6 + 2 * size;
    u32 used = (ring + 4095) & ~4095u;
    u8 *at = pages(used + 6 + 8 * size);
    q->size = size;
    q->desc = (void *)at;
    q->avail = (void *)(at + 16 * size);
    q->done = (void *)(at + used);
}

static void set_up(struct virtio *v, u32 n) {
    struct queue *q = &v->q[n];
    if (v->transport == LEGACY) {
        outw(v->regs + 14, n);
        memory(q, inw(v->regs + 12));
        outl(v->regs + 8, (u32)q->desc >> 12);
        if (way == MSI) outw(v->regs + 22, 1);
        q->bell = v->regs + 16;
        return;
    }
    u32 r = v->regs;
    bool mmio = v->transport == MMIO;
    if (mmio) REG32(r + 0x30) = n;
    else REG16(r + 0x16) = n;
    u32 most = mmio ? REG32(r + 0x34) : REG16(r + 0x18);
    memory(q, most < SIZE ? most : SIZE);
    if (mmio) {
        REG32(r + 0x38) = q->size;
        q->bell = r + 0x50;
    } else {
        REG16(r + 0x18) = q->size;
        REG16(r + 0x1a) = way == MSI ? 1 : 0xffff;
        u32 cap = 0;
        while ((cap = capability(v->pci, 9, cap)) && config(v->pci, cap) >> 24 != 2) {
        }
        q->bell = v->notify + REG16(r + 0x1e) * config(v->pci, cap + 16);
    }
    u32 parts = r + (mmio ? 0x80 : 0x20), step = mmio ? 16 : 8;
    u32 of[] = { (u32)q->desc, (u32)q->avail, (u32)q->done };
    for (u32 i = 0; i < 3; i++) {
        REG32(parts + step * i) = of[i];
        REG32(parts + step * i + 4) = 0;
    }
    if (mmio) REG32(r + 0x44) = 1;
    else REG16(r + 0x1c) = 1;
}

void begin(struct virtio *v, u32 features, u32 queues) {
    connect(v);
    negotiate(v, features);
    if (way == MSI && v->transport == MODERN) REG16(v->regs + 0x10) = 0;
    if (way == MSI && v->transport == LEGACY) outw(v->regs + 20, 0);
    for (u32 n = 0; n < queues; n++) set_up(v, n);
    set_status(v, status(v) | DRIVER_OK);
}

void end(struct virtio *v) {
    asmv("cli");
    set_status(v, 0);
    must(status(v) == 0, "a reset that does not end");
}

void add(struct virtio *v, u32 queue, const struct piece *pieces, u32 n) {
    struct queue *q = &v->q[queue];
    u16 head = q->free;
    for (u32 i = 0; i < n; i++) {
        u16 at = q->free, next = (at + 1) % q->size;
        q->desc[at].at = (u32)pieces[i].at;
        q->desc[at].len = pieces[i].len;
        q->desc[at].flags = (i + 1 < n ? NEXT : 0) | (pieces[i].in ? IN : 0);
        q->desc[at].next = next;
        q->free = next;
    }
    q->avail[2 + q->avail[1] % q->size] = head;
    asmv("" ::: "memory");
    q->avail[1]++;
}

void ring(struct virtio *v, u32 queue) {
    asmv("" ::: "memory");
    if (v->transport == LEGACY) outw(v->q[queue].bell, queue);
    else if (v->transport == MMIO) REG32(v->q[queue].bell) = queue;
    else REG16(v->q[queue].bell) = queue;
}

u32 wait(struct virtio *v, u32 queue, u32 *head) {
    struct queue *q = &v->q[queue];
    asmv("cli");
    for (u32 told = v->told; q->done[1] == q->used; told = v->told) sleep_while(&v->told, told);
    volatile u32 *entry = (volatile u32 *)(q->done + 2) + 2 * (q->used++ % q->size);
    if (head) *head = entry[0];
    return entry[1];
}

u32 request(struct virtio *v, u32 queue, const struct piece *pieces, u32 n) {
    u32 told = v->told;
    add(v, queue, pieces, n);
    ring(v, queue);
    u32 len = wait(v, queue, 0);
    // The queue may have been looked at before it came.
    while (v->told == told) sleep_while(&v->told, told);
    return len;
}
