//! The frequency of this machine's time stamp counter.
//!
//! QEMU passes the counter through to an emulated machine, which cannot measure it well: its timers are emulated, too.

use std::{
    arch::x86_64::_rdtsc,
    time::{Duration, Instant},
};

/// How long it is measured: readings are off by less than a microsecond.
const TIME: Duration = Duration::from_millis(20);

/// It, in kHz.
pub fn khz() -> u128 {
    let (start, since) = (counter(), Instant::now());
    std::thread::sleep(TIME);
    let (end, passed) = (counter(), since.elapsed());
    u128::from(end.wrapping_sub(start)) * 1_000_000 / passed.as_nanos()
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and this process has not asked to be forbidden it.
    unsafe { _rdtsc() }
}
