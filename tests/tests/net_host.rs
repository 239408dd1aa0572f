//! Networks that lead out of the program: a TAP device and echo requests that go on, each in a network namespace of its own, where the
//! host lets it make one (unshare(1), ip(8)); and two guests behind sockets of all kinds.

use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{Guest, program, scratch};
use rhea_tests::disks::Linux;
use std::net::TcpListener;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use vm_core::testing::{Rng, left_out};

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3000 } else { 300 });
/// Bytes that go each way over the TAP device.
const LEN: usize = 3_000_000;

/// The card with an address; echoes; data both ways with whoever calls.
const TAP: &str = r#"sh /disk/load
sh /disk/load-net
ip link set eth0 up
ip addr add 192.0.2.2/24 dev eth0
echo "echoes $(ping -c 3 -s 1400 -W 20 192.0.2.1 | grep -c 'bytes from')"
echo "received $(nc -l -p 7000 < /disk/guest | md5sum | cut -c 1-32)"
"#;

/// Echo requests beyond the gateway.
const PING: &str = r#"sh /disk/load
sh /disk/load-net
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
echo "echoes $(ping -c 3 -s 1000 -W 5 192.0.2.1 | grep -c 'bytes from 192.0.2.1')"
"#;

/// Three cards with addresses that end in the argument.
const CARDS: &str = r#"sh /disk/load
sh /disk/load-net
for i in 0 1 2; do
    ip link set eth$i up
    ip addr add 10.9.$i.$1/24 dev eth$i
done
echo "cards are up"
"#;

/// Echoes of the other guest's by each card.
const CALL: &str = r#"for i in 0 1 2; do
    echo "card $i $(ping -c 3 -s 1400 -W 20 10.9.$i.1 | grep -c 'bytes from')"
done
"#;

/// Makes the device usable when it is there, and calls the guest. `$DIR`: where data lie.
const HOST: &str = r#"ip link set lo up
(until ip link set rhea-tap up 2>/dev/null; do sleep 0.1; done
 ip addr add 192.0.2.1/24 dev rhea-tap
 until exec 3<>/dev/tcp/192.0.2.2/7000; do sleep 0.2; done
 cat "$DIR/host" >&3 &
 head -c 3000000 <&3 | cmp - "$DIR/guest" && echo same > "$DIR/said"
 exec 3>&-) >/dev/null 2>&1 &
exec "$@"
"#;

fn data(seed: u64) -> Vec<u8> {
    let mut r = Rng(seed);
    (0..LEN / 8).flat_map(|_| r.next_u64().to_le_bytes()).collect()
}

fn linux() -> Option<&'static Linux> {
    static MADE: OnceLock<Option<Linux>> = OnceLock::new();
    let make = || {
        let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
        let c = firstrun::prepare(*c).expect("some guest can always be made");
        let files = [
            ("tap", TAP.as_bytes()),
            ("ping", PING.as_bytes()),
            ("cards", CARDS.as_bytes()),
            ("call", CALL.as_bytes()),
            ("guest", &data(1)),
        ];
        Linux::with(&c.initrd?, "net-host", &files)
    };
    MADE.get_or_init(make).as_ref()
}

/// Whether a namespace of its own can be made, and this done in it.
fn namespace(script: &str) -> bool {
    Command::new("unshare").args(["-n", "sh", "-c", script]).output().is_ok_and(|o| o.status.success())
}

/// A guest at its shell, in a namespace that `host` (for bash) prepares.
fn boot(name: &str, host: &str, linux: &Linux, more: &[&str]) -> Guest {
    let mut c = Command::new("unshare");
    c.args(["-n", "bash", "-c", host, "bash"]).arg(program()).env("DIR", scratch());
    start(name, c, linux, more)
}

fn start(name: &str, mut c: Command, linux: &Linux, more: &[&str]) -> Guest {
    c.args(["-accel", "jit", "-m", "256M", "-nographic", "-no-reboot", "-kernel", &linux.kernel, "-initrd", &linux.initrd]);
    let mut g = Guest::spawn(name, c.args(["-append", "console=ttyS0 quiet no_timer_check"]).args(more));
    g.wait_for("# ", LIMIT);
    g
}

