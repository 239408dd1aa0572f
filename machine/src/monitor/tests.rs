//! Tests of the monitor: commands, formats, editing, hostile input.

use super::dump::{Format, MAX_UNITS, parse_format};
use super::*;
use vm_core::testing::Rng;

/// A machine of 64 KiB whose bytes are their own addresses; it notes what was asked of it.
#[derive(Default)]
struct Fake {
    done: Mutex<Vec<&'static str>>,
    out: Mutex<Vec<u8>>,
}

impl MonitorTarget for Fake {
    fn info_registers(&self) -> String {
        "RAX=0\n".into()
    }
    fn info_tlb(&self) -> String {
        "tlb\n".into()
    }
    fn info_jit(&self) -> String {
        "jit\n".into()
    }
    fn info_chardev(&self) -> String {
        "serial0: null (open)\n".into()
    }
    fn chardevs(&self) -> Vec<Value> {
        vec![]
    }
    fn run_state(&self) -> RunState {
        RunState::Running
    }
    fn cpus(&self) -> Vec<CpuInfo> {
        vec![CpuInfo { thread: 17, place: [0; 3], current: true }]
    }
    fn select_cpu(&self, n: usize) -> bool {
        n == 0
    }
    fn name(&self) -> Option<String> {
        None
    }
    fn read_phys(&self, pa: u64, buf: &mut [u8]) -> bool {
        let fits = pa.checked_add(buf.len() as u64).is_some_and(|end| end <= 0x10000);
        if fits {
            buf.iter_mut().zip(pa..).for_each(|(b, a)| *b = a as u8);
        }
        fits
    }
    fn read_virt(&self, va: u64, buf: &mut [u8]) -> bool {
        self.read_phys(va.wrapping_sub(0x8000_0000), buf)
    }
    fn register(&self, name: &str) -> Option<u64> {
        (name == "rip").then_some(0x8000_0010)
    }
    fn disassemble(&self, _: u64, code: &[u8]) -> Option<(usize, String)> {
        (code[0] < 0x80).then(|| (2, "nop".into()))
    }
    fn stop(&self) {
        self.done.lock().push("stop");
    }
    fn cont(&self) -> Result<(), String> {
        self.done.lock().push("cont");
        Ok(())
    }
    fn quit(&self) {
        self.done.lock().push("quit");
    }
    fn reset(&self) {
        self.done.lock().push("reset");
    }
    fn save(&self, _: &str) -> Result<(), String> {
        self.done.lock().push("save");
        Err("no disk".into())
    }
    fn load(&self, _: &str) -> Result<(), String> {
        self.done.lock().push("load");
        Ok(())
    }
    fn migrate(&self, uri: &str, wait: bool) -> Result<(), String> {
        self.done.lock().push(if wait { "migrate" } else { "migrate -d" });
        if uri == "file:x" { Ok(()) } else { Err(format!("bad {uri}")) }
    }
    fn migrate_incoming(&self, _: &str) -> Result<(), String> {
        self.done.lock().push("incoming");
        Ok(())
    }
    fn migration(&self) -> Value {
        serde_json::json!({ "status": "active" })
    }
    fn info_migrate(&self) -> String {
        "Migration status: active\n".into()
    }
    fn powerdown(&self) {
        self.done.lock().push("powerdown");
    }
}

impl CharSink for Fake {
    fn write(&self, bytes: &[u8]) {
        self.out.lock().extend_from_slice(bytes);
    }
    fn input_wanted(&self) {}
}

fn run(line: &str) -> String {
    command::run(line, &Fake::default())
}

#[test]
fn commands_reach_the_machine() {
    let fake = Fake::default();
    for line in ["stop", "c", " cont ", "system_reset", "system_powerdown", "q"] {
        assert_eq!(command::run(line, &fake), "");
    }
    assert_eq!(*fake.done.lock(), ["stop", "cont", "cont", "reset", "powerdown", "quit"]);
    assert!(run("quit now").contains("extraneous"));
    assert_eq!(run("nosuch"), "unknown command: 'nosuch'\n");
}

#[test]
fn information() {
    assert_eq!(run("info status"), "VM status: running\n");
    assert_eq!(run("info registers"), "RAX=0\n");
    assert_eq!(run("info cpus"), "* CPU #0: thread_id=17\n");
    assert!(run("info version").starts_with("rhea "));
    assert!(run("info chardev").contains("serial0"));
    assert!(run("info").contains("info jit") && run("help info").contains("info tlb"));
    assert!(run("info nosuch").contains("unknown"));
    assert!(run("?").contains("system_powerdown") && run("help xp").starts_with("xp /fmt addr"));
}

