//! One client's session: what each packet does (GDB manual, "Packets", "General Query Packets").

use super::memory;
use super::packet::{MAX_PACKET, hex, number, split, unhex};
use super::regs::{self, Id, Reg};
use super::resume::{self, Who, sstep};
use super::stops::{List, Refused};
use super::xml;
use crate::control::{Cause, RunState};
use crate::machine::Machine;
use crate::monitor;
use crate::runner::Runner;
use std::sync::Arc;
use vm_core::CpuIo;
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
    regs: Vec<Reg>,
    description: String,
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
    pub fn new(machine: Arc<Machine>) -> Self {
        let features = regs::features();
        let description = xml::target(&features);
        let regs = features.into_iter().flat_map(|f| f.regs).collect();
        Self {
            machine,
            regs,
            description,
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
            Some(DebugEvent::Watch { va, kind }) => {
                let name = match kind {
                    WatchKind::Write => "watch",
                    WatchKind::Read => "rwatch",
                    WatchKind::Any => "awatch",
                };
                text += &format!("{name}:{va:x};");
            }
            _ => {}
        }
        let cpu = self.stopped_cpu;
        let values =
            self.with(move |r| [Id::Gpr(5), Id::Gpr(4), Id::Pc].map(|id| regs::read(r.cpus[cpu].engine.cpu(), 0, id) as u64));
        for (n, v) in [regs::RBP, regs::RSP, regs::RIP].into_iter().zip(values.into_iter().flatten()) {
            text += &format!("{n:x}:{};", hex(&v.to_le_bytes()));
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
                let done = self.stops.insert(rest, self.physical);
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

    // --- registers and memory

    /// All registers of the current vCPU, as bytes in gdb's order.
    fn values(&self, ids: Vec<(Id, u16)>) -> Option<String> {
        let cpu = self.cpu;
        self.with(move |r| {
            let c = &mut r.cpus[cpu];
            let cr8 = c.io.cr8();
            let state = c.engine.cpu();
            ids.iter().map(|(id, bits)| hex(&regs::read(state, cr8, *id).to_le_bytes()[..usize::from(bits / 8)])).collect()
        })
    }

    fn read_registers(&self) -> Answer {
        match self.values(self.regs.iter().map(|r| (r.id, r.bits)).collect()) {
            Some(text) => text.into(),
            None => BAD_ADDRESS.into(),
        }
    }

    fn read_register(&self, which: &[u8]) -> Answer {
        let reg = number(which).and_then(|n| self.regs.get(usize::try_from(n).ok()?));
        match reg.and_then(|r| self.values(vec![(r.id, r.bits)])) {
            Some(text) => text.into(),
            None => INVALID.into(),
        }
    }

    fn change(&self, changes: Vec<(Id, u128)>) -> Answer {
        let cpu = self.cpu;
        let done = self.with(move |r| {
            let c = &mut r.cpus[cpu];
            let done = regs::write(c.engine.cpu(), &changes);
            if done {
                let cr8 = changes.iter().find(|(id, _)| *id == Id::Cr(8));
                cr8.into_iter().filter(|(_, v)| *v < 16).for_each(|(_, v)| c.io.set_cr8(*v as u8));
                c.engine.cpu_changed();
            }
            done
        });
        if done == Some(true) { "OK".into() } else { INVALID.into() }
    }

    fn write_register(&self, args: &[u8]) -> Answer {
        let (which, value) = split(args, b'=');
        let reg = number(which).and_then(|n| self.regs.get(usize::try_from(n).ok()?));
        match (reg, unhex(value)) {
            (Some(r), Some(bytes)) if bytes.len() == usize::from(r.bits / 8) => self.change(vec![(r.id, from_le(&bytes))]),
            _ => INVALID.into(),
        }
    }

    fn write_registers(&self, text: &[u8]) -> Answer {
        let mut changes = Vec::new();
        let mut rest = text;
        for r in &self.regs {
            let digits = usize::from(r.bits / 4);
            let Some(bytes) = rest.get(..digits).and_then(unhex) else { return INVALID.into() };
            changes.push((r.id, from_le(&bytes)));
            rest = &rest[digits..];
        }
        if rest.is_empty() { self.change(changes) } else { INVALID.into() }
    }

    fn read_memory(&self, args: &[u8]) -> Answer {
        let (at, len) = split(args, b',');
        let (Some(at), Some(len)) = (number(at), number(len)) else { return INVALID.into() };
        let len = len.min(MAX_BYTES as u64) as usize;
        let (cpu, physical) = (self.cpu, self.physical);
        let read = move |r: &mut Runner| {
            let mut bytes = vec![0; len];
            let read = |r: &mut Runner, buf: &mut [u8]| match physical {
                true => memory::read_phys(&r.board, at, buf),
                false => memory::read_virt(r, cpu, at, buf),
            };
            if read(r, &mut bytes) {
                return bytes;
            }
            // What there is before the first page that is not there.
            let room = (4096 - at % 4096).min(len as u64) as usize;
            let mut good = 0;
            for end in (room..=len).step_by(4096) {
                if !read(r, &mut bytes[..end]) {
                    break;
                }
                good = end;
            }
            bytes.truncate(good);
            bytes
        };
        match self.with(read) {
            Some(bytes) if !bytes.is_empty() || len == 0 => hex(&bytes).into(),
            _ => BAD_ADDRESS.into(),
        }
    }

    fn write_memory(&self, args: &[u8], decode: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Answer {
        let (place, data) = split(args, b':');
        let (at, len) = split(place, b',');
        let (Some(at), Some(len), Some(data)) = (number(at), number(len), decode(data)) else { return INVALID.into() };
        if data.len() as u64 != len {
            return INVALID.into();
        }
        let cpu = (!self.physical).then_some(self.cpu);
        match self.with(move |r| memory::write(r, cpu, at, &data)) {
            Some(true) => "OK".into(),
            _ => BAD_ADDRESS.into(),
        }
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
            (b"features", b"target.xml") => self.description.clone(),
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

fn from_le(bytes: &[u8]) -> u128 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | u128::from(*b))
}
