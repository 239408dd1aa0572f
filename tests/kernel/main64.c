// The 64-bit test kernel's groups.
#include "kernel.h"

void paging(void), faults(void), apic(void), memory(void), remap(void), debug(void), timers(void), coprocessor(void), features(void), smm(void);

void main(void) {
    setup();
    paging();
    faults();
    memory();
    remap();
    apic();
    debug();
    timers();
    coprocessor();
    features();
    smm();
    leave(finish());
}
