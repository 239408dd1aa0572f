//! Consoles, the balloon and shared folders: `-device virtio-serial-pci`, `virtconsole`, `virtserialport`, `virtio-balloon-pci`,
//! `virtio-9p-pci`, and the same in memory (`virtio-serial-device`, …); `-fsdev`, `-virtfs`.

use super::config::{Config, DeviceSpec, MachineKind, SerialPort, ShareConfig};
use super::drive::{pci_and, slot};
use super::error::{Hint, OptionError, Quoted};
use super::schema::{Kind, PropSpec, need, prop};
use super::tree::{Group, KeyVal, Object, Tree, keyvals, take};
use devices::virtio::console::MAX_PORTS;
use std::path::PathBuf;
use std::time::Duration;

pub const SERIAL: &[PropSpec] =
    &pci_and::<1, 7>([prop("max_ports", Kind::Positive(MAX_PORTS as u64), "ports that it may have (31)")]);

pub const PORT: &[PropSpec] = &[
    prop("chardev", Kind::Text, "chardev it talks to; without one output is lost"),
    prop("name", Kind::Text, "name for the guest (virtio-ports/NAME)"),
    prop("nr", Kind::Number(MAX_PORTS as u64 - 1), "number; 0 is for a console (next free)"),
    prop("bus", Kind::Text, "ID.0 of a virtio-serial (the first)"),
];

pub const BALLOON: &[PropSpec] = &pci_and::<3, 9>([
    prop("deflate-on-oom", Kind::Switch, "the guest may take pages back when it has none left (off)"),
    prop("free-page-reporting", Kind::Switch, "the guest tells of pages that it does not use (off)"),
    prop(
        "guest-stats-polling-interval",
        Kind::Number(86400),
        "seconds between numbers of the guest's for info balloon (0: none)",
    ),
]);

pub const P9: &[PropSpec] =
    &pci_and::<2, 8>([need("fsdev", Kind::Text, "id of an -fsdev"), need("mount_tag", Kind::Text, "name for the guest's mount")]);

const MODELS: &[&str] = &["none", "passthrough", "mapped", "mapped-xattr", "mapped-file"];

pub const LOCAL: &[PropSpec] = &[
    need("path", Kind::Text, "folder"),
    prop("security_model", Kind::Word(MODELS), "none: owners are set where the host allows it; passthrough: or it is an error"),
    prop("readonly", Kind::Switch, "the guest cannot write (off)"),
    prop("multidevs", Kind::Word(&["remap", "warn"]), "accepted, file numbers are always unique"),
];

/// `-fsdev`.
pub fn fsdev(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = keyvals(value, Some("fsdriver"));
    let driver = take(&mut kvs, "fsdriver").ok_or(OptionError::MissingProperty(origin.into(), "fsdriver"))?;
    let o = Object::new(Group::Fsdev, &driver, kvs, origin)?;
    if o.id.is_none() {
        return Err(OptionError::MissingProperty(origin.into(), "id"));
    }
    tree.push(o);
    Ok(())
}

/// `-virtfs`: the folder and its device.
pub fn virtfs(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = keyvals(value, Some("fsdriver"));
    let driver = take(&mut kvs, "fsdriver").ok_or(OptionError::MissingProperty(origin.into(), "fsdriver"))?;
    let tag = take(&mut kvs, "mount_tag").ok_or(OptionError::MissingProperty(origin.into(), "mount_tag"))?;
    let mut o = Object::new(Group::Fsdev, &driver, kvs, origin)?;
    let id = o.id.clone().unwrap_or_else(|| format!("virtfs{}", tree.all(Group::Fsdev).count()));
    o.id = Some(id.clone());
    tree.push(o);
    let kvs = vec![KeyVal::new("fsdev", &id), KeyVal::new("mount_tag", &tag)];
    tree.push(Object::new(Group::Device, "virtio-9p-pci", kvs, origin)?);
    Ok(())
}

/// All folders.
pub fn shares(tree: &Tree) -> Result<Vec<ShareConfig>, OptionError> {
    let mut list: Vec<ShareConfig> = Vec::new();
    for o in tree.all(Group::Fsdev) {
        let id = o.id.clone().unwrap_or_default();
        if list.iter().any(|s| s.id == id) {
            return Err(OptionError::BadValue(o.origin.clone(), id.as_str().into(), "another fsdev has this id".into()));
        }
        let passthrough = match o.text("security_model") {
            Some("none") => false,
            Some("passthrough") => true,
            Some(other) => {
                let what = format!("{} security_model={other}", o.origin);
                return Err(OptionError::NotBuilt(what, "'none' and 'passthrough' are there".into()));
            }
            None => return Err(OptionError::MissingProperty(o.origin.clone(), "security_model")),
        };
        let path = PathBuf::from(o.text("path").unwrap_or_default());
        list.push(ShareConfig { id, path, read_only: o.switch("readonly") == Some(true), passthrough });
    }
    Ok(list)
}

/// A device's name, less the bus that it is for.
fn kind(o: &Object) -> &str {
    let name = o.driver;
    name.strip_suffix("-pci").or(name.strip_suffix("-device")).unwrap_or(name)
}

/// The devices that have ports.
fn serials(tree: &Tree) -> impl Iterator<Item = &Object> {
    tree.all(Group::Device).filter(|d| kind(d) == "virtio-serial")
}

