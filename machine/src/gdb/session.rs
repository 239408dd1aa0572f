//! One client's session: what each packet does (GDB manual, "Packets", "General Query Packets").

mod values;

use super::layout::Arch;
use super::packet::{MAX_PACKET, hex, number, split, unhex};
use super::regs::{self, Id};
use super::resume::{self, Who, sstep};
use super::stops::{List, Refused};
use super::xml;
use crate::control::{Cause, RunState};
use crate::machine::Machine;
use crate::monitor;
use crate::runner::Runner;
use std::sync::Arc;
use vm_core::debug::{DebugEvent, WatchKind};

/// Bytes of memory in one packet at most.
const MAX_BYTES: usize = MAX_PACKET / 2 - 64;
/// Bytes of text in one packet of console output.
const MAX_TEXT: usize = 1024;

/// What a packet is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Packets, in order.
    Packets(Vec<Vec<u8>>),
    /// None until the machine stops.
    Later,
    /// This one, and no more: the client goes.
    Last(Vec<u8>),
}

impl From<&str> for Answer {
    fn from(s: &str) -> Self {
        Self::Packets(vec![s.as_bytes().to_vec()])
    }
}

impl From<String> for Answer {
    fn from(s: String) -> Self {
        Self::Packets(vec![s.into_bytes()])
    }
}

/// Errors are numbered as errno is.
const BAD_ADDRESS: &str = "E14";
const INVALID: &str = "E22";

pub struct Session {
    machine: Arc<Machine>,
    /// What the client takes the CPU for.
    arch: Arch,
    stops: List,
    /// vCPU that registers and memory are of, and the one that stopped.
    cpu: usize,
    stopped_cpu: usize,
    /// vCPUs that `c` and `s` are about.
    going: Who,
    physical: bool,
    sstep: u64,
    /// The client knows these stop reasons.
    swbreak: bool,
    hwbreak: bool,
    pub acks: bool,
    /// The client waits for the machine to stop.
    pub running: bool,
    /// Why it stopped last.
    last: Option<DebugEvent>,
}

impl Session {
    pub fn new(machine: Arc<Machine>, arch: Arch) -> Self {
        Self {
            machine,
            arch,
            stops: List::default(),
            cpu: 0,
            stopped_cpu: 0,
            going: Who::All,
            physical: false,
            sstep: sstep::ALL,
            swbreak: false,
            hwbreak: false,
            acks: true,
            running: false,
            last: None,
        }
    }

