//! The workspace as files and as cargo sees it: for tests of rules that the compiler does not check.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies one level below the root").to_owned()
}

/// The cargo that runs the tests, in the repository's root.
pub fn cargo() -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(root()).env("CARGO_TERM_COLOR", "never");
    c
}

/// Edges between crates of the workspace, of all kinds (build and test dependencies too), as `(from, to)`.
///
/// # Panics
/// If cargo cannot describe the workspace.
pub fn edges() -> BTreeSet<(String, String)> {
    let out = cargo().args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).output().expect("cargo runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let all: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata writes JSON");
    let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    let list = |v: &Value, key: &str| v[key].as_array().cloned().unwrap_or_default();
    let of = |p: &Value| {
        let from = text(p, "name");
        let local = list(p, "dependencies").into_iter().filter(|d| d["path"].is_string());
        local.map(move |d| (from.clone(), text(&d, "name"))).collect::<Vec<_>>()
    };
    list(&all, "packages").iter().flat_map(of).collect()
}

/// All Rust files of the repository, as paths from its root, sorted.
pub fn rust_files() -> Vec<String> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for e in std::fs::read_dir(dir).expect("a folder of the repository can be read").flatten() {
            let (path, name) = (e.path(), e.file_name());
            let hidden = name.to_string_lossy().starts_with('.');
            if path.is_dir() && !hidden && name != "target" {
                walk(&path, out);
            } else if path.extension().is_some_and(|x| x == "rs") {
                out.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    let relative = |p: PathBuf| p.strip_prefix(&root).expect("found below the root").to_string_lossy().into_owned();
    let mut names: Vec<String> = found.into_iter().map(relative).collect();
    names.sort();
    names
}
