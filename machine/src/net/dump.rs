//! `filter-dump`: a copy of all frames in a file of libpcap's format (draft-ietf-opsawg-pcap).

use crate::say;
use devices::net::Frame;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const MAGIC: u32 = 0xa1b2_c3d4;
const LINKTYPE_ETHERNET: u32 = 1;

/// An open capture.
pub struct Dump {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    /// Bytes of a frame that are kept.
    most: usize,
}

impl Dump {
    pub fn create(path: &Path, most: usize) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        let words = [MAGIC, 2 | 4 << 16, 0, 0, u32::try_from(most).unwrap_or(u32::MAX), LINKTYPE_ETHERNET];
        words.iter().try_for_each(|w| file.write_all(&w.to_ne_bytes()))?;
        file.flush()?;
        Ok(Self { path: path.to_owned(), file: Some(file), most })
    }

    /// Writes a frame; with an error, which is told, the capture ends.
    pub fn put(&mut self, frame: &Frame) {
        let Some(file) = &mut self.file else { return };
        let mut whole = frame.clone();
        // A capture shows checksums as they will be on a wire.
        whole.finish_checksum();
        let (bytes, len) = (whole.into_bytes(), frame.len() as u32);
        let kept = &bytes[..bytes.len().min(self.most)];
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let words = [time.as_secs() as u32, time.subsec_micros(), kept.len() as u32, len];
        let done = words.iter().try_for_each(|w| file.write_all(&w.to_ne_bytes())).and_then(|()| file.write_all(kept));
        if let Err(e) = done.and_then(|()| file.flush()) {
            say!("filter-dump: {}: {e}", self.path.display());
            self.file = None;
        }
    }
}
