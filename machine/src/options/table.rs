//! The option table: the one list of option names that argument normalisation, clap and help are made from.

use super::error::{Hint, OptionError};
use clap::{Arg, ArgAction, Command};

/// One command-line option.
#[derive(Debug)]
pub struct OptSpec {
    /// Name without dashes; both `-name` and `--name` are accepted.
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// How the value is shown in help; empty if there is none.
    pub value: &'static str,
    pub help: &'static str,
}

const fn opt(name: &'static str, value: &'static str, help: &'static str) -> OptSpec {
    OptSpec { name, aliases: &[], value, help }
}

/// Every option, in the order of `-help`.
pub const OPTIONS: &[OptSpec] = &[
    OptSpec { name: "help", aliases: &["h", "?"], value: "", help: "this text" },
    opt("version", "", "version"),
    OptSpec { name: "machine", aliases: &["M"], value: "TYPE[,accel=A][,PROP=V]", help: "machine: pc, q35" },
    opt("accel", "NAME[,PROP=V]", "engine: jit (also tcg), interp, kvm; repeat for fallbacks"),
    opt("enable-kvm", "", "the same as -accel kvm"),
    opt("cpu", "MODEL[,+FEATURE][,-FEATURE]", "CPU model: qemu64, x86-64-v1 to v3, max, Haswell, …; help lists them"),
    opt("m", "SIZE", "RAM in MiB, or with suffix K M G T (128M)"),
    opt("smp", "[cpus=]N[,sockets=S][,cores=C][,threads=T]", "number of CPUs (1 to 64) and their arrangement"),
    opt("boot", "[order=]DRIVES[,once=DRIVES][,menu=on],…", "what firmware boots from: a floppy, c disk, d CD-ROM, n network"),
    opt("name", "NAME", "name of the guest"),
    opt("rtc", "base=utc|localtime|DATE,clock=host", "what the guest's clock starts from"),
    opt(
        "icount",
        "[shift=]N|auto[,sleep=on|off]",
        "time goes by instructions executed, 2^N ns each: runs can be repeated exactly",
    ),
    opt("no-acpi", "", "no ACPI tables"),
    opt("no-hpet", "", "no HPET"),
    opt("bios", "FILE", "firmware (SeaBIOS, unless there is a kernel)"),
    opt("kernel", "FILE", "Linux bzImage, ELF with a PVH entry, or Multiboot kernel"),
    opt("initrd", "FILE", "initial RAM disk, or a Multiboot kernel's modules: FILE[ TEXT],…"),
    opt("append", "TEXT", "kernel command line"),
    opt("serial", "BACKEND", "serial port, up to 4: stdio, mon:stdio, file:F, unix:PATH, tcp:HOST:PORT, chardev:ID, null, none"),
    opt("chardev", "BACKEND,id=ID[,mux=on],…", "named back end: stdio, null, file, socket"),
    opt("monitor", "BACKEND", "monitor, on the same back ends as -serial"),
    opt("mon", "[chardev=]ID[,mode=control]", "monitor on a chardev; with mode=control QMP"),
    opt("qmp", "BACKEND", "QMP, on the same back ends as -serial"),
    opt("qmp-pretty", "BACKEND", "the same with replies in several lines"),
    opt("debugcon", "BACKEND", "debug console on port 0xe9"),
    opt(
        "device",
        "DRIVER[,PROP=V]",
        "virtio-blk-pci, ide-hd, virtio-net-pci, virtio-serial-pci, virtconsole, …; -device help lists them",
    ),
    opt(
        "drive",
        "file=FILE,if=ide|virtio|none[,media=cdrom][,format=F][,PROP=V]",
        "a disk: raw or qcow2 image; -drive help lists properties",
    ),
    opt("blockdev", "DRIVER,node-name=N,PROP=V", "the same, node by node: file, raw, qcow2"),
    opt("hda", "FILE", "first IDE disk: raw or qcow2 image"),
    opt("hdb", "FILE", "second IDE disk"),
    opt("hdc", "FILE", "third IDE disk"),
    opt("hdd", "FILE", "fourth IDE disk"),
    opt("cdrom", "FILE", "disc in an IDE CD-ROM drive"),
    opt("snapshot", "", "what the guest writes to drives goes to temporary files"),
    opt("parallel", "none", "only none and null"),
    opt("nographic", "", "serial port and monitor share this terminal (Ctrl-A H for help)"),
    opt("display", "none", "only none"),
    opt("vga", "std|none", "a VGA in text mode, which the monitor's xp and screendump read (std)"),
    opt("netdev", "user|tap|socket|stream|dgram,id=ID[,PROP=V]", "a network for a card; -netdev KIND,help lists properties"),
    opt("nic", "KIND|none[,PROP=V]", "a network and its card, virtio-net-pci (user)"),
    opt("net", "none", "no network; else use -nic"),
    opt("fsdev", "local,id=ID,path=DIR,security_model=none|passthrough[,readonly=on]", "a folder for a virtio-9p-pci"),
    opt("virtfs", "local,path=DIR,mount_tag=TAG,security_model=none|passthrough[,readonly=on]", "the same with its device"),
    opt("object", "filter-dump,id=ID,netdev=ID,file=FILE", "a capture of a network's frames"),
    opt("nodefaults", "", "no serial port or monitor unless asked for"),
    opt("no-user-config", "", "accepted"),
    opt("S", "", "do not start the CPUs until the monitor says so"),
    opt(
        "gdb",
        "BACKEND",
        "gdb's remote protocol on a back end: tcp:[HOST]:PORT, unix:PATH, stdio, none; ,arch=i386: for 32-bit code",
    ),
    opt("s", "", "the same as -gdb tcp::1234"),
    opt("loadvm", "FILE", "start from a machine saved with the monitor's savevm, given the same options"),
    opt("incoming", "file:PATH|defer", "start from a machine saved with migrate; defer: wait for migrate_incoming"),
    opt("no-reboot", "", "end instead of rebooting"),
    opt("no-shutdown", "", "stop instead of ending when the guest powers off"),
    opt("pidfile", "FILE", "write the process id there"),
    opt("trace", "FILE[,filter=WORD+…][,symbols=ELF]", "record the instructions executed, for rhea-trace; it is slow"),
    opt("perfmap", "", "name compiled guest code for perf in /tmp/perf-PID.map"),
    opt("d", "ITEM,…", "log items; hash with every=N: a line each N instructions"),
    opt("D", "FILE", "log to a file instead of standard error"),
    opt("dfilter", "RANGE,…", "log only these addresses: start..end, start+length, start-length"),
];

