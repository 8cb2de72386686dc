//! What a container takes that does nothing: memory of all its processes, and their CPU time.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};
use end_to_end::{Root, Running};
use host_vmm::vm::Accelerator;
use rustix::process::Pid;

use super::stop;
use crate::{
    Kernel,
    host::{cpu_time, memory_file, share_of_its_own},
    table::{Row, Target, Unit},
};

const MIB: f64 = 1048576.0;

/// How long a container is let be before it is idle: the kernel writes what the start has changed after 30 s at the latest.
const SETTLED: Duration = Duration::from_secs(45);

/// How long it is watched.
const WATCHED: Duration = Duration::from_mins(1);

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let run = kernel
        .run(root, Accelerator::Um)
        .args(["--rm", "-m", "256m"]);
    let script = "echo ready; exec sleep 1000";
    let mut run = run.args(["busybox", "sh", "-c", script]).start();
    run.expect("ready\n");
    sleep(SETTLED);
    let memory = taken(&processes(&run))?;
    let before = time(&processes(&run))?;
    sleep(WATCHED);
    let after = time(&processes(&run))?;
    stop(run)?;
    Ok(vec![
        Row::once(
            "um: idle, 256 MiB: all processes' memory",
            Target::AtMost(24.0 * MIB),
            Unit::Mebibytes,
            memory,
        ),
        Row::once(
            "um: idle, ticks of CPU time in 60 s",
            Target::AtMost(0.0),
            Unit::Count,
            after.0 - before.0,
        ),
        Row::once(
            "  the same, counted exactly",
            Target::None,
            Unit::Milliseconds,
            after.1 - before.1,
        ),
    ])
}

/// The command, its supervisor, and their machine's.
fn processes(run: &Running) -> Vec<Pid> {
    let helpers = run.helpers().into_iter().map(|process| process.pid);
    helpers.chain([run.pid()]).collect()
}

/// The proportional share of memory of all of them, and what there is of the guest's memory file, whoever maps it, in
/// bytes.
fn taken(processes: &[Pid]) -> Result<f64> {
    let mut sum = 0.0;
    let mut file = None;
    for &process in processes {
        sum += share_of_its_own(process)?;
        file = file.or(Some(memory_file(process)?).filter(|bytes| *bytes > 0.0));
    }
    Ok(sum + file.context("No process has the guest's memory open")?)
}

/// CPU time of all of them: ticks, and seconds.
#[allow(clippy::cast_precision_loss)]
fn time(processes: &[Pid]) -> Result<(f64, f64)> {
    let mut sums = (0, 0);
    for &process in processes {
        let (ticks, nanoseconds) = cpu_time(process)?;
        sums = (sums.0 + ticks, sums.1 + nanoseconds);
    }
    Ok((sums.0 as f64, sums.1 as f64 / 1e9))
}
