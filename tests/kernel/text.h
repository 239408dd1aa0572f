// Text and memory of test guests in C, for the one file of a guest that has `put`, which brings a character out.
#pragma once

static void put(char c);

static void number(unsigned long long v, unsigned base, int negative) {
    char text[24];
    int n = 0;
    if (negative) {
        put('-');
        v = -v;
    }
    // No 64-bit division in guests of 32 bits: there is no library for it.
    if (base == 16) {
        do text[n++] = "0123456789abcdef"[v & 15]; while (v >>= 4);
    } else {
        unsigned w = v;
        do text[n++] = '0' + w % 10; while (w /= 10);
    }
    while (n) put(text[--n]);
}

// %s %d (int) %x (unsigned long) %X (unsigned long long).
static void vprint(const char *f, __builtin_va_list args) {
    for (; *f; f++) {
        if (*f != '%') {
            put(*f);
            continue;
        }
        switch (*++f) {
        case 's':
            for (const char *s = __builtin_va_arg(args, const char *); *s; s++) put(*s);
            break;
        case 'd': {
            int v = __builtin_va_arg(args, int);
            number(v, 10, v < 0);
            break;
        }
        case 'x': number(__builtin_va_arg(args, unsigned long), 16, 0); break;
        case 'X': number(__builtin_va_arg(args, unsigned long long), 16, 0); break;
        }
    }
}

void print(const char *format, ...) {
    __builtin_va_list args;
    __builtin_va_start(args, format);
    vprint(format, args);
    __builtin_va_end(args);
}

void *memset(void *to, int v, unsigned long n) {
    for (unsigned char *p = to; n--;) *p++ = v;
    return to;
}

void *memcpy(void *to, const void *from, unsigned long n) {
    const unsigned char *s = from;
    for (unsigned char *p = to; n--;) *p++ = *s++;
    return to;
}
