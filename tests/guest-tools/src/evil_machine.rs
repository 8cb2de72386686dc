//! `evil-machine`: a kernel that does to the machine it runs on what an attacker would who owns one: it is bound by no
//! driver, by nobody's idea of a register, and by no privilege but the machine's own.
//!
//! Words of its command line say what: `evil=NAME`, `seed=NUMBER` for what is left to chance, `count=NUMBER` for how much of
//! it. What it did it says on the serial port, and ends with a reset, if there is a way to end left.
//!
//! It is linked like all the others, with a standard library that it must not use: nothing is there that this would ask for.
//! What it has of it is the core.
#![no_main]
#![allow(
    clippy::cast_possible_truncation,
    reason = "a device gets as many bits of a number as it has"
)]

mod attacks;

use std::ffi::c_int;

/// For whoever starts it as a program.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    eprintln!("evil-machine is a kernel: vmm run --kernel");
    2
}
