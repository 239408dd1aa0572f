//! From options to the tree: each option makes objects; short forms expand into the same objects as long ones.

use super::chardev;
use super::drive;
use super::error::{Hint, OptionError, Quoted};
use super::ide;
use super::net;
use super::schema;
use super::tree::{Group, KeyVal, Object, Tree, Value, keyvals, split_commas, take};
use super::virtio;

/// Adds what one option means to the tree. `value` is empty for options without one.
pub fn expand(tree: &mut Tree, name: &'static str, value: &str) -> Result<(), OptionError> {
    let origin = format!("-{name}");
    match name {
        "machine" => machine(tree, value, &origin),
        "accel" => accel(tree, keyvals(value, Some("accel")), &origin),
        "enable-kvm" => accel(tree, vec![KeyVal::new("accel", "kvm")], &origin),
        "cpu" => cpu(tree, value, &origin),
        "m" => single(tree, Group::Memory, "memory", keyvals(value, Some("size")), &origin),
        "smp" => single(tree, Group::Smp, "smp", keyvals(value, Some("cpus")), &origin),
        "boot" => single(tree, Group::Boot, "boot", keyvals(value, Some("order")), &origin),
        "icount" => single(tree, Group::Icount, "icount", keyvals(value, Some("shift")), &origin),
        "rtc" => single(tree, Group::Rtc, "rtc", keyvals(value, None), &origin),
        "name" => process(tree, keyvals(value, Some("guest")), &origin),
        "no-acpi" => machine_switch(tree, "acpi", &origin),
        "no-hpet" => machine_switch(tree, "hpet", &origin),
        "kernel" => single(tree, Group::Kernel, "kernel", vec![KeyVal::new("file", value)], &origin),
        "initrd" | "append" | "bios" => single(tree, Group::Kernel, "kernel", vec![KeyVal::new(name, value)], &origin),
        "serial" => chardev::serial(tree, value, &origin),
        "monitor" => chardev::monitor(tree, value, &origin),
        "qmp" => chardev::qmp(tree, value, false, &origin),
        "qmp-pretty" => chardev::qmp(tree, value, true, &origin),
        "trace" => single(tree, Group::Trace, "trace", keyvals(value, Some("file")), &origin),
        "gdb" => chardev::gdb(tree, value, &origin),
        "s" => chardev::gdb(tree, "tcp::1234", &origin),
        "debugcon" => chardev::debugcon(tree, value, &origin),
        "chardev" => chardev::chardev(tree, value, &origin),
        "mon" => object(tree, Group::Monitor, "mon", keyvals(value, Some("chardev")), &origin),
        "device" => device(tree, value, &origin),
        "drive" => drive::drive(tree, value, &origin),
        "blockdev" => drive::blockdev(tree, value, &origin),
        "hda" | "hdb" | "hdc" | "hdd" | "cdrom" => ide::short(tree, name, value, &origin),
        "snapshot" => process(tree, vec![KeyVal::new("snapshot", "on")], &origin),
        "display" if value != "none" => absent(&origin, value),
        "display" => process(tree, vec![KeyVal::new("display", value)], &origin),
        "vga" if value == "none" => machine_switch(tree, "vga", &origin),
        "vga" if value == "std" => Ok(()),
        "vga" => Err(OptionError::NotBuilt(format!("{origin} {}", Quoted::from(value)), "'std' and 'none' are there".into())),
        "netdev" => net::netdev(tree, value, &origin),
        "nic" => net::nic(tree, value, &origin),
        "net" if value == "none" => net::nic(tree, value, &origin),
        "net" => {
            Err(OptionError::NotBuilt(format!("{origin} {}", Quoted::from(value)), "use -nic, or -netdev and -device".into()))
        }
        "fsdev" => virtio::fsdev(tree, value, &origin),
        "virtfs" => virtio::virtfs(tree, value, &origin),
        "object" => net::object(tree, value, &origin),
        "parallel" => {
            if matches!(value, "none" | "null") {
                Ok(())
            } else {
                absent(&origin, value)
            }
        }
        "nographic" => process(tree, vec![KeyVal::new("graphic", "off")], &origin),
        "nodefaults" => process(tree, vec![KeyVal::new("defaults", "off")], &origin),
        "S" => process(tree, vec![KeyVal::new("paused", "on")], &origin),
        "perfmap" => process(tree, vec![KeyVal::new("perfmap", "on")], &origin),
        "no-reboot" => process(tree, vec![KeyVal::new("reboot", "off")], &origin),
        "no-shutdown" => process(tree, vec![KeyVal::new("shutdown", "off")], &origin),
        "loadvm" | "incoming" => process(tree, vec![KeyVal::new(name, value)], &origin),
        "pidfile" => process(tree, vec![KeyVal::new("pidfile", value)], &origin),
        "d" => log(tree, "items", value, &origin),
        "D" => log(tree, "file", value, &origin),
        "dfilter" => log(tree, "filter", value, &origin),
        // no-user-config: there is no such file to leave out.
        _ => Ok(()),
    }
}

