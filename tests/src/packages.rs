//! Files out of Debian's packages, for guests that tests boot: fetched with Debian's tools, without being root, and kept under
//! `target`. Packages of another architecture come with package lists of their own.

use crate::boot::scratch;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An architecture's packages.
pub struct Packages {
    dir: PathBuf,
    arch: &'static str,
}

impl Packages {
    /// Those of `arch`, as Debian names it; reads the package lists once for each build folder.
    ///
    /// # Errors
    /// What the package tools say, or that there are none.
    pub fn of(arch: &'static str) -> Result<Self, String> {
        let dir = scratch().join("packages").join(arch);
        let all = Self { dir, arch };
        let lists = all.dir.join("state/lists");
        if !lists.join("ready").is_file() {
            for sub in ["state/lists/partial", "cache/archives/partial", "root"] {
                fs::create_dir_all(all.dir.join(sub)).map_err(|e| format!("{}: {e}", all.dir.display()))?;
            }
            // A mirror of another archive without this architecture is no reason to stop.
            let _ = all.apt("apt-get", &["update"]);
            fs::write(lists.join("ready"), "").map_err(|e| e.to_string())?;
        }
        Ok(all)
    }

    fn apt(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let mut c = Command::new(program);
        for (key, sub) in [("Dir::State", "state"), ("Dir::State::lists", "state/lists"), ("Dir::Cache", "cache")] {
            c.arg("-o").arg(format!("{key}={}", self.dir.join(sub).display()));
        }
        c.arg("-o").arg(format!("Dir::Cache::archives={}", self.dir.join("cache/archives").display()));
        for option in
            ["APT::Sandbox::User=", "Acquire::Languages=none", "Acquire::Retries=2", "APT::Update::Post-Invoke-Success="]
        {
            c.args(["-o", option]);
        }
        for key in ["APT::Architecture", "APT::Architectures::"] {
            c.arg("-o").arg(format!("{key}={}", self.arch));
        }
        run(c.args(args).current_dir(&self.dir), program)
    }

    /// The folder into which `package` is unpacked; of a package that stands for others, the one whose name starts with
    /// `real` is taken.
    ///
    /// # Errors
    /// As `of`.
    pub fn unpack(&self, package: &str, real: &str) -> Result<PathBuf, String> {
        let root = self.dir.join("root").join(package);
        if root.is_dir() {
            return Ok(root);
        }
        let text = self.apt("apt-cache", &["depends", package])?;
        let names = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
        let name = names.clone().find(|n| !real.is_empty() && n.starts_with(real)).unwrap_or(package);
        self.apt("apt-get", &["download", name])?;
        let found = fs::read_dir(&self.dir).map_err(|e| e.to_string())?.flatten().map(|e| e.path());
        let is = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{name}_")));
        let deb =
            found.filter(|p| p.extension().is_some_and(|e| e == "deb")).find(is).ok_or(format!("{name} was not downloaded"))?;
        let part = self.dir.join("root").join(format!("{package}.{}.part", std::process::id()));
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&part), "dpkg-deb")?;
        let _ = fs::remove_file(deb);
        fs::rename(&part, &root).map_err(|e| format!("{}: {e}", root.display()))?;
        Ok(root)
    }
}

fn run(c: &mut Command, name: &str) -> Result<String, String> {
    let out = c.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(|e| format!("{name}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&out.stderr).trim_end()))
}

/// The file in `dir` whose name starts with `prefix`, the first by name.
///
/// # Errors
/// If there is none.
pub fn file_in(dir: &Path, prefix: &str) -> Result<String, String> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?.flatten().map(|e| e.path()).collect();
    all.sort();
    let named = |p: &&PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let path = all.iter().find(named).ok_or(format!("{}: no {prefix}…", dir.display()))?;
    Ok(path.to_string_lossy().into_owned())
}
