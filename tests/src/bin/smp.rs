//! Writes the guest for several processors into a file, to be run anywhere: `smp FILE [no-lock|no-fence|no-invlpg]`.

use rhea_tests::smp::{Fault, guest};

fn main() {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        eprintln!("smp: name the file to write");
        std::process::exit(1);
    };
    let fault = match args.next().as_deref() {
        None => None,
        Some("no-lock") => Some(Fault::NoLock),
        Some("no-fence") => Some(Fault::NoFence),
        Some("no-invlpg") => Some(Fault::NoInvlpg),
        Some(other) => {
            eprintln!("smp: {other}: no such fault");
            std::process::exit(1);
        }
    };
    if let Err(e) = std::fs::write(&path, guest(fault).expect("the guest assembles")) {
        eprintln!("smp: {path}: {e}");
        std::process::exit(1);
    }
}
