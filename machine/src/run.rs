//! Runs the machine that a `Config` describes.

use crate::block::{self, Drives};
use crate::board::{Board, BoardError, Ends, Outside};
use crate::chardev::{OpenError, term};
use crate::chips::Chips;
use crate::consoles::Consoles;
use crate::control::{Cause, Control, Notice, RunState};
use crate::engine::{self, EngineError, Engines};
use crate::event_loop::EventLoop;
use crate::firmware::{FirmwareError, Start};
use crate::gdb;
use crate::icount::{self, Pace};
use crate::loader::LoadError;
use crate::machine::Machine;
use crate::net::{self, Nets};
use crate::options::{Config, Incoming, LogConfig, RtcBase, RtcClock, TraceConfig};
use crate::profile::Profile;
use crate::runner::{Policy, Runner};
use crate::say;
use crate::share::{ShareError, Shares};
use crate::state::StateError;
use crate::state::hash::HashLog;
use crate::switch::Shared;
use crate::trace::{self, reader::Symbols};
use crate::vcpu_thread::Threads;
use accel_kvm::{CpuPort, KvmError, Vm};
use backend::PerfMap;
use devices::display::vga;
use std::fs::File;
use std::io::{self, LineWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{SystemTime, UNIX_EPOCH};
use vm_core::{Clock, InsnCounter, MemMap, Pa, Target, VcpuSignals};

/// Why the machine could not be started, or stopped running.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    #[error("-rtc base=localtime: not built yet; use utc or a date")]
    LocalTime,
    #[error("{path}: {source}", path = .0.display(), source = .1)]
    File(PathBuf, #[source] io::Error),
    #[error("{0}: {1}")]
    Chardev(String, #[source] io::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Drive(#[from] block::OpenError),
    #[error(transparent)]
    Net(#[from] net::NetError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Board(#[from] BoardError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{path}: {source}", path = .0.display(), source = .1)]
    State(PathBuf, #[source] StateError),
    #[error("-perfmap: {0}")]
    PerfMap(#[source] io::Error),
    #[error("-trace: {0}")]
    Trace(String),
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    #[error("a CPU's thread panicked")]
    Panicked,
}

/// Builds the machine, runs it until the guest or the user ends it, and gives the program's exit status.
pub fn run(config: Config) -> Result<ExitCode, RunError> {
    let _terminal = term::RestoreOnDrop;
    start_log(&config.log)?;
    let mut choice = engine::choose(&config.accel, config.icount.is_some())?;
    let counter = config.icount.map(|_| Arc::<InsnCounter>::default());
    choice.settings.counter = counter.clone();
    if config.perfmap {
        choice.settings.perfmap = Some(Arc::new(PerfMap::open().map_err(RunError::PerfMap)?));
    }
    let mut start = Start::of(&config)?;
    let unix_seconds = rtc_base(&config)?;
    let topology = config.cpu.topology;
    let signals: Vec<Arc<VcpuSignals>> = (0..topology.cpus()).map(|_| Arc::default()).collect();
    let state = match config.incoming {
        Some(Incoming::Later) => RunState::InMigrate,
        _ if config.start_paused => RunState::Prelaunch,
        _ => RunState::Running,
    };
    let control = Control::new(signals.clone(), state);
    let Engines { cpus: engines, frontend, tsc_khz, kvm, ports } = engine::make_all(&config.cpu, choice, &signals, &control)?;

    let counting = config.icount.zip(counter);
    let clock = counting.as_ref().map_or_else(Clock::new, |(c, n)| icount::clock(c, n.clone()));
    let events = EventLoop::start(clock.clone()).map_err(RunError::Thread)?;
    let quit = control.clone();
    let mut consoles = Consoles::open(&config, &events.waker(), move || quit.end(0, Some(Cause::HostQuit)))?;
    let (a20, remap) = (control.clone(), control.clone());
    let drives = Arc::new(Drives::open(&config.drives, &control)?);
    let nets = Arc::new(Nets::open(&config.netdevs, &config.dumps, &consoles.lines(&config, &events.waker()))?);
    let shares = Shares::open(&config.shares)?;
    let balloon = control.clone();
    let outside = Outside {
        clock,
        cpus: (0..).map(|n| topology.apic_id(n)).zip(signals.iter().cloned()).collect(),
        power: Arc::new(control.clone()),
        a20: Arc::new(move |on| a20.set_a20(on)),
        remap: Arc::new(move || remap.remap()),
        firmware: start.firmware(),
        serials: consoles.serials(&config),
        devices: consoles.devices(&config),
        disks: config.drives.iter().filter_map(|d| Some((d.id.clone(), drives.disk(&d.id)?))).collect(),
        nets: nets.backends(),
        virtio: Ends {
            sinks: consoles.ports(&config),
            shares: shares.all(),
            balloon: Some(Arc::new(move |bytes| balloon.tell(Notice::Balloon(bytes)))),
        },
        unix_seconds,
    };
    let board = Arc::new(Board::new(config.machine, config.mem_bytes, outside)?);
    if let Start::Kernel(images) = &mut start {
        images.cmdline += &board.kernel_args(tsc_khz);
    }
    signals.iter().for_each(|s| board.ram.add_listener(s.clone()));
    let kvm = kvm.map(|k| attach(k, ports, &board)).transpose()?;
    let policy = Policy {
        reset_ends: config.no_reboot,
        power_off_pauses: config.no_shutdown,
        rtc_follows_host: config.rtc.clock == RtcClock::Host && counting.is_none(),
    };
    let mut runner = Runner::new(engines, board.clone(), start, control.clone(), policy)?;
    if let Some((c, n)) = counting {
        let hash = config.log.hash_every.map(HashLog::new);
        runner.cpus[0].pace = Some(Pace::new(&c, n, board.clock.clone(), signals[0].clone(), hash));
    }
    runner.drives = drives.clone();
    runner.nets = nets.clone();
    runner.meanwhile = kvm.is_some().then_some(accel_kvm::forget_start_up);
    start_from(&mut runner, &config)?;
    if let Some(t) = &config.trace {
        start_trace(&mut runner, t)?;
    }
    let machine = Arc::new_cyclic(|this| Machine {
        board,
        drives,
        nets,
        control: control.clone(),
        chardevs: consoles.all(),
        frontend,
        name: config.name.clone(),
        migration: Arc::default(),
        profile: Profile::default(),
        topology,
        cpu: AtomicUsize::new(0),
        gdb: gdb::Host::new(events.waker(), this.clone()),
        kvm,
        hold: config.start_paused,
    });
    // Before anybody can ask about them.
    let threads = Threads::start(topology.cpus() as usize, &control).map_err(RunError::Thread)?;
    consoles.connect(&config, &machine).map_err(RunError::Thread)?;

    let on_signal = control.clone();
    term::handle_signals(move |signal| {
        on_signal.end(0, Some(Cause::HostSignal));
        // After it: nobody may read what is said.
        say!("terminating on signal {signal}");
    })
    .map_err(RunError::Thread)?;
    let _pidfile = config.pidfile.as_deref().map(PidFile::write).transpose()?;
    let status = runner.run(&threads)?;
    consoles.drain();
    drop(events);
    vm_core::log::flush();
    Ok(ExitCode::from(status))
}

/// Connects the board with KVM, if that takes it.
fn attach((vm, shared): (Arc<Vm>, Arc<Shared>), ports: Vec<CpuPort>, board: &Arc<Board>) -> Result<Arc<Shared>, EngineError> {
    connect(vm, &shared, ports, board).or_else(|e| shared.refuse(e))?;
    Ok(shared)
}

/// Gives KVM the board's memory, and what else it shares.
fn connect(vm: Arc<Vm>, shared: &Shared, ports: Vec<CpuPort>, board: &Arc<Board>) -> Result<(), KvmError> {
    let (map, ram) = (board.map.clone(), board.ram.clone());
    shared.set_chips(Chips::new(&vm, board, ports)?);
    if board.vga.is_some() {
        // Programs fill the screen; nobody looks before the CPU comes back for something else.
        vm.coalesce(vga::MEMORY, vga::MEMORY_LEN as u32);
    }
    let set = move || vm.set_memory(&ram, ranges(&map).into_iter());
    set()?;
    shared.set_ram(&board.ram);
    shared.on_remap(move || set().map_err(|e| e.to_string()));
    Ok(())
}

/// What is RAM or ROM now: guest-physical address, length, offset in RAM, writable.
fn ranges(map: &MemMap) -> Vec<(u64, u64, u64, bool)> {
    let mut list: Vec<(u64, u64, u64, bool)> = Vec::new();
    let end = map.ram_ranges().map(|(pa, len, _)| pa.0 + len).max().unwrap_or(0);
    let mut at = 0;
    while at < end {
        let (target, len) = map.extent(Pa(at));
        if let Target::Ram { offset, writable } = target {
            match list.last_mut() {
                Some((pa, n, from, w)) if *pa + *n == at && *from + *n == offset && *w == writable => *n += len,
                _ => list.push((at, len, offset, writable)),
            }
        }
        at = at.saturating_add(len);
    }
    list
}

/// Puts a saved machine in the place of the one that has just been made.
fn start_from(runner: &mut Runner, config: &Config) -> Result<(), RunError> {
    if let Some(path) = &config.loadvm {
        runner.load_fresh(path).map_err(|e| RunError::State(path.clone(), e))?;
    }
    if let Some(Incoming::File(path)) = &config.incoming {
        let ran = runner.load_fresh(path).map_err(|e| RunError::State(path.clone(), e))?;
        if !ran && !config.start_paused {
            // As it was on the other side.
            runner.set_state(RunState::Paused);
        }
    }
    Ok(())
}

/// Has the CPUs observed from now on.
fn start_trace(runner: &mut Runner, t: &TraceConfig) -> Result<(), RunError> {
    let symbols = match &t.symbols {
        Some(path) => Symbols::open(path).map_err(RunError::Trace)?,
        None => Symbols::default(),
    };
    let filter =
        trace::Filter::parse(&t.filter, |name| symbols.range(name)).map_err(|e| RunError::Trace(format!("filter: {e}")))?;
    let observers = trace::start(&t.file, &filter, runner.cpus.len()).map_err(|e| RunError::File(t.file.clone(), e))?;
    for (cpu, o) in runner.cpus.iter_mut().zip(observers) {
        cpu.engine.observe(Some(o));
    }
    Ok(())
}

fn start_log(log: &LogConfig) -> Result<(), RunError> {
    if let Some(path) = &log.file {
        let file = File::create(path).map_err(|e| RunError::File(path.clone(), e))?;
        // By lines, so that nothing is lost however the program ends.
        vm_core::log::set_output(Box::new(LineWriter::new(file)));
    }
    vm_core::log::set_filter(log.filter.clone());
    vm_core::log::set_mask(log.items);
    Ok(())
}

/// What the RTC shows at guest time 0 where nothing is left to chance and nothing else was said: the start of 2026.
const FIXED_DATE: i64 = 1_767_225_600;

/// Seconds since 1970 that the RTC shows at guest time 0.
pub(crate) fn rtc_base(config: &Config) -> Result<i64, RunError> {
    match config.rtc.base {
        RtcBase::Utc if config.icount.is_some_and(|c| c.shift.is_some()) => Ok(FIXED_DATE),
        RtcBase::Utc => Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)),
        RtcBase::Date(seconds) => Ok(seconds),
        RtcBase::Localtime => Err(RunError::LocalTime),
    }
}

/// The file of `-pidfile`; removed when the program ends.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, RunError> {
        std::fs::write(path, format!("{}\n", std::process::id())).map_err(|e| RunError::File(path.into(), e))?;
        Ok(Self(path.into()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
