//! Network: a Linux guest behind virtio-net and the user-mode network. All that it reaches is on the host's loopback.

use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{Guest, file, run, scratch};
use rhea_tests::disks::Linux;
use rhea_tests::qmp::Client;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_core::testing::{Rng, left_out};

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3000 } else { 300 });
const MIB: usize = 1 << 20;

/// Takes an address by DHCP.
const UP: &str = r#"sh /disk/load
sh /disk/load-net
ip link set eth0 up
udhcpc -f -i eth0 -n -q -t 5 -s /disk/lease
"#;

const LEASE: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/24 dev $interface
ip route add default via $router
mkdir -p /etc
echo "nameserver $dns" > /etc/resolv.conf
echo "lease $ip $router $dns $hostname"
"#;

/// Arguments: a port that sends, and one that takes what the guest sends back.
const JOB: &str = r#"sh /disk/up
echo "echoes $(ping -c 2 -W 5 10.0.2.2 | grep -c 'bytes from')"
echo "name $(nslookup guest.test | grep -c 192.0.2.7)"
echo "host $(nslookup guest.test 10.0.2.2:$3 | grep -c 192.0.2.7)"
nc 10.0.2.2 1 < /dev/null && echo "somebody is there" || echo "nobody is there"
nc 10.0.2.2 $1 < /dev/null | nc 10.0.2.2 $2
echo "sent back"
echo "from the guest" | nc 10.0.2.100 80 > /tmp/line &
while ! grep -q host /tmp/line; do sleep 0.1; done
echo "line $(cat /tmp/line)"
kill $!
nc -ll -p 7000 -e cat &
echo "listening"
"#;

/// Connections, 64 processes at once: port, connections of each.
const MANY: &str = r#"p=0
while [ $p -lt 64 ]; do
    (i=0; while [ $i -lt $2 ]; do
        [ "$(echo "hello $p $i" | nc 10.0.2.2 $1)" = "HELLO $p $i" ] || echo "bad $p $i"
        i=$((i+1))
    done) &
    p=$((p+1))
done
wait
echo "all called"
"#;

fn linux() -> Option<&'static Linux> {
    static MADE: OnceLock<Option<Linux>> = OnceLock::new();
    let make = || {
        let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
        let c = firstrun::prepare(*c).expect("some guest can always be made");
        Linux::make(&c.initrd?, "net", &[("up", UP), ("lease", LEASE), ("job", JOB), ("many", MANY)])
    };
    MADE.get_or_init(make).as_ref()
}

/// A guest at its shell.
fn boot(name: &str, linux: &Linux, more: &[&str]) -> Guest {
    // The check of the timer is a race with the host's other work.
    let append = "console=ttyS0 quiet no_timer_check";
    let base = ["-m", "256M", "-nographic", "-no-reboot", "-kernel", &linux.kernel, "-initrd", &linux.initrd, "-append", append];
    let mut g = Guest::start(name, &[&base[..], more].concat());
    g.wait_for("# ", LIMIT);
    g
}

fn listen() -> (TcpListener, u16) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = l.local_addr().unwrap().port();
    (l, port)
}

/// A port that was free a moment ago.
fn free() -> u16 {
    listen().1
}

/// Piece `i` of a stream that is known but does not repeat itself.
fn piece(i: usize) -> Vec<u8> {
    let mut r = Rng(i as u64);
    (0..MIB / 8).flat_map(|_| r.next_u64().to_le_bytes()).collect()
}

/// Sends `mib` pieces to the first who comes.
fn sender(mib: usize) -> (u16, JoinHandle<()>) {
    let (l, port) = listen();
    let send = move || {
        let (mut s, _) = l.accept().unwrap();
        (0..mib).for_each(|i| s.write_all(&piece(i)).unwrap());
        s.shutdown(Shutdown::Write).unwrap();
        let _ = s.read(&mut [0]);
    };
    (port, std::thread::spawn(send))
}

/// Takes `mib` pieces, compares them, and nothing may follow.
fn taker(mib: usize) -> (u16, JoinHandle<()>) {
    let (l, port) = listen();
    let take = move || {
        let (mut s, _) = l.accept().unwrap();
        let mut buf = vec![0; MIB];
        for i in 0..mib {
            s.read_exact(&mut buf).unwrap_or_else(|e| panic!("piece {i} of {mib}: {e}"));
            assert!(buf == piece(i), "piece {i} of {mib} has changed");
        }
        assert_eq!(s.read(&mut buf).unwrap(), 0);
    };
    (port, std::thread::spawn(take))
}

