//! From the tree to `Config`: defaults, and what must hold between options.

use super::chardev;
use super::config::*;
use super::drive;
use super::error::{Hint, OptionError, Quoted};
use super::icount;
use super::ide;
use super::micro;
use super::net;
use super::smp;
use super::tree::{Group, Object, Tree, Value};
use super::value;
use super::virtio;
use crate::state::path_of;
use accel_kvm::Irqchip;
use std::path::PathBuf;
use std::time::Duration;
use vm_core::addr::PAGE_SIZE;
use vm_core::log::{ITEMS, Item};

/// QEMU's default, and what `-m` is without one.
const DEFAULT_MEM: u64 = 128 << 20;
/// Physical addresses have at most 52 bits (SDM 3A, paging); half of that space is left to devices.
const MAX_MEM: u64 = 1 << 51;
const MIN_MEM: u64 = 1 << 20;

/// Checks the tree as a whole and builds the configuration.
pub fn build(tree: &Tree) -> Result<Config, OptionError> {
    let process = tree.one(Group::Process);
    let off = |name| process.and_then(|p| p.switch(name)) == Some(false);
    let kernel = tree.one(Group::Kernel);
    let path = |name| kernel.and_then(|k| k.text(name)).filter(|s| !s.is_empty()).map(PathBuf::from);
    let mut config = Config {
        machine: machine(tree),
        accel: accels(tree)?,
        cpu: cpu(tree)?,
        mem_bytes: memory(tree)?,
        bios: kernel.and_then(|k| k.text("bios")).filter(|s| !s.is_empty()).map(Into::into),
        boot: boot(tree)?,
        nographic: chardev::terminal(tree),
        kernel: path("file"),
        initrd: path("initrd"),
        append: kernel.and_then(|k| k.text("append")).unwrap_or_default().to_owned(),
        serials: serials(tree)?,
        monitors: monitors(tree, false).map(|(chardev, _)| chardev).collect(),
        qmp: monitors(tree, true).map(|(chardev, pretty)| QmpConfig { chardev, pretty }).collect(),
        gdb: gdb(tree),
        chardevs: chardevs(tree)?,
        devices: devices(tree, machine(tree).kind)?,
        drives: drive::build(tree)?,
        netdevs: net::build(tree)?,
        dumps: net::dumps(tree),
        shares: virtio::shares(tree)?,
        rtc: rtc(tree)?,
        icount: icount::icount(tree)?,
        log: log(tree)?,
        trace: tree.one(Group::Trace).map(trace),
        name: process.and_then(|p| p.text("guest")).map(Into::into),
        pidfile: process.and_then(|p| p.text("pidfile")).map(Into::into),
        perfmap: process.and_then(|p| p.switch("perfmap")) == Some(true),
        no_reboot: off("reboot"),
        no_shutdown: off("shutdown"),
        loadvm: process.and_then(|p| p.text("loadvm")).map(Into::into),
        incoming: process.and_then(|p| p.text("incoming")).map(incoming).transpose()?,
        start_paused: process.and_then(|p| p.switch("paused")) == Some(true),
    };
    drive::adopt(tree, &mut config.drives);
    drive::check(tree, &config)?;
    net::check(tree, &config)?;
    virtio::check(tree, &config)?;
    check_kernel(&config)?;
    icount::check(&config)?;
    if config.loadvm.is_some() && config.incoming.is_some() {
        return Err(OptionError::Conflict("-loadvm and -incoming: the machine starts from one file".into()));
    }
    check_users(tree, &config)?;
    Ok(config)
}

/// Chardevs of the monitors for people, or of those for programs; and whether they are to be pretty.
fn monitors(tree: &Tree, control: bool) -> impl Iterator<Item = (ChardevId, bool)> {
    let of_mode = move |o: &&Object| (o.text("mode") == Some("control")) == control;
    let parts = |o: &Object| Some((o.text("chardev").filter(|c| !c.is_empty())?.to_owned(), o.switch("pretty") == Some(true)));
    tree.all(Group::Monitor).filter(of_mode).filter_map(parts)
}

fn incoming(uri: &str) -> Result<Incoming, OptionError> {
    match uri {
        "defer" => Ok(Incoming::Later),
        _ => path_of(uri).map(Incoming::File).map_err(|why| OptionError::BadValue("-incoming".into(), uri.into(), why)),
    }
}

fn bad(o: &Object, value: &str, why: impl Into<String>) -> OptionError {
    OptionError::BadValue(o.origin.clone(), value.into(), why.into())
}

