//! A machine with several CPUs, all of them busy, is saved and goes on elsewhere, on other engines.

use rhea_tests::boot::{Guest, file, scratch};
use rhea_tests::qmp::Client;
use rhea_tests::smp::{STATUS_PASS, guest};
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 1200 } else { 240 });

fn fresh(name: &str) -> PathBuf {
    let path = scratch().join(name);
    let _ = std::fs::remove_file(&path);
    path
}

fn start(elf: &str, hop: usize, engine: &str, from: Option<&str>) -> (Guest, Client) {
    let socket = fresh(&format!("smp-state-{hop}.qmp"));
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let mut args = vec!["-accel", engine, "-smp", "2", "-m", "32M", "-display", "none", "-serial", "stdio", "-qmp", &qmp];
    args.extend(["-device", "isa-debug-exit", "-no-reboot", "-kernel", elf, "-append", "cpus=2 rounds=6000"]);
    args.extend(from.into_iter().flat_map(|f| ["-loadvm", f]));
    let g = Guest::start(&format!("smp-state-{hop}"), &args);
    (g, Client::new(&socket))
}

#[test]
fn busy_cpus_go_on_in_other_processes_and_engines() {
    let elf = file("smp-state.elf", &guest(None).expect("the guest assembles"));
    let saved = fresh("smp-state.sav");
    let path = saved.to_str().expect("the target folder's path is UTF-8").to_owned();
    let (mut g, mut qmp) = start(&elf, 0, "jit", None);
    for (hop, engine) in ["interp", "jit,threshold=0", "jit", "interp", "jit"].into_iter().enumerate() {
        std::thread::sleep(Duration::from_millis(150));
        let said = qmp.human(&format!("savevm {path}"));
        assert_eq!(said, "", "hop {hop}: savevm says {said}");
        g.kill();
        (g, qmp) = start(&elf, hop + 1, engine, Some(&path));
    }
    drop(qmp);
    g.expect_exit(STATUS_PASS, LIMIT);
}
