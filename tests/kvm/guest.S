// A guest in 32-bit protected mode for all engines: computes while a timer ticks, halts for some ticks more, checks what it
// computed another way, and ends by isa-debug-exit (16: right, 17: wrong). With SSE it also executes an instruction that KVM's
// emulator lacks, which runs privileged code where the host's processor cannot virtualise. With SMP a second CPU counts along, with LOCK.

#define SEED 12345
#define MULTIPLIER 1664525
#define INCREMENT 1013904223
#ifndef TICKS
#define TICKS 100
#endif

// Of both CPUs, with SMP.
#define COUNT 0x9000
#define COUNTED 0x9004
#define END 0x9008
#define MORE 0x900c

#include "flat.h"

    .globl compute
start:
    flat
    gate 0x20, timer
    lidt idt_at
    mov $begins, %esi
    call say
    // 8259: vectors from 20h, the timer alone. 8254: 1000 Hz.
    mov $0x11, %al
    out %al, $0x20
    mov $0x20, %al
    out %al, $0x21
    mov $4, %al
    out %al, $0x21
    mov $1, %al
    out %al, $0x21
    mov $0xfe, %al
    out %al, $0x21
    mov $0x34, %al
    out %al, $0x43
    mov $(1193 & 0xff), %al
    out %al, $0x40
    mov $(1193 >> 8), %al
    out %al, $0x40
    sti
#ifdef SMP
    // The other CPU (APIC ID 1) starts at page 8: INIT, start-up IPI (SDM 3A "Issuing Interrupt Commands").
    mov $other, %esi
    mov $0x8000, %edi
    mov $(other_end - other), %ecx
    rep movsb
    movl $0x1ff, 0xfee000f0
    movl $0x01000000, 0xfee00310
    movl $0x00004500, 0xfee00300
    mov ticks, %eax
    add $20, %eax
1:  cmp %eax, ticks
    jb 1b
    movl $0x01000000, 0xfee00310
    movl $0x00004608, 0xfee00300
    mov $20000, %ecx
1:  lock incl COUNT
    loop 1b
1:  cmpl $1, COUNTED
    jne 1b
#endif
    mov $SEED, %ebx
    xor %ebp, %ebp
compute:
    imul $MULTIPLIER, %ebx, %ebx
    add $INCREMENT, %ebx
    inc %ebp
    cmpl $TICKS, ticks
    jb compute
#ifdef SSE
    mov %cr4, %eax
    or $0x600, %eax
    mov %eax, %cr4
    .globl sse_here
sse_here:
    movd %ebx, %xmm0
    paddd %xmm0, %xmm0
    movd %xmm0, %eax
    lea (%ebx, %ebx), %ecx
    cmp %ecx, %eax
    jne wrong
#endif
#ifdef SMP
    // It has gone on counting; now it ends.
    movl $1, END
1:  cmpl $2, COUNTED
    jne 1b
    mov COUNT, %eax
    sub MORE, %eax
    cmp $40000, %eax
    jne wrong
#endif
halts:
    cli
    cmpl $TICKS + 20, ticks
    jae check
    sti
    hlt
    jmp halts
    // The step is x -> a x + c: EBP steps at once by squaring (EAX, ECX: a and c of 2^i steps; ESI, EDI: of those so far).
check:
    mov $MULTIPLIER, %eax
    mov $INCREMENT, %ecx
    mov $1, %esi
    xor %edi, %edi
2:  test %ebp, %ebp
    jz 4f
    test $1, %ebp
    jz 3f
    imul %eax, %esi
    imul %eax, %edi
    add %ecx, %edi
3:  lea 1(%eax), %edx
    imul %edx, %ecx
    imul %eax, %eax
    shr $1, %ebp
    jmp 2b
4:  imul $SEED, %esi, %esi
    add %edi, %esi
    cmp %esi, %ebx
    jne wrong
    mov $right, %esi
    jmp well
wrong:
    mov $17, %al
    jmp end

timer:
    push %eax
    incl ticks
    mov $0x20, %al
    out %al, $0x20
    return

#ifdef SMP
    // Real mode at 8000h.
    .code16
other:
    xor %ax, %ax
    mov %ax, %ds
    mov $20000, %cx
1:  lock incl COUNT
    loop 1b
    movl $1, COUNTED
2:  lock incl COUNT
    incl MORE
    cmpl $1, END
    jne 2b
    movl $2, COUNTED
    cli
3:  hlt
    jmp 3b
other_end:
    .code32
#endif

    .data
begins:
    .asciz "begins\n"
right:
    .asciz "right\n"
    .balign 8
idt_at:
    .word 0x1ff
    .long idt
ticks:
    .long 0

    .bss
    .balign 16
idt:
    .skip 0x200
