//! Saved state of a Linux guest that is busy: a compiler, gzip and timers at once, saved at random instants and gone on with
//! in other processes on other engines. `RHEA_LOADED_CASES` and `RHEA_LOADED_SEED` are for the long form.

use cpio::newc::{Builder, ModeFileType, trailer};
use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{Guest, file, scratch};
use rhea_tests::qmp::Client;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vm_core::testing::{Rng, left_out};

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3600 } else { 900 });

/// What the guest runs: it says a dot at each step, and ends by a sum over object files, what the compiled programs return, and compressed text, and by
/// how often a timer has woken a process.
const JOB: &str = r#"cd /tmp
export LD_LIBRARY_PATH=/load
exec 3>&1
echo go
(n=0; while [ ! -e end ]; do usleep 2000; n=$((n+1)); done; echo $n > ticks) &
(for i in 1 2 3; do seq $i 7 20000 | sed "s/$/ line $i/"; done | gzip -9 | tee text.gz | md5sum > gzip.sum; printf . >&3; gunzip -c text.gz | md5sum >> gzip.sum) &
gzip=$!
for i in 1 2 3; do
    awk -v k=$i 'BEGIN {
        for (f = 0; f < 100; f++)
            printf "int f%d(int x) { int s = %d; for (int i = 0; i < x; i++) s += i * %d ^ s >> 3; return s; }\n", f, f, f * 7 + k
        print "void _start(void) { int s = 0;"
        for (f = 0; f < 100; f++) printf "s = s * 5 + f%d(s & 31);\n", f
        print "__asm__ volatile (\"syscall\" : : \"a\" (60), \"D\" (s & 127)); }"
    }' > job.c
    printf . >&3
    /load/tcc -c job.c -o job$i.o
    printf . >&3
    /load/tcc -nostdlib -static job$i.o -o job
    md5sum < job$i.o
    printf . >&3
    ./job
    echo "returns $?"
    printf . >&3
done > tcc.sum 2>&1
wait $gzip
touch end
wait
cat tcc.sum gzip.sum | md5sum > sum
[ $(cat ticks) -gt 20 ] && echo "sum=$(cut -c 1-32 sum), $(grep -c returns tcc.sum)"
"#;

/// Kernel and initial RAM disk of the first command, and in it the job with its compiler; `None` where they cannot be had.
fn guest() -> Option<(String, String)> {
    let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
    let c = firstrun::prepare(*c).expect("some guest can always be made");
    let (kernel, initrd) = (c.kernel?, c.initrd?);
    let mut all = std::fs::read(initrd).expect("it has just been made");
    // Archives may follow each other (Documentation/driver-api/early-userspace/buffer-format.rst).
    all.resize(all.len().next_multiple_of(512), 0);
    all.extend(archive(&packages()?));
    Some((kernel.into_os_string().into_string().expect("the cache folder's path is UTF-8"), file("loaded.cpio", &all)))
}

/// The compiler and its libraries, from Debian's packages.
fn packages() -> Option<Vec<(&'static str, Vec<u8>)>> {
    let dir = scratch().join("packages");
    let root = dir.join("root");
    if !root.exists() && !fetch(&dir) {
        let _ = std::fs::remove_dir_all(&dir);
        return None;
    }
    let first = |names: &[&str]| names.iter().find_map(|n| std::fs::read(root.join(n)).ok());
    let library = |n: &str| first(&[&format!("lib/x86_64-linux-gnu/{n}"), &format!("usr/lib/x86_64-linux-gnu/{n}")]);
    Some(vec![
        ("load/tcc", first(&["usr/bin/tcc", "usr/bin/x86_64-linux-gnu-tcc"])?),
        ("load/libc.so.6", library("libc.so.6")?),
        ("load/libm.so.6", library("libm.so.6")?),
        ("load/libpthread.so.0", library("libpthread.so.0")?),
        ("load/libdl.so.2", library("libdl.so.2")?),
        ("lib64/ld-linux-x86-64.so.2", library("ld-linux-x86-64.so.2")?),
        ("load/job", JOB.as_bytes().to_vec()),
    ])
}

/// Downloads the packages and unpacks them into `root`; whether that went well.
fn fetch(dir: &Path) -> bool {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir(dir).expect("the target folder can be written");
    let done = |c: &mut Command| c.current_dir(dir).output().is_ok_and(|o| o.status.success());
    if !done(Command::new("apt-get").args(["-qq", "download", "tcc", "libc6"])) {
        return false;
    }
    let archives: Vec<_> = std::fs::read_dir(dir).expect("it is there").map(|f| f.expect("it can be read").path()).collect();
    archives.iter().all(|path| done(Command::new("dpkg-deb").arg("-x").arg(path).arg("root")))
}

fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let folders = ["load", "lib64"].map(|d| (d, ModeFileType::Directory, &[][..]));
    let files = files.iter().map(|(name, data)| (*name, ModeFileType::Regular, &data[..]));
    for (ino, (name, kind, data)) in (1000..).zip(folders.into_iter().chain(files)) {
        let mut w = Builder::new(name).ino(ino).mode(0o755).set_mode_file_type(kind).write(&mut out, data.len() as u32);
        w.write_all(data).and_then(|()| w.finish()).expect("memory takes all");
    }
    trailer(&mut out).expect("memory takes all");
    out
}

