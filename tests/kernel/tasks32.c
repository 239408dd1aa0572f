// Task switches: by JMP, CALL, IRET, task gates and interrupts; what is saved and loaded, busy flags, links, NT, CR0.TS, the trap
// flag, and what is wrong with a task (SDM 3A chapter 8 "Task Management").
#include "kernel.h"

#define OTHER TEST_SEL
#define GATE (TEST_SEL + 8)
#define CODE_ (TEST_SEL + 16)
#define DOCTOR (TEST_SEL + 24)
#define INT_GATE 0x90
extern char stubs[];

static struct tss other, doctor;
static struct { u16 link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, r[8], es, cs, ss, ds, ldt; } __attribute__((packed)) narrow;
static struct { u32 offset; u16 selector; } __attribute__((packed)) pointer;
static u8 stack[4096] __attribute__((aligned(16)));
static word six;

SNIPPET(t_jump, 32, "", "ljmp *%cs:(%edi)");
SNIPPET(t_call, 32, "", "lcall *%cs:(%edi)");
SNIPPET(t_iret, 32, "", "iret");
SNIPPET(t_int, 32, "", "int $0x90");
SNIPPET(t_ud, 32, "", "ud2");
SNIPPET(t_arrive, 32, "", "str %ax");

static int busy(int selector) { return gdt[selector / 8] >> 41 & 1; }

// A task that says which it is.
static void make(void) {
    memset(&other, 0, sizeof other);
    other.cr3 = cr3();
    other.eip = (u32)t_arrive;
    other.eflags = 2 | F_CF;
    for (int i = 0; i < 8; i++) other.r[i] = 0x1000 * (i + 1);
    other.r[4] = (u32)stack + sizeof stack;
    other.cs = CODE0;
    other.ss = other.ds = other.es = other.fs = other.gs = DATA0;
    other.iomap = sizeof other;
    gdt[OTHER / 8] = descriptor((u32)&other, sizeof other - 1, 0xe9, 0);
    gdt[GATE / 8] = (u64)OTHER << 16 | 0xe5ULL << 40;
    idt[INT_GATE] = gdt[GATE / 8];
    pointer.selector = OTHER;
}

// Where code and stack of the new task cannot be used, another task serves the exception.
static void see(int vector) {
    memcpy(&doctor, &tss, sizeof doctor);
    doctor.cr3 = cr3();
    doctor.eip = (u32)stubs + 16 * vector;
    doctor.cs = CODE0;
    doctor.ss = doctor.ds = doctor.es = doctor.fs = doctor.gs = DATA0;
    doctor.ldt = 0;
    doctor.r[4] = (u32)trap_stack_top - 64;
    doctor.eflags = 2;
    gdt[DOCTOR / 8] = descriptor((u32)&doctor, sizeof doctor - 1, 0x89, 0);
    idt[vector] = (u64)DOCTOR << 16 | 0x85ULL << 40;
}

static void go(const char *code, enum mode m, u32 flags) {
    prepare(code, m);
    ctx.r[RDI] = m == U ? user(&pointer) : (word)&pointer;
    ctx.r[RBX] = 0xbeef;
    ctx.flags |= flags;
    set_cr0(cr0() & ~CR0_TS);
    set_dr6(0);
    run(&ctx);
    six = dr6();
    set_dr6(0);
}

static int old_busy, new_busy, ts;
static void clean(void) {
    old_busy = busy(TSS_SEL);
    new_busy = busy(OTHER);
    ts = (cr0() & CR0_TS) != 0;
    set_cr0(cr0() & ~CR0_TS);
    restore_tables();
    asmv("lldt %w0" ::"r"(0));
    asmv("pushf\nandl $~0x4000,(%%esp)\npopf" ::: "memory", "cc");
    asmv("ltr %w0" ::"r"(TSS_SEL));
}

#define ROW(what, condition)                                                                                                      \
    do {                                                                                                                          \
        clean();                                                                                                                  \
        check(condition, "SDM 3A 8.3", what ": " #condition ": vector %d error %x cs:eip %x:%x flags %x tr %x busy %d %d link %x dr6 %x", \
              (int)ctx.vector, ctx.error, ctx.cs, ctx.ip, ctx.flags, ctx.r[RAX] & 0xffff, old_busy, new_busy, (word)other.link, six);         \
        make();                                                                                                                   \
    } while (0)

