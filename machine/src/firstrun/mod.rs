//! The guest of a run without arguments.

use crate::options::Config;

/// Why there is no guest to run.
#[derive(Debug, thiserror::Error)]
pub enum FirstRunError {
    #[error("a run without arguments is not built yet: give -kernel FILE")]
    NotBuilt,
}

/// Adds kernel, initial RAM disk and kernel command line to `config`.
pub fn prepare(_config: Config) -> Result<Config, FirstRunError> {
    Err(FirstRunError::NotBuilt)
}