    fn with<R: Send + 'static>(&self, job: impl FnOnce(&mut Runner) -> R + Send + 'static) -> Option<R> {
        self.machine.control.with_runner(job)
    }

    /// A client has come: the machine stands still for it.
    pub fn attach(&mut self) {
        self.with(|r| r.pause_for_debugger());
    }

    /// The client goes, or has gone: nothing of it stays, and a machine that stood still for it runs.
    pub fn detach(&mut self, start: bool) {
        self.stops.clear();
        self.with(move |r| r.detach_debugger(start));
    }

    /// Ctrl-C.
    pub fn interrupt(&mut self) {
        if self.running {
            self.with(|r| r.pause_for_debugger());
        }
    }

    /// The machine stands still: what a client that waits for it is told.
    pub fn stopped(&mut self, event: Option<(usize, DebugEvent)>) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.running) {
            return None;
        }
        if let Some((cpu, _)) = event {
            (self.cpu, self.stopped_cpu) = (cpu, cpu);
        }
        self.last = event.map(|e| e.1);
        Some(self.stop_reply(if event.is_some() { 5 } else { 2 }).into_bytes())
    }

    /// `T`: signal, thread, reason, and registers that the client will ask for first.
    fn stop_reply(&self, signal: u8) -> String {
        let mut text = format!("T{signal:02x}thread:{:x};", self.stopped_cpu + 1);
        match self.last {
            Some(DebugEvent::Break { hard: false }) if self.swbreak => text += "swbreak:;",
            Some(DebugEvent::Break { hard: true }) if self.hwbreak => text += "hwbreak:;",
            Some(DebugEvent::Watch { at, kind }) => {
                let name = match kind {
                    WatchKind::Write => "watch",
                    WatchKind::Read => "rwatch",
                    WatchKind::Any => "awatch",
                };
                text += &format!("{name}:{at:x};");
            }
            _ => {}
        }
        let cpu = self.stopped_cpu;
        let (first, width) = self.arch.told_first();
        let values = self.with(move |r| first.map(|(_, id)| regs::read(r.cpus[cpu].engine.cpu(), 0, id) as u64));
        for ((n, _), v) in first.into_iter().zip(values.into_iter().flatten()) {
            text += &format!("{n:x}:{};", hex(&v.to_le_bytes()[..width]));
        }
        text
    }

    pub fn packet(&mut self, p: &[u8]) -> Answer {
        let Some((&first, rest)) = p.split_first() else { return "".into() };
        match first {
            b'?' => self.stop_reply(5).into(),
            b'g' => self.read_registers(),
            b'G' => self.write_registers(rest),
            b'p' => self.read_register(rest),
            b'P' => self.write_register(rest),
            b'm' => self.read_memory(rest),
            b'M' => self.write_memory(rest, unhex),
            b'X' => self.write_memory(rest, |d| Some(d.to_vec())),
            b'H' => self.choose(rest),
            b'T' => self.alive(rest),
            b'c' | b'C' | b's' | b'S' => self.go_old(first, rest),
            b'Z' => {
                let done = self.stops.insert(rest, self.physical, self.arch);
                self.done(done)
            }
            b'z' => {
                let done = self.stops.remove(rest);
                self.done(done)
            }
            b'D' => {
                self.detach(true);
                Answer::Last(b"OK".to_vec())
            }
            b'k' => {
                self.machine.control.end(0, Some(Cause::HostQuit));
                Answer::Last(Vec::new())
            }
            b'!' => "OK".into(),
            b'v' => self.verbose(rest),
            b'q' => self.query(rest),
            b'Q' => self.set(rest),
            _ => "".into(),
        }
    }

    fn done(&self, r: Result<(), Refused>) -> Answer {
        match r {
            Ok(()) => "OK".into(),
            Err(Refused::Unknown) => "".into(),
            Err(Refused::Malformed) => INVALID.into(),
            Err(Refused::TooMany) => "E28".into(),
        }
    }

    fn cpus(&self) -> usize {
        self.machine.topology.cpus() as usize
    }

    // --- threads and running

    fn choose(&mut self, args: &[u8]) -> Answer {
        let Some((what, who)) = args.split_first().and_then(|(c, t)| Some((*c, resume::thread(t)?))) else {
            return INVALID.into();
        };
        match (what, who) {
            (_, Who::One(n)) if n >= self.cpus() => return INVALID.into(),
            (b'g', Who::One(n)) => self.cpu = n,
            (b'g', _) => {}
            (b'c', _) => self.going = who,
            _ => return INVALID.into(),
        }
        "OK".into()
    }

    fn alive(&self, args: &[u8]) -> Answer {
        match resume::thread(args) {
            Some(Who::One(n)) if n < self.cpus() => "OK".into(),
            _ => INVALID.into(),
        }
    }

    /// `c`, `C`, `s`, `S`, with an address perhaps.
    fn go_old(&mut self, what: u8, args: &[u8]) -> Answer {
        let signalled = what.is_ascii_uppercase();
        let (signal, at) = if signalled { split(args, b';') } else { (&b""[..], args) };
        if signalled && number(signal).is_none() {
            return INVALID.into();
        }
        if !at.is_empty() {
            let Some(at) = number(at) else { return INVALID.into() };
            if self.change(vec![(Id::Pc, at.into())]) != "OK".into() {
                return INVALID.into();
            }
        }
        let what = what.to_ascii_lowercase();
        let text = match (what, self.going) {
            (b's', Who::One(n)) => format!("s:{:x}", n + 1),
            (b's', _) => format!("s:{:x};c", self.cpu + 1),
            (_, Who::One(n)) => format!("c:{:x}", n + 1),
            _ => "c".into(),
        };
        self.go(text.as_bytes())
    }

    fn go(&mut self, text: &[u8]) -> Answer {
        let actions = resume::actions(text, self.cpus(), self.sstep);
        let Some(actions) = actions.filter(|a| a.iter().any(Option::is_some)) else { return INVALID.into() };
        let (plan, still) = (self.stops.plan(), self.sstep & sstep::NO_TIMER != 0);
        self.running = true;
        match self.with(move |r| r.go_for_debugger(plan, actions, still)) {
            Some(Ok(())) => Answer::Later,
            // It has ended: it stands where it stood.
            Some(Err(_)) | None => {
                self.running = false;
                self.last = None;
                self.stop_reply(2).into()
            }
        }
    }

    fn verbose(&mut self, p: &[u8]) -> Answer {
        match p {
            b"Cont?" => "vCont;c;C;s;S;r".into(),
            _ if p.starts_with(b"Cont;") => self.go(&p[5..]),
            _ if p.starts_with(b"Kill") => {
                self.machine.control.end(0, Some(Cause::HostQuit));
                Answer::Last(b"OK".to_vec())
            }
            _ if p.starts_with(b"Attach;") => self.stop_reply(5).into(),
            _ => "".into(),
        }
    }

    // --- questions

    fn query(&mut self, p: &[u8]) -> Answer {
        let (name, args) = split(p, b':');
        match name {
            b"Supported" => self.supported(args),
            b"C" => format!("QC{:x}", self.cpu + 1).into(),
            b"fThreadInfo" => {
                let ids: Vec<String> = (1..=self.cpus()).map(|n| format!("{n:x}")).collect();
                format!("m{}", ids.join(",")).into()
            }
            b"sThreadInfo" => "l".into(),
            b"Attached" => "1".into(),
            b"Symbol" => "OK".into(),
            b"Xfer" => self.transfer(args),
            b"qemu.sstepbits" => "ENABLE=1,NOIRQ=2,NOTIMER=4".into(),
            b"qemu.sstep" => format!("0x{:x}", self.sstep).into(),
            b"qemu.PhyMemMode" => (if self.physical { "1" } else { "0" }).into(),
            b"rhea.arch" => self.arch.name().into(),
            b"qemu.Supported" => "sstepbits;sstep;PhyMemMode".into(),
            _ if name.starts_with(b"ThreadExtraInfo,") => self.thread_info(&name[16..]),
            _ if name.starts_with(b"Rcmd,") => self.command(&name[5..]),
            _ => "".into(),
        }
    }

    fn supported(&mut self, args: &[u8]) -> Answer {
        let has = |f: &[u8]| args.split(|b| *b == b';').any(|a| a == f);
        (self.swbreak, self.hwbreak) = (has(b"swbreak+"), has(b"hwbreak+"));
        format!(
            "PacketSize={MAX_PACKET:x};qXfer:features:read+;qXfer:threads:read+;qXfer:memory-map:read+;vContSupported+;\
             QStartNoAckMode+;swbreak+;hwbreak+;ConditionalBreakpoints+"
        )
        .into()
    }

    fn thread_says(&self) -> Vec<String> {
        let says = self.with(|r| {
            let one = |c: &mut crate::vcpu_thread::Cpu| match c.engine.cpu() {
                s if s.wait_sipi => "not started",
                s if s.halted => "halted",
                _ => "running",
            };
            r.cpus.iter_mut().map(|c| one(c).to_owned()).collect()
        });
        says.unwrap_or_else(|| vec![String::new(); self.cpus()])
    }

    fn thread_info(&self, who: &[u8]) -> Answer {
        match resume::thread(who) {
            Some(Who::One(n)) if n < self.cpus() => hex(format!("CPU#{n} [{}]", self.thread_says()[n]).as_bytes()).into(),
            _ => INVALID.into(),
        }
    }

    fn transfer(&self, args: &[u8]) -> Answer {
        let (object, rest) = split(args, b':');
        let (action, rest) = split(rest, b':');
        let (annex, range) = split(rest, b':');
        let document = match (object, annex) {
            _ if action != b"read" => return "".into(),
            (b"features", b"target.xml") => xml::target(self.arch),
            (b"features", _) => return "E00".into(),
            (b"threads", b"") => xml::threads(&self.thread_says()),
            (b"memory-map", b"") => xml::memory_map(),
            _ => return "".into(),
        };
        match xml::part(&document, range, MAX_BYTES) {
            Some(bytes) => Answer::Packets(vec![bytes]),
            None => INVALID.into(),
        }
    }

    /// `monitor` of gdb: a line for the monitor.
    fn command(&self, text: &[u8]) -> Answer {
        let Some(line) = unhex(text) else { return INVALID.into() };
        let line = String::from_utf8_lossy(&line).into_owned();
        self.machine.select(self.cpu);
        let said = monitor::run(&line, &*self.machine);
        let mut packets: Vec<Vec<u8>> = said.as_bytes().chunks(MAX_TEXT).map(|c| format!("O{}", hex(c)).into_bytes()).collect();
        packets.push(b"OK".to_vec());
        Answer::Packets(packets)
    }

    fn set(&mut self, p: &[u8]) -> Answer {
        match p {
            b"StartNoAckMode" => {
                self.acks = false;
                "OK".into()
            }
            b"rhea.arch:i386" | b"rhea.arch:x86-64" => {
                self.arch = Arch::of(p.ends_with(b"i386"));
                "OK".into()
            }
            b"qemu.PhyMemMode:0" | b"qemu.PhyMemMode:1" => {
                self.physical = p.ends_with(b"1");
                "OK".into()
            }
            _ => match p.strip_prefix(b"qemu.sstep=").or(p.strip_prefix(b"qemu.sstep:")) {
                Some(v) => match number(v.strip_prefix(b"0x").unwrap_or(v)).filter(|v| *v <= sstep::ALL) {
                    Some(bits) => {
                        self.sstep = bits;
                        "OK".into()
                    }
                    None => INVALID.into(),
                },
                None => "".into(),
            },
        }
    }

    /// Whether the guest runs although the client believes that it does not: somebody else has let it.
    pub fn guest_runs(&self) -> bool {
        self.machine.control.state() == RunState::Running
    }
}