#[test]
fn memory_formats() {
    assert_eq!(run("xp /4wx 0x10"), "0000000000000010: 0x13121110 0x17161514 0x1b1a1918 0x1f1e1d1c\n");
    assert_eq!(run("xp/2gx 16"), "0000000000000010: 0x1716151413121110 0x1f1e1d1c1b1a1918\n");
    assert_eq!(run("xp /9xb 0"), "0000000000000000: 0x00 0x01 0x02 0x03 0x04 0x05 0x06 0x07\n0000000000000008: 0x08\n");
    assert_eq!(run("xp /1db 0xff"), "00000000000000ff:  -1\n");
    assert_eq!(run("xp /1ub 0xff"), "00000000000000ff: 255\n");
    assert_eq!(run("xp /1ob 0xff"), "00000000000000ff: 0377\n");
    assert_eq!(run("xp /3c 0x41"), "0000000000000041: 'A' 'B' 'C'\n");
    assert_eq!(run("xp 0"), "0000000000000000: 0x03020100\n");
    assert_eq!(run("x /1hx $rip + 0x10 - 16"), "0000000080000010: 0x1110\n");
    assert_eq!(run("xp /8wx 0xfffc"), "000000000000fffc: 0xfffefdfc\nCannot access memory\n");
    assert_eq!(run("xp /4wx 0xfffffffffffffffe"), "Cannot access memory\n");
    assert_eq!(run("x /2i $rip"), "0x80000010:  10 11                    nop\n0x80000012:  12 13                    nop\n");
    assert!(run("x /1i 0x80000080").contains("not available"));
    assert!(run("xp /1i 0").contains("only available in x"));
}

#[test]
fn memory_mistakes() {
    for (line, part) in [
        ("x", "missing"),
        ("x /4wx", "missing"),
        ("x /4zz 0", "invalid format"),
        ("x /w 0xg", "invalid address"),
        ("x $nosuch", "invalid address"),
        ("x 1+", "invalid address"),
        ("x 0x", "invalid address"),
        ("x /4097b 0", "at most 4096"),
        ("x /99999999999999999999999b 0", "at most 4096"),
        ("x 0x11111111111111111", "invalid address"),
    ] {
        assert!(run(line).contains(part), "{line}: {}", run(line));
    }
    assert_eq!(parse_format("16xg"), Ok(Format { count: 16, kind: 'x', size: 8 }));
    assert!(run(&format!("xp /{MAX_UNITS}ub 0")).lines().count() == 512);
}

fn typed(keys: &[u8]) -> (String, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let monitor = Monitor::new(fake.clone(), fake.clone());
    assert_eq!(monitor.receive(keys), keys.len());
    let text = String::from_utf8_lossy(&fake.out.lock()).into_owned();
    (text, fake)
}

#[test]
fn editing() {
    let (text, fake) = typed(b"stpx\x7f\x08op\r");
    assert_eq!(*fake.done.lock(), ["stop"]);
    assert!(text.ends_with("\r\n(rhea) "));
    let done = |keys: &[u8]| typed(keys).1.done.lock().clone();
    assert_eq!(done(b"garbage\x15cont\r\n"), ["cont"]);
    assert_eq!(done(b"stop\rcont\r\x1b[A\x1b[A\r"), ["stop", "cont", "stop"]);
    assert_eq!(done(b"stop\r\x10\x10\x0e\x0e\r"), ["stop"]);
    assert_eq!(done(b"stop x\x17\n"), ["stop"]);
    assert_eq!(typed(b"\r\n").0, "\r\n(rhea) ", "CR LF is one line end");
    assert_eq!(typed(b"info status\r").0, "info status\r\nVM status: running\r\n(rhea) ");
}

#[test]
fn opening_greets_with_a_prompt() {
    let fake = Arc::new(Fake::default());
    Monitor::new(fake.clone(), fake.clone()).event(Event::Opened);
    let text = String::from_utf8(fake.out.lock().clone()).unwrap();
    assert!(text.contains("type 'help'") && text.ends_with(PROMPT));
}

#[test]
fn long_lines_are_cut() {
    let (text, _) = typed(&[vec![b'a'; 100_000], b"\r".to_vec()].concat());
    assert!(text.contains("unknown command: 'aaaa"));
    let others = "unknown command: (rhea)".matches('a').count();
    assert_eq!(text.matches('a').count(), editor::MAX_LINE + 64 + others, "1024 echoed, 64 in the message");
}

/// Random bytes, and random sequences of the words commands are made of.
#[test]
fn hostile_input_is_survived() {
    let words: [&[u8]; 22] = [
        b"x ",
        b"xp ",
        b"/",
        b"4096",
        b"9999999999999999999",
        b"g",
        b"i",
        b"c",
        b"o",
        b"d", //
        b"0xffffffffffffffff",
        b"$rip",
        b"+",
        b"-",
        b" ",
        b"info ",
        b"help ",
        b"\r",
        b"\x1b[A",
        b"\x15",
        b"\xff\0",
        b"0x",
    ];
    let mut r = Rng(7);
    let fake = Arc::new(Fake::default());
    let monitor = Monitor::new(fake.clone(), fake.clone());
    for round in 0..20_000 {
        if round % 2 == 0 {
            monitor.receive(&r.next_u64().to_le_bytes());
        } else {
            monitor.receive(words[r.below(22) as usize]);
        }
        let mut out = fake.out.lock();
        assert!(out.len() < 1 << 20, "one command prints a bounded amount");
        out.clear();
    }
}