/// A device of these, or `None` if it is something else.
pub fn device(tree: &Tree, o: &Object) -> Result<Option<DeviceSpec>, OptionError> {
    Ok(Some(match kind(o) {
        "virtio-serial" => {
            let max_ports = o.number("max_ports").map_or(MAX_PORTS, |n| n as u32);
            DeviceSpec::VirtioSerial { max_ports, ports: ports(tree, o, max_ports)?, slot: slot(o)? }
        }
        "virtio-balloon" => {
            if tree.all(Group::Device).filter(|d| kind(d) == kind(o)).count() > 1 {
                return Err(OptionError::Conflict(format!("{}: there can be one balloon only", o.origin)));
            }
            let on = |name| o.switch(name) == Some(true);
            let seconds = o.number("guest-stats-polling-interval").filter(|n| *n > 0);
            DeviceSpec::VirtioBalloon {
                deflate_on_oom: on("deflate-on-oom"),
                reporting: on("free-page-reporting"),
                stats: seconds.map(Duration::from_secs),
                slot: slot(o)?,
            }
        }
        "virtio-9p" => {
            let text = |name| o.text(name).unwrap_or_default().to_owned();
            let (share, tag) = (text("fsdev"), text("mount_tag"));
            if tag.is_empty() || tag.len() > 255 {
                let why = "1 to 255 bytes".to_owned();
                return Err(OptionError::BadValue(format!("{}: mount_tag", o.origin), tag.as_str().into(), why));
            }
            DeviceSpec::Virtio9p { share, tag, slot: slot(o)? }
        }
        _ => return Ok(None),
    }))
}

fn is_port(o: &Object) -> bool {
    matches!(o.driver, "virtconsole" | "virtserialport")
}

/// Whether a port belongs to a device: the one that it names, else the first.
fn belongs(tree: &Tree, port: &Object, device: &Object) -> bool {
    match port.text("bus") {
        Some(bus) => device.id.as_deref() == Some(bus.strip_suffix(".0").unwrap_or(bus)),
        None => serials(tree).next() == Some(device),
    }
}

/// The ports of a device with their numbers.
fn ports(tree: &Tree, device: &Object, max_ports: u32) -> Result<Vec<SerialPort>, OptionError> {
    let mut list: Vec<SerialPort> = Vec::new();
    let objects = || tree.all(Group::Device).filter(|o| is_port(o) && belongs(tree, o, device));
    let fixed: Vec<u32> = objects().filter_map(|o| o.number("nr").map(|n| n as u32)).collect();
    for o in objects() {
        let console = o.driver == "virtconsole";
        let free = |list: &[SerialPort]| {
            let first = u32::from(!console);
            (first..max_ports).find(|n| !fixed.contains(n) && list.iter().all(|p| p.nr != *n))
        };
        let nr = match o.number("nr").map(|n| n as u32) {
            Some(0) if !console => {
                let what = format!("{}: port 0 is for a console", o.origin);
                return Err(OptionError::Conflict(what));
            }
            Some(n) if list.iter().any(|p| p.nr == n) => {
                return Err(OptionError::Conflict(format!("{}: port {n} is taken", o.origin)));
            }
            Some(n) if n >= max_ports => {
                let why = format!("less than max_ports={max_ports}");
                return Err(OptionError::BadValue(format!("{}: nr", o.origin), n.to_string().as_str().into(), why));
            }
            Some(n) => n,
            None => free(&list).ok_or_else(|| OptionError::Conflict(format!("{}: no port is free", o.origin)))?,
        };
        let text = |name| o.text(name).filter(|t| !t.is_empty()).map(str::to_owned);
        list.push(SerialPort { nr, console, name: text("name").unwrap_or_default(), chardev: text("chardev") });
    }
    Ok(list)
}

/// Every port has a device, every device its folder.
pub fn check(tree: &Tree, c: &Config) -> Result<(), OptionError> {
    for o in tree.all(Group::Device).filter(|o| is_port(o)) {
        match o.text("bus") {
            None if serials(tree).next().is_none() => {
                let name = if c.machine.kind == MachineKind::Microvm { "virtio-serial-device" } else { "virtio-serial-pci" };
                return Err(OptionError::Conflict(format!("{}: there is no {name}; add -device {name}", o.origin)));
            }
            Some(bus) if !serials(tree).any(|d| belongs(tree, o, d)) => {
                let known: Vec<_> = serials(tree).filter_map(|d| Some(format!("{}.0", d.id.as_ref()?))).collect();
                let hint = Hint::for_word(bus, known.iter().map(String::as_str));
                return Err(OptionError::UnknownValue(format!("{}: bus", o.origin), bus.into(), hint));
            }
            _ => {}
        }
    }
    for o in tree.all(Group::Device).filter(|o| kind(o) == "virtio-9p") {
        let id = o.text("fsdev").unwrap_or_default();
        if !c.shares.iter().any(|s| s.id == id) {
            let hint = Hint::for_word(id, c.shares.iter().map(|s| s.id.as_str()));
            return Err(OptionError::UnknownValue(format!("{}: fsdev", o.origin), id.into(), hint));
        }
        if tree.all(Group::Device).filter(|d| d.text("fsdev") == Some(id)).count() > 1 {
            return Err(OptionError::Conflict(format!("{}: fsdev {} has another user", o.origin, Quoted::from(id))));
        }
    }
    Ok(())
}
