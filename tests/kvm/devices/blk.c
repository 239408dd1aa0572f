// A virtio disk (virtio 1.2 5.2): blocks 0 to 7 are read, go to 8 to 15 inverted, and are read again by many requests at once.
#include "guest.h"

#define F_FLUSH (1 << 9)
#define READ 0
#define WRITE 1
#define FLUSH 4
#define GET_ID 8
#define BLOCK 512
#define BLOCKS 8
#define MANY 16

struct header { u32 type, reserved; u64 block; };

// The request's status.
static u8 ask(struct virtio *v, u32 type, u64 block, void *data, u32 len) {
    static struct header h;
    static volatile u8 status;
    h = (struct header){ .type = type, .block = block };
    status = 0xff;
    struct piece p[] = { { &h, sizeof h, false }, { data, len, type != WRITE }, { (void *)&status, 1, true } };
    if (!len) p[1] = p[2];
    request(v, 0, p, len ? 3 : 2);
    return status;
}

// All at once; they may end in any order.
static u32 many(struct virtio *v) {
    static struct header h[MANY];
    static volatile u8 status[MANY];
    u8 *data = pages(MANY * BLOCK);
    for (u32 i = 0; i < MANY; i++) {
        h[i] = (struct header){ .type = READ, .block = i };
        status[i] = 0xff;
        struct piece p[] = { { &h[i], sizeof h[i], false }, { data + i * BLOCK, BLOCK, true }, { (void *)&status[i], 1, true } };
        add(v, 0, p, 3);
    }
    ring(v, 0);
    u32 good = 0;
    for (u32 i = 0; i < MANY; i++) must(wait(v, 0, 0) == BLOCK + 1, "a request's length");
    for (u32 i = 0; i < MANY; i++) good += status[i] == 0;
    must(good == MANY, "one of many requests");
    return sum(data, MANY * BLOCK);
}

void blk(struct virtio *v) {
    begin(v, F_FLUSH, 1);
    print("virtio-blk: %d blocks, ", config32(v, 0));
    u8 *data = pages(BLOCKS * BLOCK);
    char id[21] = "";
    must(ask(v, READ, 0, data, BLOCKS * BLOCK) == 0, "reading");
    print("read %x, ", sum(data, BLOCKS * BLOCK));
    for (u32 i = 0; i < BLOCKS * BLOCK; i++) data[i] = ~data[i];
    must(ask(v, WRITE, BLOCKS, data, BLOCKS * BLOCK) == 0, "writing");
    must(ask(v, FLUSH, 0, 0, 0) == 0, "flushing");
    must(ask(v, GET_ID, 0, id, 20) == 0, "its name");
    // One by one, past the end of the queue.
    for (u32 i = 0; i < 2 * 64; i++) must(ask(v, READ, i % BLOCKS, data, BLOCK) == 0, "one of many, one by one");
    u8 beyond = ask(v, READ, config32(v, 0), data, BLOCK);
    u32 told = v->told;
    print("%s, beyond its end %d, %d interrupts, ", id, beyond, told);
    print("%d at once %x\n", MANY, many(v));
    while (v->told == told) sleep_while(&v->told, told);
    end(v);
}
