//! Drives: `-drive`, `-blockdev`, `-hda` and the like, `-snapshot`, and the devices that show them to the guest.

use super::config::{CacheConfig, Config, DeviceSpec, DriveConfig, ImageFormat, OnError, PciSlot};
use super::error::{Hint, OptionError, Quoted};
use super::ide;
use super::schema::{Kind, PropSpec, need, prop};
use super::tree::{Group, KeyVal, Object, Tree, keyvals, take};
use std::path::PathBuf;

const ERROR_WRITE: &[&str] = &["ignore", "stop", "report", "enospc"];
const ERROR_READ: &[&str] = &["ignore", "stop", "report"];
const AIO: &[&str] = &["threads", "native", "io_uring"];
const DISCARD: &[&str] = &["ignore", "off", "unmap", "on"];
/// Interfaces of `-drive` that QEMU knows.
const INTERFACES: &[&str] = &["none", "virtio", "ide", "scsi", "sd", "mtd", "floppy", "pflash"];
const ON_OFF_AUTO: &[&str] = &["on", "off", "auto"];

pub const DRIVE: &[PropSpec] = &[
    prop("file", Kind::Text, "image"),
    prop("format", Kind::Word(&["raw", "qcow2"]), "its format (looked for; raw if it is none)"),
    prop("if", Kind::Word(INTERFACES), "ide: an IDE drive; virtio: a virtio disk; none: for a -device (ide)"),
    prop("media", Kind::Word(&["disk", "cdrom"]), "disk"),
    prop("index", Kind::Number(255), "place of an IDE drive, 0 to 3, of q35 to 5 (next free)"),
    prop("bus", Kind::Number(255), "the same by channel, or port of q35"),
    prop("unit", Kind::Number(255), "and by drive of a channel"),
    prop("readonly", Kind::Switch, "the guest cannot write (off)"),
    prop("read-only", Kind::Switch, "the same"),
    prop("snapshot", Kind::Switch, "what the guest writes goes to a temporary file (off)"),
    prop("cache", Kind::Word(&["writeback", "none", "writethrough", "directsync", "unsafe"]), "writeback"),
    prop("cache.writeback", Kind::Switch, "on"),
    prop("cache.direct", Kind::Switch, "off"),
    prop("cache.no-flush", Kind::Switch, "off"),
    prop("werror", Kind::Word(ERROR_WRITE), "what an error of writing does (enospc)"),
    prop("rerror", Kind::Word(ERROR_READ), "what an error of reading does (report)"),
    prop("discard", Kind::Word(DISCARD), "unmap: discards free space on the host (ignore)"),
    prop("detect-zeroes", Kind::Word(&["off"]), "accepted"),
    prop("aio", Kind::Word(AIO), "io_uring: by the kernel's rings; native: as threads (threads)"),
    prop("force-share", Kind::Switch, "only of use with readonly=on: others may write (off)"),
];

/// `-blockdev`, less its nodes of protocol: those are written as `file.driver=file,file.filename=…`.
pub const NODE: &[PropSpec] = &[
    need("node-name", Kind::Text, "name for -device"),
    prop("file", Kind::Text, "name of a node of driver file"),
    prop("file.driver", Kind::Word(&["file", "host_device"]), "file"),
    prop("file.filename", Kind::Text, "image"),
    prop("file.aio", Kind::Word(AIO), "io_uring: by the kernel's rings; native: as threads (threads)"),
    prop("file.locking", Kind::Word(ON_OFF_AUTO), "accepted when not off"),
    prop("read-only", Kind::Switch, "off"),
    prop("discard", Kind::Word(DISCARD), "unmap: discards free space on the host (ignore)"),
    prop("cache.direct", Kind::Switch, "off"),
    prop("cache.no-flush", Kind::Switch, "off"),
    prop("force-share", Kind::Switch, "off"),
];

