// The 32-bit test kernel's groups.
#include "kernel.h"

void paging(void), faults(void), segments(void), tasks(void), vme(void), real(void);

void main(void) {
    setup();
    paging();
    faults();
    segments();
    tasks();
    vme();
    real();
    leave(finish());
}
