//! Network: `-netdev`, `-nic`, `-net none`, the network card, captures, and what there is when nothing is said.

use super::chardev;
use super::config::{
    Config, DeviceSpec, DumpConfig, ForwardTarget, GuestForward, HostForward, LinkConfig, NetdevConfig, NetdevKind, Protocol,
    SocketAddress, UserNet,
};
use super::drive;
use super::error::{Hint, OptionError, Quoted};
use super::schema::{Kind, PropSpec, need, prop};
use super::tree::{Group, KeyVal, Object, Tree, keyvals, take};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

const MODEL: &str = "virtio-net-pci";

fn is_card(o: &Object) -> bool {
    matches!(o.driver, MODEL | "virtio-net-device")
}
/// Properties that may be given more than once.
const LISTS: [&str; 2] = ["hostfwd", "guestfwd"];

pub const USER: &[PropSpec] = &[
    prop("net", Kind::Text, "the guest's network, ADDR[/BITS] or ADDR/MASK (10.0.2.0/24)"),
    prop("host", Kind::Text, "the host as the guest sees it, which is the host's loopback (10.0.2.2)"),
    prop("dns", Kind::Text, "the name server as the guest sees it (10.0.2.3)"),
    prop("dhcpstart", Kind::Text, "first address that DHCP gives away (10.0.2.15)"),
    prop("hostname", Kind::Text, "name that DHCP gives to the guest"),
    prop("domainname", Kind::Text, "domain that DHCP tells"),
    prop("restrict", Kind::Switch, "the guest reaches nothing but what guestfwd names (off)"),
    prop("hostfwd", Kind::Text, "[tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT, any number of times"),
    prop("guestfwd", Kind::Text, "[tcp]:ADDR:PORT-tcp:HOST:PORT, …-unix:PATH, …-cmd:COMMAND, …-chardev:ID, any number of times"),
    prop("resolv-conf", Kind::Text, "where the host's name server is named (/etc/resolv.conf)"),
    prop("ipv4", Kind::Word(&["on", "yes", "y"]), "accepted"),
    prop("ipv6", Kind::Word(&["off", "no", "n"]), "accepted"),
];

pub const TAP: &[PropSpec] = &[
    prop("ifname", Kind::Text, "its name (the host chooses)"),
    prop("script", Kind::Word(&["no", ""]), "accepted"),
    prop("downscript", Kind::Word(&["no", ""]), "accepted"),
    prop("vhost", Kind::Word(&["off"]), "accepted"),
    prop("vnet_hdr", Kind::Word(&["off"]), "accepted"),
];

pub const SOCKET: &[PropSpec] = &[
    prop("listen", Kind::Text, "[HOST]:PORT to wait at for a peer"),
    prop("connect", Kind::Text, "HOST:PORT of a peer that waits"),
    prop("udp", Kind::Text, "HOST:PORT to send to"),
    prop("localaddr", Kind::Text, "HOST:PORT to receive at, with udp"),
];

const KIND: Kind = Kind::Word(&["inet", "unix"]);

pub const STREAM: &[PropSpec] = &[
    prop("server", Kind::Switch, "wait for a peer (off)"),
    need("addr.type", KIND, ""),
    prop("addr.host", Kind::Text, ""),
    prop("addr.port", Kind::Text, ""),
    prop("addr.path", Kind::Text, ""),
];

pub const DGRAM: &[PropSpec] = &[
    need("local.type", KIND, ""),
    prop("local.host", Kind::Text, ""),
    prop("local.port", Kind::Text, ""),
    prop("local.path", Kind::Text, ""),
    need("remote.type", KIND, ""),
    prop("remote.host", Kind::Text, ""),
    prop("remote.port", Kind::Text, ""),
    prop("remote.path", Kind::Text, ""),
];

pub const VIRTIO_NET: &[PropSpec] = &drive::pci_and::<5, 11>([
    prop("netdev", Kind::Text, "id of a -netdev (none: no link)"),
    prop("mac", Kind::Text, "hardware address (52:54:00:12:34:56 and those that follow)"),
    prop("rx_queue_size", Kind::Positive(1024), "buffers for frames that come, a power of two (256)"),
    prop("tx_queue_size", Kind::Positive(1024), "frames under way, a power of two (256)"),
    prop("bootindex", Kind::Number(i32::MAX as u64), "accepted"),
]);

