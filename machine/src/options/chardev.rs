//! Character back ends on the command line: `-chardev`, and the short notation of `-serial`, `-monitor`, `-qmp`, `-debugcon`.

use super::error::OptionError;
use super::tree::{Group, KeyVal, Object, Tree, keyvals, take};

/// `-chardev BACKEND,id=ID,…`.
pub fn chardev(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let mut kvs = keyvals(value, Some("backend"));
    let driver = take(&mut kvs, "backend").ok_or(OptionError::MissingProperty(origin.into(), "backend"))?;
    if !kvs.iter().any(|k| k.key == "id" && k.value.is_some()) {
        return Err(OptionError::MissingProperty(format!("{origin} {}", clean(&driver)), "id"));
    }
    add(tree, &driver, kvs, origin)
}

/// A driver name as it may stand in a message.
fn clean(s: &str) -> String {
    s.chars().filter(|c| c.is_ascii_graphic()).take(20).collect()
}

fn add(tree: &mut Tree, driver: &str, kvs: Vec<KeyVal>, origin: &str) -> Result<(), OptionError> {
    let o = Object::new(Group::Chardev, driver, kvs, origin)?;
    if o.driver == "socket" {
        match (o.text("path"), o.text("host"), o.number("port")) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            (None, None, Some(_)) if o.switch("server") == Some(true) => {}
            _ => return Err(OptionError::Conflict(format!("{origin}: a socket needs either path, or host and port"))),
        }
    }
    tree.push(o);
    Ok(())
}

/// Adds the back end that `spec` names, as chardev `id` unless it is `chardev:ID`; returns the id. `none` is no back end.
pub fn short(tree: &mut Tree, spec: &str, id: &str, mux: bool, origin: &str) -> Result<Option<String>, OptionError> {
    let (driver, rest) = spec.split_once(':').unwrap_or((spec, ""));
    let mut kvs = match driver {
        "none" if rest.is_empty() => return Ok(None),
        "chardev" => return Ok(Some(rest.to_owned())),
        "null" | "stdio" | "pty" if rest.is_empty() && spec == driver => Vec::new(),
        "file" => vec![KeyVal::new("path", rest)],
        "unix" => keyvals(rest, Some("path")),
        "tcp" => tcp(rest, origin)?,
        // Unknown words, and properties on back ends that have none in this notation, are checked as a driver name.
        _ => {
            return add(tree, if rest.is_empty() { spec } else { driver }, vec![], origin).and_then(|()| {
                let why = "it takes nothing after the name here";
                Err(OptionError::BadValue(origin.to_owned(), spec.into(), why.into()))
            });
        }
    };
    let driver = if matches!(driver, "unix" | "tcp") { "socket" } else { driver };
    let id = match take(&mut kvs, "id") {
        Some(given) => given,
        None => id.to_owned(),
    };
    kvs.push(KeyVal::new("id", &id));
    if mux {
        kvs.push(KeyVal::new("mux", "on"));
    }
    add(tree, driver, kvs, origin)?;
    Ok(Some(id))
}

/// `HOST:PORT[,key=value…]`; the host may be `[v6]`, and empty for a server.
fn tcp(rest: &str, origin: &str) -> Result<Vec<KeyVal>, OptionError> {
    let mut kvs = keyvals(rest, Some("address"));
    let address = take(&mut kvs, "address").unwrap_or_default();
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(OptionError::BadValue(origin.into(), (*address).into(), "not HOST:PORT".into()));
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    kvs.push(KeyVal::new("port", port));
    if !host.is_empty() {
        kvs.push(KeyVal::new("host", host));
    }
    Ok(kvs)
}

/// Number of serial ports asked for with `-serial`, those of `none` included.
fn serial_count(tree: &Tree) -> usize {
    tree.all(Group::Device).filter(|o| o.driver == "isa-serial" && o.origin == "-serial").count()
}

/// `-serial`: a chardev and the next serial port; `none` leaves that port out.
pub fn serial(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let n = serial_count(tree);
    if n >= 4 {
        return Err(OptionError::Conflict(format!("{origin}: there are only 4 serial ports")));
    }
    let (spec, mux) = value.strip_prefix("mon:").map_or((value, false), |s| (s, true));
    let id = short(tree, spec, &format!("serial{n}"), mux, origin)?;
    if let (Some(id), true) = (&id, mux) {
        add_monitor(tree, id, origin)?;
    }
    // A port without a back end keeps its place in the count.
    let kvs = vec![KeyVal::new("chardev", id.as_deref().unwrap_or("")), KeyVal::new("index", &n.to_string())];
    tree.push(Object::new(Group::Device, "isa-serial", kvs, origin)?);
    Ok(())
}

