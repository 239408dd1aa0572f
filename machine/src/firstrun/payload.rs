//! A small guest of our own for hosts without Debian's package tools: a command prompt on COM1, entered by PVH.
//!
//! It polls the 16550A, reads its memory map from `hvm_start_info` and the CPU's vendor from CPUID, and powers off by ACPI.

use devices::timer::pm::SLP_TYP_S5;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const BASE: u32 = 0x10_0000;
const FILE_OFFSET: usize = 0x100;
/// Line buffer and stack above code and data.
const LINE: u32 = BASE + 0x4000;
const LINE_MAX: i32 = 60;
const STACK: u32 = BASE + 0x8000;
const MEM_LEN: u32 = 0x8000;

const COM1: u32 = 0x3f8;
const LSR: u32 = COM1 + 5;
const LSR_DATA_READY: i32 = 0x01;
const LSR_THR_EMPTY: i32 = 0x20;
/// PM1a control: SLP_EN with the sleep type of S5 (ACPI, "PM1 Control Registers").
const PM1A_CNT: u32 = 0x604;
const SLP_EN_S5: u32 = 1 << 13 | (SLP_TYP_S5 as u32) << 10;
const RESET_CONTROL: u32 = 0xcf9;
/// `hvm_start_info`: memory map address and entry count; an entry's size, and the offsets of its length and type.
const MEMMAP_PADDR: i32 = 40;
const MEMMAP_ENTRIES: i32 = 48;
const ENTRY_SIZE: i32 = 24;

const BANNER: &str = "\r\nrhea's built-in guest: the emulated CPU, its memory and COM1 work.\r\nType 'help'.\r\n";
const PROMPT: &str = "> ";
const HELP: &str = "help    this text\r\ncpu     the CPU's vendor\r\nmem     RAM the board reports\r\n\
                    reboot  reset the machine\r\noff     power off\r\n";
const UNKNOWN: &str = "unknown word; try 'help'\r\n";
const KIB: &str = " KiB\r\n";
const OFF: &str = "powering off\r\n";
const NEWLINE: &str = "\r\n";

/// Zero-terminated strings at the start of the segment.
#[derive(Default)]
struct Data(Vec<u8>);

impl Data {
    fn put(&mut self, s: &str) -> u32 {
        let at = BASE + self.0.len() as u32;
        self.0.extend(s.as_bytes());
        self.0.push(0);
        at
    }
}

/// Subroutines; each keeps what it is not said to change.
struct Subs {
    /// Sends AL.
    putc: CodeLabel,
    /// Sends the string at ESI; changes ESI and EAX.
    puts: CodeLabel,
    /// Receives into AL.
    getc: CodeLabel,
    /// Sends EAX in decimal; changes EAX, ECX, EDX.
    put_number: CodeLabel,
}

/// The guest as an ELF file with a PVH note.
pub fn elf() -> Result<Vec<u8>, IcedError> {
    let mut data = Data::default();
    let mut a = CodeAssembler::new(32)?;
    let mut subs = Subs { putc: a.create_label(), puts: a.create_label(), getc: a.create_label(), put_number: a.create_label() };
    start(&mut a, &mut data, &subs)?;
    prompt(&mut a, &mut data, &subs)?;
    subroutines(&mut a, &mut subs)?;
    let mut image = data.0;
    image.resize(image.len().next_multiple_of(16), 0);
    let entry = BASE + image.len() as u32;
    image.extend(a.assemble(u64::from(entry))?);
    Ok(wrap(&image, entry))
}

fn out(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(edx, port)?;
    a.mov(eax, value)?;
    a.out(dx, al)
}

/// Stack, UART (115200 8N1, polled), banner. EBX keeps the start info throughout.
fn start(a: &mut CodeAssembler, data: &mut Data, subs: &Subs) -> Result<(), IcedError> {
    a.cld()?;
    a.mov(esp, STACK)?;
    for (port, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        out(a, COM1 + port, value)?;
    }
    a.mov(esi, data.put(BANNER))?;
    a.call(subs.puts)
}

