// The debugger's guest: enters 32-bit code (PVH), goes to real mode with CS = 1000h, from there to protected and to long mode.

    .section .note.pvh, "a", @note
    .long 4, 4, 18
    .ascii "Xen\0"
    .long start

    .section .text
    .code32
    .globl start
start:
    cli
    cld
    lgdt gdt_at
    // The real-mode code to where it is linked for.
    mov $0x300000, %esi
    mov $0x10000, %edi
    mov $0x1000, %ecx
copy_real:
    rep movsb
    // 16-bit segments with a limit of 64 KiB first (SDM 3A "Switching Back to Real-Address Mode").
    mov $0x20, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    ljmp $0x18, $to_real - 0x10000

    .section .real, "awx"
    .code16
    .globl real_entry, real_loop, real_call, real_func, real_rep, real_int, real_handler, real_end
real_entry:
    mov $0x2000, %ax
    mov %ax, %ds
    mov %ax, %es
    mov $0x3000, %ax
    mov %ax, %ss
    mov $0xff00, %sp
    lidt %cs:real_idt - 0x10000
    xor %ax, %ax
    mov $5, %cx
real_loop:
    add %cx, %ax
    loop real_loop
    mov %ax, 0x10
real_call:
    mov $0x1234, %bx
    call real_func
    mov %bx, 0x12
real_rep:
    mov $0x20, %si
    mov $0x40, %di
    mov $4, %cx
    rep movsb
    // A vector of its own.
    xor %ax, %ax
    mov %ax, %fs
    movw $real_handler - 0x10000, %fs:4 * 0x40
    movw $0x1000, %fs:4 * 0x40 + 2
real_int:
    int $0x40
real_end:
    cli
    lgdtl %cs:gdt_at_copy - 0x10000
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x08, $prot_entry
to_real:
    mov %cr0, %eax
    and $0xfe, %al
    mov %eax, %cr0
    ljmp $0x1000, $real_entry - 0x10000
real_func:
    inc %bx
    ret
real_handler:
    incw 0x14
    iret
real_idt:
    .word 0x3ff
    .long 0
gdt_at_copy:
    .word gdt_end - gdt - 1
    .long gdt

    .section .text
    .code32
    .globl prot_entry, prot_func, prot_call, long_entry, main_loop
prot_entry:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov $stack_top, %esp
    mov $0x11223344, %ebx
prot_call:
    call prot_func
    push $7
    call prot_outer
    pop %ecx
    mov $3, %ecx
prot_loop:
    dec %ecx
    jnz prot_loop
    // Two tasks: bases of their descriptors first.
    .globl task_jump, task_back, other_task, other_return
    mov $tss_first, %eax
    mov %ax, gdt + 0x32
    shr $16, %eax
    mov %al, gdt + 0x34
    mov $tss_other, %eax
    mov %ax, gdt + 0x3a
    shr $16, %eax
    mov %al, gdt + 0x3c
    mov $0x30, %eax
    ltr %ax
task_jump:
    ljmp $0x38, $0
task_back:
    lcall $0x38, $0
    // Identity page tables for 1 GiB in 2 MiB pages: PML4, PDPT, PD.
    mov $pml4, %edi
    lea 0x1003(%edi), %eax
    mov %eax, (%edi)
    add $0x1000, %eax
    mov %eax, 0x1000(%edi)
    // The same GiB once more, from 3 GiB on.
    mov %eax, 0x1018(%edi)
    lea 0x2000(%edi), %edi
    mov $0x83, %eax
    mov $512, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE.
    mov $0x40620, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    mov $0x901, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80010033, %eax
    .globl paging_on
paging_on:
    mov %eax, %cr0
    .globl to_long
to_long:
    ljmp $0x28, $long_entry
prot_func:
    inc %ebx
    ret
other_task:
    nop
    ljmp $0x30, $0
other_return:
    iret
    .globl prot_outer, prot_inner
prot_outer:
    push %ebp
    mov %esp, %ebp
    sub $8, %esp
    call prot_inner
    leave
    ret
