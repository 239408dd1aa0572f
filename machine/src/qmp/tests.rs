//! Tests of QMP against a machine that only notes what it is asked.

use super::*;
use crate::control::{Cause, RunState};
use crate::monitor::CpuInfo;
use std::time::Instant;
use vm_core::testing::Rng;

#[derive(Default)]
struct Fake(Mutex<Vec<&'static str>>);

impl MonitorTarget for Fake {
    fn info_registers(&self) -> String {
        "RAX=0\n".into()
    }
    fn info_tlb(&self) -> String {
        "x".repeat(2 * MAX_REPLY)
    }
    fn info_jit(&self) -> String {
        String::new()
    }
    fn info_chardev(&self) -> String {
        String::new()
    }
    fn chardevs(&self) -> Vec<Value> {
        vec![json!({ "label": "serial0" })]
    }
    fn run_state(&self) -> RunState {
        RunState::Shutdown
    }
    fn cpus(&self) -> Vec<CpuInfo> {
        vec![CpuInfo { thread: 17, place: [0; 3], current: true }]
    }
    fn select_cpu(&self, n: usize) -> bool {
        n == 0
    }
    fn name(&self) -> Option<String> {
        Some("guest".into())
    }
    fn read_phys(&self, _: u64, buf: &mut [u8]) -> bool {
        buf.fill(0xff);
        true
    }
    fn read_virt(&self, _: u64, _: &mut [u8]) -> bool {
        false
    }
    fn register(&self, _: &str) -> Option<u64> {
        None
    }
    fn disassemble(&self, _: u64, _: &[u8]) -> Option<(usize, String)> {
        None
    }
    fn stop(&self) {
        self.0.lock().push("stop");
    }
    fn cont(&self) -> Result<(), String> {
        Err("not now".into())
    }
    fn quit(&self) {
        self.0.lock().push("quit");
    }
    fn reset(&self) {
        self.0.lock().push("reset");
    }
    fn save(&self, _: &str) -> Result<(), String> {
        self.0.lock().push("save");
        Err("no disk".into())
    }
    fn load(&self, _: &str) -> Result<(), String> {
        self.0.lock().push("load");
        Ok(())
    }
    fn migrate(&self, uri: &str, wait: bool) -> Result<(), String> {
        self.0.lock().push(if wait { "migrate" } else { "migrate -d" });
        if uri == "file:x" { Ok(()) } else { Err(format!("bad {uri}")) }
    }
    fn migrate_incoming(&self, _: &str) -> Result<(), String> {
        self.0.lock().push("incoming");
        Ok(())
    }
    fn migration(&self) -> Value {
        serde_json::json!({ "status": "active" })
    }
    fn info_migrate(&self) -> String {
        "Migration status: active\n".into()
    }
    fn powerdown(&self) {
        self.0.lock().push("powerdown");
    }
}

fn ask(message: &str, negotiated: bool) -> Value {
    commands::run(message.as_bytes(), negotiated, &Fake::default()).reply
}

fn desc(message: &str) -> String {
    ask(message, true)["error"]["desc"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn capabilities_come_first_and_once() {
    let class = |v: &Value| v["error"]["class"].as_str().unwrap_or_default().to_owned();
    let early = ask(r#"{"execute":"query-status","id":[1,{"a":null}]}"#, false);
    assert_eq!((class(&early).as_str(), &early["id"]), ("CommandNotFound", &json!([1, { "a": null }])));
    assert!(early["error"]["desc"].as_str().unwrap().contains("'qmp_capabilities'"));
    let first = commands::run(br#"{"execute":"qmp_capabilities"}"#, false, &Fake::default());
    assert!(first.negotiated && first.reply == json!({ "return": {} }));
    assert_eq!(class(&ask(r#"{"execute":"qmp_capabilities"}"#, true)), "CommandNotFound");
    let oob = commands::run(br#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#, false, &Fake::default());
    assert!(!oob.negotiated && class(&oob.reply) == "GenericError");
}

#[test]
fn mistakes_have_qemus_words() {
    for (message, words) in [
        ("[]", "QMP input must be a JSON object"),
        ("7", "QMP input must be a JSON object"),
        ("{", "JSON parse error"),
        ("{]", "JSON parse error"),
        ("{}", "QMP input lacks member 'execute'"),
        (r#"{"execute":1}"#, "QMP input member 'execute' must be a string"),
        (r#"{"execute":"stop","arguments":[]}"#, "QMP input member 'arguments' must be an object"),
        (r#"{"execute":"stop","more":1}"#, "QMP input member 'more' is unexpected"),
        (r#"{"exec-oob":"stop"}"#, "'exec-oob' is unexpected"),
        (r#"{"execute":"nosuch"}"#, "The command nosuch has not been found"),
        (r#"{"execute":"stop","arguments":{"x":1}}"#, "Parameter 'x' is unexpected"),
        (r#"{"execute":"human-monitor-command"}"#, "Parameter 'command-line' is missing"),
        (
            r#"{"execute":"human-monitor-command","arguments":{"command-line":1}}"#,
            "Invalid parameter type for 'command-line', expected: string",
        ),
        (
            r#"{"execute":"human-monitor-command","arguments":{"command-line":"stop","cpu-index":1}}"#,
            "Parameter 'cpu-index' expects a CPU number",
        ),
        (r#"{"execute":"cont"}"#, "not now"),
    ] {
        assert!(desc(message).contains(words), "{message}: {}", ask(message, true));
    }
}

#[test]
fn migration() {
    let fake = Fake::default();
    let run = |text: &str| commands::run(text.as_bytes(), true, &fake).reply;
    let go = r#"{"execute":"migrate","arguments":{"uri":"file:x","detach":true}}"#;
    assert_eq!(run(go), json!({ "return": {} }));
    assert!(run(r#"{"execute":"migrate","arguments":{"uri":"tcp:x:1"}}"#)["error"]["desc"].as_str().unwrap().contains("bad"));
    assert!(run(r#"{"execute":"migrate"}"#)["error"]["desc"].as_str().unwrap().contains("'uri' is missing"));
    assert_eq!(run(r#"{"execute":"migrate-incoming","arguments":{"uri":"file:x"}}"#), json!({ "return": {} }));
    assert_eq!(run(r#"{"execute":"query-migrate"}"#)["return"]["status"], "active");
    let human = |line: &str| json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } }).to_string();
    assert_eq!(run(&human("savevm /x"))["return"], "Error: no disk\r\n");
    for line in ["loadvm /x", "migrate -d file:x", "migrate file:x"] {
        assert_eq!(run(&human(line))["return"], "", "{line}");
    }
    assert!(run(&human("info migrate"))["return"].as_str().unwrap().contains("active"));
    let done = ["migrate -d", "migrate -d", "incoming", "save", "load", "migrate -d", "migrate"];
    assert_eq!(*fake.0.lock(), done);
}

#[test]
fn queries() {
    let value = |name: &str| ask(&format!(r#"{{"execute":"{name}"}}"#), true)["return"].clone();
    assert_eq!(value("query-status"), json!({ "status": "shutdown", "running": false }));
    assert_eq!(value("query-version")["qemu"]["major"], 0);
    assert_eq!(value("query-name"), json!({ "name": "guest" }));
    assert_eq!(value("query-kvm"), json!({ "enabled": false, "present": false }));
    assert_eq!(value("query-chardev")[0]["label"], "serial0");
    assert_eq!((&value("query-cpus-fast")[0]["thread-id"], &value("query-cpus-fast")[0]["cpu-index"]), (&json!(17), &json!(0)));
    assert!(value("query-commands").as_array().unwrap().contains(&json!({ "name": "query-commands" })));
    let human = r#"{"execute":"human-monitor-command","arguments":{"command-line":"info registers","cpu-index":0}}"#;
    assert_eq!(ask(human, true)["return"], "RAX=0\r\n");
}

/// A client that reads `reads` bytes and then no more.
#[derive(Default)]
struct Client {
    out: Mutex<Vec<u8>>,
    waits: Mutex<usize>,
    stuck: bool,
    gone: Mutex<bool>,
}

impl Line for Client {
    fn offer(&self, bytes: &[u8], limit: usize) -> bool {
        let mut waits = self.waits.lock();
        if self.stuck && *waits + bytes.len() > limit {
            return false;
        }
        if self.stuck {
            *waits += bytes.len();
        }
        self.out.lock().extend(bytes);
        true
    }
    fn backlog(&self) -> usize {
        *self.waits.lock()
    }
    fn disconnect(&self) {
        *self.gone.lock() = true;
    }
    fn input_wanted(&self) {}
}

fn connected(stuck: bool) -> (Arc<Qmp>, Arc<Client>, Arc<Fake>) {
    let (client, fake) = (Arc::new(Client { stuck, ..Client::default() }), Arc::new(Fake::default()));
    let qmp = Qmp::start(client.clone(), fake.clone(), false).unwrap();
    qmp.event(Event::Opened);
    (qmp, client, fake)
}

fn feed(qmp: &Qmp, mut bytes: &[u8]) {
    let end = Instant::now() + Duration::from_secs(20);
    while !bytes.is_empty() {
        let n = qmp.receive(bytes);
        bytes = &bytes[n..];
        if n == 0 {
            assert!(Instant::now() < end, "input stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn lines(c: &Client) -> Vec<Value> {
    let text = String::from_utf8(c.out.lock().clone()).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

const HELLO: &[u8] = br#"{"execute":"qmp_capabilities","id":0}"#;

#[test]
fn a_session() {
    let (qmp, client, fake) = connected(false);
    qmp.notice(Notice::Stop);
    feed(&qmp, HELLO);
    until("negotiated", || lines(&client).len() == 2);
    qmp.notice(Notice::Reset(Cause::GuestReset));
    feed(&qmp, br#"{"execute":"stop","id":1} {"execute":"quit","id":2}"#);
    until("quit", || *fake.0.lock() == ["stop", "quit"]);
    let l = lines(&client);
    assert!(l[0]["QMP"]["version"]["qemu"]["minor"].is_u64() && l[0]["QMP"]["capabilities"] == json!([]));
    assert_eq!(l[1], json!({ "return": {}, "id": 0 }), "no event before the handshake");
    assert_eq!((&l[2]["event"], &l[2]["data"]), (&json!("RESET"), &json!({ "guest": true, "reason": "guest-reset" })));
    assert!(l[2]["timestamp"]["seconds"].as_u64() > Some(1 << 30) && l[2]["timestamp"]["microseconds"].is_u64());
    assert_eq!(l[3..], [json!({ "return": {}, "id": 1 }), json!({ "return": {}, "id": 2 })]);
    qmp.event(Event::Closed);
    qmp.event(Event::Opened);
    feed(&qmp, br#"{"execute":"stop"}"#);
    until("a new session", || lines(&client).len() == 7);
    assert_eq!(lines(&client)[6]["error"]["class"], "CommandNotFound", "a new client negotiates anew");
}

#[test]
fn a_client_that_never_reads_costs_a_fixed_amount() {
    let (qmp, client, _) = connected(true);
    feed(&qmp, HELLO);
    let long = br#"{"execute":"human-monitor-command","arguments":{"command-line":"xp /4096ub 0"}}"#;
    let (mut sent, mut idle) = (0, Instant::now());
    while idle.elapsed() < Duration::from_millis(200) {
        if qmp.receive(long) > 0 {
            (sent, idle) = (sent + 1, Instant::now());
        }
        std::thread::yield_now();
        assert!(sent < 10_000, "input without end is taken");
    }
    let waits = *client.waits.lock();
    assert!(waits > BACKLOG && waits < BACKLOG + MAX_REPLY && qmp.room() < long.len(), "{waits}");
    // Events go on until the limit; then the client is let go.
    let start = Instant::now();
    for _ in 0..LIMIT {
        qmp.notice(Notice::Stop);
        if *client.gone.lock() {
            break;
        }
    }
    assert!(*client.gone.lock() && *client.waits.lock() <= LIMIT);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_reply_beyond_the_limit_is_an_error() {
    let (qmp, client, _) = connected(false);
    feed(&qmp, HELLO);
    feed(&qmp, br#"{"execute":"human-monitor-command","arguments":{"command-line":"info tlb"},"id":"x"}"#);
    until("reply", || lines(&client).len() == 3);
    assert_eq!(lines(&client)[2], json!({ "error": { "class": "GenericError", "desc": "the reply is too long" }, "id": "x" }));
}

#[test]
fn hostile_input_is_survived() {
    let (qmp, client, _) = connected(false);
    feed(&qmp, HELLO);
    feed(&qmp, "[".repeat(1 << 20).as_bytes());
    feed(&qmp, b"\n{\"a\":");
    feed(&qmp, "{\"a\":".repeat(10_000).as_bytes());
    feed(&qmp, "}".repeat(10_001).as_bytes());
    feed(&qmp, b"\n\xff\xfe\0 \"unterminated\n");
    let words: [&[u8]; 10] = [b"{", b"}", b"[", b"]", b"\"", b"\\", b"\"execute\"", b":", b"\"human-monitor-command\"", b"\n"];
    let mut r = Rng(5);
    for _ in 0..50_000 {
        match r.below(3) {
            0 => feed(&qmp, &r.next_u64().to_le_bytes()),
            _ => feed(&qmp, words[r.below(10) as usize]),
        }
        let mut out = client.out.lock();
        if out.len() > 1 << 20 {
            out.clear();
        }
    }
    // Whatever is open ends by the limit of a message.
    feed(&qmp, &vec![b'\n'; 2 * framer::MAX_MESSAGE]);
    feed(&qmp, br#"{"execute":"query-status","id":"the last"}"#);
    until("an answer", || String::from_utf8_lossy(&client.out.lock()).contains("the last"));
}
