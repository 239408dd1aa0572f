// Workloads of the benchmark. As /init it runs those named on the kernel's command line (bench=a,b), each in a process of its own,
// and powers off; else those of its arguments. Each prints "@@BEGIN name" and "@@END name checksum microseconds-of-CPU".
#define _GNU_SOURCE
#include <emmintrin.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;

static u64 mix(u64 h, u64 v) { return (h ^ v) * 0x9e3779b97f4a7c15u + (h >> 29); }

static u64 state = 1;
static u64 draw(void) { return state = state * 6364136223846793005u + 1442695040888963407u, state >> 17; }

// Integers: a bit-serial checksum and a product of matrices.
static u64 integers(void) {
    static uint32_t a[64][64], b[64][64];
    uint32_t crc = ~0u;
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 64; j++) a[i][j] = (uint32_t)draw(), b[i][j] = (uint32_t)draw();
    for (int i = 0; i < 12000000; i++) crc = crc >> 1 ^ (0xedb88320u & -((crc ^ (unsigned)i) & 1));
    for (int n = 0; n < 60; n++)
        for (int i = 0; i < 64; i++)
            for (int j = 0; j < 64; j++) {
                uint32_t s = 0;
                for (int k = 0; k < 64; k++) s += a[i][k] * b[k][j];
                a[i][j] = s ^ a[j][i] >> 3;
            }
    return mix(crc, a[5][7]);
}

// Scalar floating point: bodies that attract each other.
static u64 floats(void) {
    double x[8], y[8], u[8] = {0}, v[8] = {0};
    for (int i = 0; i < 8; i++) x[i] = (double)(i * 7 % 5), y[i] = (double)(i * 3 % 7);
    for (int n = 0; n < 200000; n++)
        for (int i = 0; i < 8; i++) {
            for (int j = 0; j < 8; j++) {
                double dx = x[j] - x[i], dy = y[j] - y[i], d = dx * dx + dy * dy + 0.1;
                double f = 1.0 / (d * __builtin_sqrt(d));
                u[i] += dx * f * 1e-4, v[i] += dy * f * 1e-4;
            }
            x[i] += u[i] * 1e-3, y[i] += v[i] * 1e-3;
        }
    u64 h = 0, w;
    for (int i = 0; i < 8; i++) memcpy(&w, &x[i], 8), h = mix(h, w);
    return h;
}

static u64 vectors(void) {
    static float a[4096], b[4096];
    __m128i sum = _mm_setzero_si128();
    for (int i = 0; i < 4096; i++) a[i] = (float)(i & 63), b[i] = (float)(i % 37);
    for (int n = 0; n < 6000; n++)
        for (int i = 0; i < 4096; i += 4) {
            __m128 p = _mm_add_ps(_mm_mul_ps(_mm_loadu_ps(a + i), _mm_set1_ps(0.5f)), _mm_loadu_ps(b + i));
            _mm_storeu_ps(a + i, p);
            sum = _mm_add_epi32(sum, _mm_cvtps_epi32(p));
        }
    uint32_t w[4];
    _mm_storeu_si128((__m128i *)w, sum);
    return mix(mix(w[0], w[1]), mix(w[2], w[3]));
}

static u64 extended(void) {
    long double a = 1, b = 0.5L, s = 0;
    for (int i = 1; i < 3000000; i++) {
        a = a * 0.999L + b, b = (b + 1) / (a + 2);
        if (a > b) s += a - b;
        else s -= 1;
    }
    u64 w;
    memcpy(&w, &s, 8);
    return w;
}

