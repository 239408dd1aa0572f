//! The machine as the monitor sees it.

use crate::block::Drives;
use crate::board::Board;
use crate::chardev::Chardev;
use crate::control::{Cause, Control, Notice, RunState};
use crate::gdb::Host;
use crate::gdb::memory::{read_phys, read_virt};
use crate::monitor::{CpuInfo, MonitorTarget, NO_BALLOON, Part};
use crate::net::Nets;
use crate::profile::Profile;
use crate::runner::Runner;
use crate::say;
use crate::state::{Migration, StateError, path_of};
use crate::switch::Shared;
use crate::vcpu_thread::Cpu;
use arch_x86::{CpuState, Topology};
use devices::input::scancode::Key;
use frontend_x86::X86;
use ir::Frontend;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use vm_core::{Events, GuestCpu, Va};

/// Handles to the parts that run; dropping it does not end them.
pub struct Machine {
    pub board: Arc<Board>,
    pub drives: Arc<Drives>,
    pub nets: Arc<Nets>,
    pub control: Control,
    pub chardevs: Vec<Arc<Chardev>>,
    pub frontend: Arc<X86>,
    /// `-name`.
    pub name: Option<String>,
    pub migration: Arc<Mutex<Migration>>,
    pub profile: Profile,
    pub topology: Topology,
    /// The CPU that the monitor's commands are about.
    pub cpu: AtomicUsize,
    /// The gdb stub.
    pub gdb: Host,
    /// `-S`: what is loaded later waits for `cont`, too.
    pub hold: bool,
    /// Where KVM runs the guest.
    pub kvm: Option<Arc<Shared>>,
}

const GPR: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// A register by gdb's name; those of 32 bits are their lower halves.
fn register(cpu: &CpuState, name: &str) -> Option<u64> {
    if let Some(i) = GPR.iter().position(|r| *r == name) {
        return Some(cpu.gpr[i]);
    }
    if let Some(i) = GPR[..8].iter().position(|r| name.strip_prefix('e').is_some_and(|n| n == &r[1..])) {
        return Some(cpu.gpr[i] & 0xffff_ffff);
    }
    const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
    if let Some(i) = SEGMENTS.iter().position(|s| *s == name) {
        return Some(cpu.seg[i].selector.into());
    }
    Some(match name {
        "rip" => cpu.rip,
        // Linear, as in gdb: real-mode code is found by it.
        "pc" => cpu.linear(cpu.rip).0,
        "eip" => cpu.rip & 0xffff_ffff,
        "eflags" | "rflags" => cpu.rflags(),
        "cr0" => cpu.cr0,
        "cr2" => cpu.cr2,
        "cr3" => cpu.cr3,
        "cr4" => cpu.cr4,
        "efer" => cpu.efer,
        _ => return None,
    })
}

impl Machine {
    /// Makes CPU number `n` the one that commands are about.
    pub fn select(&self, n: usize) {
        self.cpu.store(n, Ordering::Relaxed);
    }

    /// Something about the monitor's current CPU.
    fn of_cpu<R: Send + 'static>(&self, f: impl FnOnce(&mut Cpu) -> R + Send + 'static) -> Option<R> {
        let n = self.cpu.load(Ordering::Relaxed);
        self.control.with_runner(move |r| f(&mut r.cpus[n]))
    }

    fn text(&self, f: impl FnOnce(&mut Cpu) -> String + Send + 'static) -> String {
        self.of_cpu(f).unwrap_or_else(|| "the CPU does not answer\n".into())
    }

    fn act(&self, f: impl FnOnce(&mut Runner) + Send + 'static) {
        if self.control.with_runner(f).is_none() {
            say!("the CPU does not answer");
        }
    }
}

/// What a guest tells of its memory, a line for each number (virtio 1.2 §5.5.6.4).
fn stats(list: &BTreeMap<u16, u64>) -> String {
    const NAMES: [&str; 10] = [
        "swap-in",
        "swap-out",
        "major-faults",
        "minor-faults",
        "free-memory",
        "total-memory",
        "available-memory",
        "disk-caches",
        "htlb-pgalloc",
        "htlb-pgfail",
    ];
    let one = |(tag, v): (&u16, &u64)| Some(format!("  {}: {v}\n", NAMES.get(usize::from(*tag))?));
    list.iter().filter_map(one).collect()
}

/// Loads what `-incoming defer` waits for. The inner error is one of state.
fn load_incoming(r: &mut Runner, path: &Path, hold: bool) -> Result<Result<(), String>, StateError> {
    if r.state() != RunState::InMigrate {
        return Ok(Err("'-incoming defer' was not given, or something has come in".into()));
    }
    let ran = r.load_fresh(path)?;
    r.set_state(match (hold, ran) {
        (true, _) => RunState::Prelaunch,
        (false, true) => RunState::Running,
        (false, false) => RunState::Paused,
    });
    Ok(Ok(()))
}