fn machine(tree: &Tree) -> MachineConfig {
    let o = tree.one(Group::Machine);
    let on = |name| o.and_then(|o| o.switch(name)).unwrap_or(true);
    let kind = match o.map(|o| o.driver) {
        Some("q35") => MachineKind::Q35,
        Some("microvm") => MachineKind::Microvm,
        _ => MachineKind::Pc,
    };
    let pc = kind != MachineKind::Microvm;
    let kernel_args = on("auto-kernel-cmdline");
    MachineConfig { kind, acpi: on("acpi"), hpet: pc && on("hpet"), vga: pc && on("vga"), kernel_args }
}

fn accels(tree: &Tree) -> Result<Vec<AccelConfig>, OptionError> {
    let mut list: Vec<AccelConfig> = tree.all(Group::Accel).map(accel).collect::<Result<_, _>>()?;
    if list.is_empty() {
        list.push(AccelConfig::Kvm(KvmConfig { self_test: true, irqchip: Irqchip::Off }));
        list.push(AccelConfig::Jit(JitConfig::default()));
    }
    Ok(list)
}

fn accel(o: &Object) -> Result<AccelConfig, OptionError> {
    if o.driver != "jit" {
        let irqchip = match o.text("kernel-irqchip") {
            Some("split") => Irqchip::Split,
            Some("on") => Irqchip::On,
            _ => Irqchip::Off,
        };
        let kvm = || AccelConfig::Kvm(KvmConfig { self_test: o.switch("self-test").unwrap_or(true), irqchip });
        return Ok(if o.driver == "kvm" { kvm() } else { AccelConfig::Interp });
    }
    let runs = |name| o.number(name).map(u32::try_from).transpose().map_err(|_| bad(o, name, "too large"));
    let (threshold, hot, tier1) = (runs("threshold")?, runs("hot")?, o.switch("tier1"));
    let region = match o.text("region") {
        Some("block") => RegionKind::Block,
        Some("loop") => RegionKind::Loop,
        _ => RegionKind::Auto,
    };
    let bisect = match o.get("bisect") {
        Some(Value::Span(r)) => Some(r.clone()),
        _ => None,
    };
    Ok(AccelConfig::Jit(JitConfig { threshold, tier1, hot, region, bisect }))
}

fn cpu(tree: &Tree) -> Result<CpuConfig, OptionError> {
    let o = tree.one(Group::Cpu);
    let model = o.map_or(arch_x86::models::MODELS[0].name, |o| o.driver);
    let host = model == "host";
    let model = if host { "max" } else { model };
    let features = o.into_iter().flat_map(|o| o.props.iter().filter_map(|(n, _)| Some((*n, o.switch(n)?)))).collect();
    Ok(CpuConfig { model, host, features, topology: smp::topology(tree)? })
}

fn memory(tree: &Tree) -> Result<u64, OptionError> {
    let Some(o) = tree.one(Group::Memory) else { return Ok(DEFAULT_MEM) };
    let bytes = o.number("size").unwrap_or(DEFAULT_MEM);
    match bytes.checked_next_multiple_of(PAGE_SIZE) {
        Some(b) if (MIN_MEM..=MAX_MEM).contains(&b) => Ok(b),
        Some(b) if b < MIN_MEM => Err(bad(o, &format!("{bytes} bytes"), "less than 1M")),
        _ => Err(bad(o, &format!("{bytes} bytes"), "more than a PC can address (2048T)")),
    }
}

fn serials(tree: &Tree) -> Result<[Option<ChardevId>; 4], OptionError> {
    let mut ports: [Option<Option<ChardevId>>; 4] = Default::default();
    for o in tree.all(Group::Device).filter(|o| o.driver == "isa-serial") {
        let wanted = o.number("index").map(|i| i as usize);
        let free = wanted.or_else(|| ports.iter().position(Option::is_none));
        match free.and_then(|i| ports.get_mut(i)) {
            Some(p @ None) => *p = Some(o.text("chardev").filter(|c| !c.is_empty()).map(Into::into)),
            Some(_) => return Err(OptionError::Conflict(format!("{}: that serial port is already there", o.origin))),
            None => return Err(OptionError::Conflict(format!("{}: there are only 4 serial ports", o.origin))),
        }
    }
    Ok(ports.map(Option::flatten))
}

