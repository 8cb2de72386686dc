//! Signals for the container's main process.
//!
//! It is PID 1 of its namespace, and the kernel keeps from such a process every signal that it has not asked
//! for: a `SIGTERM` to a plain `sleep` would do nothing. A container whose process does not care about a
//! signal that ends any other process should end, too.

use std::io;

use rustix::process::Pid;

use crate::sys;

/// Largest signal number on x86-64.
const MAX_SIGNAL: u8 = 64;

/// What was done about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The process has it.
    Sent,
    /// The process would never have got it and is killed in its place.
    Killed,
}

/// Sends `signal` to the container's main process.
///
/// # Errors
/// `EINVAL` for no signal, `ESRCH` if the process has ended.
pub fn deliver(process: Pid, signal: u8) -> io::Result<Delivery> {
    let status = std::fs::read(format!("/proc/{}/status", process.as_raw_pid()));
    if status.is_ok_and(|status| ends_an_ordinary_process(&status, signal)) {
        sys::kill(process, libc::SIGKILL)?;
        return Ok(Delivery::Killed);
    }
    sys::kill(process, i32::from(signal))?;
    Ok(Delivery::Sent)
}

/// Whether `signal` would end a process with this `/proc/PID/status` if it were not PID 1: it neither handles,
/// ignores nor blocks it, and the default is to end.
fn ends_an_ordinary_process(status: &[u8], signal: u8) -> bool {
    let Some(bit) = signal.checked_sub(1).filter(|bit| *bit < MAX_SIGNAL) else {
        return false;
    };
    let cared_for = ["SigBlk:", "SigIgn:", "SigCgt:"]
        .into_iter()
        .any(|field| mask(status, field).is_none_or(|mask| mask >> bit & 1 == 1));
    !cared_for && ends_by_default(signal)
}

/// The mask behind `field`. `None` if it is not there.
fn mask(status: &[u8], field: &str) -> Option<u64> {
    let value = status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(field.as_bytes()))?;
    u64::from_str_radix(std::str::from_utf8(value).ok()?.trim(), 16).ok()
}

/// `signal(7)`: what is not here ends the process.
fn ends_by_default(signal: u8) -> bool {
    !matches!(
        i32::from(signal),
        libc::SIGCHLD
            | libc::SIGCONT
            | libc::SIGSTOP
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
            | libc::SIGURG
            | libc::SIGWINCH
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(blocked: u64, ignored: u64, caught: u64) -> Vec<u8> {
        format!(
            "Name:\tSigCgt: ffff\nSigQ:\t0/100\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n\
             SigCgt:\t{caught:016x}\nCapInh:\t0\n"
        )
        .into_bytes()
    }

    fn ends(status: &[u8], signal: i32) -> bool {
        ends_an_ordinary_process(status, u8::try_from(signal).unwrap())
    }

    #[test]
    fn signals_nobody_cares_for_end_the_process() {
        let careless = status(0, 0, 0);
        for signal in [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGKILL,
            libc::SIGUSR1,
            34,
            64,
        ] {
            assert!(ends(&careless, signal), "{signal}");
        }
        for signal in [
            libc::SIGCHLD,
            libc::SIGWINCH,
            libc::SIGCONT,
            libc::SIGTSTP,
            0,
            65,
        ] {
            assert!(!ends(&careless, signal), "{signal}");
        }
    }

    #[test]
    fn handled_ignored_and_blocked_signals_are_left_to_the_process() {
        let term = 1 << (libc::SIGTERM - 1);
        for status in [status(term, 0, 0), status(0, term, 0), status(0, 0, term)] {
            assert!(!ends(&status, libc::SIGTERM));
            assert!(ends(&status, libc::SIGINT));
        }
        let last = 1 << 63;
        assert!(!ends(&status(0, 0, last), 64));
    }

    #[test]
    fn what_cannot_be_understood_is_left_to_the_process() {
        assert!(!ends(b"", libc::SIGTERM));
        assert!(!ends(
            b"SigBlk:\tx\nSigIgn:\t0\nSigCgt:\t0\n",
            libc::SIGTERM
        ));
    }
}
