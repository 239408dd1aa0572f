//! Help texts, all made from the option table and the schema.

use super::schema::{self, FEATURES, Kind};
use super::table::OPTIONS;
use super::tree::Group;
use std::fmt::Write;

/// `-version`.
pub fn version() -> String {
    format!("rhea {}\n", env!("CARGO_PKG_VERSION"))
}

/// `-help`: one line for each option.
pub fn options() -> String {
    let mut s = String::from(
        "rhea: a full-system x86 emulator\n\
         usage: rhea [options]; without any, boots Debian's kernel to a shell\n\
         Options take one or two dashes; 'help' as a value lists what there is.\n\n",
    );
    for o in OPTIONS {
        let names = o.aliases.iter().fold(format!("-{}", o.name), |s, a| format!("{s}, -{a}"));
        let head = if o.value.is_empty() { names } else { format!("{names} {}", o.value) };
        let gap = if head.chars().count() > 30 { format!("\n{:32}", "") } else { " ".repeat(32 - head.chars().count()) };
        let _ = writeln!(s, "{head}{gap}{}", o.help);
    }
    s
}

/// Help for the value of an option, if `value` asks for it.
pub fn for_value(option: &str, value: &str) -> Option<String> {
    let mut words = value.split(',');
    let first = words.next().unwrap_or_default();
    let asks = |w: &str| w == "help" || w == "?";
    let group = match option {
        "machine" => Group::Machine,
        "accel" => Group::Accel,
        "cpu" => Group::Cpu,
        "chardev" | "serial" | "monitor" | "qmp" | "qmp-pretty" | "debugcon" | "gdb" => Group::Chardev,
        "device" => Group::Device,
        "drive" if value == "help" => return properties(Group::Drive, "drive"),
        "blockdev" => Group::Drive,
        "netdev" => Group::Netdev,
        "nic" if value == "help" => Group::Netdev,
        "object" => Group::Object,
        "m" => Group::Memory,
        "smp" => Group::Smp,
        "boot" => Group::Boot,
        "rtc" => Group::Rtc,
        "mon" => Group::Monitor,
        "trace" => Group::Trace,
        "d" => return value.split(',').any(asks).then(log_items),
        "vga" => return asks(value).then(|| "std\nnone\n".into()),
        "display" | "net" | "parallel" => return asks(value).then(|| "none\n".into()),
        _ => return None,
    };
    let prefixed = first.split_once('=').map_or(first, |(_, v)| v);
    if asks(prefixed) {
        return Some(list(option, group));
    }
    // `-device DRIVER,help` lists its properties.
    words.any(asks).then(|| properties(group, prefixed)).flatten()
}

fn list(option: &str, group: Group) -> String {
    let mut s = String::new();
    if let "serial" | "monitor" | "qmp" | "qmp-pretty" | "debugcon" | "gdb" = option {
        let _ = writeln!(s, "stdio, mon:stdio, pty, file:PATH, unix:PATH[,server=on][,wait=off], tcp:HOST:PORT[,server=on],");
        let _ = writeln!(s, "chardev:ID, null, none; with -chardev:");
    }
    for d in schema::drivers(group) {
        if d.help.is_empty() {
            s.push_str(&properties(group, d.name).unwrap_or_default());
        } else {
            let note = d.missing.map_or(String::new(), |why| format!(" (not built yet: {why})"));
            let _ = writeln!(s, "{:16} {}{note}", d.name, d.help);
        }
    }
    if group == Group::Cpu {
        let names: Vec<&str> = FEATURES.iter().map(|f| f.name).collect();
        for (i, line) in names.chunks(10).enumerate() {
            let head = if i == 0 { "features" } else { "" };
            let _ = writeln!(s, "{head:16} {}", line.join(" "));
        }
    }
    s
}

fn properties(group: Group, driver: &str) -> Option<String> {
    let d = schema::drivers(group).find(|d| d.name == driver || d.aliases.contains(&driver))?;
    let mut s = String::new();
    for p in d.props {
        let kind = match p.kind {
            Kind::Switch => "on|off".to_owned(),
            Kind::Number(_) | Kind::Positive(_) => "NUMBER".to_owned(),
            Kind::Size(_) => "SIZE".to_owned(),
            Kind::Text => "TEXT".to_owned(),
            Kind::Word(words) => words.join("|"),
            Kind::Span => "LO..HI".to_owned(),
        };
        let _ = writeln!(s, "{:32} {}", format!("{}={kind}", p.name), p.help);
    }
    Some(s)
}

fn log_items() -> String {
    let mut s = String::new();
    for (name, _, help) in vm_core::log::ITEMS {
        let _ = writeln!(s, "{name:16} {help}");
    }
    let _ = writeln!(s, "{:16} everything but nochain", "all");
    s
}
