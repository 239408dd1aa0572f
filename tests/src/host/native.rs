//! Runs code on the host processor in this process, with all registers given, until it traps; signals bring it back, or, which
//! costs a tenth, a jump behind the code.
//!
//! UNSAFE: maps the layout's fixed addresses, enters code there by IRET and leaves it in a signal handler, which puts the
//! context of the caller into the frame that it returns from, or by `GATE`. Who draws the code sees to it that it makes no system
//! calls and does not touch FS (our thread's own storage).
#![allow(unsafe_code)]

use super::{Bits, DATA_SIZE, Memory, State, Trap, at};
use libc::{c_int, c_void, siginfo_t, ucontext_t};
use std::arch::naked_asm;
use std::io::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Page of what `enter` loads. Its fields:
const CONTROL: usize = 0x1f_0000;
const GPR: usize = CONTROL;
const IRET: usize = CONTROL + 0x100;
const SAVED_RSP: usize = CONTROL + 0x180;
const MXCSR: usize = CONTROL + 0x188;
const XSAVE: usize = CONTROL + 0x400;
/// What `left` stores: state of FPU and vectors, flags and general registers with RSP in a place of its own.
const XSAVED: usize = CONTROL + 0x800;
const PUSHED_END: usize = CONTROL + 0xd00;
const PUSHED: usize = PUSHED_END - 16 * 8;
const LEFT_RSP: usize = CONTROL + 0xd00;
/// Code that leads to `left`, of 64 and of 32 bits.
const GATE: u64 = 0x1e_f000;
const GATE32: u64 = GATE + 16;
/// Offsets in an XSAVE area (SDM 1 "Standard Format of XSAVE Area"): header, upper halves.
const HEADER: usize = 512;
const UPPER: usize = 576;
const STACK_SIZE: usize = 1 << 16;

/// Selectors of Linux for user code and data.
const CS32: u64 = 0x23;
const CS64: u64 = 0x33;
const SS: u64 = 0x2b;

/// One process has one layout: who runs code holds this.
static ONE: Mutex<()> = Mutex::new(());
/// Code under test runs: the next signal is its.
static INSIDE: AtomicBool = AtomicBool::new(false);

/// What the handler found.
struct Found(std::cell::UnsafeCell<Option<(State, Trap)>>);
// SAFETY: touched only by the thread that holds `ONE`, and by its signal handler while it waits for it.
unsafe impl Sync for Found {}
static FOUND: Found = Found(std::cell::UnsafeCell::new(None));

/// The host processor, as something that runs cases. One at a time in a process; stays on its thread.
pub struct Native {
    _one: MutexGuard<'static, ()>,
}