pub const FILE_NODE: &[PropSpec] = &[
    need("node-name", Kind::Text, "name for another node"),
    need("filename", Kind::Text, "image"),
    prop("aio", Kind::Word(AIO), "io_uring: by the kernel's rings; native: as threads (threads)"),
    prop("read-only", Kind::Switch, "accepted"),
    prop("auto-read-only", Kind::Switch, "accepted"),
    prop("discard", Kind::Word(DISCARD), "accepted; that of the format's node counts"),
    prop("cache.direct", Kind::Switch, "accepted; that of the format's node counts"),
    prop("cache.no-flush", Kind::Switch, "accepted; that of the format's node counts"),
];

/// What all PCI devices have.
pub const PCI: [PropSpec; 6] = [
    prop("addr", Kind::Text, "PCI device[.function], in hexadecimal (next free)"),
    prop("bus", Kind::Word(&["pci.0", "pcie.0"]), "accepted"),
    prop("disable-legacy", Kind::Word(ON_OFF_AUTO), "no legacy registers (off)"),
    prop("disable-modern", Kind::Switch, "no modern registers (off)"),
    prop("vectors", Kind::Positive(128), "MSI-X vectors (one for each queue, and one)"),
    prop("romfile", Kind::Text, "accepted when empty"),
];

/// These and more: `ALL` is 6 and as many as there are in `rest`.
pub const fn pci_and<const N: usize, const ALL: usize>(rest: [PropSpec; N]) -> [PropSpec; ALL] {
    assert!(ALL == PCI.len() + N);
    let (mut all, mut i) = ([PCI[0]; ALL], 0);
    while i < ALL {
        all[i] = if i < PCI.len() { PCI[i] } else { rest[i - PCI.len()] };
        i += 1;
    }
    all
}

/// Of all devices with a disk.
pub const WRITE_CACHE: PropSpec =
    prop("write-cache", Kind::Word(ON_OFF_AUTO), "off: what is written is on disk when the guest is told (as cache= says)");

pub const VIRTIO_BLK: &[PropSpec] = &pci_and::<10, 16>([
    need("drive", Kind::Text, "id of a drive, or node name"),
    prop("serial", Kind::Text, "serial number, 20 bytes"),
    prop("num-queues", Kind::Positive(64), "queues (one for each CPU)"),
    prop("queue-size", Kind::Positive(1024), "requests of a queue, a power of two (256)"),
    prop("bootindex", Kind::Number(i32::MAX as u64), "what firmware boots first: the lowest"),
    WRITE_CACHE,
    prop("config-wce", Kind::Switch, "the guest may turn the write cache on and off (on)"),
    prop("share-rw", Kind::Switch, "others may write to the image (off)"),
    prop("werror", Kind::Word(&["auto", "ignore", "stop", "report", "enospc"]), "that of the drive"),
    prop("rerror", Kind::Word(&["auto", "ignore", "stop", "report"]), "that of the drive"),
]);

pub const VIRTIO_RNG: &[PropSpec] = &pci_and::<2, 8>([
    prop("max-bytes", Kind::Number(u64::MAX), "accepted"),
    prop("period", Kind::Number(u32::MAX as u64), "accepted"),
]);

fn drives(tree: &Tree) -> usize {
    tree.all(Group::Drive).filter(|o| o.driver == "drive").count()
}

/// `-drive`: the drive, and the device that its interface means.
pub fn drive(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let kvs = keyvals(value, None);
    let interface = kvs.iter().rev().find(|k| k.key == "if").and_then(|k| k.value.clone());
    let mut o = Object::new(Group::Drive, "drive", kvs, origin)?;
    let interface = interface.unwrap_or_else(|| "ide".into());
    if o.id.is_none() {
        o.id = Some(format!("{interface}{}", drives(tree)));
    }
    let id = o.id.clone().unwrap_or_default();
    tree.push(o);
    match interface.as_str() {
        "none" => Ok(()),
        "virtio" => {
            let kvs = vec![KeyVal::new("drive", &id)];
            tree.push(Object::new(Group::Device, "virtio-blk-pci", kvs, origin)?);
            Ok(())
        }
        "ide" => {
            let o = tree.all(Group::Drive).last().cloned();
            o.map_or(Ok(()), |o| ide::of_drive(tree, &id, &o, origin))
        }
        other => Err(OptionError::NotBuilt(format!("{origin} if={}", Quoted::from(other)), "use if=ide or if=virtio".into())),
    }
}