fn absent(origin: &str, value: &str) -> Result<(), OptionError> {
    Err(OptionError::NotBuilt(format!("{origin} {}", Quoted::from(value)), "only 'none' is there".into()))
}

fn single(tree: &mut Tree, group: Group, driver: &str, kvs: Vec<KeyVal>, origin: &str) -> Result<(), OptionError> {
    tree.merge(Object::new(group, driver, kvs, origin)?);
    Ok(())
}

fn object(tree: &mut Tree, group: Group, driver: &str, kvs: Vec<KeyVal>, origin: &str) -> Result<(), OptionError> {
    tree.push(Object::new(group, driver, kvs, origin)?);
    Ok(())
}

pub fn process(tree: &mut Tree, kvs: Vec<KeyVal>, origin: &str) -> Result<(), OptionError> {
    single(tree, Group::Process, "process", kvs, origin)
}

fn machine(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = keyvals(value, Some("type"));
    if let Some(engines) = take(&mut kvs, "accel") {
        for e in engines.split(':') {
            accel(tree, vec![KeyVal::new("accel", e)], "-machine accel")?;
        }
    }
    let set = tree.one(Group::Machine).map_or("pc", |o| o.driver);
    let driver = take(&mut kvs, "type").unwrap_or_else(|| set.to_owned());
    single(tree, Group::Machine, &driver, kvs, origin)
}

fn machine_switch(tree: &mut Tree, prop: &str, origin: &str) -> Result<(), OptionError> {
    let set = tree.one(Group::Machine).map_or("pc", |o| o.driver);
    single(tree, Group::Machine, set, vec![KeyVal::new(prop, "off")], origin)
}

fn accel(tree: &mut Tree, mut kvs: Vec<KeyVal>, origin: &str) -> Result<(), OptionError> {
    let engines = take(&mut kvs, "accel").ok_or(OptionError::MissingProperty(origin.into(), "accel"))?;
    for name in engines.split(':') {
        object(tree, Group::Accel, name, kvs.clone(), origin)?;
    }
    Ok(())
}

/// `MODEL,+a,-b,c=on`: the last `-cpu` counts alone.
fn cpu(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut parts = split_commas(value).into_iter();
    let model = parts.next().unwrap_or_default();
    let kvs = parts.filter(|p| !p.is_empty()).map(|p| match (p.strip_prefix('+'), p.strip_prefix('-')) {
        (Some(f), _) => KeyVal::new(f, "on"),
        (_, Some(f)) => KeyVal::new(f, "off"),
        _ => match p.split_once('=') {
            Some((k, v)) => KeyVal::new(k, v),
            None => KeyVal { key: p, value: None },
        },
    });
    let o = Object::new(Group::Cpu, &model, kvs.collect(), origin)?;
    tree.objects.retain(|x| x.group != Group::Cpu);
    tree.push(o);
    Ok(())
}

fn device(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = keyvals(value, Some("driver"));
    let driver = take(&mut kvs, "driver").ok_or(OptionError::MissingProperty(origin.into(), "driver"))?;
    let origin = match schema::driver(Group::Device, &driver, origin) {
        Ok(spec) => format!("{origin} {}", spec.name),
        Err(e) => return Err(e),
    };
    object(tree, Group::Device, &driver, kvs, &origin)
}

/// `-d`, `-D`, `-dfilter`: lists add up, the file is the last one given.
fn log(tree: &mut Tree, prop: &'static str, value: &str, origin: &str) -> Result<(), OptionError> {
    match prop {
        "items" => check_items(value, origin)?,
        "filter" => check_filter(value, origin)?,
        _ => {}
    }
    let old = tree.one(Group::Log).and_then(|o| o.text(prop)).filter(|_| prop != "file");
    let value = old.map_or_else(|| value.to_owned(), |old| format!("{old},{value}"));
    let mut o = Object::new(Group::Log, "log", Vec::new(), origin)?;
    o.props.push((prop, Value::Text(value)));
    tree.merge(o);
    Ok(())
}

fn check_items(value: &str, origin: &str) -> Result<(), OptionError> {
    let known = || vm_core::log::ITEMS.iter().map(|i| i.0);
    match value.split(',').find(|w| *w != "all" && !w.starts_with(super::icount::EVERY) && !known().any(|k| k == *w)) {
        Some(w) => Err(OptionError::UnknownValue(origin.into(), w.into(), Hint::with_help(w, known(), "-d help"))),
        None => Ok(()),
    }
}

fn check_filter(value: &str, origin: &str) -> Result<(), OptionError> {
    for r in value.split(',') {
        super::value::address_range(r).map_err(|why| OptionError::BadValue(origin.into(), r.into(), why))?;
    }
    Ok(())
}
