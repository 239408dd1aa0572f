//! Tests of saved state in one process: round trips, files cut and altered in every way, files that cannot be written.

use super::*;
use crate::board::{Board, Outside, traffic};
use crate::control::{Control, RunState};
use crate::engine;
use crate::firmware::Start;
use crate::loader::Images;
use crate::options::{Config, Request, RtcClock, parse};
use crate::runner::{Policy, Runner};
use devices::chr::NullSink;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_core::testing::Rng;
use vm_core::{Clock, CpuIo, Events, Ram, VcpuSignals};

const LINE: &str = "-accel interp -m 2M -rtc clock=vm -nodefaults -display none -kernel";

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("rhea-state-{}-{name}", std::process::id()))
}

/// A machine with the built-in guest, ready to start.
fn runner(more: &str) -> Runner {
    let kernel = scratch(&format!("{:?}.elf", std::thread::current().id()));
    std::fs::write(&kernel, crate::firstrun::built_in().unwrap()).unwrap();
    let line = format!("{LINE} {} {more}", kernel.display());
    let Ok(Request::Run(c)) = parse(line.split_whitespace().map(str::to_owned)) else { panic!("{line}") };
    let made = make(&c, &kernel);
    std::fs::remove_file(kernel).unwrap();
    made
}

fn make(c: &Config, kernel: &Path) -> Runner {
    let images = Images::read(kernel, None, "", c.mem_bytes).unwrap();
    let signals = Arc::new(VcpuSignals::default());
    let control = Control::new(vec![signals.clone()], RunState::Paused);
    let (cpu, _) = engine::make(&c.cpu, engine::settings(&c.accel).unwrap(), std::slice::from_ref(&signals)).unwrap();
    let a20 = control.clone();
    let out = Outside {
        clock: Clock::new(),
        cpus: vec![(0, signals)],
        power: Arc::new(control.clone()),
        a20: Arc::new(move |on| a20.set_a20(on)),
        remap: Arc::new(|| {}),
        firmware: None,
        serials: [Some(Arc::new(NullSink)), None, None, None],
        devices: vec![],
        disks: Default::default(),
        nets: Default::default(),
        virtio: Default::default(),
        unix_seconds: 0,
    };
    let board = Arc::new(Board::new(c.machine, c.mem_bytes, out).unwrap());
    let policy = Policy { reset_ends: false, power_off_pauses: true, rtc_follows_host: c.rtc.clock == RtcClock::Host };
    Runner::new(cpu, board, Start::Kernel(images), control, policy).unwrap()
}

fn saved(r: &mut Runner) -> Vec<u8> {
    let mut file = vec![];
    let head = r.head(false);
    write(&mut file, &head, &r.board.ram).unwrap();
    file
}

/// Rounds of a random test: `n`, or as many times that as `RHEA_TEST_ROUNDS` says.
fn rounds(n: u64) -> u64 {
    n * std::env::var("RHEA_TEST_ROUNDS").map_or(1, |s| s.parse().expect("RHEA_TEST_ROUNDS is a number"))
}

/// All that a load may change, but for what differs by itself: the time of saving.
fn all(r: &mut Runner) -> (Head, Vec<u8>) {
    let mut ram = vec![0; r.board.ram.size() as usize];
    r.board.ram.read(0, &mut ram);
    (Head { saved_at: 0, ..r.head(false) }, ram)
}

/// The same machine after the guest has done something.
fn used() -> Runner {
    let mut r = runner("");
    let control = r.control().clone();
    r.board.clock.start();
    let stop = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        control.set_a20(true);
    });
    let _ = run(&mut r);
    stop.join().unwrap();
    r.board.clock.stop();
    r.forget_a20();
    // Devices that look at the clock only when asked catch up on loading; here they have.
    let board = r.board.clone();
    board.load(&board.save()).unwrap();
    r
}

fn run(r: &mut Runner) -> vm_core::StopReason {
    let cpu = &mut r.cpus[0];
    cpu.engine.run(&cpu.io)
}

/// Puts a changed head into a file and makes all checksums right.
fn with_head(file: &[u8], json: &[u8]) -> Vec<u8> {
    let old = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    let mut new = file[..12].to_vec();
    new.extend((json.len() as u32).to_le_bytes());
    new.extend(crc32fast::hash(json).to_le_bytes());
    new.extend(json);
    new.extend(&file[20 + old..file.len() - 4]);
    new.extend(crc32fast::hash(&new).to_le_bytes());
    new
}

fn head_of(file: &[u8]) -> Value {
    let len = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    serde_json::from_slice(&file[20..20 + len]).unwrap()
}

