//! QMP on the whole program: handshake, commands, events, several clients, and clients that misbehave.

use machine::firstrun;
use rhea_tests::boot::{Guest, file, scratch};
use rhea_tests::qmp::Client;
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// The built-in guest with QMP on a Unix socket.
fn start(name: &str, more: &[&str]) -> (Guest, PathBuf) {
    let elf = file(&format!("{name}.elf"), &firstrun::built_in().unwrap());
    let path = scratch().join(format!("{name}.qmp"));
    let _ = std::fs::remove_file(&path);
    let qmp = format!("unix:{},server=on,wait=off", path.display());
    let args = ["-m", "16M", "-display", "none", "-serial", "stdio", "-kernel", &elf, "-qmp", &qmp];
    (Guest::start(name, &[&args[..], more].concat()), path)
}

#[test]
fn a_session_from_start_to_quit() {
    let (mut g, path) = start("qmp-session", &["-S", "-name", "a-guest"]);
    let mut c = Client::new(&path);
    assert_eq!(c.run("query-status"), json!({ "status": "prelaunch", "running": false }));
    assert_eq!(c.ask(json!({ "execute": "query-name", "id": "x" })), json!({ "return": { "name": "a-guest" }, "id": "x" }));
    assert_eq!(g.serial(), "", "-S holds the guest");
    assert_eq!(c.run("cont"), json!({}));
    g.wait_for("> ", LIMIT);
    assert_eq!(c.run("query-status"), json!({ "status": "running", "running": true }));
    c.send(r#"{"execute":"stop"}"#);
    c.event("STOP");
    assert_eq!(c.reply(), json!({ "return": {} }));
    assert_eq!(c.run("query-status")["status"], "paused");
    c.send(r#"{"execute":"cont"}"#);
    c.event("RESUME");
    assert_eq!(c.reply(), json!({ "return": {} }));
    let cpus = c.run("query-cpus-fast");
    let thread = cpus[0]["thread-id"].as_u64().unwrap();
    assert!(c.human("info cpus").starts_with(&format!("* CPU #0: thread_id={thread}")));
    assert_eq!(c.human("info status"), "VM status: running\r\n");
    assert!(c.run("query-chardev").as_array().unwrap().iter().any(|d| d["label"] == "serial0"));
    assert!(c.run("query-commands").as_array().unwrap().len() > 10);
    c.send(r#"{"execute":"system_reset"}"#);
    assert_eq!(c.event("RESET"), json!({ "guest": false, "reason": "host-qmp-system-reset" }));
    g.wait_for("rhea's built-in guest", LIMIT);
    c.send(r#"{"execute":"system_powerdown"}"#);
    c.event("POWERDOWN");
    c.send(r#"{"execute":"quit","id":9}"#);
    assert_eq!(c.reply()["return"], json!({}));
    assert_eq!(c.event("SHUTDOWN"), json!({ "guest": false, "reason": "host-qmp-quit" }));
    g.expect_exit(0, LIMIT);
}

/// What CPU a line of `human-monitor-command` is about, by `cpu-index` or `cpu N`, ends with that line.
#[test]
fn several_cpus_and_the_one_that_a_line_is_about() {
    let (_g, path) = start("qmp-cpus", &["-S", "-smp", "4,sockets=2"]);
    let mut c = Client::new(&path);
    let cpus = c.run("query-cpus-fast");
    assert_eq!(cpus.as_array().map(Vec::len), Some(4));
    let place = json!({ "socket-id": 1, "die-id": 0, "core-id": 1, "thread-id": 0 });
    assert_eq!((&cpus[3]["cpu-index"], &cpus[3]["props"]), (&json!(3), &place));
    let line =
        |n: u64| json!({ "execute": "human-monitor-command", "arguments": { "command-line": "info cpus", "cpu-index": n } });
    assert!(c.ask(line(2))["return"].as_str().unwrap().contains("* CPU #2:"));
    assert!(c.human("info cpus").contains("* CPU #0:"));
    assert_eq!(c.ask(line(4))["error"]["desc"], "Parameter 'cpu-index' expects a CPU number");
    assert_eq!(c.human("cpu 3"), "");
    assert!(c.human("info cpus").contains("* CPU #0:"));
    assert_eq!(c.human("cpu 4"), "Error: invalid CPU index\r\n");
    assert_eq!(c.human("info registers -a").matches("CPU#").count(), 4);
}

#[test]
fn the_guests_own_reset_and_power_off_are_told() {
    let (mut g, path) = start("qmp-guest", &["-no-shutdown"]);
    let mut c = Client::new(&path);
    g.wait_for("> ", LIMIT);
    g.type_line("reboot");
    assert_eq!(c.event("RESET"), json!({ "guest": true, "reason": "guest-reset" }));
    g.wait_for("> ", LIMIT);
    g.type_line("off");
    assert_eq!(c.event("SHUTDOWN"), json!({ "guest": true, "reason": "guest-shutdown" }));
    c.event("STOP");
    assert_eq!(c.run("query-status")["status"], "shutdown");
    let refused = c.ask(json!({ "execute": "cont" }));
    assert_eq!(refused["error"]["desc"], "Resetting the Virtual Machine is required");
    c.run("system_reset");
    assert_eq!(c.run("query-status")["status"], "prelaunch");
    c.run("cont");
    g.wait_for("> ", LIMIT);
    c.run("quit");
    g.expect_exit(0, LIMIT);
}

/// One client after another; what one leaves half-said does not reach the next.
#[test]
fn clients_follow_each_other() {
    let (mut g, path) = start("qmp-clients", &[]);
    let mut first = Client::new(&path);
    first.send(r#"{"execute": "human-monitor-command", "arguments": {"command-line""#);
    drop(first);
    let mut c = Client::raw(&path);
    c.message();
    let early = c.ask(json!({ "execute": "query-status", "id": 1 }));
    assert_eq!((&early["error"]["class"], &early["id"]), (&json!("CommandNotFound"), &json!(1)));
    drop(c);
    Client::new(&path).run("quit");
    g.expect_exit(0, LIMIT);
}

/// Commands without end and no reading: the server stops taking them, the guest does not notice, and the next client is served.
#[test]
fn a_client_that_never_reads_holds_nobody_up() {
    let (mut g, path) = start("qmp-deaf", &[]);
    g.wait_for("> ", LIMIT);
    let deaf = Client::raw(&path);
    let mut s = deaf.0.get_ref().try_clone().unwrap();
    s.set_nonblocking(true).unwrap();
    s.write_all(br#"{"execute":"qmp_capabilities"}"#).unwrap();
    let (mut sent, mut since) = (0, Instant::now());
    let text = r#"{"execute":"query-commands"}"#.repeat(100);
    while since.elapsed() < Duration::from_millis(300) {
        match s.write(text.as_bytes()) {
            Ok(n) => (sent, since) = (sent + n, Instant::now()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("{e}"),
        }
        assert!(sent < 64 << 20, "input without end is taken");
    }
    for _ in 0..3 {
        g.type_line("reboot");
        g.wait_for("> ", LIMIT);
    }
    drop((deaf, s));
    let mut c = Client::new(&path);
    c.run("quit");
    g.expect_exit(0, LIMIT);
}

#[test]
fn garbage_is_answered_and_survived() {
    let (mut g, path) = start("qmp-garbage", &[]);
    let mut c = Client::new(&path);
    for text in ["}\n", "nonsense\n", "[1,2\n]\n", "{\"a\":}\n", &format!("{}\n", "[".repeat(100_000)), "\"a\"\n"] {
        c.send(text);
        assert_eq!(c.reply()["error"]["class"], "GenericError", "{}", &text[..text.len().min(20)]);
    }
    let deep = format!("{}{}\n", "{\"a\":".repeat(5000), "}".repeat(5000));
    c.send(&deep);
    assert!(c.reply()["error"]["desc"].as_str().unwrap().contains("JSON parse error"));
    assert_eq!(c.run("query-status")["running"], true);
    c.run("quit");
    g.expect_exit(0, LIMIT);
}

/// `-chardev` with `-mon mode=control`; and QMP on standard input and output.
#[test]
fn other_ways_to_ask_for_it() {
    let elf = file("qmp-mon.elf", &firstrun::built_in().unwrap());
    let path = scratch().join("qmp-mon.qmp");
    let _ = std::fs::remove_file(&path);
    let dev = format!("socket,id=q,path={},server=on,wait=off", path.display());
    let args =
        ["-m", "16M", "-nodefaults", "-display", "none", "-kernel", &elf, "-chardev", &dev, "-mon", "chardev=q,mode=control"];
    let mut g = Guest::start("qmp-mon", &args);
    Client::new(&path).run("quit");
    g.expect_exit(0, LIMIT);

    let mut g = Guest::start("qmp-stdio", &["-m", "16M", "-display", "none", "-kernel", &elf, "-qmp", "stdio"]);
    g.wait_for("\"QMP\"", LIMIT);
    g.send("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n");
    g.expect_exit(0, LIMIT);
    assert!(g.serial_to_end().contains("SHUTDOWN"), "{}", g.serial());

    let path = scratch().join("qmp-pretty.qmp");
    let _ = std::fs::remove_file(&path);
    let qmp = format!("unix:{},server=on", path.display());
    let mut g = Guest::start("qmp-pretty", &["-m", "16M", "-display", "none", "-kernel", &elf, "-qmp-pretty", &qmp]);
    let mut c = Client::raw(&path);
    let mut line = [0; 4];
    c.0.read_exact(&mut line).unwrap();
    assert_eq!(&line[..2], b"{\n");
    c.send("{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}");
    g.expect_exit(0, LIMIT);
}