impl Native {
    /// Maps memory and takes the signals. Fails where the host has no AVX state or something lies at our addresses.
    pub fn new() -> Result<Native> {
        if !std::is_x86_feature_detected!("avx") {
            return Err(Error::other("the host has no AVX state"));
        }
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        for (addr, len) in [
            (GATE, 4096),
            (CONTROL as u64, 4096),
            (at::COUNTER, 4096),
            (at::CODE, at::CODE_SIZE),
            (at::DATA, at::ABSENT - at::DATA),
            (at::DATA2, at::END - at::DATA2),
        ] {
            map(addr, len)?;
        }
        take_signals()?;
        let n = Native { _one: one };
        gates();
        n.protect(GATE, 4096, libc::PROT_READ | libc::PROT_EXEC)?;
        n.protect(at::READ_ONLY, 4096, libc::PROT_READ)?;
        n.protect(at::CODE, at::CODE_SIZE, libc::PROT_READ | libc::PROT_EXEC)?;
        // SAFETY: the user data selector of Linux, in registers that 64-bit code does not use. Both are kept by the kernel.
        unsafe { std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) SS) };
        Ok(n)
    }

    fn protect(&self, addr: u64, len: u64, prot: c_int) -> Result<()> {
        // SAFETY: pages that `new` mapped and that hold nothing of Rust's.
        match unsafe { libc::mprotect(addr as *mut c_void, len as usize, prot) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }

    /// Writes code at an offset of the code area.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn set_code(&mut self, offset: u64, code: &[u8]) {
        assert!(offset + code.len() as u64 <= at::CODE_SIZE);
        self.protect(at::CODE, at::CODE_SIZE, libc::PROT_READ | libc::PROT_WRITE).expect("it is our mapping");
        // SAFETY: inside our mapping, which is writable now and which nothing refers to.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), (at::CODE + offset) as *mut u8, code.len()) };
        self.protect(at::CODE, at::CODE_SIZE, libc::PROT_READ | libc::PROT_EXEC).expect("it is our mapping");
    }

    /// Writes data memory at an offset of `Memory`.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= DATA_SIZE - 4096, "read-only memory is written by `set_memory`");
        let (first, second) = bytes.split_at(bytes.len().min(0x2000usize.saturating_sub(offset)));
        for (at, part) in [(offset, first), (offset + first.len(), second)] {
            // SAFETY: inside one of our two writable mappings, by the assertion and `address`; parts of no bytes write none.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), super::address(at) as *mut u8, part.len()) };
        }
    }

    /// Writes the counters of loops.
    ///
    /// # Panics
    /// If they are more than a page.
    pub fn set_counters(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= 4096);
        // SAFETY: our mapping, long enough by the assertion.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at::COUNTER as *mut u8, bytes.len()) };
    }

    /// Writes all data memory.
    pub fn set_memory(&mut self, m: &Memory) {
        self.protect(at::READ_ONLY, 4096, libc::PROT_READ | libc::PROT_WRITE).expect("it is our mapping");
        // SAFETY: both parts of our mapping, writable now.
        unsafe {
            std::ptr::copy_nonoverlapping(m.as_ptr(), at::DATA as *mut u8, 0x2000);
            std::ptr::copy_nonoverlapping(m.as_ptr().add(0x2000), at::DATA2 as *mut u8, 0x3000);
        }
        self.protect(at::READ_ONLY, 4096, libc::PROT_READ).expect("it is our mapping");
    }

    /// The two parts of memory that code can write.
    pub fn memory(&self) -> [&[u8; 0x2000]; 2] {
        // SAFETY: our mappings, which change only in `run` and `write`, which borrow mutably.
        unsafe { [&*(at::DATA as *const [u8; 0x2000]), &*(at::DATA2 as *const [u8; 0x2000])] }
    }

    /// Runs from `s.rip` until a trap; gives the state then. TF in `s.flags` traps after one instruction.
    pub fn run(&mut self, bits: Bits, s: &State) -> (State, Trap) {
        // SAFETY: the control page is ours; `enter` comes back by the handler, with all that the ABI keeps restored.
        unsafe {
            prepare(bits, s);
            INSIDE.store(true, Ordering::SeqCst);
            enter();
            INSIDE.store(false, Ordering::SeqCst);
            (*FOUND.0.get()).take().unwrap_or_else(|| (left_state(), Trap { vector: 3, error: 0, addr: 0 }))
        }
    }

    /// A jump to put at `ip` in place of INT3: `run` tells of it as of INT3, but that the program counter is 0.
    pub fn way_out(bits: Bits, ip: u64) -> [u8; 5] {
        let to = if bits == Bits::B32 { GATE32 } else { GATE };
        let [a, b, c, d] = (to.wrapping_sub(ip + 5) as u32).to_le_bytes();
        [0xe9, a, b, c, d]
    }
}

/// Writes the gates: JMP [RIP+2] and the address of `left` behind it, aligned as AC may want it; of 32-bit code a far jump to that.
fn gates() {
    let mut code = vec![0xff, 0x25, 2, 0, 0, 0, 0xcc, 0xcc];
    code.extend((left as *const () as u64).to_le_bytes());
    code.resize((GATE32 - GATE) as usize, 0xcc);
    code.push(0xea);
    code.extend((GATE as u32).to_le_bytes());
    code.extend((CS64 as u16).to_le_bytes());
    // SAFETY: our mapping, writable still.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), GATE as *mut u8, code.len()) };
}

