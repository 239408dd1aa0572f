// Debug registers, single steps, interrupt shadows, NMI, restarts of REP (SDM 3B chapter 18 "Debug"; SDM 3A 6.7, 6.8.3).
#include "kernel.h"

#define APIC 0xfee00000
#define BS 0x4000
#define BD 0x2000
#define PTR "data+0x40000000"
static void put(u32 r, u32 v) { *(volatile u32 *)(word)(APIC + r) = v; }

// Breakpoint `n` of kind R/W and length LEN, as DR7 has them.
static word dr7_for(int n, u32 rw, u32 len) { return 0x400 | 1 << (2 * n) | (u64)(rw | len << 2) << (16 + 4 * n); }
static word hit;

// Runs with breakpoint 0; `hit` is DR6 after it.
static void watch(const char *code, enum mode m, word at, u32 rw, u32 len, word flags) {
    prepare(code, m);
    ctx.flags |= flags;
    set_dr6(0);
    set_dr0(at);
    set_dr7(rw == 8 ? 0x400 : dr7_for(0, rw, len));
    run(&ctx);
    // The handler of #DB runs with DR7 as it is: turned off here.
    set_dr7(0x400);
    hit = dr6();
    set_dr6(0);
}

#define DB(name, pre, at) SNIPPET(d_##name, 64, pre, at)
DB(nop, "", "nop");
DB(write4, "", "movl $1," PTR);
DB(write8, "", "movq $1," PTR);
DB(read4, "", "movl " PTR ",%eax");
DB(read_back, "", "cmpb $0,7+" PTR);
DB(out, "", "outb %al,$0x80");
DB(in4, "mov $0x7e,%edx", "inl %dx");
DB(rep, "mov $data+0x40000000,%edi\nmov $8,%ecx", "rep stosb");
DB(movs, "mov $data+0x40000000,%esi\nmov $data+0x40000100,%edi\nmov $8,%ecx", "rep movsb");
DB(push, "", "push %rax");
DB(mov_ss, "mov %ss,%eax", "mov %eax,%ss\nnop");
DB(mov_ss_int, "mov %ss,%eax", "mov %eax,%ss\nint3");
DB(pop_flags, "push $0x102", "popf\nnop");
DB(pop_off, "push $2", "popf");
DB(jump, "", "jmp 1f\nnop\n1:");
DB(call, "", "call 1f\n1:");
DB(soft, "", "int $0x80");
DB(syscall, "", "syscall");
DB(fault, "xor %edx,%edx\nxor %ecx,%ecx", "div %ecx");
DB(fault_write, "mov $0x8000000000000000,%rbx\nmov $data+0x40000000,%edi", "movq (%rdi),%rax\nmov (%rbx),%rax");
DB(read_dr, "", "mov %dr0,%rax");
DB(write_dr, "", "mov %rax,%dr3");
DB(read_dr6, "", "mov %dr6,%rax");
DB(write_dr6, "mov $-1,%eax", "mov %rax,%dr6");
DB(write_dr7, "mov $-1,%eax", "mov %rax,%dr7");
DB(load_flags, "push $0x10002", "popf\npushf\npop %rax");
DB(taken, "", "nop\nxor %eax,%eax\njz 1f\nnop\n1:");
DB(not_taken, "", "nop\nstc\njnc 1f\nnop\n1:");
DB(loop, "mov $2,%ecx", "1: loop 1b");
SNIPPET(d_step32, 32, "", "inc %eax");

