//! Several front ends on one back end, with the Ctrl-A escapes of `-serial mon:stdio`.

use super::{Chardev, Event, Front};
use devices::chr::CharSink;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

const ESCAPE: u8 = 0x01;
/// Input kept for one front end that does not read.
const BUFFER: usize = 4096;

const HELP: &[u8] = b"\r\n\
    C-a h    print this help\r\n\
    C-a x    exit emulator\r\n\
    C-a b    send break\r\n\
    C-a c    switch between console and monitor\r\n\
    C-a C-a  send C-a\r\n";

struct Port {
    front: Option<Arc<dyn Front>>,
    held: VecDeque<u8>,
}

struct State {
    ports: Vec<Port>,
    focus: usize,
    escaped: bool,
}

/// The switch. The first port has the focus at the start.
///
/// At most `BUFFER` bytes are held for a front end that does not read. Then a pipe or socket is left unread; from a
/// terminal reading goes on, so that the escapes still work, and ordinary characters are dropped.
pub struct Mux {
    dev: Arc<Chardev>,
    state: Mutex<State>,
    quit: Box<dyn Fn() + Send + Sync>,
}

/// One front end's side of the mux: what it writes to.
pub struct MuxPort {
    mux: Arc<Mux>,
    index: usize,
}

enum Action {
    Nothing,
    Break,
    Focus,
    Help,
    Quit,
}

impl Mux {
    /// Makes a mux for `dev`, which takes no input before `start`. `quit` is called for C-a x, on the event loop's thread.
    pub fn new(dev: Arc<Chardev>, quit: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let state = State { ports: vec![], focus: 0, escaped: false };
        Arc::new(Self { dev, state: Mutex::new(state), quit: Box::new(quit) })
    }

    /// Lets input in. All ports must be there, or the first escapes would switch between some of them only.
    pub fn start(self: &Arc<Self>) {
        self.dev.set_front(Arc::new(Entry(Arc::downgrade(self))));
    }

    /// Adds a port, without a front end so far.
    pub fn port(self: &Arc<Self>) -> Arc<MuxPort> {
        let mut s = self.state.lock();
        s.ports.push(Port { front: None, held: VecDeque::new() });
        Arc::new(MuxPort { mux: self.clone(), index: s.ports.len() - 1 })
    }

    fn focused(&self) -> Option<Arc<dyn Front>> {
        let s = self.state.lock();
        s.ports.get(s.focus)?.front.clone()
    }

    fn room(&self) -> usize {
        let interactive = self.dev.is_interactive();
        let s = self.state.lock();
        let held = s.ports.get(s.focus).map_or(BUFFER, |p| p.held.len());
        (BUFFER - held.min(BUFFER)).max(interactive.into())
    }

    fn receive(&self, bytes: &[u8]) {
        for &b in bytes {
            let action = self.state.lock().byte(b);
            if !matches!(action, Action::Nothing) {
                // What was typed before an escape arrives before it.
                self.pump();
            }
            match action {
                Action::Nothing => {}
                Action::Break => self.tell(Event::Break),
                Action::Focus => {
                    self.tell(Event::Opened);
                    self.dev.input_wanted();
                }
                Action::Help => self.dev.write(HELP),
                Action::Quit => (self.quit)(),
            }
        }
        self.pump();
    }

    fn tell(&self, event: Event) {
        if let Some(f) = self.focused() {
            f.event(event);
        }
    }

    /// Passes held bytes to the front ends that have room; with the mux unlocked, as a front end may write.
    fn pump(&self) {
        let fronts: Vec<_> = self.state.lock().ports.iter().map(|p| p.front.clone()).collect();
        for (i, front) in fronts.iter().enumerate().filter_map(|(i, f)| Some((i, f.as_ref()?))) {
            front.pump();
            // Until it is full: a device tells of room only then, and it may have taken some out meanwhile.
            while self.pass_on(i, &**front) {}
        }
    }

    /// Passes held bytes of a port to its front end; `false` if there are none, or it takes none.
    fn pass_on(&self, port: usize, front: &dyn Front) -> bool {
        let room = front.room();
        let held = |s: &State| s.ports.get(port).map_or(vec![], |p| p.held.iter().take(room).copied().collect());
        let bytes: Vec<u8> = held(&self.state.lock());
        if bytes.is_empty() {
            return false;
        }
        let taken = front.receive(&bytes);
        if let Some(p) = self.state.lock().ports.get_mut(port) {
            p.held.drain(..taken.min(p.held.len()));
        }
        taken > 0
    }
}

impl State {
    fn byte(&mut self, b: u8) -> Action {
        if !std::mem::take(&mut self.escaped) {
            if b == ESCAPE {
                self.escaped = true;
            } else {
                self.keep(b);
            }
            return Action::Nothing;
        }
        match b {
            ESCAPE => self.keep(b),
            b'b' => return Action::Break,
            b'c' if !self.ports.is_empty() => {
                self.focus = (self.focus + 1) % self.ports.len();
                return Action::Focus;
            }
            b'h' | b'?' => return Action::Help,
            b'x' => return Action::Quit,
            _ => {}
        }
        Action::Nothing
    }

    fn keep(&mut self, b: u8) {
        if let Some(p) = self.ports.get_mut(self.focus).filter(|p| p.held.len() < BUFFER) {
            p.held.push_back(b);
        }
    }
}

/// The mux as the back end's front end; weak, as the mux owns the back end.
struct Entry(Weak<Mux>);

impl Front for Entry {
    fn room(&self) -> usize {
        self.0.upgrade().map_or(0, |m| m.room())
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        if let Some(m) = self.0.upgrade() {
            m.receive(bytes);
        }
        bytes.len()
    }

    fn event(&self, event: Event) {
        let Some(m) = self.0.upgrade() else { return };
        if event == Event::Drained {
            // What is written does not depend on who has the input.
            let fronts: Vec<_> = m.state.lock().ports.iter().filter_map(|p| p.front.clone()).collect();
            return fronts.iter().for_each(|f| f.event(event));
        }
        m.tell(event);
    }

    fn pump(&self) {
        if let Some(m) = self.0.upgrade() {
            m.pump();
        }
    }
}

impl MuxPort {
    /// Sets who gets this port's input.
    pub fn set_front(&self, front: Arc<dyn Front>) {
        if let Some(p) = self.mux.state.lock().ports.get_mut(self.index) {
            p.front = Some(front);
        }
        self.mux.dev.input_wanted();
    }
}

impl CharSink for MuxPort {
    fn write(&self, bytes: &[u8]) {
        self.mux.dev.write(bytes);
    }

    fn room(&self) -> usize {
        self.mux.dev.room()
    }

    fn input_wanted(&self) {
        self.mux.dev.input_wanted();
    }
}
