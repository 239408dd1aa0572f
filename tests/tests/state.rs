//! Saved state on the whole program: machines that go on in other processes and on other engines, files that cannot be
//! written or read, and the same machine put back to where it was.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{ENTRY, Guest, file, program, pvh_elf, run, scratch};
use rhea_tests::qmp::Client;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Limits that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 1200 } else { 120 });
const COM1: u32 = 0x3f8;
const EXIT: u32 = 0x501;

fn elf(name: &str, body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> String {
    let assemble = || {
        let mut a = CodeAssembler::new(32)?;
        a.cli()?;
        a.mov(esp, ENTRY + 0x8000)?;
        body(&mut a)?;
        a.assemble(u64::from(ENTRY))
    };
    file(&format!("{name}.elf"), &pvh_elf(&assemble().expect("the guest assembles")))
}

fn fresh(name: &str) -> PathBuf {
    let path = scratch().join(name);
    let _ = std::fs::remove_file(&path);
    path
}

/// A guest with QMP on a socket.
fn start(name: &str, args: &[&str]) -> (Guest, PathBuf) {
    let socket = fresh(&format!("{name}.qmp"));
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let common = ["-display", "none", "-serial", "stdio", "-qmp", &qmp];
    (Guest::start(name, &[args, &common].concat()), socket)
}

fn text(p: &Path) -> &str {
    p.to_str().expect("the target folder's path is UTF-8")
}

const MIXER_ROUNDS: u32 = 30_000;

/// Mixes 64 KiB of memory again and again with integer, x87 and SSE state, rewrites a constant in its own loop, and tells
/// the sum each round. Ends with status 43.
fn mixer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const BUFFER: u32 = ENTRY + 0x10_000;
    let (mut round, mut inner, mut digit, mut here) = (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    // CR4.OSFXSR, CR4.OSXMMEXCPT.
    a.mov(eax, 0x600)?;
    a.mov(cr4, eax)?;
    a.fninit()?;
    a.fld1()?;
    a.pxor(xmm1, xmm1)?;
    a.mov(ebx, 1)?;
    a.mov(ebp, MIXER_ROUNDS)?;
    a.xor(esi, esi)?;
    a.set_label(&mut round)?;
    a.mov(edi, BUFFER)?;
    a.mov(ecx, 0x1000)?;
    a.set_label(&mut inner)?;
    a.imul_3(ebx, ebx, 1_103_515_245)?;
    a.add(ebx, 0x1234_5678)?;
    a.xor(dword_ptr(edi), ebx)?;
    a.add(esi, dword_ptr(edi))?;
    a.movd(xmm0, ebx)?;
    a.paddd(xmm1, xmm0)?;
    a.add(edi, 16)?;
    a.dec(ecx)?;
    a.jne(inner)?;
    // The constant of an instruction a little ahead, which adds zero at first.
    a.call(here)?;
    a.set_label(&mut here)?;
    a.pop(eax)?;
    a.mov(byte_ptr(eax + 6), bl)?;
    // POP takes one byte, the store three, the opcode and operand of ADD two.
    a.add(esi, 0x1234_5600)?;
    a.fiadd(dword_ptr(BUFFER))?;
    a.fld1()?;
    a.faddp(st1, st0)?;
    a.sub(esp, 8)?;
    a.fst(qword_ptr(esp))?;
    a.pop(eax)?;
    a.add(esi, eax)?;
    a.pop(eax)?;
    a.add(esi, eax)?;
    a.movd(eax, xmm1)?;
    a.add(esi, eax)?;
    a.mov(edx, COM1)?;
    a.mov(edi, esi)?;
    a.mov(ecx, 8)?;
    a.set_label(&mut digit)?;
    a.rol(edi, 4)?;
    a.mov(eax, edi)?;
    a.and(eax, 15)?;
    a.add(eax, i32::from(b'a'))?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jne(digit)?;
    a.mov(eax, u32::from(b'\n'))?;
    a.out(dx, al)?;
    a.dec(ebp)?;
    a.jne(round)?;
    a.mov(edx, EXIT)?;
    a.mov(eax, 21)?;
    a.out(dx, al)?;
    a.hlt()
}

/// One computation handed on from process to process, each on another engine: what they say, put together, is what one of
/// them says alone.
#[test]
fn a_computation_goes_through_many_processes() {
    let elf = elf("state-mixer", mixer);
    let args = ["-m", "4M", "-device", "isa-debug-exit", "-kernel", &elf];
    let alone = run("state-alone", &[&args[..], &["-display", "none", "-serial", "stdio"]].concat(), LIMIT);
    assert_eq!(alone.status.code(), Some(43));
    let want = String::from_utf8_lossy(&alone.stdout).into_owned();
    assert_eq!(want.lines().count(), MIXER_ROUNDS as usize);

    let engines = ["jit", "interp", "jit,threshold=0", "interp", "jit,threshold=0,region=block", "jit"];
    let (mut said, mut hops) = (String::new(), 0);
    let mut from: Option<PathBuf> = None;
    for hop in 0..engines.len() * 2 {
        let accel = ["-accel", engines[hop % engines.len()]];
        let incoming = from.as_ref().map(|f| format!("file:{}", f.display()));
        let more: Vec<&str> = incoming.iter().flat_map(|f| ["-incoming", f]).collect();
        let (mut g, socket) = start("state-hop", &[&args[..], &accel, &["-S"], &more].concat());
        let mut c = Client::new(&socket);
        c.run("cont");
        std::thread::sleep(Duration::from_millis(5 + 4 * hop as u64));
        let to = scratch().join(format!("state-hop-{}", hop % 2));
        let done = c.migrate(&to);
        assert_eq!(done["status"], "completed", "{done}");
        assert_eq!(c.run("query-status"), json!({ "status": "postmigrate", "running": false }));
        c.run("quit");
        g.expect_exit(0, LIMIT);
        let part = g.serial_to_end();
        hops += u32::from(!part.is_empty() && from.is_some());
        said += &part;
        from = Some(to);
    }
    let last = format!("file:{}", from.expect("there were hops").display());
    let rest = run("state-last", &[&args[..], &["-display", "none", "-serial", "stdio", "-incoming", &last]].concat(), LIMIT);
    assert_eq!(rest.status.code(), Some(43));
    said += &String::from_utf8_lossy(&rest.stdout);
    assert!(said == want, "what the processes say differs from what one says alone");
    assert!(hops > 6 && !rest.stdout.is_empty(), "{hops} of them did something");
}

/// Says A for ever; told anything, it rewrites the instruction that says so to say B.
fn a_or_b(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut here, mut wait) = (a.create_label(), a.create_label(), a.create_label());
    // EDI is where the letter is loaded.
    a.call(here)?;
    a.set_label(&mut again)?;
    a.mov(al, i32::from(b'A'))?;
    a.mov(edx, COM1)?;
    a.out(dx, al)?;
    a.mov(ecx, 20_000)?;
    a.set_label(&mut wait)?;
    a.dec(ecx)?;
    a.jne(wait)?;
    a.mov(edx, COM1 + 5)?;
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.je(again)?;
    a.mov(edx, COM1)?;
    a.in_(al, dx)?;
    a.mov(byte_ptr(edi + 1), i32::from(b'B'))?;
    a.jmp(again)?;
    a.set_label(&mut here)?;
    a.pop(edi)?;
    a.jmp(edi)
}

