//! `migrate` and how it went, as `query-migrate` and `info migrate` tell it.

use super::Stats;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vm_core::addr::PAGE_SIZE;

/// The last migration out of this machine.
#[derive(Debug, Default)]
pub enum Migration {
    #[default]
    None,
    Active(Instant),
    Completed {
        stats: Stats,
        took: Duration,
    },
    Failed(String),
}

/// The file that a URI names; `Err` is for the user.
pub fn path_of(uri: &str) -> Result<PathBuf, String> {
    match uri.strip_prefix("file:") {
        Some("") => Err("file: without a path".into()),
        Some(p) if p.contains('\0') => Err("the path has a zero byte".into()),
        Some(p) => Ok(p.into()),
        None => Err("only file:PATH is built".into()),
    }
}

impl Migration {
    fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Active(_) => "active",
            Self::Completed { .. } => "completed",
            Self::Failed(_) => "failed",
        }
    }

    /// The reply to `query-migrate` (`MigrationInfo`). Times are in ms; the guest stands still all the while.
    pub fn json(&self) -> Value {
        match self {
            Self::None => json!({}),
            Self::Active(since) => json!({ "status": self.name(), "total-time": since.elapsed().as_millis() as u64 }),
            Self::Failed(why) => json!({ "status": self.name(), "error-desc": why }),
            Self::Completed { stats, took } => {
                let ms = took.as_millis() as u64;
                let ram = json!({
                    "transferred": stats.bytes,
                    "remaining": 0,
                    "total": (stats.pages + stats.zero_pages) * PAGE_SIZE,
                    "duplicate": stats.zero_pages,
                    "normal": stats.pages,
                    "normal-bytes": stats.pages * PAGE_SIZE,
                    "mbps": stats.bytes as f64 * 8e-6 / took.as_secs_f64().max(1e-9),
                    "dirty-pages-rate": 0,
                    "dirty-sync-count": 1,
                    "page-size": PAGE_SIZE,
                });
                json!({ "status": self.name(), "total-time": ms, "downtime": ms, "setup-time": 0, "ram": ram })
            }
        }
    }

    /// `info migrate`.
    pub fn text(&self) -> String {
        let status = format!("Migration status: {}", self.name());
        match self {
            Self::None => String::new(),
            Self::Active(_) => status + "\n",
            Self::Failed(why) => format!("{status} ({why})\n"),
            Self::Completed { stats, took } => {
                let ms = took.as_millis();
                let (kib, page) = (stats.bytes >> 10, PAGE_SIZE >> 10);
                format!(
                    "{status}\ntotal time: {ms} ms\ndowntime: {ms} ms\ntransferred ram: {kib} kbytes\n\
                     duplicate: {} pages\nnormal: {} pages\nnormal bytes: {} kbytes\npage size: {page} kbytes\n",
                    stats.zero_pages,
                    stats.pages,
                    stats.pages * page,
                )
            }
        }
    }
}
