//! Boot tests: `rhea` as a child process with its serial line on pipes. Waits have limits; a failed test keeps what the guest said.

use crate::workspace::cargo;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Characters of the transcript that a failure shows; the file has all.
const TAIL: usize = 2000;

/// The built `rhea`, of the same profile as the tests. `RHEA_TEST_PROGRAM` names another program that takes the same options, to
/// try the tests on an emulator that is known to work.
///
/// # Panics
/// If it does not build.
pub fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| std::env::var_os("RHEA_TEST_PROGRAM").map_or_else(build, PathBuf::from))
}

/// `cargo test` makes no binary of a package whose tests do not ask for it, so this asks.
fn build() -> PathBuf {
    let mut c = cargo();
    c.args(["build", "--package", "machine", "--bin", "rhea", "--message-format=json-render-diagnostics"]);
    let dir = profile_dir();
    let name = dir.file_name().and_then(|n| n.to_str()).expect("a profile's folder has a name");
    c.args(["--profile", if name == "debug" { "dev" } else { name }]);
    let out = c.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(out.status.success(), "rhea does not build");
    let executable = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["executable"].as_str().map(PathBuf::from);
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().filter_map(executable).next_back().expect("cargo names the binary it built")
}

/// target/PROFILE of this test or program.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let dir = exe.parent().expect("a file lies in a folder");
    // Tests lie one below.
    let dir = if dir.ends_with("deps") { dir.parent().expect("deps lies in target/PROFILE") } else { dir };
    dir.to_owned()
}

/// Is there a KVM that may be used? Machines for continuous integration may have none: then it says so, past the test harness, which
/// keeps what tests print.
///
/// # Panics
/// If it cannot be opened for another reason.
pub fn kvm_is_there() -> bool {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            let _ = writeln!(std::io::stderr(), "LEFT OUT: no /dev/kvm ({e})");
            false
        }
        Err(e) => panic!("/dev/kvm: {e}"),
    }
}

/// KVM with each kind of interrupt controllers, and the JIT for what it cannot run, as arguments.
const ON_KVM: [(&str, &[&str]); 3] = [
    ("kvm", &["-accel", "kvm,self-test=off", "-accel", "jit"]),
    ("kvm-split", &["-accel", "kvm,self-test=off,kernel-irqchip=split", "-accel", "jit"]),
    ("kvm-on", &["-accel", "kvm,self-test=off,kernel-irqchip=on", "-accel", "jit"]),
];