/// Back to before the guest rewrote its own code: the old code runs, in the process that has translated the new one.
#[test]
fn loading_drops_translated_code() {
    let elf = elf("state-code", a_or_b);
    for engine in ["interp", "jit,threshold=0", "jit,threshold=0,region=block"] {
        let (mut g, socket) = start("state-code", &["-accel", engine, "-m", "4M", "-kernel", &elf]);
        let mut c = Client::new(&socket);
        let path = fresh("state-code.vm");
        g.wait_for("AAAA", LIMIT);
        assert_eq!(c.human(&format!("savevm {}", path.display())), "");
        for _ in 0..3 {
            g.send("x");
            g.wait_for("BBBB", LIMIT);
            assert_eq!(c.human(&format!("loadvm {}", path.display())), "");
            g.wait_for("AAAA", LIMIT);
            assert_eq!(c.run("query-status")["status"], "running");
        }
        c.human("stop");
        assert_eq!(c.human(&format!("loadvm {}", path.display())), "");
        assert_eq!(c.human("info status"), "VM status: paused\r\n");
        // What it had said before may still be on its way; one that runs says something all the time.
        let quiet = |_| {
            let before = g.serial().len();
            std::thread::sleep(Duration::from_millis(20));
            (g.serial().len() == before).then_some(before)
        };
        let before = (0..50).find_map(quiet).expect("a stopped machine stays stopped");
        c.human("cont");
        g.wait_for("AAAA", LIMIT);
        assert!(!g.serial()[before..].contains('B'), "{engine}");
    }
}

