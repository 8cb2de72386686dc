//! PID 1 of every VM.
fn main() {}
