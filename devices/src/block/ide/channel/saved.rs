//! A channel's saved state: checked before anything changes, and gone on with.

use super::{CHUNK, CONTROL_NIEN, Channel, DEVICE_SECOND, DriveState, Memory, Phase, State};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
pub struct Saved {
    state: State,
    buffer: Vec<u8>,
    drives: [Option<DriveState>; 2],
    /// Bytes of each drive.
    sizes: [Option<u64>; 2],
}

impl Channel {
    pub fn save(&self) -> Saved {
        let sizes = [0, 1].map(|n| self.drives[n].as_ref().map(|d| d.geometry().bytes));
        let drives = [0, 1].map(|n| self.drives[n].as_ref().map(|d| d.state.clone()));
        Saved { state: self.state.clone(), buffer: self.buffer.lock().clone(), drives, sizes }
    }

    /// Why a saved state cannot be this channel's, if it cannot.
    pub fn check(&self, s: &Saved) -> Result<(), String> {
        for n in 0..2 {
            match (&self.drives[n], &s.drives[n], s.sizes[n]) {
                (None, None, None) => {}
                (Some(d), Some(state), Some(bytes)) if d.accepts(state) => {
                    let here = d.geometry().bytes;
                    if here != bytes {
                        return Err(format!("the drive has {here} bytes, and had {bytes}"));
                    }
                }
                _ => return Err("another drive".into()),
            }
        }
        let (len, st) = (s.buffer.len(), &s.state);
        let fits = match st.phase {
            Phase::In { pos, end } => pos < end && end <= len,
            Phase::Out { pos } | Phase::Packet { pos } => pos < len,
            Phase::Job => st.pending.is_some(),
            Phase::Idle | Phase::Dma => true,
        };
        let drive = self.drives[usize::from(st.device & DEVICE_SECOND != 0)].as_ref();
        let job = st.pending.as_ref().is_none_or(|(id, op)| {
            let known = drive.is_some_and(|d| op.fits(d.geometry().bytes) && !(op.writes() && d.geometry().read_only));
            known
                && (self.base..self.base + st.next_id).contains(id)
                && (st.transfer.dma || op.is_empty() || op.len() == len as u64)
        });
        let bounded = len as u64 <= 2 * CHUNK && st.transfer.block > 0 && st.next_id < u64::MAX / 4;
        let busy = st.phase == Phase::Idle || drive.is_some();
        if fits && job && bounded && busy { Ok(()) } else { Err("a transfer that is none".into()) }
    }

    /// Takes a state that has been checked, and goes on with its job.
    pub fn load(&mut self, s: Saved) {
        self.stop();
        self.state = s.state;
        self.buffer = Arc::new(Mutex::new(s.buffer));
        for (d, state) in self.drives.iter_mut().zip(s.drives) {
            if let (Some(d), Some(state)) = (d, state) {
                d.state = state;
            }
        }
        self.irq.set(self.state.irq && self.state.control & CONTROL_NIEN == 0);
        if let Some((id, op)) = self.state.pending.clone() {
            let memory = self.state.transfer.dma.then(|| Memory::Guest(self.master.clone()));
            self.send(id, op, memory);
        }
    }
}
