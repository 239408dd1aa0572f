//! The command line: QEMU's options, parsed into one typed tree and from it into `Config`.
//!
//! arguments → `table::normalise` → clap → `expand` (objects of the tree, checked by `schema`) → `build` → `Config`.

mod build;
mod chardev;
pub mod config;
mod drive;
pub mod error;
mod expand;
mod help;
mod icount;
mod ide;
mod micro;
mod net;
mod schema;
mod smp;
mod table;
#[cfg(test)]
mod tests;
pub mod tree;
pub(crate) mod value;
mod virtio;

pub use config::*;
pub use error::OptionError;
pub use net::{host_end, host_forward};

use clap::parser::ValueSource;

/// RAM of the machine that starts without any argument.
const FIRST_RUN_MEM: u64 = 512 << 20;

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Build and run this machine.
    Run(Box<Config>),
    /// No arguments: run this machine with the guest of `firstrun`.
    FirstRun(Box<Config>),
    /// Print this and end.
    Print(String),
}

/// Parses arguments, without the program's name. Errors are one line each.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Request, OptionError> {
    let normal = table::normalise(args)?;
    let first_run = normal.is_empty();
    let given = in_order(normal)?;
    if let Some(text) = given.iter().find_map(|(name, value)| wants_help(name, value)) {
        return Ok(Request::Print(text));
    }
    let mut tree = tree::Tree::default();
    for (name, value) in given {
        expand::expand(&mut tree, name, &value)?;
    }
    chardev::defaults(&mut tree)?;
    net::defaults(&mut tree)?;
    let mut config = Box::new(build::build(&tree)?);
    if !first_run {
        return Ok(Request::Run(config));
    }
    config.mem_bytes = FIRST_RUN_MEM;
    Ok(Request::FirstRun(config))
}

/// The back end of a gdb stub that is started later, in the notation of `-gdb`, and the stub; `None` for `none`.
pub fn gdb_backend(device: &str) -> Result<Option<(CharBackend, GdbConfig)>, OptionError> {
    let mut tree = tree::Tree::default();
    chardev::gdb(&mut tree, device, "gdbserver")?;
    Ok(build::chardevs(&tree)?.pop().map(|c| c.backend).zip(build::gdb(&tree)))
}

fn wants_help(name: &str, value: &str) -> Option<String> {
    match name {
        "help" => Some(help::options()),
        "version" => Some(help::version()),
        _ => help::for_value(name, value),
    }
}

/// Options with their values, in the order given; options without a value come once, at their last place.
fn in_order(normal: Vec<String>) -> Result<Vec<(&'static str, String)>, OptionError> {
    let line = |e: clap::Error| {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default();
        OptionError::Conflict(first.trim_start_matches("error: ").to_owned())
    };
    let m = table::command().no_binary_name(true).try_get_matches_from(normal).map_err(line)?;
    let mut found: Vec<(usize, &'static str, String)> = Vec::new();
    for o in table::OPTIONS.iter().filter(|o| m.value_source(o.name) == Some(ValueSource::CommandLine)) {
        if o.value.is_empty() {
            found.push((m.index_of(o.name).unwrap_or(0), o.name, String::new()));
            continue;
        }
        let values = m.get_many::<String>(o.name).into_iter().flatten().cloned();
        let places = m.indices_of(o.name).into_iter().flatten();
        found.extend(places.zip(values).map(|(i, v)| (i, o.name, v)));
    }
    found.sort_by_key(|f| f.0);
    Ok(found.into_iter().map(|(_, name, value)| (name, value)).collect())
}
