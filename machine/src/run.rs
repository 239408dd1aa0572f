//! Runs the machine that a `Config` describes.

use crate::options::Config;
use std::process::ExitCode;

/// Why the machine could not be started, or stopped running.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the board is not wired yet")]
    NotWired,
}

/// Builds the machine, runs it until the guest or the user ends it, and gives the program's exit status.
pub fn run(_config: Config) -> Result<ExitCode, RunError> {
    Err(RunError::NotWired)
}
