// What the parts of the guest that drives devices share. It looks for devices on the PCI bus and at microvm's places, uses each that it
// knows, and says on COM1 what came of it. Words on its command line (PVH) say how interrupts come: msi, intx (by the I/O APIC), pic.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef _Bool bool;
#define true 1
#define false 0
#define asmv __asm__ volatile

static inline void outb(u16 port, u8 v) { asmv("outb %0,%1" ::"a"(v), "Nd"(port)); }
static inline void outw(u16 port, u16 v) { asmv("outw %0,%1" ::"a"(v), "Nd"(port)); }
static inline void outl(u16 port, u32 v) { asmv("outl %0,%1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asmv("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 inw(u16 port) { u16 v; asmv("inw %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 inl(u16 port) { u32 v; asmv("inl %1,%0" : "=a"(v) : "Nd"(port)); return v; }
#define REG8(at) (*(volatile u8 *)(at))
#define REG16(at) (*(volatile u16 *)(at))
#define REG32(at) (*(volatile u32 *)(at))

// main.c: text, the end, memory.
// %s %d (int) %x.
void print(const char *format, ...);
void leave(u8 status) __attribute__((noreturn));
// Ends the run unless `ok`.
void must(bool ok, const char *what);
// Zeroed, by whole pages.
void *pages(u32 bytes);
void *memset(void *to, int v, unsigned long n);
void *memcpy(void *to, const void *from, unsigned long n);
// Of blocks: the same whatever the order of bytes is not.
u32 sum(const void *from, u32 n);

// interrupts.c
enum way { MSI, INTX, PIC };
extern enum way way;
void interrupts(void);
// Has `f` called at a message's vector, which is returned; at an input of the I/O APIC or an ISA interrupt.
u8 on_message(void (*f)(void *), void *arg);
void on_input(u32 input, bool level, void (*f)(void *), void *arg);
void on_isa(u32 n, bool level, void (*f)(void *), void *arg);
#define MESSAGE_ADDRESS 0xfee00000
// Sleeps until `*at` is another than `old`.
void sleep_while(volatile u32 *at, u32 old);

// pci.c
struct pci { u32 at, id; };
u32 config(struct pci *p, u32 reg);
void set_config(struct pci *p, u32 reg, u32 v);
// Offset of a capability behind `after` (0: the first); 0: there is none.
u32 capability(struct pci *p, u8 kind, u32 after);
// Where a BAR lies.
u32 bar(struct pci *p, u32 n);
// Has `f` called at the function's interrupt: by MSI-X entry `entry`, MSI, or its pin, as `way` says.
void on_interrupt(struct pci *p, u32 entry, void (*f)(void *), void *arg);
void scan(void);

// virtio.c
struct queue {
    u16 size, used, free;
    struct { u64 at; u32 len; u16 flags, next; } *desc;
    volatile u16 *avail;
    volatile u16 *done;
    u32 bell;
};
struct virtio {
    u32 kind, regs, notify, isr, device;
    u32 transport;
    struct pci *pci;
    struct queue q[4];
    // Interrupts for queues, and for the configuration.
    volatile u32 told, changed;
};
enum { MMIO, MODERN, LEGACY };
struct piece { void *at; u32 len; bool in; };
// Negotiates `features` (the low word) and sets `queues` queues up.
void begin(struct virtio *v, u32 features, u32 queues);
// Puts a request into a queue; `ring` tells the device.
void add(struct virtio *v, u32 queue, const struct piece *pieces, u32 n);
void ring(struct virtio *v, u32 queue);
// Waits by interrupts for the next request that is done, and gives its length and, by `head`, its first descriptor.
u32 wait(struct virtio *v, u32 queue, u32 *head);
u32 request(struct virtio *v, u32 queue, const struct piece *pieces, u32 n);
u32 config32(struct virtio *v, u32 at);
void set_config32(struct virtio *v, u32 at, u32 value);
void end(struct virtio *v);

// blk.c, net.c, others.c, ata.c, ahci.c
void blk(struct virtio *v);
void net(struct virtio *v);
void rng(struct virtio *v);
void console(struct virtio *v);
void balloon(struct virtio *v);
void ide(struct pci *p);
void ahci(struct pci *p);