/// A name server that knows one name's address.
fn name_server() -> u16 {
    let s = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = s.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut q = [0; 512];
        while let Ok((n, from)) = s.recv_from(&mut q) {
            let mut a = q[..n].to_vec();
            let is_a = a.len() > 4 && a[a.len() - 4..] == [0, 1, 0, 1];
            a[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                a.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            }
            let _ = s.send_to(&a, from);
        }
    });
    port
}

/// Sends pieces to a server that sends all back, and compares.
fn there_and_back(port: u16, mib: usize) {
    let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut w = s.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        (0..mib).for_each(|i| w.write_all(&piece(i)).unwrap());
        w.shutdown(Shutdown::Write).unwrap();
    });
    let mut buf = vec![0; MIB];
    for i in 0..mib {
        s.read_exact(&mut buf).unwrap_or_else(|e| panic!("piece {i} of {mib}: {e}"));
        assert!(buf == piece(i), "piece {i} of {mib} has changed");
    }
    assert_eq!(s.read(&mut buf).unwrap(), 0, "and its end");
    writer.join().unwrap();
}

struct Case<'a> {
    name: &'a str,
    device: &'a str,
    mib: usize,
    more: &'a [&'a str],
}

/// DHCP, echo, names, transfers both ways at once, and into the guest.
fn use_the_network(case: &Case) -> Option<Guest> {
    let Some(linux) = linux() else {
        left_out("net: Debian's kernel cannot be fetched");
        return None;
    };
    let (dns, forwarded) = (name_server(), free());
    let resolv = file(&format!("{}.resolv", case.name), format!("nameserver [127.0.0.1]:{dns}\n").as_bytes());
    let capture = scratch().join(format!("{}.pcap", case.name));
    let forward = format!("hostfwd=tcp:127.0.0.1:{forwarded}-:7000,guestfwd=tcp:10.0.2.100:80-chardev:line");
    let netdev = format!("user,id=n,hostname=rhea-guest,{forward},resolv-conf={resolv}");
    let line = scratch().join(format!("{}.line", case.name));
    let chardev = format!("socket,id=line,path={},server=on,wait=off", line.display());
    let _ = std::fs::remove_file(&line);
    let device = format!("virtio-net-pci,netdev=n,mac=52:54:00:aa:bb:cc{}", case.device);
    let dump = format!("filter-dump,id=d,netdev=n,maxlen=96,file={}", capture.display());
    let mut g = boot(
        case.name,
        linux,
        &[&["-chardev", &chardev, "-netdev", &netdev, "-device", &device, "-object", &dump][..], case.more].concat(),
    );
    // All that the guest says to an address of its network is said here, and the other way round.
    let mut line = UnixStream::connect(line).unwrap();
    line.set_read_timeout(Some(LIMIT)).unwrap();
    let ((down, sent), (up, taken)) = (sender(case.mib), taker(case.mib));
    g.type_line(&format!("sh /disk/job {down} {up} {dns}"));
    g.wait_for("lease 10.0.2.15 10.0.2.2 10.0.2.3 rhea-guest\r\n", LIMIT);
    g.wait_for("echoes 2\r\n", LIMIT);
    g.wait_for("name 1\r\n", LIMIT);
    g.wait_for("host 1\r\n", LIMIT);
    g.wait_for("nobody is there\r\n", LIMIT);
    // On a host that does much else a mebibyte may take seconds.
    g.wait_for("sent back\r\n", LIMIT + Duration::from_secs(4 * case.mib as u64));
    let mut said = [0; 15];
    line.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"from the guest\n");
    line.write_all(b"from the host\n").unwrap();
    g.wait_for("line from the host\r\n", LIMIT);
    g.wait_for("listening\r\n", LIMIT);
    sent.join().unwrap();
    taken.join().unwrap();
    // Its processes may still be starting.
    std::thread::sleep(Duration::from_millis(500));
    there_and_back(forwarded, case.mib);
    let bytes = std::fs::read(&capture).unwrap();
    assert_eq!((&bytes[..4], bytes[20]), (&0xa1b2_c3d4u32.to_ne_bytes()[..], 1));
    assert!(bytes.len() > 10_000, "the capture has {} bytes", bytes.len());
    std::fs::remove_file(capture).unwrap();
    Some(g)
}

#[test]
fn a_guest_uses_a_modern_card_with_msi_x() {
    if let Some(mut g) = use_the_network(&Case { name: "net-modern", device: "", mib: 12, more: &[] }) {
        g.type_line("poweroff -f");
        g.expect_exit(0, LIMIT);
    }
}

#[test]
fn a_guest_uses_a_legacy_card_with_two_cpus() {
    let device = ",disable-modern=on,rx_queue_size=64";
    if let Some(mut g) = use_the_network(&Case { name: "net-legacy", device, mib: 4, more: &["-smp", "2"] }) {
        g.type_line("poweroff -f");
        g.expect_exit(0, LIMIT);
    }
}

