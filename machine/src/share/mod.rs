//! Shared folders (`-fsdev`, `-virtfs`): a 9P server for each on a thread of its own.

mod fids;
mod folder;
mod server;
mod wire;

use crate::options::ShareConfig;
use devices::virtio::p9::{Request, Share};
use folder::Folder;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::Value;
use server::{Server, State};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("-fsdev {0}: {path}: {source}", path = .1.display(), source = .2)]
    Folder(String, PathBuf, #[source] Errno),
    #[error("-fsdev {0}: cannot start a thread: {1}")]
    Thread(String, #[source] std::io::Error),
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    busy: bool,
    closed: bool,
}

struct Inner {
    server: Mutex<Server>,
    queue: Mutex<Queue>,
    work: Condvar,
    idle: Condvar,
}

/// A folder that is shared. Its thread has ended when it has been dropped.
pub struct HostShare(Arc<Inner>, Option<JoinHandle<()>>);

/// All shares of a machine, by id.
#[derive(Default)]
pub struct Shares(BTreeMap<String, Arc<HostShare>>);

impl Shares {
    pub fn open(list: &[ShareConfig]) -> Result<Self, ShareError> {
        let one = |c: &ShareConfig| {
            let bad = |e| ShareError::Folder(c.id.clone(), c.path.clone(), e);
            let folder = Folder::open(&c.path, c.read_only, c.passthrough).map_err(bad)?;
            let share = HostShare::start(&c.id, Server::new(folder)).map_err(|e| ShareError::Thread(c.id.clone(), e))?;
            Ok((c.id.clone(), Arc::new(share)))
        };
        list.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    pub fn all(&self) -> BTreeMap<String, Arc<dyn Share>> {
        self.0.iter().map(|(id, s)| (id.clone(), s.clone() as Arc<dyn Share>)).collect()
    }
}

impl HostShare {
    fn start(id: &str, server: Server) -> std::io::Result<Self> {
        let (queue, work, idle) = Default::default();
        let inner = Arc::new(Inner { server: Mutex::new(server), queue, work, idle });
        let thread = inner.clone();
        let handle = std::thread::Builder::new().name(format!("9p-{id}")).spawn(move || thread.serve())?;
        Ok(Self(inner, Some(handle)))
    }
}

impl Inner {
    fn serve(&self) {
        let mut q = self.queue.lock();
        while !q.closed {
            let Some(r) = q.waiting.pop_front() else {
                self.work.wait(&mut q);
                continue;
            };
            q.busy = true;
            drop(q);
            let answer = self.server.lock().answer(&r.message, r.room);
            r.done.put(r.id, answer);
            q = self.queue.lock();
            q.busy = false;
            self.idle.notify_all();
            drop(q);
            // Takes the device's lock, whose holder may wait for this thread to be idle.
            r.done.kick();
            q = self.queue.lock();
        }
    }
}

impl Share for HostShare {
    fn submit(&self, request: Request) {
        self.0.queue.lock().waiting.push_back(request);
        self.0.work.notify_one();
    }

    fn abandon(&self) {
        let mut q = self.0.queue.lock();
        q.waiting.clear();
        while q.busy {
            self.0.idle.wait(&mut q);
        }
        drop(q);
        self.0.server.lock().reset();
    }

    fn drain(&self) {
        let mut q = self.0.queue.lock();
        while q.busy || !q.waiting.is_empty() {
            self.0.idle.wait(&mut q);
        }
    }

    fn save(&self) -> Value {
        serde_json::to_value(self.0.server.lock().save()).expect("plain data with string keys")
    }

    fn load(&self, saved: &Value) -> Result<(), String> {
        let s = State::deserialize(saved).map_err(|e| e.to_string())?;
        self.0.server.lock().load(s);
        Ok(())
    }
}

/// A share that is not there, for trying saved states.
pub struct TrialShare;

impl Share for TrialShare {
    fn submit(&self, _: Request) {}
    fn abandon(&self) {}
    fn drain(&self) {}
    fn save(&self) -> Value {
        Value::Null
    }
    fn load(&self, saved: &Value) -> Result<(), String> {
        State::deserialize(saved).map(drop).map_err(|e| e.to_string())
    }
}

impl Drop for HostShare {
    fn drop(&mut self) {
        self.0.queue.lock().closed = true;
        self.0.work.notify_all();
        // The last one to let go may be the thread itself, which ends by itself.
        if let Some(t) = self.1.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            drop(t.join());
        }
    }
}
