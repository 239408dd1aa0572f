// The 64-bit test kernel's groups.
#include "kernel.h"

void paging(void), faults(void), apic(void), memory(void), remap(void), debug(void), timers(void), coprocessor(void), features(void), smm(void);

static void part(void (*f)(void), const char *name) {
    if (!left_out("part", name)) f();
}
#define PART(f) part(f, #f)

void main(void) {
    setup();
    PART(paging);
    PART(faults);
    PART(memory);
    PART(remap);
    PART(apic);
    PART(debug);
    PART(timers);
    PART(coprocessor);
    PART(features);
    PART(smm);
    leave(finish());
}
