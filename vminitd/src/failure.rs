//! Why a container could not be started.

use std::{ffi::OsStr, fmt::Display, io, os::unix::ffi::OsStrExt};

use agent_protocol::{Stage, StartError};

/// A step of starting a container that failed. It becomes the frame that tells the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stage:?}: {text}: {}", io::Error::from_raw_os_error(*errno))]
pub struct Failure {
    /// What was being done.
    pub stage: Stage,
    /// The system call's error number, 0 if none failed.
    pub errno: i32,
    /// On what, for people.
    pub text: String,
}

impl Failure {
    /// A failure that no system call reported.
    pub fn new(stage: Stage, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            stage,
            errno: 0,
            text,
        }
    }
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        Self {
            stage: failure.stage,
            errno: failure.errno,
            text: failure.text,
        }
    }
}

/// Says what a system call was for.
pub trait During<T> {
    /// Turns an error into the [`Failure`] of `stage` on `text`, which is made a text only then.
    ///
    /// # Errors
    /// If it was one.
    fn during(self, stage: Stage, text: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, stage: Stage, text: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            stage,
            errno: error.into().raw_os_error().unwrap_or(0),
            text: text.to_string(),
        })
    }
}

/// A path as it is shown to people.
pub fn shown(bytes: &[u8]) -> impl Display {
    OsStr::from_bytes(bytes).display()
}