/// Saves the machine to go on elsewhere, and notes how that went.
fn migrate_to(control: &Control, migration: &Mutex<Migration>, path: PathBuf) -> Result<(), String> {
    let start = Instant::now();
    let shown = path.display().to_string();
    let done = outcome(&shown, control.with_runner_for_long(move |r| r.migrate(&path)));
    *migration.lock() = match &done {
        Ok(stats) => Migration::Completed { stats: *stats, took: start.elapsed() },
        Err(e) => Migration::Failed(e.clone()),
    };
    done.map(|_| ())
}

fn outcome<T>(path: &str, r: Option<Result<T, StateError>>) -> Result<T, String> {
    match r {
        Some(r) => r.map_err(|e| format!("{path}: {e}")),
        None => Err("the CPU does not answer".into()),
    }
}

impl MonitorTarget for Machine {
    fn info_registers(&self) -> String {
        self.text(|c| c.engine.cpu().dump())
    }

    fn info_tlb(&self) -> String {
        self.text(|c| c.engine.info_tlb(&c.io))
    }

    fn info_jit(&self) -> String {
        self.text(|c| c.engine.info_jit())
    }

    fn profile(&self, args: &str) -> Result<(), String> {
        match args.split_once(' ').map_or((args, ""), |(a, b)| (a, b.trim())) {
            ("on", symbols) => self.profile.start(&self.control, symbols),
            ("off", "") => {
                self.profile.stop();
                Ok(())
            }
            _ => Err("profile on [SYMBOLS], or profile off".into()),
        }
    }

    fn info_profile(&self) -> String {
        self.profile.text()
    }

    fn kvm(&self) -> Option<bool> {
        self.kvm.as_ref().map(|k| k.on_kvm())
    }

    fn accel(&self, name: &str) -> Result<(), String> {
        let kvm = self.kvm.clone().ok_or("KVM is not there: -accel kvm or kvm:jit was not given, or it failed")?;
        let translate = match name {
            "jit" => true,
            "kvm" => false,
            other => return Err(format!("{other:?} is neither jit nor kvm")),
        };
        if let Some(why) = kvm.unfit().filter(|_| !translate) {
            return Err(format!("KVM cannot run this machine: {why}"));
        }
        self.act(move |_| kvm.set_translate(translate));
        Ok(())
    }

    fn info_chardev(&self) -> String {
        self.chardevs.iter().map(|c| c.info() + "\n").collect()
    }

    fn chardevs(&self) -> Vec<Value> {
        let one = |(label, what, open): (&str, &str, bool)| json!({ "label": label, "filename": what, "frontend-open": open });
        self.chardevs.iter().map(|c| one(c.summary())).collect()
    }

    fn info_block(&self) -> String {
        self.drives.info()
    }

    fn block(&self) -> Vec<Value> {
        self.drives.query()
    }

    fn resize_drive(&self, id: &str, bytes: u64) -> Result<(), String> {
        self.drives.resize(id, bytes)
    }

    fn info_network(&self) -> String {
        let card = |(n, (netdev, mac)): (usize, (Option<String>, [u8; 6]))| {
            let mac = mac.map(|b| format!("{b:02x}")).join(":");
            let behind = netdev.and_then(|id| self.nets.describe(&id)).map_or_else(String::new, |d| format!(" \\ {d}\n"));
            format!("virtio-net-pci.{n}: index=0,type=nic,model=virtio-net-pci,macaddr={mac}\n{behind}")
        };
        self.board.cards().into_iter().enumerate().map(card).collect()
    }

    fn balloon(&self) -> Option<(u64, String)> {
        let access = self.board.balloon.as_ref()?;
        let mut told = None;
        access(&mut |b, _| told = Some((b.actual(), stats(b.stats()))));
        told
    }

    fn set_balloon(&self, bytes: u64) -> Result<(), String> {
        let access = self.board.balloon.as_ref().ok_or(NO_BALLOON)?;
        access(&mut |b, queues| b.set_target(bytes, queues));
        Ok(())
    }

    fn info_usernet(&self) -> String {
        self.nets.info_user()
    }

    fn hostfwd(&self, add: bool, args: &str) -> Result<(), String> {
        if add { self.nets.add_forward(args) } else { self.nets.remove_forward(args) }
    }

    fn run_state(&self) -> RunState {
        self.control.state()
    }

    fn cpus(&self) -> Vec<CpuInfo> {
        let t = self.topology;
        let one = |(n, thread): (u32, i32)| {
            let place = [n / t.package(), n / t.threads % t.cores, n % t.threads];
            CpuInfo { thread, place, current: self.cpu.load(Ordering::Relaxed) == n as usize }
        };
        (0..).zip(self.control.threads()).map(one).collect()
    }

    fn select_cpu(&self, n: usize) -> bool {
        let known = n < self.topology.cpus() as usize;
        if known {
            self.cpu.store(n, Ordering::Relaxed);
        }
        known
    }

    fn name(&self) -> Option<String> {
        self.name.clone()
    }

    fn read_phys(&self, pa: u64, buf: &mut [u8]) -> bool {
        read_phys(&self.board, pa, buf)
    }

