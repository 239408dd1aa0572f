// A guest for -machine microvm on all engines, in 32-bit protected mode: uses a console, a balloon and a shared folder, in this order in
// memory-mapped registers, and ends by isa-debug-exit (16: right, 17 and up: what went wrong). What comes from the console goes back
// to it; a page is given to the balloon; the file `hello` of the folder is shown on the serial port.

#define CONSOLE 0xfeb00000
#define BALLOON 0xfeb00200
#define FOLDER 0xfeb00400
// Descriptors of a queue; what the driver and what the device writes follow at these distances.
#define AVAIL 0x400
#define USED 0x800
#define RECEIVE 0x200000
#define TRANSMIT 0x201000
#define INFLATE 0x202000
#define REQUESTS 0x203000
#define INPUT 0x210000
#define PAGES 0x211000
#define REPLY 0x212000
#define LENT 0x300000

#include "flat.h"

    .macro reg offset, value
    movl $\value, \offset(%ebx)
    .endm
    // A device (virtio 1.2 §3.1.1, §4.2.2) that takes VIRTIO_F_VERSION_1 and nothing else.
    .macro begin base, id
    mov $\base, %ebx
    cmpl $0x74726976, (%ebx)
    jne 1f
    cmpl $\id, 8(%ebx)
    je 2f
1:  fail 17
2:  reg 0x70, 0
    reg 0x70, 3
    reg 0x24, 1
    reg 0x20, 1
    reg 0x70, 11
    testl $8, 0x70(%ebx)
    jnz 1f
    fail 18
1:
    .endm
    // A queue with eight places.
    .macro queue number, at
    reg 0x30, \number
    reg 0x38, 8
    reg 0x80, \at
    reg 0x90, \at + AVAIL
    reg 0xa0, \at + USED
    reg 0x44, 1
    .endm
    // Offers the chain at descriptor 0 of a queue.
    .macro offer number, at
    movzwl \at + AVAIL + 2, %eax
    and $7, %eax
    movw $0, \at + AVAIL + 4(, %eax, 2)
    incw \at + AVAIL + 2
    reg 0x50, \number
    .endm
    // Waits until all that was offered to a queue is used, and takes the interrupt's bit back.
    .macro await at
1:  pause
    mov \at + AVAIL + 2, %ax
    cmp %ax, \at + USED + 2
    jne 1b
1:  pause
    testl $1, 0x60(%ebx)
    jz 1b
    reg 0x64, 1
    testl $1, 0x60(%ebx)
    jz 1f
    fail 19
1:
    .endm
    // Descriptor: its number, address, length, flags and next one.
    .macro descriptor at, n, data, len, flags
    movl $\data, \at + 16 * \n
    movl $\len, \at + 16 * \n + 8
    movl $\flags, \at + 16 * \n + 12
    .endm

start:
    flat
    // The console (§5.3): what it says, and what it hears, to it again.
    begin CONSOLE, 3
    queue 0, RECEIVE
    queue 1, TRANSMIT
    reg 0x70, 15
    descriptor TRANSMIT, 0, hello, 15, 0
    offer 1, TRANSMIT
    await TRANSMIT
    descriptor RECEIVE, 0, INPUT, 64, 2
    offer 0, RECEIVE
    await RECEIVE
    descriptor TRANSMIT, 0, INPUT, 0, 0
    mov RECEIVE + USED + 8, %eax
    mov %eax, TRANSMIT + 8
    offer 1, TRANSMIT
    await TRANSMIT

    // The balloon (§5.5): a page that is lent is empty when it comes back.
    begin BALLOON, 5
    queue 0, INFLATE
    reg 0x70, 15
    movl $0x5a5a5a5a, LENT
    movl $LENT >> 12, PAGES
    descriptor INFLATE, 0, PAGES, 4, 0
    offer 0, INFLATE
    await INFLATE
    cmpl $0, LENT
    je 1f
    fail 20
1:  movl $1, 0x104(%ebx)
    cmpl $1, 0x104(%ebx)
    je 1f
    fail 21
1:
    // The folder: 9P2000.L, message by message, each with its answer.
    begin FOLDER, 9
    queue 0, REQUESTS
    reg 0x70, 15
    descriptor REQUESTS, 1, REPLY, 512, 2
    mov $messages, %esi
next:
    mov (%esi), %ecx
    test %ecx, %ecx
    jz last
    mov %esi, REQUESTS
    mov %ecx, REQUESTS + 8
    movl $0x10001, REQUESTS + 12
    offer 0, REQUESTS
    await REQUESTS
    mov 4(%esi), %al
    inc %al
    cmp %al, REPLY + 4
    je 1f
    fail 22
1:  add (%esi), %esi
    jmp next
last:
    mov $REPLY + 11, %esi
    jmp well

    .data
hello:
    .ascii "from the guest\n"
messages:
    // Tversion: the longest message, the version.
    .long 21
    .byte 100
    .word 0xffff
    .long 4096
    .word 8
    .ascii "9P2000.L"
    // Tattach: fid 1, no authentication, user and tree by default.
    .long 23
    .byte 104
    .word 0
    .long 1, -1
    .word 0, 0
    .long -1
    // Twalk: from fid 1 to the file, which is fid 2.
    .long 24
    .byte 110
    .word 0
    .long 1, 2
    .word 1, 5
    .ascii "hello"
    // Tlopen: to be read.
    .long 15
    .byte 12
    .word 0
    .long 2, 0
    // Tread: 64 bytes from the start.
    .long 23
    .byte 116
    .word 0
    .long 2, 0, 0, 64
    .long 0