/// Names and arguments of the engines on which a small guest and its devices are to be alike; KVM where there is one.
pub fn engines() -> Vec<(&'static str, &'static [&'static str])> {
    let own: [(&str, &[&str]); 2] = [("interp", &["-accel", "interp"]), ("jit", &["-accel", "jit,threshold=0"])];
    own.into_iter().chain(if kvm_is_there() { ON_KVM.to_vec() } else { Vec::new() }).collect()
}

/// A folder for files of boot tests, under `target`.
pub fn scratch() -> PathBuf {
    let dir = profile_dir().join("boot-tests");
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// Writes a file into `scratch` and returns its path as an argument.
pub fn file(name: &str, data: &[u8]) -> String {
    let path = scratch().join(name);
    std::fs::write(&path, data).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path.to_str().expect("the target folder's path is UTF-8").to_owned()
}

/// How much longer than its limit a wait may take while the guest goes on saying something: on a busy host everything is slow.
const LONGEST: u32 = 4;
const ENDED: &str = "the program ended";

/// What a child wrote so far, and whether it can write more.
#[derive(Default)]
struct Stream {
    bytes: Vec<u8>,
    ended: bool,
}

type Shared = Arc<(Mutex<Stream>, Condvar)>;

fn lock(s: &Shared) -> MutexGuard<'_, Stream> {
    s.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that a child writes.
fn to_end(s: &Shared) -> Vec<u8> {
    let mut guard = lock(s);
    while !guard.ended {
        guard = s.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    guard.bytes.clone()
}

fn collect(mut from: impl Read + Send + 'static) -> Shared {
    let shared = Shared::default();
    let to = shared.clone();
    std::thread::spawn(move || {
        let mut buf = [0; 4096];
        loop {
            let n = from.read(&mut buf).unwrap_or(0);
            let mut s = lock(&to);
            s.bytes.extend(&buf[..n]);
            s.ended = n == 0;
            to.1.notify_all();
            if n == 0 {
                return;
            }
        }
    });
    shared
}

/// A running `rhea`. Dropping it kills it.
pub struct Guest {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: Shared,
    errors: Shared,
    /// Output before this has been waited for.
    seen: usize,
    started: Instant,
}

impl Guest {
    /// Starts `rhea` with these arguments; `name` is the test's, and that of its transcript. Unless they name an engine, it is the
    /// JIT: what a test says must not depend on the host's KVM. (`RHEA_TEST_ACCEL` names another one.)
    pub fn start(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program());
        if !args.is_empty() && !args.iter().any(|a| matches!(*a, "-accel" | "--accel" | "-enable-kvm") || a.contains("accel=")) {
            command.args(["-accel", &std::env::var("RHEA_TEST_ACCEL").unwrap_or_else(|_| "jit".into())]);
        }
        Self::spawn(name, command.args(args))
    }

    /// Starts a prepared command.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|e| panic!("{}: {e}", program().display()));
        let output = collect(child.stdout.take().expect("it is piped"));
        let errors = collect(child.stderr.take().expect("it is piped"));
        let input = child.stdin.take();
        Self { name: name.to_owned(), child, input, output, errors, seen: 0, started: Instant::now() }
    }

    /// Waits until `text` appears on the serial line after what was waited for before, and returns what came before it.
    ///
    /// # Panics
    /// If the guest says nothing for `limit`, it has not appeared after four times that, or the program ends first.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> String {
        match self.look_for(text, limit) {
            Ok(before) => before,
            Err(why) => self.fail(&format!("{why} while waiting for {text:?}")),
        }
    }

    /// As `wait_for`, but the program may end instead; whether the text appeared.
    ///
    /// # Panics
    /// If neither happens within `limit`.
    pub fn wait_for_or_end(&mut self, text: &str, limit: Duration) -> bool {
        match self.look_for(text, limit) {
            Ok(_) => true,
            Err(ENDED) => false,
            Err(why) => self.fail(&format!("{why} while waiting for {text:?}")),
        }
    }

    fn look_for(&mut self, text: &str, limit: Duration) -> Result<String, &'static str> {
        let last = Instant::now() + LONGEST * limit;
        let (mut end, mut len) = (Instant::now() + limit, 0);
        let output = self.output.clone();
        let mut s = lock(&output);
        loop {
            if s.bytes.len() > len {
                (end, len) = ((Instant::now() + limit).min(last), s.bytes.len());
            }
            let new = &s.bytes[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.seen += at + text.len();
                return Ok(before);
            }
            let left = end.saturating_duration_since(Instant::now());
            if s.ended || left.is_zero() {
                return Err(if s.ended { ENDED } else { "ran out of time" });
            }
            s = output.1.wait_timeout(s, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends bytes to the serial line.
    ///
    /// # Panics
    /// If the program has ended.
    pub fn send(&mut self, text: &str) {
        let sent = self.input.as_mut().map(|i| i.write_all(text.as_bytes()).and_then(|()| i.flush()));
        if !matches!(sent, Some(Ok(()))) {
            self.fail(&format!("does not take {text:?}: {sent:?}"));
        }
    }

    /// Sends a line, as typed.
    pub fn type_line(&mut self, line: &str) {
        self.send(&format!("{line}\r"));
    }

    /// Waits for the program to end by itself.
    ///
    /// # Panics
    /// If it does not end within `limit`.
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                other => self.fail(&format!("did not end: {other:?}")),
            }
        }
    }

    /// Waits for the end and checks its status.
    ///
    /// # Panics
    /// If it does not end within `limit`, or ends with another status.
    pub fn expect_exit(&mut self, code: i32, limit: Duration) {
        let status = self.wait_for_exit(limit);
        if status.code() != Some(code) {
            self.fail(&format!("ended with {status}, not with status {code}"));
        }
    }

    /// Everything on the serial line so far.
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&lock(&self.output).bytes).into_owned()
    }

    /// Everything on the serial line of a program that has ended or is about to.
    pub fn serial_to_end(&self) -> String {
        String::from_utf8_lossy(&to_end(&self.output)).into_owned()
    }

    /// As `serial_to_end`, for standard error.
    pub fn errors_to_end(&self) -> String {
        String::from_utf8_lossy(&to_end(&self.errors)).into_owned()
    }

    /// The host's number of the program.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Kills the program, as nothing it does can prevent.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Everything on standard error so far.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&lock(&self.errors).bytes).into_owned()
    }

    fn fail(&self, what: &str) -> ! {
        let serial = self.serial();
        let from = serial.char_indices().rev().nth(TAIL).map_or(0, |(i, _)| i);
        let errors = self.errors();
        panic!(
            "{}: {what} (after {:.1} s)\n--- standard error\n{errors}\n--- end of the serial line, all of it in {}\n{}\n---",
            self.name,
            self.started.elapsed().as_secs_f64(),
            self.transcript().display(),
            &serial[from..]
        )
    }

    fn transcript(&self) -> PathBuf {
        scratch().join(format!("{}.transcript", self.name))
    }
}

impl Drop for Guest {
    /// Ends the program; keeps the transcript of a test that failed and drops that of an earlier failure.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = std::fs::write(self.transcript(), &lock(&self.output).bytes);
        } else {
            let _ = std::fs::remove_file(self.transcript());
        }
    }
}

/// Runs `rhea` to its end without input.
///
/// # Panics
/// If it takes longer than `limit`.
pub fn run(name: &str, args: &[&str], limit: Duration) -> Output {
    let mut g = Guest::start(name, args);
    g.input = None;
    let status = g.wait_for_exit(limit);
    Output { status, stdout: to_end(&g.output), stderr: to_end(&g.errors) }
}

/// An ELF32 executable with a PVH entry: `code`, 32-bit, at `ENTRY`, which is where it is entered.
pub fn pvh_elf(code: &[u8]) -> Vec<u8> {
    const EHDR: u32 = 52;
    const PHDR: u32 = 32;
    const NOTE: u32 = EHDR + 2 * PHDR;
    const CODE: u32 = 0x1000;
    let len = u32::try_from(code.len()).expect("test guests are small");
    let words = |list: &[u32]| list.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(words(&[2 | 3 << 16, 1, ENTRY, EHDR, 0, 0, EHDR | PHDR << 16, 2, 0]));
    // PT_LOAD, readable, writable, executable; PT_NOTE with XEN_ELFNOTE_PHYS32_ENTRY.
    elf.extend(words(&[1, CODE, ENTRY, ENTRY, len, len, 7, 0x1000]));
    elf.extend(words(&[4, NOTE, 0, 0, 20, 20, 4, 4]));
    elf.extend(words(&[4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY]));
    elf.resize(CODE as usize, 0);
    elf.extend(code);
    elf
}

/// Where `pvh_elf` loads its code.
pub const ENTRY: u32 = 0x10_0000;
