//! An observer is told of precisely what a known program does, on every engine setting.

use arch_x86::CpuState;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use rhea_tests::engines::machine::{Image, Machine, World, at, engines};
use std::sync::{Arc, Mutex};
use vm_core::observe::{Observer, Touch};
use vm_core::{Pa, StopReason, Va, Vcpu};

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    blocks: Vec<(u64, u32)>,
    /// Program counter, bytes, RAX.
    insns: Vec<(u64, Vec<u8>, u64)>,
    touches: Vec<Touch>,
}

impl Observer<CpuState> for Recorder {
    fn block(&mut self, pc: u64, insns: u32) {
        self.0.lock().unwrap().blocks.push((pc, insns));
    }

    fn insn(&mut self, cpu: &CpuState, pc: u64, bytes: &[u8]) {
        assert_eq!(cpu.rip, pc);
        self.0.lock().unwrap().insns.push((pc, bytes.to_vec(), cpu.gpr[0]));
    }

    fn access(&mut self, touch: &Touch) {
        self.0.lock().unwrap().touches.push(*touch);
    }
}

fn read(va: u64, size: u8, value: u128) -> Touch {
    Touch { va: Va(va), pa: Pa(va), size, write: false, value }
}

fn write(va: u64, size: u8, value: u128) -> Touch {
    Touch { write: true, ..read(va, size, value) }
}

/// Bytes that are all different.
const PATTERN: u128 = 0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110;

fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut after = a.create_label();
    let data = at::DATA as i64;
    a.mov(eax, dword_ptr(data))?;
    a.mov(dword_ptr(data + 8), eax)?;
    a.add(word_ptr(data + 0x10), 5)?;
    a.push(rax)?;
    a.pop(rbx)?;
    a.movups(xmm0, xmmword_ptr(data))?;
    // Across a page.
    a.movups(xmmword_ptr(data + 0xff8), xmm0)?;
    a.mov(rax, qword_ptr(data + 0xffc))?;
    a.mov(rax, qword_ptr(at::ALIAS as i64))?;
    a.mov(rsi, data as u64)?;
    a.mov(rdi, data as u64 + 0x100)?;
    a.mov(ecx, 3)?;
    a.rep().movsb()?;
    a.mov(eax, 7)?;
    a.lock().xadd(dword_ptr(data + 0x40), eax)?;
    a.lock().cmpxchg(dword_ptr(data + 0x40), ecx)?;
    a.mov(eax, dword_ptr(at::DEVICE as i64))?;
    // The operand of the instruction after the next, in the same block: the store leaves it and runs alone.
    a.mov(byte_ptr(after), 9)?;
    a.nop()?;
    a.db(&[0xb0])?;
    a.set_label(&mut after)?;
    a.db(&[1])?;
    a.hlt()
}

fn image() -> (Image, Vec<Touch>, u64) {
    let mut a = CodeAssembler::new(64).unwrap();
    program(&mut a).unwrap();
    let code = a.assemble(at::CODE).unwrap();
    let mut i = Image::new(World::Long);
    i.put(at::CODE, &code);
    i.put(at::DATA, &PATTERN.to_le_bytes());
    i.cpu.gpr[4] = at::STACK_TOP;
    let patched = at::CODE + code.len() as u64 - 2;
    let word = u128::from(0x1312_1110u32);
    let device = {
        let v = at::MMIO.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        Touch { pa: Pa(at::MMIO), ..read(at::DEVICE, 4, u128::from(v as u32)) }
    };
    let d = at::DATA;
    let touches = vec![
        read(d, 4, word),
        write(d + 8, 4, word),
        read(d + 0x10, 2, 0),
        write(d + 0x10, 2, 5),
        write(at::STACK_TOP - 8, 8, word),
        read(at::STACK_TOP - 8, 8, word),
        read(d, 16, 0x1f1e_1d1c_1312_1110_1716_1514_1312_1110),
        write(d + 0xff8, 16, 0x1f1e_1d1c_1312_1110_1716_1514_1312_1110),
        read(d + 0xffc, 8, 0x1312_1110_1716_1514),
        Touch { pa: Pa(d), ..read(at::ALIAS, 8, 0x1716_1514_1312_1110) },
        read(d, 1, 0x10),
        write(d + 0x100, 1, 0x10),
        read(d + 1, 1, 0x11),
        write(d + 0x101, 1, 0x11),
        read(d + 2, 1, 0x12),
        write(d + 0x102, 1, 0x12),
        read(d + 0x40, 4, 0),
        write(d + 0x40, 4, 7),
        // It holds 7, not 0: the old value is written back.
        read(d + 0x40, 4, 7),
        write(d + 0x40, 4, 7),
        device,
        write(patched, 1, 9),
    ];
    (i, touches, at::CODE + code.len() as u64)
}