/// Reads a line into `LINE`, then runs the word it holds; for ever.
fn prompt(a: &mut CodeAssembler, data: &mut Data, subs: &Subs) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(esi, data.put(PROMPT))?;
    a.call(subs.puts)?;
    read_line(a, data, subs)?;
    a.cmp(byte_ptr(LINE), 0)?;
    a.je(top)?;
    type Word = fn(&mut CodeAssembler, &mut Data, &Subs) -> Result<(), IcedError>;
    let words: [(&str, Word); 5] = [("help", help), ("cpu", cpu), ("mem", mem), ("reboot", reboot), ("off", off)];
    for (word, action) in words {
        let mut next = a.create_label();
        a.mov(esi, data.put(word))?;
        a.mov(edi, LINE)?;
        // With its zero.
        a.mov(ecx, word.len() as u32 + 1)?;
        a.repe().cmpsb()?;
        a.jne(next)?;
        action(a, data, subs)?;
        a.jmp(top)?;
        a.set_label(&mut next)?;
    }
    a.mov(esi, data.put(UNKNOWN))?;
    a.call(subs.puts)?;
    a.jmp(top)
}

fn read_line(a: &mut CodeAssembler, data: &mut Data, subs: &Subs) -> Result<(), IcedError> {
    let (mut next, mut back, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(edi, LINE)?;
    a.set_label(&mut next)?;
    a.call(subs.getc)?;
    a.cmp(al, 13)?;
    a.je(end)?;
    a.cmp(al, 10)?;
    a.je(end)?;
    for erase in [8, 127] {
        a.cmp(al, erase)?;
        a.je(back)?;
    }
    a.cmp(al, 32)?;
    a.jb(next)?;
    a.cmp(edi, LINE as i32 + LINE_MAX)?;
    a.jae(next)?;
    a.stosb()?;
    a.call(subs.putc)?;
    a.jmp(next)?;
    a.set_label(&mut back)?;
    a.cmp(edi, LINE as i32)?;
    a.je(next)?;
    a.dec(edi)?;
    a.mov(esi, data.put("\x08 \x08"))?;
    a.call(subs.puts)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    a.mov(byte_ptr(edi), 0)?;
    a.mov(esi, data.put(NEWLINE))?;
    a.call(subs.puts)
}

fn help(a: &mut CodeAssembler, data: &mut Data, subs: &Subs) -> Result<(), IcedError> {
    a.mov(esi, data.put(HELP))?;
    a.call(subs.puts)
}

/// CPUID leaf 0: twelve letters in EBX, EDX, ECX.
fn cpu(a: &mut CodeAssembler, data: &mut Data, subs: &Subs) -> Result<(), IcedError> {
    a.push(ebx)?;
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.mov(dword_ptr(LINE), ebx)?;
    a.mov(dword_ptr(LINE + 4), edx)?;
    a.mov(dword_ptr(LINE + 8), ecx)?;
    a.mov(byte_ptr(LINE + 12), 0)?;
    a.pop(ebx)?;
    a.mov(esi, LINE)?;
    a.call(subs.puts)?;
    a.mov(esi, data.put(NEWLINE))?;
    a.call(subs.puts)
}

/// Sum of the memory map's RAM, in KiB: 64-bit lengths shifted down to 32 bits.
fn mem(a: &mut CodeAssembler, data: &mut Data, subs: &Subs) -> Result<(), IcedError> {
    let (mut next, mut skip, mut done) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(esi, dword_ptr(ebx + MEMMAP_PADDR))?;
    a.mov(ecx, dword_ptr(ebx + MEMMAP_ENTRIES))?;
    a.xor(edi, edi)?;
    a.set_label(&mut next)?;
    a.test(ecx, ecx)?;
    a.je(done)?;
    a.cmp(dword_ptr(esi + 16), 1)?;
    a.jne(skip)?;
    a.mov(eax, dword_ptr(esi + 8))?;
    a.mov(edx, dword_ptr(esi + 12))?;
    a.shrd(eax, edx, 10)?;
    a.add(edi, eax)?;
    a.set_label(&mut skip)?;
    a.add(esi, ENTRY_SIZE)?;
    a.dec(ecx)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    a.mov(eax, edi)?;
    a.call(subs.put_number)?;
    a.mov(esi, data.put(KIB))?;
    a.call(subs.puts)
}

fn reboot(a: &mut CodeAssembler, _data: &mut Data, _subs: &Subs) -> Result<(), IcedError> {
    out(a, RESET_CONTROL, 0x06)?;
    halt(a)
}

fn off(a: &mut CodeAssembler, data: &mut Data, subs: &Subs) -> Result<(), IcedError> {
    a.mov(esi, data.put(OFF))?;
    a.call(subs.puts)?;
    a.mov(edx, PM1A_CNT)?;
    a.mov(eax, SLP_EN_S5)?;
    a.out(dx, ax)?;
    halt(a)
}

fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.cli()?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

fn subroutines(a: &mut CodeAssembler, subs: &mut Subs) -> Result<(), IcedError> {
    let wait = |a: &mut CodeAssembler, bit: i32| -> Result<(), IcedError> {
        let mut again = a.create_label();
        let mut ready = a.create_label();
        a.mov(edx, LSR)?;
        a.set_label(&mut again)?;
        a.in_(al, dx)?;
        a.test(al, bit)?;
        a.jne(ready)?;
        a.pause()?;
        a.jmp(again)?;
        a.set_label(&mut ready)?;
        a.mov(edx, COM1)
    };
    a.set_label(&mut subs.putc)?;
    a.push(edx)?;
    a.push(eax)?;
    wait(a, LSR_THR_EMPTY)?;
    a.pop(eax)?;
    a.out(dx, al)?;
    a.pop(edx)?;
    a.ret()?;

    a.set_label(&mut subs.getc)?;
    a.push(edx)?;
    wait(a, LSR_DATA_READY)?;
    a.in_(al, dx)?;
    a.pop(edx)?;
    a.ret()?;

    let mut done = a.create_label();
    a.set_label(&mut subs.puts)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.je(done)?;
    a.call(subs.putc)?;
    a.jmp(subs.puts)?;
    a.set_label(&mut done)?;
    a.ret()?;

    // Digits come out backwards: one level of call for each, printed on the way back.
    let mut last = a.create_label();
    a.set_label(&mut subs.put_number)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 10)?;
    a.div(ecx)?;
    a.push(edx)?;
    a.test(eax, eax)?;
    a.je(last)?;
    a.call(subs.put_number)?;
    a.set_label(&mut last)?;
    a.pop(eax)?;
    a.add(al, i32::from(b'0'))?;
    a.call(subs.putc)?;
    a.ret()
}

/// ELF32 executable: the segment, and a note with the PVH entry (type 18, "Xen").
fn wrap(image: &[u8], entry: u32) -> Vec<u8> {
    const EHDR: u32 = 52;
    const PHDR: u32 = 32;
    const NOTE: u32 = EHDR + 2 * PHDR;
    const NOTE_LEN: u32 = 20;
    let mut b: Vec<u8> = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let words = |b: &mut Vec<u8>, list: &[u32]| b.extend(list.iter().flat_map(|w| w.to_le_bytes()));
    // Executable for the 80386; version, entry, program headers at 52, no sections, flags.
    words(&mut b, &[2 | 3 << 16, 1, entry, EHDR, 0, 0]);
    words(&mut b, &[EHDR | PHDR << 16, 2, 0]);
    let len = image.len() as u32;
    words(&mut b, &[1, FILE_OFFSET as u32, BASE, BASE, len, MEM_LEN.max(len), 7, 16]);
    words(&mut b, &[4, NOTE, 0, 0, NOTE_LEN, NOTE_LEN, 4, 4]);
    words(&mut b, &[4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry]);
    b.resize(FILE_OFFSET, 0);
    b.extend(image);
    b
}
