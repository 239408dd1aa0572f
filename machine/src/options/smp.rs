//! `-smp`: what is not said follows from the rest, as in QEMU (cores are preferred over sockets).

use super::error::OptionError;
use super::tree::{Group, Tree};
use arch_x86::Topology;

/// CPUs of a machine at most.
const MAX: u64 = backend::MAX_CPUS as u64;

/// The machine's CPUs; one if `-smp` is not given.
pub fn topology(tree: &Tree) -> Result<Topology, OptionError> {
    let Some(o) = tree.one(Group::Smp) else { return Ok(Topology::SINGLE) };
    let conflict = |text: String| Err(OptionError::Conflict(format!("{}: {text}", o.origin)));
    let given = |name| o.number(name);
    if let Some(name) = ["cpus", "maxcpus", "sockets", "dies", "cores", "threads"].into_iter().find(|n| given(n) == Some(0)) {
        return conflict(format!("{name}=0: must be at least 1"));
    }
    if let Some(dies) = given("dies").filter(|d| *d != 1) {
        return conflict(format!("dies={dies}: a socket has one die; use cores"));
    }
    let known = given("maxcpus").or(given("cpus"));
    let (mut sockets, mut cores, mut threads) = (given("sockets"), given("cores"), given("threads"));
    if let Some(all) = known {
        if cores.is_none() {
            cores = Some(all / (sockets.unwrap_or(1) * threads.unwrap_or(1)));
        } else if sockets.is_none() {
            sockets = Some(all / (cores.unwrap_or(1) * threads.unwrap_or(1)));
        } else if threads.is_none() {
            threads = Some(all / (sockets.unwrap_or(1) * cores.unwrap_or(1)));
        }
    }
    let [sockets, cores, threads] = [sockets, cores, threads].map(|n| n.unwrap_or(1));
    let product = sockets.saturating_mul(cores).saturating_mul(threads);
    let max = known.unwrap_or(product);
    let cpus = given("cpus").unwrap_or(max);
    if product != max {
        return conflict(format!("sockets ({sockets}) * cores ({cores}) * threads ({threads}) are not {max} CPUs"));
    }
    if cpus > max {
        return conflict(format!("maxcpus={max} is less than cpus={cpus}"));
    }
    if cpus < max {
        return Err(OptionError::NotBuilt(
            format!("{} maxcpus={max}", o.origin),
            format!("CPUs cannot be added later; use cpus={max}"),
        ));
    }
    if cpus > MAX {
        return conflict(format!("{cpus} CPUs: a machine has at most {MAX}"));
    }
    let t = Topology { sockets: sockets as u32, cores: cores as u32, threads: threads as u32 };
    match t.apic_id(t.cpus() - 1) {
        0..255 => Ok(t),
        id => conflict(format!("APIC id {id} of the last CPU is beyond 254; use powers of two")),
    }
}
