// Segments: limits and types of every kind of segment on accesses, loads of segment registers, LAR, LSL, VERR, VERW, far jumps,
// calls and returns, call gates, task switches (SDM 3A chapters 5 "Protection" and 8 "Task Management").
#include "kernel.h"

// Access byte: type, S, DPL, P.
enum { ACCESSED = 1, RW = 2, DC = 4, CODE = 8, S = 0x10, PRESENT = 0x80 };
static const char *const cpl_name[] = { "CPL 0", "CPL 3" };
static u64 *const slot = &gdt[TEST_SEL / 8];

// --- limits

#define ACCESS(name, insn)                                                                                                        \
    SNIPPET(fs_##name, 32, "", insn " %fs:(%edi)");                                                                               \
    SNIPPET(ss_##name, 32, "", insn " %ss:(%edi)");
ACCESS(read1, "cmpb $0,") ACCESS(read2, "cmpw $0,") ACCESS(read4, "cmpl $0,") ACCESS(read8, "fildll") ACCESS(read10, "fldt")
ACCESS(write1, "movb $0,") ACCESS(write2, "movw $0,") ACCESS(write4, "movl $0,") ACCESS(write8, "fistpll") ACCESS(write10, "fstpt")
ACCESS(rmw4, "addl $0,")

static const struct { const char *fs, *ss; u8 size; bool write; } accesses[] = {
    { fs_read1, ss_read1, 1, false },    { fs_read2, ss_read2, 2, false },    { fs_read4, ss_read4, 4, false },
    { fs_read8, ss_read8, 8, false },    { fs_read10, ss_read10, 10, false }, { fs_write1, ss_write1, 1, true },
    { fs_write2, ss_write2, 2, true },   { fs_write4, ss_write4, 4, true },   { fs_write8, ss_write8, 8, true },
    { fs_write10, ss_write10, 10, true }, { fs_rmw4, ss_rmw4, 4, true },
};

static void limit_row(unsigned n, u32 access, u32 limit, u32 flags, u32 offset, bool ss) {
    u32 type = access & 15, size = accesses[n].size;
    u32 last = flags & 8 ? limit << 12 | 0xfff : limit;
    u64 end = (u64)offset + size - 1;
    bool down = !(type & CODE) && type & DC;
    bool inside = down ? offset > last && end <= (flags & 4 ? 0xffffffffu : 0xffffu) : end <= last;
    bool typed = type & CODE ? !accesses[n].write && type & RW : !accesses[n].write || type & RW;
    prepare(ss ? accesses[n].ss : accesses[n].fs, U);
    // Whatever the offset, the same bytes are reached.
    *slot = descriptor((u32)data + USER + 64 - offset, limit, access | S | PRESENT | 3 << 5, flags);
    *(ss ? &ctx.ss : &ctx.fs) = TEST_SEL | 3;
    ctx.r[RDI] = offset;
    asmv("fninit");
    run(&ctx);
    bool ok = inside && typed ? ctx.vector == DONE : ctx.vector == (ss ? SS : GP) && ctx.error == 0;
    check(ok, "SDM 3A 5.3", "%d bytes, type %x limit %x flags %x offset %x %s: vector %d error %x, want %s", (int)size, (word)type,
          (word)limit, (word)flags, (word)offset, ss ? "ss" : "fs", (int)ctx.vector, ctx.error, inside && typed ? "none" : "a fault");
}

static void limits(void) {
    static const u32 limit[] = { 0, 7, 0xffe, 0xffff, 0xfffff };
    for (u32 type = 0; type < 16; type++) {
        // Code that cannot be read cannot be loaded.
        if ((type & (CODE | RW)) == CODE) continue;
        bool stack = !(type & CODE) && type & RW;
        for (unsigned l = 0; l < sizeof limit / sizeof *limit; l++)
            for (u32 flags = 0; flags < 16; flags += 4)
                for (unsigned n = 0; n < sizeof accesses / sizeof *accesses; n++) {
                    u32 size = accesses[n].size, last = flags & 8 ? limit[l] << 12 | 0xfff : limit[l];
                    u32 offsets[] = { 0, last, last + 1, last - size + 1, last - size + 2, 0xffff, 0x10000 - size, 0xfffffffc, -size };
                    for (unsigned o = 0; o < sizeof offsets / sizeof *offsets; o++) {
                        limit_row(n, type | ACCESSED, limit[l], flags, offsets[o], false);
                        if (stack && type == RW) limit_row(n, type | ACCESSED, limit[l], flags, offsets[o], true);
                    }
                }
    }
    restore_tables();
    group("segment limits");
}

// --- loads

SNIPPET(load_ds, 32, "", "mov %eax,%ds");
SNIPPET(load_es, 32, "", "mov %eax,%es");
SNIPPET(load_fs, 32, "", "mov %eax,%fs");
SNIPPET(load_ss, 32, "", "mov %eax,%ss");
SNIPPET(pop_gs, 32, "push %eax", "pop %gs");
SNIPPET(do_lar, 32, "", "lar %eax,%ebx");
SNIPPET(do_lsl, 32, "", "lsl %eax,%ebx");
SNIPPET(do_verr, 32, "", "verr %ax");
SNIPPET(do_verw, 32, "", "verw %ax");

// A verdict: vector and error code, or none.
struct verdict { int vector; u32 error; };
static const struct verdict fine = { DONE, 0 };

static struct verdict judge_data(u32 access, u32 cpl, u32 rpl) {
    u32 dpl = access >> 5 & 3;
    bool data = access & S && (!(access & CODE) || access & RW);
    bool conforming = access & CODE && access & DC;
    if (!data || (!conforming && (rpl > dpl || cpl > dpl))) return (struct verdict){ GP, TEST_SEL };
    return access & PRESENT ? fine : (struct verdict){ NP, TEST_SEL };
}

static struct verdict judge_stack(u32 access, u32 cpl, u32 rpl) {
    u32 dpl = access >> 5 & 3;
    bool writable = access & S && !(access & CODE) && access & RW;
    if (rpl != cpl || !writable || dpl != cpl) return (struct verdict){ GP, TEST_SEL };
    return access & PRESENT ? fine : (struct verdict){ SS, TEST_SEL };
}

static void load_row(const char *name, const char *code, u32 access, u32 cpl, u32 rpl, struct verdict v) {
    prepare(code, cpl ? U : K);
    // A stack that can be used, also where it expands down.
    bool down = (access & (S | CODE | DC)) == (S | DC);
    *slot = descriptor(0, down ? 0 : 0xfffff, access, down ? 4 : 0xc);
    ctx.r[RAX] = TEST_SEL | rpl;
    run(&ctx);
    u32 now = *slot >> 40 & 0xff;
    bool ok = (int)ctx.vector == v.vector && ctx.error == v.error;
    ok &= now == (v.vector == DONE ? access | ACCESSED : access);
    check(ok, "SDM 2B MOV", "%s, access %x %s rpl %d: vector %d error %x, want %d; access byte %x", name, (word)access, cpl_name[cpl == 3],
          (int)rpl, (int)ctx.vector, ctx.error, v.vector, (word)now);
}

static void look_row(const char *name, const char *code, u32 access, u32 cpl, u32 rpl, bool zf, u32 value) {
    prepare(code, cpl ? U : K);
    *slot = descriptor(0x12345678, 0xabcde, access, 0xd);
    ctx.r[RAX] = TEST_SEL | rpl;
    ctx.r[RBX] = 0x55555555;
    run(&ctx);
    bool ok = ctx.vector == DONE && !(ctx.flags & 0x40) == !zf && ctx.r[RBX] == (zf && value ? value : 0x55555555);
    check(ok, "SDM 2A LAR", "%s, access %x %s rpl %d: vector %d flags %x value %x, want zf %d %x", name, (word)access, cpl_name[cpl == 3],
          (int)rpl, (int)ctx.vector, ctx.flags, ctx.r[RBX], zf, (word)value);
}

static void looks(u32 access, u32 cpl, u32 rpl) {
    u32 type = access & 15, dpl = access >> 5 & 3;
    bool segment = access & S;
    bool conforming = segment && (type & (CODE | DC)) == (CODE | DC);
    bool reach = conforming || (cpl <= dpl && rpl <= dpl);
    bool lar = segment || (0x1a3e >> type & 1);
    bool lsl = segment || (0x0a0e >> type & 1);
    // LAR gives the second doubleword of the descriptor but for base and limit 19:16, which is undefined: here as it is there.
    u32 rights = (u32)(descriptor(0x12345678, 0xabcde, access, 0xd) >> 32) & 0xf0ff00;
    prepare(do_lar, cpl ? U : K);
    *slot = descriptor(0x12345678, 0xabcde, access, 0xd);
    ctx.r[RAX] = TEST_SEL | rpl;
    run(&ctx);
    check(ctx.vector == DONE && !(ctx.flags & 0x40) == !(lar && reach) && (!(lar && reach) || (ctx.r[RBX] & 0xf0ff00) == rights), "SDM 2A LAR",
          "lar, access %x %s rpl %d: vector %d flags %x value %x", (word)access, cpl_name[cpl == 3], (int)rpl, (int)ctx.vector, ctx.flags, ctx.r[RBX]);
    look_row("lsl", do_lsl, access, cpl, rpl, lsl && reach, 0xabcdefff);
    look_row("verr", do_verr, access, cpl, rpl, segment && reach && (!(type & CODE) || type & RW), 0);
    look_row("verw", do_verw, access, cpl, rpl, segment && reach && !(type & CODE) && type & RW, 0);
}

static void loads(void) {
    for (u32 access = 0; access < 256; access++)
        for (u32 rpl = 0; rpl < 4; rpl++)
            for (u32 cpl = 0; cpl < 4; cpl += 3) {
                struct verdict v = judge_data(access, cpl, rpl);
                load_row("ds", load_ds, access, cpl, rpl, v);
                load_row("es", load_es, access, cpl, rpl, v);
                load_row("fs", load_fs, access, cpl, rpl, v);
                load_row("pop gs", pop_gs, access, cpl, rpl, v);
                load_row("ss", load_ss, access, cpl, rpl, judge_stack(access, cpl, rpl));
                looks(access, cpl, rpl);
            }
    restore_tables();
    group("segment loads");
}

// --- far transfers

SNIPPET(jump_far, 32, "", "ljmp *%cs:(%edi)");
SNIPPET(call_far, 32, "", "lcall *%cs:(%edi)");
SNIPPET(return_far, 32, "", "lret");
SNIPPET(arrive, 32, "", "");
static struct { u32 offset; u16 selector; } __attribute__((packed)) pointer;

static struct verdict judge_far(u32 access, u32 cpl, u32 rpl) {
    u32 type = access & 15, dpl = access >> 5 & 3;
    struct verdict bad = { GP, TEST_SEL }, absent = { NP, TEST_SEL };
    if (access & S) {
        if (!(type & CODE)) return bad;
        if (type & DC ? dpl > cpl : rpl > cpl || dpl != cpl) return bad;
        return access & PRESENT ? fine : absent;
    }
    bool gate = type == 4 || type == 5 || type == 12, task = type == 1 || type == 9;
    if (!(gate || task) || dpl < cpl || dpl < rpl) return bad;
    if (!(access & PRESENT)) return absent;
    // All gates here name the null selector.
    return (struct verdict){ GP, 0 };
}

static void far_row(bool call, u32 access, u32 cpl, u32 rpl) {
    u32 type = access & 15;
    struct verdict v = judge_far(access, cpl, rpl);
    // Task switches have rows of their own.
    if (!(access & S) && (type == 1 || type == 9) && v.vector == GP && v.error == 0) return;
    prepare(call ? call_far : jump_far, cpl ? U : K);
    *slot = access & S ? descriptor(0, 0xfffff, access, 0xc) : (u64)access << 40;
    u32 target = cpl ? user(arrive) : (u32)arrive;
    pointer.offset = target;
    pointer.selector = TEST_SEL | rpl;
    ctx.r[RDI] = cpl ? user(&pointer) : (word)&pointer;
    u32 sp = ctx.r[RSP];
    run(&ctx);
    bool ok = (int)ctx.vector == v.vector && ctx.error == v.error;
    if (v.vector == DONE) {
        ok &= ctx.cs == (TEST_SEL | cpl) && ctx.ip == target + 2 && ctx.r[RSP] == sp - (call ? 8 : 0);
        const u32 *frame = (u32 *)(ctx.r[RSP] - (cpl ? USER : 0));
        if (call) ok &= frame[0] == (cpl ? user(call_far_end) : (u32)call_far_end) && (u16)frame[1] == (cpl ? CODE3 : CODE0);
    } else {
        ok &= ctx.ip == (cpl ? user(call ? call_far : jump_far) : (word)(call ? call_far : jump_far)) && ctx.r[RSP] == sp;
    }
    check(ok, call ? "SDM 2A CALL" : "SDM 2A JMP", "%s far, access %x %s rpl %d: vector %d error %x cs %x eip %x, want %d", call ? "call" : "jmp",
          (word)access, cpl_name[cpl == 3], (int)rpl, (int)ctx.vector, ctx.error, ctx.cs, ctx.ip, v.vector);
}

// Returns to a segment of each kind, to an outer level with a fitting stack.
static void return_row(u32 access, u32 cpl, u32 rpl) {
    u32 type = access & 15, dpl = access >> 5 & 3;
    struct verdict v = fine;
    bool bad = !(access & S) || !(type & CODE) || rpl < cpl || (type & DC ? dpl > rpl : dpl != rpl);
    if (bad) v = (struct verdict){ GP, TEST_SEL };
    else if (!(access & PRESENT)) v = (struct verdict){ NP, TEST_SEL };
    prepare(return_far, cpl ? U : K);
    *slot = descriptor(0, 0xfffff, access, 0xc);
    // Stack segments for each level.
    for (u32 l = 1; l < 3; l++) gdt[TEST_SEL / 8 + l] = descriptor(0, 0xfffff, 0x93 | l << 5, 0xc);
    u16 stack = rpl == 0 ? DATA0 : rpl == 3 ? DATA3 : (TEST_SEL + 8 * rpl) | rpl;
    u32 target = user(arrive);
    u32 *sp = (u32 *)(ctx.r[RSP] -= 16);
    if (cpl) sp = (u32 *)((u32)sp - USER);
    sp[0] = target;
    sp[1] = TEST_SEL | rpl;
    sp[2] = user(user_stack_top) - 32;
    sp[3] = stack;
    run(&ctx);
    // From levels 1 and 2 supervisor pages can be reached too, and the end's gate has DPL 3.
    bool ok = (int)ctx.vector == v.vector && ctx.error == v.error;
    if (v.vector == DONE) ok &= ctx.cs == (TEST_SEL | rpl) && ctx.ip == target + 2;
    if (v.vector == DONE && rpl > cpl) ok &= ctx.ss == stack && ctx.r[RSP] == user(user_stack_top) - 32 && ctx.ds == (rpl > cpl ? 0 : DATA0);
    check(ok, "SDM 2B RET", "ret far, access %x %s rpl %d: vector %d error %x cs %x eip %x ss %x ds %x, want %d", (word)access,
          cpl_name[cpl == 3], (int)rpl, (int)ctx.vector, ctx.error, ctx.cs, ctx.ip, ctx.ss, ctx.ds, v.vector);
}

// --- call gates

static void gate_row(u32 type, u32 dpl, u32 rpl, u32 cpl, u32 parameters, u32 code_access, bool call) {
    prepare(call ? call_far : jump_far, cpl ? U : K);
    u32 code_dpl = code_access >> 5 & 3;
    bool wide = type == 12, conforming = code_access & DC;
    gdt[TEST_SEL / 8 + 1] = descriptor(wide ? 0 : (u32)arrive, 0xfffff, code_access, 0xc);
    u32 offset = wide ? (u32)arrive : 0;
    u16 code = TEST_SEL + 8;
    *slot = (offset & 0xffff) | (u32)code << 16 | (u64)(parameters | (PRESENT | dpl << 5 | type) << 8 | (offset & 0xffff0000)) << 32;
    pointer.offset = 0xdead;
    pointer.selector = TEST_SEL | rpl;
    ctx.r[RDI] = cpl ? user(&pointer) : (word)&pointer;
    u32 sp = ctx.r[RSP] -= 64;
    u32 *words = (u32 *)(cpl ? sp - USER : sp);
    for (int i = 0; i < 16; i++) words[i] = 0x01010101 * (i + 1);
    struct verdict v = fine;
    bool reach = call || conforming ? code_dpl <= cpl : code_dpl == cpl;
    if (dpl < cpl || dpl < rpl) v = (struct verdict){ GP, TEST_SEL };
    else if (!reach) v = (struct verdict){ GP, code };
    bool inner = call && !conforming && code_dpl < cpl;
    u32 level = inner ? code_dpl : cpl;
    // Code behind the gate lies in supervisor pages.
    if (v.vector == DONE && level == 3) v = (struct verdict){ PF, 5 };
    run(&ctx);
    bool ok = (int)ctx.vector == v.vector && ctx.error == v.error;
    if (v.vector == DONE) {
        ok &= ctx.cs == (code | level) && ctx.ip == (wide ? (u32)arrive : 0) + 2;
        u32 size = wide ? 4 : 2;
        u32 pushed = !call ? 0 : inner ? (4 + parameters) * size : 2 * size;
        u32 top = inner ? (u32)trap_stack_top : sp;
        ok &= ctx.r[RSP] == top - pushed;
        u8 *frame = (u8 *)ctx.r[RSP];
        u32 got[4 + 31];
        for (u32 i = 0; i * size < pushed; i++) got[i] = wide ? ((u32 *)frame)[i] : ((u16 *)frame)[i];
        u32 mask = wide ? 0xffffffff : 0xffff;
        if (call) ok &= got[0] == ((cpl ? user(call_far_end) : (u32)call_far_end) & mask) && (u16)got[1] == (cpl ? CODE3 : CODE0);
        if (inner) {
            for (u32 i = 0; i < parameters; i++) ok &= got[2 + i] == (wide ? words[i] : ((u16 *)words)[i]);
            ok &= got[2 + parameters] == (sp & mask) && (u16)got[3 + parameters] == DATA3;
        }
    }
    check(ok, "SDM 3A 5.8.5", "%s gate type %x dpl %d rpl %d parameters %d to access %x, %s: vector %d error %x cs %x eip %x esp %x, want %d",
          call ? "call" : "jmp", (word)type, (int)dpl, (int)rpl, (int)parameters, (word)code_access, cpl_name[cpl == 3], (int)ctx.vector,
          ctx.error, ctx.cs, ctx.ip, ctx.r[RSP], v.vector);
}

static void transfers(void) {
    for (u32 access = 0; access < 256; access++)
        for (u32 rpl = 0; rpl < 4; rpl++)
            for (u32 cpl = 0; cpl < 4; cpl += 3) {
                far_row(false, access, cpl, rpl);
                far_row(true, access, cpl, rpl);
                return_row(access, cpl, rpl);
            }
    for (u32 type = 4; type <= 12; type += 8)
        for (u32 dpl = 0; dpl < 4; dpl++)
            for (u32 rpl = 0; rpl < 4; rpl++)
                for (u32 cpl = 0; cpl < 4; cpl += 3)
                    for (u32 n = 0; n < 3; n++)
                        for (u32 code = 0; code < 4; code++) {
                            static const u32 access[] = { 0x9b, 0xfb, 0x9f, 0x99 };
                            gate_row(type, dpl, rpl, cpl, n * 3, access[code], true);
                            gate_row(type, dpl, rpl, cpl, n * 3, access[code], false);
                        }
    restore_tables();
    group("far transfers and call gates");
}

void segments(void) {
    limits();
    loads();
    transfers();
}
