//! What the machine is built from: the option tree in plain types, everything checked.

use accel_kvm::Irqchip;
use arch_x86::Topology;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use vm_core::log::Item;

/// A whole machine as asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub machine: MachineConfig,
    /// Engines in order of preference; never empty.
    pub accel: Vec<AccelConfig>,
    pub cpu: CpuConfig,
    /// RAM, in whole pages; never 0.
    pub mem_bytes: u64,
    /// Firmware by name; SeaBIOS if `None` and there is no kernel.
    pub bios: Option<String>,
    pub boot: BootConfig,
    /// No screen is looked at.
    pub nographic: bool,
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// COM1 to COM4: the chardev of each port, or `None` where there is no port.
    pub serials: [Option<ChardevId>; 4],
    pub monitors: Vec<ChardevId>,
    /// QMP servers.
    pub qmp: Vec<QmpConfig>,
    /// GDB's remote protocol.
    pub gdb: Option<GdbConfig>,
    /// Back ends that serial ports, monitors and devices name by id. Only those with `mux` have several users.
    pub chardevs: Vec<Chardev>,
    pub devices: Vec<DeviceSpec>,
    /// Images of disks, which devices name by id.
    pub drives: Vec<DriveConfig>,
    /// Networks, which cards name by id.
    pub netdevs: Vec<NetdevConfig>,
    pub dumps: Vec<DumpConfig>,
    /// Folders, which devices name by id.
    pub shares: Vec<ShareConfig>,
    pub rtc: RtcConfig,
    /// Time follows the instructions executed.
    pub icount: Option<IcountConfig>,
    pub log: LogConfig,
    /// A record of what is executed (`-trace`).
    pub trace: Option<TraceConfig>,
    /// Name of the guest (`-name`).
    pub name: Option<String>,
    pub pidfile: Option<PathBuf>,
    /// Name compiled code for `perf`.
    pub perfmap: bool,
    /// End on a guest reset instead of resetting.
    pub no_reboot: bool,
    /// Stop the machine on guest power-off instead of ending.
    pub no_shutdown: bool,
    /// Wait for the monitor's `cont` before running.
    pub start_paused: bool,
    /// A machine saved with `savevm`, to start from.
    pub loadvm: Option<PathBuf>,
    pub incoming: Option<Incoming>,
}

/// Id of a chardev; every one in a `Config` names one of its `chardevs`.
pub type ChardevId = String;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineKind {
    Pc,
    Q35,
    /// Virtio in memory, no PCI, no firmware.
    Microvm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineConfig {
    pub kind: MachineKind,
    pub acpi: bool,
    pub hpet: bool,
    /// A VGA.
    pub vga: bool,
    /// The kernel's command line gets what the board must tell it.
    pub kernel_args: bool,
}

/// `-boot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// Letters of devices: a floppy, c disk, d CD-ROM, n network.
    pub order: String,
    /// The same for the first start.
    pub once: Option<String>,
    /// Firmware offers a menu.
    pub menu: bool,
    /// Only what has a boot index.
    pub strict: bool,
    /// How long the menu waits for a key, ms.
    pub splash_ms: Option<u16>,
    /// Try again if nothing can be booted, after so many ms; -1: do not.
    pub reboot_ms: i32,
}

