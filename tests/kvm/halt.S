// A guest that says that it halts, and does.

    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .ascii "Xen\0"
    .long start

    .text
    .code32
    .globl start
start:
    cli
    mov $text, %esi
    mov $0x3f8, %edx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  hlt
    jmp 2b
text:
    .asciz "halts\n"
