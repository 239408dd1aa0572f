//! Kernel and busybox from Debian's (or Ubuntu's) packages, with the package tools and without being root.

use super::FirstRunError;
use super::cache::Files;
use crate::say;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages that depend on the newest kernel: Debian's for virtual machines, Ubuntu's, any.
const KERNEL_METAS: [&str; 3] = ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64"];
const BUSYBOX: &str = "busybox-static";

/// A folder that goes away with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The package tools, with the system's package lists or with lists of our own.
struct Apt {
    get: PathBuf,
    work: PathBuf,
    private_lists: bool,
}

/// Downloads the packages and takes the two files out of them.
pub fn fetch(dir: &Path, apt_get: &Path) -> Result<Files, FirstRunError> {
    let (mut apt, _work) = apt(dir, apt_get)?;
    apt.with_lists(Apt::packages)
}

/// Downloads a package and copies files of it, which `files` finds below the folder that it is unpacked into, to `into`.
pub fn fetch_files(
    package: &str,
    into: &Path,
    files: impl Fn(&Path) -> Vec<PathBuf>,
    apt_get: &Path,
) -> Result<(), FirstRunError> {
    fs::create_dir_all(into).map_err(FirstRunError::file(into))?;
    let (mut apt, _work) = apt(into, apt_get)?;
    let root = apt.with_lists(|apt| apt.unpack(package, "files"))?;
    for from in files(&root) {
        let data = fs::read(&from).map_err(FirstRunError::file(&from))?;
        super::cache::write(&into.join(from.file_name().unwrap_or_default()), &data)?;
    }
    Ok(())
}

/// The package tools, working in a folder below `dir` that goes away with the second value.
fn apt(dir: &Path, apt_get: &Path) -> Result<(Apt, Scratch), FirstRunError> {
    let work = Scratch(dir.join(format!("work-{}", std::process::id())));
    for sub in ["state/lists/partial", "cache/archives/partial", "kernel", "busybox"] {
        let d = work.0.join(sub);
        fs::create_dir_all(&d).map_err(FirstRunError::file(&d))?;
    }
    let apt = Apt { get: apt_get.to_owned(), work: work.0.clone(), private_lists: false };
    // Before anything else, so that a host without them is told at once.
    apt.run(apt_get, &["--version"])?;
    run(Command::new("dpkg-deb").arg("--version"), "dpkg-deb")?;
    Ok((apt, work))
}

impl Apt {
    /// Does something with the system's package lists, and if that fails, with new ones.
    fn with_lists<T>(&mut self, act: impl Fn(&Self) -> Result<T, FirstRunError>) -> Result<T, FirstRunError> {
        // The system's lists name this host's architecture and may be old or missing; ours are amd64 and new.
        if cfg!(target_arch = "x86_64")
            && let Ok(done) = act(self)
        {
            return Ok(done);
        }
        say!("reading Debian's package lists (apt-get update, in {})", self.work.display());
        self.private_lists = true;
        let updated = self.run(&self.get, &["update"]);
        match act(self) {
            Err(FirstRunError::NoKernelPackage) => Err(updated.err().unwrap_or(FirstRunError::NoKernelPackage)),
            other => other,
        }
    }

    fn packages(&self) -> Result<Files, FirstRunError> {
        let image = self.kernel_package()?;
        let kernel = self.take(&image, "kernel", "a kernel", kernel_file)?;
        let busybox = self.take(BUSYBOX, "busybox", "busybox", |root| {
            ["bin/busybox", "usr/bin/busybox"].map(|p| root.join(p)).into_iter().find(|p| p.is_file())
        })?;
        Ok(Files { kernel, busybox })
    }

    /// The real package behind the first of `KERNEL_METAS` that is known.
    fn kernel_package(&self) -> Result<String, FirstRunError> {
        let cache = self.get.with_file_name("apt-cache");
        for meta in KERNEL_METAS {
            if let Ok(text) = self.run(&cache, &["depends", meta])
                && let Some(name) = image_dependency(&text)
            {
                return Ok(name);
            }
        }
        Err(FirstRunError::NoKernelPackage)
    }