#define ROW(what, condition)                                                                                                      \
    check(condition, "SDM 3B 18.3", what ": " #condition ": vector %d rip %x dr6 %x flags %x", (int)ctx.vector, ctx.ip, hit, ctx.flags)

static bool trapped(const char *end, word why) {
    return ctx.vector == DB && (word)end == ctx.ip && (hit & 0xe00f) == why && (hit & 0xffff1ff0) == 0xffff0ff0;
}

static void instructions(void) {
    watch(d_nop, K, (word)d_nop, 0, 0, 0);
    ROW("instruction", trapped(d_nop, 1) && ctx.flags & 2 && !(ctx.flags & F_RF));
    watch(d_nop, K, (word)d_nop, 0, 0, F_RF);
    ROW("instruction with RF", ctx.vector == DONE);
    watch(d_nop, K, (word)d_nop_end, 0, 0, 0);
    ROW("instruction behind another", trapped(d_nop_end, 1));
    watch(d_nop, K, (word)d_nop_end, 0, 0, F_RF);
    ROW("RF is for one instruction", trapped(d_nop_end, 1));
    watch(d_nop, U, user(d_nop), 0, 0, 0);
    ROW("instruction at CPL 3", ctx.vector == DB && ctx.ip == user(d_nop) && (hit & 0xe00f) == 1);
    watch(d_jump, K, (word)d_jump_end, 0, 0, 0);
    ROW("target of a jump", trapped(d_jump_end, 1));
    watch(d_jump, K, (word)d_jump_end - 1, 0, 0, 0);
    ROW("instruction that is jumped over", ctx.vector == DONE);
    watch(d_mov_ss, K, (word)d_mov_ss_at + 2, 0, 0, 0);
    ROW("instruction behind MOV SS", ctx.vector == DONE);
    watch(d_load_flags, K, 0, 8, 0, 0);
    ROW("PUSHF stores RF as 0", ctx.vector == DONE && !(ctx.r[RAX] & F_RF));
}

static void data_breakpoints(void) {
    word at = user(data);
    watch(d_write4, K, at, 1, 3, 0);
    ROW("write", trapped(d_write4_end, 1));
    watch(d_write4, U, at, 1, 3, 0);
    ROW("write at CPL 3", ctx.vector == DB && ctx.ip == user(d_write4_end) && (hit & 0xe00f) == 1);
    watch(d_read4, K, at, 1, 3, 0);
    ROW("read where writes are watched", ctx.vector == DONE);
    watch(d_read4, K, at, 3, 3, 0);
    ROW("read", trapped(d_read4_end, 1));
    watch(d_write4, K, at + 3, 3, 0, 0);
    ROW("last byte of four", trapped(d_write4_end, 1));
    watch(d_write4, K, at + 4, 3, 0, 0);
    ROW("byte behind four", ctx.vector == DONE);
    watch(d_write8, K, at, 3, 2, 0);
    ROW("eight bytes", trapped(d_write8_end, 1));
    watch(d_read_back, K, at, 3, 2, 0);
    ROW("last byte of eight watched", trapped(d_read_back_end, 1));
    watch(d_write4, K, at + 7, 3, 2, 0);
    ROW("LEN aligns the address", trapped(d_write4_end, 1));
    watch(d_push, K, (word)snippet_stack_top - 8, 1, 2, 0);
    ROW("push", trapped(d_push_end, 1));
    // String instructions trap behind the element, and go on.
    watch(d_rep, K, at + 3, 1, 0, 0);
    ROW("REP STOS", ctx.vector == DB && ctx.ip == (word)d_rep_at && ctx.r[RCX] == 4 && (hit & 0xe00f) == 1);
    watch(d_movs, K, at + 7, 3, 0, 0);
    ROW("REP MOVS, last element", trapped(d_movs_end, 1) && ctx.r[RCX] == 0);
    // A read that is followed by a fault of the next instruction: the trap comes first.
    watch(d_fault_write, K, at, 3, 2, 0);
    ROW("before the next instruction's fault", ctx.vector == DB && ctx.ip == (word)d_fault_write_at + 3);
    watch(d_out, K, 0x80, 2, 0, 0);
    ROW("port without CR4.DE", ctx.vector == DONE);
    set_cr4(cr4() | CR4_DE);
    watch(d_out, K, 0x80, 2, 0, 0);
    ROW("port", trapped(d_out_end, 1));
    watch(d_in4, K, 0x81, 2, 0, 0);
    ROW("last byte of a port of four", trapped(d_in4_end, 1));
    watch(d_in4, K, 0x82, 2, 0, 0);
    ROW("port behind", ctx.vector == DONE);
    set_cr4(cr4() & ~CR4_DE);
    // Breakpoints met that are not enabled may be reported; these are: 1 by itself, both.
    set_dr1(at);
    set_dr7(0x400);
    prepare(d_write4, K);
    set_dr0(at + 1);
    set_dr6(0);
    set_dr7(dr7_for(0, 1, 0) | dr7_for(1, 1, 3));
    run(&ctx);
    set_dr7(0x400);
    hit = dr6();
    set_dr6(0);
    ROW("two at once", trapped(d_write4_end, 3));
}

static void steps(void) {
    watch(d_nop, K, 0, 8, 0, F_TF);
    ROW("step", trapped(d_nop_end, BS));
    watch(d_nop, U, 0, 8, 0, F_TF);
    ROW("step at CPL 3", ctx.vector == DB && ctx.ip == user(d_nop_end) && (hit & 0xe00f) == BS && ctx.flags & F_TF);
    watch(d_step32, C32, 0, 8, 0, F_TF);
    ROW("step in compatibility mode", ctx.vector == DB && ctx.ip == user(d_step32_end) && (hit & 0xe00f) == BS);
    watch(d_pop_flags, K, 0, 8, 0, 0);
    ROW("POPF sets TF: after the next", trapped(d_pop_flags_end, BS));
    watch(d_pop_off, K, 0, 8, 0, F_TF);
    ROW("first of a sequence", ctx.vector == DB && ctx.ip == (word)d_pop_off_at && hit & BS);
    watch(d_jump, K, 0, 8, 0, F_TF);
    ROW("jump", trapped(d_jump_end, BS));
    watch(d_mov_ss, K, 0, 8, 0, F_TF);
    ROW("first is MOV EAX, SS", ctx.vector == DB && ctx.ip == (word)d_mov_ss_at);
    prepare(d_mov_ss_at, K);
    ctx.r[RAX] = DATA0;
    ctx.flags |= F_TF;
    set_dr6(0);
    run(&ctx);
    hit = dr6();
    ROW("MOV SS holds the trap for one instruction", trapped(d_mov_ss_end, BS));
    watch(d_soft, U, 0, 8, 0, F_TF);
    ROW("INT n is not stepped into", ctx.vector == DONE && !(hit & BS));
    watch(d_fault, K, 0, 8, 0, F_TF);
    prepare(d_fault_at, K);
    ctx.flags |= F_TF;
    set_dr6(0);
    run(&ctx);
    hit = dr6();
    ROW("a fault is no step", ctx.vector == DE && !(hit & BS) && ctx.flags & F_TF && ctx.flags & F_RF);
    prepare(d_rep_at, K);
    ctx.r[RDI] = user(data);
    ctx.r[RCX] = 3;
    ctx.flags |= F_TF;
    set_dr6(0);
    run(&ctx);
    hit = dr6();
    ROW("REP steps by element", ctx.vector == DB && ctx.ip == (word)d_rep_at && ctx.r[RCX] == 2 && hit & BS);
    // A step and a breakpoint together.
    watch(d_write4, K, user(data), 1, 3, F_TF);
    ROW("step and write", trapped(d_write4_end, BS | 1));
    watch(d_nop, K, (word)d_nop_end, 0, 0, F_TF);
    ROW("step before a breakpoint", ctx.vector == DB && ctx.ip == (word)d_nop_end && hit & BS);
}

#define DEBUGCTL 0x1d9
#define LBR 1
#define BTF 2

static void branch_steps(void) {
    wrmsr(DEBUGCTL, BTF);
    watch(d_taken, K, 0, 8, 0, F_TF);
    ROW("BTF steps a branch that is taken", trapped(d_taken_end, BS));
    ROW("and is cleared by #DB", rdmsr(DEBUGCTL) == 0);
    wrmsr(DEBUGCTL, BTF);
    watch(d_not_taken, K, 0, 8, 0, F_TF);
    ROW("BTF does not step others", ctx.vector == DONE && rdmsr(DEBUGCTL) == BTF);
    watch(d_call, U, 0, 8, 0, F_TF);
    ROW("BTF steps CALL", ctx.vector == DB && ctx.ip == user(d_call_end) && (hit & 0xe00f) == BS);
    wrmsr(DEBUGCTL, BTF);
    watch(d_loop, K, 0, 8, 0, F_TF);
    ROW("BTF steps LOOP", trapped(d_loop_at, BS) && ctx.r[RCX] == 1);
    wrmsr(DEBUGCTL, BTF | LBR);
    watch(d_nop, K, (word)d_nop, 0, 0, 0);
    ROW("any #DB clears BTF and LBR", trapped(d_nop, 1) && rdmsr(DEBUGCTL) == 0);
    for (int bit = 6; bit < 64; bit++) {
        int vector = try_wrmsr(DEBUGCTL, 1ULL << bit);
        check(vector == GP && rdmsr(DEBUGCTL) == 0, "SDM 3B 18.4.1", "IA32_DEBUGCTL bit %d: vector %d", bit, vector);
    }
}

// Branches that were recorded: MSRs of P6 and AMD's processors (SDM 3B 18.13; AMD APM 2 13.1.1.4).
static void records(void) {
    wrmsr(DEBUGCTL, LBR);
    watch(d_jump, K, (word)d_jump_end, 0, 0, 0);
    ROW("a jump is recorded", trapped(d_jump_end, 1) && rdmsr(0x1db) == (word)d_jump && rdmsr(0x1dc) == (word)d_jump_end);
    ROW("and no more after #DB", rdmsr(DEBUGCTL) == 0);
    wrmsr(DEBUGCTL, LBR);
    watch(d_call, U, user(d_call_end), 0, 0, 0);
    ROW("CALL at CPL 3", ctx.vector == DB && rdmsr(0x1db) == user(d_call) && rdmsr(0x1dc) == user(d_call_end));
    wrmsr(DEBUGCTL, LBR);
    watch(d_loop, K, (word)d_loop_end, 0, 0, 0);
    ROW("LOOP once", trapped(d_loop_end, 1) && rdmsr(0x1db) == (word)d_loop_at && rdmsr(0x1dc) == (word)d_loop_at);
    wrmsr(DEBUGCTL, LBR);
    watch(d_not_taken, K, (word)d_not_taken_end, 0, 0, 0);
    ROW("a branch not taken is none", trapped(d_not_taken_end, 1) && rdmsr(0x1dc) == (word)d_not_taken);
    wrmsr(DEBUGCTL, LBR);
    watch(d_taken, K, 0, 8, 0, F_TF);
    ROW("a step ends it", ctx.vector == DB && rdmsr(0x1dc) == (word)d_taken && rdmsr(DEBUGCTL) == 0);
    // The last before an exception, and before INT n; the handler's own come after.
    wrmsr(DEBUGCTL, LBR);
    watch(d_jump, U, 0, 8, 0, 0);
    wrmsr(DEBUGCTL, 0);
    ROW("before INT n", ctx.vector == DONE && rdmsr(0x1dd) == user(d_jump) && rdmsr(0x1de) == user(d_jump_end));
    wrmsr(DEBUGCTL, LBR);
    watch(d_fault, K, 0, 8, 0, 0);
    wrmsr(DEBUGCTL, 0);
    ROW("before an exception", ctx.vector == DE && rdmsr(0x1de) == (word)d_fault);
    u64 from = rdmsr(0x1db), to = rdmsr(0x1dc);
    run(&ctx);
    check(rdmsr(0x1db) == from && rdmsr(0x1dc) == to, "SDM 3B 18.4.1", "off: nothing is recorded");
    for (u32 n = 0x1db; n <= 0x1de; n++) check(try_wrmsr(n, 0) == GP, "AMD APM 2 13.1.1.4", "MSR %x is read-only", (word)n);
}

static void detect(void) {
    static const char *const codes[] = { d_read_dr, d_write_dr, d_read_dr6 };
    for (int i = 0; i < 3; i++) {
        prepare(codes[i], K);
        set_dr6(0);
        set_dr7(0x2400);
        run(&ctx);
        // Entering the handler has cleared GD.
        word seven = dr7();
        set_dr7(0x400);
        hit = dr6();
        set_dr6(0);
        ROW("general detect", ctx.vector == DB && ctx.ip == (word)codes[i] && hit & BD && ctx.flags & F_RF);
        check(seven == 0x400, "SDM 3B 18.2.4", "DR7 in the handler %x", seven);
    }
    prepare(d_write_dr6, K);
    ctx.r[RAX] = 0;
    run(&ctx);
    word six = dr6();
    check((six & 0xffff1fff) == 0xffff0fff || (six & 0xf) == 0xf, "SDM 3B 18.2.3", "DR6 after all ones %x", six);
    set_dr6(0);
    check(dr6() == 0xffff0ff0, "SDM 3B 18.2.3", "DR6 after 0: %x", dr6());
    set_dr7(0);
    check(dr7() == 0x400, "SDM 3B 18.2.4", "DR7 after 0: %x", dr7());
    set_dr7(0xffff0f00 & ~0x2000);
    check((dr7() & 0xffff2fff) == 0xffff0700, "SDM 3B 18.2.4", "DR7 after ones without enables: %x", dr7());
    set_dr7(0x400);
}

// --- interrupt shadows and NMI

DB(sti_cli, "", "sti\ncli");
DB(sti_sti, "cli", "sti\nsti\nnop");
DB(sti_on, "", "sti\nnop\nnop");
DB(pop_if, "push $0x202", "popf\nnop");
DB(rep_if, "mov $data,%edi\nmov $3000,%ecx\npush $0x202\npopf", "rep stosb");
DB(nop3, "", "nop\nnop\nnop");
DB(nmi, "", "movl $0x4400,(%rdi)\n1: pause\njmp 1b");

static void self(u32 icr) { put(0x310, 0), put(0x300, icr); }
static void done(void) { put(0xb0, 0); }

// The timer once, vector 60h.
static void set_timer(u32 ns) {
    put(0x3e0, 0xb);
    put(0x320, 0x60);
    put(0x380, ns);
}

static void shadows(void) {
    put(0xf0, 0x1ff);
    self(0x44050);
    prepare(d_sti_cli, K);
    run(&ctx);
    ROW("STI, CLI lets nothing in", ctx.vector == DONE);
    prepare(d_sti_on, K);
    run(&ctx);
    ROW("STI: behind the next instruction", ctx.vector == 0x50 && ctx.ip == (word)d_sti_on + 2);
    done();
    self(0x44050);
    prepare(d_sti_sti, K);
    run(&ctx);
    ROW("a second STI holds nothing back", ctx.vector == 0x50 && ctx.ip == (word)d_sti_sti_at + 2);
    done();
    self(0x44050);
    prepare(d_pop_if, K);
    run(&ctx);
    ROW("POPF: at once", ctx.vector == 0x50 && ctx.ip == (word)d_pop_if_at + 1);
    done();
    // NMI: at once; no second one before IRET, which lets it in at the instruction it returns to.
    prepare(d_nmi, K);
    ctx.r[RDI] = APIC + 0x300;
    run(&ctx);
    ROW("NMI", ctx.vector == NMI && ctx.ip > (word)d_nmi && ctx.ip < (word)d_nmi_end && !(ctx.flags & F_RF));
    self(0x4400);
    self(0x4400);
    check(true, "SDM 3A 6.7.1", "NMI is held back until IRET");
    prepare(d_nop3, K);
    run(&ctx);
    ROW("NMI behind IRET", ctx.vector == NMI && ctx.ip == (word)d_nop3);
    prepare(d_nop3, K);
    run(&ctx);
    ROW("only one NMI waits", ctx.vector == DONE);
    // An interrupt in the middle of REP: registers tell how far it came, and it can be resumed.
    set_timer(20000);
    prepare(d_rep_if, K);
    run(&ctx);
    int parts = 1;
    bool ok = true;
    while (ctx.vector == 0x60 && parts < 1000) {
        ok &= ctx.ip == (word)d_rep_if_at ? ctx.r[RDI] == (word)data + 3000 - ctx.r[RCX] : true;
        done();
        parts++;
        run(&ctx);
    }
    ROW("REP goes on where it was", ok && ctx.vector == DONE && ctx.r[RCX] == 0 && ctx.r[RDI] == (word)data + 3000);
    put(0x320, 1 << 16);
}

// --- faults between and inside of accesses

DB(stos, "", "rep stosb");
DB(stos_down, "", "std\nrep stosl\ncld");
DB(movs_far, "", "rep movsq");
DB(cmps, "", "repe cmpsb");
DB(scas, "", "repne scasw");
DB(straddle, "", "mov %rax,(%rdi)");
DB(straddle_rmw, "", "lock addq $1,(%rdi)");
DB(push_mem, "", "pushq (%rdi)");
DB(pop_mem, "", "popq (%rdi)");
DB(xchg, "", "xchg %rax,(%rdi)");
DB(enter_, "", "enter $32,$0");

// Nothing is mapped from 2 GiB on; below is a page that can be written.
#define EDGE 0x80000000ULL
#define FAULTED(at, error_, address) (ctx.vector == PF && ctx.ip == (word)(at) && ctx.error == (error_) && ctx.cr2 == (address) && ctx.flags & F_RF)

static void string(const char *code, word di, word si, word cx) {
    prepare(code, K);
    ctx.r[RDI] = di;
    ctx.r[RSI] = si;
    ctx.r[RCX] = cx;
    ctx.r[RAX] = 0x5555;
    run(&ctx);
}

static void restarts(void) {
    string(d_stos, EDGE - 8, 0, 16);
    ROW("REP STOS into a missing page", FAULTED(d_stos, 2, EDGE) && ctx.r[RCX] == 8 && ctx.r[RDI] == EDGE);
    string(d_stos_down, EDGE + 4, 0, 4);
    ROW("REP STOS down, first element", FAULTED(d_stos_down + 1, 2, EDGE + 4) && ctx.r[RCX] == 4 && ctx.flags & 0x400);
    string(d_movs_far, (word)data, EDGE - 20, 5);
    ROW("REP MOVS across the edge", FAULTED(d_movs_far, 0, EDGE) && ctx.r[RCX] == 3 && ctx.r[RSI] == EDGE - 4 && ctx.r[RDI] == (word)data + 16);
    memset(data, 0xff, 64);
    string(d_cmps, EDGE - 8, (word)data, 16);
    ROW("REPE CMPS into a missing page", FAULTED(d_cmps, 0, EDGE) && ctx.r[RCX] == 8 && ctx.r[RSI] == (word)data + 8);
    string(d_scas, EDGE - 6, 0, 16);
    ROW("REPNE SCAS into a missing page", FAULTED(d_scas, 0, EDGE) && ctx.r[RCX] == 13 && ctx.r[RDI] == EDGE);
    string(d_straddle, EDGE - 3, 0, 0);
    ROW("store across the edge", FAULTED(d_straddle, 2, EDGE));
    string(d_straddle_rmw, EDGE - 3, 0, 0);
    ROW("LOCK ADD across the edge", FAULTED(d_straddle_rmw, 2, EDGE));
    string(d_xchg, EDGE, 0, 0);
    ROW("XCHG keeps its register", FAULTED(d_xchg, 2, EDGE) && ctx.r[RAX] == 0x5555);
    string(d_push_mem, EDGE, 0, 0);
    ROW("PUSH of what is missing", FAULTED(d_push_mem, 0, EDGE) && ctx.r[RSP] == (word)snippet_stack_top);
    prepare(d_pop_mem, K);
    ctx.r[RDI] = EDGE;
    ctx.r[RSP] -= 8;
    run(&ctx);
    ROW("POP to what is missing", FAULTED(d_pop_mem, 2, EDGE) && ctx.r[RSP] == (word)snippet_stack_top - 8);
    prepare(d_push, U);
    ctx.r[RSP] = EDGE + 8;
    run(&ctx);
    ROW("PUSH to what is missing", ctx.vector == PF && ctx.error == 6 && ctx.cr2 == EDGE && ctx.r[RSP] == EDGE + 8);
    prepare(d_enter_, U);
    ctx.r[RSP] = EDGE + 8;
    ctx.r[RBP] = 77;
    run(&ctx);
    ROW("ENTER to what is missing", ctx.vector == PF && ctx.error == 6 && ctx.cr2 == EDGE && ctx.r[RSP] == EDGE + 8 && ctx.r[RBP] == 77);
}

void debug(void) {
    instructions();
    data_breakpoints();
    steps();
    branch_steps();
    records();
    detect();
    shadows();
    restarts();
    group("debug registers, steps, shadows, restarts");
}
