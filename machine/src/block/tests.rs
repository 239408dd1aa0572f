//! Images opened and used without a guest: formats, overlays, policies, errors; what is on the host afterwards.

use super::*;
use crate::control::{Control, RunState};
use crate::options::{CacheConfig, ImageFormat};
use devices::block::{Done, Job, Memory, Op, Segment};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static N: AtomicU32 = AtomicU32::new(0);
        let n = N.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("rhea-block-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, data: &[u8]) -> PathBuf {
        let p = self.0.join(name);
        std::fs::write(&p, data).unwrap();
        p
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(file: &Path, format: Option<ImageFormat>) -> DriveConfig {
    DriveConfig {
        id: "d".into(),
        file: file.into(),
        format,
        read_only: false,
        snapshot: false,
        cache: CacheConfig { write_back: true, direct: false, no_flush: false },
        werror: OnError::Report,
        rerror: OnError::Report,
        discard: true,
        io_uring: false,
        share: false,
    }
}

fn control() -> Control {
    Control::new(vec![Arc::default()], RunState::Running)
}

#[derive(Default)]
struct Ends(Mutex<Vec<(u64, bool)>>);

impl Done for Ends {
    fn done(&self, id: u64, ok: bool) {
        self.0.lock().push((id, ok));
    }
    fn kick(&self) {}
}

struct User {
    disk: Arc<HostDisk>,
    ends: Arc<Ends>,
    memory: Arc<Mutex<Vec<u8>>>,
}

impl User {
    fn new(c: &DriveConfig) -> Self {
        let disk = HostDisk::start(c, open(c).unwrap(), control()).unwrap();
        Self { disk, ends: Arc::default(), memory: Arc::default() }
    }

    fn submit(&self, id: u64, op: Op) {
        let memory = Memory::Buffer(self.memory.clone());
        self.disk.submit(Job { id, op, memory, done: self.ends.clone() });
    }

    fn run(&self, op: Op) -> bool {
        self.submit(1, op);
        self.disk.drain();
        let ends = std::mem::take(&mut *self.ends.0.lock());
        assert_eq!(ends.len(), 1);
        ends[0].1
    }

    fn write(&self, at: u64, data: &[u8]) -> bool {
        *self.memory.lock() = data.to_vec();
        // In two buffers of odd sizes.
        let len = data.len() as u32;
        let from = vec![Segment { pa: 0, len: 7 }, Segment { pa: 7, len: len - 7 }];
        self.run(Op::Write { at, from, through: false })
    }

    fn read(&self, at: u64, len: u32) -> Vec<u8> {
        *self.memory.lock() = vec![0xee; len as usize];
        assert!(self.run(Op::Read { at, to: vec![Segment { pa: 0, len: 100 }, Segment { pa: 100, len: len - 100 }] }));
        self.memory.lock().clone()
    }
}

fn zero(at: u64, len: u64, unmap: bool) -> Op {
    Op::Zero { at, len, unmap, through: unmap }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

/// An empty qcow2 image, made by imago as a temporary overlay is.
fn make_qcow2(path: &Path, bytes: u64, backing: Option<&str>) {
    use imago::file::File as Storage;
    use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
    use imago::{FormatCreateBuilder, Storage as _, StorageCreateOptions};
    let storage = Storage::create_open(StorageCreateOptions::new().filename(path)).unwrap();
    let mut b: Qcow2CreateBuilder<Storage> = Qcow2::create_builder(storage).size(bytes);
    if let Some(name) = backing {
        b = b.backing(name.into(), "raw".into());
    }
    b.create().unwrap();
}

#[test]
fn raw_images_hold_what_is_written() {
    let dir = Folder::new();
    let file = dir.file("raw", &vec![0; 4 << 20]);
    // By threads, and by io_uring where the kernel has it.
    for io_uring in [false, true] {
        let direct = CacheConfig { write_back: true, direct: true, no_flush: false };
        let c = DriveConfig { io_uring, ..config(&file, Some(ImageFormat::Raw)) };
        let other = pattern(1 << 20, 7 + u8::from(io_uring));
        let u = User::new(&c);
        assert!(u.write(2048, &other) && u.run(Op::Flush) && u.read(2048, 1 << 20) == other);
        drop(u);
        // File systems in memory have no direct access.
        if open(&DriveConfig { cache: direct, ..c.clone() }).is_ok() {
            let u = User::new(&DriveConfig { cache: direct, ..c });
            assert!(u.read(2048, 1 << 20) == other && u.write(512, &other) && u.run(Op::Flush) && u.read(512, 1 << 20) == other);
        }
    }
    let u = User::new(&config(&file, Some(ImageFormat::Raw)));
    let data = pattern(3 << 20, 1);
    assert!(u.write(512, &data) && u.run(Op::Flush));
    assert_eq!(u.read(512, 3 << 20), data);
    assert!(u.run(zero(4096, 8192, false)) && u.run(zero(65536, 65536, true)));
    assert!(u.run(Op::Discard { at: 1 << 20, len: 4096 }));
    let on_disk = std::fs::read(&file).unwrap();
    assert_eq!((on_disk.len(), &on_disk[512..4096]), (4 << 20, &data[..3584]));
    assert!(on_disk[4096..12288].iter().chain(&on_disk[65536..131072]).all(|b| *b == 0));
}

#[test]
fn qcow2_images_lie_over_others() {
    let dir = Folder::new();
    let base = pattern(2 << 20, 2);
    let base_file = dir.file("base", &base);
    let top = dir.0.join("top.qcow2");
    make_qcow2(&top, 3 << 20, Some("base"));
    let u = User::new(&config(&top, None));
    assert_eq!((u.disk.format(), u.disk.backing()), ("qcow2", Some(&*base_file)));
    let data = pattern(1000 * 512, 3);
    assert!(u.write(700 * 512, &data) && u.run(Op::Flush));
    let mut want = base.clone();
    want.resize(3 << 20, 0);
    want[700 * 512..1700 * 512].copy_from_slice(&data);
    assert_eq!(u.read(0, 3 << 20), want);
    drop(u);
    assert_eq!(std::fs::read(&base_file).unwrap(), base);
    let u = User::new(&DriveConfig { io_uring: true, ..config(&top, Some(ImageFormat::Qcow2)) });
    assert_eq!(u.read(0, 3 << 20), want);
    assert!(u.run(Op::Discard { at: 0, len: 1 << 20 }) && u.run(zero(1 << 20, 1 << 20, true)));
    assert!(u.read(1 << 20, 1 << 20).iter().all(|b| *b == 0));
}

#[test]
fn snapshots_leave_the_image_alone() {
    let dir = Folder::new();
    let before = pattern(1 << 20, 4);
    let file = dir.file("image", &before);
    let u = User::new(&DriveConfig { snapshot: true, ..config(&file, Some(ImageFormat::Raw)) });
    assert!(u.write(1024, &[9; 2048]) && u.run(Op::Flush));
    assert_eq!(u.read(0, 4096)[1000..1100], [&before[1000..1024], &[9; 76][..]].concat());
    drop(u);
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn what_is_wrong_is_told_in_a_line() {
    let dir = Folder::new();
    let text = |c: &DriveConfig| match open(c) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("{c:?} was opened"),
    };
    let told = |c: &DriveConfig, words: &[&str]| {
        let t = text(c);
        assert!(!t.contains('\n') && words.iter().all(|w| t.contains(w)), "{t}");
    };
    told(&config(&dir.0.join("absent"), None), &["-drive d: ", "absent", "No such file"]);
    told(&config(&dir.0, None), &["neither a regular file"]);
    told(&config(&dir.file("odd", &[0; 1000]), Some(ImageFormat::Raw)), &["512"]);
    told(&config(&dir.file("short", b"QFI\xfb\0\0\0\x03"), None), &["short"]);
    let top = dir.0.join("top");
    make_qcow2(&top, 1 << 20, Some("gone"));
    told(&config(&top, None), &["gone", "No such file"]);
    // A header of random content behind the magic.
    let whole = std::fs::read(&top).unwrap();
    for i in 4..104 {
        let mut bad = whole.clone();
        bad[i] ^= 0xff;
        let _ = open(&config(&dir.file("bad", &bad), None));
    }
}

#[test]
fn images_are_locked() {
    let dir = Folder::new();
    let file = dir.file("image", &[0; 4096]);
    let c = config(&file, Some(ImageFormat::Raw));
    let first = open(&c).unwrap();
    assert!(open(&c).err().unwrap().to_string().contains("in use"));
    assert!(open(&DriveConfig { read_only: true, ..c.clone() }).is_err());
    drop(first);
    let read = DriveConfig { read_only: true, ..c.clone() };
    let both = (open(&read).unwrap(), open(&read).unwrap());
    assert!(open(&c).is_err());
    drop(both);
    open(&c).unwrap();
}

#[test]
fn a_disk_without_a_format_cannot_become_another() {
    let dir = Folder::new();
    let file = dir.file("image", &[0; 4096]);
    let u = User::new(&config(&file, None));
    assert!(!u.write(0, &[b"QFI\xfb", &[0; 508][..]].concat()));
    assert!(u.write(0, &[1; 512]) && u.write(512, &[b"QFI\xfb", &[0; 508][..]].concat()));
    drop(u);
    let u = User::new(&config(&file, Some(ImageFormat::Raw)));
    assert!(u.write(0, &[b"QFI\xfb", &[0; 508][..]].concat()));
}

/// Errors of the host as the guest's, as none, and as a stop after which nothing is lost.
#[test]
fn errors_do_what_was_asked_for() {
    let dir = Folder::new();
    let file = dir.file("image", &[0; 4096]);
    // Beyond the image: as if the host could not write.
    let op = || Op::Write { at: 8192, from: vec![Segment { pa: 0, len: 512 }], through: false };
    let c = config(&file, Some(ImageFormat::Raw));
    assert!(!User::new(&c).run(op()));
    assert!(User::new(&DriveConfig { werror: OnError::Ignore, ..c.clone() }).run(op()));
    assert!(!User::new(&DriveConfig { werror: OnError::Enospc, ..c.clone() }).run(op()));
    let control = control();
    let stop = DriveConfig { werror: OnError::Stop, ..c };
    let disk = HostDisk::start(&stop, open(&stop).unwrap(), control.clone()).unwrap();
    let u = User { disk, ends: Arc::default(), memory: Arc::default() };
    u.submit(5, op());
    u.disk.drain();
    assert!(u.disk.stopped() && control.take().io_error && u.ends.0.lock().is_empty());
    u.disk.resume();
    u.disk.drain();
    assert!(u.disk.stopped(), "it was tried again");
    u.disk.abandon();
    assert!(!u.disk.stopped() && u.ends.0.lock().is_empty());
}

/// What is given up neither waits for the host, nor shows in memory, nor is told; what comes later comes after it.
#[test]
fn jobs_that_are_given_up_leave_no_trace() {
    let dir = Folder::new();
    let u = User::new(&config(&dir.file("image", &pattern(1 << 20, 5)), Some(ImageFormat::Raw)));
    *u.memory.lock() = vec![0xee; 4096];
    let part = || vec![Segment { pa: 0, len: 512 }];
    let held = u.disk.hold();
    (0..6).for_each(|i| u.submit(i, Op::Read { at: i * 512, to: part() }));
    while u.disk.running() < 4 {
        std::thread::yield_now();
    }
    u.disk.abandon();
    u.submit(3, Op::Write { at: 4096, from: part(), through: false });
    u.disk.abandon();
    u.submit(3, Op::Write { at: 8192, from: part(), through: false });
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(u.disk.running(), 4, "nothing begins beside what has been given up");
    drop(held);
    u.disk.drain();
    assert_eq!(*u.ends.0.lock(), [(3, true)]);
    assert!(u.memory.lock().iter().all(|b| *b == 0xee));
    u.ends.0.lock().clear();
    assert_eq!((u.read(4096, 512), u.read(8192, 512)), (pattern(1 << 20, 5)[4096..4608].to_vec(), vec![0xee; 512]));
}

#[test]
fn disks_get_other_sizes() {
    let dir = Folder::new();
    let top = dir.0.join("top");
    make_qcow2(&top, 1 << 20, None);
    for (file, format) in [(dir.file("raw", &[1; 1 << 20]), ImageFormat::Raw), (top, ImageFormat::Qcow2)] {
        let u = User::new(&config(&file, Some(format)));
        let told = Arc::new(AtomicU32::new(0));
        let count = told.clone();
        u.disk.watch(Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed)));
        assert!(!u.write(3 << 20, &[2; 1024]), "not there yet");
        u.disk.resize(4 << 20).unwrap();
        assert_eq!((u.disk.geometry().bytes, told.load(Ordering::Relaxed)), (4 << 20, 1));
        assert!(u.write(3 << 20, &[2; 1024]) && u.read(3 << 20, 2048)[1000..1100] == [[2; 24].as_slice(), &[0; 76]].concat());
        u.disk.resize(1 << 19).unwrap();
        assert!(u.disk.geometry().bytes == 1 << 19 && !u.write(1 << 19, &[2; 1024]) && u.write(0, &[3; 1024]));
        drop(u);
        let u = User::new(&config(&file, Some(format)));
        assert_eq!((u.disk.geometry().bytes, u.read(0, 1024)), (1 << 19, vec![3; 1024]));
        let read_only = DriveConfig { read_only: true, ..config(&file, Some(format)) };
        drop(u);
        assert!(User::new(&read_only).disk.resize(1 << 20).is_err());
    }
}

