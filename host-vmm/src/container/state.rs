//! How a container fares, as its supervisor writes it down.

use std::{io, path::Path};

use imagebuilder::atomic;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::StoreError;

/// What a supervisor knows of its container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How far it is.
    pub status: Status,
    /// The supervisor's process, for people: whether it lives is told by the container's lock.
    pub supervisor_pid: Option<u32>,
    /// What runs its machine, once that is known.
    pub accelerator: Option<String>,
    /// When its program was executed, in ns since the Unix epoch.
    pub started_ns: Option<u64>,
    /// When it ended.
    pub finished_ns: Option<u64>,
    /// The code that `run` ended with.
    pub exit_code: Option<u8>,
    /// The guest's kernel killed a process of it because memory had run out.
    pub oom_killed: bool,
    /// Why it could not be started, or ended in another way than by itself.
    pub error: Option<String>,
}

/// The part of a container's life that it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has never run.
    #[default]
    Created,
    /// Its program runs.
    Running,
    /// It has ended.
    Exited,
}

impl Status {
    /// As Docker calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

/// Whether a file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It belongs to a container that stays.
    Synced,
    /// It goes with its container's end.
    Fleeting,
}

/// Reads a JSON file; `None` if there is none.
///
/// # Errors
/// It cannot be read, or is not what it should be.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::disk("read", path)(source)),
    };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|source| StoreError::Damaged {
            path: path.to_owned(),
            source,
        })
}

/// Writes a JSON file, mode 0600: there may be secrets in an environment.
///
/// # Errors
/// It cannot be written; the old one is in place then.
pub fn write<T: Serialize>(
    path: &Path,
    value: &T,
    durability: Durability,
) -> Result<(), StoreError> {
    let failed = StoreError::disk("write", path);
    let bytes = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
    let write = || {
        let mut writer = atomic::Writer::create_with_mode(path, 0o600)?;
        io::Write::write_all(&mut writer, &bytes)?;
        match durability {
            Durability::Synced => writer.commit(),
            Durability::Fleeting => writer.commit_unsynced(),
        }
    };
    write().map_err(StoreError::disk("write", path))
}