#[test]
fn an_observer_is_told_all_and_nothing_twice() {
    let (image, touches, end) = image();
    for (name, settings) in engines() {
        let mut m = Machine::new(settings).unwrap();
        // Blocks made without an observer stay, and are not used with one.
        let want = m.outcome(&image);
        let recorder = Recorder::default();
        assert!(m.engine.observe(Some(Box::new(recorder.clone()))).is_none());
        assert!(m.outcome(&image) == want, "{name}: the same happens");
        assert!(m.engine.observe(None).is_some());
        let told = std::mem::take(&mut *recorder.0.lock().unwrap());
        assert!(m.outcome(&image) == want, "{name}: as before");
        assert!(recorder.0.lock().unwrap().insns.is_empty(), "{name}: nobody is told any more");

        for (n, (got, want)) in told.touches.iter().zip(&touches).enumerate() {
            assert_eq!(got, want, "{name}: access {n}");
        }
        assert_eq!(told.touches.len(), touches.len(), "{name}");
        // The instructions follow each other without a gap.
        let mut pc = at::CODE;
        for (at, bytes, _) in &told.insns {
            assert_eq!(*at, pc, "{name}");
            pc += bytes.len() as u64;
        }
        assert_eq!((pc, told.insns.len()), (end, 21), "{name}");
        let (patched, then) = (&told.insns[19].1, told.insns[20].2 & 0xff);
        assert_eq!((&patched[..], then), (&[0xb0, 9][..], 9), "{name}: the code as it was run");
        assert_eq!(told.blocks[0].0, at::CODE, "{name}");
        assert!(told.blocks.iter().all(|(pc, n)| told.insns.iter().any(|i| i.0 == *pc) && *n > 0), "{name}");
    }
}

#[test]
fn faults_and_the_delivery_of_events_are_seen() {
    let mut a = CodeAssembler::new(64).unwrap();
    a.nop().unwrap();
    a.mov(eax, dword_ptr(at::ABSENT as i64)).unwrap();
    let code = a.assemble(at::CODE).unwrap();
    let mut image = Image::new(World::Long);
    image.put(at::CODE, &code);
    for (name, settings) in engines() {
        let mut m = Machine::new(settings).unwrap();
        let recorder = Recorder::default();
        m.engine.observe(Some(Box::new(recorder.clone())));
        m.load(&image);
        assert_eq!(m.run(), StopReason::Halted, "{name}");
        let told = recorder.0.lock().unwrap();
        let pcs: Vec<u64> = told.insns.iter().map(|i| i.0).collect();
        assert_eq!(pcs[..2], [at::CODE, at::CODE + 1], "{name}: {pcs:x?}");
        assert_eq!(pcs.len(), 3, "{name}: the handler halts");
        let writes: Vec<&Touch> = told.touches.iter().filter(|t| t.write).collect();
        // SS, RSP, RFLAGS, CS, RIP and the error code.
        assert_eq!(writes.len(), 6, "{name}: {writes:x?}");
        assert!(writes.iter().any(|t| t.value == u128::from(at::CODE + 1)), "{name}");
        assert!(told.touches.iter().all(|t| t.va != Va(at::ABSENT)), "{name}: what faults is no access");
    }
}