/// A file in memory.
struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let from = self.0.get(at as usize..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn load(r: &mut Runner, file: &[u8]) -> Result<(), StateError> {
    r.load_from(&Bytes(file))
}

#[test]
fn a_machine_is_the_same_after_loading() {
    let mut a = used();
    let (file, want) = (saved(&mut a), all(&mut a));
    let mut b = runner("");
    b.board.ram.write(0x18_0000, &[0xcc; 8192]);
    load(&mut b, &file).unwrap();
    let (head, ram) = all(&mut b);
    for (now, then) in head.sections.iter().zip(&want.0.sections) {
        assert_eq!(now, then);
    }
    assert!((head, ram) == want);
    assert!(file.len() < 1 << 20, "pages of zeroes are left out: {}", file.len());
    let stats = write(std::io::sink(), &a.head(false), &a.board.ram).unwrap();
    assert_eq!((stats.bytes, stats.pages + stats.zero_pages), (file.len() as u64, 512));
}

/// As QEMU's: with `-rtc clock=host` the time of day is the host's, with `clock=vm` that of saving.
#[test]
fn the_time_of_day_follows_what_it_is_told_to() {
    let file = saved(&mut runner(""));
    let mut head = head_of(&file);
    head["saved_at"] = (head["saved_at"].as_u64().unwrap() - 3600 * 1_000_000_000).into();
    let late = with_head(&file, head.to_string().as_bytes());
    for (clock, hours) in [("host", 1), ("vm", 0)] {
        let mut r = runner(&format!("-rtc clock={clock}"));
        load(&mut r, &late).unwrap();
        r.cpus[0].io.port_write(0x70, 1, 4);
        assert_eq!(r.cpus[0].io.port_read(0x71, 1), hours, "{clock}");
    }
}

#[test]
fn runs_of_pages_at_both_ends_and_over_chunks() {
    let head = runner("").head(false);
    let mut r = Rng(3);
    for round in 0..40 {
        let ram = Ram::new(600 * 4096).unwrap();
        for page in 0..600 {
            if r.one_in(round / 4 + 1) || page == 0 || page == 599 {
                ram.write(page * 4096 + r.below(4096), &[1]);
            }
        }
        let mut file = vec![];
        write(&mut file, &head, &ram).unwrap();
        let (mut there, mut seen) = (vec![0xee; 600 * 4096], vec![0; 600 * 4096]);
        let (reader, again) = Reader::open(Bytes(&file)).unwrap();
        assert_eq!(again, head);
        let pages = reader.plan(600 * 4096).unwrap();
        let mut known: Vec<(u64, u64)> = [pages.stretches(true), pages.stretches(false)].concat();
        known.sort();
        assert_eq!(known.iter().fold(0, |end, (at, n)| if *at == end { end + n } else { panic!("{known:?}") }), 600 * 4096);
        pages.stretches(false).iter().for_each(|(at, n)| there[*at as usize..(at + n) as usize].fill(0));
        let cell = parking_lot::Mutex::new(&mut there);
        pages.read_on(round % 5 + 1, |at, b| cell.lock()[at as usize..][..b.len()].copy_from_slice(b)).unwrap();
        ram.read(0, &mut seen);
        assert!(there == seen, "round {round}");
    }
}

/// A file of which somebody writes one byte after some reads.
struct Changing {
    file: Vec<u8>,
    at: usize,
    reads: AtomicUsize,
}

impl Source for Changing {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
        Bytes(&self.file).read_at(at, buf)?;
        let changed = self.reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err();
        if let Some(b) = self.at.checked_sub(at as usize).and_then(|i| buf.get_mut(i)).filter(|_| changed) {
            *b ^= 4;
        }
        Ok(())
    }
}

/// Whatever is written into it meanwhile: a load says so, or has read all before.
#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let head = runner("").head(false);
    let ram = Ram::new(32 * 4096).unwrap();
    (0..32).filter(|p| p % 5 != 0).for_each(|p| ram.write(p * 4096, &[7; 4096]));
    let mut file = vec![];
    write(&mut file, &head, &ram).unwrap();
    let mut rng = Rng(17);
    let (mut good, mut bad) = (0, 0);
    for n in 0..2000 {
        let at = rng.below(file.len() as u64) as usize;
        let from = Changing { file: file.clone(), at, reads: AtomicUsize::new(rng.below(40) as usize) };
        let there = parking_lot::Mutex::new(vec![0; 32 * 4096]);
        let put = |at: u64, b: &[u8]| there.lock()[at as usize..][..b.len()].copy_from_slice(b);
        let read = Reader::open(&from).and_then(|(r, again)| r.plan(32 * 4096)?.read_on(n % 3 + 1, put).map(|()| again));
        match read {
            Ok(again) => {
                let mut want = vec![0; 32 * 4096];
                ram.read(0, &mut want);
                assert!(again == head && there.into_inner() == want, "number {n}");
                good += 1;
            }
            Err(_) => bad += 1,
        }
    }
    assert!(good > 100 && bad > 100, "{good} read, {bad} refused");
}

