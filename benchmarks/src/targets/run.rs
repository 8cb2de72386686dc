//! `vmm run --rm busybox true` against the floor: the same machine with a PID 1 that restarts it at once.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use end_to_end::Root;

use super::ROUNDS;
use crate::{
    Kernel,
    guest::Program,
    machine::Machine,
    processes::{cpu_seconds, wait_for_all},
    sample::Sample,
    table::{Row, Target, Unit},
};

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let floor = Machine::of_container(root, &[], kernel, Program::Restart)?;
    let (mut floors, mut runs) = (Vec::new(), Vec::new());
    // The first time, files come from the disk.
    for round in 0..=ROUNDS {
        let pair = (
            Taken::by(|| Ok(floor.run()?.0))?,
            Taken::by(|| run(root, kernel))?,
        );
        if round > 0 {
            floors.push(pair.0);
            runs.push(pair.1);
        }
    }
    let ratio = |part: fn(&Taken) -> f64| {
        let pairs = floors.iter().zip(&runs);
        Sample::of(pairs.map(|(floor, run)| part(run) / part(floor)).collect())
    };
    let seconds = |taken: &[Taken]| Sample::of(taken.iter().map(|taken| taken.seconds).collect());
    let row = Row::new;
    Ok(vec![
        row(
            "run --rm busybox true / floor",
            Target::AtMost(1.4),
            Unit::Ratio,
            ratio(|taken| taken.seconds),
        ),
        row(
            "  by CPU time",
            Target::None,
            Unit::Ratio,
            ratio(|taken| taken.cpu_seconds),
        ),
        row(
            "run --rm busybox true",
            Target::Below(1.0),
            Unit::Seconds,
            seconds(&runs),
        ),
        row(
            "floor: its machine alone",
            Target::None,
            Unit::Seconds,
            seconds(&floors),
        ),
    ])
}

/// What something takes.
struct Taken {
    /// Until its answer is there.
    seconds: f64,
    /// Of all its processes, until they have ended.
    cpu_seconds: f64,
}

impl Taken {
    fn by(run: impl Fn() -> Result<Duration>) -> Result<Self> {
        let before = cpu_seconds()?;
        let seconds = run()?.as_secs_f64();
        wait_for_all()?;
        Ok(Self {
            seconds,
            cpu_seconds: cpu_seconds()? - before,
        })
    }
}

/// Until the command has ended. Its machine is taken down behind it.
fn run(root: &Root, kernel: &Kernel) -> Result<Duration> {
    let words = root
        .run(["--rm"])
        .args(kernel.flags())
        .args(["busybox", "true"]);
    let mut command = words.into_command();
    command.stdin(Stdio::null());
    let begin = Instant::now();
    let status = command.status()?;
    let time = begin.elapsed();
    ensure!(status.success(), "vmm run ended with {status}");
    Ok(time)
}
