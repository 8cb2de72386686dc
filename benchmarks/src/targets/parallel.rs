//! Many containers: twelve at once against twelve in a row, by the CPU time of all their processes, and two hundred through
//! a queue.

use std::{
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use end_to_end::Root;
use host_vmm::vm::Accelerator;

use crate::{
    Kernel,
    processes::{cpu_seconds, wait_for_all},
    sample::Sample,
    table::{Row, Target, Unit},
};

const CONTAINERS: u32 = 12;

/// How many come through the queue, and how many of them there are at a time.
const QUEUED: u32 = 200;
const WORKERS: u32 = 4;

/// Each is the mean of many already.
const ROUNDS: usize = 5;

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let mut queues = Vec::new();
    for _ in 0..ROUNDS {
        queues.push(queue(root, kernel, Accelerator::Um)?);
    }
    let mut rows = vec![Row::new(
        format!("um: {QUEUED} containers, {WORKERS} at a time"),
        Target::AtMost(8.0),
        Unit::Seconds,
        Sample::of(queues),
    )];
    for accelerator in [Accelerator::Um, Accelerator::Tcg] {
        rows.extend(crowd(root, kernel, accelerator)?);
    }
    Ok(rows)
}

/// Seconds until all of them have ended.
fn queue(root: &Root, kernel: &Kernel, accelerator: Accelerator) -> Result<f64> {
    let begin = Instant::now();
    let next = AtomicU32::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= QUEUED {
                return Ok(());
            }
            check(start(root, kernel, accelerator, number)?, number)?;
        }
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let end = |worker: std::thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|_| bail!("A worker panicked"))
        };
        workers.into_iter().map(end).collect()
    });
    let time = begin.elapsed();
    wait_for_all()?;
    results.into_iter().collect::<Result<()>>()?;
    Ok(time.as_secs_f64())
}

fn crowd(root: &Root, kernel: &Kernel, accelerator: Accelerator) -> Result<[Row; 3]> {
    let (mut rows, mut crowds) = (Vec::new(), Vec::new());
    let start = |number| start(root, kernel, accelerator, number);
    for _ in 0..ROUNDS {
        rows.push(cpu_time(|| {
            (0..CONTAINERS).try_for_each(|number| check(start(number)?, number))
        })?);
        crowds.push(cpu_time(|| {
            let children: Vec<_> = (0..CONTAINERS).map(start).collect();
            children
                .into_iter()
                .zip(0..)
                .try_for_each(|(child, number)| check(child?, number))
        })?);
    }
    let ratios = rows.iter().zip(&crowds).map(|(row, crowd)| crowd / row);
    let ratio = Sample::of(ratios.collect());
    let each = |times: Vec<f64>| {
        let each = |time| time / f64::from(CONTAINERS);
        Sample::of(times.into_iter().map(each).collect())
    };
    // Only an emulator has been held against this: what it translates it translates for each container again.
    let target = match accelerator {
        Accelerator::Tcg => Target::AtMost(1.3),
        _ => Target::None,
    };
    let name = accelerator.name();
    let row =
        |what, target, unit, sample| Row::new(format!("{name}: {what}"), target, unit, sample);
    Ok([
        row(
            "CPU time of 12 at once / in a row",
            target,
            Unit::Ratio,
            ratio,
        ),
        row(
            "CPU time of one in a row",
            Target::None,
            Unit::Seconds,
            each(rows),
        ),
        row(
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

fn start(root: &Root, kernel: &Kernel, accelerator: Accelerator, number: u32) -> Result<Child> {
    let script = format!("echo $(({number} * {number} + 1000))");
    let words = kernel.run(root, accelerator).arg("--rm");
    let mut command = words.args(["busybox", "sh", "-c", &script]).into_command();
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