/// Kernel and initial RAM disk of the first command; `None` on a host that cannot fetch them.
fn debian() -> Option<(String, String)> {
    let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
    let c = firstrun::prepare(*c).expect("some guest can always be made");
    let text = |p: PathBuf| p.into_os_string().into_string().expect("the cache folder's path is UTF-8");
    Some((text(c.kernel?), text(c.initrd?)))
}

const STEPS: u64 = 6000;

/// A shell that computes under Linux, timer interrupts and all, saved at some instants and loaded on each engine.
#[test]
fn a_shell_under_linux_goes_on_elsewhere() {
    let Some((kernel, initrd)) = debian() else {
        eprintln!("state: Debian's kernel cannot be fetched here");
        return;
    };
    let args = ["-m", "256M", "-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0 quiet"];
    let (mut g, socket) = start("state-debian", &args);
    let mut c = Client::new(&socket);
    g.wait_for("# ", LIMIT);
    // What is typed has to be in the guest before it is saved: lines that the shell does not wrap, and a word back.
    g.type_line("f() { s=$(( (s*1103515245+12345) % 2147483648 )); }");
    g.wait_for("# ", LIMIT);
    g.type_line(&format!("g() {{ i=0; s=1; while [ $i -lt {STEPS} ]; do f; i=$((i+1)); done; }}"));
    g.wait_for("# ", LIMIT);
    g.type_line("echo go; g; sleep 1; echo sum=$s,");
    g.wait_for("\ngo\r\n", LIMIT);
    let files: Vec<PathBuf> = (0..3).map(|i| fresh(&format!("state-debian-{i}.vm"))).collect();
    for f in &files {
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(c.human(&format!("savevm {}", f.display())), "");
    }
    let sum = (0..STEPS).fold(1u64, |s, _| (s * 1_103_515_245 + 12345) % (1 << 31));
    let want = format!("sum={sum},");
    g.wait_for(&want, LIMIT);
    c.run("quit");
    g.expect_exit(0, LIMIT);
    for (f, engine) in files.iter().zip(["interp", "jit", "jit,threshold=0"]) {
        let (mut g, socket) = start("state-debian-on", &[&args[..], &["-accel", engine, "-loadvm", text(f)]].concat());
        g.wait_for(&want, LIMIT);
        g.wait_for("# ", LIMIT);
        g.type_line("echo $((6*7)) $(date +%Y)");
        g.wait_for("\n42 20", LIMIT);
        Client::new(&socket).run("quit");
        g.expect_exit(0, LIMIT);
    }
}

/// A guest that fills 96 MiB with what is not zero, says so, and waits.
fn filler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.cld()?;
    a.mov(eax, 0x0101_0101)?;
    a.mov(edi, 0x80_0000)?;
    a.mov(ecx, 24 << 20)?;
    a.rep().stosd()?;
    a.mov(edx, COM1)?;
    a.mov(al, i32::from(b'!'))?;
    a.set_label(&mut again)?;
    a.out(dx, al)?;
    a.mov(ecx, 200_000)?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.dec(ecx)?;
    a.jne(wait)?;
    a.jmp(again)
}