impl Default for BootConfig {
    fn default() -> Self {
        Self { order: "cad".into(), once: None, menu: false, strict: false, splash_ms: None, reboot_ms: -1 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccelConfig {
    Interp,
    Jit(JitConfig),
    Kvm(KvmConfig),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmConfig {
    /// Try first whether it can run a kernel, if another engine follows.
    pub self_test: bool,
    /// Where the interrupt controllers are.
    pub irqchip: Irqchip,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JitConfig {
    /// Runs of a block before it is compiled; the engine's own choice if `None`.
    pub threshold: Option<u32>,
    /// The quick compiler first; the engine's own choice if `None`.
    pub tier1: Option<bool>,
    /// Runs of a block from the quick compiler before its region is compiled; the engine's own choice if `None`.
    pub hot: Option<u32>,
    pub region: RegionKind,
    /// Compile only regions with these sequence numbers.
    pub bisect: Option<Range<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RegionKind {
    #[default]
    Auto,
    Block,
    Loop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuConfig {
    /// Name of the model, one of `arch_x86::models::MODELS`.
    pub model: &'static str,
    /// `-cpu host`: what KVM gives, by the host processor's name; `model` is what the other engine can do.
    pub host: bool,
    /// Features added (`true`) or removed, by QEMU's name, in command-line order.
    pub features: Vec<(&'static str, bool)>,
    /// `-smp`.
    pub topology: Topology,
}

/// Where a migrated machine comes from (`-incoming`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    File(PathBuf),
    /// `migrate-incoming` will tell.
    Later,
}

/// A gdb stub on a chardev of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GdbConfig {
    pub chardev: ChardevId,
    /// gdb is told of a 32-bit CPU.
    pub i386: bool,
}

/// A QMP server on a chardev of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpConfig {
    pub chardev: ChardevId,
    /// Replies in several lines.
    pub pretty: bool,
}

/// A character back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chardev {
    pub id: ChardevId,
    pub backend: CharBackend,
    /// Several users share it; Ctrl-A C switches the input between them.
    pub mux: bool,
    pub logfile: Option<PathBuf>,
    pub logappend: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CharBackend {
    /// The terminal; with `signal`, Ctrl-C ends the program (never when muxed).
    Stdio {
        signal: bool,
    },
    Null,
    /// A new pseudo-terminal; its path is told on standard error.
    Pty,
    File {
        path: PathBuf,
        append: bool,
    },
    /// `reconnect`: as a client, try a lost or missing server again after this time.
    Socket {
        address: SocketAddress,
        server: bool,
        wait: bool,
        nodelay: bool,
        reconnect: Option<Duration>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    Unix(PathBuf),
    /// An empty host listens on all addresses.
    Tcp {
        host: String,
        port: u16,
    },
}

/// Devices added beyond the board's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSpec {
    IsaDebugExit {
        iobase: u16,
        iosize: u8,
    },
    IsaDebugcon {
        iobase: u16,
        readback: u8,
        chardev: ChardevId,
    },
    /// `queues`: one for each CPU if `None`.
    VirtioBlk {
        drive: String,
        serial: String,
        queues: Option<u16>,
        queue_size: u16,
        /// The driver may turn the write cache on and off.
        config_wce: bool,
        slot: PciSlot,
        /// What firmware boots first: the lowest.
        boot_index: Option<u32>,
    },
    /// A disk, or a CD-ROM drive, which may be empty. `place` counts drives over the two channels of the machine pc, and ports of
    /// q35.
    Ide {
        cd: bool,
        drive: Option<String>,
        serial: String,
        place: usize,
        boot_index: Option<u32>,
    },
    VirtioRng {
        slot: PciSlot,
    },
    /// Consoles and named ports.
    VirtioSerial {
        max_ports: u32,
        ports: Vec<SerialPort>,
        slot: PciSlot,
    },
    VirtioBalloon {
        deflate_on_oom: bool,
        reporting: bool,
        /// How often the guest is asked for numbers; never if `None`.
        stats: Option<Duration>,
        slot: PciSlot,
    },
    /// A shared folder, which the guest mounts by its tag.
    Virtio9p {
        share: String,
        tag: String,
        slot: PciSlot,
    },
    /// Without a `netdev` there is no link.
    VirtioNet {
        netdev: Option<String>,
        mac: [u8; 6],
        rx_queue: u16,
        tx_queue: u16,
        slot: PciSlot,
    },
}

/// A port of a virtio console device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialPort {
    pub nr: u32,
    /// A console of the guest's, not a named port.
    pub console: bool,
    pub name: String,
    pub chardev: Option<ChardevId>,
}

/// A folder of the host's that the guest may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareConfig {
    pub id: String,
    pub path: PathBuf,
    pub read_only: bool,
    /// Owners of files are the guest's, and it is an error if they cannot be; else they are if they can be.
    pub passthrough: bool,
}

/// Where a PCI device is, and how it shows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciSlot {
    /// Device and function; the next free device if `None`.
    pub addr: Option<(u8, u8)>,
    /// Virtio: legacy registers.
    pub legacy: bool,
    /// Virtio: modern registers.
    pub modern: bool,
    /// MSI-X vectors; the device's own choice if `None`.
    pub vectors: Option<u16>,
}

/// A network of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetdevConfig {
    pub id: String,
    pub kind: NetdevKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetdevKind {
    User(Box<UserNet>),
    Link(LinkConfig),
}

/// Frames as they are, to somewhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkConfig {
    /// Waits for a peer.
    Listen(SocketAddress),
    Connect(SocketAddress),
    Datagrams {
        local: SocketAddress,
        remote: SocketAddress,
    },
    /// A device of the host's; any if the name is empty.
    Tap {
        name: String,
    },
}

/// `-netdev user`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNet {
    /// The guest's network; `host`, `dns` and `dhcp_start` lie in it.
    pub net: Ipv4Addr,
    /// Bits of its mask, 8..=29.
    pub prefix: u8,
    pub host: Ipv4Addr,
    pub dns: Ipv4Addr,
    pub dhcp_start: Ipv4Addr,
    pub hostname: String,
    pub domain: String,
    /// The guest reaches nothing but what `guestfwd` names.
    pub restrict: bool,
    pub hostfwd: Vec<HostForward>,
    pub guestfwd: Vec<GuestForward>,
    pub resolv_conf: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// A port of the host's that leads to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    pub host: SocketAddrV4,
    /// Its address may be unspecified: the first that DHCP gives away.
    pub guest: SocketAddrV4,
}

