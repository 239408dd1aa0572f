//! The monitor's commands: one table, and the functions behind it.

use super::dump::{self, Space};
use super::{CpuInfo, MonitorTarget, Part, keys};

type Run = fn(&str, &dyn MonitorTarget) -> String;

struct Command {
    name: &'static str,
    alias: &'static str,
    args: &'static str,
    help: &'static str,
    run: Run,
}

macro_rules! command {
    ($name:literal $(| $alias:literal)?, $args:literal, $help:literal, $run:expr) => {
        Command { name: $name, alias: concat!($($alias)?), args: $args, help: $help, run: $run }
    };
}

/// All commands. Arguments come as the text after the name.
static COMMANDS: &[Command] = &[
    command!("accel", "jit|kvm", "have this engine run the guest from now on", |a, t| outcome(t.accel(&shown(a)))),
    command!("balloon", "target", "ask the guest to live with so many MiB", |a, t| outcome(balloon(a, t))),
    command!("block_resize", "device size", "give a drive another size, in MiB or with a suffix", |a, t| outcome(block_resize(
        a, t
    ))),
    command!("cont" | "c", "", "resume the machine", |_, t| outcome(t.cont())),
    command!("cpu", "index", "choose the CPU that commands are about", choose_cpu),
    command!("gdbserver", "[device]", "gdb stub on tcp::PORT, unix:PATH or none (tcp::1234)", |a, t| {
        t.gdbserver(if a.is_empty() { "tcp::1234" } else { a }).unwrap_or_else(|e| format!("Error: {e}\n"))
    }),
    command!("gva2gpa", "addr", "physical address of a virtual one", gva2gpa),
    command!("help" | "?", "[command]", "show the commands, or one", help),
    command!("hostfwd_add", "[id] [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport", "forward a port to the guest", |a, t| {
        outcome(t.hostfwd(true, a))
    }),
    command!("hostfwd_remove", "[id] [tcp|udp]:[hostaddr]:hostport", "forward a port no more", |a, t| {
        outcome(t.hostfwd(false, a))
    }),
    command!("info", "[subcommand]", "show state of the machine", info),
    command!("loadvm", "file", "load a machine saved with savevm", |a, t| outcome(path(a).and_then(|p| t.load(p)))),
    command!("migrate", "[-d] uri", "save the machine to file:PATH and stop; -d: without waiting", migrate),
    command!("migrate_incoming", "uri", "load file:PATH after -incoming defer", |a, t| {
        outcome(path(a).and_then(|p| t.migrate_incoming(p)))
    }),
    command!("nmi", "", "non-maskable interrupt for the current CPU", |_, t| act(|| t.nmi())),
    command!(
        "profile",
        "on [symbols]|off",
        "ask two hundred times a second where the CPUs are; symbols: ELF file or System.map",
        |a, t| { outcome(t.profile(a)) }
    ),
    command!("quit" | "q", "", "end the emulator", |_, t| act(|| t.quit())),
    command!("savevm", "file", "save the machine to a file", |a, t| outcome(path(a).and_then(|p| t.save(p)))),
    command!("screendump", "file", "write a picture of the screen to a file (PPM)", |a, t| {
        outcome(path(a).and_then(|p| t.screendump(p)))
    }),
    command!("sendkey", "keys [hold_ms]", "press keys, as in ctrl-alt-f1, for 100 ms", |a, t| {
        outcome(keys::parse(a).and_then(|(k, ms)| t.send_keys(k, ms)))
    }),
    command!("stop" | "s", "", "stop the machine", |_, t| act(|| t.stop())),
    command!("system_powerdown", "", "press the power button", |_, t| act(|| t.powerdown())),
    command!("system_reset", "", "reset the machine", |_, t| act(|| t.reset())),
    command!("x", "/fmt addr", "show memory at a virtual address", |a, t| dump::run(a, Space::Virtual, t)),
    command!("xp", "/fmt addr", "show memory at a physical address", |a, t| dump::run(a, Space::Physical, t)),
];

