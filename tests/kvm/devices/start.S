// The entry of the guest that drives devices, and its interrupt handlers.

#include "../flat.h"

#define FIRST 0x20
#define VECTORS 0x60

start:
    flat
    push %ebx
    call main

    .balign 16
    .globl stubs
stubs:
    .set i, FIRST
    .rept VECTORS
    .balign 16
    .byte 0x68
    .long i
    jmp 1f
    .set i, i + 1
    .endr
    // Stack: vector, EIP, CS, EFLAGS.
1:  pusha
    push 32(%esp)
    call interrupt
    add $4, %esp
    popa
    // In the vector's place, from where `return` takes it.
    mov %eax, (%esp)
    return
