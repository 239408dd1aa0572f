//! Drivers of each group and their properties: the one list that checking, defaults in help and hints come from.

use super::drive;
use super::error::{Hint, OptionError};
use super::ide;
use super::micro;
use super::net;
use super::tree::Group;
use super::virtio;
use arch_x86::{features, models};

/// Type of a property's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Switch,
    /// A number from 0 to this.
    Number(u64),
    /// A number from 1 to this.
    Positive(u64),
    /// Bytes; without a suffix counted in this many.
    Size(u64),
    Text,
    Word(&'static [&'static str]),
    /// `LO..HI`.
    Span,
}

#[derive(Debug, Clone, Copy)]
pub struct PropSpec {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    pub help: &'static str,
}

#[derive(Debug)]
pub struct DriverSpec {
    pub group: Group,
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub help: &'static str,
    pub props: &'static [PropSpec],
    /// Why it cannot be used yet, if it cannot.
    pub missing: Option<&'static str>,
}

pub(super) const fn prop(name: &'static str, kind: Kind, help: &'static str) -> PropSpec {
    PropSpec { name, kind, required: false, help }
}

pub(super) const fn need(name: &'static str, kind: Kind, help: &'static str) -> PropSpec {
    PropSpec { name, kind, required: true, help }
}

const fn driver_spec(group: Group, name: &'static str, help: &'static str, props: &'static [PropSpec]) -> DriverSpec {
    DriverSpec { group, name, aliases: &[], help, props, missing: None }
}

const fn absent(group: Group, name: &'static str, help: &'static str, why: &'static str) -> DriverSpec {
    DriverSpec { group, name, aliases: &[], help, props: &[], missing: Some(why) }
}

const THREAD: PropSpec = prop("thread", Kind::Word(&["single", "multi"]), "accepted, one thread per CPU always");

const MACHINE: &[PropSpec] = &[
    prop("acpi", Kind::Switch, "ACPI tables (on)"),
    prop("hpet", Kind::Switch, "the HPET (on)"),
    prop("vga", Kind::Switch, "a VGA; -vga std, -vga none (on)"),
    prop("usb", Kind::Word(&["off"]), "accepted"),
    prop("vmport", Kind::Word(&["off", "auto"]), "accepted"),
    prop("smm", Kind::Word(&["off", "auto"]), "accepted"),
    prop("graphics", Kind::Switch, "accepted"),
];

const JIT: &[PropSpec] = &[
    prop("threshold", Kind::Number(u32::MAX as u64), "runs of a block before it is compiled (0: all at first sight)"),
    prop("tier1", Kind::Switch, "emit blocks by the quick compiler first (on, but with threshold=0)"),
    prop("hot", Kind::Number(u32::MAX as u64), "runs of such a block before its region is compiled well (0: never)"),
    prop("region", Kind::Word(&["auto", "block", "loop"]), "what is compiled at once (auto)"),
    prop("bisect", Kind::Span, "compile only regions numbered LO..HI, to find a miscompiled one"),
    THREAD,
];

const KVM: &[PropSpec] = &[
    prop("self-test", Kind::Switch, "before another engine is passed over, try whether KVM can run a kernel (on)"),
    prop(
        "kernel-irqchip",
        Kind::Word(&["off", "split", "on"]),
        "split: the local APICs are KVM's; on: all interrupt controllers and the 8254 (off)",
    ),
    THREAD,
];

const CHAR_COMMON: [PropSpec; 3] = [
    prop("mux", Kind::Switch, "share it between several users (off)"),
    prop("logfile", Kind::Text, "copy output to this file"),
    prop("logappend", Kind::Switch, "append to the log file (off)"),
];

const STDIO: &[PropSpec] =
    &[CHAR_COMMON[0], CHAR_COMMON[1], CHAR_COMMON[2], prop("signal", Kind::Switch, "Ctrl-C ends the program, unless muxed (on)")];
