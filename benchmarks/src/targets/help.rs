//! A command that starts no machine: from its start to its end.

use std::{process::Stdio, time::Instant};

use anyhow::{Result, ensure};
use end_to_end::Root;

use crate::{
    Kernel,
    sample::Sample,
    table::{Row, Target, Unit},
};

/// Each takes so little that there may be many.
const ROUNDS: usize = 101;

pub fn measure(root: &Root, _kernel: &Kernel) -> Result<Vec<Row>> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut command = root.vmm(["--help"]).into_command();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let begin = Instant::now();
        let status = command.status()?;
        times.push(begin.elapsed().as_secs_f64());
        ensure!(status.success(), "vmm --help ended with {status}");
    }
    Ok(vec![Row::new(
        "vmm --help",
        Target::AtMost(5e-3),
        Unit::Milliseconds,
        Sample::of(times),
    )])
}