static INFOS: &[Command] = &[
    command!("balloon", "", "memory that the guest has", |_, t| info_balloon(t)),
    command!("block", "", "drives and their images", |_, t| t.info_block()),
    command!("chardev", "", "character back ends", |_, t| t.info_chardev()),
    command!("cpus", "", "CPUs and their threads", |_, t| cpus(t)),
    command!("jit", "", "translation counters", |_, t| t.info_jit()),
    command!("kvm", "", "whether KVM runs the guest", |_, t| format!("kvm support: {}\n", kvm(t))),
    command!("lapic", "", "the current CPU's local APIC", |_, t| t.info_board(Part::Lapic)),
    command!("mem", "", "ranges of virtual addresses that are mapped alike", |_, t| mem(&t.info_tlb())),
    command!("migrate", "", "how the last migration went", |_, t| t.info_migrate()),
    command!("mtree", "", "what lies where in memory and ports", |_, t| t.info_board(Part::Memory)),
    command!("name", "", "name of the guest", |_, t| t.name().map_or_else(String::new, |n| n + "\n")),
    command!("network", "", "network cards and what is behind them", |_, t| t.info_network()),
    command!("pic", "", "the 8259s and the I/O APIC", |_, t| t.info_board(Part::Interrupts)),
    command!("profile", "", "where the guest was found by profile on", |_, t| t.info_profile()),
    command!("qtree", "", "the devices", |_, t| t.info_board(Part::Devices)),
    command!("registers", "[-a]", "CPU registers; -a: of all CPUs", registers),
    command!("status", "", "whether the machine runs", |_, t| format!("VM status: {}\n", t.run_state().text())),
    command!("tlb", "", "virtual to physical mappings", |_, t| t.info_tlb()),
    command!("usernet", "", "connections and forwarded ports of user-mode networks", |_, t| t.info_usernet()),
    command!("uuid", "", "UUID of the guest", |_, _| "00000000-0000-0000-0000-000000000000\n".into()),
    command!("version", "", "version of this program", |_, _| format!("rhea {}\n", env!("CARGO_PKG_VERSION"))),
];

/// A command that prints nothing.
fn act(f: impl FnOnce()) -> String {
    f();
    String::new()
}

fn outcome(r: Result<(), String>) -> String {
    r.map_or_else(|e| format!("Error: {e}\n"), |()| String::new())
}

/// What a command is about must be named.
fn path(args: &str) -> Result<&str, String> {
    if args.is_empty() { Err("a file must be named".into()) } else { Ok(args) }
}

fn balloon(args: &str, t: &dyn MonitorTarget) -> Result<(), String> {
    let mib = args.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(1 << 20));
    t.set_balloon(mib.ok_or("balloon wants a number of MiB")?)
}

fn block_resize(args: &str, t: &dyn MonitorTarget) -> Result<(), String> {
    let (id, size) = args.split_once(char::is_whitespace).ok_or("block_resize wants a device and a size")?;
    let bytes = crate::options::value::size(size.trim(), 1 << 20).map_err(|why| format!("{}: {why}", shown(size)))?;
    t.resize_drive(&shown(id), bytes)
}

fn info_balloon(t: &dyn MonitorTarget) -> String {
    match t.balloon() {
        Some((actual, stats)) => format!("balloon: actual={}\n{stats}", actual >> 20),
        None => format!("Error: {}\n", super::NO_BALLOON),
    }
}

fn migrate(args: &str, t: &dyn MonitorTarget) -> String {
    let (uri, wait) = args.strip_prefix("-d ").map_or((args, true), |uri| (uri.trim(), false));
    outcome(path(uri).and_then(|uri| t.migrate(uri, wait)))
}

/// Whether a line's command may take as long as a disk does.
pub fn is_long(line: &str) -> bool {
    let name = line.split_whitespace().next().unwrap_or_default();
    matches!(name, "block_resize" | "savevm" | "loadvm" | "migrate" | "migrate_incoming")
}

fn choose_cpu(args: &str, t: &dyn MonitorTarget) -> String {
    match args.parse() {
        Ok(n) if t.select_cpu(n) => String::new(),
        _ => outcome(Err("invalid CPU index".into())),
    }
}

/// Registers of the current CPU; `-a`: of all.
fn registers(args: &str, t: &dyn MonitorTarget) -> String {
    if args != "-a" {
        return t.info_registers();
    }
    let cpus = t.cpus();
    let current = cpus.iter().position(|c| c.current).unwrap_or(0);
    let one = |n| {
        t.select_cpu(n);
        format!("\nCPU#{n}\n{}", t.info_registers())
    };
    let text = (0..cpus.len()).map(one).collect();
    t.select_cpu(current);
    text
}

fn gva2gpa(args: &str, t: &dyn MonitorTarget) -> String {
    match dump::parse_address(args, t).map(|va| t.translate(va)) {
        Ok(Some(pa)) => format!("gpa: {pa:#x}\n"),
        Ok(None) => "Unmapped\n".into(),
        Err(why) => format!("{why}\n"),
    }
}

