//! Saved state: one named, versioned section per device, holding a plain data struct as JSON.

use serde::{Serialize, de::DeserializeOwned};

/// Why a section was refused; the message is the text.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("section {name}: version {found} is newer than {known}, the newest this program knows")]
    Newer { name: String, found: u32, known: u32 },
    #[error("section {name}: {reason}")]
    Bad { name: String, reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Section {
    pub name: String,
    pub version: u32,
    pub data: serde_json::Value,
}

impl Section {
    /// Packs `state`. `version` grows when a field changes its meaning; added fields need `#[serde(default)]` instead.
    pub fn pack<T: Serialize>(name: &str, version: u32, state: &T) -> Self {
        let data = serde_json::to_value(state).expect("device states are plain data with string keys");
        Self { name: name.into(), version, data }
    }

    /// Unpacks a state whose newest known version is `known`.
    pub fn unpack<T: DeserializeOwned>(&self, known: u32) -> Result<T, LoadError> {
        if self.version > known {
            return Err(LoadError::Newer { name: self.name.clone(), found: self.version, known });
        }
        serde_json::from_value(self.data.clone()).map_err(|e| self.bad(e))
    }

    /// An error about this section's content (a value out of range, say).
    pub fn bad(&self, reason: impl ToString) -> LoadError {
        LoadError::Bad { name: self.name.clone(), reason: reason.to_string() }
    }
}
