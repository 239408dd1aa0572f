//! A QMP client for tests of the whole program.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// A client on a Unix socket. Every method panics if the server does not do its part within two minutes.
pub struct Client(pub BufReader<UnixStream>);

impl Client {
    /// Connects, waiting for the socket to be there.
    ///
    /// # Panics
    /// If it does not come.
    pub fn raw(path: &Path) -> Self {
        let end = Instant::now() + LIMIT;
        loop {
            match UnixStream::connect(path) {
                Ok(s) => {
                    s.set_read_timeout(Some(LIMIT)).and_then(|()| s.set_write_timeout(Some(LIMIT))).expect("limits are not zero");
                    return Self(BufReader::new(s));
                }
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                Err(e) => panic!("{}: {e}", path.display()),
            }
        }
    }

    /// Connects and negotiates.
    ///
    /// # Panics
    /// If there is no greeting.
    pub fn new(path: &Path) -> Self {
        let mut c = Self::raw(path);
        let greeting = c.message();
        assert!(greeting["QMP"]["version"]["qemu"]["major"].is_u64(), "{greeting}");
        assert_eq!(c.ask(json!({ "execute": "qmp_capabilities" })), json!({ "return": {} }));
        c
    }

    /// # Panics
    /// If the server does not take it.
    pub fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
    }

    /// The next message.
    ///
    /// # Panics
    /// If the server has gone.
    pub fn message(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap_or(0) > 0, "the server has gone");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// The next message that is not an event.
    pub fn reply(&mut self) -> Value {
        loop {
            let v = self.message();
            if v.get("event").is_none() {
                return v;
            }
        }
    }

    pub fn ask(&mut self, command: Value) -> Value {
        self.send(&command.to_string());
        self.reply()
    }

    /// Runs a command without arguments.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&mut self, name: &str) -> Value {
        let v = self.ask(json!({ "execute": name }));
        v.get("return").unwrap_or_else(|| panic!("{name}: {v}")).clone()
    }

    /// Waits for an event and returns its data.
    ///
    /// # Panics
    /// If it has no time.
    pub fn event(&mut self, name: &str) -> Value {
        loop {
            let v = self.message();
            if v["event"] == name {
                assert!(v["timestamp"]["seconds"].is_u64() && v["timestamp"]["microseconds"].is_u64(), "{v}");
                return v["data"].clone();
            }
        }
    }

    /// Runs a command of the human monitor.
    ///
    /// # Panics
    /// If QMP refuses it.
    pub fn human(&mut self, line: &str) -> String {
        let v = self.ask(json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } }));
        v["return"].as_str().unwrap_or_else(|| panic!("{line}: {v}")).to_owned()
    }

    /// Migrates to a file and waits until that is done; the result of `query-migrate`.
    ///
    /// # Panics
    /// If it is refused.
    pub fn migrate(&mut self, file: &Path) -> Value {
        let uri = format!("file:{}", file.display());
        let v = self.ask(json!({ "execute": "migrate", "arguments": { "uri": uri } }));
        assert_eq!(v, json!({ "return": {} }));
        loop {
            let v = self.run("query-migrate");
            if v["status"] != "active" {
                return v;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