pub const DUMP: &[PropSpec] = &[
    need("netdev", Kind::Text, "whose frames"),
    need("file", Kind::Text, "capture, in libpcap's format"),
    prop("maxlen", Kind::Positive(1 << 20), "bytes of each frame (65536)"),
];

/// Joins what may be given more than once.
fn join_lists(kvs: Vec<KeyVal>) -> Vec<KeyVal> {
    let mut out: Vec<KeyVal> = Vec::new();
    for kv in kvs {
        match (out.iter_mut().find(|o| LISTS.contains(&&*o.key) && o.key == kv.key), &kv.value) {
            (Some(KeyVal { value: Some(all), .. }), Some(v)) => {
                all.push('\n');
                all.push_str(v);
            }
            _ => out.push(kv),
        }
    }
    out
}

/// What `-netdev` and `-nic` say; back ends that `guestfwd` describes, rather than names, become chardevs.
fn properties(tree: &mut Tree, value: &str, origin: &str) -> Result<Vec<KeyVal>, OptionError> {
    let mut kvs = keyvals(value, Some("type"));
    for text in kvs.iter_mut().filter(|k| k.key == "guestfwd").filter_map(|k| k.value.as_mut()) {
        let Some((at, to)) = text.split_once('-') else { continue };
        let word = to.split(':').next().unwrap_or_default();
        if word != "cmd" && (to.contains(',') || !matches!(word, "tcp" | "unix" | "chardev")) {
            let id = format!("guestfwd.tcp.{}", at.rsplit(':').next().unwrap_or_default());
            let id = chardev::short(tree, to, &id, false, &format!("{origin}: guestfwd"))?.unwrap_or_default();
            *text = format!("{at}-chardev:{id}");
        }
    }
    Ok(join_lists(kvs))
}

/// Back ends that a network's `guestfwd` names.
pub fn chardevs(o: &Object) -> impl Iterator<Item = &str> {
    let all = o.text("guestfwd").filter(|_| o.group == Group::Netdev).unwrap_or_default();
    all.lines().filter_map(|l| l.split_once('-')?.1.strip_prefix("chardev:"))
}

/// `-netdev KIND,id=ID,…`.
pub fn netdev(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = properties(tree, value, origin)?;
    let kind = take(&mut kvs, "type").ok_or(OptionError::MissingProperty(origin.into(), "type"))?;
    let o = Object::new(Group::Netdev, &kind, kvs, &format!("{origin} {}", kind.escape_debug()))?;
    if o.id.is_none() {
        return Err(OptionError::MissingProperty(o.origin, "id"));
    }
    tree.push(o);
    Ok(())
}

/// `-nic KIND[,model=M][,mac=A],…`: a back end and its card.
pub fn nic(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    if value == "none" {
        return super::expand::process(tree, vec![KeyVal::new("network", "off")], origin);
    }
    let mut kvs = properties(tree, value, origin)?;
    let kind = take(&mut kvs, "type").ok_or(OptionError::MissingProperty(origin.into(), "type"))?;
    if let Some(model) = take(&mut kvs, "model").filter(|m| !matches!(m.as_str(), MODEL | "virtio" | "virtio-net")) {
        let what = format!("{origin} model={}", Quoted::from(&*model));
        return Err(OptionError::NotBuilt(what, format!("'{MODEL}' is there")));
    }
    let mut device: Vec<KeyVal> = Vec::new();
    for key in ["mac", "addr"] {
        device.extend(take(&mut kvs, key).map(|v| KeyVal::new(key, &v)));
    }
    let mut o = Object::new(Group::Netdev, &kind, kvs, &format!("{origin} {}", kind.escape_debug()))?;
    let n = tree.all(Group::Netdev).count();
    let id = o.id.get_or_insert_with(|| format!("nic{n}")).clone();
    tree.push(o);
    device.push(KeyVal::new("netdev", &id));
    tree.push(Object::new(Group::Device, MODEL, device, origin)?);
    Ok(())
}

