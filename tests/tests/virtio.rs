//! Consoles, named ports and the balloon with a Linux guest, on PCI and in memory: what is said both ways, memory that goes back to the
//! host. A small guest uses them, and a shared folder, on every engine.

use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{Guest, engines, scratch};
use rhea_tests::disks::Linux;
use rhea_tests::qmp::Client;
use rhea_tests::small::guest_of;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
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
    let mut c = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("md5sum is there");
    c.stdin.take().unwrap().write_all(data).unwrap();
    String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap()[..32].to_owned()
}

/// What virtio devices are on: arguments, and the ending of the devices' names.
struct On(&'static str, &'static [&'static str], &'static str);

const PCI: On = On("pci", &[], "pci");
const MICROVM: On = On("microvm", &["-M", "microvm"], "device");

impl On {
    /// A file of the test's.
    fn path(&self, name: &str) -> (PathBuf, String) {
        path(&format!("virtio-{}-{name}", self.0))
    }

    fn device(&self, name: &str) -> String {
        format!("{name}-{}", self.2)
    }
}

#[test]
fn a_guest_talks_by_a_console_and_a_named_port() {
    talk(&PCI);
}

#[test]
fn a_microvms_guest_talks_by_a_console_and_a_named_port() {
    talk(&MICROVM);
}

fn talk(on: &On) {
    let (down, up) = (data(1, 1_000_000), data(2, 1_000_000));
    let big = String::from_utf8(up.clone()).unwrap();
    let Some(linux) = linux("ports", &[("ports", PORTS), ("big", &big)]) else {
        return left_out("virtio: Debian's kernel cannot be fetched");
    };
    let ((console, c), (port, p), (_, saved)) = (on.path("c"), on.path("p"), on.path("saved"));
    let (qmp, q) = on.path("q");
    let chardev = |id: &str, path: &str| format!("socket,path={path},server=on,wait=off,id={id}");
    let (c, p, q, serial) =
        (chardev("c", &c), chardev("p", &p), format!("unix:{q},server=on,wait=off"), on.device("virtio-serial"));
    let ends = ["-chardev", &c, "-device", "virtconsole,chardev=c", "-chardev", &p];
    let named = ["-device", "virtserialport,chardev=p,name=org.rhea.test", "-qmp", &q];
    let mut g = boot(&format!("virtio-{}-ports", on.0), &linux, &[on.1, &["-device", &serial], &ends, &named].concat());
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
    lend(&PCI);
}

#[test]
fn a_microvms_balloon_gives_memory_back() {
    lend(&MICROVM);
}

fn lend(on: &On) {
    let Some(linux) = linux("balloon", &[("fill", FILL)]) else {
        return left_out("virtio: Debian's kernel cannot be fetched");
    };
    let (qmp, q) = on.path("balloon");
    let unix = format!("unix:{q},server=on,wait=off");
    let device = format!("{},free-page-reporting=on,guest-stats-polling-interval=1", on.device("virtio-balloon"));
    let mut g = boot(&format!("virtio-{}-balloon", on.0), &linux, &[on.1, &["-device", &device, "-qmp", &unix]].concat());
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

/// What is typed comes back from the console, a page that is lent is empty, the file is shown on the serial port.
#[test]
fn a_microvm_uses_console_balloon_and_folder_on_every_engine() {
    let Some(kernel) = guest_of("virtio.S", "virtio", &[]) else { return };
    let folder = scratch().join("virtio-micro-folder");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hello"), "from the folder\n").unwrap();
    let fsdev = format!("local,id=f,path={},security_model=none", folder.display());
    let machine = ["-M", "microvm", "-m", "16", "-display", "none", "-nodefaults", "-no-reboot", "-kernel", &kernel];
    let exit = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-chardev", "stdio,id=c"];
    let console = ["-device", "virtio-serial-device,max_ports=1", "-device", "virtconsole,chardev=c"];
    let others = ["-device", "virtio-balloon-device", "-fsdev", &fsdev, "-device", "virtio-9p-device,fsdev=f,mount_tag=t"];
    for (engine, accel) in engines() {
        for acpi in ["on", "off"] {
            let (serial, acpi_off) = (scratch().join("virtio-micro.serial"), format!("microvm,acpi={acpi}"));
            let to = format!("file:{}", serial.display());
            let args = [&machine[..], &["-M", &acpi_off, "-serial", &to], &exit, &console, &others, accel].concat();
            let mut g = Guest::start("virtio-micro", &args);
            g.wait_for("from the guest\n", LIMIT);
            g.send("back and forth");
            g.wait_for("back and forth", LIMIT);
            g.expect_exit(33, LIMIT);
            assert!(!g.errors().contains("goes on without it"), "{engine}: {}", g.errors());
            assert_eq!(std::fs::read_to_string(&serial).unwrap(), "from the folder\n", "{engine} acpi={acpi}");
        }
    }
}

#[test]
fn mistakes_are_told_in_one_line() {
    for (args, want) in [
        (&["-device", "virtconsole"][..], "there is no virtio-serial-pci"),
        (&["-M", "microvm", "-device", "virtserialport"], "add -device virtio-serial-device"),
        (&["-M", "microvm", "-device", "virtio-serial-pci"], "use virtio-serial-device"),
        (&["-device", "virtio-balloon-device"], "use virtio-balloon-pci"),
        (&["-M", "microvm", "-device", "virtio-balloon-device", "-device", "virtio-balloon-device"], "one balloon only"),
        (&["-M", "microvm", "-device", "virtio-9p-device,fsdev=x,mount_tag=y"], "fsdev"),
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