#[test]
fn a_file_cut_anywhere_is_refused_and_nothing_changes() {
    let file = saved(&mut used());
    let mut r = runner("");
    let before = all(&mut r);
    let mut rng = Rng(9);
    let places = (0..200).chain((0..800).map(|_| rng.below(file.len() as u64))).chain([file.len() as u64 - 1]);
    for at in places {
        let e = load(&mut r, &file[..at as usize]).unwrap_err();
        assert!(matches!(e, StateError::Cut | StateError::Magic), "{at}: {e}");
    }
    assert!(all(&mut r) == before);
    assert_eq!(load(&mut r, &[&file[..], b"x"].concat()).unwrap_err().to_string(), "damaged: there is something after the end");
    load(&mut r, &file).unwrap();
}

#[test]
fn altered_files_are_refused_and_nothing_changes() {
    let file = saved(&mut used());
    let mut r = runner("");
    let before = all(&mut r);
    let mut rng = Rng(11);
    for n in 0..rounds(4000) {
        let mut bad = file.clone();
        for _ in 0..=rng.below(3) {
            // Half of them in the first kilobytes, where most of the structure is.
            let span = if rng.one_in(2) { bad.len() as u64 } else { 6000 };
            let at = rng.below(span) as usize;
            bad[at] ^= 1 << rng.below(8);
        }
        if bad != file {
            load(&mut r, &bad).expect_err(&format!("number {n}"));
        }
    }
    assert!(all(&mut r) == before);
}

/// A value that a device might not expect in place of another.
fn odd(v: &Value, r: &mut Rng) -> Value {
    match r.below(8) {
        0 => Value::Null,
        1 => (-1).into(),
        2 => u64::MAX.into(),
        3 => (1u64 << r.below(64)).into(),
        4 => vec![0u8; r.below(300) as usize].into(),
        5 => Value::Bool(r.one_in(2)),
        6 => r.below(256).into(),
        _ => v.as_u64().map_or("x".into(), |n| (n ^ 1 << r.below(64)).into()),
    }
}

/// Changes one value somewhere below `v`.
fn mutate(v: &mut Value, r: &mut Rng) {
    match v {
        Value::Array(a) if !a.is_empty() && !r.one_in(30) => {
            let i = r.below(a.len() as u64) as usize;
            if r.one_in(40) {
                a.remove(i);
            } else {
                mutate(&mut a[i], r);
            }
        }
        Value::Object(o) if !o.is_empty() && !r.one_in(30) => {
            let key = o.keys().nth(r.below(o.len() as u64) as usize).unwrap().clone();
            if r.one_in(40) {
                o.remove(&key);
            } else {
                mutate(&mut o[&key], r);
            }
        }
        _ => *v = odd(v, r),
    }
}