/// `-object TYPE,id=ID,…`.
pub fn object(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = keyvals(value, Some("qom-type"));
    let kind = take(&mut kvs, "qom-type").ok_or(OptionError::MissingProperty(origin.into(), "qom-type"))?;
    tree.push(Object::new(Group::Object, &kind, kvs, &format!("{origin} {}", kind.escape_debug()))?);
    Ok(())
}

/// A card with a user-mode network where nothing was said of networks, as in QEMU.
pub fn defaults(tree: &mut Tree) -> Result<(), OptionError> {
    let process = tree.one(Group::Process);
    let off = |name| process.and_then(|p| p.switch(name)) == Some(false);
    let said = tree.all(Group::Netdev).next().is_some() || tree.all(Group::Device).any(is_card);
    if off("network") || off("defaults") || said || tree.one(Group::Icount).is_some() {
        return Ok(());
    }
    nic(tree, "user,id=net0", "-nic")
}

fn bad(o: &Object, name: &str, value: &str, why: &str) -> OptionError {
    OptionError::BadValue(format!("{}: {name}", o.origin), value.into(), why.into())
}

/// All back ends.
pub fn build(tree: &Tree) -> Result<Vec<NetdevConfig>, OptionError> {
    let mut list: Vec<NetdevConfig> = Vec::new();
    for o in tree.all(Group::Netdev) {
        let id = o.id.clone().unwrap_or_default();
        if list.iter().any(|n| n.id == id) {
            return Err(bad(o, "id", &id, "another network has this id"));
        }
        let kind = match o.driver {
            "user" => NetdevKind::User(Box::new(user(o)?)),
            _ => NetdevKind::Link(link(o)?),
        };
        list.push(NetdevConfig { id, kind });
    }
    Ok(list)
}

/// `HOST:PORT`.
fn host_port(o: &Object, name: &str) -> Result<Option<SocketAddress>, OptionError> {
    let Some(text) = o.text(name) else { return Ok(None) };
    let wrong = || bad(o, name, text, "not HOST:PORT");
    let (host, at) = text.rsplit_once(':').ok_or_else(wrong)?;
    let at = port(at).map_err(|_| wrong())?;
    Ok(Some(SocketAddress::Tcp { host: host.into(), port: at }))
}

/// The address of `prefix.type`, `prefix.host` and so on.
fn socket_address(o: &Object, prefix: &str) -> Result<SocketAddress, OptionError> {
    let part = |name: &str| o.text(&format!("{prefix}.{name}")).filter(|t| !t.is_empty());
    let missing = |what| OptionError::Conflict(format!("{}: {prefix}: {what} is missing", o.origin));
    if part("type") == Some("unix") {
        return part("path").map(|p| SocketAddress::Unix(p.into())).ok_or_else(|| missing("path"));
    }
    let at = part("port").ok_or_else(|| missing("port"))?;
    let at = port(at).map_err(|why| bad(o, prefix, at, &why))?;
    Ok(SocketAddress::Tcp { host: part("host").unwrap_or_default().into(), port: at })
}

fn link(o: &Object) -> Result<LinkConfig, OptionError> {
    match o.driver {
        "tap" => Ok(LinkConfig::Tap { name: o.text("ifname").unwrap_or_default().into() }),
        "stream" if o.switch("server") == Some(true) => Ok(LinkConfig::Listen(socket_address(o, "addr")?)),
        "stream" => Ok(LinkConfig::Connect(socket_address(o, "addr")?)),
        "dgram" => Ok(LinkConfig::Datagrams { local: socket_address(o, "local")?, remote: socket_address(o, "remote")? }),
        _ => match (host_port(o, "listen")?, host_port(o, "connect")?, host_port(o, "udp")?, host_port(o, "localaddr")?) {
            (Some(a), None, None, None) => Ok(LinkConfig::Listen(a)),
            (None, Some(a), None, None) => Ok(LinkConfig::Connect(a)),
            (None, None, Some(remote), Some(local)) => Ok(LinkConfig::Datagrams { local, remote }),
            _ => Err(OptionError::Conflict(format!("{}: one of listen, connect, or udp with localaddr", o.origin))),
        },
    }
}

fn address(o: &Object, name: &str) -> Result<Option<Ipv4Addr>, OptionError> {
    o.text(name).map(|t| t.parse().map_err(|_| bad(o, name, t, "not an IPv4 address"))).transpose()
}