/// `-blockdev`, by properties or as JSON.
pub fn blockdev(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = if value.trim_start().starts_with('{') { json(value, origin)? } else { keyvals(value, Some("driver")) };
    let driver = take(&mut kvs, "driver").ok_or(OptionError::MissingProperty(origin.into(), "driver"))?;
    let name = kvs.iter().find(|k| k.key == "node-name").and_then(|k| k.value.clone());
    let mut o = Object::new(Group::Drive, &driver, kvs, origin)?;
    o.id = name;
    tree.push(o);
    Ok(())
}

/// Members of a JSON object as properties; nested ones with dots between their names.
fn json(text: &str, origin: &str) -> Result<Vec<KeyVal>, OptionError> {
    let bad = |why: String| OptionError::BadValue(origin.into(), text.into(), why);
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let mut kvs = Vec::new();
    flatten("", &value, &mut kvs);
    Ok(kvs)
}

fn flatten(prefix: &str, v: &serde_json::Value, out: &mut Vec<KeyVal>) {
    match v {
        serde_json::Value::Object(members) => {
            for (name, v) in members {
                let full = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&full, v, out);
            }
        }
        serde_json::Value::String(s) => out.push(KeyVal::new(prefix, s)),
        serde_json::Value::Bool(b) => out.push(KeyVal::new(prefix, if *b { "on" } else { "off" })),
        other => out.push(KeyVal::new(prefix, &other.to_string())),
    }
}

fn cache(o: &Object) -> CacheConfig {
    let (write_back, direct, no_flush) = match o.text("cache") {
        Some("none") => (true, true, false),
        Some("writethrough") => (false, false, false),
        Some("directsync") => (false, true, false),
        Some("unsafe") => (true, false, true),
        _ => (true, false, false),
    };
    CacheConfig {
        write_back: o.switch("cache.writeback").unwrap_or(write_back),
        direct: o.switch("cache.direct").unwrap_or(direct),
        no_flush: o.switch("cache.no-flush").unwrap_or(no_flush),
    }
}

fn on_error(word: Option<&str>, default: OnError) -> OnError {
    match word {
        Some("ignore") => OnError::Ignore,
        Some("stop") => OnError::Stop,
        Some("report") => OnError::Report,
        Some("enospc") => OnError::Enospc,
        _ => default,
    }
}

/// All drives that something uses, or may use.
pub fn build(tree: &Tree) -> Result<Vec<DriveConfig>, OptionError> {
    let snapshot = tree.one(Group::Process).and_then(|p| p.switch("snapshot")) == Some(true);
    let mut list: Vec<DriveConfig> = Vec::new();
    for o in tree.all(Group::Drive).filter(|o| o.driver != "file") {
        let config = one(tree, o, snapshot)?;
        if list.iter().any(|c| c.id == config.id) {
            return Err(OptionError::BadValue(o.origin.clone(), config.id.as_str().into(), "another drive has this id".into()));
        }
        list.push(config);
    }
    Ok(list)
}

