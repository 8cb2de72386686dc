//! The one way this program starts another, with just the descriptors that are meant for it, and no signal blocked; and how
//! children fare.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::SigSet;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, getpid, pidfd_open, waitid},
};

/// What becomes of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// It is killed as soon as the thread that started it ends, however that comes about.
    DiesWithUs,
    /// It goes on by itself, in a session of its own: no terminal's signals reach it.
    Independent,
}

/// Starts `command` without standard input. It inherits the descriptors `inherited`, under the numbers that they have
/// here, and none but those and what the command says of its standard output and error.
///
/// # Errors
/// Those of `fork(2)` and `execve(2)`.
pub fn spawn(command: &mut Command, inherited: &[BorrowedFd<'_>], bond: Bond) -> io::Result<Child> {
    let inherited: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let parent = getpid();
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec the closure makes system calls only. It allocates nothing, takes no lock, and
    // `inherited` was made before.
    unsafe {
        command.pre_exec(move || prepare(&inherited, bond, parent));
    }
    command.spawn()
}

/// What the child does before it executes its program.
fn prepare(inherited: &[RawFd], bond: Bond, parent: Pid) -> io::Result<()> {
    // Whoever started us may have left descriptors open: they are none of the child's business.
    // SAFETY: nothing is closed now; what is marked was not ours to pass on.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            libc::STDERR_FILENO + 1,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked != 0 {
        return Err(io::Error::last_os_error());
    }
    for &fd in inherited {
        // SAFETY: `spawn` was given these descriptors borrowed, so they are open in the child, too.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    match bond {
        // What we block it goes on blocking, until it takes signals in its own way: a Ctrl-C that was meant for all of us,
        // and came before the session, must find it then and not end it now.
        Bond::Independent => drop(rustix::process::setsid()?),
        Bond::DiesWithUs => {
            // What we take from descriptors of signals is blocked here, and would never reach it.
            SigSet::empty().thread_set_mask()?;
            let kill = Some(rustix::process::Signal::KILL);
            rustix::process::set_parent_process_death_signal(kill)?;
            // It may have died before it could have told us.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
    }
    Ok(())
}

/// Whether somebody has stopped the child (`SIGSTOP`), which then does nothing and hears nothing.
#[must_use]
pub fn is_stopped(child: Pid) -> bool {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(child), options);
    // An error means that it has been waited for.
    status.is_ok_and(|status| status.is_some_and(|status| status.stopped()))
}

/// Waits for the child's end, and says whether it came in time. It is not reaped.
///
/// # Errors
/// The host is out of descriptors.
pub fn ends_within(child: &Child, time: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    Ok(is_readable_within(pidfd.as_fd(), time))
}

/// Waits for a descriptor, and says whether it became readable in time.
pub fn is_readable_within(fd: BorrowedFd<'_>, time: Duration) -> bool {
    let deadline = Instant::now() + time;
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other == Ok(1),
        }
    }
}

/// Takes a descriptor that this process inherited under a number that its command line says.
///
/// # Errors
/// `EBADF` if there is none.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: a descriptor that is not open is an error of the first system call on it, which is the next line's.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and whoever started this program gave it away: nothing here has opened or owns it. It is
    // taken once, as the command line names each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn a_child_has_what_it_was_given_and_nothing_else() {
        let (given, _) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        // As a shell leaves them open.
        let (kept, _) = pipe_with(PipeFlags::empty()).unwrap();
        let mut command = Command::new("sh");
        let script = "[ -e /proc/self/fd/$1 ] && [ ! -e /proc/self/fd/$2 ]";
        let [given_number, kept_number] = [&given, &kept].map(|fd| fd.as_raw_fd().to_string());
        command.args(["-c", script, "sh", &given_number, &kept_number]);
        for bond in [Bond::DiesWithUs, Bond::Independent] {
            let mut child = spawn(&mut command, &[given.as_fd()], bond).unwrap();
            assert!(child.wait().unwrap().success());
        }
    }

    #[test]
    fn a_signal_that_is_early_waits_for_an_independent_child_to_take_it() {
        let mut blocked = SigSet::empty();
        blocked.add(nix::sys::signal::Signal::SIGINT);
        blocked.thread_block().unwrap();
        let script = "kill -INT $$; exit 7";
        let mut command = Command::new("sh");
        let mut child = spawn(command.args(["-c", script]), &[], Bond::Independent).unwrap();
        blocked.thread_unblock().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn a_child_hears_the_signals_that_we_do_not() {
        let mut blocked = SigSet::empty();
        blocked.add(nix::sys::signal::Signal::SIGTERM);
        blocked.thread_block().unwrap();
        let mut child = spawn(Command::new("sleep").arg("1000"), &[], Bond::DiesWithUs).unwrap();
        blocked.thread_unblock().unwrap();
        rustix::process::kill_process(Pid::from_child(&child), rustix::process::Signal::TERM)
            .unwrap();
        assert!(ends_within(&child, Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn a_child_that_is_stopped_is_told_from_one_that_runs_or_has_ended() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let signal = |signal| {
            rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        };
        let becomes = |expected: bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while is_stopped(Pid::from_child(&child)) != expected {
                assert!(Instant::now() < deadline, "is_stopped: {}", !expected);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        assert!(!is_stopped(Pid::from_child(&child)));
        signal(rustix::process::Signal::STOP);
        becomes(true);
        // Looking changes nothing.
        assert!(is_stopped(Pid::from_child(&child)));
        assert!(!ends_within(&child, Duration::ZERO).unwrap());
        signal(rustix::process::Signal::CONT);
        becomes(false);
        signal(rustix::process::Signal::STOP);
        signal(rustix::process::Signal::KILL);
        assert!(ends_within(&child, Duration::from_secs(60)).unwrap());
        assert!(!is_stopped(Pid::from_child(&child)));
        child.wait().unwrap();
        assert!(!is_stopped(Pid::from_child(&child)));
    }

    #[test]
    fn what_cannot_be_executed_is_an_error() {
        let error = spawn(&mut Command::new("/nonexistent"), &[], Bond::DiesWithUs);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