fn map(addr: u64, len: u64) -> Result<()> {
    // Present from the beginning, as in the guest: what may not be written tells by its error code whether it was touched before.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_POPULATE;
    // SAFETY: low addresses that the layout reserves and where a position-independent program, its libraries and heap do
    // not lie; a second `Native` maps them anew.
    let p = unsafe { libc::mmap(addr as *mut c_void, len as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if p as u64 == addr { Ok(()) } else { Err(Error::last_os_error()) }
}

fn take_signals() -> Result<()> {
    let stack = Box::leak(vec![0u8; STACK_SIZE].into_boxed_slice());
    let ss = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK_SIZE };
    // SAFETY: the stack is leaked, so it lives as long as the thread; the handler has the signature SA_SIGINFO wants.
    unsafe {
        if libc::sigaltstack(&ss, std::ptr::null_mut()) != 0 {
            return Err(Error::last_os_error());
        }
        let mut a: libc::sigaction = std::mem::zeroed();
        a.sa_sigaction = trampoline as *const () as usize;
        a.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for s in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            if libc::sigaction(s, &a, std::ptr::null_mut()) != 0 {
                return Err(Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Fills the control page.
///
/// # Safety
/// It is mapped, and no code under test runs.
unsafe fn prepare(bits: Bits, s: &State) {
    // SAFETY: all fields lie inside the page and are aligned; XSAVE area: legacy part, header with x87, SSE, AVX, upper halves.
    unsafe {
        (GPR as *mut [u64; 16]).write(s.gpr);
        let cs = if bits == Bits::B32 { CS32 } else { CS64 };
        (IRET as *mut [u64; 5]).write([s.rip, cs, s.flags, s.gpr[4], SS]);
        (MXCSR as *mut u32).write(0x1f80);
        let x = XSAVE as *mut u8;
        x.cast::<[u16; 2]>().write([s.fcw, s.fsw]);
        x.add(4).cast::<u32>().write(s.ftw.into());
        x.add(8).cast::<[u64; 2]>().write([0; 2]);
        x.add(24).cast::<u32>().write(s.mxcsr);
        for (i, r) in s.st.iter().enumerate() {
            x.add(32 + 16 * i).cast::<[u64; 2]>().write([r.mant, r.sexp.into()]);
        }
        x.add(160).cast::<[u128; 16]>().write(s.xmm);
        x.add(HEADER).cast::<[u64; 8]>().write([7, 0, 0, 0, 0, 0, 0, 0]);
        x.add(UPPER).cast::<[u128; 16]>().write(s.ymmh);
    }
}

/// Loads everything from the control page. Returns when the handler has made its frame go on at `resume`.
///
/// # Safety
/// The control page is filled and leads to code that traps.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter() {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov eax, {rsp}", "mov [rax], rsp",
        "mov ebp, {xsave}", "mov eax, 7", "xor edx, edx", "xrstor64 [rbp]",
        "mov esp, {gpr}",
        "pop rax", "pop rcx", "pop rdx", "pop rbx", "pop rbp", "pop rbp", "pop rsi", "pop rdi",
        "pop r8", "pop r9", "pop r10", "pop r11", "pop r12", "pop r13", "pop r14", "pop r15",
        "mov esp, {iret}", "iretq",
        rsp = const SAVED_RSP, xsave = const XSAVE, gpr = const GPR, iret = const IRET
    )
}

/// Where the handler's frame goes on: the end of `enter`, with the FPU as Rust expects it.
///
/// # Safety
/// Only from the handler's frame.
#[unsafe(naked)]
unsafe extern "sysv64" fn resume() {
    naked_asm!(
        "mov eax, {rsp}", "mov rsp, [rax]",
        // NT and ID are not the frame's to restore; with NT set IRET would fail.
        "push 2", "popfq",
        "fninit", "mov eax, {mxcsr}", "ldmxcsr [rax]", "vzeroupper", "cld",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx", "ret",
        rsp = const SAVED_RSP, mxcsr = const MXCSR
    )
}

/// Where code under test ends by `GATE`: stores all of its state, and goes the way of `resume`. Nothing but MOV and PUSH before
/// the flags are stored.
///
/// # Safety
/// Only by a gate.
#[unsafe(naked)]
unsafe extern "sysv64" fn left() {
    naked_asm!(
        "mov qword ptr [{rsp}], rsp", "mov esp, {end}",
        "pushfq", "push r15", "push r14", "push r13", "push r12", "push r11", "push r10", "push r9", "push r8",
        "push rdi", "push rsi", "push rbp", "push rbx", "push rdx", "push rcx", "push rax",
        "mov ebp, {xsave}", "mov eax, 7", "xor edx, edx", "xsave64 [rbp]",
        "jmp {resume}",
        rsp = const LEFT_RSP, end = const PUSHED_END, xsave = const XSAVED, resume = sym resume
    )
}

/// What `left` stored; the program counter is 0.
///
/// # Safety
/// It ran last.
unsafe fn left_state() -> State {
    // SAFETY: the fields of the control page as `left` fills them.
    unsafe {
        let [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, flags] =
            (PUSHED as *const [u64; 16]).read();
        let rsp = (LEFT_RSP as *const u64).read();
        let gpr = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
        extended(XSAVED as *const u8, State { gpr, flags, rip: 0, ..State::new() })
    }
}

/// The handler's first instructions: AC of the code under test would hold for ours.
///
/// # Safety
/// Only as a signal handler.
#[unsafe(naked)]
unsafe extern "C" fn trampoline() {
    naked_asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq", "jmp {0}", sym handler)
}

/// Takes the state out of the frame, and puts the way back into it.
extern "C" fn handler(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    if !INSIDE.load(Ordering::SeqCst) {
        // SAFETY: not our code's: the default action, when the instruction runs again.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel's frame, which is ours alone until we return. With AVX state it holds a standard XSAVE area.
    unsafe {
        let u = &mut *context.cast::<ucontext_t>();
        *FOUND.0.get() = Some(state(u));
        let g = &mut u.uc_mcontext.gregs;
        g[libc::REG_RIP as usize] = resume as *const () as i64;
        g[libc::REG_EFL as usize] = 0x202;
        let cs = &mut g[libc::REG_CSGSFS as usize];
        *cs = *cs & !0xffff | CS64 as i64;
    }
}

/// # Safety
/// `u` is a frame of the kernel's.
unsafe fn state(u: &ucontext_t) -> (State, Trap) {
    use libc::*;
    const ORDER: [c_int; 16] = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12,
        REG_R13, REG_R14, REG_R15,
    ];
    let g = |r: c_int| u.uc_mcontext.gregs[r as usize] as u64;
    let x = u.uc_mcontext.fpregs.cast::<u8>().cast_const();
    let s = State { gpr: ORDER.map(g), rip: g(REG_RIP), flags: g(REG_EFL), ..State::new() };
    // SAFETY: the kernel's XSAVE area, by the caller's promise.
    let s = unsafe { extended(x, s) };
    let vector = g(REG_TRAPNO) as u8;
    let error = if matches!(vector, 8 | 10..=14 | 17) { g(REG_ERR) as u32 } else { 0 };
    (s, Trap { vector, error, addr: if vector == 14 { g(REG_CR2) } else { 0 } })
}

/// `s` with x87, SSE and AVX state of an XSAVE area in standard format.
///
/// # Safety
/// `x` leads to one that holds all three.
unsafe fn extended(x: *const u8, s: State) -> State {
    // SAFETY: by the caller's promise.
    unsafe {
        let [fcw, fsw, _, fop] = x.cast::<[u16; 4]>().read_unaligned();
        let [fip, fdp] = x.add(8).cast::<[u64; 2]>().read_unaligned();
        State {
            xmm: x.add(160).cast::<[u128; 16]>().read_unaligned(),
            ymmh: x.add(UPPER).cast::<[u128; 16]>().read_unaligned(),
            st: std::array::from_fn(|i| {
                let [mant, rest] = x.add(32 + 16 * i).cast::<[u64; 2]>().read_unaligned();
                arch_x86::F80 { mant, sexp: rest as u16 }
            }),
            mxcsr: x.add(24).cast::<u32>().read_unaligned(),
            fcw,
            fsw,
            ftw: x.add(4).read(),
            fip,
            fdp,
            fop,
            ..s
        }
    }
}
