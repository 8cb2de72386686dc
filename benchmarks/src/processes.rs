//! Processes that others have started: whoever is left without a parent becomes our child.

use anyhow::Result;
use nix::{
    errno::Errno,
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
        wait::wait,
    },
};
use rustix::process::set_child_subreaper;

/// Makes this process the parent of every descendant that loses its own.
///
/// # Errors
/// That of `prctl(2)`.
pub fn adopt_orphans() -> Result<()> {
    Ok(set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Waits until there is no descendant any more. Nobody else may be waiting for one.
///
/// # Errors
/// That of `wait(2)`.
pub fn wait_for_all() -> Result<()> {
    loop {
        match wait() {
            Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// CPU time of all descendants that have been waited for, in seconds, by whomever.
///
/// # Errors
/// That of `getrusage(2)`.
pub fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds =
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    #[allow(clippy::cast_precision_loss)]
    Ok(microseconds as f64 / 1e6)
}
