// A virtio network card (virtio 1.2 5.1) on the user-mode network: it asks who has the gateway's address, and for one of its own.
#include "guest.h"

#define F_MAC (1 << 5)
#define RX 0
#define TX 1
#define BUFFERS 8
#define FRAME 2048
#define ARP 0x0608
#define IP 0x0008
#define UDP 17
#define COOKIE 0x63538263

static u8 mac[6];
static u8 *frames;
static u32 header;

static void put16(u8 *at, u16 v) {
    at[0] = v >> 8;
    at[1] = v;
}

static void give(struct virtio *v, u32 n) {
    u8 *at = frames + n * FRAME;
    struct piece p[] = { { at, header, true }, { at + 16, FRAME - 16, true } };
    add(v, RX, p, 2);
}

static void send(struct virtio *v, const u8 *frame, u32 len) {
    static u8 nothing[16];
    struct piece p[] = { { nothing, header, false }, { (void *)frame, len, false } };
    request(v, TX, p, 2);
}

// The next frame that `wanted` likes, in its buffer.
static u8 *receive(struct virtio *v, bool (*wanted)(const u8 *frame)) {
    for (;;) {
        u32 head;
        wait(v, RX, &head);
        u8 *frame = frames + head / 2 % BUFFERS * FRAME + 16;
        if (wanted(frame)) return frame;
    }
}

static void ethernet(u8 *f, u16 type) {
    memset(f, 0xff, 6);
    memcpy(f + 6, mac, 6);
    memcpy(f + 12, &type, 2);
}

static bool arp_answer(const u8 *f) { return *(u16 *)(f + 12) == ARP && f[21] == 2; }

static void who_has(struct virtio *v) {
    static const u8 head[] = { 0, 1, 8, 0, 6, 4, 0, 1 }, me[] = { 10, 0, 2, 15 }, gateway[] = { 10, 0, 2, 2 };
    u8 f[60] = { 0 };
    ethernet(f, ARP);
    memcpy(f + 14, head, sizeof head);
    memcpy(f + 22, mac, 6);
    memcpy(f + 28, me, 4);
    memcpy(f + 38, gateway, 4);
    send(v, f, sizeof f);
    const u8 *a = receive(v, arp_answer);
    must(*(u32 *)(a + 28) == *(u32 *)gateway, "another one answers");
    print("%d.%d.%d.%d is at %x:%x:%x:%x:%x:%x, ", a[28], a[29], a[30], a[31], a[22], a[23], a[24], a[25], a[26], a[27]);
}

static u16 checksum(const u8 *at, u32 len) {
    u32 s = 0;
    for (u32 i = 0; i < len; i += 2) s += at[i] << 8 | at[i + 1];
    s = (s & 0xffff) + (s >> 16);
    return ~(s + (s >> 16));
}

static bool offer(const u8 *f) {
    return *(u16 *)(f + 12) == IP && f[23] == UDP && f[37] == 68 && f[42] == 2;
}

// DHCPDISCOVER (RFC 2131), without a checksum of UDP's.
static void discover(struct virtio *v) {
    static const u8 options[] = { 53, 1, 1, 255 };
    static u8 f[14 + 20 + 8 + 240 + 60];
    u8 *ip = f + 14, *udp = ip + 20, *boot = udp + 8;
    ethernet(f, IP);
    ip[0] = 0x45;
    put16(ip + 2, sizeof f - 14);
    ip[8] = 64;
    ip[9] = UDP;
    memset(ip + 16, 0xff, 4);
    put16(ip + 10, checksum(ip, 20));
    put16(udp, 68);
    put16(udp + 2, 67);
    put16(udp + 4, sizeof f - 34);
    boot[0] = boot[1] = 1;
    boot[2] = 6;
    memcpy(boot + 4, "rhea", 4);
    memcpy(boot + 28, mac, 6);
    *(u32 *)(boot + 236) = COOKIE;
    memcpy(boot + 240, options, sizeof options);
    send(v, f, sizeof f);
    const u8 *a = receive(v, offer) + 42;
    must(*(u32 *)(a + 4) == *(u32 *)(boot + 4), "an answer to somebody else");
    print("offered %d.%d.%d.%d\n", a[16], a[17], a[18], a[19]);
}

void net(struct virtio *v) {
    begin(v, F_MAC, 2);
    header = v->transport == LEGACY ? 10 : 12;
    u32 low = config32(v, 0), high = config32(v, 4);
    memcpy(mac, &low, 4);
    memcpy(mac + 4, &high, 2);
    frames = pages(BUFFERS * FRAME);
    for (u32 n = 0; n < BUFFERS; n++) give(v, n);
    ring(v, RX);
    print("virtio-net: ");
    who_has(v);
    discover(v);
    end(v);
}
