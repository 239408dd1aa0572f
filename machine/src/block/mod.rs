//! Disks of the host's: image files, opened once, locked, and served by threads of their own. Formats are imago's.

mod check;
mod file;
mod image;
mod lease;
mod lock;
mod open;
mod queue;

#[cfg(test)]
mod tests;

pub use image::Image;
pub use open::{OpenError, open};
pub use queue::HostDisk;

use crate::control::Control;
use crate::options::{DriveConfig, OnError};
use devices::block::{Disk, SECTOR};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All drives of a machine, by id.
#[derive(Default)]
pub struct Drives(BTreeMap<String, (DriveConfig, Arc<HostDisk>)>);

impl Drives {
    /// Opens the images of all drives. `control` is asked to stop the machine for `werror=stop`.
    pub fn open(list: &[DriveConfig], control: &Control) -> Result<Self, OpenError> {
        let mut drives = BTreeMap::new();
        for config in list {
            let image = open(config)?;
            let disk = HostDisk::start(config, image, control.clone()).map_err(|e| OpenError::thread(config, e))?;
            drives.insert(config.id.clone(), (config.clone(), disk));
        }
        Ok(Self(drives))
    }

    pub fn disk(&self, id: &str) -> Option<Arc<dyn Disk>> {
        self.0.get(id).map(|(_, d)| d.clone() as Arc<dyn Disk>)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<HostDisk>> {
        self.0.values().map(|(_, d)| d)
    }

    /// Waits until no job runs; those that an error has stopped stay.
    pub fn drain(&self) {
        self.all().for_each(|d| d.drain());
    }

    /// Begins anew what an error has stopped.
    pub fn resume(&self) {
        self.all().for_each(|d| d.resume());
    }

    /// Writes everything to the images; what cannot be written is told.
    pub fn flush(&self) {
        self.all().for_each(|d| d.flush());
    }

    /// Gives a drive another size, in bytes.
    pub fn resize(&self, id: &str, bytes: u64) -> Result<(), String> {
        let (_, disk) = self.0.get(id).ok_or_else(|| format!("Cannot find device='{id}' nor node-name='{id}'"))?;
        if !bytes.is_multiple_of(SECTOR) || bytes > i64::MAX as u64 {
            return Err(format!("{bytes} bytes are not whole sectors of {SECTOR} bytes"));
        }
        disk.resize(bytes).map_err(|e| format!("{id}: {e}"))
    }

    /// Text of `info block`.
    pub fn info(&self) -> String {
        self.0.values().map(|(c, d)| info(c, d)).collect()
    }

    /// As `query-block` has it.
    pub fn query(&self) -> Vec<Value> {
        self.0.values().map(|(c, d)| query(c, d)).collect()
    }
}

fn info(c: &DriveConfig, d: &HostDisk) -> String {
    let g = d.geometry();
    let mode = if g.read_only { ", read-only" } else { "" };
    let cache = match (c.cache.write_back, c.cache.direct, c.cache.no_flush) {
        (_, _, true) => "writeback, ignore flushes",
        (true, true, _) => "writeback, direct",
        (true, false, _) => "writeback",
        (false, true, _) => "writethrough, direct",
        (false, false, _) => "writethrough",
    };
    let backing = d.backing().map_or_else(String::new, |b| format!("    Backing file:     {}\n", b.display()));
    format!("{}: {} ({}{mode})\n    Cache mode:       {cache}\n{backing}", c.id, c.file.display(), d.format())
}

fn query(c: &DriveConfig, d: &HostDisk) -> Value {
    let g = d.geometry();
    let mut image = json!({ "filename": c.file, "format": d.format(), "virtual-size": g.bytes });
    let mut inserted = json!({
        "file": c.file, "drv": d.format(), "ro": g.read_only, "encrypted": false, "node-name": c.id,
        "cache": { "writeback": c.cache.write_back, "direct": c.cache.direct, "no-flush": c.cache.no_flush },
        "backing_file_depth": u32::from(d.backing().is_some()),
    });
    if let Some(b) = d.backing() {
        image["backing-filename"] = json!(b);
        inserted["backing_file"] = json!(b);
    }
    inserted["image"] = image;
    let io_status = if d.stopped() { "failed" } else { "ok" };
    let shown = if matches!((c.werror, c.rerror), (OnError::Stop | OnError::Enospc, _) | (_, OnError::Stop)) {
        json!({ "io-status": io_status })
    } else {
        json!({})
    };
    let mut v = json!({ "device": c.id, "type": "unknown", "removable": false, "locked": false, "inserted": inserted });
    if let Some(s) = shown.get("io-status") {
        v["io-status"] = s.clone();
    }
    v
}
