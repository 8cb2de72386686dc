//! The one way this program starts another: with just the descriptors that are meant for it.

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, getpid};

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
        Bond::Independent => drop(rustix::process::setsid()?),
        Bond::DiesWithUs => {
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
    fn what_cannot_be_executed_is_an_error() {
        let error = spawn(&mut Command::new("/nonexistent"), &[], Bond::DiesWithUs);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
