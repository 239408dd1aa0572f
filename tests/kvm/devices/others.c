// Virtio's source of random numbers, its console and its balloon (virtio 1.2 5.4, 5.3, 5.5). The last two wait for somebody outside.
#include "guest.h"

#define BYTES 256
// Pages for the balloon: from 8 MiB on.
#define LENT 0x800000
#define PAGE 4096
#define BATCH 256

void rng(struct virtio *v) {
    begin(v, 0, 1);
    u8 *data = pages(BYTES);
    struct piece p = { data, BYTES, true };
    u32 len = request(v, 0, &p, 1), different = 0;
    must(len > 0 && len <= BYTES, "a length");
    u8 seen[256] = { 0 };
    for (u32 i = 0; i < len; i++) different += !seen[data[i]]++;
    // 256 random bytes have 162 values, give or take 6.
    print("virtio-rng: %d bytes, %s\n", len, different > 100 && different < 220 ? "random" : "not random");
    end(v);
}

void console(struct virtio *v) {
    begin(v, 0, 2);
    static char text[] = "what is typed?\n";
    struct piece out = { text, sizeof text - 1, false };
    request(v, 1, &out, 1);
    char *line = pages(PAGE);
    u32 len = 0;
    while (!len || line[len - 1] != '\n') {
        struct piece in = { line + len, PAGE - len, true };
        len += request(v, 0, &in, 1);
    }
    for (u32 i = 0; i < len; i++)
        if (line[i] >= 'a' && line[i] <= 'z') line[i] -= 32;
    struct piece back = { line, len, false };
    request(v, 1, &back, 1);
    print("virtio-console: %d characters\n", len);
    end(v);
}

// Waits for another wish than `is` pages.
static u32 wish(struct virtio *v, u32 is) {
    asmv("cli");
    u32 changed, want;
    while (changed = v->changed, (want = config32(v, 0)) == is) sleep_while(&v->changed, changed);
    return want;
}

// Puts pages into the balloon (queue 0), or takes them out (1).
static void move(struct virtio *v, u32 queue, u32 count) {
    static u32 numbers[BATCH];
    for (u32 i = 0; i < count;) {
        u32 n = 0;
        while (n < BATCH && i < count) numbers[n++] = LENT / PAGE + i++;
        struct piece p = { numbers, 4 * n, false };
        request(v, queue, &p, 1);
    }
}

// Words that stand at the beginning of pages: of what is lent nothing is left.
static u32 words(u32 count) {
    u32 s = 0;
    for (u32 i = 0; i < count; i++) s += REG32(LENT + i * PAGE);
    return s;
}

void balloon(struct virtio *v) {
    begin(v, 0, 2);
    print("virtio-balloon: waits\n");
    u32 count = wish(v, 0);
    must(count <= 0x700, "a wish for more than is asked for here");
    for (u32 i = 0; i < count; i++) REG32(LENT + i * PAGE) = i + 1;
    u32 before = words(count);
    move(v, 0, count);
    set_config32(v, 4, count);
    print("virtio-balloon: %d pages lent\n", count);
    must(wish(v, count) == 0, "another wish");
    move(v, 1, count);
    set_config32(v, 4, 0);
    print("virtio-balloon: %d before, %d after\n", before, words(count));
    end(v);
}
