// A guest for -machine microvm on all engines, in 32-bit protected mode: waits for ticks of the local APIC's timer, then reads a block of
// a virtio disk in memory-mapped registers, by interrupt, compares it, writes it changed to the next block, and ends by
// isa-debug-exit (16: right, 17 and up: what went wrong).

#define DISK 0xfeb00000
#define DESC 0x200000
#define AVAIL 0x200400
#define USED 0x201000
#define HEADER 0x202000
#define DATA 0x203000
#define STATUS 0x204000
#define TICKS 20
#ifndef GSI
#define GSI 16
#endif

#include "flat.h"

start:
    flat
    gate 0x40, timer
    gate 0x41, disk
    lidt idt_at
    mov $begins, %esi
    call say
    // The 8259s, if there are any, are silent.
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1
    // Local APIC: on, its timer by vector 40h each millisecond (SDM 3A "APIC Timer").
    movl $0x1ff, 0xfee000f0
    movl $0x20040, 0xfee00320
    movl $0xb, 0xfee003e0
    movl $1000000, 0xfee00380
    sti
1:  cmpl $TICKS, ticks
    jae 2f
    hlt
    jmp 1b
2:  movl $0x10000, 0xfee00320
    // I/O APIC: the disk's input by vector 41h, by level.
    movl $0x10 + 2 * GSI, 0xfec00000
    movl $0x8041, 0xfec00010
    movl $0x11 + 2 * GSI, 0xfec00000
    movl $0, 0xfec00010
    // The disk (virtio 1.2 §3.1.1, §4.2.2).
    mov $DISK, %ebx
    cmpl $0x74726976, (%ebx)
    je 1f
    fail 18
1:  cmpl $2, 8(%ebx)
    je 1f
    fail 19
1:  movl $0, 0x70(%ebx)
    movl $3, 0x70(%ebx)
    movl $1, 0x24(%ebx)
    movl $1, 0x20(%ebx)
    movl $11, 0x70(%ebx)
    testl $8, 0x70(%ebx)
    jnz 1f
    fail 20
1:  movl $0, 0x30(%ebx)
    movl $8, 0x38(%ebx)
    movl $DESC, 0x80(%ebx)
    movl $AVAIL, 0x90(%ebx)
    movl $USED, 0xa0(%ebx)
    movl $1, 0x44(%ebx)
    movl $15, 0x70(%ebx)
    // Block 0 (VIRTIO_BLK_T_IN), and what should be in it.
    xor %eax, %eax
    mov $2, %edx
    call request
    xor %ecx, %ecx
1:  imul $7, %ecx, %eax
    add $3, %eax
    cmp %al, DATA(%ecx)
    jne 2f
    notb DATA(%ecx)
    inc %ecx
    cmp $512, %ecx
    jb 1b
    jmp 3f
2:  fail 21
    // Changed to block 1 (VIRTIO_BLK_T_OUT).
3:  mov $1, %eax
    xor %edx, %edx
    call request
    // Both by an interrupt each.
    cmpl $2, interrupts
    je 1f
    fail 22
1:  mov $right, %esi
    jmp well

// EAX: type and block. EDX: flags of the data's descriptor. Waits for its end.
request:
    mov %eax, HEADER
    mov %eax, HEADER + 8
    movb $0xff, STATUS
    movl $HEADER, DESC
    movl $16, DESC + 8
    movl $0x10001, DESC + 12
    movl $DATA, DESC + 16
    movl $512, DESC + 24
    or $0x20001, %edx
    mov %edx, DESC + 28
    movl $STATUS, DESC + 32
    movl $1, DESC + 40
    movl $2, DESC + 44
    mov interrupts, %ecx
    movzwl AVAIL + 2, %eax
    and $7, %eax
    movw $0, AVAIL + 4(, %eax, 2)
    incw AVAIL + 2
    movl $0, 0x50(%ebx)
1:  cli
    cmp %ecx, interrupts
    jne 2f
    sti
    hlt
    jmp 1b
2:  sti
    mov AVAIL + 2, %ax
    cmp %ax, USED + 2
    jne 3f
    cmpb $0, STATUS
    jne 3f
    ret
3:  fail 23

timer:
    push %eax
    incl ticks
    movl $0, 0xfee000b0
    return

disk:
    push %eax
    mov DISK + 0x60, %eax
    mov %eax, DISK + 0x64
    // A KVM that ends interrupts as it delivers them comes once more, for nothing.
    and $1, %eax
    add %eax, interrupts
    movl $0, 0xfee000b0
    return

    .data
begins:
    .asciz "begins\n"
right:
    .asciz "right\n"
    .balign 8
idt_at:
    .word 0x3ff
    .long idt
ticks:
    .long 0
interrupts:
    .long 0

    .bss
    .balign 16
idt:
    .skip 0x400
