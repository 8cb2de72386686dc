//! The frequency of the host's time stamp counter.
//!
//! QEMU passes the host's counter through to an emulated guest, which has no good way to find its frequency: it would
//! measure it against an emulated timer, which fails on a busy host, and then be left with a clock of 4 ms ticks. So it is
//! told.

use std::arch::x86_64::_rdtsc;

use rustix::time::{ClockId, clock_gettime};

/// Least time between two readings in ns: each is off by some 20 ns, so this is good for 10 parts in a million.
const LEAST_NS: u64 = 4_000_000;

/// Attempts at a reading that nothing comes between.
const ATTEMPTS: u32 = 8;

/// The counter and the clock at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    tsc: u64,
    ns: u64,
}

impl Reading {
    /// Reads both.
    pub fn take() -> Self {
        let mut best = (u64::MAX, Self { tsc: 0, ns: 0 });
        for _ in 0..ATTEMPTS {
            let before = counter();
            #[expect(
                clippy::disallowed_methods,
                reason = "the monotonic clock, which is compared with another counter"
            )]
            let now = clock_gettime(ClockId::Monotonic);
            let took = counter().wrapping_sub(before);
            // The monotonic clock starts at zero.
            let [seconds, ns] = [now.tv_sec, now.tv_nsec].map(|part| part.unsigned_abs());
            if took < best.0 {
                let reading = Self {
                    tsc: before.wrapping_add(took / 2),
                    ns: seconds * 1_000_000_000 + ns,
                };
                best = (took, reading);
            }
        }
        best.1
    }

    /// The counter's frequency in kHz, from this reading and one of now. `None` if the counter is not a steady one.
    pub fn khz(self) -> Option<u64> {
        let mut now = Self::take();
        while now.ns.saturating_sub(self.ns) < LEAST_NS {
            // As a rule so much has been done in between that there is nothing to wait for.
            std::hint::spin_loop();
            now = Self::take();
        }
        let ticks = u128::from(now.tsc.checked_sub(self.tsc)?);
        let khz = ticks * 1_000_000 / u128::from(now.ns - self.ns);
        // Slower or quicker ones are no processors.
        u64::try_from(khz)
            .ok()
            .filter(|khz| (100_000..20_000_000).contains(khz))
    }
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; the kernel could forbid it, but does so to no process that
    // has not asked for it.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let [a, b] = [Reading::take().khz(), Reading::take().khz()].map(Option::unwrap_or_default);
        assert!(a > 0 && a.abs_diff(b) < a / 1000, "{a} and {b} kHz");
    }
}
