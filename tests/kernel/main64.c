// The 64-bit test kernel's groups.
#include "kernel.h"

void paging(void), faults(void);

void main(void) {
    setup();
    paging();
    faults();
    leave(finish());
}
