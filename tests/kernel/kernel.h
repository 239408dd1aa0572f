// What the parts of the test kernel share: types, console, rows, and the way into the code under test and back.
//
// `run` enters a piece of code at any privilege level and mode with given registers, and comes back with all registers and what
// was pushed at the first exception or interrupt. Pieces of code end in `int $DONE`.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;
typedef _Bool bool;
#define true 1
#define false 0

// All memory below 1 GiB is mapped for supervisors where it is, and for users this much higher.
#define USER 0x40000000u
#define DONE 0x80
// A gate for CPL 0 only.
#define CLOSED 0x81

// Segments (start32.S, start64.S). Selectors from TEST_SEL on are for rows.
#define CODE0 0x08
#define DATA0 0x10
#define DATA3 0x2b
#ifdef __x86_64__
#define CODE0_32 0x18
#define CODE3_32 0x23
#define CODE3 0x33
#define CODE3_16 0x3b
#else
#define CODE0_16 0x18
#define CODE3 0x23
#define CODE3_16 0x33
#endif
#define TSS_SEL 0x40
#define TEST_SEL 0x60

enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };

// RFLAGS.
#define F_CF 0x1
#define F_TF 0x100
#define F_IF 0x200
#define F_NT 0x4000
#define F_RF 0x10000
#define F_VM 0x20000
#define F_AC 0x40000
#define F_VIF 0x80000
#define F_VIP 0x100000
#define F_IOPL3 0x3000

#define CR0_PE 1
#define CR0_MP 2
#define CR0_EM 4
#define CR0_TS 8
#define CR0_NE 0x20
#define CR0_WP 0x10000
#define CR0_AM 0x40000
#define CR0_PG 0x80000000
#define CR4_VME 1
#define CR4_PVI 2
#define CR4_TSD 4
#define CR4_DE 8
#define CR4_PSE 0x10
#define CR4_PAE 0x20
#define CR4_PGE 0x80
#define CR4_OSFXSR 0x200
#define CR4_OSXMM 0x400
#define CR4_UMIP 0x800
#define CR4_LA57 0x1000
#define CR4_FSGSBASE 0x10000
#define CR4_PCIDE 0x20000
#define CR4_OSXSAVE 0x40000
#define CR4_SMEP 0x100000
#define CR4_SMAP 0x200000
#define CR4_PKE 0x400000
#define EFER 0xc0000080
#define EFER_SCE 1
#define EFER_NXE 0x800

// Registers on the way in and out (start*.S knows the order). r: AX CX DX BX SP BP SI DI R8..R15.
struct ctx {
    word r[16];
    word ip, cs, flags, ss;
    word vector, error, cr2;
    // Address of the pushed RIP.
    word frame;
    word ds, es, fs, gs;
};
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };

extern struct ctx ctx;
void run(struct ctx *c);

// Where code under test runs.
#ifdef __x86_64__
enum mode { K, U, C32, C16, MODES };
#else
enum mode { K, U, K16, U16, V86, MODES };
// Linear addresses of v86 mode, where code is copied to.
#define V86_CODE 0x20000
#define V86_STACK 0x30000
#define V86_DATA 0x40000
struct tss {
    u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, r[8], es, cs, ss, ds, fs, gs, ldt;
    u16 trap, iomap;
} __attribute__((packed));
extern struct tss tss;
extern u32 directory[];
extern u64 pdpt[];
void repage(u32 cr4, u32 cr3);
u64 descriptor(u32 base, u32 limit, u32 access, u32 flags);
#endif
// Default registers for `code` in a mode, which is given at its supervisor address.
void prepare(const char *code, enum mode m);
word user(const void *p);

void print(const char *format, ...);
void leave(int status) __attribute__((noreturn));
// Is this among what is not to be tried (LEFT_OUT: texts, each with a comma behind it)?
bool left_out(const char *what, const char *more);
// A row, unless it is left out by how its text begins: `manual` names the section that says so. Prints what failed.
bool check(bool ok, const char *manual, const char *format, ...);
// The end of a group of rows: a line with its name and count.
void group(const char *name);
int finish(void);

extern u64 gdt[];
extern u64 idt[];
extern u8 kernel_stack_top[], user_stack_top[], trap_stack_top[], snippet_stack_top[];
extern u8 data[8192];
void setup(void);
word place(const char *p, const char *code, enum mode m);
void *memset(void *to, int v, unsigned long n);
void *memcpy(void *to, const void *from, unsigned long n);
void set_gate(int vector, int dpl, bool present);
void set_idt_limit(int limit);
void restore_tables(void);
bool has(int leaf, int reg, int bit);
void delay(void);

#define asmv __asm__ volatile
#define CR(n)                                                                                                                     \
    static inline word cr##n(void) { word v; asmv("mov %%cr" #n ",%0" : "=r"(v)); return v; }                                     \
    static inline void set_cr##n(word v) { asmv("mov %0,%%cr" #n ::"r"(v) : "memory"); }
CR(0) CR(2) CR(3) CR(4)
#define DR(n)                                                                                                                     \
    static inline word dr##n(void) { word v; asmv("mov %%dr" #n ",%0" : "=r"(v)); return v; }                                     \
    static inline void set_dr##n(word v) { asmv("mov %0,%%dr" #n ::"r"(v) : "memory"); }
DR(0) DR(1) DR(2) DR(3) DR(6) DR(7)
static inline void outb(u16 port, u8 v) { asmv("outb %0,%1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asmv("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline void invlpg(word va) { asmv("invlpg (%0)" ::"r"(va) : "memory"); }
#ifdef __x86_64__
typedef struct { u64 pcid, va; } Invpcid;
static inline void invpcid(u64 type, u64 pcid, u64 va) {
    Invpcid d = { pcid, va };
    asmv("invpcid %0,%1" ::"m"(d), "r"(type) : "memory");
}
#endif
static inline u64 rdmsr(u32 n) { u32 a, d; asmv("rdmsr" : "=a"(a), "=d"(d) : "c"(n)); return a | (u64)d << 32; }
static inline void wrmsr(u32 n, u64 v) { asmv("wrmsr" ::"c"(n), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
// RDMSR and WRMSR that may fault: the vector, or -1.
int try_rdmsr(u32 n, u64 *v);
int try_wrmsr(u32 n, u64 v);

// Pieces of code under test: NAME, NAME_at behind `pre`, NAME_end behind `at`, where DONE is.
#ifdef __x86_64__
#define NATIVE ".code64\n"
#else
#define NATIVE ".code32\n"
#endif
#ifdef DIVIDES
// The emulator of a KVM without VT has no INT n: pieces of 64-bit code end in a division by zero, which `run` makes DONE.
#define DONE_64 "divb done_zero(%rip)"
#else
#define DONE_64 "int $0x80"
#endif
#define DONE_32 "int $0x80"
#define DONE_16 "int $0x80"
#define DONE_IN(bits) DONE_##bits
#define SNIPPET(name, bits, pre, at) SNIPPET_(name, bits, pre, at)
#define SNIPPET_(name, bits, pre, at)                                                                                             \
    extern const char name[], name##_at[], name##_end[];                                                                          \
    __asm__(".pushsection .snippets,\"ax\"\n.balign 16\n.code" #bits "\n" #name ":\n" pre "\n" #name "_at:\n" at "\n" #name       \
            "_end: " DONE_IN(bits) "\n" NATIVE ".popsection\n")