// A list through 16 MiB in random order.
static u64 chase(void) {
    enum { N = 1 << 21 };
    uint32_t *next = malloc(N * 8u), *order = next + N, at = 0;
    for (uint32_t i = 0; i < N; i++) order[i] = i;
    for (uint32_t i = N - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(draw() % i), t = order[i];
        order[i] = order[j], order[j] = t;
    }
    for (uint32_t i = 0; i < N; i++) next[order[i]] = order[(i + 1) % N];
    for (int i = 0; i < 4000000; i++) at = next[at];
    return at;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static u64 sorting(void) {
    enum { N = 400000 };
    uint32_t *v = malloc(N * 4u);
    u64 h = 0;
    for (int n = 0; n < 2; n++) {
        for (int i = 0; i < N; i++) v[i] = (uint32_t)draw();
        qsort(v, N, 4, by_value);
        for (int i = 0; i < N; i += 1000) h = mix(h, v[i]);
    }
    return h;
}

static __attribute__((noinline)) unsigned ackermann(unsigned m, unsigned n) {
    if (m == 0) return n + 1;
    return ackermann(m - 1, n == 0 ? 1 : ackermann(m, n - 1));
}

static u64 calls(void) {
    u64 h = 0;
    for (int i = 0; i < 6; i++) h = mix(h, ackermann(2, 600 + (unsigned)i) + ackermann(3, 7));
    return h;
}

// A machine of a dozen instructions, by computed goto.
static u64 interpreter(void) {
    static void *const ops[] = {&&add, &&xor, &&rot, &&load, &&store, &&dec, &&jump, &&halt};
    static const uint8_t code[] = {3, 0, 1, 2, 4, 0, 5, 6, 7};
    u64 acc = 1, m[64] = {3, 5, 7}, n = 3000000;
    const uint8_t *pc = code;
#define NEXT goto *ops[*pc++]
    NEXT;
add: acc += m[acc & 63] + 1; NEXT;
xor: acc ^= acc << 7; NEXT;
rot: acc = acc >> 13 | acc << 51; NEXT;
load: acc += m[n & 63]; NEXT;
store: m[acc >> 3 & 63] = acc; NEXT;
dec: n--; NEXT;
jump: if (n) pc = code; NEXT;
halt: return acc;
}

static u64 strings(void) {
    static char text[1 << 16], copy[1 << 16];
    u64 h = 0;
    for (unsigned i = 0; i < sizeof text - 1; i++) text[i] = i % 61 == 60 ? '\n' : (char)('a' + draw() % 26);
    for (int n = 0; n < 400; n++) {
        strcpy(copy, text);
        h = mix(h, strlen(copy));
        for (char *p = copy; (p = strchr(p, '\n')); p++) h++;
        char number[32];
        snprintf(number, sizeof number, "%d %llx", n, (unsigned long long)h);
        h = mix(h, (u64)number[3] + (u64)(strstr(text, "qzx") != NULL));
    }
    return h;
}

static u64 syscalls(void) {
    char buf[64];
    struct stat st;
    u64 h = 0;
    int zero = open("/dev/zero", O_RDONLY);
    for (int i = 0; i < 150000; i++) {
        h += (u64)(getppid() >= 0);
        if (zero >= 0) h += (u64)read(zero, buf, sizeof buf) == sizeof buf;
        h += stat("/", &st) == 0;
    }
    return zero >= 0 ? h : 0;
}

static u64 switches(void) {
    int a[2], b[2];
    char c = 0;
    if (pipe(a) || pipe(b)) exit(1);
    pid_t child = fork();
    if (child == 0) {
        while (read(a[0], &c, 1) == 1 && c != 'q') c++, c = write(b[1], &c, 1) == 1 ? c : 'q';
        _exit(0);
    }
    u64 h = 0;
    for (int i = 0; i < 30000; i++) {
        c = (char)(i & 63);
        if (write(a[1], &c, 1) != 1 || read(b[0], &c, 1) != 1) exit(1);
        h += (u64)c;
    }
    c = 'q';
    if (write(a[1], &c, 1) != 1) exit(1);
    waitpid(child, NULL, 0);
    return h;
}

static u64 processes(void) {
    u64 h = 0;
    for (int i = 0; i < 400; i++) {
        int status;
        pid_t p = fork();
        if (p == 0) _exit(i & 127);
        waitpid(p, &status, 0);
        h = mix(h, (u64)WEXITSTATUS(status));
    }
    return h;
}

static u64 faults(void) {
    u64 h = 0;
    for (int n = 0; n < 6; n++) {
        uint8_t *p = mmap(NULL, 32 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (unsigned i = 0; i < 32u << 20; i += 4096) p[i] = (uint8_t)(i >> 12);
        mprotect(p, 16 << 20, PROT_READ);
        for (unsigned i = 0; i < 32u << 20; i += 4096) h += p[i];
        munmap(p, 32 << 20);
    }
    return h;
}

// Code that is written and called: a new page each time, or one page over and over.
static u64 written(int pages, int rounds, int runs) {
    uint8_t *p = mmap(NULL, (size_t)pages << 12, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u64 h = 0;
    for (int n = 0; n < rounds; n++) {
        uint8_t *f = p + ((size_t)(n % pages) << 12);
        // mov eax, edi; 20 times: imul eax, eax, imm; add eax, imm; ret
        uint8_t *q = f;
        *q++ = 0x89, *q++ = 0xf8;
        for (int i = 0; i < 20; i++) {
            *q++ = 0x69, *q++ = 0xc0, *q++ = (uint8_t)(n | 1), *q++ = (uint8_t)i, *q++ = 0, *q++ = 0;
            *q++ = 0x05, *q++ = (uint8_t)n, *q++ = 1, *q++ = 0, *q++ = 0;
        }
        *q = 0xc3;
        for (int i = 0; i < runs; i++) h = mix(h, ((uint32_t(*)(uint32_t))f)((uint32_t)i));
    }
    munmap(p, (size_t)pages << 12);
    return h;
}

static u64 jit(void) { return written(2000, 2000, 200); }
static u64 rewritten(void) { return written(1, 60000, 2); }

static const struct {
    const char *name;
    u64 (*run)(void);
    int times;
} all[] = {
    {"int", integers, 8}, {"fp", floats, 4}, {"sse2", vectors, 20}, {"x87", extended, 4}, {"chase", chase, 1},
    {"sort", sorting, 2}, {"calls", calls, 20}, {"interp", interpreter, 6}, {"str", strings, 30}, {"syscall", syscalls, 1},
    {"ctxsw", switches, 1}, {"fork", processes, 2}, {"fault", faults, 2}, {"jit", jit, 2}, {"smc", rewritten, 1},
};

static double seconds(void) {
    struct rusage own, children;
    getrusage(RUSAGE_SELF, &own), getrusage(RUSAGE_CHILDREN, &children);
    struct timeval t[] = {own.ru_utime, own.ru_stime, children.ru_utime, children.ru_stime};
    double s = 0;
    for (int i = 0; i < 4; i++) s += (double)t[i].tv_sec + 1e-6 * (double)t[i].tv_usec;
    return s;
}

static void run(unsigned i) {
    printf("@@BEGIN %s\n", all[i].name), fflush(stdout);
    pid_t p = fork();
    if (p == 0) {
        u64 sum = 0;
        for (int n = 0; n < all[i].times; n++) sum = mix(sum, all[i].run());
        printf("@@END %s %016llx %.0f\n", all[i].name, (unsigned long long)sum, seconds() * 1e6), fflush(stdout);
        _exit(0);
    }
    int status = 0;
    waitpid(p, &status, 0);
    if (status != 0) printf("@@END %s failed 0\n", all[i].name), fflush(stdout);
}

static void run_named(const char *list) {
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        size_t n = strlen(all[i].name);
        for (const char *p = list; p; p = strchr(p, ','), p = p ? p + 1 : NULL)
            if (strncmp(p, all[i].name, n) == 0 && (p[n] == ',' || p[n] == 0 || p[n] == ' ')) run(i);
    }
}

int main(int argc, char **argv) {
    if (getpid() != 1) {
        run_named(argc > 1 ? argv[1] : "");
        return 0;
    }
    mkdir("/dev", 0755);
    mknod("/dev/console", S_IFCHR | 0600, 5 << 8 | 1);
    int fd = open("/dev/console", O_RDWR);
    if (fd >= 0) dup2(fd, 0), dup2(fd, 1), dup2(fd, 2);
    mknod("/dev/zero", S_IFCHR | 0666, 1 << 8 | 5);
    printf("@@INIT\n"), fflush(stdout);
    const char *names = getenv("bench");
    run_named(names ? names : "");
    printf("@@DONE\n"), fflush(stdout);
    reboot(RB_POWER_OFF);
    return 0;
}
