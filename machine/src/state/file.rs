//! Replacing a file whole or not at all.

use super::StateError;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Removes the unfinished file, unless it has taken its place.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes a file beside `path`, and gives it that name when all is on the disk: whatever happens there is the old file or
/// the new one. A symbolic link stays and what it names is replaced. What is there and no regular file is refused.
/// Only the user may read the file, as it holds the guest's memory.
pub fn replace<T>(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<T>) -> Result<T, StateError> {
    let target = match fs::metadata(path) {
        Ok(m) if m.is_file() => fs::canonicalize(path)?,
        Ok(_) => return Err(StateError::NoFile),
        Err(_) => path.to_owned(),
    };
    let name = target.file_name().ok_or(StateError::NoFile)?.to_string_lossy();
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    // Left by a process that had this number and was killed.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let mut unfinished = Unfinished(Some(temporary.clone()));
    let result = write(&mut file)?;
    file.sync_all()?;
    fs::rename(&temporary, &target)?;
    unfinished.0 = None;
    // The new name has to reach the disk too; not all file systems can be asked for that.
    let _ = File::open(folder).and_then(|f| f.sync_all());
    Ok(result)
}
