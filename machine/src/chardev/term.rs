//! Raw mode of the controlling terminal, and the promise that it is undone however the program ends.

use parking_lot::Mutex;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use std::io;
use std::sync::Once;
use std::time::Duration;

struct Modes {
    cooked: Termios,
    raw: Termios,
}

static MODES: Mutex<Option<Modes>> = Mutex::new(None);

/// Puts standard input into raw mode if it is a terminal. `signals`: Ctrl-C and Ctrl-\ still end the program.
/// Output processing stays on, so that the emulator's own messages line up. Undone by `restore`, also on panic.
pub fn enter_raw(signals: bool) -> io::Result<()> {
    let stdin = io::stdin();
    if !rustix::termios::isatty(&stdin) {
        return Ok(());
    }
    let cooked = tcgetattr(&stdin)?;
    let mut raw = cooked.clone();
    raw.make_raw();
    raw.output_modes = cooked.output_modes;
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    if signals {
        raw.local_modes |= LocalModes::ISIG;
    }
    restore_on_panic();
    let mut modes = MODES.lock();
    tcsetattr(&stdin, OptionalActions::Now, &raw)?;
    // A second call keeps the modes that were found first.
    let cooked = modes.take().map_or(cooked, |m| m.cooked);
    *modes = Some(Modes { cooked, raw });
    Ok(())
}

/// Gives the terminal back as it was found. Harmless if it was never changed. Every way out of the program calls it.
pub fn restore() {
    // Bounded, as it runs on panics and signals too.
    if let Some(mut modes) = MODES.try_lock_for(Duration::from_secs(1))
        && let Some(m) = modes.take()
    {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &m.cooked);
    }
}

/// Ends the program with the terminal restored and the log flushed.
pub fn exit(code: i32) -> ! {
    restore();
    vm_core::log::flush();
    std::process::exit(code)
}

/// Restores when dropped: for `main`, so that error returns and unwinding are covered.
pub struct RestoreOnDrop;

impl Drop for RestoreOnDrop {
    fn drop(&mut self) {
        restore();
    }
}

fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            next(info);
        }));
    });
}

/// Starts the thread that takes SIGINT, SIGQUIT, SIGTERM and SIGHUP: the first calls `quit` with its number, a second ends the
/// program at once with status 128 + number. After SIGCONT raw mode is set again, as shells reset it.
pub fn handle_signals(quit: impl Fn(i32) + Send + 'static) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGCONT, SIGXFSZ])?;
    let run = move || {
        let mut asked = false;
        for signal in signals.forever() {
            match signal {
                // The write that went beyond RLIMIT_FSIZE fails, which is all there is to it.
                SIGXFSZ => {}
                SIGCONT => {
                    if let Some(m) = &*MODES.lock() {
                        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &m.raw);
                    }
                }
                _ if asked => exit(128 + signal),
                _ => {
                    asked = true;
                    quit(signal);
                }
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(run)?;
    Ok(())
}