fn one(tree: &Tree, o: &Object, snapshot: bool) -> Result<DriveConfig, OptionError> {
    let on = |name| o.switch(name) == Some(true);
    let cdrom = o.text("media") == Some("cdrom");
    let format = match (o.driver, o.text("format")) {
        ("raw", _) | (_, Some("raw")) => Some(ImageFormat::Raw),
        ("qcow2", _) | (_, Some("qcow2")) => Some(ImageFormat::Qcow2),
        _ => None,
    };
    let file = match (o.driver, o.text("file")) {
        ("drive", f) => f.filter(|f| !f.is_empty()).ok_or(OptionError::MissingProperty(o.origin.clone(), "file"))?,
        (_, None) => o.text("file.filename").ok_or(OptionError::MissingProperty(o.origin.clone(), "file"))?,
        (_, Some(node)) => file_node(tree, o, node)?,
    };
    let node = o.text("file").filter(|_| o.driver != "drive").and_then(|n| node_of(tree, n));
    let aio = o.text("aio").or(o.text("file.aio")).or(node.and_then(|n| n.text("aio")));
    if o.text("file.locking") == Some("off") {
        return Err(OptionError::NotBuilt(format!("{} file.locking=off", o.origin), "images are always locked".into()));
    }
    Ok(DriveConfig {
        id: o.id.clone().unwrap_or_default(),
        file: PathBuf::from(file),
        format,
        read_only: on("readonly") || on("read-only") || cdrom || in_cd_drive(tree, o),
        snapshot: o.switch("snapshot").unwrap_or(snapshot && o.driver == "drive"),
        cache: cache(o),
        werror: on_error(o.text("werror"), OnError::Enospc),
        rerror: on_error(o.text("rerror"), OnError::Report),
        discard: matches!(o.text("discard"), Some("unmap" | "on")),
        io_uring: aio == Some("io_uring"),
        share: on("force-share"),
    })
}

/// Whether a drive is the disc of a CD-ROM drive.
fn in_cd_drive(tree: &Tree, o: &Object) -> bool {
    o.id.is_some() && tree.all(Group::Device).any(|d| d.driver == "ide-cd" && d.text("drive") == o.id.as_deref())
}

/// A node of driver `file`.
fn node_of<'a>(tree: &'a Tree, name: &str) -> Option<&'a Object> {
    tree.all(Group::Drive).find(|n| n.driver == "file" && n.id.as_deref() == Some(name))
}

/// File name of a node of driver `file`.
fn file_node<'a>(tree: &'a Tree, o: &Object, node: &str) -> Result<&'a str, OptionError> {
    let nodes = || tree.all(Group::Drive).filter(|n| n.driver == "file");
    let found = node_of(tree, node).and_then(|n| n.text("filename"));
    found.ok_or_else(|| {
        let hint = Hint::for_word(node, nodes().filter_map(|n| n.id.as_deref()));
        OptionError::UnknownValue(format!("{}: file", o.origin), node.into(), hint)
    })
}

/// Where a PCI device is, and how it shows itself.
pub fn slot(o: &Object) -> Result<PciSlot, OptionError> {
    let bad =
        |text: &str| OptionError::BadValue(format!("{}: addr", o.origin), text.into(), "device (1 to 1e) and function".into());
    let parse = |text: &str| -> Option<(u8, u8)> {
        let text = text.strip_prefix("0x").unwrap_or(text);
        let (device, function) = text.split_once('.').unwrap_or((text, "0"));
        let (d, f) = (u8::from_str_radix(device, 16).ok()?, u8::from_str_radix(function, 16).ok()?);
        // The last device's interrupt is the HPET's.
        ((1..=0x1e).contains(&d) && f < 8).then_some((d, f))
    };
    let addr = o.text("addr").map(|t| parse(t).ok_or_else(|| bad(t))).transpose()?;
    let legacy = o.text("disable-legacy") != Some("on");
    let modern = o.switch("disable-modern") != Some(true);
    if !legacy && !modern {
        return Err(OptionError::Conflict(format!("{}: neither legacy nor modern registers are left", o.origin)));
    }
    if o.text("romfile").is_some_and(|r| !r.is_empty()) {
        return Err(OptionError::NotBuilt(format!("{} romfile", o.origin), "option ROMs".into()));
    }
    Ok(PciSlot { addr, legacy, modern, vectors: o.number("vectors").map(|n| n as u16) })
}

