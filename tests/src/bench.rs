//! The benchmark's guest, its runs and its table. The guest is Debian's kernel with `tests/bench/work.c` as `/init`.

use crate::boot::scratch;
use crate::packages::{Packages, file_in};
use cpio::newc::{Builder, ModeFileType, trailer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// The boot, and the workloads of `work.c`.
pub const ROWS: [&str; 16] = [
    "boot", "int", "fp", "sse2", "x87", "chase", "sort", "calls", "interp", "str", "syscall", "ctxsw", "fork", "fault", "jit",
    "smc",
];
const BOOT: &str = "boot";

/// By row: CPU seconds and checksum.
pub type Figures = BTreeMap<String, (f64, String)>;

pub struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    /// The workloads as a program of the host's.
    program: PathBuf,
}

impl Guest {
    /// Fetches the kernel and compiles the workloads.
    ///
    /// # Errors
    /// What is missing, or what the tools say.
    pub fn build() -> Result<Guest, String> {
        let root = Packages::of("amd64")?.unpack("linux-image-cloud-amd64", "linux-image-")?;
        let kernel = root.join("boot").join(file_in(&root.join("boot"), "vmlinuz-")?);
        let program = scratch().join("bench-work");
        let source = crate::workspace::root().join("tests/bench/work.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-fno-math-errno", "-static", "-o"]).arg(&program).arg(source);
        match gcc.status() {
            Ok(s) if s.success() => {}
            other => return Err(format!("gcc does not compile tests/bench/work.c: {other:?}")),
        }
        let init = std::fs::read(&program).map_err(|e| format!("{}: {e}", program.display()))?;
        let initrd = scratch().join("bench.cpio");
        std::fs::write(&initrd, archive(&init)?).map_err(|e| format!("{}: {e}", initrd.display()))?;
        Ok(Guest { kernel, initrd, program })
    }
}

fn archive(init: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut w =
        Builder::new("init").ino(1).mode(0o755).set_mode_file_type(ModeFileType::Regular).write(&mut out, init.len() as u32);
    w.write_all(init).and_then(|()| w.finish()).map_err(|e| e.to_string())?;
    trailer(&mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

fn named(rows: &[&str]) -> String {
    rows.iter().filter(|r| **r != BOOT).copied().collect::<Vec<_>>().join(",")
}

/// CPU seconds that a process has taken, its threads included (proc(5), fields 14 and 15 of /proc/PID/stat).
fn cpu_seconds(process: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / rustix::param::clock_ticks_per_second() as f64)
}

/// The workloads on this host: the floor.
///
/// # Errors
/// The program cannot be run.
pub fn native(guest: &Guest, rows: &[&str]) -> Result<Figures, String> {
    let out = Command::new(&guest.program).arg(named(rows)).output().map_err(|e| format!("{}: {e}", guest.program.display()))?;
    let mut all = Figures::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["@@END", name, sum, micros] = words[..] {
            all.insert(name.to_owned(), (micros.parse::<f64>().unwrap_or(0.0) / 1e6, sum.to_owned()));
        }
    }
    Ok(all)
}

pub struct Emulator {
    name: String,
    program: String,
}

impl Emulator {
    pub fn new(name: &str, program: &str) -> Emulator {
        Emulator { name: name.to_owned(), program: program.to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// "QEMU 7.2.22"; `None` if the program cannot be run.
    pub fn version(program: &str) -> Option<String> {
        let out = Command::new(program).arg("--version").output().ok().filter(|o| o.status.success())?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let number = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
        Some(format!("QEMU {number}"))
    }

    /// One run of the guest.
    ///
    /// # Errors
    /// The emulator cannot be started, or the guest does not get to its end.
    pub fn run(&self, guest: &Guest, cpu: &str, rows: &[&str]) -> Result<Figures, String> {
        let mut c = Command::new(&self.program);
        c.args(["-accel", if self.name == "rhea" { "jit" } else { "tcg" }, "-M", "q35", "-m", "512", "-cpu", cpu, "-nographic"]);
        c.args(["-nodefaults", "-serial", "stdio", "-monitor", "none", "-no-reboot"]);
        let append = format!("console=ttyS0 quiet panic=-1 bench={}", named(rows));
        c.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd).args(["-append", &append]);
        let child = c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut child = child.map_err(|e| format!("{}: {e}", self.program))?;
        let out = child.stdout.take().ok_or("it is piped")?;
        let (mut all, mut before, mut done) = (Figures::new(), 0.0, false);
        for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            // Firmware may have written to the line before.
            let words: Vec<&str> = line.find("@@").map_or("", |at| &line[at..]).split_whitespace().collect();
            let now = cpu_seconds(child.id()).unwrap_or(before);
            match words[..] {
                ["@@INIT"] => drop(all.insert(BOOT.into(), (now, String::new()))),
                ["@@BEGIN", _] => before = now,
                ["@@END", name, sum, _] => drop(all.insert(name.to_owned(), (now - before, sum.to_owned()))),
                ["@@DONE"] => done = true,
                _ => {}
            }
        }
        let status = child.wait().map_err(|e| e.to_string())?;
        if done { Ok(all) } else { Err(format!("{}: the guest did not reach its end ({status})", self.name)) }
    }
}

