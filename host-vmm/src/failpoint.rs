//! Failpoints: a test holds this program at a named phase of a run, and does to it there what bad luck would do.
//!
//! They exist with the feature `failpoints` alone, which no release is built with: there, [`reach`] is nothing, and
//! `scripts/lint` looks into the program for it. With the feature, nothing happens as long as `VMM_FAILPOINTS` is not set.
//! It names a directory of sockets, one for each phase to be held at. Whoever reaches a phase connects to its socket,
//! says its process id, and goes on when that connection is closed.

/// The phase called `name` is reached.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_name: &str) {}

/// The phase called `name` is reached: waits here if a test wants that.
#[cfg(feature = "failpoints")]
pub fn reach(name: &str) {
    if let Some(sockets) = std::env::var_os("VMM_FAILPOINTS") {
        held::at(&std::path::Path::new(&sockets).join(name));
    }
}

/// What a machine's process is to try at the place called `name`, which it may not: a system call. Only where a test wants
/// that, by `VMM_MISBEHAVE=NAME`, which whoever starts the process hands down as its last argument: its environment is empty.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn misbehave(_name: &str, _call: libc::c_long) {}

/// The same, where a test may want it.
#[cfg(feature = "failpoints")]
pub fn misbehave(name: &str, call: libc::c_long) {
    if std::env::args_os()
        .nth(3)
        .is_some_and(|wanted| wanted == name)
    {
        // SAFETY: without arguments none of the calls that are tried comes to anything, if it is made at all.
        unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) };
    }
}

/// The last argument of a machine's process.
#[must_use]
pub fn misbehaviour() -> Option<std::ffi::CString> {
    #[cfg(feature = "failpoints")]
    {
        let name = std::env::var("VMM_MISBEHAVE").ok()?;
        std::ffi::CString::new(name).ok()
    }
    #[cfg(not(feature = "failpoints"))]
    None
}

#[cfg(feature = "failpoints")]
mod held {
    use std::{
        io::{self, Read, Write},
        os::unix::net::UnixStream,
        path::Path,
    };

    /// Waits until whoever listens at `socket` lets us go.
    pub fn at(socket: &Path) {
        // Nobody wants us to wait here.
        let Ok(mut stream) = UnixStream::connect(socket) else {
            return;
        };
        let _ = writeln!(stream, "{}", std::process::id());
        loop {
            match stream.read(&mut [0; 16]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}
