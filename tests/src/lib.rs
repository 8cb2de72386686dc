//! Harness of the end-to-end tests: the `vmm` command that was built, as a user runs it, with real VMs.
//!
//! A test makes a [`Root`], runs commands in it and looks at what a user sees: exit codes, bytes, files. When the
//! root goes out of scope it checks that nothing is left of the test's containers; when the test has failed it
//! prints what their kernels said. Every wait has a deadline.

mod artifacts;
mod boot_logs;
mod command;
pub mod endurance;
mod failpoints;
mod finished;
mod kernel_file;
mod leftovers;
pub mod matrix;
mod noise;
mod root;
mod running;
mod skip;
mod slots;
mod small_disk;
mod terminal;
mod tools_image;
mod transcript;

pub use artifacts::{artifact, initfs, kernel_variant, second_kernel, vmm, vmm_with_failpoints};
pub use command::{Input, Vmm};
pub use failpoints::{Failpoint, Held};
pub use finished::Finished;
pub use kernel_file::kernel_file;
pub use leftovers::Process;
pub use noise::noise;
pub use root::Root;
pub use running::Running;
pub use rustix::process::Signal;
pub use skip::{installed, skipped};
pub use small_disk::{SmallDisk, can_mount};
pub use terminal::{Modes, Terminal};

use std::time::{Duration, Instant};

/// How long anything may take that takes a second or two on a machine with nothing else to do.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often something is looked at that does not announce itself.
const TICK: Duration = Duration::from_millis(10);

/// The accelerator under test: `VMM_TEST_ACCEL`, `tcg` if that is not set.
#[must_use]
pub fn accelerator() -> String {
    std::env::var("VMM_TEST_ACCEL").unwrap_or_else(|_| "tcg".to_owned())
}

/// When `deadline` has passed. On a slow machine that is later: `VMM_TEST_PATIENCE` times as late, once if that is not set.
fn end_of(deadline: Duration) -> Instant {
    let factor = std::env::var("VMM_TEST_PATIENCE").ok();
    let factor = factor.and_then(|factor| factor.parse::<u32>().ok());
    Instant::now() + deadline * factor.unwrap_or(1)
}

/// Looks at something every few milliseconds until `found` gives a value. `None` once `deadline` has passed.
pub fn wait_until<T>(deadline: Duration, mut found: impl FnMut() -> Option<T>) -> Option<T> {
    let end = end_of(deadline);
    loop {
        if let Some(value) = found() {
            return Some(value);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(TICK);
    }
}