/// `ADDR`, `ADDR/BITS` or `ADDR/MASK`.
fn network(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (ip, mask) = text.split_once('/').unwrap_or((text, "24"));
    let bits = match mask.parse::<u8>() {
        Ok(bits) => bits,
        Err(_) => {
            let mask = u32::from(mask.parse::<Ipv4Addr>().ok()?);
            (mask.leading_ones() + mask.trailing_zeros() == 32).then_some(mask.leading_ones() as u8)?
        }
    };
    Some((ip.parse().ok()?, bits)).filter(|_| (8..=29).contains(&bits))
}

fn user(o: &Object) -> Result<UserNet, OptionError> {
    let text = o.text("net").unwrap_or("10.0.2.0/24");
    let (net, prefix) = network(text).ok_or_else(|| bad(o, "net", text, "not a network of 8 to 29 bits"))?;
    let base = u32::from(net) & (u32::MAX << (32 - prefix));
    let size = 1u32 << (32 - prefix);
    let nth = |n: u32| Ipv4Addr::from(base | n.min(size - 2));
    let host = address(o, "host")?.unwrap_or(nth(2));
    let dns = address(o, "dns")?.unwrap_or(nth(3));
    let dhcp_start = address(o, "dhcpstart")?.unwrap_or(if size > 16 { nth(15) } else { nth(4) });
    let word = |name| o.text(name).unwrap_or_default().to_owned();
    let mut u = UserNet {
        net: Ipv4Addr::from(base),
        prefix,
        host,
        dns,
        dhcp_start,
        hostname: word("hostname"),
        domain: word("domainname"),
        restrict: o.switch("restrict") == Some(true),
        hostfwd: Vec::new(),
        guestfwd: Vec::new(),
        resolv_conf: o.text("resolv-conf").unwrap_or("/etc/resolv.conf").into(),
    };
    for (name, ip) in [("host", host), ("dns", dns), ("dhcpstart", dhcp_start)] {
        if !u.contains(ip) {
            return Err(bad(o, name, &ip.to_string(), "not an address of the guest's network"));
        }
    }
    if host == dns || host == dhcp_start || dns == dhcp_start {
        return Err(OptionError::Conflict(format!("{}: host, dns and dhcpstart must differ", o.origin)));
    }
    for (name, text) in LISTS.iter().flat_map(|n| o.text(n).into_iter().flat_map(str::lines).map(move |l| (*n, l))) {
        match name {
            "hostfwd" => u.hostfwd.push(host_forward(text).map_err(|why| bad(o, name, text, &why))?),
            _ => {
                let g = guest_forward(text).map_err(|why| bad(o, name, text, &why))?;
                if !u.contains(*g.at.ip()) || *g.at.ip() == host || u.guestfwd.iter().any(|x| x.at == g.at) {
                    return Err(bad(o, name, text, "not a free address of the guest's network"));
                }
                u.guestfwd.push(g);
            }
        }
    }
    Ok(u)
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|p| *p > 0).ok_or_else(|| format!("'{text}' is no port"))
}

fn ip(text: &str) -> Result<Ipv4Addr, String> {
    if text.is_empty() { Ok(Ipv4Addr::UNSPECIFIED) } else { text.parse().map_err(|_| format!("'{text}' is no IPv4 address")) }
}

/// Protocol and address of the host's, as `hostfwd_remove` has them: `[tcp|udp]:[ADDR]:PORT`.
pub fn host_end(text: &str) -> Result<(Protocol, SocketAddrV4), String> {
    let mut parts = text.split(':');
    let (Some(protocol), Some(addr), Some(at), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err("not [tcp|udp]:[HOSTADDR]:HOSTPORT".into());
    };
    let protocol = match protocol {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        p => return Err(format!("'{p}' is neither 'tcp' nor 'udp'")),
    };
    Ok((protocol, SocketAddrV4::new(ip(addr)?, port(at)?)))
}

/// `[tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT`.
pub fn host_forward(text: &str) -> Result<HostForward, String> {
    const FORM: &str = "not [tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT";
    let (from, to) = text.split_once('-').ok_or(FORM)?;
    let (protocol, host) = host_end(from).map_err(|why| if why.starts_with("not") { FORM.to_owned() } else { why })?;
    let (addr, at) = to.split_once(':').ok_or(FORM)?;
    Ok(HostForward { protocol, host, guest: SocketAddrV4::new(ip(addr)?, port(at)?) })
}

