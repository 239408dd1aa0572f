//! qcow2 images that are damaged: opened, read, written, as a guest's disk is.

use super::{Behaviour, Bytes};
use crate::boot::scratch;
use crate::disks::qemu_img;
use std::path::PathBuf;
use std::sync::OnceLock;

/// An image with data, compressed clusters, a snapshot's reference counts, and holes; small clusters make its tables small as well.
fn sound() -> Option<&'static Vec<u8>> {
    static MADE: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let make = || {
        let name = |n: &str| scratch().join(n).into_os_string().into_string().expect("the target folder's path is UTF-8");
        let (raw, image) = (name("fuzz.raw"), name("fuzz.qcow2"));
        let data: Vec<u8> = (0..192 * 1024u32).map(|i| if i % 8192 < 4096 { (i / 7) as u8 } else { 0 }).collect();
        std::fs::write(&raw, data).expect("the target folder can be written");
        let options = "cluster_size=512,refcount_bits=16";
        qemu_img(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", options, &raw, &image])?;
        qemu_img(&["snapshot", "-q", "-c", "one", &image]);
        std::fs::read(image).ok()
    };
    MADE.get_or_init(make).as_ref()
}

/// The sound image with bytes changed as the input says, in a file of the target's own; `None` without qemu-img.
pub fn damaged(target: &str, input: &[u8], seen: &mut Behaviour) -> Option<PathBuf> {
    let mut image = sound()?.clone();
    let mut b = Bytes(input);
    while !b.is_empty() {
        // Header and tables are at the front.
        let (kind, at) = (b.u8(), usize::from(b.u16()));
        let at = if kind & 0x80 == 0 { at % 2048 } else { at * 4 % image.len().max(1) };
        match kind % 4 {
            0 => image.iter_mut().skip(at).take(1).for_each(|x| *x = b.u8()),
            1 => (0..8).zip(b.u64().to_be_bytes()).for_each(|(i, v)| image.iter_mut().skip(at + i).take(1).for_each(|x| *x = v)),
            2 => image.truncate(at.max(16)),
            _ => {
                let (from, n) = (usize::from(b.u16()) % image.len(), usize::from(b.u8()));
                let part: Vec<u8> = image[from..].iter().take(n).copied().collect();
                image.iter_mut().skip(at).zip(part).for_each(|(x, v)| *x = v);
            }
        }
        seen.saw((kind % 4, at / 64));
    }
    let path = scratch().join(format!("fuzz-{target}-{}.qcow2", std::process::id()));
    std::fs::write(&path, image).ok().map(|()| path)
}
