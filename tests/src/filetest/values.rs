//! `in:` and `out:` lines of the toy guest: `slot=hex`, `[address]=bytes`, and the word for an outcome.

use std::collections::BTreeMap;

use ir::Outcome;
use ir::testing::{SLOTS, STATE_SIZE, TestFault, TestMemory};

/// State, memory and options of an `in:` line, or what an `out:` line changes of them.
#[derive(Debug)]
pub struct Values {
    pub state: [u8; STATE_SIZE],
    pub memory: BTreeMap<u64, u8>,
    pub fail: Option<u32>,
}

impl Values {
    pub fn new() -> Self {
        Self { state: [0; STATE_SIZE], memory: BTreeMap::new(), fail: None }
    }

    /// Applies one `key=value`.
    pub fn apply(&mut self, word: &str) -> Result<(), String> {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` is no key=value"))?;
        if let Some(addr) = key.strip_prefix('[').and_then(|k| k.strip_suffix(']')) {
            let addr = u64::from_str_radix(addr, 16).map_err(|e| format!("{word}: {e}"))?;
            for (k, b) in bytes(value)?.into_iter().enumerate() {
                self.memory.insert(addr.wrapping_add(k as u64), b);
            }
            return Ok(());
        }
        let n = u128::from_str_radix(value, 16).map_err(|e| format!("{word}: {e}"))?;
        if key == "fail" {
            self.fail = Some(n as u32);
            return Ok(());
        }
        let s = SLOTS.iter().find(|s| s.name == key).ok_or_else(|| format!("no slot `{key}`"))?;
        let (off, size) = (s.offset as usize, s.size as usize);
        if size < 16 && n >> (8 * size) != 0 {
            return Err(format!("{word}: the slot has {size} bytes"));
        }
        self.state[off..off + size].copy_from_slice(&n.to_le_bytes()[..size]);
        Ok(())
    }

    pub fn to_memory(&self) -> TestMemory {
        TestMemory { bytes: self.memory.clone(), fail_after: self.fail, ..TestMemory::default() }
    }

    /// What differs in `state` and `memory` from these values, as words.
    pub fn changes(&self, state: &[u8; STATE_SIZE], memory: &BTreeMap<u64, u8>) -> Vec<String> {
        let mut out = Vec::new();
        for s in SLOTS {
            let r = s.offset as usize..(s.offset + s.size) as usize;
            if self.state[r.clone()] != state[r.clone()] {
                let v = state[r].iter().rev().fold(0u128, |v, b| v << 8 | u128::from(*b));
                out.push(format!("{}={v:x}", s.name));
            }
        }
        let mut next = None;
        for (a, b) in memory.iter().filter(|(a, b)| self.memory.get(a) != Some(b)) {
            match out.last_mut() {
                Some(w) if next == Some(*a) => w.push_str(&format!("{b:02x}")),
                _ => out.push(format!("[{a:x}]={b:02x}")),
            }
            next = a.checked_add(1);
        }
        out
    }
}

pub fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return Err(format!("`{hex}` is no list of bytes"));
    }
    (0..hex.len()).step_by(2).map(|k| u8::from_str_radix(&hex[k..k + 2], 16).map_err(|e| format!("{hex}: {e}"))).collect()
}

/// The first word of an `out:` line.
pub fn outcome(o: &Outcome<TestFault>) -> String {
    match o {
        Outcome::Jump { to } => format!("jump{to:+#x}"),
        Outcome::Indirect { pc, hint } => format!("{}:{pc:x}", ["jump", "call", "ret"].get(usize::from(*hint)).unwrap_or(&"?")),
        Outcome::Exit => "exit".into(),
        Outcome::ExitNext { to } => format!("exit_next{to:+#x}"),
        Outcome::Fault { at, .. } => format!("fault{at:+#x}"),
        Outcome::Raise { at, vector, error } => {
            let error = error.map_or(String::new(), |e| format!(":{e:x}"));
            format!("raise{at:+#x}:{vector:x}{error}")
        }
        Outcome::Leave { at } => format!("leave{at:+#x}"),
        Outcome::Undefined { inst } => format!("undefined%{inst}"),
    }
}
