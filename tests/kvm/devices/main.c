// The guest's way through its devices; text, memory, the end.
#include "guest.h"
#include "../../kernel/text.h"

#define COM1 0x3f8
#define EXIT 0xf4
#define RIGHT 16
#define WRONG 17
// Memory for queues and data begins here.
#define HEAP 0x200000

static void put(char c) { outb(COM1, c); }

void leave(u8 status) {
    outb(EXIT, status);
    for (;;) asmv("cli; hlt");
}

void must(bool ok, const char *what) {
    if (ok) return;
    print("wrong: %s\n", what);
    leave(WRONG);
}

void *pages(u32 bytes) {
    static u32 next = HEAP;
    void *at = (void *)next;
    next += (bytes + 4095) & ~4095u;
    return at;
}

u32 sum(const void *from, u32 n) {
    u32 s = 0;
    for (const u32 *w = from; n >= 4; n -= 4) s = (s << 5 | s >> 27) * 0x9e3779b1 + *w++;
    return s;
}

static bool word(const char *line, const char *w) {
    for (; *line; line++) {
        u32 i = 0;
        while (w[i] && line[i] == w[i]) i++;
        if (!w[i]) return true;
    }
    return false;
}

// `info`: PVH's start_info.
void main(const u32 *info) {
    const char *line = (const char *)info[6];
    way = word(line, "pic") ? PIC : word(line, "intx") ? INTX : MSI;
    interrupts();
    scan();
    print("end\n");
    leave(RIGHT);
}
