// The PCI bus, and microvm's places: what is there, and who uses it.
#include "guest.h"

// Where BARs go.
#define WINDOW 0xd0000000
#define PORTS 0xc000
#define INTEL 0x8086
#define VIRTIO 0x1af4
// microvm's places (as QEMU's), and their first interrupts, with ACPI and without.
#define PLACES 0xfeb00000
#define PLACE_SIZE 0x200
#define PLACE_COUNT 8

static void select(struct pci *p, u32 reg) { outl(0xcf8, 0x80000000 | p->at << 8 | reg); }

u32 config(struct pci *p, u32 reg) {
    select(p, reg);
    return inl(0xcfc);
}

void set_config(struct pci *p, u32 reg, u32 v) {
    select(p, reg);
    outl(0xcfc, v);
}

u32 capability(struct pci *p, u8 kind, u32 after) {
    u32 at = after ? config(p, after) >> 8 & 0xff : config(p, 0x34) & 0xff;
    for (u32 n = 0; at && n < 48; n++) {
        u32 head = config(p, at);
        if ((head & 0xff) == kind) return at;
        at = head >> 8 & 0xff;
    }
    return 0;
}

u32 bar(struct pci *p, u32 n) {
    u32 v = config(p, 0x10 + 4 * n);
    return v & 1 ? v & ~3u : v & ~15u;
}

// Gives all BARs their places; then the function may answer, and make accesses of its own.
static void place(struct pci *p) {
    static u32 memory = WINDOW, port = PORTS;
    for (u32 reg = 0x10; reg < 0x28; reg += 4) {
        set_config(p, reg, 0xffffffff);
        u32 mask = config(p, reg);
        if (!mask) continue;
        u32 *next = mask & 1 ? &port : &memory;
        u32 size = mask & 1 ? (~(mask & ~3u) & 0xffff) + 1 : ~(mask & ~15u) + 1;
        *next = (*next + size - 1) & ~(size - 1);
        set_config(p, reg, *next);
        *next += size;
        if ((mask & 7) == 4) set_config(p, reg += 4, 0);
    }
    set_config(p, 4, (config(p, 4) & 0xffff) | 7);
}

static void by_msix(struct pci *p, u32 cap, u32 entry, u8 vector) {
    u32 table = config(p, cap + 4);
    u32 at = bar(p, table & 7) + (table & ~7u) + 16 * entry;
    REG32(at) = MESSAGE_ADDRESS;
    REG32(at + 4) = 0;
    REG32(at + 8) = vector;
    REG32(at + 12) = 0;
    set_config(p, cap, config(p, cap) | 1u << 31);
}

static void by_msi(struct pci *p, u32 cap, u8 vector) {
    bool wide = config(p, cap) >> 16 & 0x80;
    set_config(p, cap + 4, MESSAGE_ADDRESS);
    if (wide) set_config(p, cap + 8, 0);
    set_config(p, cap + (wide ? 12 : 8), vector);
    set_config(p, cap, config(p, cap) | 1 << 16);
}

void on_interrupt(struct pci *p, u32 entry, void (*f)(void *), void *arg) {
    u32 input = 16 + (p->at >> 3) % 8;
    u32 msix = capability(p, 0x11, 0), msi = capability(p, 5, 0);
    if (way == MSI && msix) by_msix(p, msix, entry, on_message(f, arg));
    else if (way == MSI && msi) by_msi(p, msi, on_message(f, arg));
    else if (way == PIC) on_isa(10 + input % 2, true, f, arg);
    else on_input(input, true, f, arg);
}

static void use_virtio(struct virtio *v) {
    switch (v->kind) {
    case 1: net(v); break;
    case 2: blk(v); break;
    case 3: console(v); break;
    case 4: rng(v); break;
    case 5: balloon(v); break;
    }
}

// Structures of a modern device, which lie in a BAR that its capabilities name (virtio 1.2 4.1.4).
static void structures(struct virtio *v) {
    u32 *of[] = { 0, &v->regs, &v->notify, &v->isr, &v->device };
    for (u32 cap = 0; (cap = capability(v->pci, 9, cap));) {
        u32 kind = config(v->pci, cap) >> 24;
        if (kind >= 1 && kind <= 4) *of[kind] = bar(v->pci, config(v->pci, cap + 4) & 0xff) + config(v->pci, cap + 8);
    }
}

static void use_pci(struct pci *p) {
    u32 kind = config(p, 8) >> 16;
    if ((p->id & 0xffff) == VIRTIO) {
        place(p);
        struct virtio v = { .kind = config(p, 0x2c) >> 16, .pci = p, .transport = MODERN };
        structures(&v);
        if (!v.regs) {
            v.transport = LEGACY;
            v.regs = bar(p, 0);
        }
        print("%s ", v.transport == LEGACY ? "legacy" : "modern");
        use_virtio(&v);
    } else if ((p->id & 0xffff) == INTEL && kind == 0x0101) {
        place(p);
        ide(p);
    } else if ((p->id & 0xffff) == INTEL && kind == 0x0106) {
        place(p);
        ahci(p);
    }
}

void scan(void) {
    for (u32 at = 0; at < 256; at++) {
        struct pci p = { .at = at };
        p.id = config(&p, 0);
        if (p.id + 1) use_pci(&p);
    }
    for (u32 n = 0; n < PLACE_COUNT; n++) {
        struct virtio v = { .regs = PLACES + n * PLACE_SIZE, .transport = MMIO };
        v.kind = REG32(v.regs) == 0x74726976 ? REG32(v.regs + 8) : 0;
        if (v.kind) {
            print("memory-mapped ");
            use_virtio(&v);
        }
    }
}
