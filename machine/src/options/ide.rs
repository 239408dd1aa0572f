//! IDE disks and CD-ROM drives: `-hda` to `-hdd`, `-cdrom`, `-drive if=ide`, `-device ide-hd` and `ide-cd`, and their places. As in
//! QEMU they are on the PIIX3's two channels of the machine pc, and on the six AHCI ports of q35.

use super::config::{DeviceSpec, MachineKind};
use super::drive::{self, WRITE_CACHE};
use super::error::OptionError;
use super::schema::{Kind, PropSpec, need, prop};
use super::tree::{Group, KeyVal, Object, Tree};

const BOOTINDEX: PropSpec = prop("bootindex", Kind::Number(i32::MAX as u64), "what firmware boots first: the lowest");
const BUS: PropSpec = prop("bus", Kind::Text, "ide.N: channel, or port of q35 (next free)");
const UNIT: PropSpec = prop("unit", Kind::Number(1), "0 or 1: drive of a channel (next free)");
const INDEX: PropSpec = prop("index", Kind::Number(5), "place, counted over all channels or ports (next free)");
const WERROR: PropSpec = prop("werror", Kind::Word(&["auto", "ignore", "stop", "report", "enospc"]), "that of the drive");
const RERROR: PropSpec = prop("rerror", Kind::Word(&["auto", "ignore", "stop", "report"]), "that of the drive");
const SHARE: PropSpec = prop("share-rw", Kind::Switch, "others may write to the image (off)");
const SERIAL: PropSpec = prop("serial", Kind::Text, "serial number, 20 bytes");

pub const IDE_HD: &[PropSpec] = &with(need("drive", Kind::Text, "id of a drive, or node name"));
pub const IDE_CD: &[PropSpec] = &with(prop("drive", Kind::Text, "id of a drive, or node name; without one it is empty"));

/// What both have, behind the drive.
const fn with(drive: PropSpec) -> [PropSpec; 10] {
    [drive, BUS, UNIT, INDEX, SERIAL, BOOTINDEX, WERROR, RERROR, SHARE, WRITE_CACHE]
}

/// Where `-hda` and the others go.
const PLACES: [(&str, u64, bool); 5] =
    [("hda", 0, false), ("hdb", 1, false), ("hdc", 2, false), ("hdd", 3, false), ("cdrom", 2, true)];

/// `-hda FILE` and the like.
pub fn short(tree: &mut Tree, name: &str, file: &str, origin: &str) -> Result<(), OptionError> {
    let Some((_, index, cd)) = PLACES.iter().find(|p| p.0 == name) else { return Ok(()) };
    // A comma in a file's name is no separator here.
    let file = file.replace(',', ",,");
    let media = if *cd { "cdrom" } else { "disk" };
    drive::drive(tree, &format!("file={file},if=ide,index={index},media={media}"), origin)
}

/// The device of a `-drive` with `if=ide`.
pub fn of_drive(tree: &mut Tree, id: &str, o: &Object, origin: &str) -> Result<(), OptionError> {
    let driver = if o.text("media") == Some("cdrom") { "ide-cd" } else { "ide-hd" };
    let mut kvs = vec![KeyVal::new("drive", id)];
    if let Some(n) = o.number("index") {
        kvs.push(KeyVal::new("index", &n.to_string()));
    }
    if let Some(n) = o.number("bus") {
        kvs.push(KeyVal::new("bus", &format!("ide.{n}")));
    }
    if let Some(n) = o.number("unit") {
        kvs.push(KeyVal::new("unit", &n.to_string()));
    }
    tree.push(Object::new(Group::Device, driver, kvs, origin)?);
    Ok(())
}

/// Drives that a channel or port has, and channels or ports.
fn shape(kind: MachineKind) -> (usize, usize) {
    match kind {
        MachineKind::Pc => (2, 2),
        MachineKind::Q35 => (1, 6),
        MachineKind::Microvm => (1, 0),
    }
}

/// The place that an object names: all of it, or the channel alone.
fn wanted(o: &Object, kind: MachineKind) -> Result<(Option<usize>, Option<usize>), OptionError> {
    let (units, buses) = shape(kind);
    let bad = |what: &str, value: &str| {
        let why = if units == 1 {
            "q35 has ide.0 to ide.5 with one drive each"
        } else {
            "there are ide.0 and ide.1 with two drives each"
        };
        OptionError::BadValue(format!("{}: {what}", o.origin), value.into(), why.into())
    };
    if let Some(n) = o.number("index") {
        let n = n as usize;
        return if n < units * buses { Ok((Some(n), None)) } else { Err(bad("index", &n.to_string())) };
    }
    let unit = o.number("unit").map(|n| n as usize);
    if let Some(u) = unit.filter(|u| *u >= units) {
        return Err(bad("unit", &u.to_string()));
    }
    match o.text("bus") {
        None => Ok((unit, None)),
        Some(text) => {
            let bus = text.strip_prefix("ide.").and_then(|n| n.parse::<usize>().ok()).filter(|n| *n < buses);
            let bus = bus.ok_or_else(|| bad("bus", text))?;
            Ok((unit.or((units == 1).then_some(0)).map(|u| bus * units + u), Some(bus)))
        }
    }
}

/// All IDE drives with their places.
pub fn build(tree: &Tree, kind: MachineKind) -> Result<Vec<DeviceSpec>, OptionError> {
    let (units, buses) = shape(kind);
    let objects = || tree.all(Group::Device).filter(|o| matches!(o.driver, "ide-hd" | "ide-cd"));
    if let Some(o) = objects().next().filter(|_| kind == MachineKind::Microvm) {
        return Err(OptionError::Conflict(format!("{}: microvm has no IDE; use if=virtio, or virtio-blk-device", o.origin)));
    }
    let mut places: Vec<Option<&Object>> = vec![None; units * buses];
    // Those with a place first, as `-drive` and `-hda` may come in any order.
    for fixed in [true, false] {
        for o in objects() {
            let (place, bus) = wanted(o, kind)?;
            if place.is_some() != fixed {
                continue;
            }
            let from = bus.map_or(0, |b| b * units);
            let to = bus.map_or(places.len(), |b| (b + 1) * units);
            let free = (from..to).find(|n| places[*n].is_none());
            match place.or(free) {
                Some(n) if places[n].is_none() => places[n] = Some(o),
                Some(n) => {
                    let what = format!("{}: ide.{} unit {} is taken", o.origin, n / units, n % units);
                    return Err(OptionError::Conflict(what));
                }
                None => return Err(OptionError::Conflict(format!("{}: no place is free for another IDE drive", o.origin))),
            }
        }
    }
    let one = |(place, o): (usize, Option<&Object>)| {
        let o = o?;
        Some(DeviceSpec::Ide {
            cd: o.driver == "ide-cd",
            drive: o.text("drive").filter(|d| !d.is_empty()).map(Into::into),
            serial: o.text("serial").unwrap_or_default().into(),
            place,
            boot_index: o.number("bootindex").map(|n| n as u32),
        })
    };
    Ok(places.into_iter().enumerate().filter_map(one).collect())
}
