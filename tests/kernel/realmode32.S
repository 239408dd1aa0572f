// The way into real mode and back: code and handlers that are copied to 10000h, registers at its end.

#define PAGE 0x10000
// Registers there: EAX ECX EDX EBX ESP EBP ESI EDI, IP, CS, flags, SS, vector, DS, ES.
#define REGS 0xf00
#define IP REGS+32
#define CS_ REGS+36
#define FLAGS REGS+40
#define SS_ REGS+44
#define VECTOR REGS+48
#define DS_ REGS+52
#define ES_ REGS+56

    .section .text
    .code32
// Runs what is at the registers in that page, until the first interrupt or exception.
    .globl run_real
run_real:
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov %esp, real_sp
    sidt real_idt
    mov %cr0, %eax
    mov %eax, real_cr0
    and $0x7fffffff, %eax
    mov %eax, %cr0
    lidt vectors
    // Segments with real mode's limit and width.
    mov $0x58, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    ljmp $0x50, $0
real_back:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov real_sp, %esp
    mov real_cr0, %eax
    mov %eax, %cr0
    lidt real_idt
    cld
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

    .code16
    .globl real_begin
    .globl real_end
    .globl real_stubs
real_begin:
    mov %cr0, %eax
    and $~1, %eax
    mov %eax, %cr0
    ljmp $0x1000, $(1f - real_begin)
1:  mov $0x1000, %ax
    mov %ax, %ds
    mov SS_, %ss
    mov REGS+16, %esp
    pushw FLAGS
    pushw CS_
    pushw IP
    mov ES_, %es
    mov REGS+4, %ecx
    mov REGS+8, %edx
    mov REGS+12, %ebx
    mov REGS+20, %ebp
    mov REGS+24, %esi
    mov REGS+28, %edi
    pushw DS_
    mov REGS, %eax
    pop %ds
    iretw
// Stack: vector, IP, CS, flags.
real_common:
    push %ds
    push %eax
    mov $0x1000, %ax
    mov %ax, %ds
    popl REGS
    popw DS_
    popw VECTOR
    popw IP
    popw CS_
    popw FLAGS
    mov %es, ES_
    mov %ss, SS_
    mov %ecx, REGS+4
    mov %edx, REGS+8
    mov %ebx, REGS+12
    mov %esp, REGS+16
    mov %ebp, REGS+20
    mov %esi, REGS+24
    mov %edi, REGS+28
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x08, $real_back
    .balign 8
real_stubs:
    .set i, 0
    .rept 256
    .balign 8
    .byte 0x68
    .word i
    jmp real_common
    .set i, i+1
    .endr
real_end:
    .code32

    .data
    .globl vectors
vectors:
    .word 0x3ff
    .long 0
real_idt: .space 6
real_sp: .long 0
real_cr0: .long 0
    .section .note.GNU-stack, "", @progbits