/// `-monitor`: a chardev and a monitor on it. `none` only removes the default monitor.
pub fn monitor(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let n = tree.all(Group::Monitor).count();
    let (spec, mux) = value.strip_prefix("mon:").map_or((value, false), |s| (s, true));
    match short(tree, spec, &format!("compat_monitor{n}"), mux, origin)? {
        Some(id) => add_monitor(tree, &id, origin),
        None => add_monitor(tree, "", origin),
    }
}

fn add_monitor(tree: &mut Tree, id: &str, origin: &str) -> Result<(), OptionError> {
    tree.push(Object::new(Group::Monitor, "mon", vec![KeyVal::new("chardev", id)], origin)?);
    Ok(())
}

/// `-qmp`: a chardev and a QMP server on it. `none` only removes the default monitor.
pub fn qmp(tree: &mut Tree, value: &str, pretty: bool, origin: &str) -> Result<(), OptionError> {
    let n = tree.all(Group::Monitor).count();
    let id = short(tree, value, &format!("compat_monitor{n}"), false, origin)?.unwrap_or_default();
    let pretty = if pretty { "on" } else { "off" };
    let kvs = vec![KeyVal::new("chardev", &id), KeyVal::new("mode", "control"), KeyVal::new("pretty", pretty)];
    tree.push(Object::new(Group::Monitor, "mon", kvs, origin)?);
    Ok(())
}

/// `-gdb`: a chardev and a stub on it, `,arch=` being the stub's; sockets are servers that nobody waits for unless it is said otherwise. The last one
/// counts.
pub fn gdb(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    let is_ours = |o: &Object| o.group == Group::Gdb || o.id.as_deref() == Some("gdb");
    tree.objects.retain(|o| !is_ours(o));
    let (arch, value): (Vec<&str>, Vec<&str>) = value.split(',').partition(|p| p.starts_with("arch="));
    if let Some(id) = short(tree, &gdb_backend(&value.join(",")), "gdb", false, origin)? {
        let arch = arch.iter().map(|p| KeyVal::new("arch", &p["arch=".len()..]));
        tree.push(Object::new(Group::Gdb, "gdb", [KeyVal::new("chardev", &id)].into_iter().chain(arch).collect(), origin)?);
    }
    Ok(())
}

/// A back end with what is usual for a stub.
fn gdb_backend(value: &str) -> String {
    let mut spec = value.to_owned();
    if value.starts_with("tcp:") || value.starts_with("unix:") {
        for (key, default) in [("server", "server=on"), ("wait", "wait=off")] {
            if !value.split(',').skip(1).any(|p| p.split('=').next() == Some(key)) {
                spec = format!("{spec},{default}");
            }
        }
    }
    spec
}

/// `-debugcon`: a chardev and an isa-debugcon on it.
pub fn debugcon(tree: &mut Tree, value: &str, origin: &str) -> Result<(), OptionError> {
    if let Some(id) = short(tree, value, "debugcon", false, origin)? {
        tree.push(Object::new(Group::Device, "isa-debugcon", vec![KeyVal::new("chardev", &id)], origin)?);
    }
    Ok(())
}

/// Whether the guest is seen through a terminal rather than on a screen.
pub fn terminal(tree: &Tree) -> bool {
    let process = tree.one(Group::Process);
    process.and_then(|p| p.switch("graphic")) == Some(false) || process.is_none_or(|p| p.text("display").is_none())
}

/// What stands in for serial port and monitor when neither `-nodefaults` nor options of their own say otherwise.
///
/// There is no window, so without `-display none` both share the terminal, as with `-nographic`.
pub fn defaults(tree: &mut Tree) -> Result<(), OptionError> {
    let terminal = terminal(tree);
    let process = tree.one(Group::Process);
    let switch = |n| process.and_then(|p| p.switch(n));
    if switch("defaults") == Some(false) || !terminal {
        return Ok(());
    }
    let no_serial = !tree.all(Group::Device).any(|o| o.driver == "isa-serial");
    let no_monitor = tree.one(Group::Monitor).is_none();
    let stdio_taken = tree.all(Group::Chardev).any(|o| o.driver == "stdio");
    match (no_serial, no_monitor) {
        _ if stdio_taken => Ok(()),
        (true, true) => serial(tree, "mon:stdio", "-serial"),
        (true, false) => serial(tree, "stdio", "-serial"),
        (false, true) if switch("graphic") == Some(false) => monitor(tree, "stdio", "-monitor"),
        _ => Ok(()),
    }
}