#define THERE(n) (ctx.vector == DONE && (ctx.r[RAX] & 0xffff) == OTHER && ctx.r[RCX] == 0x2000 && ctx.r[RDI] == 0x8000 && ts && (n))
// A fault of the old task, before the switch.
#define HERE(v, e, at) (ctx.vector == (v) && ctx.error == (word)(e) && ctx.ip == (word)(at) && ctx.r[RBX] == 0xbeef && old_busy)
// A fault of the new task, before its first instruction.
#define NEW(v, e) (ctx.vector == (v) && ctx.error == (word)(e) && ctx.ip == (word)t_arrive && ctx.r[RBX] == 0x4000 && new_busy)

// The same, seen by a task of its own that is nested in the new one.
#define BY_TASK(v, e) (ctx.vector == (v) && ctx.error == (word)(e) && new_busy && doctor.link == OTHER && other.eip == (u32)t_arrive)

static void switched(void) {
    go(t_jump, K, 0);
    ROW("jump", THERE(!old_busy && new_busy && !(ctx.flags & F_NT) && ctx.flags & F_CF));
    check(tss.eip == (u32)t_jump_end && tss.r[3] == 0xbeef && tss.cs == CODE0 && tss.ds == DATA0, "SDM 3A 8.3", "jump: saved eip %x ebx %x",
          (word)tss.eip, (word)tss.r[3]);
    go(t_call, K, 0);
    word link = other.link;
    ROW("call", THERE(old_busy && new_busy && ctx.flags & F_NT));
    check(link == TSS_SEL && tss.eip == (u32)t_call_end, "SDM 3A 8.4", "call: link %x, saved eip %x", link, (word)tss.eip);
    tss.link = OTHER;
    gdt[OTHER / 8] |= 2ULL << 40;
    go(t_iret, K, F_NT);
    ROW("return", THERE(!old_busy && new_busy && !(ctx.flags & F_NT)));
    check(!(tss.eflags & F_NT), "SDM 3A 8.3", "return: saved flags %x", (word)tss.eflags);
    pointer.selector = GATE;
    go(t_jump, K, 0);
    ROW("jump through a gate", THERE(!old_busy && new_busy));
    pointer.selector = GATE | 3;
    go(t_call, U, 0);
    ROW("call through a gate from CPL 3", THERE(old_busy && new_busy && ctx.flags & F_NT));
    check(tss.cs == CODE3 && tss.eip == user(t_call_end), "SDM 3A 8.3", "call from CPL 3: saved %x:%x", (word)tss.cs, (word)tss.eip);
    go(t_int, K, F_IF);
    ROW("interrupt", THERE(old_busy && new_busy && ctx.flags & F_NT));
    check(tss.eip == (u32)t_int_end && tss.eflags & F_IF, "SDM 3A 6.12.2", "interrupt: saved eip %x flags %x", (word)tss.eip, (word)tss.eflags);
    idt[UD] = gdt[GATE / 8];
    go(t_ud, U, 0);
    ROW("exception", THERE(old_busy && new_busy && ctx.flags & F_NT));
    check(tss.eip == user(t_ud) && tss.eflags & F_RF, "SDM 3A 6.12.2", "exception: saved eip %x flags %x", (word)tss.eip, (word)tss.eflags);
    // An error code goes onto the new task's stack.
    gdt[CODE_ / 8] = 0;
    idt[GP] = gdt[GATE / 8];
    pointer.selector = 0x1000;
    go(t_jump, K, 0);
    ROW("exception with an error code", ctx.vector == DONE && *(u32 *)(stack + sizeof stack - 4) == 0x1000);
    // To CPL 3, and with the trap flag.
    other.cs = CODE3;
    other.ss = other.ds = other.es = other.fs = other.gs = DATA3;
    other.eip = user(t_arrive);
    other.r[4] = user(user_stack_top);
    other.esp0 = (u32)trap_stack_top;
    other.ss0 = DATA0;
    go(t_jump, K, 0);
    ROW("to CPL 3", ctx.vector == DONE && ctx.cs == CODE3 && (ctx.r[RAX] & 0xffff) == OTHER);
    other.trap = 1;
    go(t_jump, K, 0);
    ROW("trap flag", ctx.vector == DB && ctx.ip == (word)t_arrive && six & 0x8000 && new_busy);
    // A narrow task.
    memset(&narrow, 0, sizeof narrow);
    memcpy((void *)0x6000, t_arrive, 16);
    narrow.ip = 0x6000;
    narrow.flags = 2;
    narrow.r[1] = 0x2222;
    narrow.r[4] = 0x7000;
    narrow.cs = CODE0;
    narrow.ds = narrow.es = DATA0;
    // The upper halves of its registers are undefined, so its stack pointer is 16 bits wide.
    gdt[CODE_ / 8] = descriptor(0, 0xffff, 0x93, 0);
    narrow.ss = CODE_;
    gdt[OTHER / 8] = descriptor((u32)&narrow, sizeof narrow - 1, 0xe1, 0);
    go(t_call, K, 0);
    ROW("16-bit task", ctx.vector == DONE && (ctx.r[RAX] & 0xffff) == OTHER && (ctx.r[RCX] & 0xffff) == 0x2222 && ts && narrow.link == TSS_SEL);
}

