//! Clocks, in nanoseconds.

use nix::{
    errno::Errno,
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

const NS_PER_S: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in ns.
pub fn monotonic_ns() -> u64 {
    // Every kernel has this clock, and it starts at zero.
    #[expect(
        clippy::disallowed_methods,
        reason = "the monotonic clock, as a number for the host"
    )]
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let ns = u64::try_from(now.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(NS_PER_S).saturating_add(ns)
}

/// Sets `CLOCK_REALTIME` to ns since the Unix epoch.
///
/// # Errors
/// Those of `clock_settime(2)`.
pub fn set_realtime(ns: u64) -> Result<(), Errno> {
    let part = |value: u64| i64::try_from(value).map_err(|_| Errno::EINVAL);
    let time = TimeSpec::new(part(ns / NS_PER_S)?, part(ns % NS_PER_S)?);
    clock_settime(ClockId::CLOCK_REALTIME, time)
}