#[test]
fn a_guest_reaches_the_host_over_a_tap_device() {
    if !namespace("ip tuntap add dev rhea-tap mode tap") {
        return left_out("net: no TAP device can be made here");
    }
    let Some(linux) = linux() else { return left_out("net: Debian's kernel cannot be fetched") };
    let said = scratch().join("said");
    let _ = std::fs::remove_file(&said);
    std::fs::write(scratch().join("guest"), data(1)).unwrap();
    std::fs::write(scratch().join("host"), data(2)).unwrap();
    let mut sum = Command::new("md5sum");
    let sum = sum.arg(scratch().join("host")).output().expect("md5sum is there").stdout;
    let tap = ["-netdev", "tap,id=n,ifname=rhea-tap,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n"];
    let mut g = boot("net-tap", HOST, linux, &tap);
    g.type_line("sh /disk/tap");
    g.wait_for("echoes 3\r\n", LIMIT);
    g.wait_for(&format!("received {}\r\n", String::from_utf8_lossy(&sum[..32])), LIMIT);
    g.type_line("poweroff -f");
    g.expect_exit(0, LIMIT);
    assert_eq!(std::fs::read_to_string(said).expect("the host has compared"), "same\n");
}

/// Another host answers if `net.ipv4.ping_group_range` lets the program ask it; else the guest is told that it may not.
#[test]
fn echo_requests_go_on_to_other_hosts() {
    let host = |range: &str| {
        format!("ip link set lo up && ip addr add 192.0.2.1/32 dev lo && echo '{range}' > /proc/sys/net/ipv4/ping_group_range")
    };
    if !namespace(&host("0 0")) {
        return left_out("net: no network namespace can be made here");
    }
    let Some(linux) = linux() else { return left_out("net: Debian's kernel cannot be fetched") };
    for (range, echoes) in [("0 2147483647", 3), ("1 0", 0)] {
        let capture = scratch().join("net-ping.pcap");
        let dump = format!("filter-dump,id=d,netdev=n,file={}", capture.display());
        let script = format!("{} && exec \"$@\"", host(range));
        let mut g = boot("net-ping", &script, linux, &["-nic", "user,id=n", "-object", &dump]);
        g.type_line("sh /disk/ping");
        g.wait_for(&format!("echoes {echoes}\r\n"), LIMIT);
        g.type_line("poweroff -f");
        g.expect_exit(0, LIMIT);
        // From the gateway: destination unreachable, communication administratively prohibited (RFC 1812).
        let told = std::fs::read(capture).unwrap().windows(10).any(|w| w == [10, 0, 2, 2, 10, 0, 2, 15, 3, 13]);
        assert_eq!(told, echoes == 0, "{range}");
    }
}

/// TCP, a Unix socket and datagrams, a card for each.
#[test]
fn two_guests_reach_each_other_by_sockets_of_all_kinds() {
    let Some(linux) = linux() else { return left_out("net: Debian's kernel cannot be fetched") };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = |name: &str| scratch().join(format!("net-two-{name}")).display().to_string();
    let (stream, ends) = (path("stream"), [path("one"), path("two")]);
    [&stream, &ends[0], &ends[1]].into_iter().for_each(|p| drop(std::fs::remove_file(p)));
    let guest = |n: usize| {
        let tcp = if n == 0 { "listen" } else { "connect" };
        let netdevs = [
            format!("socket,id=n0,{tcp}=127.0.0.1:{port}"),
            format!("stream,id=n1,server={},addr.type=unix,addr.path={stream}", if n == 0 { "on" } else { "off" }),
            format!("dgram,id=n2,local.type=unix,local.path={},remote.type=unix,remote.path={}", ends[n], ends[1 - n]),
        ];
        let card = |i: usize| format!("virtio-net-pci,netdev=n{i},mac=52:54:00:00:0{n}:0{i}");
        let more: Vec<String> = (0..3).flat_map(|i| ["-netdev".into(), netdevs[i].clone(), "-device".into(), card(i)]).collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let mut g = start(&format!("net-two-{n}"), Command::new(program()), linux, &more);
        g.type_line(&format!("sh /disk/cards {}", n + 1));
        g.wait_for("cards are up\r\n", LIMIT);
        g
    };
    let (mut one, mut two) = (guest(0), guest(1));
    two.type_line("sh /disk/call");
    (0..3).for_each(|i| drop(two.wait_for(&format!("card {i} 3\r\n"), LIMIT)));
    for g in [&mut one, &mut two] {
        g.type_line("poweroff -f");
        g.expect_exit(0, LIMIT);
    }
}