/// Options of QEMU's that are known and not built, with the feature that is missing.
const NOT_BUILT: &[(&str, &str)] = &[
    ("fda", "floppy disks"),
    ("fdb", "floppy disks"),
    ("pflash", "firmware"),
    ("L", "firmware"),
    ("vnc", "display"),
    ("spice", "display"),
    ("sdl", "display"),
    ("full-screen", "display"),
    ("usb", "USB"),
    ("usbdevice", "USB"),
    ("audio", "audio"),
    ("audiodev", "audio"),
    ("daemonize", "daemon mode"),
    ("global", "global properties"),
    ("set", "properties by path"),
    ("readconfig", "config files"),
    ("numa", "NUMA"),
    ("mem-path", "file-backed RAM"),
    ("mem-prealloc", "RAM preallocation"),
    ("tpmdev", "TPM"),
    ("watchdog", "watchdog"),
    ("uuid", "SMBIOS"),
    ("smbios", "SMBIOS"),
    ("acpitable", "more ACPI tables"),
    ("fw_cfg", "fw_cfg"),
    ("option-rom", "option ROMs"),
    ("sandbox", "sandboxing"),
    ("runas", "changing user"),
    ("run-with", "changing user"),
    ("chroot", "chroot"),
    ("action", "event actions"),
    ("singlestep", "single stepping"),
    ("one-insn-per-tb", "single stepping"),
    ("dtb", "device trees"),
    ("shim", "UEFI shim"),
    ("add-fd", "passing descriptors"),
    ("k", "keyboard layouts"),
];

/// Finds an option by the name after its dashes.
pub fn find(name: &str) -> Option<&'static OptSpec> {
    OPTIONS.iter().find(|o| o.name == name || o.aliases.contains(&name))
}

/// Brings arguments into the form clap takes: `--name` or `--name=VALUE`, whatever dashes and aliases were used.
pub fn normalise(args: impl IntoIterator<Item = String>) -> Result<Vec<String>, OptionError> {
    let mut args = args.into_iter();
    let mut out = Vec::new();
    while let Some(arg) = args.next() {
        let name = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'));
        let Some(name) = name else {
            // A lone file is the first disk.
            out.push(format!("--hda={arg}"));
            continue;
        };
        let Some(spec) = find(name) else { return Err(unknown(&arg, name)) };
        if spec.value.is_empty() {
            out.push(format!("--{}", spec.name));
        } else {
            let v = args.next().ok_or(OptionError::MissingValue(spec.name, spec.value))?;
            out.push(format!("--{}={v}", spec.name));
        }
    }
    Ok(out)
}

fn unknown(arg: &str, name: &str) -> OptionError {
    if let Some((_, feature)) = NOT_BUILT.iter().find(|(n, _)| *n == name) {
        return OptionError::NotBuilt(format!("-{name}"), (*feature).to_owned());
    }
    let known = OPTIONS.iter().map(|o| o.name).filter(|n| n.len() > 1);
    let dashes = &arg[..arg.len() - name.len()];
    let hint = Hint::with_help(name, known, "-help");
    OptionError::UnknownOption(arg.into(), hint.with_dashes(dashes))
}

/// The clap command of the table; help and version are ours.
pub fn command() -> Command {
    let mut c = Command::new("rhea").disable_help_flag(true).disable_version_flag(true);
    for o in OPTIONS {
        let arg = Arg::new(o.name).long(o.name);
        c = c.arg(match o.value {
            "" => arg.action(ArgAction::Count),
            _ => arg.action(ArgAction::Append).require_equals(true).num_args(1).allow_hyphen_values(true),
        });
    }
    c
}
