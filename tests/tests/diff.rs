//! `rhea-diff` names the instruction that one engine executes wrongly.

use arch_x86::{CpuState, models};
use backend::{Settings, VcpuBlock};
use frontend_x86::X86;
use iced_x86::code_asm::*;
use ir::{Block, CodeFetch, Frontend, HelperDesc, Op, StateLayout, TranslateError};
use machine::diff::{self, Diff, Difference, MakeEngine, Outcome, Side};
use machine::engine;
use machine::options::{Config, IcountConfig, Request, parse};
use rhea_tests::boot::{ENTRY, file, pvh_elf};
use std::sync::Arc;

/// The x86 front end, but that rotations left by IR ops go to the right: ROL of a register by a constant.
struct Broken {
    whole: X86,
    /// Only what is compiled is broken.
    compiled: bool,
}

impl Frontend for Broken {
    fn layout(&self) -> &StateLayout {
        self.whole.layout()
    }

    fn helpers(&self) -> &[HelperDesc] {
        self.whole.helpers()
    }

    fn translate<C: CodeFetch>(
        &self,
        mode: u64,
        start: u32,
        max_insns: u32,
        code: &mut C,
        out: &mut Block,
    ) -> Result<(), TranslateError<C::Fault>> {
        self.whole.translate(mode, start, max_insns, code, out)?;
        // The compilers read a copy of the page.
        if !self.compiled || std::any::type_name::<C>().contains("compile::Bytes") {
            out.insts.iter_mut().filter(|i| i.op == Op::Rotl).for_each(|i| i.op = Op::Rotr);
        }
        Ok(())
    }

    fn disassemble(&self, mode: u64, pc: u64, bytes: &[u8]) -> (String, usize) {
        self.whole.disassemble(mode, pc, bytes)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    Nothing,
    Compiled,
    All,
}

fn make(config: &Config, breaks: Breaks) -> MakeEngine {
    let cpu = config.cpu.clone();
    Box::new(move |settings: Settings, signals| {
        if breaks == Breaks::Nothing {
            return Ok(engine::make(&cpu, settings, std::slice::from_ref(signals))?.0.remove(0));
        }
        let configured = models::configure(cpu.model, &[]).expect("the model exists");
        let helpers = frontend_x86::helpers::table::<VcpuBlock<CpuState>>().into();
        let fe = Arc::new(Broken { whole: X86::new(configured.features), compiled: breaks == Breaks::Compiled });
        let engine =
            backend::Engine::new(fe, CpuState::new(&configured, 0), helpers, settings, None).expect("the engine is made");
        signals.set_kick(engine.kick());
        Ok(Box::new(engine))
    })
}

fn run(name: &str, code: Vec<u8>, a: &str, b: &str, breaks: Breaks) -> Outcome {
    let kernel = file(&format!("{name}.elf"), &pvh_elf(&code));
    let words = ["-m", "4M", "-nodefaults", "-display", "none", "-no-reboot", "-device", "isa-debug-exit", "-kernel", &kernel];
    let config = |accel: &str| match parse(words.iter().map(|w| (*w).to_owned()).chain(["-accel".into(), accel.into()])) {
        Ok(Request::Run(c)) => *c,
        other => panic!("{other:?}"),
    };
    let side = |accel: &str, breaks| {
        let c = config(accel);
        Side { name: accel.into(), settings: engine::settings(&c.accel).unwrap(), make: make(&c, breaks) }
    };
    let time = IcountConfig { shift: Some(3), sleep: false };
    let sides = [side(a, Breaks::Nothing), side(b, breaks)];
    let every = 100_000;
    let diff = Diff { config: config(a), time, sides, every, to: u64::MAX, told: false, disassemble: diff::disassemble };
    diff.run().unwrap()
}

/// 300,000 rounds of arithmetic, then a rotation, then as much again; ends by port 501h.
fn guest() -> Vec<u8> {
    let assemble = || {
        let mut a = CodeAssembler::new(32)?;
        for rotates in [false, true] {
            let mut round = a.create_label();
            a.mov(ecx, 300_000)?;
            a.mov(ebx, 1)?;
            a.set_label(&mut round)?;
            a.imul_3(ebx, ebx, 1_103_515_245)?;
            a.add(ebx, 0x1234_5678)?;
            a.mov(dword_ptr(ENTRY + 0x1_0000), ebx)?;
            if rotates {
                a.rol(ebx, 7)?;
            }
            a.xor(eax, ebx)?;
            a.mov(dword_ptr(ENTRY + 0x1_0004), eax)?;
            a.dec(ecx)?;
            a.jnz(round)?;
        }
        a.mov(dx, 0x501)?;
        a.out(dx, al)?;
        a.assemble(u64::from(ENTRY))
    };
    assemble().expect("the guest assembles")
}

fn difference(o: Outcome) -> Difference {
    match o {
        Outcome::Differ(d) => *d,
        Outcome::Equal(n, _) | Outcome::Vanished(n) => panic!("no difference up to {n}"),
    }
}

#[test]
fn a_broken_op_is_named() {
    for (n, b) in ["jit,threshold=0", "jit", "interp", "jit,tier1=off,threshold=30"].iter().enumerate() {
        let d = difference(run(&format!("diff-broken-{n}"), guest(), "interp", b, Breaks::All));
        let text = d.to_string();
        assert!(d.text.starts_with("rol"), "{b}: {text}");
        // The two constants, all rounds of 7, two constants, and the first 4 of a round.
        assert_eq!(d.count, 2 + 7 * 300_000 + 2 + 4, "{b}: {text}");
        assert!(text.contains("gpr[3]") && text.contains("* EAX"), "{text}");
    }
}

#[test]
fn an_op_that_is_broken_in_compiled_code_is_named() {
    for (n, b) in ["jit", "jit,threshold=0", "jit,tier1=off,threshold=30", "jit,hot=20"].iter().enumerate() {
        let d = difference(run(&format!("diff-compiled-{n}"), guest(), "interp", b, Breaks::Compiled));
        assert!(d.text.starts_with("rol") && d.count > 2_100_000, "{b}: {d}");
    }
}

#[test]
fn engines_that_agree_run_to_the_end() {
    match run("diff-equal", guest(), "interp", "jit", Breaks::Nothing) {
        Outcome::Equal(n, end) => assert_eq!((n, end.is_some()), (2 + 7 * 300_000 + 2 + 8 * 300_000 + 2, true)),
        Outcome::Differ(d) => panic!("{d}"),
        Outcome::Vanished(n) => panic!("a difference at {n} that comes and goes"),
    }
}