/// A virtio device, or `None` if it is something else.
pub fn device(o: &Object) -> Result<Option<DeviceSpec>, OptionError> {
    Ok(Some(match o.driver {
        "virtio-blk-pci" | "virtio-blk-device" => {
            let queue_size = o.number("queue-size").unwrap_or(256) as u16;
            if !queue_size.is_power_of_two() || queue_size < 4 {
                let text = queue_size.to_string();
                let why = "a power of two from 4 to 1024".to_owned();
                return Err(OptionError::BadValue(format!("{}: queue-size", o.origin), text.as_str().into(), why));
            }
            DeviceSpec::VirtioBlk {
                drive: o.text("drive").unwrap_or_default().into(),
                serial: o.text("serial").unwrap_or_default().into(),
                queues: o.number("num-queues").map(|n| n as u16),
                queue_size,
                config_wce: o.switch("config-wce").unwrap_or(true),
                slot: slot(o)?,
                boot_index: o.number("bootindex").map(|n| n as u32),
            }
        }
        "virtio-rng-pci" | "virtio-rng-device" => DeviceSpec::VirtioRng { slot: slot(o)? },
        _ => return Ok(None),
    }))
}

/// Error policies, sharing and write cache that a device sets for its drive.
pub fn adopt(tree: &Tree, list: &mut [DriveConfig]) {
    for o in tree.all(Group::Device).filter(|o| matches!(o.driver, "virtio-blk-pci" | "virtio-blk-device" | "ide-hd" | "ide-cd"))
    {
        let Some(c) = list.iter_mut().find(|c| Some(c.id.as_str()) == o.text("drive")) else { continue };
        c.werror = on_error(o.text("werror"), c.werror);
        c.rerror = on_error(o.text("rerror"), c.rerror);
        c.share |= o.switch("share-rw") == Some(true);
        match o.text("write-cache") {
            Some("on") => c.cache.write_back = true,
            Some("off") => c.cache.write_back = false,
            _ => {}
        }
    }
}

/// Every drive that a device names exists and has one user; and what does not go with disks yet.
pub fn check(tree: &Tree, c: &Config) -> Result<(), OptionError> {
    let mut used: Vec<&str> = Vec::new();
    for o in tree.all(Group::Device) {
        let Some(id) = o.text("drive") else { continue };
        if o.driver == "ide-cd" && id.is_empty() {
            continue;
        }
        if !c.drives.iter().any(|d| d.id == id) {
            let hint = Hint::for_word(id, c.drives.iter().map(|d| d.id.as_str()));
            return Err(OptionError::UnknownValue(format!("{}: drive", o.origin), id.into(), hint));
        }
        if used.contains(&id) {
            return Err(OptionError::Conflict(format!("{}: drive {} has another user", o.origin, Quoted::from(id))));
        }
        used.push(id);
    }
    for d in &c.devices {
        let DeviceSpec::Ide { cd: false, drive: Some(id), .. } = d else { continue };
        if c.drives.iter().any(|d| d.id == *id && d.read_only) {
            let id = Quoted::from(&**id);
            return Err(OptionError::Conflict(format!(
                "drive {id}: IDE disks cannot be read-only; use if=virtio, or snapshot=on"
            )));
        }
    }
    let is_virtio = |d: &DeviceSpec| !matches!(d, DeviceSpec::IsaDebugExit { .. } | DeviceSpec::IsaDebugcon { .. });
    let virtio = c.devices.iter().any(is_virtio);
    if c.icount.is_some() && (virtio || !c.drives.is_empty()) {
        let what = "-icount with disks or virtio devices";
        return Err(OptionError::NotBuilt(what.into(), "their requests do not end at exact instruction counts".into()));
    }
    Ok(())
}
