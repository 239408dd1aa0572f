//! Saving and loading the machine on its vCPU's thread, between two instructions.

use super::{Description, Head, Reader, Source, StateError, Stats, replace, write};
use crate::control::RunState;
use crate::runner::Runner;
use arch_x86::cpuid::Word;
use arch_x86::models::MODELS;
use arch_x86::pvclock;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use vm_core::{CpuIo, Events, Section};

const SECOND: i128 = 1_000_000_000;

/// Events that are latched in `VcpuSignals` and nowhere else. INTR follows from the local APIC's state.
fn latched() -> Events {
    Events::NMI | Events::SMI | Events::INIT | Events::SIPI
}

/// Host time in ns since 1970.
fn host_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl Runner {
    fn description(&mut self) -> Description {
        let (machine, ram) = (self.board.kind().to_owned(), self.board.ram.size());
        let cpu = self.cpus[0].engine.cpu();
        let model = MODELS.get(cpu.model as usize).map_or("", |m| m.name).to_owned();
        let mut features = cpu.features.to_vec();
        // What guests see of KVM goes along with them.
        features[Word::KvmEax as usize] = 0;
        Description { machine, ram, cpu: model, features, cpus: cpu.topology.cpus() }
    }

    /// Everything but RAM. The clock stands still.
    pub(super) fn head(&mut self, running: bool) -> Head {
        let mut sections: Vec<Section> = self.cpus.iter_mut().enumerate().map(|(n, c)| c.engine.cpu().save(n)).collect();
        sections.extend(self.board.save());
        Head {
            program: format!("rhea {}", env!("CARGO_PKG_VERSION")),
            description: self.description(),
            clock: self.board.clock.now(),
            saved_at: host_time(),
            running,
            events: self.cpus.iter().map(|c| (c.io.signals().pending() & latched()).bits()).collect(),
            sections,
        }
    }

    /// Saves the machine, which goes on afterwards if it ran.
    pub fn save(&mut self, path: &Path) -> Result<Stats, StateError> {
        let running = self.hold();
        let stats = self.save_held(path, running);
        if running {
            self.set_state(RunState::Running);
        }
        stats
    }

    /// As `save`, to anything.
    pub(crate) fn save_to(&mut self, to: impl Write) -> Result<Stats, StateError> {
        let running = self.hold();
        let head = self.head(running);
        let stats = write(to, &head, &self.board.ram);
        if running {
            self.set_state(RunState::Running);
        }
        Ok(stats?)
    }

    /// Saves the machine to go on elsewhere: here it stands still afterwards, unless saving fails.
    pub fn migrate(&mut self, path: &Path) -> Result<Stats, StateError> {
        let running = self.hold();
        let stats = self.save_held(path, running);
        match (&stats, running) {
            (Ok(_), _) => self.set_state(RunState::PostMigrate),
            (Err(_), true) => self.set_state(RunState::Running),
            (Err(_), false) => {}
        }
        stats
    }

    /// Stops a running guest; whether it ran.
    fn hold(&mut self) -> bool {
        let running = self.state() == RunState::Running;
        self.pause();
        running
    }

    fn save_held(&mut self, path: &Path, running: bool) -> Result<Stats, StateError> {
        if self.state() == RunState::InternalError {
            return Err(StateError::Lost);
        }
        let head = self.head(running);
        let ram = self.board.ram.clone();
        replace(path, |file| write(file, &head, &ram))
    }

    /// Loads a machine in place of this one, which goes on as the other if it ran. Nothing has changed on error, but for
    /// `StateError::Lost`.
    pub fn load(&mut self, path: &Path) -> Result<(), StateError> {
        self.load_from(&open(path)?)
    }

    pub(crate) fn load_from(&mut self, file: &impl Source) -> Result<(), StateError> {
        // First a look at the whole file, then again to do it: RAM is too large to be held twice.
        let (reader, head) = Reader::open(file)?;
        self.check(&head)?;
        reader.plan(self.board.ram.size())?.read(|_, _| {})?;
        let (reader, again) = Reader::open(file)?;
        if again != head {
            return Err(StateError::Damaged("it changes while it is read".into()));
        }
        let running = self.hold();
        if self.apply(&head, reader, false).is_err() {
            self.set_state(RunState::InternalError);
            return Err(StateError::Lost);
        }
        match (running, self.state()) {
            (true, _) => self.set_state(RunState::Running),
            (false, RunState::Prelaunch | RunState::Paused) => {}
            (false, _) => self.set_state(RunState::Paused),
        }
        Ok(())
    }

    /// Loads a machine into this one, which has not run and is of no use on error. Returns whether the saved machine ran.
    pub fn load_fresh(&mut self, path: &Path) -> Result<bool, StateError> {
        let (reader, head) = Reader::open(open(path)?)?;
        self.check(&head)?;
        self.apply(&head, reader, true)?;
        Ok(head.running)
    }

    /// Whether everything but RAM would be accepted. Nothing changes.
    pub(super) fn check(&mut self, head: &Head) -> Result<(), StateError> {
        self.description().check(&head.description)?;
        if head.events.len() != self.cpus.len() {
            return Err(StateError::Damaged("events of another number of CPUs".into()));
        }
        if head.events.iter().any(|e| Events::from_bits(*e).is_none_or(|e| !latched().contains(e))) {
            return Err(StateError::Damaged("events that there are not".into()));
        }
        let (cpus, devices) = split(head, self.cpus.len())?;
        for (here, saved) in self.cpus.iter_mut().zip(cpus) {
            here.engine.cpu().clone().load(saved)?;
        }
        let board = self.board.clone();
        Ok(board.check(&mut self.trial, &devices, head.clock)?)
    }

    /// `fresh`: RAM has hardly been touched.
    fn apply(&mut self, head: &Head, reader: Reader<impl Source>, fresh: bool) -> Result<(), StateError> {
        let board = self.board.clone();
        let (cpus, devices) = split(head, self.cpus.len())?;
        board.clock.stop();
        board.clock.set(head.clock);
        board.reset();
        let ram = &board.ram;
        let pages = reader.plan(ram.size())?;
        pages.stretches(false).into_iter().for_each(|(at, len)| ram.zero(at, len));
        if fresh {
            pages.stretches(true).into_iter().for_each(|(at, len)| ram.prefer_large_pages(at, len));
        }
        pages.read(|at, bytes| {
            if fresh {
                ram.populate(at, bytes.len() as u64);
            }
            ram.write(at, bytes);
        })?;
        board.load(&devices)?;
        // The CPU's own state of A20 counts: there are two sources, and the last one loaded is any of them.
        self.forget_a20();
        for ((here, saved), events) in self.cpus.iter_mut().zip(cpus).zip(&head.events) {
            here.engine.cpu().load(saved)?;
            here.io.signals().clear(latched());
            here.io.signals().raise(Events::from_bits_truncate(*events) & latched());
        }
        self.cpus_changed();
        for cpu in &mut self.cpus {
            // It may have been written by an engine with another TSC.
            pvclock::tell(cpu.engine.cpu(), &cpu.io);
        }
        if self.rtc_follows_host() {
            let passed = i128::from(host_time()) - i128::from(head.saved_at);
            board.rtc.iter().for_each(|rtc| rtc.lock().advance((passed / SECOND) as i64));
        }
        Ok(())
    }
}

/// A regular file: a pipe or terminal would hold the machine up.
fn open(path: &Path) -> Result<File, StateError> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(StateError::NoFile);
    }
    let file = File::open(path)?;
    // All of it is wanted soon, and its structure is read by jumps that the host would take for random access. Advice: if
    // the host does not take it, reading is slower.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed);
    Ok(file)
}

/// The sections of `n` CPUs, and those of the board.
fn split(head: &Head, n: usize) -> Result<(Vec<&Section>, Vec<Section>), StateError> {
    let names: Vec<String> = (0..n).map(|n| format!("cpu{n}")).collect();
    let find = |name: &String| {
        let found = head.sections.iter().find(|s| s.name == *name);
        found.ok_or_else(|| StateError::Damaged(format!("section {name} is missing")))
    };
    let cpus = names.iter().map(find).collect::<Result<_, _>>()?;
    Ok((cpus, head.sections.iter().filter(|s| !names.contains(&s.name)).cloned().collect()))
}