/// Ends `Vcpu::run` every millisecond.
struct Alarm(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Alarm {
    fn start(signals: Arc<VcpuSignals>) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let end = done.clone();
        let ring = move || {
            while !end.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
                signals.raise(Events::STOP);
            }
        };
        Self(done, Some(std::thread::spawn(ring)))
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

/// Files whose checksums are right and whose values are not: what is accepted must be harmless, what is refused changes nothing.
#[test]
fn forged_states_never_panic() {
    let mut r = runner("");
    let mut rng = Rng(13);
    let mut files = vec![saved(&mut used())];
    for _ in 0..5 {
        let mut u = used();
        traffic(&u.cpus[0].io, &mut rng, 3000);
        files.push(saved(&mut u));
    }
    let (mut good, mut bad) = (0, 0);
    let clock = r.board.clock.clone();
    let alarm = Alarm::start(r.board.lapics[0].signals().clone());
    for n in 0..rounds(6000) {
        let file = &files[rng.below(files.len() as u64) as usize];
        let whole = head_of(file);
        let mut head = whole.clone();
        for _ in 0..=rng.below(2) {
            mutate(&mut head, &mut rng);
        }
        let forged = with_head(file, head.to_string().as_bytes());
        let before = if n % 50 == 0 { Some(all(&mut r)) } else { None };
        if load(&mut r, &forged).is_ok() {
            good += 1;
            clock.set(clock.now().saturating_add(1 << rng.below(40)).min(1 << 62));
            clock.run_expired();
            let _ = r.head(false);
            // Until the alarm rings, or the guest halts or faults.
            r.board.lapics[0].signals().clear(Events::STOP);
            let _ = run(&mut r);
            let _ = r.head(false);
        } else {
            bad += 1;
            assert_ne!(r.state(), RunState::InternalError, "number {n} was refused half-way");
            assert!(before.is_none_or(|b| b == all(&mut r)), "number {n} was refused and has changed something");
        }
    }
    drop(alarm);
    assert!(good > 100 && bad > 100, "{good} accepted, {bad} refused");
    load(&mut r, &files[0]).unwrap();
}

#[test]
fn what_is_no_head_is_refused() {
    let file = saved(&mut runner(""));
    let mut r = runner("");
    let deep = "[".repeat(1 << 20);
    let mut doubled = head_of(&file).to_string();
    doubled.insert_str(1, "\"clock\":1,");
    for json in ["", "{}", "[]", "null", "\u{0}", &deep, &doubled] {
        let e = load(&mut r, &with_head(&file, json.as_bytes())).unwrap_err();
        assert!(matches!(e, StateError::Damaged(_)), "{e}");
    }
    // A length that is a lie costs nothing.
    for len in [u32::MAX, 4 << 20] {
        let mut bad = file.clone();
        bad[12..16].copy_from_slice(&len.to_le_bytes());
        load(&mut r, &bad).unwrap_err();
    }
}

#[test]
fn runs_out_of_place_are_refused() {
    let head = runner("").head(false);
    let read = |runs: &[(u64, u64)]| {
        let mut file = vec![];
        let ram = Ram::new(4096).unwrap();
        write(&mut file, &head, &ram).unwrap();
        file.truncate(file.len() - 20);
        for (page, count) in runs {
            file.extend([page.to_le_bytes(), count.to_le_bytes()].concat());
            if *count <= 256 {
                file.resize(file.len() + *count as usize * 4096, 1);
            }
        }
        file.extend([u64::MAX.to_le_bytes(), [0; 8]].concat());
        file.extend(crc32fast::hash(&file).to_le_bytes());
        Reader::open(Bytes(&file)).unwrap().0.plan(16 * 4096)?.read(|_, _| {})
    };
    read(&[(0, 1), (3, 2), (15, 1)]).unwrap();
    for bad in [
        &[(16, 1)][..],
        &[(15, 2)],
        &[(3, 1), (2, 1)],
        &[(3, 2), (4, 1)],
        &[(0, 0)],
        &[(0, 257)],
        &[(0, u64::MAX)],
        &[(u64::MAX, 1)],
        &[(u64::MAX - 1, 4)],
    ] {
        assert!(read(bad).unwrap_err().to_string().contains("out of place"), "{bad:?}");
    }
}

#[test]
fn newer_files_and_other_machines_are_refused() {
    let file = saved(&mut runner(""));
    let mut newer = file.clone();
    newer[8] = 2;
    assert!(load(&mut runner(""), &newer).unwrap_err().to_string().contains("version 2 of the format"));
    for (more, words) in [
        ("-m 3M", "RAM of bytes 2097152, this one has 3145728"),
        ("-machine q35", "machine type pc, this one has q35"),
        ("-cpu max", "CPU model qemu64, this one has max"),
        ("-cpu qemu64,-sse3", "CPU features"),
        ("-no-hpet", "hpet"),
    ] {
        let mut r = runner(more);
        let before = all(&mut r);
        let e = load(&mut r, &file).unwrap_err().to_string();
        assert!(e.contains(words) && !e.contains('\n'), "{more}: {e}");
        assert!(all(&mut r) == before);
    }
    // A section that a later version wrote.
    let mut head = head_of(&file);
    head["sections"][3]["version"] = 99.into();
    let e = load(&mut runner(""), &with_head(&file, head.to_string().as_bytes())).unwrap_err().to_string();
    assert!(e.contains("version 99 is newer"), "{e}");
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let dir = scratch("replace");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    let path = dir.join("state");
    let put = |text: &'static str| move |f: &mut std::fs::File| std::io::Write::write_all(f, text.as_bytes());
    replace(&path, put("one")).unwrap();
    replace(&path, put("two")).unwrap();
    let failed = replace(&path, |f| {
        put("three")(f)?;
        Err::<(), _>(std::io::Error::other("the disk is full"))
    });
    assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    let link = dir.join("link");
    std::os::unix::fs::symlink("state", &link).unwrap();
    replace(&link, put("four")).unwrap();
    assert!(link.is_symlink());
    assert_eq!(std::fs::read(&path).unwrap(), b"four");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "nothing is left over");
    for wrong in [Path::new("/dev/full"), Path::new("/dev/null"), &dir, Path::new("/"), Path::new("")] {
        assert!(replace(wrong, put("x")).is_err(), "{}", wrong.display());
    }
    assert!(matches!(runner("").load(Path::new("/dev/zero")), Err(StateError::NoFile)));
    std::fs::remove_dir_all(&dir).unwrap();
}
