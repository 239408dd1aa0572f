//! The server of shared folders: requests of 9P2000.L, good ones and such as a guest should not make, on a folder of the host's. Nothing
//! beside the folder changes, and every answer is one.

use super::{Behaviour, Bytes};
use crate::boot::scratch;
use devices::virtio::Share;
use devices::virtio::p9::{Answers, Request};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Requests and what they consist of. `f`: a fid; `1`, `2`, `4`, `8`: a number of so many bytes; `m`: the length of the longest message;
/// `s`: a name; `w`: several; `d`: data.
const REQUESTS: [(u8, &str); 26] = [
    (100, "ms"),
    (104, "ffss4"),
    (110, "ffw"),
    (12, "f4"),
    (116, "f84"),
    (118, "f8d"),
    (40, "f84"),
    (24, "f8"),
    (26, "f444488888"),
    (14, "fs444"),
    (16, "fss4"),
    (18, "fs4444"),
    (72, "fs44"),
    (70, "ffs"),
    (20, "ffs"),
    (74, "fsfs"),
    (76, "fs4"),
    (22, "f"),
    (50, "f4"),
    (52, "f14884s"),
    (54, "f1884s"),
    (8, "f"),
    (120, "f"),
    (122, "f"),
    (108, "2"),
    (30, "ffs"),
];
const NAMES: [&str; 15] =
    ["a", "b", "dir", "out", "new", "..", ".", "", "/", "../secret", "dir/b", "/etc/passwd", "x\0y", "9P2000.L", "9P2000.u"];
const HEADER: usize = 7;
const ROOM: usize = 8192;
const SECRET: &str = "nobody's business";

