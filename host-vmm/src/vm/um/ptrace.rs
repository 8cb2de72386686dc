//! Whether this host lets a process be traced (`ptrace(2)`), which is how the kernel takes its guest's system calls.

use std::io;

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, waitpid},
};

/// Tries it, with a process that does nothing else. Takes a fraction of a millisecond.
///
/// # Errors
/// Why not, as the host puts it.
pub fn probe() -> io::Result<()> {
    // SAFETY: the child makes two system calls and allocates nothing.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: as above; the arguments are not used, and the last call does not return.
            unsafe {
                let nothing = std::ptr::null_mut::<libc::c_void>();
                let refused = libc::ptrace(libc::PTRACE_TRACEME, 0, nothing, nothing) == -1;
                libc::_exit(if refused {
                    *libc::__errno_location()
                } else {
                    0
                })
            }
        }
        pid => Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?,
    };
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                return match status.exit_status() {
                    Some(0) => Ok(()),
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                    None => Err(io::Error::other("it was killed for trying")),
                };
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn tests_run_where_it_is_allowed() {
        super::probe().unwrap();
    }
}