struct Machine {
    kernel: String,
    initrd: String,
}

impl Machine {
    fn start(&self, engine: &str, more: &[&str]) -> (Guest, Client) {
        let socket = scratch().join("loaded.qmp");
        let _ = std::fs::remove_file(&socket);
        let qmp = format!("unix:{},server=on,wait=off", socket.display());
        let machine = ["-m", "128M", "-kernel", &self.kernel, "-initrd", &self.initrd, "-append", "console=ttyS0 quiet"];
        let host = ["-display", "none", "-serial", "stdio", "-qmp", &qmp, "-accel", engine];
        (Guest::start("loaded", &[&machine[..], &host, more].concat()), Client::new(&socket))
    }

    fn load(&self, engine: &str, from: &Path) -> (Guest, Client) {
        self.start(engine, &["-loadvm", from.to_str().expect("the target folder's path is UTF-8")])
    }
}

/// Hands the machine on: what it has said to the very instant of saving.
fn hand_on((mut g, mut c): (Guest, Client), to: &Path) -> String {
    let done = c.migrate(to);
    assert_eq!(done["status"], "completed", "{done}");
    c.run("quit");
    g.expect_exit(0, LIMIT);
    g.serial_to_end()
}

/// The engines of the first and the third process, and of the second.
const PAIRS: [(&str, &str); 6] = [
    ("jit", "interp"),
    ("interp", "jit"),
    ("jit", "jit,threshold=0,region=block"),
    ("jit", "jit"),
    ("jit,threshold=0", "interp"),
    ("jit", "jit,threshold=0"),
];

/// Dots that a job says: four for each program, and one.
const DOTS: u64 = 13;

/// Waits for a random number of dots, or the job's end, and some milliseconds more. Returns how long that was.
fn advance(g: &Guest, rng: &mut Rng, dots: u64) -> String {
    let (dots, ms) = (rng.below(dots), rng.below(100));
    let end = Instant::now() + LIMIT;
    let there = |s: &str| s.contains("sum=") || s.matches('.').count() as u64 >= dots;
    while !there(&g.serial()) {
        assert!(Instant::now() < end, "after {dots} dots there was no other:\n{}", g.serial());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(ms));
    format!("{dots} dots and {ms} ms")
}

fn run(cases: u64, seed: u64, pairs: &[(&str, &str)]) {
    let Some((kernel, initrd)) = guest() else {
        left_out("loaded: Debian's kernel and compiler cannot be fetched here");
        return;
    };
    let m = Machine { kernel, initrd };
    let files: Vec<PathBuf> = (0..3).map(|i| scratch().join(format!("loaded-{i}.vm"))).collect();
    let (mut g, c) = m.start("jit", &[]);
    g.wait_for("# ", LIMIT);
    hand_on((g, c), &files[0]);

    let begin = |engine: &str| {
        let (mut g, c) = m.load(engine, &files[0]);
        g.type_line("sh /load/job");
        g.wait_for("\ngo\r\n", LIMIT);
        (g, c)
    };
    let (mut g, mut c) = begin("jit");
    g.wait_for("sum=", LIMIT);
    let want = format!("sum={}", g.wait_for("\r\n", LIMIT));
    assert!(want.len() == 39 && want.ends_with(", 3"), "all programs were compiled and run: {want}");
    c.run("quit");

    let mut busy = 0;
    for case in 0..cases {
        let mut rng = Rng(seed + case);
        let (outer, inner) = pairs[((seed + case) % pairs.len() as u64) as usize];
        let one = begin(outer);
        let first = advance(&one.0, &mut rng, DOTS);
        let mut said = hand_on(one, &files[1]);
        busy += u64::from(!said.contains("sum="));
        let two = m.load(inner, &files[1]);
        let second = advance(&two.0, &mut rng, DOTS / 2);
        said += &hand_on(two, &files[2]);
        let (three, mut c) = m.load(outer, &files[2]);
        let end = Instant::now() + LIMIT;
        let told = || format!("{said}{}", three.serial());
        while !told().split_once("sum=").is_some_and(|(_, s)| s.contains('\n')) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(
            told().contains(&format!("{want}\r\n")),
            "case {} ({outer}, {first}, {inner}, {second}) instead of {want}:\n{}",
            seed + case,
            told()
        );
        c.run("quit");
        eprintln!("case {}: {outer}, {first}, {inner}, {second}", seed + case);
    }
    assert!(busy * 2 > cases, "only {busy} of {cases} were saved before the job had ended");
}

#[test]
fn a_busy_guest_goes_on_elsewhere() {
    run(2, 1, &PAIRS[..2]);
}

/// A hundred cases unless told otherwise: two saves in each.
#[test]
#[ignore = "takes a quarter of an hour"]
fn a_busy_guest_goes_on_elsewhere_again_and_again() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |s| s.parse().expect("it is a number"));
    run(number("RHEA_LOADED_CASES", 100), number("RHEA_LOADED_SEED", 1000), &PAIRS);
}
