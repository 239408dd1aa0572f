//! Chooses and makes the CPU engine from `-accel` and `-cpu`.

use crate::board::TSC_KHZ;
use crate::control::Control;
use crate::options::{AccelConfig, CpuConfig, JitConfig, RegionKind};
use crate::say;
use crate::switch::{Shared, Switch};
use crate::vcpu_thread::Engine;
use accel_kvm::{CpuPort, KvmCpu, KvmError, Vm};
use arch_x86::cpuid::{CpuConfigured, Word};
use arch_x86::{CpuState, features, models};
use backend::{Peers, Settings, VcpuBlock};
use frontend_x86::X86;
use std::sync::{Arc, OnceLock};
use vm_core::VcpuSignals;

type Kick = Box<dyn Fn() + Send + Sync>;

/// Runs of a block before tier 1 emits it, and from then, if it may end a loop, before its region is compiled (ADR 0007).
const THRESHOLD: u32 = 40;
const HOT: u32 = 3000;
/// Without tier 1, runs of a block before it is compiled on another thread, and on this one: a thread that also runs the
/// guest must be surer that compiling pays.
const THRESHOLD_REGIONS: u32 = 400;
const THRESHOLD_ALONE: u32 = 1000;

/// Why there is no engine; one line each.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("-accel kvm: {0}; use -accel jit, or kvm:jit, which takes what there is")]
    Kvm(#[from] KvmError),
    #[error("{0} needs -accel jit or interp")]
    NotTranslating(&'static str),
    #[error("{0}")]
    Host(&'static str),
    #[error("-cpu: {0}")]
    Cpu(String),
    #[error("the host gives no memory for generated code: {0}")]
    Memory(#[from] std::io::Error),
}

/// The engine that runs the guest, or two of them.
pub struct Choice {
    /// The translating one; with KVM it serves where that cannot.
    pub settings: Settings,
    pub kvm: Option<Native>,
}

/// KVM, and what it needs to know.
pub struct Native {
    vm: Arc<Vm>,
    /// Name of the engine that goes on if it fails; `None`: none may.
    next: Option<&'static str>,
}

/// Name and settings of an engine that translates.
fn translating(a: &AccelConfig) -> Option<(&'static str, Settings)> {
    match a {
        AccelConfig::Interp => Some(("interp", interp())),
        AccelConfig::Jit(jit) => Some(("jit", jit_settings(jit, host_cpus()))),
        AccelConfig::Kvm(_) => None,
    }
}

/// The first engine of the list that translates.
pub fn settings(accels: &[AccelConfig]) -> Result<Settings, EngineError> {
    frontend_x86::hostfp::supported().map_err(EngineError::Host)?;
    accels.iter().find_map(translating).map(|(_, s)| s).ok_or(EngineError::NotTranslating("this"))
}

/// The first engine of the list that there is. `-icount` must be counted by the engine (`counted`).
pub fn choose(accels: &[AccelConfig], counted: bool) -> Result<Choice, EngineError> {
    frontend_x86::hostfp::supported().map_err(EngineError::Host)?;
    let mut accels = accels;
    let mut why_not = None;
    while let Some((AccelConfig::Kvm(kvm), rest)) = accels.split_first() {
        let next = rest.iter().find_map(translating);
        if counted {
            why_not = Some(EngineError::NotTranslating("-icount"));
        } else {
            let found = if kvm.self_test && next.is_some() { accel_kvm::self_test() } else { Ok(()) };
            match (found.and_then(|()| Vm::new(kvm.irqchip)), next) {
                (Ok(vm), Some((name, settings))) => {
                    return Ok(Choice { settings, kvm: Some(Native { vm, next: Some(name) }) });
                }
                (Ok(vm), None) => {
                    let settings = jit_settings(&JitConfig::default(), host_cpus());
                    return Ok(Choice { settings, kvm: Some(Native { vm, next: None }) });
                }
                (Err(e), next) => {
                    next.into_iter().for_each(|(name, _)| no_kvm(name, &e));
                    why_not = Some(e.into());
                }
            }
        }
        accels = rest;
    }
    match (accels.first().and_then(translating), why_not) {
        (Some((_, settings)), _) => Ok(Choice { settings, kvm: None }),
        (None, Some(why)) => Err(why),
        (None, None) => Ok(Choice { settings: jit_settings(&JitConfig::default(), host_cpus()), kvm: None }),
    }
}

/// Says which engine runs instead, and why.
fn no_kvm(name: &str, why: &KvmError) {
    say!("-accel {name}, for there is no KVM: {why}");
}

/// CPUs that this process may run on.
fn host_cpus() -> u32 {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count())
}

fn interp() -> Settings {
    Settings {
        jit: false,
        threshold: u32::MAX,
        tier1: false,
        hot: 0,
        single_block_regions: false,
        bisect: None,
        background: false,
        max_insns: backend::MAX_INSNS,
        counter: None,
        perfmap: None,
    }
}

fn jit_settings(jit: &JitConfig, host_cpus: u32) -> Settings {
    let alone = host_cpus < 2;
    let tier1 = jit.tier1.unwrap_or(jit.threshold != Some(0)) && backend::has_tier1();
    let threshold = jit.threshold.unwrap_or(match (tier1, alone) {
        (true, _) => THRESHOLD,
        (false, false) => THRESHOLD_REGIONS,
        (false, true) => THRESHOLD_ALONE,
    });
    Settings {
        jit: true,
        threshold,
        tier1,
        hot: jit.hot.unwrap_or(if tier1 { HOT } else { 0 }),
        single_block_regions: jit.region == RegionKind::Block,
        // Ours ends before the last number, the engine's with it; an empty range compiles nothing.
        bisect: jit.bisect.as_ref().map(|r| if r.is_empty() { (1, 0) } else { (r.start, r.end - 1) }),
        background: threshold > 0 && !alone,
        max_insns: backend::MAX_INSNS,
        counter: None,
        perfmap: None,
    }
}

/// The machine's engines.
pub struct Engines {
    /// Each CPU at power-on.
    pub cpus: Vec<Engine>,
    pub frontend: Arc<X86>,
    /// Rate of the guest's TSC.
    pub tsc_khz: u64,
    pub kvm: Option<(Arc<Vm>, Arc<Shared>)>,
    /// Of each CPU, where KVM has the local APICs.
    pub ports: Vec<CpuPort>,
}

/// What runs the CPUs of a machine, which is said.
pub fn make_all(
    cpu: &CpuConfig,
    choice: Choice,
    signals: &[Arc<VcpuSignals>],
    control: &Control,
) -> Result<Engines, EngineError> {
    let Some(Native { vm, next }) = choice.kvm else {
        return build(cpu, choice.settings, signals, None);
    };
    let shared = Shared::new(vm.clone(), next.is_some(), control.clone());
    match (build(cpu, choice.settings.clone(), signals, Some((vm, shared))), next) {
        (Err(EngineError::Kvm(e)), Some(name)) => {
            no_kvm(name, &e);
            build(cpu, choice.settings, signals, None)
        }
        (outcome, _) => outcome.inspect(|_| say!("KVM runs the guest")),
    }
}

/// Each CPU at power-on and its engine, which translates.
pub fn make(cpu: &CpuConfig, settings: Settings, signals: &[Arc<VcpuSignals>]) -> Result<(Vec<Engine>, Arc<X86>), EngineError> {
    build(cpu, settings, signals, None).map(|e| (e.cpus, e.frontend))
}

fn build(
    cpu: &CpuConfig,
    settings: Settings,
    signals: &[Arc<VcpuSignals>],
    kvm: Option<(Arc<Vm>, Arc<Shared>)>,
) -> Result<Engines, EngineError> {
    let tweaks: Vec<_> = cpu.features.iter().map(|(name, on)| (*on, (*name).to_owned())).collect();
    let mut configured = models::configure(cpu.model, &tweaks).map_err(EngineError::Cpu)?;
    configured.topology = cpu.topology;
    if cpu.host && kvm.is_none() {
        return Err(EngineError::Cpu("host is for KVM, which does not run here; use -cpu max".into()));
    }
    let mut lost = Vec::new();
    if let Some((vm, _)) = &kvm {
        vm.show_host(cpu.host);
        paravirtual(&mut configured, &cpu.features, vm.features()[Word::KvmEax as usize]);
        lost = mask(&mut configured, &vm.features());
    }
    let frontend = Arc::new(X86::new(configured.features).with_peers(signals.len() > 1));
    let helpers: Arc<[_]> = frontend_x86::helpers::table::<VcpuBlock<CpuState>>().into();
    let peers = Peers::new(signals);
    let (mut cpus, mut kicks): (Vec<Engine>, Vec<Kick>) = Default::default();
    let (mut tsc_khz, mut ports) = (TSC_KHZ, Vec::new());
    for n in 0..signals.len() {
        let state = CpuState::new(&configured, cpu.topology.apic_id(n as u32));
        let (frontend, helpers, settings, member) = (frontend.clone(), helpers.clone(), settings.clone(), peers.member(n));
        let make = move |state| {
            let engine = backend::Engine::new(frontend, state, helpers, settings, member)?;
            let kick = engine.kick();
            Ok::<(Engine, Kick), EngineError>((Box::new(engine), kick))
        };
        match &kvm {
            None => {
                let (engine, kick) = make(state)?;
                kicks.push(kick);
                cpus.push(engine);
            }
            Some((vm, shared)) => {
                let native = KvmCpu::new(vm, n as u32, state.clone())?;
                if vm.kernel_lapic() {
                    ports.push(native.port()?);
                }
                tsc_khz = native.tsc_khz().map_or(TSC_KHZ, u64::from);
                let (kick_native, made) = (native.kick(), Arc::<OnceLock<Kick>>::default());
                let kick_jit = made.clone();
                kicks.push(Box::new(move || {
                    kick_native();
                    kick_jit.get().into_iter().for_each(|k| k());
                }));
                let later = move || {
                    let (engine, kick) = make(state)?;
                    made.get_or_init(|| kick);
                    Ok(engine)
                };
                cpus.push(Box::new(Switch::new(native, later, shared)));
            }
        }
    }
    // Not where one was refused: then all are made once more, in another way.
    signals.iter().zip(kicks).for_each(|(s, kick)| s.set_kick(kick));
    for feature in &configured.dropped {
        say!("warning: TCG doesn't support requested feature: {feature}");
    }
    if cpu.model != "max" && !lost.is_empty() {
        say!("warning: KVM doesn't support requested features: {}", lost.join(", "));
    }
    Ok(Engines { cpus, frontend, tsc_khz, kvm, ports })
}

/// Adds what guests of KVM's see of it, as far as it is `there`, but for what `tweaks` takes away.
fn paravirtual(configured: &mut CpuConfigured, tweaks: &[(&'static str, bool)], there: u32) {
    let hypervisor = configured.features[Word::L1Ecx as usize] >> 31 == 1;
    for f in features::FEATURES.iter().filter(|f| f.word == Word::KvmEax && there >> f.bit & 1 == 1) {
        let off = tweaks.iter().any(|(name, on)| !on && features::find(name).is_some_and(|t| t.name == f.name));
        if hypervisor && !off {
            configured.features[f.word as usize] |= 1 << f.bit;
        }
    }
}

/// Leaves off what KVM does not give to guests, and names it.
fn mask(configured: &mut CpuConfigured, there: &[u32; 16]) -> Vec<&'static str> {
    const WORDS: [Word; 12] = [
        Word::L1Edx,
        Word::L1Ecx,
        Word::ExtEdx,
        Word::ExtEcx,
        Word::L7Ebx,
        Word::L7Ecx,
        Word::L7Edx,
        Word::XsaveEax,
        Word::L6Eax,
        Word::ApmEdx,
        Word::Ext8Ebx,
        Word::KvmEax,
    ];
    let mut lost = Vec::new();
    for word in WORDS {
        let w = &mut configured.features[word as usize];
        let gone = *w & !there[word as usize];
        *w &= there[word as usize];
        lost.extend((0..32).filter(|b| gone >> b & 1 == 1).filter_map(|b| features::feature_name(word, b)));
    }
    features::drop_dependents(&mut configured.features);
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::KvmConfig;
    use accel_kvm::Irqchip;
    use arch_x86::cpuid::feature;

    #[test]
    fn kvm_is_passed_over_where_instructions_are_counted() {
        let kvm = AccelConfig::Kvm(KvmConfig { self_test: true, irqchip: Irqchip::Off });
        assert!(matches!(choose(std::slice::from_ref(&kvm), true), Err(EngineError::NotTranslating(_))));
        let c = choose(&[kvm, AccelConfig::Interp], true).unwrap();
        assert!(!c.settings.jit && c.kvm.is_none());
    }

    #[test]
    fn features_that_kvm_lacks_go_with_those_that_need_them() {
        let mut c = models::configure("x86-64-v3", &[]).unwrap();
        let mut there = [!0; 16];
        there[Word::L1Ecx as usize] = !(1 << 26);
        assert!(mask(&mut c, &there).contains(&"xsave"));
        let has = |(w, b): (Word, u32)| c.features[w as usize] >> b & 1 == 1;
        assert!(!has(feature::XSAVE) && !has(feature::AVX) && has(feature::LM));
    }

    #[test]
    fn one_host_cpu_compiles_in_the_foreground() {
        let regions = JitConfig { tier1: Some(false), ..Default::default() };
        let (one, two) = (jit_settings(&regions, 1), jit_settings(&regions, 2));
        assert_eq!((one.background, one.threshold), (false, THRESHOLD_ALONE));
        assert_eq!((two.background, two.threshold), (true, THRESHOLD_REGIONS));
        let zero = jit_settings(&JitConfig { threshold: Some(0), bisect: Some(3..7), ..Default::default() }, 2);
        assert_eq!((zero.background, zero.threshold, zero.bisect), (false, 0, Some((3, 6))));
        assert!(!zero.tier1 && zero.hot == 0, "all at first sight means regions");
        assert_eq!(jit_settings(&JitConfig::default(), 2).tier1, backend::has_tier1());
    }
}
