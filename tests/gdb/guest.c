// The debugger's guest in 64-bit mode: rounds of work that breakpoints, watchpoints and steps are tried on.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

struct point {
    int x, y;
};

volatile u32 rounds, calls, loops, locked, ticks, db_count, pf_count, patched_value;
u64 db_dr6;
volatile u32 key_count;
volatile u8 keys[16];
volatile int counter, spun, watched[32], read_only = 77;
volatile u8 page[4096] __attribute__((aligned(4096)));
u8 source[8] = "abcdefg", target[8];
struct point corner = {3, 4};
static u64 idt[512];

void reps(void), steps(void), hold(void), vectors(void), wide(void), own_trap(void), own_break(void);
void db_handler(void), pf_handler(void), timer_handler(void);

static void outb(u16 port, u8 v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static u8 inb(u16 port)
{
    u8 v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

// What the keyboard controller has.
__attribute__((noinline)) void key_came(void)
{
    keys[key_count++ & 15] = inb(0x60);
}

static void gate(int n, void (*f)(void))
{
    u64 a = (u64)f;
    idt[2 * n] = (a & 0xffff) | 0x28ul << 16 | 0x8e00ul << 32 | (a >> 16 & 0xffff) << 48;
    idt[2 * n + 1] = a >> 32;
}

void setup(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) at = {sizeof idt - 1, (u64)idt};
    gate(1, db_handler);
    gate(14, pf_handler);
    gate(0x20, timer_handler);
    __asm__ volatile("lidt %0" : : "m"(at));
    // 8259: vectors from 20h, the timer alone. 8254: 1000 Hz.
    outb(0x20, 0x11);
    outb(0x21, 0x20);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0x21, 0xfe);
    outb(0x43, 0x34);
    outb(0x40, 1193 & 0xff);
    outb(0x40, 1193 >> 8);
    // 8042: scan codes are translated to set 1.
    outb(0x64, 0x60);
    outb(0x60, 0x40);
}

__attribute__((noinline)) int innermost(int n)
{
    calls++;
    return n * 2;
}

__attribute__((noinline)) int middle(int n)
{
    int twice = innermost(n);
    return twice + 1;
}

__attribute__((noinline)) int outer(struct point *p)
{
    int sum = middle(p->x);
    sum += middle(p->y);
    return sum;
}

__attribute__((noinline)) void count_to(int n)
{
    int i;
    for (i = 0; i < n; i++)
        counter = i;
    for (i = 0; i < n; i++) { spun += i; }
    loops++;
}

__attribute__((noinline)) void touch(void)
{
    int i;
    for (i = 0; i < 32; i++)
        watched[i] = rounds;
    page[2000] = (u8)rounds;
    patched_value = read_only;
}

void round(void)
{
    rounds++;
    outer(&corner);
    count_to(20000);
    touch();
    reps();
    steps();
    vectors();
    wide();
    own_trap();
    own_break();
    if (inb(0x64) & 1)
        key_came();
    hold();
}
