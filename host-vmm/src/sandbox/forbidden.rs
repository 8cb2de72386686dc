//! Forbidden system calls (`seccomp_unotify(2)`): whoever makes one is held in it, named, and killed.
//!
//! If we are no more, the host refuses such calls (`ENOSYS`), and the process dies with its parent anyway.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, OnceLock},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Signal, pidfd_send_signal},
};

use super::names;

/// `SECCOMP_IOCTL_NOTIF_RECV`, which is `_IOWR('!', 0, struct seccomp_notif)`.
const RECEIVE: usize = 3 << 30 | size_of::<libc::seccomp_notif>() << 16 | (b'!' as usize) << 8;

/// The forbidden call that a process was killed for, once it has made one.
#[derive(Clone, Debug, Default)]
pub struct Forbidden(Arc<OnceLock<i32>>);

impl Forbidden {
    /// What the call is called.
    #[must_use]
    pub fn call(&self) -> Option<String> {
        self.0.get().copied().map(names::name)
    }

    /// Kills the process of `pidfd` at the first call that `listener` tells of, in a thread which ends with the process.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn watch(listener: OwnedFd, pidfd: OwnedFd) -> io::Result<Self> {
        let forbidden = Self::default();
        let ours = forbidden.clone();
        std::thread::Builder::new()
            .name("forbidden calls".to_owned())
            .spawn(move || {
                if let Some(call) = wait(&listener, &pidfd) {
                    let _ = ours.0.set(call);
                    // Fails only if it has ended.
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                }
                // Until it has ended nobody may find that nobody listens.
                while let Err(rustix::io::Errno::INTR) =
                    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)
                {}
            })?;
        Ok(forbidden)
    }
}

/// Waits for the first forbidden call, or for the end of the process: `None`.
fn wait(listener: &OwnedFd, pidfd: &OwnedFd) -> Option<i32> {
    loop {
        let mut fds = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(pidfd, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
        let [told, ended] = fds.map(|fd| fd.revents());
        if told.contains(PollFlags::IN) {
            // Fails if who made the call was killed meanwhile.
            if let Some(call) = receive(listener) {
                return Some(call);
            }
        }
        if !ended.is_empty() || told.contains(PollFlags::HUP) {
            return None;
        }
    }
}

fn receive(listener: &OwnedFd) -> Option<i32> {
    // SAFETY: all fields are integers. The kernel wants them to be zero.
    let mut told: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a structure of this size, which is part of the request's number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            listener.as_raw_fd(),
            RECEIVE,
            &raw mut told,
        )
    };
    (result == 0).then_some(told.data.nr)
}