pub fn chardevs(tree: &Tree) -> Result<Vec<Chardev>, OptionError> {
    let mut list: Vec<Chardev> = Vec::new();
    for o in tree.all(Group::Chardev) {
        let id = o.id.clone().unwrap_or_default();
        if list.iter().any(|c| c.id == id) {
            return Err(bad(o, &id, "another chardev has this id"));
        }
        if o.driver == "stdio" && list.iter().any(|c| matches!(c.backend, CharBackend::Stdio { .. })) {
            return Err(OptionError::Conflict(format!(
                "{}: stdio is already used; share it with -chardev stdio,id=ID,mux=on or mon:stdio",
                o.origin
            )));
        }
        list.push(Chardev {
            id,
            backend: backend(o)?,
            mux: o.switch("mux") == Some(true),
            logfile: o.text("logfile").map(Into::into),
            logappend: o.switch("logappend") == Some(true),
        });
    }
    Ok(list)
}

fn text_path(o: &Object, name: &str) -> Result<PathBuf, OptionError> {
    match o.text(name) {
        Some("") | None => Err(bad(o, "", "the path is empty")),
        Some(p) => Ok(PathBuf::from(p)),
    }
}

fn socket(o: &Object) -> Result<CharBackend, OptionError> {
    let on = |name| o.switch(name) == Some(true);
    let address = match o.number("port").map(u16::try_from) {
        Some(Ok(port)) => SocketAddress::Tcp { host: o.text("host").unwrap_or_default().into(), port },
        _ => SocketAddress::Unix(text_path(o, "path")?),
    };
    let seconds = o.number("reconnect").map(Duration::from_secs);
    let reconnect = o.number("reconnect-ms").map(Duration::from_millis).or(seconds).filter(|d| !d.is_zero());
    let server = on("server");
    let only = |what, who| Err(OptionError::Conflict(format!("{}: {what} is for {who}", o.origin)));
    if on("wait") && !server {
        return only("wait=on", "servers (server=on)");
    }
    if reconnect.is_some() && server {
        return only("reconnect", "clients (server=off)");
    }
    let wait = server && o.switch("wait") != Some(false);
    Ok(CharBackend::Socket { address, server, wait, nodelay: on("nodelay"), reconnect })
}

fn backend(o: &Object) -> Result<CharBackend, OptionError> {
    let on = |name| o.switch(name) == Some(true);
    Ok(match o.driver {
        "stdio" => CharBackend::Stdio { signal: o.switch("signal") != Some(false) },
        "pty" => CharBackend::Pty,
        "file" => CharBackend::File { path: text_path(o, "path")?, append: on("append") },
        "socket" => socket(o)?,
        _ => CharBackend::Null,
    })
}

fn devices(tree: &Tree, kind: MachineKind) -> Result<Vec<DeviceSpec>, OptionError> {
    let mut list = ide::build(tree, kind)?;
    for o in tree.all(Group::Device) {
        micro::check_bus(o, kind)?;
        let made = match drive::device(o)? {
            None => net::device(tree, o)?,
            some => some,
        };
        let made = match made {
            None => virtio::device(tree, o)?,
            some => some,
        };
        list.extend(made.or_else(|| device(o)));
    }
    Ok(list)
}

fn device(o: &Object) -> Option<DeviceSpec> {
    let small = |name, default: u16| o.number(name).and_then(|n| u16::try_from(n).ok()).unwrap_or(default);
    match o.driver {
        "isa-debug-exit" => Some(DeviceSpec::IsaDebugExit { iobase: small("iobase", 0x501), iosize: small("iosize", 2) as u8 }),
        "isa-debugcon" => Some(DeviceSpec::IsaDebugcon {
            iobase: small("iobase", 0xe9),
            readback: small("readback", 0xe9) as u8,
            chardev: o.text("chardev").unwrap_or_default().into(),
        }),
        _ => None,
    }
}

fn rtc(tree: &Tree) -> Result<RtcConfig, OptionError> {
    let Some(o) = tree.one(Group::Rtc) else { return Ok(RtcConfig::default()) };
    let base = match o.text("base") {
        None | Some("utc") => RtcBase::Utc,
        Some("localtime") => RtcBase::Localtime,
        Some(d) => RtcBase::Date(value::date(d).map_err(|why| bad(o, d, format!("{why}, utc or localtime")))?),
    };
    let clock = match o.text("clock") {
        Some("rt") => RtcClock::Rt,
        Some("vm") => RtcClock::Vm,
        _ => RtcClock::Host,
    };
    Ok(RtcConfig { base, clock })
}

fn trace(o: &Object) -> TraceConfig {
    let text = |name| o.text(name).unwrap_or_default();
    TraceConfig { file: text("file").into(), filter: text("filter").into(), symbols: o.text("symbols").map(Into::into) }
}

