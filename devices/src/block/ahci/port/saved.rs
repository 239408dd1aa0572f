//! A port's saved state: checked before anything changes, and gone on with.

use super::{DriveState, Pending, Port, SLOTS, State};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub struct Saved {
    state: State,
    drive: Option<(DriveState, u64)>,
}

impl Port {
    pub fn save(&self) -> Saved {
        let drive = self.drive.as_ref().map(|d| (d.state.clone(), d.geometry().bytes));
        Saved { state: self.state.clone(), drive }
    }

    /// Why a saved state cannot be this port's, if it cannot.
    pub fn check(&self, s: &Saved) -> Result<(), String> {
        match (&self.drive, &s.drive) {
            (None, None) => {}
            (Some(d), Some((state, bytes))) if d.accepts(state) => {
                let here = d.geometry().bytes;
                if here != *bytes {
                    return Err(format!("the drive has {here} bytes, and had {bytes}"));
                }
            }
            _ => return Err("another drive".into()),
        }
        let good = |(id, p): (&u64, &Pending)| {
            let fits =
                self.drive.as_ref().is_some_and(|d| p.op.fits(d.geometry().bytes) && !(p.op.writes() && d.geometry().read_only));
            fits && p.slot < SLOTS && id % u64::from(SLOTS) == self.number && id / u64::from(SLOTS) < s.state.next_id
        };
        if s.state.next_id > u64::MAX / 256 || !s.state.pending.iter().all(good) || s.state.pending.len() > SLOTS as usize {
            return Err("a command under way is none".into());
        }
        Ok(())
    }

    /// Takes a state that has been checked, and goes on with its jobs.
    pub fn load(&mut self, s: Saved) {
        self.stop();
        self.state = s.state;
        if let (Some(d), Some((state, _))) = (&mut self.drive, s.drive) {
            d.state = state;
        }
        self.raised = false;
        self.state.pending.clone().into_iter().for_each(|(id, p)| self.send(id, p.op));
    }
}
