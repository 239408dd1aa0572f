// Serial console, rows and their counts, and how the kernel ends.
#include "kernel.h"
#include "text.h"

#define COM1 0x3f8
#define EXIT 0x501
// Failed rows that a group prints; the rest is only counted.
#ifndef SHOWN
#define SHOWN 40
#endif

static void put(char c) {
    while (!(inb(COM1 + 5) & 0x20)) {
    }
    outb(COM1, c);
}

static int rows, failed, all_rows, all_failed;

#ifdef LEFT_OUT
static const char *const without[] = { LEFT_OUT };
#define WITHOUT ((int)(sizeof without / sizeof without[0]))
#else
static const char *const *const without = 0;
#define WITHOUT 0
#endif

// Whether `text` begins as `format` with its arguments does, of which only %s is looked at.
static bool begins(const char *text, const char *f, __builtin_va_list args) {
    const char *in = 0;
    for (; *text; text++) {
        if (in && !*in) in = 0;
        if (!in && f[0] == '%' && f[1] == 's') {
            in = __builtin_va_arg(args, const char *);
            f += 2;
        }
        if (*text != (in ? *in++ : *f++)) return false;
    }
    return true;
}

static bool listed(const char *format, __builtin_va_list args) {
    // Characters that some of them begin with: an emulator takes long over each row otherwise.
    static bool known, starts[128];
    for (int i = 0; i < WITHOUT && !known; i++) starts[without[i][0] & 127] = true;
    known = true;
    __builtin_va_list copy;
    __builtin_va_copy(copy, args);
    char first = *format == '%' ? *__builtin_va_arg(copy, const char *) : *format;
    __builtin_va_end(copy);
    if (!starts[first & 127]) return false;
    for (int i = 0; i < WITHOUT; i++) {
        if (without[i][0] != first) continue;
        __builtin_va_copy(copy, args);
        bool found = begins(without[i], format, copy);
        __builtin_va_end(copy);
        if (found) return true;
    }
    return false;
}

static bool listed_as(const char *format, ...) {
    __builtin_va_list args;
    __builtin_va_start(args, format);
    bool found = listed(format, args);
    __builtin_va_end(args);
    return found;
}

bool left_out(const char *what, const char *more) { return listed_as("%s %s", what, more); }

bool check(bool ok, const char *manual, const char *format, ...) {
    if (WITHOUT) {
        __builtin_va_list args;
        __builtin_va_start(args, format);
        bool found = listed(format, args);
        __builtin_va_end(args);
        if (found) return true;
    }
    rows++;
    if (ok) return true;
    if (++failed <= SHOWN) {
        __builtin_va_list args;
        __builtin_va_start(args, format);
        print("FAIL ");
        vprint(format, args);
        print(" (%s)\n", manual);
        __builtin_va_end(args);
    }
    return false;
}

void group(const char *name) {
    if (failed) print("FAIL %s: %d of %d rows\n", name, failed, rows);
    else print("ok %s: %d rows\n", name, rows);
    all_rows += rows;
    all_failed += failed;
    rows = failed = 0;
}

int finish(void) {
    print("end: %d rows, %d failed\n", all_rows, all_failed);
    return all_failed ? 1 : 0;
}

void leave(int status) {
    outb(EXIT, status);
    for (;;) asmv("hlt");
}