/// An open connection of a saved machine ends with a reset where the machine goes on; forwards and new connections work there.
#[test]
fn a_machine_is_saved_with_connections_open() {
    let Some(linux) = linux() else { return left_out("net: Debian's kernel cannot be fetched") };
    let (state, socket) = (scratch().join("net.vm"), scratch().join("net.qmp"));
    let (l, port) = listen();
    let forwarded = free();
    let nic = format!("user,id=n,hostfwd=tcp:127.0.0.1:{forwarded}-:7000");
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let args = ["-nic", &nic, "-qmp", &qmp];
    let _ = std::fs::remove_file(&socket);
    let mut g = boot("net-saved", linux, &args);
    let mut c = Client::new(&socket);
    g.type_line("sh /disk/up; nc -ll -p 7000 -e cat &");
    g.wait_for("lease 10.0.2.15", LIMIT);
    g.type_line(&format!("nc 10.0.2.2 {port}; echo \"it ended\""));
    let (open, _) = l.accept().unwrap();
    let mut shown = (0..200).map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        c.human("info usernet")
    });
    let shown = shown.find(|s| s.contains("TCP[ESTABLISHED]")).expect("the connection is shown");
    assert!(shown.contains("TCP[HOST_FORWARD]"), "{shown}");
    assert!(c.human("info network").contains("macaddr=52:54:00:12:34:56"));
    assert_eq!(c.migrate(&state)["status"], "completed");
    c.run("quit");
    g.expect_exit(0, LIMIT);
    drop((g, open));
    let _ = std::fs::remove_file(&socket);
    let base = ["-m", "256M", "-nographic", "-no-reboot", "-kernel", &linux.kernel, "-initrd", &linux.initrd];
    let append = ["-append", "console=ttyS0 quiet no_timer_check", "-loadvm", state.to_str().unwrap()];
    let mut g = Guest::start("net-saved", &[&base[..], &append, &args].concat());
    let mut c = Client::new(&socket);
    g.wait_for("it ended\r\n", LIMIT);
    there_and_back(forwarded, 1);
    // Forwards come and go.
    let another = free();
    assert_eq!(c.human(&format!("hostfwd_add tcp:127.0.0.1:{another}-:7000")), "");
    there_and_back(another, 1);
    let said = c.human(&format!("hostfwd_add n tcp:127.0.0.1:{another}-:7000"));
    assert!(said.starts_with(&format!("Error: TCP port {another} on 127.0.0.1: Address already in use")), "{said}");
    assert_eq!(c.human(&format!("hostfwd_remove tcp:127.0.0.1:{another}")), "");
    assert!(TcpStream::connect(("127.0.0.1", another)).is_err());
    c.run("quit");
    g.expect_exit(0, LIMIT);
    std::fs::remove_file(state).unwrap();
}

/// Mistakes of the user's: one line each.
#[test]
fn mistakes_are_told_in_one_line() {
    let (_taken, port) = listen();
    let taken = format!("user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22");
    let kernel = file("net-none.elf", &rhea_tests::boot::pvh_elf(&[0xf4]));
    let in_use = format!("-netdev n: hostfwd: TCP port {port} on 127.0.0.1: Address already in use");
    for (args, want) in [
        (&["-netdev", &taken, "-device", "virtio-net-pci,netdev=n"][..], &*in_use),
        (&["-device", "virtio-net-pci,netdev=m", "-netdev", "user,id=n"], "unknown value 'm'"),
        (&["-netdev", "user"], "property id is missing"),
        (&["-netdev", "user,id=n,hostfwd=tcp:1.2.3.4-:5"], "not [tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT"),
        (&["-netdev", "user,id=n,net=10.0.0.0/99"], "not a network"),
        (&["-netdev", "user,id=n,host=192.168.1.1"], "not an address of the guest's network"),
        (&["-nic", "user,model=e1000"], "'virtio-net-pci' is there"),
        (&["-device", "virtio-net-pci,mac=zz"], "not a unicast address"),
        (
            &["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device", "virtio-net-pci,netdev=n"],
            "has another card",
        ),
        (&["-object", "filter-dump,id=d,netdev=net0,file=/nonexistent/x"], "/nonexistent/x: No such file"),
    ] {
        let out = run("net-mistakes", &[&["-display", "none", "-kernel", &kernel][..], args].concat(), LIMIT);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.contains(want) && said.lines().count() == 1, "{args:?}: {said}");
    }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |s| s.parse().expect("it is a number"))
}

