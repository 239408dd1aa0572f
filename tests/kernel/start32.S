// The 32-bit test kernel's entry (Multiboot: flat, no paging), its tables, and the way into code under test and back.

    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 0, -0x1badb002

    .section .text
    .code32
    .globl start
start:
    cli
    mov $boot_stack_top, %esp
    lgdt gdt_at
    ljmp $0x08, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    // CR4: PSE, PGE, OSFXSR, OSXMMEXCPT.
    mov $0x690, %eax
    mov %eax, %cr4
    mov $kernel_stack_top, %esp
    call main
0:  hlt
    jmp 0b

// Paging off, new CR4, CR3 and EFER.NXE, paging on: CR4, CR3.
    .globl repage
repage:
    push %ebx
    mov 8(%esp), %ecx
    mov 12(%esp), %edx
    mov %cr0, %eax
    mov %eax, %ebx
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov %ecx, %cr4
    mov %edx, %cr3
    or $0x80010000, %ebx
    mov %ebx, %cr0
    pop %ebx
    ret

// Offsets in struct ctx: 16 registers first.
#define IP 64
#define CS_ 68
#define FLAGS 72
#define SS_ 76
#define VECTOR 80
#define ERROR 84
#define CR2_ 88
#define FRAME 92
#define DS_ 96
#define ES_ 100
#define FS_ 104
#define GS_ 108

    .globl run
run:
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov %esp, saved_sp
    mov 24(%esp), %edi
    mov %edi, current
    testl $0x20000, FLAGS(%edi)
    jnz 1f
    testl $3, CS_(%edi)
    jnz 2f
    // The same level: its stack is loaded here, IRET does not.
    mov SS_(%edi), %ecx
    mov 16(%edi), %edx
    mov %ecx, %ss
    mov %edx, %esp
    jmp 3f
1:  push GS_(%edi)
    push FS_(%edi)
    push DS_(%edi)
    push ES_(%edi)
    push SS_(%edi)
    push 16(%edi)
    push FLAGS(%edi)
    push CS_(%edi)
    push IP(%edi)
    mov $0x10, %eax
    push %eax
    jmp 4f
2:  push SS_(%edi)
    push 16(%edi)
3:  push FLAGS(%edi)
    push CS_(%edi)
    push IP(%edi)
    mov FS_(%edi), %fs
    mov GS_(%edi), %gs
    mov ES_(%edi), %es
    push DS_(%edi)
4:  mov (%edi), %eax
    mov 4(%edi), %ecx
    mov 8(%edi), %edx
    mov 12(%edi), %ebx
    mov 20(%edi), %ebp
    mov 24(%edi), %esi
    mov 28(%edi), %edi
    pop %ds
    iret

// Stack: vector, error code, EIP, CS, EFLAGS, then ESP, SS from an outer level, then ES, DS, FS, GS from v86 mode.
common:
    push %ds
    push %es
    push %fs
    push %gs
    pusha
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov current, %edi
    test %edi, %edi
    jz unexpected
    pop 28(%edi)
    pop 24(%edi)
    pop 20(%edi)
    pop %eax
    pop 12(%edi)
    pop 8(%edi)
    pop 4(%edi)
    pop (%edi)
    pop GS_(%edi)
    pop FS_(%edi)
    pop ES_(%edi)
    pop DS_(%edi)
    pop VECTOR(%edi)
    pop ERROR(%edi)
    mov %esp, FRAME(%edi)
    pop IP(%edi)
    pop CS_(%edi)
    pop FLAGS(%edi)
    testl $0x20000, FLAGS(%edi)
    jnz 1f
    testl $3, CS_(%edi)
    jnz 1f
    mov %esp, 16(%edi)
    mov %ss, SS_(%edi)
    jmp 2f
1:  pop 16(%edi)
    pop SS_(%edi)
    testl $0x20000, FLAGS(%edi)
    jz 2f
    pop ES_(%edi)
    pop DS_(%edi)
    pop FS_(%edi)
    pop GS_(%edi)
2:  mov %cr2, %eax
    mov %eax, CR2_(%edi)
    .globl back
back:
    movl $0, current
    mov $0x10, %eax
    mov %eax, %ss
    mov saved_sp, %esp
    mov %eax, %fs
    mov %eax, %gs
    cld
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

unexpected:
    lea 48(%esp), %eax
    push %eax
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
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00009b000000ffff
    .quad 0x00cffb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x0000fb000000ffff
    .fill 57, 8, 0
gdt_at:
    .word 511
    .long gdt
    .globl current
current: .long 0
saved_sp: .long 0

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
