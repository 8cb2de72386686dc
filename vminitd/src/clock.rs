//! Clocks, in nanoseconds.

use rustix::{
    io,
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};

const NS_PER_S: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in ns.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock starts at zero.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let ns = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(NS_PER_S).saturating_add(ns)
}

/// Sets `CLOCK_REALTIME` to ns since the Unix epoch.
///
/// # Errors
/// Those of `clock_settime(2)`.
pub fn set_realtime(ns: u64) -> io::Result<()> {
    let part = |value: u64| i64::try_from(value).map_err(|_| io::Errno::INVAL);
    let time = Timespec {
        tv_sec: part(ns / NS_PER_S)?,
        tv_nsec: part(ns % NS_PER_S)?,
    };
    clock_settime(ClockId::Realtime, time)
}
