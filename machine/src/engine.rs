//! Chooses and makes the CPU engine from `-accel` and `-cpu`.

use crate::options::{AccelConfig, CpuConfig, JitConfig, RegionKind};
use crate::say;
use crate::vcpu_thread::Engine;
use arch_x86::CpuState;
use arch_x86::models;
use backend::{Peers, Settings, VcpuBlock};
use frontend_x86::X86;
use std::sync::Arc;
use vm_core::VcpuSignals;

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
    #[error("-accel kvm: KVM is not built yet; use -accel jit or -accel interp")]
    NoKvm,
    #[error("{0}")]
    Host(&'static str),
    #[error("-cpu: {0}")]
    Cpu(String),
    #[error("the host gives no memory for generated code: {0}")]
    Memory(#[from] std::io::Error),
}

/// The first engine of the list that there is.
pub fn settings(accels: &[AccelConfig]) -> Result<Settings, EngineError> {
    frontend_x86::hostfp::supported().map_err(EngineError::Host)?;
    let found = accels.iter().find_map(|a| match a {
        AccelConfig::Interp => Some(interp()),
        AccelConfig::Jit(jit) => Some(jit_settings(jit, host_cpus())),
        AccelConfig::Kvm => None,
    });
    if found.is_some() && accels.first() == Some(&AccelConfig::Kvm) {
        say!("-accel kvm: KVM is not built yet; the next -accel is used");
    }
    found.ok_or(EngineError::NoKvm)
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
        perfmap: false,
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
        perfmap: false,
    }
}

/// Each CPU at power-on and its engine.
pub fn make(cpu: &CpuConfig, settings: Settings, signals: &[Arc<VcpuSignals>]) -> Result<(Vec<Engine>, Arc<X86>), EngineError> {
    let tweaks: Vec<_> = cpu.features.iter().map(|(name, on)| (*on, (*name).to_owned())).collect();
    let mut configured = models::configure(cpu.model, &tweaks).map_err(EngineError::Cpu)?;
    configured.topology = cpu.topology;
    for feature in &configured.dropped {
        say!("warning: TCG doesn't support requested feature: {feature}");
    }
    let frontend = Arc::new(X86::new(configured.features).with_peers(signals.len() > 1));
    let helpers: Arc<[_]> = frontend_x86::helpers::table::<VcpuBlock<CpuState>>().into();
    let peers = Peers::new(signals);
    let mut engines: Vec<Engine> = Vec::new();
    for (n, signals) in signals.iter().enumerate() {
        let state = CpuState::new(&configured, cpu.topology.apic_id(n as u32));
        let engine = backend::Engine::new(frontend.clone(), state, helpers.clone(), settings.clone(), peers.member(n))?;
        signals.set_kick(engine.kick());
        engines.push(Box::new(engine));
    }
    Ok((engines, frontend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_alone_is_refused_and_passed_over_in_a_list() {
        assert!(matches!(settings(&[AccelConfig::Kvm]), Err(EngineError::NoKvm)));
        assert!(!settings(&[AccelConfig::Kvm, AccelConfig::Interp]).unwrap().jit);
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