/// `info tlb`'s lines with those joined that follow each other with the same rights: user, read, write.
fn mem(lines: &str) -> String {
    let mut text = String::new();
    let mut run: Option<(u64, u64, String)> = None;
    let end = |text: &mut String, run: Option<(u64, u64, String)>| {
        if let Some((from, to, rights)) = run {
            *text += &format!("{from:016x}-{to:016x} {:016x} {rights}\n", to.wrapping_sub(from));
        }
    };
    for line in lines.lines() {
        let mut words = line.split_whitespace();
        let va = words.next().and_then(|w| u64::from_str_radix(w.strip_suffix(':')?, 16).ok());
        let (Some(va), Some(flags), size) = (va, words.nth(1), words.next()) else {
            end(&mut text, run.take());
            text += &format!("{line}\n");
            continue;
        };
        let has = |c| flags.contains(c);
        let rights: String = [(has('U'), 'u'), (true, 'r'), (has('W'), 'w'), (!has('X'), 'x')]
            .map(|(on, c)| if on { c } else { '-' })
            .iter()
            .collect();
        let size = match size {
            Some("1G") => 1 << 30,
            Some("4M") => 4 << 20,
            Some("2M") => 2 << 20,
            _ => 4096,
        };
        match &mut run {
            Some((_, to, r)) if *to == va && *r == rights => *to = va.wrapping_add(size),
            _ => end(&mut text, run.replace((va, va.wrapping_add(size), rights))),
        }
    }
    end(&mut text, run);
    text
}

fn kvm(t: &dyn MonitorTarget) -> &'static str {
    match t.kvm() {
        None => "disabled",
        Some(true) => "enabled",
        Some(false) => "enabled (another engine runs the guest)",
    }
}

/// The current CPU, which the monitor's commands are about, has a star.
fn cpus(t: &dyn MonitorTarget) -> String {
    let star = |c: &CpuInfo| if c.current { '*' } else { ' ' };
    t.cpus().iter().enumerate().map(|(i, c)| format!("{} CPU #{i}: thread_id={}\n", star(c), c.thread)).collect()
}

/// Runs one line; the result is what to print.
pub fn run(line: &str, target: &dyn MonitorTarget) -> String {
    let line = line.trim();
    if line.is_empty() {
        return String::new();
    }
    // "x/4wx addr": a format may follow the name without a space.
    let end = line.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(line.len());
    let (name, args) = line.split_at(end);
    match find(COMMANDS, name) {
        Some(c) if c.args.is_empty() && !args.trim().is_empty() => format!("{name}: extraneous characters at the end of line\n"),
        Some(c) => (c.run)(args.trim(), target),
        None => format!("unknown command: '{}'\n", shown(name)),
    }
}

fn find<'a>(table: &'a [Command], name: &str) -> Option<&'a Command> {
    table.iter().find(|c| c.name == name || (!c.alias.is_empty() && c.alias == name))
}

/// Text of the user, safe and short enough for a message.
pub fn shown(s: &str) -> String {
    s.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(64).collect()
}

fn list(table: &[Command], prefix: &str) -> String {
    let line = |c: &Command| {
        let alias = if c.alias.is_empty() { String::new() } else { format!("|{}", c.alias) };
        format!("{prefix}{}{alias} {} -- {}\n", c.name, c.args, c.help)
    };
    table.iter().map(line).collect()
}

fn help(args: &str, _: &dyn MonitorTarget) -> String {
    match args {
        "" => list(COMMANDS, ""),
        "info" => list(INFOS, "info "),
        name => match find(COMMANDS, name) {
            Some(c) => list(std::slice::from_ref(c), ""),
            None => format!("unknown command: '{}'\n", shown(name)),
        },
    }
}

fn info(args: &str, target: &dyn MonitorTarget) -> String {
    let (name, rest) = args.split_once(char::is_whitespace).unwrap_or((args, ""));
    match (args, find(INFOS, name)) {
        ("", _) => list(INFOS, "info "),
        (_, Some(c)) if c.args.is_empty() && !rest.trim().is_empty() => {
            format!("info {name}: extraneous characters at the end of line\n")
        }
        (_, Some(c)) => (c.run)(rest.trim(), target),
        _ => format!("unknown command: 'info {}'\n", shown(args)),
    }
}

#[cfg(test)]
mod tests {
    use super::mem;

    #[test]
    fn ranges_end_where_pages_do_not_follow_or_rights_change() {
        let lines = "0000000000000000: 0000000000000000 --PDA---W 1G\n\
                     0000000040000000: 0000000040000000 --PDA---W 1G\n\
                     0000000080000000: 0000000000200000 X-PDA--UW 2M\n\
                     0000000080200000: 0000000000001000 X--DA--UW\n\
                     ffffffffc0000000: 0000000040000000 --PDA---- 1G\n";
        let wanted = "0000000000000000-0000000080000000 0000000080000000 -rwx\n\
                      0000000080000000-0000000080201000 0000000000201000 urw-\n\
                      ffffffffc0000000-0000000000000000 0000000040000000 -r-x\n";
        assert_eq!(mem(lines), wanted);
        assert_eq!(mem("paging is off\n"), "paging is off\n");
    }
}
