//! `calls`: what the calls take that a program makes most, in nanoseconds each, measured by whoever makes them.

use std::{
    hint::black_box,
    time::{Instant, SystemTime},
};

/// Enough for each to take milliseconds, and few enough where each takes ten microseconds.
const CALLS: u32 = 20_000;

fn main() {
    // Asks the kernel each time: the C library does not remember it.
    print("getppid", std::os::unix::process::parent_id);
    #[expect(
        clippy::disallowed_methods,
        reason = "nobody waits: what reading it takes is measured"
    )]
    let now = SystemTime::now;
    print("clock_gettime", now);
}

fn print<T>(name: &str, call: impl Fn() -> T) {
    let begin = Instant::now();
    for _ in 0..CALLS {
        black_box(call());
    }
    println!("{name} {}", begin.elapsed().as_nanos() / u128::from(CALLS));
}