fn guest_forward(text: &str) -> Result<GuestForward, String> {
    const FORM: &str = "not [tcp]:ADDR:PORT-tcp:HOST:PORT, -unix:PATH, -cmd:COMMAND or -chardev:ID";
    let (at, to) = text.split_once('-').ok_or(FORM)?;
    let (Protocol::Tcp, at) = host_end(at).map_err(|_| FORM)? else { return Err("only 'tcp' can be forwarded".into()) };
    let to = match to.split_once(':').ok_or(FORM)? {
        ("tcp", at) => {
            let at = at.strip_prefix("localhost:").map_or_else(|| at.to_owned(), |port| format!("127.0.0.1:{port}"));
            ForwardTarget::Tcp(at.parse::<SocketAddr>().map_err(|_| format!("'{at}' is no ADDRESS:PORT"))?)
        }
        ("unix", path) if !path.is_empty() => ForwardTarget::Unix(path.into()),
        ("chardev", id) if !id.is_empty() => ForwardTarget::Chardev(id.into()),
        ("cmd", line) if !line.is_empty() => ForwardTarget::Command(line.into()),
        _ => return Err(FORM.into()),
    };
    Ok(GuestForward { at, to })
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for b in &mut bytes {
        *b = u8::from_str_radix(parts.next().filter(|p| (1..=2).contains(&p.len()))?, 16).ok()?;
    }
    (parts.next().is_none() && bytes[0] & 1 == 0).then_some(bytes)
}

/// A network card, or `None` if it is something else.
pub fn device(tree: &Tree, o: &Object) -> Result<Option<DeviceSpec>, OptionError> {
    if !is_card(o) {
        return Ok(None);
    }
    let queue = |name| match o.number(name).unwrap_or(256) as u16 {
        n if n.is_power_of_two() && n >= 64 => Ok(n),
        n => Err(bad(o, name, &n.to_string(), "a power of two from 64 to 1024")),
    };
    let n = tree.all(Group::Device).filter(|x| is_card(x)).position(|x| std::ptr::eq(x, o)).unwrap_or(0);
    let address = match o.text("mac") {
        Some(t) => mac(t).ok_or_else(|| bad(o, "mac", t, "not a unicast address like 52:54:00:12:34:56"))?,
        None => [0x52, 0x54, 0, 0x12, 0x34, 0x56u8.wrapping_add(n as u8)],
    };
    Ok(Some(DeviceSpec::VirtioNet {
        netdev: o.text("netdev").filter(|n| !n.is_empty()).map(Into::into),
        mac: address,
        rx_queue: queue("rx_queue_size")?,
        tx_queue: queue("tx_queue_size")?,
        slot: drive::slot(o)?,
    }))
}

/// Captures.
pub fn dumps(tree: &Tree) -> Vec<DumpConfig> {
    let one = |o: &Object| DumpConfig {
        netdev: o.text("netdev").unwrap_or_default().into(),
        file: o.text("file").unwrap_or_default().into(),
        most: o.number("maxlen").unwrap_or(65536) as usize,
    };
    tree.all(Group::Object).filter(|o| o.driver == "filter-dump").map(one).collect()
}

/// Every network that something names exists, and has one card.
pub fn check(tree: &Tree, c: &Config) -> Result<(), OptionError> {
    let mut used: Vec<&str> = Vec::new();
    for o in tree.objects.iter().filter(|o| o.group == Group::Object || is_card(o)) {
        let Some(id) = o.text("netdev").filter(|n| !n.is_empty()) else { continue };
        if !c.netdevs.iter().any(|n| n.id == id) {
            let hint = Hint::for_word(id, c.netdevs.iter().map(|n| n.id.as_str()));
            return Err(OptionError::UnknownValue(format!("{}: netdev", o.origin), id.into(), hint));
        }
        if is_card(o) && used.contains(&id) {
            return Err(OptionError::Conflict(format!("{}: netdev {} has another card", o.origin, Quoted::from(id))));
        }
        if is_card(o) {
            used.push(id);
        }
    }
    Ok(())
}