prot_inner:
    push %ebp
    mov %esp, %ebp
    push %ebx
    call prot_func
    pop %ebx
    leave
    ret

    .code64
long_entry:
    xor %ecx, %ecx
    xor %edx, %edx
    mov $7, %eax
    xsetbv
    mov $stack_top, %esp
    clts
    xor %ebp, %ebp
    call setup
main_loop:
    call round
    jmp main_loop

// Of guest.c's rounds: what C has no words for.
    .globl reps, hold, steps, vectors, own_trap, own_break, own_trap_here, after_own_trap, sti_here, movss_here, locked_here
    .globl crossing_here, hlt_here, hlt_next, pf_here, pf_after, rep_here, rep_after, vec_here, iret_here, iret_to, patched
    .globl push_here
reps:
    lea source(%rip), %rsi
    lea target(%rip), %rdi
    mov $8, %ecx
rep_here:
    rep movsb
rep_after:
    ret

steps:
    cli
    mov %ss, %eax
sti_here:
    sti
    nop
    cli
movss_here:
    mov %eax, %ss
    nop
    nop
locked_here:
    lock incl locked(%rip)
    lea crossing + 4094(%rip), %rcx
crossing_here:
    movl $0x55667788, (%rcx)
push_here:
    push %rcx
    pop %rcx
pf_here:
    mov 0x80000000, %al
pf_after:
    mov %ss, %eax
    push %rax
    lea 8(%rsp), %rcx
    push %rcx
    pushfq
    mov %cs, %eax
    push %rax
    lea iret_to(%rip), %rcx
    push %rcx
iret_here:
    iretq
iret_to:
patched:
    mov $1, %eax
    mov %eax, patched_value(%rip)
    ret

// Waits for a timer interrupt.
hold:
    sti
hlt_here:
    hlt
hlt_next:
    cli
    ret

vectors:
    finit
    fld1
    fldpi
    movabs $0x1122334455667788, %rax
    movq %rax, %xmm1
    vbroadcastss vec_one(%rip), %ymm2
vec_here:
    nop
    finit
    movq %rax, %mm3
    .globl mmx_here
mmx_here:
    emms
    ret

// Accesses of all sizes and kinds, each followed by a label.
    .globl wide, sse_at, sse_done, avx_done, avx_read, avx_read_done, x87_done, cx16_done, fxsave_done, xsave_done, far_call
    .globl maskdqu_done, maskq_done, vmask_done, vmaskload_done, gather_done, ins_done, outs_done
    .globl far_done, enter_done, stos_done, cmps_done, unaligned_done, alias_done, xchg_done, lods_done, wide_buf, wide_area, wide_slot
wide:
    lea wide_buf(%rip), %rcx
sse_at:
    movaps %xmm1, 16(%rcx)
sse_done:
    vmovups %ymm2, 4080(%rcx)
avx_done:
    nop
avx_read:
    vmovups 4080(%rcx), %ymm3
avx_read_done:
    fldpi
    fstpt 64(%rcx)
x87_done:
    xor %eax, %eax
    xor %edx, %edx
    push %rbx
    xor %ebx, %ebx
    lea wide_buf(%rip), %rsi
    push %rcx
    xor %ecx, %ecx
    lock cmpxchg16b 80(%rsi)
cx16_done:
    pop %rcx
    pop %rbx
    lea wide_area(%rip), %rdi
    fxsave (%rdi)
fxsave_done:
    mov $7, %eax
    xor %edx, %edx
    xsave 1024(%rdi)
xsave_done:
    lea -16(%rsp), %rax
    mov %rax, wide_slot(%rip)
far_call:
    lcall *far_at(%rip)
far_done:
    enter $32, $0
enter_done:
    leave
    lea wide_area(%rip), %rdi
    mov $0x5a, %eax
    mov $64, %ecx
    rep stosl
stos_done:
    lea wide_area(%rip), %rsi
    lea 64(%rsi), %rdi
    mov $8, %ecx
    repe cmpsb
cmps_done:
    lea wide_buf(%rip), %rcx
    lock incl 4094(%rcx)
