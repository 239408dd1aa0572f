//! A whole machine in a file: what `savevm` and `migrate` write, and `loadvm` and `-incoming` read.
//!
//! All numbers are little-endian.
//!
//! | offset | what |
//! |---|---|
//! | 0 | magic, 8 bytes |
//! | 8 | version of this format, u32 |
//! | 12 | length of the head, u32 |
//! | 16 | CRC-32 of the head, u32 |
//! | 20 | head: JSON of `Head`, with a section of each CPU and device |
//! | then | runs of RAM pages that are not zero: number of the first page u64, number of pages u32 (1 to 256), 0 u32, the pages |
//! | then | end: u64 of ones, u32 0, u32 0 |
//! | last | CRC-32 of everything before it, u32 |
//!
//! Runs ascend and do not overlap. Pages are numbered by their offset in RAM, which `Description::ram` measures.

mod file;
mod format;
pub mod hash;
mod migration;
mod reader;
mod runner;

pub use file::replace;
pub use format::{Stats, write};
pub use migration::{Migration, path_of};
pub use reader::{Reader, Source};

use serde::{Deserialize, Serialize};
use std::io;
use vm_core::{LoadError, Section};

/// Why a machine is not saved or loaded; one line each.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("not a regular file")]
    NoFile,
    #[error("not a saved machine")]
    Magic,
    #[error("version {0} of the format; this program knows none after {VERSION}", VERSION = format::VERSION)]
    Newer(u32),
    #[error("cut off")]
    Cut,
    #[error("damaged: {0}")]
    Damaged(String),
    #[error("the saved machine has {what} {saved}, this one has {here}")]
    Other { what: &'static str, saved: String, here: String },
    #[error(transparent)]
    Section(#[from] LoadError),
    /// Some of the machine has been replaced and some not.
    #[error("the file changed while it was read; the machine is lost and must be reset")]
    Lost,
}

/// What must be the same in the machine that was saved and the one that loads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub machine: String,
    /// Bytes of RAM.
    pub ram: u64,
    pub cpu: String,
    /// CPUID feature words.
    pub features: Vec<u32>,
    pub cpus: u32,
}

impl Description {
    /// Whether a machine described by `saved` can be loaded into this one.
    pub fn check(&self, saved: &Self) -> Result<(), StateError> {
        let other = |what, saved: &dyn ToString, here: &dyn ToString| {
            Err(StateError::Other { what, saved: saved.to_string(), here: here.to_string() })
        };
        let bits = |words: &[u32]| words.iter().map(|w| format!("{w:08x}")).collect::<Vec<_>>().join(" ");
        if saved.machine != self.machine {
            return other("machine type", &saved.machine, &self.machine);
        }
        if saved.ram != self.ram {
            return other("RAM of bytes", &saved.ram, &self.ram);
        }
        if saved.cpu != self.cpu {
            return other("CPU model", &saved.cpu, &self.cpu);
        }
        if saved.features != self.features {
            return other("CPU features", &bits(&saved.features), &bits(&self.features));
        }
        if saved.cpus != self.cpus {
            return other("CPUs:", &saved.cpus, &self.cpus);
        }
        Ok(())
    }
}

/// Everything but RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The program that wrote it, for people.
    pub program: String,
    pub description: Description,
    /// Guest time, ns.
    pub clock: u64,
    /// Host time, ns since 1970.
    pub saved_at: u64,
    /// The guest ran, and was not merely held.
    pub running: bool,
    /// Latched events (`vm_core::Events`) of each CPU.
    pub events: Vec<u32>,
    pub sections: Vec<Section>,
}

#[cfg(test)]
mod tests;
