// A guest that says that it halts, and does.

#include "flat.h"

start:
    flat
    mov $text, %esi
    call say
2:  hlt
    jmp 2b
text:
    .asciz "halts\n"