/// An address of the guest's network that leads to the host, by TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestForward {
    pub at: SocketAddrV4,
    pub to: ForwardTarget,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardTarget {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// A shell's command line, anew for each connection.
    Command(String),
    /// A back end that all connections share.
    Chardev(ChardevId),
}

/// `-object filter-dump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpConfig {
    pub netdev: String,
    pub file: PathBuf,
    /// Bytes of each frame.
    pub most: usize,
}

/// A disk image and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    pub id: String,
    pub file: PathBuf,
    /// Looked for if `None`.
    pub format: Option<ImageFormat>,
    pub read_only: bool,
    /// What is written goes to a temporary file.
    pub snapshot: bool,
    pub cache: CacheConfig,
    pub werror: OnError,
    pub rerror: OnError,
    /// Discards free space on the host.
    pub discard: bool,
    /// The host's reads and writes go by io_uring, where the kernel has it.
    pub io_uring: bool,
    /// Others may write to the image.
    pub share: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    Raw,
    Qcow2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheConfig {
    /// The guest is shown a cache, which it flushes.
    pub write_back: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Flushes do nothing: for disks that need not survive the host.
    pub no_flush: bool,
}

/// What an error of the host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The guest sees none.
    Ignore,
    /// The machine stops; it tries again when it goes on.
    Stop,
    /// The guest is told.
    Report,
    /// As `Stop` if the host has no space left, otherwise as `Report`.
    Enospc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RtcConfig {
    pub base: RtcBase,
    pub clock: RtcClock,
}

/// What the RTC shows at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RtcBase {
    #[default]
    Utc,
    Localtime,
    /// Seconds since 1970 (UTC).
    Date(i64),
}

/// What the RTC follows after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RtcClock {
    #[default]
    Host,
    /// The host's monotonic clock, also while the machine is stopped.
    Rt,
    /// The machine's virtual clock.
    Vm,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub items: Item,
    pub file: Option<PathBuf>,
    pub filter: Vec<Range<u64>>,
    /// Print a hash of the machine's state each so many instructions.
    pub hash_every: Option<u64>,
}

/// `-trace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceConfig {
    pub file: PathBuf,
    /// Words of `trace::Filter`.
    pub filter: String,
    /// Where symbols of the filter are from.
    pub symbols: Option<PathBuf>,
}

/// `-icount`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcountConfig {
    /// An instruction takes 2^shift ns; `None`: what it takes on the host, roughly.
    pub shift: Option<u32>,
    /// A halted CPU waits in real time.
    pub sleep: bool,
}

impl Config {
    /// The back end of an id in this configuration.
    pub fn chardev(&self, id: &str) -> Option<&Chardev> {
        self.chardevs.iter().find(|c| c.id == id)
    }
}
