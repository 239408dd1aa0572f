//! Tests of the 9P server on a folder of the host's: what a guest does, and what it must not get at.

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

/// A folder with a secret beside it.
struct Bench {
    top: PathBuf,
    server: Server,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.top);
    }
}

#[derive(Default)]
struct Body(Writer);

impl Body {
    fn u8(mut self, v: u8) -> Self {
        self.0.u8(v);
        self
    }
    fn u16(mut self, v: u16) -> Self {
        self.0.u16(v);
        self
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.u32(v);
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.u64(v);
        self
    }
    fn text(mut self, v: &str) -> Self {
        self.0.text(v.as_bytes());
        self
    }
    fn raw(mut self, v: &[u8]) -> Self {
        self.0.bytes(v);
        self
    }
}

fn body() -> Body {
    Body::default()
}

fn errno(e: Errno) -> Result<Vec<u8>, i32> {
    Err(e.raw_os_error())
}

impl Bench {
    fn new(name: &str, read_only: bool) -> Self {
        let top = std::env::temp_dir().join(format!("rhea-9p-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("share/dir")).unwrap();
        fs::write(top.join("secret"), "secret").unwrap();
        fs::write(top.join("share/file"), "content").unwrap();
        symlink("../secret", top.join("share/out")).unwrap();
        symlink("..", top.join("share/up")).unwrap();
        let folder = Folder::open(&top.join("share"), read_only, false).unwrap();
        let mut b = Self { top, server: Server::new(folder) };
        b.ask(100, body().u32(65536).text("9P2000.L")).unwrap();
        b.ask(104, body().u32(0).u32(!0).text("").text("").u32(0)).unwrap();
        b
    }

    fn ask(&mut self, kind: u8, b: Body) -> Result<Vec<u8>, i32> {
        let request = message(kind, 5, &b.0.0);
        let all = self.server.answer(&request, 70000);
        let mut r = Reader(&all);
        assert_eq!(r.u32(), Some(all.len() as u32));
        let got = r.u8().unwrap();
        assert_eq!(r.u16(), Some(5));
        match got {
            RLERROR => Err(r.u32().unwrap() as i32),
            k => {
                assert_eq!(k, kind + 1);
                Ok(r.0.to_vec())
            }
        }
    }

    /// Walks from the root; `Err` also if only a part of the names is there.
    fn walk(&mut self, fid: u32, names: &[&str]) -> Result<Vec<u8>, i32> {
        self.walk_from(0, fid, names)
    }

    fn walk_from(&mut self, from: u32, fid: u32, names: &[&str]) -> Result<Vec<u8>, i32> {
        let b = names.iter().fold(body().u32(from).u32(fid).u16(names.len() as u16), |b, n| b.text(n));
        let qids = self.ask(110, b)?;
        if usize::from(qids[0]) == names.len() { Ok(qids) } else { Err(-i32::from(qids[0])) }
    }

    fn open(&mut self, fid: u32, flags: u32) -> Result<Vec<u8>, i32> {
        self.ask(12, body().u32(fid).u32(flags))
    }

    fn read(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<u8>, i32> {
        self.ask(116, body().u32(fid).u64(offset).u32(count)).map(|b| b[4..].to_vec())
    }

    fn clunk(&mut self, fid: u32) {
        self.ask(120, body().u32(fid)).unwrap();
    }

    fn names(&mut self, fid: u32, count: u32) -> Vec<String> {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let all = self.ask(40, body().u32(fid).u64(offset).u32(count)).unwrap();
            let mut r = Reader(&all);
            if r.u32() == Some(0) {
                return names;
            }
            while r.bytes(13).is_some() {
                offset = r.u64().unwrap();
                r.u8();
                names.push(String::from_utf8(r.text().unwrap().to_vec()).unwrap());
            }
        }
    }
}

#[test]
fn files_are_read_written_and_made() {
    let mut b = Bench::new("files", false);
    b.walk(1, &["file"]).unwrap();
    b.open(1, 2).unwrap();
    assert_eq!((b.read(1, 3, 100), b.read(1, 7, 100)), (Ok(b"tent".to_vec()), Ok(vec![])));
    assert_eq!(b.ask(118, body().u32(1).u64(7).u32(3).raw(b"+++")).unwrap(), [3, 0, 0, 0]);
    b.ask(50, body().u32(1).u32(0)).unwrap();
    assert_eq!(fs::read_to_string(b.top.join("share/file")).unwrap(), "content+++");
    b.walk(2, &["dir"]).unwrap();
    b.ask(14, body().u32(2).text("new").u32(0o1101).u32(0o4640).u32(!0)).unwrap();
    b.ask(118, body().u32(2).u64(0).u32(2).raw(b"hi")).unwrap();
    let meta = fs::metadata(b.top.join("share/dir/new")).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (2, 0o640), "no set-user-id with security_model=none");
    assert_eq!(b.read(2, 0, 2), errno(Errno::BADF), "not opened for reading");
    let times = body().u32(2).u32(SET_SIZE | SET_MTIME | SET_MTIME_TO | SET_MODE).u32(0o600).u32(0).u32(0).u64(1);
    b.ask(26, times.u64(0).u64(0).u64(1234).u64(5)).unwrap();
    let meta = fs::metadata(b.top.join("share/dir/new")).unwrap();
    assert_eq!((meta.len(), meta.mtime(), meta.permissions().mode() & 0o777), (1, 1234, 0o600));
}

#[test]
fn directories_links_and_names() {
    let mut b = Bench::new("dirs", false);
    b.ask(72, body().u32(0).text("made").u32(0o755).u32(!0)).unwrap();
    b.walk(1, &["made"]).unwrap();
    b.ask(16, body().u32(1).text("link").text("anything/../at all").u32(!0)).unwrap();
    b.walk(2, &["made", "link"]).unwrap();
    assert_eq!(b.ask(22, body().u32(2)).unwrap()[2..], *b"anything/../at all");
    b.walk(3, &["file"]).unwrap();
    b.ask(70, body().u32(1).u32(3).text("hard")).unwrap();
    // A fid below a directory that moves goes with it.
    b.walk(4, &["made", "hard"]).unwrap();
    b.ask(74, body().u32(0).text("made").u32(0).text("moved")).unwrap();
    b.open(4, 0).unwrap();
    assert_eq!(b.read(4, 0, 7), Ok(b"content".to_vec()));
    b.ask(20, body().u32(3).u32(1).text("file2")).unwrap();
    assert!(b.top.join("share/moved/file2").exists());
    b.walk(5, &["moved"]).unwrap();
    b.open(5, 0o200_000).unwrap();
    for count in [4000, 60] {
        let mut names = b.names(5, count);
        names.sort();
        assert_eq!(names, [".", "..", "file2", "hard", "link"], "{count}");
    }
    assert_eq!(b.ask(76, body().u32(0).text("moved").u32(REMOVE_DIR)), errno(Errno::NOTEMPTY));
    b.ask(76, body().u32(5).text("hard").u32(0)).unwrap();
    let s = b.ask(24, body().u32(4).u64(!0)).unwrap();
    assert_eq!(u64::from_le_bytes(s[49..57].try_into().unwrap()), 7, "an open file without a name has a size");
    b.ask(122, body().u32(2)).unwrap();
    assert!(!b.top.join("share/moved/link").exists());
    assert_eq!(b.ask(8, body().u32(0)).unwrap().len(), 60);
    b.ask(52, body().u32(4).u8(1).u32(0).u64(0).u64(0).u32(1).text("me")).unwrap();
    assert_eq!(b.ask(30, body().u32(0).u32(9).text("user.x")), errno(Errno::OPNOTSUPP));
}

#[test]
fn a_guest_stays_in_the_folder() {
    let mut b = Bench::new("escape", false);
    let inode = |p: &str| fs::metadata(b.top.join(p)).unwrap().ino().to_le_bytes();
    let root = inode("share");
    // Up from the root is the root.
    let qids = b.walk(1, &["..", "..", "dir", "..", ".."]).unwrap();
    assert_eq!(qids[2 + 4 * 13 + 5..], root);
    b.clunk(1);
    for names in
        [&["..", "secret"][..], &["../secret"], &["dir/../../secret"], &["up", "secret"], &["."], &[""], &["a\0b"], &["/etc"]]
    {
        assert!(b.walk(1, names).is_err(), "{names:?}");
    }
    // A symbolic link is a thing to read, not a way.
    b.walk(1, &["out"]).unwrap();
    assert_eq!(b.open(1, 0), errno(Errno::NXIO));
    assert_eq!(b.ask(26, body().u32(1).u32(SET_SIZE).u32(0).u32(0).u32(0).u64(0).raw(&[0; 32])), errno(Errno::NXIO));
    assert!(b.ask(26, body().u32(1).u32(SET_MODE).u32(0o777).u32(0).u32(0).u64(0).raw(&[0; 32])).is_err());
    b.walk(2, &["up"]).unwrap();
    assert!(b.walk_from(2, 3, &["secret"]).is_err());
    assert!(b.ask(14, body().u32(2).text("planted").u32(0o101).u32(0o644).u32(!0)).is_err());
    assert!(b.ask(72, body().u32(2).text("planted").u32(0o755).u32(!0)).is_err());
    for name in ["..", ".", "", "a/b", "../planted"] {
        assert!(b.ask(72, body().u32(0).text(name).u32(0o755).u32(!0)).is_err(), "{name}");
        assert!(b.ask(74, body().u32(0).text("file").u32(0).text(name)).is_err(), "{name}");
        assert!(b.ask(76, body().u32(0).text(name).u32(REMOVE_DIR)).is_err(), "{name}");
    }
    // A directory that becomes a link while the guest has it in hand leads nowhere.
    b.walk(6, &["dir"]).unwrap();
    fs::remove_dir(b.top.join("share/dir")).unwrap();
    symlink("..", b.top.join("share/dir")).unwrap();
    assert!(b.walk_from(6, 7, &["secret"]).is_err());
    assert!(b.ask(14, body().u32(6).text("planted").u32(0o101).u32(0o644).u32(!0)).is_err());
    assert!(b.open(6, 0).is_err());
    assert_eq!(fs::read_to_string(b.top.join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&b.top).unwrap().count(), 2);
    // The root itself stays.
    assert_eq!(b.ask(122, body().u32(0)), errno(Errno::BUSY));
}

#[test]
fn the_hosts_devices_and_pipes_are_not_opened() {
    let mut b = Bench::new("nodes", false);
    for kind in [0o020_000, 0o060_000] {
        let node = body().u32(0).text("dev").u32(kind | 0o666).u32(1).u32(3).u32(!0);
        assert_eq!(b.ask(18, node), errno(Errno::PERM));
    }
    b.ask(18, body().u32(0).text("pipe").u32(0o010_644).u32(0).u32(0).u32(!0)).unwrap();
    b.walk(1, &["pipe"]).unwrap();
    assert_eq!(b.open(1, 0), errno(Errno::NXIO), "and nobody waits for its other end");
}

#[test]
fn a_read_only_folder_stays_as_it_is() {
    let mut b = Bench::new("readonly", true);
    b.walk(1, &["file"]).unwrap();
    for flags in [1, 2, 0o1000] {
        assert_eq!(b.open(1, flags), errno(Errno::ROFS));
    }
    b.open(1, 0).unwrap();
    assert_eq!(b.read(1, 0, 9), Ok(b"content".to_vec()));
    assert_eq!(b.ask(72, body().u32(0).text("made").u32(0o755).u32(!0)), errno(Errno::ROFS));
    assert_eq!(b.ask(76, body().u32(0).text("file").u32(0)), errno(Errno::ROFS));
    assert_eq!(b.ask(74, body().u32(0).text("file").u32(0).text("other")), errno(Errno::ROFS));
    assert_eq!(b.ask(26, body().u32(1).u32(SET_MODE).u32(0).u32(0).u32(0).u64(0).raw(&[0; 32])), errno(Errno::ROFS));
    b.walk(2, &[]).unwrap();
    assert_eq!(b.ask(14, body().u32(2).text("new").u32(0o101).u32(0o644).u32(!0)), errno(Errno::ROFS));
}

#[test]
fn what_is_open_survives() {
    let mut b = Bench::new("saved", false);
    b.walk(1, &["file"]).unwrap();
    b.open(1, 0o1002).unwrap();
    b.ask(118, body().u32(1).u64(0).u32(4).raw(b"kept")).unwrap();
    b.walk(2, &["dir"]).unwrap();
    b.ask(14, body().u32(2).text("gone").u32(0o102).u32(0o644).u32(!0)).unwrap();
    fs::remove_file(b.top.join("share/dir/gone")).unwrap();
    let saved = serde_json::to_value(b.server.save()).unwrap();
    b.server.reset();
    assert_eq!(b.read(1, 0, 9), errno(Errno::BADF));
    b.server.load(serde_json::from_value(saved).unwrap());
    // It is not cut off again.
    assert_eq!(b.read(1, 0, 9), Ok(b"kept".to_vec()));
    assert_eq!(b.read(2, 0, 9), errno(Errno::STALE));
    // Forged places lead nowhere.
    let forged = r#"{"msize":8192,"fids":[{"fid":9,"path":[[46,46],[115,101,99,114,101,116]],"uid":0,"open":0}]}"#;
    b.server.load(serde_json::from_str(forged).unwrap());
    assert_eq!(b.read(9, 0, 9), errno(Errno::STALE));
    assert!(b.ask(24, body().u32(9).u64(!0)).is_err());
}

#[test]
fn hostile_requests_get_errors() {
    let mut b = Bench::new("hostile", false);
    let mut r = vm_core::testing::Rng(9);
    for i in 0..20_000 {
        let kind =
            r.pick(&[8, 12, 14, 16, 20, 22, 24, 26, 30, 40, 50, 52, 54, 70, 72, 74, 76, 100, 102, 104, 108, 110, 116, 118, 120]);
        let len = r.below(60) as usize;
        // Small numbers, so that some are fids and lengths that fit.
        let bytes: Vec<u8> = (0..len).map(|_| if r.one_in(3) { r.next_u64() as u8 } else { r.below(4) as u8 }).collect();
        let answer = b.server.answer(&message(kind, 1, &bytes), 4096);
        assert!(answer.len() >= HEADER && answer.len() <= 4096, "{i}");
        if r.one_in(50) {
            let _ = b.ask(104, body().u32(r.below(3) as u32).u32(!0).text("").text("").u32(0));
        }
    }
    assert_eq!(fs::read_to_string(b.top.join("secret")).unwrap(), "secret");
    assert_eq!(b.server.answer(&[], 0).len(), 11);
    // More fids than anybody needs.
    b.ask(100, body().u32(8192).text("9P2000.L")).unwrap();
    b.ask(104, body().u32(0).u32(!0).text("").text("").u32(0)).unwrap();
    let last = (1..20_000).find_map(|fid| b.walk(fid, &[]).err());
    assert_eq!(last, Some(Errno::NFILE.raw_os_error()));
}