const NULL: &[PropSpec] = &CHAR_COMMON;
const FILE: &[PropSpec] = &[
    CHAR_COMMON[0],
    CHAR_COMMON[1],
    CHAR_COMMON[2],
    need("path", Kind::Text, "file to write"),
    prop("append", Kind::Switch, "append to it (off)"),
];
const SOCKET: &[PropSpec] = &[
    CHAR_COMMON[0],
    CHAR_COMMON[1],
    CHAR_COMMON[2],
    prop("path", Kind::Text, "Unix socket"),
    prop("host", Kind::Text, "TCP host"),
    prop("port", Kind::Positive(65535), "TCP port"),
    prop("server", Kind::Switch, "listen instead of connecting (off)"),
    prop("wait", Kind::Switch, "as server, wait for the first client before starting (on)"),
    prop("nodelay", Kind::Switch, "no Nagle delay (always so)"),
    prop("reconnect", Kind::Number(86400), "as client, seconds until a lost server is tried again (0: never)"),
    prop("reconnect-ms", Kind::Number(86_400_000), "the same in milliseconds"),
];

const PORT: Kind = Kind::Number(0xffff);

/// CPU features that can be added or removed, with QEMU's names.
pub const FEATURES: &[PropSpec] = &{
    let mut props = [prop("", Kind::Switch, ""); features::FEATURES.len()];
    let mut i = 0;
    while i < props.len() {
        props[i] = prop(features::FEATURES[i].name, Kind::Switch, "");
        i += 1;
    }
    props
};

/// The CPU models.
static CPUS: [DriverSpec; models::MODELS.len()] = {
    const NONE: DriverSpec = driver_spec(Group::Cpu, "", "", FEATURES);
    let mut cpus = [NONE; models::MODELS.len()];
    let mut i = 0;
    while i < cpus.len() {
        cpus[i] = driver_spec(Group::Cpu, models::MODELS[i].name, models::MODELS[i].help, FEATURES);
        i += 1;
    }
    cpus
};

