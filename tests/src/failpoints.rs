//! The phases of a run at which a test can hold the command: see `host-vmm/src/failpoint.rs`.

use std::{
    io::Read,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
};

use rustix::process::Pid;

use crate::{DEADLINE, wait_until};

/// The variable that names the folder of the sockets.
pub const VARIABLE: &str = "VMM_FAILPOINTS";

/// A phase at which the next process that reaches it is to be held.
pub struct Failpoint {
    path: PathBuf,
    listener: UnixListener,
}

/// A process that has reached the phase. It goes on when this is dropped.
#[must_use]
pub struct Held {
    /// The process.
    pub pid: Pid,
    _stream: UnixStream,
}

impl Failpoint {
    /// Holds the phase `name`, for whoever was told of the folder `sockets`.
    pub(crate) fn hold(sockets: &Path, name: &str) -> Self {
        std::fs::create_dir_all(sockets).expect("a folder for sockets");
        let path = sockets.join(name);
        let listener = UnixListener::bind(&path).expect("a socket");
        listener
            .set_nonblocking(true)
            .expect("a socket that does not block");
        Self { path, listener }
    }

    /// The process that has reached the phase, as soon as there is one. No other is held there.
    pub(crate) fn wait(&self) -> Option<Held> {
        let (mut stream, _) = wait_until(DEADLINE, || self.listener.accept().ok())?;
        stream
            .set_nonblocking(false)
            .expect("a connection that blocks");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a connection with a deadline");
        let mut text = String::new();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && byte != *b"\n" {
            text.push(char::from(byte[0]));
        }
        let pid = text.parse().ok().and_then(Pid::from_raw);
        Some(Held {
            pid: pid.expect("a process id"),
            _stream: stream,
        })
    }

    /// Whether somebody is waiting here.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

impl Drop for Failpoint {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