/// A folder to share, something beside it, and a link that leads there.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static N: AtomicU32 = AtomicU32::new(0);
        let name = format!("fuzz-share-{}-{}", std::process::id(), N.fetch_add(1, Ordering::Relaxed));
        // In memory, where the host has such a place: fsync takes milliseconds elsewhere.
        let memory = Path::new("/dev/shm");
        let this = Self(if memory.is_dir() { memory.join(name) } else { scratch().join(name) });
        fs::create_dir_all(this.0.join("shared/dir")).expect("the folder can be written");
        for (name, text) in [("secret", SECRET), ("shared/a", "text of a"), ("shared/dir/b", "text of b")] {
            fs::write(this.0.join(name), text).expect("the folder can be written");
        }
        std::os::unix::fs::symlink("../secret", this.0.join("shared/out")).expect("the folder can be written");
        this
    }

    fn check(&self) {
        let secret = fs::read_to_string(self.0.join("secret"));
        assert_eq!(secret.ok().as_deref(), Some(SECRET), "what lies beside the folder has changed");
        let links = fs::metadata(self.0.join("secret")).map(|m| std::os::unix::fs::MetadataExt::nlink(&m));
        assert_eq!(links.ok(), Some(1), "what lies beside the folder has another name");
        let mut names: Vec<_> = fs::read_dir(&self.0).expect("it is there").flatten().map(|e| e.file_name()).collect();
        names.sort();
        assert_eq!(names, ["secret", "shared"], "something has come to lie beside the folder");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A number: small, or any.
fn number(b: &mut Bytes) -> u64 {
    match b.u8() {
        n @ 0..0xc0 => n.into(),
        0xc0..0xe0 => u64::from(b.u16()),
        0xe0..0xf0 => u64::from(b.u32()),
        _ => b.u64(),
    }
}

fn name(b: &mut Bytes) -> Vec<u8> {
    match usize::from(b.u8()) {
        n if n < 0xf0 => NAMES[n % NAMES.len()].into(),
        0xf0 => vec![b'n'; 300],
        n => b.take(n & 15),
    }
}

fn text(out: &mut Vec<u8>, name: &[u8]) {
    out.extend((name.len() as u16).to_le_bytes());
    out.extend(name);
}

fn request(kind: u8, form: &str, b: &mut Bytes) -> Vec<u8> {
    let mut body = Vec::new();
    for c in form.chars() {
        match c {
            'f' => body.extend(u32::from(b.u8() % 5).to_le_bytes()),
            'm' => body.extend((4096 + number(b) as u32 % 65536).to_le_bytes()),
            's' => text(&mut body, &name(b)),
            'w' => {
                let n = u16::from(b.u8() % 4);
                body.extend(n.to_le_bytes());
                (0..n).for_each(|_| text(&mut body, &name(b)));
            }
            'd' => {
                let n = usize::from(b.u8() % 64);
                body.extend((n as u32).to_le_bytes());
                body.extend(b.take(n));
            }
            bytes => {
                let n = bytes.to_digit(10).unwrap_or(0) as usize;
                body.extend(&number(b).to_le_bytes()[..n]);
            }
        }
    }
    let mut m = ((HEADER + body.len()) as u32).to_le_bytes().to_vec();
    m.extend([kind, 1, 0]);
    m.extend(body);
    m
}

/// Runs one input on what `open` makes of a folder.
pub fn run(open: fn(PathBuf) -> Arc<dyn Share>, input: &[u8], seen: &mut Behaviour) {
    let place = Place::new();
    let open = || open(place.0.join("shared"));
    let mut share = open();
    let (answers, mut b) = (Arc::<Answers>::default(), Bytes(input));
    for id in 0.. {
        if b.is_empty() {
            break;
        }
        let op = b.u8();
        if op >= 0xf8 {
            // Saved, and taken up by another one.
            let saved = share.save();
            share = open();
            share.load(&saved).expect("what was saved can be loaded");
            continue;
        }
        let (kind, form) = REQUESTS[usize::from(op) % REQUESTS.len()];
        let mut message = request(kind, form, &mut b);
        if op >= 0xf0 {
            message.truncate(HEADER + usize::from(b.u8()) % (message.len() - HEADER + 1));
        }
        share.submit(Request { id, message, room: ROOM, done: answers.clone() });
        share.drain();
        for (of, answer) in answers.take() {
            let size = answer.first_chunk().map_or(0, |s| u32::from_le_bytes(*s) as usize);
            assert!(of == id && size == answer.len() && (HEADER..=ROOM).contains(&size), "an answer of {size} bytes");
            assert!(answer[4] == kind + 1 || answer[4] == 7, "an answer of type {} to {kind}", answer[4]);
            let error = (answer[4] == 7).then(|| answer[HEADER..].to_vec());
            seen.saw((kind, error, size.ilog2()));
        }
    }
    seen.state(&share.save());
    drop(share);
    place.check();
}

/// Inputs to begin with: the tree is there, and each request is made of its root, a file, a directory and a link.
pub fn first() -> Vec<Vec<u8>> {
    let at = |kind: u8| REQUESTS.iter().position(|r| r.0 == kind).map_or(0, |n| n as u8);
    let mut begin = vec![at(100), 0, 13, at(104), 0, 4, 7, 7, 0];
    for (fid, name) in [(1, 0), (2, 2), (3, 3)] {
        begin.extend([at(110), 0, fid, 1, name]);
    }
    let each = |n: u8| (0..4u8).map(move |fid| vec![n, fid, 4, 4, 4, 4, 4, 4, 4, 4]);
    let all = (0..REQUESTS.len() as u8).flat_map(each).map(|one| [&begin[..], &one].concat());
    let opened = (0..3u8)
        .map(|flags| [&begin[..], &[at(12), 1, flags, at(116), 1, 0, 60, at(118), 1, 3, 5, 1, 2, 3, 4, 5, 0xff]].concat());
    let list = [&begin[..], &[at(12), 2, 0, at(40), 2, 0, 0xc0, 0xff, 0x0f]].concat();
    all.chain(opened).chain([list]).collect()
}