    /// Downloads and unpacks a package, and reads the file that `find` points to.
    fn take(
        &self,
        package: &str,
        sub: &str,
        what: &'static str,
        find: impl Fn(&Path) -> Option<PathBuf>,
    ) -> Result<Vec<u8>, FirstRunError> {
        let root = self.unpack(package, sub)?;
        let path = find(&root).ok_or_else(|| FirstRunError::Package { package: package.to_owned(), what })?;
        fs::read(&path).map_err(FirstRunError::file(&path))
    }

    /// Downloads a package and unpacks it into a folder.
    fn unpack(&self, package: &str, sub: &str) -> Result<PathBuf, FirstRunError> {
        let root = self.work.join(sub);
        say!("downloading {package}");
        self.run(&self.get, &["download", package])?;
        let deb = entries(&self.work).into_iter().find(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
        });
        let deb = deb.ok_or_else(|| FirstRunError::Package { package: package.to_owned(), what: "the package itself" })?;
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root), "dpkg-deb")?;
        Ok(root)
    }

    /// Runs one of apt's programs in the work folder and returns what it prints.
    fn run(&self, program: &Path, args: &[&str]) -> Result<String, FirstRunError> {
        let mut c = Command::new(program);
        c.current_dir(&self.work);
        let mut set = |key: &str, value: OsString| {
            let mut o = OsString::from(format!("{key}="));
            o.push(value);
            c.arg("-o").arg(o);
        };
        set("Acquire::Retries", "1".into());
        set("Acquire::http::Timeout", "30".into());
        set("Acquire::https::Timeout", "30".into());
        // apt's own user cannot write here.
        set("APT::Sandbox::User", "".into());
        set("Dir::Cache", self.work.join("cache").into());
        set("Dir::Cache::archives", self.work.join("cache/archives").into());
        if self.private_lists {
            set("Dir::State", self.work.join("state").into());
            set("Dir::State::lists", self.work.join("state/lists").into());
            set("APT::Architecture", "amd64".into());
            set("APT::Architectures::", "amd64".into());
            // Scripts of the system's for after an update.
            set("APT::Update::Post-Invoke-Success", "".into());
        }
        c.args(args);
        run(&mut c, &program.display().to_string())
    }
}

/// Runs a program without input; its output, or the last line of its complaint.
fn run(c: &mut Command, name: &str) -> Result<String, FirstRunError> {
    c.env("LC_ALL", "C").stdin(Stdio::null());
    let out = match c.output() {
        Ok(out) => out,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let known = ["apt-get", "apt-cache", "dpkg-deb"].into_iter().find(|k| name.ends_with(k));
            return Err(FirstRunError::NoTool(known.unwrap_or("a package tool")));
        }
        Err(e) => return Err(FirstRunError::Tool(name.to_owned(), e.to_string())),
    };
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = text.lines().rev().find(|l| l.starts_with("E:")).or(text.lines().last()).unwrap_or("no message");
    Err(FirstRunError::Tool(name.to_owned(), line.trim_start_matches("E: ").to_owned()))
}

/// The image that a kernel's meta package depends on, in the output of `apt-cache depends`.
pub(super) fn image_dependency(text: &str) -> Option<String> {
    let plain = |n: &&str| n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let names = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
    let version = |n: &&str| n.strip_prefix("linux-image-").is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()));
    names.filter(plain).find(version).map(str::to_owned)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    list.sort();
    list
}

fn kernel_file(root: &Path) -> Option<PathBuf> {
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"));
    ["boot", "usr/lib/modules"].into_iter().find_map(|d| {
        let here = entries(&root.join(d));
        let below = here.iter().filter(|p| p.is_dir()).flat_map(|p| entries(p)).collect::<Vec<_>>();
        here.iter().chain(&below).find(|p| named(p) && p.is_file()).cloned()
    })
}
