//! Consoles, named ports and the balloon with a Linux guest: what is said both ways, memory that goes back to the host.

use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{Guest, scratch};
use rhea_tests::disks::Linux;
use rhea_tests::qmp::Client;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use vm_core::testing::{Rng, left_out};

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3000 } else { 300 });
const MIB: u64 = 1 << 20;

/// A named port and a console: data both ways, with both ends slow at times.
const PORTS: &str = r#"sh /disk/load; sh /disk/load-more
echo "port $(cat /sys/class/virtio-ports/vport1p1/name /sys/class/virtio-ports/vport0p1/name 2>/dev/null)"
port=$(ls /dev/vport?p1)
exec 3<>$port
echo "to the guest $(head -c 1000000 <&3 | md5sum | cut -c 1-32)"
cat /disk/big >&3
echo "sent"
head -c 5 <&3 > /tmp/word
echo "word $(cat /tmp/word)"
read line < /dev/hvc0
echo "hvc0 said $line"
"#;

/// Fills memory and lets go of it.
const FILL: &str = r#"dd if=/dev/zero of=/tmp/big bs=1M count=120 2>/dev/null; rm /tmp/big; echo "filled""#;

fn data(seed: u64, len: usize) -> Vec<u8> {
    let mut r = Rng(seed);
    (0..len).map(|_| b'a' + (r.next_u64() % 26) as u8).collect()
}

fn linux(name: &str, files: &[(&str, &str)]) -> Option<Linux> {
    let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
    let c = firstrun::prepare(*c).expect("some guest can always be made");
    Linux::make(&c.initrd?, name, files)
}

fn path(name: &str) -> (PathBuf, String) {
    let p = scratch().join(name);
    let _ = std::fs::remove_file(&p);
    let text = p.to_str().expect("the target folder's path is UTF-8").to_owned();
    (p, text)
}

fn boot(name: &str, linux: &Linux, more: &[&str]) -> Guest {
    let append = "console=ttyS0 quiet no_timer_check";
    let base = ["-m", "256M", "-nographic", "-no-reboot", "-kernel", &linux.kernel, "-initrd", &linux.initrd, "-append", append];
    let mut g = Guest::start(name, &[&base[..], more].concat());
    g.wait_for("# ", LIMIT);
    g
}

fn connect(path: &PathBuf) -> UnixStream {
    let s = UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    s.set_read_timeout(Some(LIMIT)).unwrap();
    s.set_write_timeout(Some(LIMIT)).unwrap();
    s
}

fn md5(data: &[u8]) -> String {
    let (_, name) = path("virtio-sum");
    std::fs::write(&name, data).unwrap();
    let out = Command::new("md5sum").arg(&name).output().expect("md5sum is there");
    String::from_utf8_lossy(&out.stdout)[..32].to_owned()
}