/// 1 GiB each way, checked, through the guest and back; then into the guest by a forwarded port.
#[test]
#[ignore = "takes minutes"]
fn a_gibibyte_goes_each_way() {
    let mib = number("RHEA_NET_MIB", 1024);
    if let Some(mut g) = use_the_network(&Case { name: "net-gib", device: "", mib, more: &[] }) {
        g.type_line("poweroff -f");
        g.expect_exit(0, LIMIT);
    }
}

/// Takes connections and answers each line in capitals.
fn shouter() -> u16 {
    let (l, port) = listen();
    std::thread::spawn(move || {
        for s in l.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut s, mut text) = (s, String::new());
                if s.read_to_string(&mut text).is_ok() {
                    let _ = s.write_all(text.to_uppercase().as_bytes());
                }
            });
        }
    });
    port
}

/// 1,000 connections out of the guest and as many into it, 64 at a time.
#[test]
#[ignore = "takes minutes"]
fn a_thousand_connections_64_at_a_time() {
    let Some(linux) = linux() else { return left_out("net: Debian's kernel cannot be fetched") };
    let each = number("RHEA_NET_CONNECTIONS", 1024).div_ceil(64);
    let forwarded = free();
    let mut g = boot("net-many", linux, &["-nic", &format!("user,hostfwd=tcp:127.0.0.1:{forwarded}-:7000")]);
    // Its server lets few wait; with SYN cookies a guest's kernel resets those whose first data it had no room for.
    g.type_line("sh /disk/up; echo 0 > /proc/sys/net/ipv4/tcp_syncookies; httpd -p 7000 -h /disk");
    g.wait_for("lease 10.0.2.15", LIMIT);
    let start = Instant::now();
    g.type_line(&format!("sh /disk/many {} {each}", shouter()));
    let said = g.wait_for("all called\r\n", 4 * LIMIT);
    assert!(!said.contains("bad"), "{said}");
    eprintln!("{} connections out: {:.1} s", 64 * each, start.elapsed().as_secs_f64());
    let start = Instant::now();
    let call = move |p: usize| {
        for i in 0..each {
            let mut s = TcpStream::connect(("127.0.0.1", forwarded)).unwrap();
            s.write_all(b"GET /lease HTTP/1.0\r\n\r\n").unwrap();
            let mut back = String::new();
            s.read_to_string(&mut back).unwrap_or_else(|e| panic!("{p} {i}: {e}"));
            assert!(back.starts_with("HTTP/1.") && back.contains(" 200 OK") && back.ends_with(LEASE), "{p} {i}: {back}");
        }
    };
    let all: Vec<_> = (0..64).map(|p| std::thread::spawn(move || call(p))).collect();
    all.into_iter().for_each(|t| t.join().unwrap());
    eprintln!("{} connections in: {:.1} s", 64 * each, start.elapsed().as_secs_f64());
    g.type_line("poweroff -f");
    g.expect_exit(0, LIMIT);
}

/// MiB/s to the guest and from it. With `RHEA_TEST_PROGRAM=qemu-system-x86_64` the same of QEMU's.
#[test]
#[ignore = "takes minutes, and a quiet host"]
fn throughput() {
    let Some(linux) = linux() else { return left_out("net: Debian's kernel cannot be fetched") };
    let mib = number("RHEA_NET_MIB", 512);
    let mut g = boot("net-throughput", linux, &["-nic", "user,model=virtio-net-pci"]);
    g.type_line("sh /disk/up");
    g.wait_for("lease 10.0.2.15", LIMIT);
    for _ in 0..number("RHEA_NET_RUNS", 3) {
        let (l, port) = listen();
        g.type_line(&format!(
            "nc 10.0.2.2 {port} < /dev/null > /dev/null; dd if=/dev/zero bs=64k count={} 2>/dev/null | nc 10.0.2.2 {port}",
            mib * 16
        ));
        let (mut s, _) = l.accept().unwrap();
        let (start, zeroes) = (Instant::now(), vec![0; MIB]);
        (0..mib).for_each(|_| s.write_all(&zeroes).unwrap());
        s.shutdown(Shutdown::Write).unwrap();
        assert_eq!(s.read(&mut [0]).unwrap(), 0);
        let down = mib as f64 / start.elapsed().as_secs_f64();
        let (mut s, _) = l.accept().unwrap();
        let (start, mut n, mut buf) = (Instant::now(), 0, vec![0; MIB]);
        while n < mib * MIB {
            n += s.read(&mut buf).unwrap();
        }
        let up = mib as f64 / start.elapsed().as_secs_f64();
        eprintln!("to the guest {down:.1} MiB/s, from it {up:.1} MiB/s");
        drop(s);
        g.wait_for("# ", LIMIT);
    }
}
