//! An end for all where a process has no namespace of processes: whoever it has started dies with it, and with us.
//!
//! The guard is a process of ours that leads a session. The confined process is born into that, and its filter lets neither
//! it nor what it starts leave it. So all of them are killed by one signal, which nobody can run away from: by us, when
//! the confined process has ended; by the guard, when we have.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, kill_current_process_group, kill_process_group,
        pidfd_open, pidfd_send_signal, setsid, waitpid,
    },
};

use super::namespaces::{clone, exit};

/// The guard of a confined process. Dropping it kills everything that the process has started, and the process.
#[derive(Debug)]
pub struct Guard {
    pid: Pid,
    pidfd: OwnedFd,
    /// The end of this pipe is how the guard learns of ours.
    _alive: OwnedFd,
}

impl Guard {
    /// Readable when somebody has killed it.
    pub fn gone(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It was not waited for, so that the number is nobody else's. There may be nobody left.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        while let Err(Errno::INTR) = waitpid(Some(self.pid), WaitOptions::empty()) {}
    }
}

/// Forks a process, which is a child of ours and under a guard, that runs `child` and ends with what that gives as exit
/// status. `child` must not allocate memory.
///
/// # Errors
/// There is no process to be had, or no session.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<(Pid, OwnedFd, Guard)> {
    let (answer, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ends, alive) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some((pid, pidfd)) = clone(libc::CLONE_PIDFD)? else {
        drop(alive);
        let made = guarded(child);
        let told = match &made {
            Ok(pid) => pid.as_raw_pid(),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EINVAL),
        };
        let _ = rustix::io::write(&tell, &told.to_le_bytes());
        match made {
            Ok(_) => watch(&ends),
            Err(_) => exit(1),
        }
    };
    drop(tell);
    let pidfd = pidfd.ok_or(io::ErrorKind::InvalidData)?;
    let guard = Guard {
        pid,
        pidfd,
        _alive: alive,
    };
    let mut told = [0; 4];
    let received = loop {
        match rustix::io::read(&answer, &mut told) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if received != told.len() {
        return Err(io::Error::other("the guard of a process ended"));
    }
    let told = i32::from_le_bytes(told);
    let Some(pid) = Pid::from_raw(told).filter(|_| told > 0) else {
        return Err(io::Error::from_raw_os_error(-told));
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok((pid, pidfd, guard)),
        Err(errno) => {
            drop(guard);
            while let Err(Errno::INTR) = waitpid(Some(pid), WaitOptions::empty()) {}
            Err(errno.into())
        }
    }
}

/// In the guard: makes the process, as a sibling in a session of the guard's.
fn guarded(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    setsid()?;
    match clone(libc::CLONE_PARENT)? {
        Some((pid, _)) => Ok(pid),
        None => exit(child()),
    }
}

/// In the guard: waits for the end of who forked it, and ends the session.
fn watch(ends: &OwnedFd) -> ! {
    // SAFETY: the set is ours, and made before it is used; nothing here uses any other descriptor any more.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        let ends = ends.as_raw_fd().unsigned_abs();
        if ends > 0 {
            libc::syscall(libc::SYS_close_range, 0_u32, ends - 1, 0_u32);
        }
        libc::syscall(libc::SYS_close_range, ends + 1, u32::MAX, 0_u32);
    }
    let mut byte = [0];
    while let Err(Errno::INTR) = rustix::io::read(ends, &mut byte) {}
    let _ = kill_current_process_group(Signal::KILL);
    exit(1)
}
