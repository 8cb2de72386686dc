//! Twelve containers at once against twelve in a row, by the CPU time of all their processes.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use end_to_end::Root;

use crate::{
    Kernel,
    processes::{cpu_seconds, wait_for_all},
    sample::Sample,
    table::{Row, Target, Unit},
};

const CONTAINERS: u32 = 12;

/// Each is the mean of twelve already.
const ROUNDS: usize = 5;

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let (mut rows, mut crowds) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        rows.push(cpu_time(|| {
            (0..CONTAINERS).try_for_each(|number| check(start(root, kernel, number)?, number))
        })?);
        crowds.push(cpu_time(|| {
            let children: Vec<_> = (0..CONTAINERS)
                .map(|number| start(root, kernel, number))
                .collect();
            children
                .into_iter()
                .zip(0..)
                .try_for_each(|(child, number)| check(child?, number))
        })?);
    }
    let ratios = rows.iter().zip(&crowds).map(|(row, crowd)| crowd / row);
    let each = |times: Vec<f64>| {
        Sample::of(
            times
                .iter()
                .map(|time| time / f64::from(CONTAINERS))
                .collect(),
        )
    };
    let ratio = Sample::of(ratios.collect());
    Ok(vec![
        Row::new(
            "CPU time of 12 at once / in a row",
            Target::AtMost(1.3),
            Unit::Ratio,
            ratio,
        ),
        Row::new(
            "CPU time of one in a row",
            Target::None,
            Unit::Seconds,
            each(rows),
        ),
        Row::new(
            "CPU time of one at once",
            Target::None,
            Unit::Seconds,
            each(crowds),
        ),
    ])
}

/// CPU seconds of all processes that come of `runs`.
fn cpu_time(runs: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = cpu_seconds()?;
    runs()?;
    wait_for_all()?;
    Ok(cpu_seconds()? - before)
}

fn start(root: &Root, kernel: &Kernel, number: u32) -> Result<Child> {
    let script = format!("echo $(({number} * {number} + 1000))");
    let words = root
        .run(["--rm"])
        .args(kernel.flags())
        .args(["busybox", "sh", "-c", &script]);
    let mut command = words.into_command();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().context("Cannot start vmm")
}

/// Waits for its end and looks at what it printed.
fn check(child: Child, number: u32) -> Result<()> {
    let output = child.wait_with_output()?;
    let (text, expected) = (
        String::from_utf8_lossy(&output.stdout),
        number * number + 1000,
    );
    ensure!(
        output.status.success() && text == format!("{expected}\n"),
        "A container ended with {} and printed {text:?}, which should be {expected}",
        output.status
    );
    Ok(())
}
