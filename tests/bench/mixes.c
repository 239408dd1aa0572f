// Mixes of reads and writes on a disk, past the page cache: mixes DEVICE SECONDS [NAME]. Each prints "mix NAME operations/s MiB/s".
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct mix {
    const char *name;
    unsigned bytes, processes, reads; // reads: of a hundred
    int sequential, sync;
};

static const struct mix mixes[] = {
    {"read-128k", 128 << 10, 1, 100, 1, 0},  {"write-128k", 128 << 10, 1, 0, 1, 0},  {"read-4k", 4096, 1, 100, 0, 0},
    {"write-4k", 4096, 1, 0, 0, 0},          {"read-4k-x4", 4096, 4, 100, 0, 0},     {"write-4k-x4", 4096, 4, 0, 0, 0},
    {"mixed-4k-x4", 4096, 4, 70, 0, 0},      {"mixed-16k-x4", 16384, 4, 70, 0, 0},   {"sync-4k", 4096, 1, 0, 0, 1},
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

// Operations until `end`; -1 on an error.
static long work(const struct mix *m, const char *path, uint64_t seed, double end) {
    int fd = open(path, O_RDWR | O_DIRECT);
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    uint64_t places = size / m->bytes, at = seed * places / 4, done = 0;
    void *buf;
    if (!places || posix_memalign(&buf, 4096, m->bytes)) return -1;
    memset(buf, (int)seed + 1, m->bytes);
    while (now() < end) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        at = m->sequential ? at + 1 : seed >> 20;
        off_t offset = (off_t)(at % places * m->bytes);
        int reads = (seed >> 33) % 100 < m->reads;
        ssize_t n = reads ? pread(fd, buf, m->bytes, offset) : pwrite(fd, buf, m->bytes, offset);
        if (n != (ssize_t)m->bytes || (m->sync && fdatasync(fd))) return -1;
        done++;
    }
    close(fd);
    return (long)done;
}

static void run(const struct mix *m, const char *path, double seconds) {
    long *done = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double start = now(), end = start + seconds;
    for (unsigned p = 0; p < m->processes; p++)
        if (!fork()) {
            done[p] = work(m, path, p, end);
            _exit(0);
        }
    while (wait(0) > 0) {}
    double took = now() - start, all = 0;
    for (unsigned p = 0; p < m->processes; p++) {
        if (done[p] < 0) {
            printf("mix %s failed\n", m->name);
            return;
        }
        all += (double)done[p];
    }
    printf("mix %s %.0f %.1f\n", m->name, all / took, all / took * m->bytes / (1 << 20));
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 3) return 1;
    for (unsigned i = 0; i < sizeof mixes / sizeof *mixes; i++)
        if (argc < 4 || !strcmp(argv[3], mixes[i].name)) run(&mixes[i], argv[1], atof(argv[2]));
    puts("mixes done");
}
