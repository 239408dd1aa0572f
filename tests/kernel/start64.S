// The 64-bit test kernel's entry (PVH: 32-bit, flat, no paging), its tables, and the way into code under test and back.

#define U 0x40000000

    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .ascii "Xen\0"
    .long start

    .section .text
    .code32
    .globl start
start:
    cli
    mov $boot_stack_top, %esp
    // CR4: PAE, PGE, OSFXSR, OSXMMEXCPT.
    mov $0x6a0, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    // EFER: SCE, LME, NXE.
    mov $0xc0000080, %ecx
    mov $0x901, %eax
    xor %edx, %edx
    wrmsr
    lgdt gdt_at
    // PG, WP, NE, ET, MP, PE
    mov $0x80010033, %eax
    mov %eax, %cr0
    ljmp $0x08, $long_start
    .code64
long_start:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov $kernel_stack_top, %esp
    call main
0:  hlt
    jmp 0b

// Switches between 4 and 5 levels: edi = new CR4, esi = new CR3. Paging must be off meanwhile (SDM 3A 4.1.2).
    .globl relevel
relevel:
    push %rbx
    push $0x18
    lea 1f(%rip), %rax
    push %rax
    lretq
    .code32
1:  mov $0x10, %eax
    mov %eax, %ss
    mov %cr0, %eax
    mov %eax, %ebx
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov %edi, %cr4
    mov %esi, %cr3
    mov %ebx, %cr0
    ljmp $0x08, $2f
    .code64
2:  pop %rbx
    ret

// Offsets in struct ctx.
#define IP 128
#define VECTOR 160

    .globl enter
enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    mov %rsp, saved_sp
    mov %rdi, current
    pushq IP+24(%rdi)
    pushq 32(%rdi)
    pushq IP+16(%rdi)
    pushq IP+8(%rdi)
    pushq IP(%rdi)
    mov 192(%rdi), %eax
    mov %eax, %ds
    mov %eax, %es
    mov (%rdi), %rax
    mov 8(%rdi), %rcx
    mov 16(%rdi), %rdx
    mov 24(%rdi), %rbx
    mov 40(%rdi), %rbp
    mov 48(%rdi), %rsi
    mov 64(%rdi), %r8
    mov 72(%rdi), %r9
    mov 80(%rdi), %r10
    mov 88(%rdi), %r11
    mov 96(%rdi), %r12
    mov 104(%rdi), %r13
    mov 112(%rdi), %r14
    mov 120(%rdi), %r15
    mov 56(%rdi), %rdi
    iretq

// Stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
common:
    push %rdi
    mov current, %rdi
    test %rdi, %rdi
    jz unexpected
    mov %rax, (%rdi)
    mov %rcx, 8(%rdi)
    mov %rdx, 16(%rdi)
    mov %rbx, 24(%rdi)
    mov %rbp, 40(%rdi)
    mov %rsi, 48(%rdi)
    mov %r8, 64(%rdi)
    mov %r9, 72(%rdi)
    mov %r10, 80(%rdi)
    mov %r11, 88(%rdi)
    mov %r12, 96(%rdi)
    mov %r13, 104(%rdi)
    mov %r14, 112(%rdi)
    mov %r15, 120(%rdi)
    pop 56(%rdi)
    pop VECTOR(%rdi)
    pop VECTOR+8(%rdi)
    mov %rsp, VECTOR+24(%rdi)
    pop IP(%rdi)
    pop IP+8(%rdi)
    pop IP+16(%rdi)
    pop 32(%rdi)
    pop IP+24(%rdi)
    mov %cr2, %rax
    mov %rax, VECTOR+16(%rdi)
    movw %ds, 192(%rdi)
    movw %es, 200(%rdi)
    movw %fs, 208(%rdi)
    movw %gs, 216(%rdi)
    movq $0, current
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov saved_sp, %rsp
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

unexpected:
    pop %rdi
    mov %rsp, %rdi
    and $~15, %rsp
    call died

    .balign 16
    .globl stubs
stubs:
    .set i, 0
    .rept 256
    .balign 16
    .if (i != 8) && (i < 10 || i > 14) && (i != 17)
    push $0
    .endif
    .byte 0x68
    .long i
    jmp common
    .set i, i+1
    .endr

    .data
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
    .quad 0x00cffb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0x0000fb000000ffff
    .fill 56, 8, 0
gdt_at:
    .word 511
    .quad gdt
    .globl current
current: .quad 0
saved_sp: .quad 0
    .globl done_zero
done_zero: .quad 0

    .balign 4096
    .globl pml4
    .globl pml5
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
pml5:
    .quad pml4 + 0x27
    .fill 511, 8, 0
pdpt:
    .quad pd_low + 0x23
    .quad pd_user + 0x27
    .quad 0
    .quad pd_devices + 0x23
    .fill 508, 8, 0
    .macro directory flags, from
    .set i, 0
    .rept 512
    .quad \from + (i << 21) + \flags
    .set i, i+1
    .endr
    .endm
pd_low: directory 0xe3, 0
pd_user: directory 0xe7, 0
pd_devices: directory 0xe3, 0xc0000000

    .bss
    .balign 4096
    .fill 4096
boot_stack_top:
    .fill 16384
    .globl kernel_stack_top
kernel_stack_top:
    .fill 4096
    .globl trap_stack_top
trap_stack_top:
    .fill 4096
    .globl snippet_stack_top
snippet_stack_top:
    .fill 4096
    .globl user_stack_top
user_stack_top:
    .section .note.GNU-stack, "", @progbits