/// Files in a folder that `savevm` has not finished.
fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).expect("the folder is there").map(|e| e.expect("it can be read").path());
    all.filter(|p| p.extension().is_some_and(|e| e == "tmp")).collect()
}

#[test]
fn killed_while_saving_the_old_file_is_still_there() {
    let elf = elf("state-fill", filler);
    let folder = scratch().join("state-killed");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("vm");
    let args = ["-m", "128M", "-kernel", &elf];
    let (mut g, socket) = start("state-kill", &args);
    g.wait_for("!", LIMIT);
    assert_eq!(Client::new(&socket).human(&format!("savevm {}", path.display())), "");
    let old = std::fs::read(&path).unwrap();
    assert!(old.len() > 96 << 20);
    let mut caught = 0;
    for size in [0u64, 1 << 20, 10 << 20, 40 << 20] {
        let (mut g, socket) = start("state-kill", &args);
        g.wait_for("!", LIMIT);
        let mut c = Client::new(&socket);
        let command = json!({ "command-line": format!("savevm {}", path.display()) });
        c.send(&json!({ "execute": "human-monitor-command", "arguments": command }).to_string());
        let written = || std::fs::metadata(&path).and_then(|m| m.modified()).unwrap();
        let (end, before) = (Instant::now() + LIMIT, written());
        let grown = || unfinished(&folder).iter().any(|p| p.metadata().is_ok_and(|m| m.len() >= size));
        while !grown() && written() == before && Instant::now() < end {
            std::thread::yield_now();
        }
        g.kill();
        caught += unfinished(&folder).len();
        unfinished(&folder).iter().for_each(|p| std::fs::remove_file(p).unwrap());
        let now = std::fs::read(&path).unwrap();
        assert!(now == old || now.len() == old.len(), "neither the old file nor a whole new one");
        std::fs::write(&path, &old).unwrap();
    }
    assert!(caught > 0, "every save was done before it could be killed");
    let (mut g, _) = start("state-kill", &[&args[..], &["-loadvm", text(&path)]].concat());
    g.wait_for("!!", LIMIT);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The same as a disk that becomes full: writing fails half-way, the guest goes on, the old file stays.
#[test]
fn without_room_saving_fails_and_the_guest_goes_on() {
    let elf = elf("state-full", filler);
    let folder = scratch().join("state-full");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let (path, socket) = (folder.join("vm"), fresh("state-full.qmp"));
    std::fs::write(&path, "precious").unwrap();
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    // 4 MiB: blocks of 512 bytes. (The JIT keeps its code in a file of memory, which would be too large, too.)
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 8192; exec \"$0\" \"$@\""]).arg(program());
    shell.args(["-accel", "interp", "-m", "128M", "-kernel", &elf, "-display", "none", "-serial", "stdio", "-qmp", &qmp]);
    let mut g = Guest::spawn("state-full", &mut shell);
    g.wait_for("!", LIMIT);
    let mut c = Client::new(&socket);
    let said = c.human(&format!("savevm {}", path.display()));
    assert!(said.starts_with("Error: ") && said.contains("File too large") && said.trim_end().lines().count() == 1, "{said:?}");
    let failed = c.migrate(&path);
    assert_eq!(failed["status"], "failed");
    assert!(failed["error-desc"].as_str().unwrap().contains("File too large"));
    assert_eq!(c.run("query-status")["status"], "running");
    g.wait_for("!!", LIMIT);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert_eq!(unfinished(&folder), Vec::<PathBuf>::new());
    for (wrong, words) in [("/dev/full", "not a regular file"), ("/nonexistent/vm", "No such file"), ("", "must be named")] {
        let said = c.human(&format!("savevm {wrong}"));
        assert!(said.contains(words), "{wrong}: {said}");
    }
    assert!(c.human("migrate tcp:localhost:1").contains("only file:PATH is built"));
    c.run("quit");
    g.expect_exit(0, LIMIT);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The monitor on the terminal: `savevm` and `loadvm` typed by a person, other commands behind them.