fn be(b: &[u8], at: usize, n: usize) -> usize {
    b[at..at + n].iter().fold(0, |v, b| v << 8 | usize::from(*b))
}

/// An image whose reference counts are wrong is not written to: each count, too low or too high, alone.
#[test]
fn damaged_reference_counts_are_found() {
    let dir = Folder::new();
    let file = dir.0.join("image");
    make_qcow2(&file, 8 << 20, None);
    let u = User::new(&config(&file, None));
    assert!((0..5).all(|i| u.write(i * (1 << 20), &pattern(100_000, 1))) && u.run(Op::Flush));
    drop(u);
    let sound = std::fs::read(&file).unwrap();
    let counts = be(&sound, be(&sound, 48, 8), 8);
    let used = (0..32768).filter(|i| be(&sound, counts + 2 * i, 2) > 0).count();
    assert!(used >= 5 + 5, "{used} clusters");
    let opened = |bytes: &[u8], read_only| {
        let c = DriveConfig { read_only, ..config(&dir.file("damaged", bytes), Some(ImageFormat::Qcow2)) };
        open(&c).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(opened(&sound, false), Ok(()));
    for i in 0..used {
        for count in [0, 2] {
            let mut bad = sound.clone();
            bad[counts + 2 * i + 1] = count;
            let said = opened(&bad, false).expect_err("it is damaged");
            assert!(said.contains("qemu-img check -r all") && !said.contains('\n'), "{said}");
            assert_eq!(opened(&bad, true), Ok(()), "to be read");
        }
    }
    // A cluster that is counted and not used is lost space only.
    let mut leak = sound.clone();
    leak[counts + 2 * used + 1] = 1;
    assert_eq!(opened(&leak, false), Ok(()));
    // One L2 table in two places, and counted so.
    let (mut bad, l1) = (sound.clone(), be(&sound, 40, 8));
    let l2 = be(&sound, l1, 8) & ((1 << 56) - 1);
    bad[counts + 2 * (l2 >> be(&sound, 20, 4)) + 1] = 2;
    for at in [l1, l1 + 8] {
        bad[at..at + 8].copy_from_slice(&(l2 as u64).to_be_bytes());
    }
    let said = opened(&bad, false).expect_err("it could be read for ever");
    assert!(said.contains("two places"), "{said}");
    // No table of counts, none of its blocks, and blocks out of line.
    for (at, v) in [(55, 7), (59, 0), (be(&sound, 48, 8) + 5, 0x77), (be(&sound, 48, 8) + 5, 0)] {
        let mut bad = sound.clone();
        bad[at] = v;
        assert!(opened(&bad, false).is_err(), "{at}");
    }
}

/// What another program cuts off is an error, and nobody takes zeroes for tables.
#[test]
fn images_that_shrink_are_errors() {
    let dir = Folder::new();
    let top = dir.0.join("top");
    make_qcow2(&top, 8 << 20, None);
    for (file, format) in [(dir.file("raw", &[1; 1 << 20]), ImageFormat::Raw), (top, ImageFormat::Qcow2)] {
        let u = User::new(&config(&file, Some(format)));
        assert!(u.write(0, &[2; 4096]) && u.write((1 << 20) - 4096, &[2; 4096]) && u.run(Op::Flush));
        let part = || vec![Segment { pa: 0, len: 4096 }];
        for cut in [1 << 18, 0] {
            std::fs::File::options().write(true).open(&file).unwrap().set_len(cut).unwrap();
            assert!(!u.run(Op::Read { at: (1 << 20) - 4096, to: part() }), "{format:?} {cut}");
        }
        if format == ImageFormat::Qcow2 {
            assert!((0..8).all(|i| !u.write(i << 20, &[3; 4096])) && !u.run(Op::Discard { at: 0, len: 1 << 20 }));
        }
    }
}