unaligned_done:
    mov $0xc0000000, %eax
    movb $1, 200(%rcx, %rax)
alias_done:
    xchg %eax, 204(%rcx)
xchg_done:
    lea 208(%rcx), %rsi
    lodsq
lods_done:
    // Of masks: all elements.
    lea 300(%rcx), %rdi
    pcmpeqd %xmm4, %xmm4
    maskmovdqu %xmm4, %xmm1
maskdqu_done:
    pcmpeqd %mm4, %mm4
    maskmovq %mm4, %mm4
maskq_done:
    emms
    vpcmpeqd %ymm5, %ymm5, %ymm5
    vmaskmovps %ymm2, %ymm5, 320(%rcx)
vmask_done:
    vpmaskmovq 320(%rcx), %ymm5, %ymm6
vmaskload_done:
    vpxor %ymm7, %ymm7, %ymm7
    vgatherdps %ymm5, 352(%rcx, %ymm7, 4), %ymm6
gather_done:
    vzeroupper
    lea 360(%rcx), %rdi
    mov %rdi, %rsi
    mov $4, %ecx
    mov $0x61, %edx
    rep insb
ins_done:
    mov $4, %ecx
    mov $0x80, %edx
    rep outsb
outs_done:
    ret
far_back:
    lretl

// The guest debugs itself: TF and DR0, which a debugger must not disturb. Handler 1 counts.
own_trap:
    pushfq
    orq $0x100, (%rsp)
    popfq
own_trap_here:
    nop
after_own_trap:
    pushfq
    andq $~0x100, (%rsp)
    popfq
    ret
own_break:
    lea own_break_at(%rip), %rax
    mov %rax, %dr0
    mov $0x402, %eax
    mov %rax, %dr7
    nop
    .globl own_break_at
own_break_at:
    nop
    mov $0x400, %eax
    mov %rax, %dr7
    ret

// Handlers: #DB counts and sets RF; #PF skips the load's seven bytes; the timer counts and ends its interrupt.
    .globl db_handler, pf_handler, timer_handler
db_handler:
    incl db_count(%rip)
    push %rax
    mov %dr6, %rax
    mov %rax, db_dr6(%rip)
    mov $0xffff0ff0, %eax
    mov %rax, %dr6
    orl $0x10000, 24(%rsp)
    pop %rax
    iretq
pf_handler:
    incl pf_count(%rip)
    add $8, %rsp
    addq $pf_after - pf_here, (%rsp)
    iretq
timer_handler:
    incl ticks(%rip)
    push %rax
    mov $0x20, %al
    out %al, $0x20
    pop %rax
    iretq

    .section .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    // 08: 32-bit code
    .quad 0x00cf93000000ffff    // 10: data
    .quad 0x00009b010000ffff    // 18: 16-bit code at 10000
    .quad 0x000093000000ffff    // 20: 16-bit data
    .quad 0x00af9b000000ffff    // 28: 64-bit code
    .quad 0x0000890000000067    // 30, 38: tasks
    .quad 0x0000890000000067
    .quad 0x00cf93000000ffff    // 40: data of the other task
gdt_end:
gdt_at:
    .word gdt_end - gdt - 1
    .long gdt
vec_one:
    .float 1.5
    .balign 128
    .globl tss_first, tss_other
tss_first:
    .skip 0x80
// SDM 3A "32-Bit Task-State Segment": EIP, EFLAGS, EAX to EDI; ES, CS, SS, DS, FS, GS; LDT; no I/O map.
tss_other:
    .skip 0x20
    .long other_task, 2, 0, 0, 0, 0, stack_top - 0x800, 0, 0, 0
    .long 0x40, 8, 0x10, 0x10, 0x10, 0x10, 0, 0x680000
    .balign 128
far_at:
    .long far_back
    .word 0x28
    .balign 8
wide_slot:
    .quad 0

    .section .bss
    .balign 4096
pml4:
    .skip 3 * 4096
    .globl crossing
crossing:
    .skip 2 * 4096
wide_buf:
    .skip 2 * 4096
wide_area:
    .skip 4096
    .skip 16384
    .globl stack_top
stack_top:
