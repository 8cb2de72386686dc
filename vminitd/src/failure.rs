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

/// Most bytes of a text, as names may be of any length: a pipe takes a frame with it at once (`PIPE_BUF`).
const MAX_TEXT: usize = 3 << 10;

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        let mut text = failure.text;
        if text.len() > MAX_TEXT {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('…');
        }
        Self {
            stage: failure.stage,
            errno: failure.errno,
            text,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_fits_into_a_pipe() {
        let error = StartError::from(Failure::new(Stage::Execute, "ä".repeat(50_000)));
        assert!(error.text.ends_with("ä…"), "{}", error.text.len());
        assert!(agent_protocol::encode(&error).unwrap().len() < libc::PIPE_BUF);
        let short = StartError::from(Failure::new(Stage::Execute, "sh"));
        assert_eq!(short.text, "sh");
    }
}