#[test]
fn a_guest_talks_by_a_console_and_a_named_port() {
    let (down, up) = (data(1, 1_000_000), data(2, 1_000_000));
    let big = String::from_utf8(up.clone()).unwrap();
    let Some(linux) = linux("ports", &[("ports", PORTS), ("big", &big)]) else {
        return left_out("virtio: Debian's kernel cannot be fetched");
    };
    let ((console, c), (port, p), (_, saved)) = (path("virtio-c"), path("virtio-p"), path("virtio-saved"));
    let (qmp, q) = path("virtio-q");
    let chardev = |id: &str, path: &str| format!("socket,path={path},server=on,wait=off,id={id}");
    let mut g = boot(
        "virtio-ports",
        &linux,
        &[
            "-device",
            "virtio-serial-pci",
            "-chardev",
            &chardev("c", &c),
            "-device",
            "virtconsole,chardev=c",
            "-chardev",
            &chardev("p", &p),
            "-device",
            "virtserialport,chardev=p,name=org.rhea.test",
            "-qmp",
            &format!("unix:{q},server=on,wait=off"),
        ],
    );
    let mut port = connect(&port);
    g.type_line("sh /disk/ports");
    assert!(g.wait_for("port org.rhea.test\r\n", LIMIT).len() < 2000);
    port.write_all(&down).unwrap();
    g.wait_for(&format!("to the guest {}", md5(&down)), LIMIT);
    // Nobody reads for a while: the guest waits, and nothing is lost.
    std::thread::sleep(Duration::from_millis(500));
    let mut got = vec![0; up.len()];
    let half = got.len() / 2;
    port.read_exact(&mut got[..half]).unwrap();
    // The machine is saved in the middle of it, and goes on.
    let mut qmp = Client::new(&qmp);
    assert_eq!(qmp.human(&format!("savevm {saved}")), "");
    port.read_exact(&mut got[half..]).unwrap();
    assert!(got == up, "what comes from the guest is not what it sent");
    g.wait_for("sent\r\n", LIMIT);
    port.write_all(b"again").unwrap();
    g.wait_for("word again\r\n", LIMIT);
    let mut console = connect(&console);
    // What was said before anybody was there to hear it is lost.
    console.write_all(b"good morning\n").unwrap();
    g.wait_for("hvc0 said good morning\r\n", LIMIT);
    g.type_line("echo $((40 + 2)) is the answer > /dev/hvc0");
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("42 is the answer") {
        let mut byte = [0];
        console.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    g.type_line("poweroff -f");
    g.expect_exit(0, LIMIT);
}

/// KiB of the program's that are in memory.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until the program has less than so much memory.
fn wait_below(pid: u32, mib: u64, what: &str) {
    let end = Instant::now() + LIMIT;
    while resident(pid) > mib << 10 {
        assert!(Instant::now() < end, "{what}: {} MiB are resident, not {mib}", resident(pid) >> 10);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_balloon_gives_memory_back() {
    let Some(linux) = linux("balloon", &[("fill", FILL)]) else {
        return left_out("virtio: Debian's kernel cannot be fetched");
    };
    let (qmp, q) = path("balloon-q");
    let unix = format!("unix:{q},server=on,wait=off");
    let device = "virtio-balloon-pci,free-page-reporting=on,guest-stats-polling-interval=1";
    let mut g = boot("virtio-balloon", &linux, &["-device", device, "-qmp", &unix]);
    let mut qmp = Client::new(&qmp);
    let pid = g.process();
    g.type_line("sh /disk/load; sh /disk/load-more; sh /disk/fill");
    g.wait_for("filled\r\n", LIMIT);
    // Reported: nobody asked for it.
    let full = resident(pid) >> 10;
    wait_below(pid, full - 60, "free pages are reported");
    assert_eq!(qmp.run("query-balloon"), json!({ "actual": 256 * MIB }));
    assert_eq!(qmp.ask(json!({ "execute": "balloon", "arguments": { "value": 128 * MIB } })), json!({ "return": {} }));
    while qmp.event("BALLOON_CHANGE")["actual"] != 128 * MIB {}
    assert_eq!(qmp.run("query-balloon"), json!({ "actual": 128 * MIB }));
    g.type_line("echo memory $(free -m | awk '/Mem/ { print ($2 < 120) }')");
    g.wait_for("memory 1\r\n", LIMIT);
    assert_eq!(qmp.human("balloon 256"), "");
    while qmp.event("BALLOON_CHANGE")["actual"] != 256 * MIB {}
    g.type_line("sh /disk/fill");
    g.wait_for("filled\r\n", LIMIT);
    let said = qmp.human("info balloon");
    assert!(said.starts_with("balloon: actual=256\r\n") && said.contains("total-memory: "), "{said}");
    assert!(qmp.ask(json!({ "execute": "balloon", "arguments": { "value": 0 } })).get("error").is_some());
    g.type_line("poweroff -f");
    g.expect_exit(0, LIMIT);
}

#[test]
fn mistakes_are_told_in_one_line() {
    for (args, want) in [
        (&["-device", "virtconsole"][..], "there is no virtio-serial-pci"),
        (&["-device", "virtio-serial-pci,id=a", "-device", "virtserialport,bus=b.0"], "b.0"),
        (&["-device", "virtio-serial-pci", "-device", "virtserialport,nr=0"], "port 0 is for a console"),
        (
            &["-device", "virtio-serial-pci", "-device", "virtserialport,nr=1", "-device", "virtserialport,nr=1"],
            "port 1 is taken",
        ),
        (&["-device", "virtio-serial-pci,max_ports=1", "-device", "virtserialport"], "no port is free"),
        (&["-device", "virtio-balloon-pci", "-device", "virtio-balloon-pci"], "one balloon only"),
        (&["-device", "virtio-9p-pci,fsdev=x,mount_tag=y"], "fsdev"),
        (&["-virtfs", "local,path=/nonexistent/x,mount_tag=y,security_model=none"], "/nonexistent/x: No such file"),
        (&["-virtfs", "local,path=/,mount_tag=y,security_model=mapped-xattr"], "'none' and 'passthrough' are there"),
        (&["-fsdev", "local,id=x,path=/"], "security_model"),
    ] {
        let out =
            rhea_tests::boot::run("virtio-mistakes", &[&["-display", "none", "-kernel", "/dev/null"][..], args].concat(), LIMIT);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.contains(want) && said.lines().count() == 1, "{args:?}: {said}");
    }
}