static void wrong(void) {
    gdt[OTHER / 8] |= 2ULL << 40;
    go(t_jump, K, 0);
    ROW("jump to a busy task", HERE(GP, OTHER, t_jump));
    gdt[OTHER / 8] &= ~(0x80ULL << 40);
    go(t_call, K, 0);
    ROW("absent task", HERE(NP, OTHER, t_call));
    gdt[OTHER / 8] = descriptor((u32)&other, 0x66, 0x89, 0);
    go(t_call, K, 0);
    ROW("short task", HERE(TS, OTHER, t_call));
    gdt[OTHER / 8] = descriptor((u32)&other, 0x67, 0x89, 0);
    go(t_call, U, 0);
    ROW("task of DPL 0 from CPL 3", HERE(GP, OTHER, user(t_call)));
    gdt[GATE / 8] = 0x85ULL << 40;
    pointer.selector = GATE;
    go(t_call, K, 0);
    ROW("gate without a task", HERE(GP, 0, t_call));
    gdt[GATE / 8] = (u64)OTHER << 16 | 0x05ULL << 40;
    pointer.selector = GATE;
    go(t_call, K, 0);
    ROW("absent gate", HERE(NP, GATE, t_call));
    idt[INT_GATE] = 0xe5ULL << 40;
    go(t_int, K, 0);
    ROW("interrupt to no task", HERE(GP, 0, t_int));
    idt[UD] = (u64)DATA0 << 16 | 0xe5ULL << 40;
    go(t_ud, K, 0);
    ROW("exception to what is no task", HERE(GP, DATA0 + 1, t_ud));
    tss.link = OTHER;
    go(t_iret, K, F_NT);
    ROW("return to a task that is not busy", HERE(TS, OTHER, t_iret));
    tss.link = 0;
    go(t_iret, K, F_NT);
    ROW("return to no task", HERE(TS, 0, t_iret));
    tss.link = DATA0;
    go(t_iret, K, F_NT);
    ROW("return to what is no task", HERE(TS, DATA0, t_iret));
    tss.link = 0;
    // Segments of the new task.
    other.ds = 0x1000;
    go(t_jump, K, 0);
    ROW("DS beyond the table", NEW(TS, 0x1000));
    gdt[CODE_ / 8] = descriptor(0, 0xfffff, 0x13, 0xc);
    other.es = CODE_;
    go(t_jump, K, 0);
    ROW("absent ES", NEW(NP, CODE_));
    gdt[CODE_ / 8] = descriptor(0, 0xfffff, 0x99, 0xc);
    other.fs = CODE_;
    go(t_jump, K, 0);
    ROW("FS that cannot be read", NEW(TS, CODE_));
    other.ldt = DATA0;
    see(TS);
    go(t_jump, K, 0);
    ROW("LDT that is none", BY_TASK(TS, DATA0));
    other.cs = 0;
    see(TS);
    go(t_jump, K, 0);
    ROW("null CS", BY_TASK(TS, 0));
    other.cs = DATA0;
    see(TS);
    go(t_jump, K, 0);
    ROW("CS is data", BY_TASK(TS, DATA0));
    other.ss = CODE0;
    see(TS);
    go(t_jump, K, 0);
    ROW("SS is code", BY_TASK(TS, CODE0));
    gdt[CODE_ / 8] = descriptor(0, 0xfffff, 0x1b, 0xc);
    other.cs = CODE_;
    see(NP);
    go(t_jump, K, 0);
    ROW("absent CS", BY_TASK(NP, CODE_));
    gdt[CODE_ / 8] = descriptor(0, 0xfffff, 0x13, 0xc);
    other.ss = CODE_;
    see(SS);
    go(t_jump, K, 0);
    ROW("absent SS", BY_TASK(SS, CODE_));
}

void tasks(void) {
    make();
    switched();
    wrong();
    clean();
    group("task switches");
}
