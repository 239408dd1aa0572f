//! What a guest has in hand of a shared folder: its fids, each a place and maybe an open file.

use super::folder::{Folder, Names};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// Fids at most, and open files among them.
const MAX_FIDS: usize = 16 << 10;
const MAX_OPEN: usize = 512;

/// A file that is open.
pub struct Open {
    /// `None`: it could not be opened again after the machine was loaded.
    pub file: Option<OwnedFd>,
    pub flags: OFlags,
}

pub struct Fid {
    pub path: Names,
    /// Who made it, by `Tattach`.
    pub uid: u32,
    pub open: Option<Open>,
}

#[derive(Serialize, Deserialize)]
pub struct Saved {
    fid: u32,
    path: Names,
    uid: u32,
    open: Option<u32>,
}

#[derive(Default)]
pub struct Fids(BTreeMap<u32, Fid>);

impl Fids {
    pub fn get(&self, fid: u32) -> Result<&Fid, Errno> {
        self.0.get(&fid).ok_or(Errno::BADF)
    }

    pub fn get_mut(&mut self, fid: u32) -> Result<&mut Fid, Errno> {
        self.0.get_mut(&fid).ok_or(Errno::BADF)
    }

    pub fn has(&self, fid: u32) -> bool {
        self.0.contains_key(&fid)
    }

    pub fn insert(&mut self, fid: u32, path: Names, uid: u32) -> Result<(), Errno> {
        if self.0.len() >= MAX_FIDS && !self.has(fid) {
            return Err(Errno::NFILE);
        }
        self.0.insert(fid, Fid { path, uid, open: None });
        Ok(())
    }

    pub fn remove(&mut self, fid: u32) -> Result<Fid, Errno> {
        self.0.remove(&fid).ok_or(Errno::BADF)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether one more file may be open.
    pub fn may_open(&self) -> Result<(), Errno> {
        let open = self.0.values().filter(|f| f.open.is_some()).count();
        if open < MAX_OPEN { Ok(()) } else { Err(Errno::MFILE) }
    }

    /// The open file of a fid.
    pub fn file(&self, fid: u32) -> Result<&OwnedFd, Errno> {
        self.get(fid)?.open.as_ref().ok_or(Errno::BADF)?.file.as_ref().ok_or(Errno::STALE)
    }

    /// Follows a file that has another place now, and what is below it.
    pub fn renamed(&mut self, from: &Names, to: &Names) {
        for f in self.0.values_mut() {
            if let Some(rest) = f.path.strip_prefix(&from[..]) {
                f.path = [&to[..], rest].concat();
            }
        }
    }

    pub fn save(&self) -> Vec<Saved> {
        let one = |(fid, f): (&u32, &Fid)| Saved {
            fid: *fid,
            path: f.path.clone(),
            uid: f.uid,
            open: f.open.as_ref().map(|o| o.flags.bits()),
        };
        self.0.iter().map(one).collect()
    }

    /// As saved; files are opened anew, and those that are not there any more fail when they are used.
    pub fn load(folder: &Folder, saved: Vec<Saved>) -> Self {
        let one = |s: Saved| {
            let open = s.open.map(|bits| {
                let flags = super::server::open_flags(bits) - OFlags::TRUNC - OFlags::EXCL;
                Open { file: folder.open_file(&s.path, flags).ok(), flags }
            });
            (s.fid, Fid { path: s.path, uid: s.uid, open })
        };
        Self(saved.into_iter().take(MAX_FIDS).map(one).collect())
    }
}