/// Every other driver there is, in the order in which help lists them.
pub const DRIVERS: &[DriverSpec] = &[
    driver_spec(Group::Machine, "pc", "PC with ISA devices, PCI, IO-APIC, HPET and ACPI (default)", MACHINE),
    driver_spec(Group::Machine, "q35", "the same with an AHCI controller instead of IDE", MACHINE),
    driver_spec(Group::Machine, "microvm", "no PCI, no firmware: virtio in memory, for quick starts of kernels", micro::MACHINE),
    DriverSpec {
        group: Group::Accel,
        name: "jit",
        aliases: &["tcg"],
        help: "interpreter, and host code through Cranelift for what runs often (default; also named tcg)",
        props: JIT,
        missing: None,
    },
    driver_spec(Group::Accel, "interp", "interpreter only", &[THREAD]),
    driver_spec(Group::Accel, "kvm", "the host's KVM (docs/kvm.md)", KVM),
    driver_spec(Group::Memory, "memory", "", &[need("size", Kind::Size(1 << 20), "RAM, in MiB without a suffix")]),
    driver_spec(
        Group::Smp,
        "smp",
        "",
        &[
            prop("cpus", Kind::Number(65535), "CPUs (1)"),
            prop("maxcpus", Kind::Number(65535), "1"),
            prop("sockets", Kind::Number(65535), "1"),
            prop("dies", Kind::Number(65535), "1"),
            prop("cores", Kind::Number(65535), "1"),
            prop("threads", Kind::Number(65535), "1"),
        ],
    ),
    driver_spec(
        Group::Kernel,
        "kernel",
        "",
        &[
            prop("file", Kind::Text, ""),
            prop("initrd", Kind::Text, ""),
            prop("append", Kind::Text, ""),
            prop("bios", Kind::Text, ""),
        ],
    ),
    driver_spec(
        Group::Boot,
        "boot",
        "",
        &[
            prop("order", Kind::Text, "what firmware boots from: a floppy, c disk, d CD-ROM, n network (cad)"),
            prop("once", Kind::Text, "the same for the first start"),
            prop("menu", Kind::Switch, "firmware offers a menu (off)"),
            prop("strict", Kind::Switch, "only devices with a bootindex (off)"),
            prop("splash", Kind::Text, "accepted"),
            prop("splash-time", Kind::Number(65535), "how long the menu waits, ms"),
            prop("reboot-timeout", Kind::Text, "ms after which firmware tries again when nothing can be booted (-1: never)"),
        ],
    ),
    driver_spec(Group::Chardev, "stdio", "this terminal", STDIO),
    driver_spec(Group::Chardev, "null", "drops output, never has input", NULL),
    driver_spec(Group::Chardev, "file", "output to a file", FILE),
    driver_spec(Group::Chardev, "pty", "new pseudo-terminal", NULL),
    driver_spec(Group::Chardev, "socket", "Unix or TCP socket, client or server", SOCKET),
    absent(Group::Chardev, "pipe", "named pipes", "use socket"),
    absent(Group::Chardev, "udp", "datagrams", "use socket"),
    absent(Group::Chardev, "telnet", "telnet protocol", "use socket"),
    absent(Group::Chardev, "vc", "console in a window", "there is no display"),
    absent(Group::Chardev, "ringbuf", "memory buffer", "use file"),
    absent(Group::Chardev, "serial", "host serial port", "use socket"),
    driver_spec(
        Group::Monitor,
        "mon",
        "",
        &[
            need("chardev", Kind::Text, "chardev it talks to"),
            prop("mode", Kind::Word(&["readline", "control"]), "readline, for people; control is QMP (readline)"),
            prop("pretty", Kind::Switch, "QMP's replies in several lines (off)"),
        ],
    ),
    driver_spec(
        Group::Gdb,
        "gdb",
        "",
        &[
            need("chardev", Kind::Text, "chardev it talks to"),
            prop("arch", Kind::Word(&["x86-64", "i386"]), "what gdb is told the CPU is (x86-64)"),
        ],
    ),
    driver_spec(
        Group::Device,
        "isa-serial",
        "16550A serial port",
        &[need("chardev", Kind::Text, "chardev it talks to"), prop("index", Kind::Number(3), "0 = COM1 (next free)")],
    ),
    driver_spec(
        Group::Device,
        "isa-debug-exit",
        "a write ends the program with status (value << 1) | 1",
        &[prop("iobase", PORT, "first port (0x501)"), prop("iosize", Kind::Positive(16), "ports (2)")],
    ),
    driver_spec(
        Group::Device,
        "isa-debugcon",
        "bytes written go to a chardev",
        &[
            need("chardev", Kind::Text, "chardev it talks to"),
            prop("iobase", PORT, "port (0xe9)"),
            prop("readback", Kind::Number(0xff), "what reads give (0xe9)"),
        ],
    ),
    driver_spec(Group::Drive, "drive", "image for a device, of -drive", drive::DRIVE),
    driver_spec(Group::Drive, "raw", "node of -blockdev: the disk as it is", drive::NODE),
    driver_spec(Group::Drive, "qcow2", "node of -blockdev: QEMU's format", drive::NODE),
    driver_spec(Group::Drive, "file", "node of -blockdev: a file that others read", drive::FILE_NODE),
    driver_spec(Group::Device, "virtio-blk-pci", "disk", drive::VIRTIO_BLK),
    driver_spec(Group::Device, "ide-hd", "disk on the IDE controller, of q35 on AHCI", ide::IDE_HD),
    driver_spec(Group::Device, "ide-cd", "CD-ROM drive there", ide::IDE_CD),
    driver_spec(Group::Device, "virtio-rng-pci", "random numbers", drive::VIRTIO_RNG),
    DriverSpec {
        group: Group::Device,
        name: "virtio-serial-pci",
        aliases: &["virtio-serial"],
        help: "consoles and named serial ports",
        props: virtio::SERIAL,
        missing: None,
    },
    driver_spec(Group::Device, "virtconsole", "console of a virtio-serial (hvc0)", virtio::PORT),
    driver_spec(Group::Device, "virtserialport", "named port of a virtio-serial", virtio::PORT),
    DriverSpec {
        group: Group::Device,
        name: "virtio-balloon-pci",
        aliases: &["virtio-balloon"],
        help: "memory that the guest lends goes back to the host",
        props: virtio::BALLOON,
        missing: None,
    },
    driver_spec(Group::Device, "virtio-9p-pci", "shared folder", virtio::P9),
    driver_spec(Group::Fsdev, "local", "a folder of the host's", virtio::LOCAL),
    absent(Group::Fsdev, "proxy", "a folder by another program", "use local"),
    driver_spec(Group::Device, "virtio-net-pci", "network card", net::VIRTIO_NET),
    driver_spec(Group::Device, "virtio-blk-device", "disk, on microvm", micro::VIRTIO_BLK),
    driver_spec(Group::Device, "virtio-rng-device", "random numbers, on microvm", micro::VIRTIO_RNG),
    driver_spec(Group::Device, "virtio-net-device", "network card, on microvm", micro::VIRTIO_NET),
    driver_spec(Group::Device, "virtio-serial-device", "consoles and named serial ports, on microvm", micro::VIRTIO_SERIAL),
    driver_spec(Group::Device, "virtio-balloon-device", "memory that the guest lends, on microvm", micro::VIRTIO_BALLOON),
    driver_spec(Group::Device, "virtio-9p-device", "shared folder, on microvm", micro::VIRTIO_9P),
    driver_spec(Group::Netdev, "user", "a network in this process, by the host's sockets", net::USER),
    driver_spec(Group::Netdev, "tap", "a TAP device of the host's", net::TAP),
    driver_spec(Group::Netdev, "socket", "frames to another program, by TCP or UDP", net::SOCKET),
    driver_spec(Group::Netdev, "stream", "frames to another program, by TCP or a Unix socket", net::STREAM),
    driver_spec(Group::Netdev, "dgram", "frames to another program, by UDP or Unix datagrams", net::DGRAM),
    driver_spec(Group::Object, "filter-dump", "a capture of all frames of a network", net::DUMP),
    driver_spec(
        Group::Rtc,
        "rtc",
        "",
        &[
            prop("base", Kind::Text, "utc, localtime or a date (utc)"),
            prop("clock", Kind::Word(&["host", "rt", "vm"]), "what it follows (host)"),
            prop("driftfix", Kind::Word(&["none"]), "accepted"),
        ],
    ),
    driver_spec(
        Group::Icount,
        "icount",
        "",
        &[
            need("shift", Kind::Text, "an instruction takes 2^N ns (0 to 10); auto: as the host has it, not repeatable"),
            prop("sleep", Kind::Switch, "a halted CPU waits in real time (on)"),
            prop("align", Kind::Switch, "accepted when off"),
            prop("rr", Kind::Text, ""),
            prop("rrfile", Kind::Text, ""),
            prop("rrsnapshot", Kind::Text, ""),
        ],
    ),
    driver_spec(
        Group::Log,
        "log",
        "",
        &[prop("items", Kind::Text, ""), prop("file", Kind::Text, ""), prop("filter", Kind::Text, "")],
    ),
    driver_spec(
        Group::Trace,
        "trace",
        "",
        &[
            need("file", Kind::Text, "file to write"),
            prop("filter", Kind::Text, "START..END, a symbol, real, 16, 32, 64, kernel, user; several joined by +"),
            prop("symbols", Kind::Text, "ELF file or System.map that symbols of the filter are from"),
        ],
    ),
    driver_spec(
        Group::Process,
        "process",
        "",
        &[
            prop("guest", Kind::Text, "name of the guest"),
            prop("process", Kind::Text, "accepted"),
            prop("debug-threads", Kind::Switch, "accepted"),
            prop("pidfile", Kind::Text, ""),
            prop("loadvm", Kind::Text, ""),
            prop("incoming", Kind::Text, ""),
            prop("perfmap", Kind::Switch, ""),
            prop("reboot", Kind::Switch, ""),
            prop("shutdown", Kind::Switch, ""),
            prop("paused", Kind::Switch, ""),
            prop("defaults", Kind::Switch, ""),
            prop("network", Kind::Switch, ""),
            prop("graphic", Kind::Switch, ""),
            prop("display", Kind::Word(&["none"]), ""),
            prop("snapshot", Kind::Switch, ""),
        ],
    ),
];

/// A model that is not of `arch_x86`'s.
static HOST: [DriverSpec; 1] = [driver_spec(Group::Cpu, "host", "as max, by the host processor's name (KVM only)", FEATURES)];

/// Drivers of a group, with those not built yet.
pub fn drivers(group: Group) -> impl Iterator<Item = &'static DriverSpec> {
    DRIVERS.iter().chain(&CPUS).chain(&HOST).filter(move |d| d.group == group)
}

/// Finds a driver by name or alias; `origin` starts the error message.
pub fn driver(group: Group, name: &str, origin: &str) -> Result<&'static DriverSpec, OptionError> {
    match drivers(group).find(|d| d.name == name || d.aliases.contains(&name)) {
        Some(DriverSpec { missing: Some(why), .. }) => Err(OptionError::NotBuilt(format!("{origin} {name}"), (*why).to_owned())),
        Some(d) => Ok(d),
        None => {
            let known = drivers(group).filter(|d| d.missing.is_none()).flat_map(|d| d.aliases.iter().copied().chain([d.name]));
            Err(OptionError::UnknownValue(
                origin.to_owned(),
                name.into(),
                Hint::with_help(name, known, &format!("{origin} help")),
            ))
        }
    }
}