fn log(tree: &Tree) -> Result<LogConfig, OptionError> {
    let o = tree.one(Group::Log);
    let text = |name| o.and_then(|o| o.text(name));
    let mut items = Item::empty();
    for word in text("items").into_iter().flat_map(|s| s.split(',')) {
        match ITEMS.iter().find(|i| i.0 == word) {
            Some(i) => items |= i.1,
            None if word.starts_with(icount::EVERY) => {}
            // All that prints by itself; nochain changes how code runs.
            None => items |= Item::all() - Item::NOCHAIN - Item::HASH,
        }
    }
    let every = icount::hash_every(text("items").unwrap_or_default())?;
    let hash_every = items.contains(Item::HASH).then_some(every);
    let ranges = text("filter").into_iter().flat_map(|s| s.split(','));
    let filter = ranges.map(|r| value::address_range(r).map_err(|why| OptionError::BadValue("-dfilter".into(), r.into(), why)));
    Ok(LogConfig { items, file: text("file").map(Into::into), filter: filter.collect::<Result<_, _>>()?, hash_every })
}

/// The stub of `-gdb`.
pub fn gdb(tree: &Tree) -> Option<GdbConfig> {
    let o = tree.one(Group::Gdb)?;
    Some(GdbConfig { chardev: o.text("chardev")?.into(), i386: o.text("arch") == Some("i386") })
}

/// `-boot`.
fn boot(tree: &Tree) -> Result<BootConfig, OptionError> {
    let Some(o) = tree.one(Group::Boot) else { return Ok(BootConfig::default()) };
    let letters = |name| match o.text(name) {
        Some(t) if !t.chars().all(|c| ('a'..='p').contains(&c)) => {
            Err(bad(o, t, "letters a (floppy), c (disk), d (CD-ROM), n (network)"))
        }
        other => Ok(other.map(str::to_owned)),
    };
    let reboot_ms = match o.text("reboot-timeout").map(str::parse) {
        None => -1,
        Some(Ok(ms)) if (-1..=0xffff).contains(&ms) => ms,
        Some(_) => return Err(bad(o, o.text("reboot-timeout").unwrap_or_default(), "-1 to 65535 ms")),
    };
    let default = BootConfig::default();
    Ok(BootConfig {
        order: letters("order")?.unwrap_or(default.order),
        once: letters("once")?,
        menu: o.switch("menu") == Some(true),
        strict: o.switch("strict") == Some(true),
        splash_ms: o.number("splash-time").map(|n| n as u16),
        reboot_ms,
    })
}

fn check_kernel(c: &Config) -> Result<(), OptionError> {
    if c.kernel.is_some() && c.bios.is_some() {
        return Err(OptionError::Conflict("-bios and -kernel: a kernel is started without firmware".into()));
    }
    if c.kernel.is_none() && c.machine.kind == MachineKind::Microvm {
        return Err(OptionError::Conflict("-machine microvm: it has no firmware to start; use -kernel".into()));
    }
    let needs = |what: &str| Err(OptionError::Conflict(format!("-{what} is only of use with -kernel")));
    match c.kernel {
        None if c.initrd.is_some() => needs("initrd"),
        None if !c.append.is_empty() => needs("append"),
        _ => Ok(()),
    }
}

/// Every chardev that something names exists, and has one user unless it is muxed.
fn check_users(tree: &Tree, c: &Config) -> Result<(), OptionError> {
    let named = |o: &&Object| matches!(o.group, Group::Device | Group::Monitor | Group::Gdb);
    let own = || tree.objects.iter().filter(named).filter_map(|o| Some((o, o.text("chardev").filter(|id| !id.is_empty())?)));
    let users = || own().chain(tree.all(Group::Netdev).flat_map(|o| net::chardevs(o).map(move |id| (o, id))));
    for (o, id) in users() {
        let Some(dev) = c.chardev(id) else {
            let hint = Hint::for_word(id, c.chardevs.iter().map(|c| c.id.as_str()));
            return Err(OptionError::UnknownValue(format!("{}: chardev", o.origin), id.into(), hint));
        };
        if dev.mux && (o.text("mode") == Some("control") || o.group == Group::Gdb) {
            let (id, who) = (Quoted::from(id), if o.group == Group::Gdb { "gdb" } else { "QMP" });
            return Err(OptionError::Conflict(format!("{}: {who} needs a chardev of its own, and {id} has mux=on", o.origin)));
        }
        if !dev.mux && users().filter(|u| u.1 == id).count() > 1 {
            let id = Quoted::from(id);
            return Err(OptionError::Conflict(format!("{}: chardev {id} has another user; share it with mux=on", o.origin)));
        }
    }
    Ok(())
}