#[test]
fn saving_by_hand() {
    let elf = elf("state-hand", a_or_b);
    let path = fresh("state-hand.vm");
    let mut g = Guest::start("state-hand", &["-m", "4M", "-nographic", "-kernel", &elf]);
    g.wait_for("AAAA", LIMIT);
    g.send(&format!("\x01cstop\rsavevm {0}\rinfo status\rloadvm {0}\rinfo migrate\rcont\rloadvm /nonexistent\r", path.display()));
    g.wait_for("VM status: paused\r\n", LIMIT);
    g.wait_for("Error: /nonexistent: No such file", LIMIT);
    g.wait_for("A", LIMIT);
    assert_eq!(g.errors(), "");
    assert!(path.exists());
    g.send("quit\r");
    g.expect_exit(0, LIMIT);
}

#[test]
fn coming_in_later() {
    let elf = elf("state-later", a_or_b);
    let path = fresh("state-later.vm");
    let args = ["-m", "4M", "-kernel", &elf];
    let (mut g, socket) = start("state-later", &args);
    g.wait_for("AAAA", LIMIT);
    let mut c = Client::new(&socket);
    c.run("stop");
    assert_eq!(c.migrate(&path)["status"], "completed");
    c.run("quit");
    g.expect_exit(0, LIMIT);
    let (mut g, socket) = start("state-later", &[&args[..], &["-incoming", "defer"]].concat());
    let mut c = Client::new(&socket);
    assert_eq!(c.run("query-status")["status"], "inmigrate");
    let incoming = |uri: &str| json!({ "execute": "migrate-incoming", "arguments": { "uri": uri } });
    let refused = c.ask(incoming("file:/nonexistent"));
    assert!(refused["error"]["desc"].as_str().unwrap().contains("No such file"), "{refused}");
    let uri = format!("file:{}", path.display());
    assert_eq!(c.ask(incoming(&uri)), json!({ "return": {} }));
    assert_eq!(c.run("query-status")["status"], "paused", "it was stopped on the other side");
    assert_eq!(c.ask(incoming(&uri))["error"]["class"], "GenericError");
    assert_eq!(g.serial(), "");
    c.run("cont");
    g.wait_for("AAAA", LIMIT);
}

/// One line and status 1, whatever is wrong with the file.
#[test]
fn files_that_cannot_be_loaded() {
    let elf = elf("state-bad", a_or_b);
    let path = fresh("state-bad.vm");
    let (mut g, socket) = start("state-bad", &["-m", "4M", "-kernel", &elf]);
    g.wait_for("AAAA", LIMIT);
    assert_eq!(Client::new(&socket).human(&format!("savevm {}", path.display())), "");
    drop(g);
    let whole = std::fs::read(&path).unwrap();
    let mut altered = whole.clone();
    let middle = whole.len() / 2;
    altered[middle] ^= 1;
    let refused = |memory: &str, option: &str, data: &[u8], words: &str| {
        let f = file("state-refused.vm", data);
        let value = if option == "-incoming" { format!("file:{f}") } else { f };
        let args = ["-m", memory, "-kernel", &elf, "-display", "none", "-serial", "stdio", option, &value];
        let out = run("state-refused", &args, LIMIT);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), said.lines().count(), out.stdout.len()), (Some(1), 1, 0), "{words}: {said}");
        assert!(said.starts_with("rhea: ") && said.contains(words) && !said.contains("panicked"), "{words}: {said}");
    };
    refused("4M", "-loadvm", b"", "not a saved machine");
    refused("4M", "-loadvm", &whole[..whole.len() - 1], "cut off");
    refused("4M", "-incoming", &whole[..100], "cut off");
    refused("4M", "-incoming", &altered, "damaged");
    refused("5M", "-loadvm", &whole, "this one has 5242880");
    let missing = ["-kernel", &elf, "-display", "none", "-loadvm", "/nonexistent"];
    assert_eq!(run("state-missing", &missing, LIMIT).status.code(), Some(1));
}