    fn read_virt(&self, va: u64, buf: &mut [u8]) -> bool {
        let (len, cpu) = (buf.len(), self.cpu.load(Ordering::Relaxed));
        let read = self.control.with_runner(move |r| {
            let mut bytes = vec![0; len];
            read_virt(r, cpu, va, &mut bytes).then_some(bytes)
        });
        match read.flatten() {
            Some(bytes) => {
                buf.copy_from_slice(&bytes);
                true
            }
            None => false,
        }
    }

    fn info_board(&self, part: Part) -> String {
        let b = &self.board;
        match part {
            Part::Memory => b.describe_memory(),
            Part::Devices => b.describe_devices(),
            Part::Interrupts => b.describe_interrupts(),
            Part::Lapic => b.describe_lapic(self.cpu.load(Ordering::Relaxed)),
        }
    }

    fn translate(&self, va: u64) -> Option<u64> {
        self.of_cpu(move |c| c.engine.debug_translate(&c.io, Va(va))).flatten().map(|pa| pa.0)
    }

    fn send_keys(&self, keys: Vec<Key>, ms: u64) -> Result<(), String> {
        self.board.typist.as_ref().map_or_else(|| Err(format!("{} has no keyboard", self.board.kind())), |t| t.press(keys, ms))
    }

    fn nmi(&self) {
        if let Some(l) = self.board.lapics.get(self.cpu.load(Ordering::Relaxed)) {
            l.signals().raise(Events::NMI);
        }
    }

    fn gdbserver(&self, device: &str) -> Result<String, String> {
        self.gdb.serve(device)
    }

    fn screendump(&self, path: &str) -> Result<(), String> {
        let vga = self.board.vga.as_ref().ok_or("there is no VGA")?;
        let picture = vga.lock().picture().ok_or("the VGA is in a graphics mode, which is not drawn")?;
        std::fs::write(path, picture.to_ppm()).map_err(|e| format!("{path}: {e}"))
    }

    fn register(&self, name: &str) -> Option<u64> {
        let name = name.to_owned();
        self.of_cpu(move |c| register(c.engine.cpu(), &name)).flatten()
    }

    fn disassemble(&self, va: u64, code: &[u8]) -> Option<(usize, String)> {
        let mode = self.of_cpu(|c| GuestCpu::mode(c.engine.cpu()))?;
        let (text, len) = self.frontend.disassemble(mode, va, code);
        Some((len, text))
    }

    fn stop(&self) {
        self.act(|r| r.pause());
    }

    fn cont(&self) -> Result<(), String> {
        self.control.with_runner(Runner::cont).unwrap_or_else(|| Err("the CPU does not answer".into()))
    }

    fn quit(&self) {
        self.control.end(0, Some(Cause::HostQuit));
    }

    fn reset(&self) {
        self.act(|r| r.reset(Cause::HostReset));
    }

    fn save(&self, path: &str) -> Result<(), String> {
        let to = PathBuf::from(path);
        outcome(path, self.control.with_runner_for_long(move |r| r.save(&to))).map(|_| ())
    }

    fn load(&self, path: &str) -> Result<(), String> {
        let from = PathBuf::from(path);
        outcome(path, self.control.with_runner_for_long(move |r| r.load(&from)))
    }

    fn migrate(&self, uri: &str, wait: bool) -> Result<(), String> {
        let path = path_of(uri)?;
        match &mut *self.migration.lock() {
            Migration::Active(_) => return Err("There's a migration process in progress".into()),
            m => *m = Migration::Active(Instant::now()),
        }
        let (control, migration) = (self.control.clone(), self.migration.clone());
        let run = move || migrate_to(&control, &migration, path);
        if wait {
            return run();
        }
        let started = std::thread::Builder::new().name("migration".into()).spawn(move || drop(run()));
        started.map(|_| ()).map_err(|e| {
            *self.migration.lock() = Migration::Failed(e.to_string());
            e.to_string()
        })
    }

    fn migrate_incoming(&self, uri: &str) -> Result<(), String> {
        let path = path_of(uri)?;
        let (shown, hold) = (path.display().to_string(), self.hold);
        outcome(&shown, self.control.with_runner_for_long(move |r| load_incoming(r, &path, hold)))?
    }

    fn migration(&self) -> Value {
        self.migration.lock().json()
    }

    fn info_migrate(&self) -> String {
        self.migration.lock().text()
    }

    fn powerdown(&self) {
        let Some(pm) = &self.board.pm else { return say!("{} has no power button", self.board.kind()) };
        pm.lock().press_power_button();
        self.control.tell(Notice::Powerdown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_by_name() {
        let mut cpu = CpuState::new(&arch_x86::models::configure("qemu64", &[]).unwrap(), 0);
        cpu.gpr[0] = 0x1_2345_6789;
        assert_eq!((register(&cpu, "rax"), register(&cpu, "eax")), (Some(0x1_2345_6789), Some(0x2345_6789)));
        assert_eq!((register(&cpu, "cs"), register(&cpu, "pc")), (Some(0xf000), Some(0xffff_fff0)));
        assert_eq!((register(&cpu, "er8"), register(&cpu, "")), (None, None));
    }
}
