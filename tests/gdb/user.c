// A program for Linux that a debugger of the whole machine looks at: user ID ROUNDS. Two of them run at once.

typedef unsigned long u64;

static long call(long n, long a, long b, long c)
{
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}

volatile int id;
volatile u64 turns, sum;

__attribute__((noinline)) void work(int n)
{
    turns++;
    sum += n;
}

__attribute__((noinline)) void turn(void)
{
    int local = id;
    work(local);
    // sched_yield
    call(24, 0, 0, 0);
}

int run(char **argv)
{
    id = argv[1][0] - '0';
    for (;;)
        turn();
}

__asm__(".globl _start\n_start: xor %ebp, %ebp\n lea 8(%rsp), %rdi\n call run\n");
