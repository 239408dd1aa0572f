// What these guests have in common: the entry by PVH at `start`, flat segments and a stack, a text to COM1, the end by isa-debug-exit.

    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .ascii "Xen\0"
    .long start

    // Interrupts off, segments of our own, a stack.
    .macro flat
    cli
    cld
    mov $stack_top, %esp
    lgdt gdt_at
    ljmp $8, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    .endm

    // A gate of `idt`.
    .macro gate vector, handler
    mov $\handler, %eax
    mov %ax, idt + 8 * \vector
    movw $8, idt + 8 * \vector + 2
    movw $0x8e00, idt + 8 * \vector + 4
    shr $16, %eax
    mov %ax, idt + 8 * \vector + 6
    .endm

    // Ends with a number.
    .macro fail code
    mov $\code, %al
    jmp end
    .endm

    // To where the interrupt came, past a word on the stack, which becomes EAX: KVM's emulator has no IRET in protected mode.
    .macro return
    pop %eax
    pushl 8(%esp)
    popf
    lret $4
    .endm

    .text
    .code32
    .globl start

    // The text at ESI, up to its zero. EAX, EDX and ESI are lost.
say:
    lodsb
    test %al, %al
    jz 1f
    mov $0x3f8, %edx
    out %al, %dx
    jmp say
1:  ret

    // The right end, with the text at ESI; and the one with the number in AL.
well:
    call say
    mov $16, %al
end:
    out %al, $0xf4
1:  hlt
    jmp 1b

    .data
    .balign 8
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_at:
    .word 23
    .long gdt

    .bss
    .balign 16
    .skip 4096
stack_top:

    .text
