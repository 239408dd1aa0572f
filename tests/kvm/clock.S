// A guest that reads KVM's clock (Linux, Documentation/virt/kvm/x86/msr.rst) in 32-bit protected mode, while it is moved between engines:
// it must never run backwards. Ends by isa-debug-exit after SECONDS of it (16: right, 17: there is no KVM's clock, 18: backwards, 19: the
// page is not written, 20: the wall clock is not).

#ifndef SECONDS
#define SECONDS 2
#endif
#define SYSTEM_TIME 0x4b564d01
#define WALL_CLOCK 0x4b564d00
#define PAGE 0x200000
#define WALL 0x200100

#include "flat.h"

start:
    flat
    mov $0x40000000, %eax
    cpuid
    cmp $0x4b4d564b, %ebx
    jne 1f
    mov $0x40000001, %eax
    cpuid
    test $8, %eax
    jnz 2f
1:  mov $17, %al
    jmp end
2:  mov $WALL_CLOCK, %ecx
    mov $WALL, %eax
    xor %edx, %edx
    wrmsr
    mov $20, %al
    cmpl $1600000000, WALL + 4
    jb end
    mov $SYSTEM_TIME, %ecx
    mov $(PAGE | 1), %eax
    wrmsr
    mov $begins, %esi
    call say
    // The end of it.
    call clock
    mov $19, %cl
    mov %eax, %ebx
    or %edx, %ebx
    jz failed
    add $(SECONDS * 1000000000 & 0xffffffff), %eax
    adc $(SECONDS * 1000000000 >> 32), %edx
    mov %eax, until
    mov %edx, until + 4
again:
    call clock
    mov $18, %cl
    cmp last + 4, %edx
    jb failed
    ja 1f
    cmp last, %eax
    jb failed
1:  mov %eax, last
    mov %edx, last + 4
    incl reads
    cmp until + 4, %edx
    jb again
    ja 1f
    cmp until, %eax
    jb again
1:  mov $right, %esi
    jmp well
    // By how much: EAX and what it was, to a debug console.
failed:
    mov %cl, %bl
    mov $0xe9, %edx
    out %eax, %dx
    mov last, %eax
    out %eax, %dx
    mov %bl, %al
    jmp end

    // EDX:EAX: its time. The version is even, and the same before and after.
clock:
    mov PAGE, %ebp
    test $1, %ebp
    jnz clock
    rdtsc
    sub PAGE + 8, %eax
    sbb PAGE + 12, %edx
    movsbl PAGE + 28, %ecx
    test %ecx, %ecx
    js 1f
    shld %cl, %eax, %edx
    shl %cl, %eax
    jmp 2f
1:  neg %ecx
    shrd %cl, %edx, %eax
    shr %cl, %edx
    // (EDX:EAX * multiplier) >> 32.
2:  mov %edx, %esi
    mull PAGE + 24
    mov %edx, %edi
    mov %esi, %eax
    mull PAGE + 24
    add %edi, %eax
    adc $0, %edx
    add PAGE + 16, %eax
    adc PAGE + 20, %edx
    cmp %ebp, PAGE
    jne clock
    ret

    .data
begins:
    .asciz "begins\n"
right:
    .asciz "right\n"
    .balign 8
until:
    .quad 0
last:
    .quad 0
reads:
    .long 0
