//! Files for guest RAM. They go there straight from the file, again at each reset: a copy in memory would cost as much as the
//! guest's own.

use super::LoadError;
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm_core::Ram;

/// Bytes of a file that are kept: enough for the headers of Linux (1 KiB) and of Multiboot, which lie in the first 8 KiB.
const HEAD: usize = 8192;

/// A file to be loaded, or bytes in memory.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// All of it if there is no file, else its first `HEAD` bytes.
    head: Vec<u8>,
    len: u64,
    file: Option<(PathBuf, Arc<File>)>,
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len() as u64, head: bytes, file: None }
    }
}

impl Image {
    /// Opens a file of at most `max` bytes. What is not a regular file, a pipe for instance, is read at once.
    pub fn open(path: &Path, max: u64) -> Result<Self, LoadError> {
        let fail = |e| LoadError::Read(path.to_owned(), e);
        let too_large = || LoadError::FileLargerThanRam(path.to_owned());
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let mut head = Vec::new();
        if !meta.is_file() {
            (&file).take(max.saturating_add(1)).read_to_end(&mut head).map_err(fail)?;
            return if head.len() as u64 > max { Err(too_large()) } else { Ok(head.into()) };
        }
        if meta.len() > max {
            return Err(too_large());
        }
        (&file).take(HEAD as u64).read_to_end(&mut head).map_err(fail)?;
        if meta.len() <= head.len() as u64 {
            return Ok(head.into());
        }
        Ok(Self { head, len: meta.len(), file: Some((path.to_owned(), Arc::new(file))) })
    }

    /// Its first bytes: 8 KiB, or all if there are fewer.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, in memory.
    pub fn whole(&self) -> Result<Cow<'_, [u8]>, LoadError> {
        let Some((path, file)) = &self.file else { return Ok(Cow::Borrowed(&self.head)) };
        let mut bytes = Vec::new();
        let mut read = || {
            bytes.try_reserve_exact(self.len as usize)?;
            (&**file).seek(SeekFrom::Start(0))?;
            (&**file).take(self.len).read_to_end(&mut bytes)
        };
        read().map_err(|e| LoadError::Read(path.clone(), e))?;
        Ok(Cow::Owned(bytes))
    }

    /// Copies what lies from its byte `from` on to RAM. The range must lie inside RAM.
    pub(super) fn copy_to(&self, ram: &Ram, offset: u64, from: u64) -> Result<(), LoadError> {
        match &self.file {
            None => {
                ram.write(offset, self.head.get(from as usize..).unwrap_or_default());
                Ok(())
            }
            Some((path, file)) => {
                let len = self.len.saturating_sub(from);
                ram.read_from(offset, file, from, len).map_err(|e| LoadError::Read(path.clone(), e))
            }
        }
    }
}