/// Best CPU seconds by row and emulator; rhea is the first.
pub struct Table {
    names: Vec<String>,
    rows: Vec<&'static str>,
    native: Figures,
    best: Vec<BTreeMap<String, f64>>,
}

impl Table {
    pub fn new(emulators: &[Emulator], rows: &[&'static str]) -> Table {
        let names: Vec<String> = emulators.iter().map(|e| e.name.clone()).collect();
        Table { best: vec![BTreeMap::new(); names.len()], names, rows: rows.to_vec(), native: Figures::new() }
    }

    pub fn native(&mut self, figures: Figures) {
        self.native = figures;
    }

    /// # Errors
    /// A checksum differs from the host's.
    pub fn add(&mut self, emulator: usize, figures: Figures) -> Result<(), String> {
        for (row, (seconds, sum)) in figures {
            if let Some((_, right)) = self.native.get(&row).filter(|(_, right)| *right != sum) {
                return Err(format!("{}: {row} gives {sum}, not {right}", self.names[emulator]));
            }
            let best = self.best[emulator].entry(row).or_insert(seconds);
            *best = best.min(seconds);
        }
        Ok(())
    }

    /// rhea's share of the fastest other emulator's time.
    fn ratio(&self, row: &str) -> Option<f64> {
        let (ours, others) = self.best.split_first()?;
        let fastest = others.iter().filter_map(|o| o.get(row)).copied().reduce(f64::min).filter(|s| *s > 0.0)?;
        Some(ours.get(row)? / fastest)
    }

    fn mean(&self) -> Option<f64> {
        let logs: Vec<f64> = self.rows.iter().filter_map(|r| self.ratio(r)).filter(|r| *r > 0.0).map(f64::ln).collect();
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
    }

    pub fn text(&self) -> String {
        let mut t = format!("{:10}{:>9}", "", "native");
        for name in &self.names {
            let _ = write!(t, "{name:>16}");
        }
        t += "   ratio\n";
        for row in &self.rows {
            let _ = write!(t, "{row:10}");
            let cell = |v: Option<f64>, width: usize| v.map_or_else(|| format!("{:>width$}", "-"), |v| format!("{v:width$.2}"));
            t += &cell(self.native.get(*row).map(|(s, _)| *s), 9);
            self.best.iter().for_each(|best| t += &cell(best.get(*row).copied(), 16));
            t += &cell(self.ratio(row), 8);
            t.push('\n');
        }
        if let Some(m) = self.mean() {
            let _ = writeln!(t, "geometric mean of the ratios: {m:.2}");
        }
        t
    }

    /// Appends the best times to the history, and says how rhea's compare with those there.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn remember(&self, history: &Path, cpu: &str) -> Result<(), String> {
        let fail = |e: std::io::Error| format!("{}: {e}", history.display());
        let old = if history.exists() { std::fs::read_to_string(history).map_err(fail)? } else { String::new() };
        let last = old.lines().rev().filter_map(|l| serde_json::from_str::<Value>(l).ok()).find(|v| v["cpu"] == cpu);
        if let Some(before) = last {
            let mut line = String::from("rhea, now to the last time:");
            for (row, s) in &self.best[0] {
                if let Some(b) = before["seconds"]["rhea"][row].as_f64().filter(|b| *b > 0.0) {
                    let _ = write!(line, " {row} {:.2}", s / b);
                }
            }
            println!("{line}");
        }
        let seconds: BTreeMap<&String, _> = self.names.iter().zip(&self.best).collect();
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let entry = json!({ "unix_time": at, "commit": commit(), "cpu": cpu, "seconds": seconds });
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(history).map_err(fail)?;
        writeln!(file, "{entry}").map_err(fail)
    }
}

/// The commit that is checked out, as git says.
fn commit() -> String {
    let out = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(crate::workspace::root()).output();
    out.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(list: &[(&str, f64)]) -> Figures {
        list.iter().map(|(row, s)| ((*row).to_owned(), (*s, "1".to_owned()))).collect()
    }

    #[test]
    fn the_best_run_counts_against_the_fastest_other() {
        let emulators = [Emulator::new("rhea", ""), Emulator::new("A", ""), Emulator::new("B", "")];
        let mut t = Table::new(&emulators, &["int", "fp"]);
        t.native(figures(&[("int", 0.1)]));
        t.add(0, figures(&[("int", 3.0), ("fp", 1.0)])).unwrap();
        t.add(0, figures(&[("int", 2.0), ("fp", 1.5)])).unwrap();
        t.add(1, figures(&[("int", 8.0), ("fp", 1.0)])).unwrap();
        t.add(2, figures(&[("int", 4.0), ("fp", 2.0)])).unwrap();
        assert_eq!((t.ratio("int"), t.ratio("fp")), (Some(0.5), Some(1.0)));
        assert!(t.text().contains("geometric mean of the ratios: 0.71"), "{}", t.text());
    }

    #[test]
    fn a_wrong_checksum_is_an_error() {
        let mut t = Table::new(&[Emulator::new("rhea", "")], &["int"]);
        t.native([("int".to_owned(), (0.1, "2".to_owned()))].into());
        assert_eq!(t.add(0, figures(&[("int", 3.0)])), Err("rhea: int gives 1, not 2".into()));
    }
}
