//! How quickly bytes come out of a container and get into one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use end_to_end::{Root, Vmm};
use host_vmm::vm::Accelerator;

use super::ROUNDS;
use crate::{
    Kernel,
    processes::wait_for_all,
    sample::Sample,
    table::{Row, Target, Unit},
};

/// Bytes that pass, as many blocks as `dd` is told.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 4096;
const BYTES: usize = BLOCK * BLOCKS;

const TARGET: Target = Target::AtLeast(150e6);

/// In turn, as all that is compared.
const ACCELERATORS: [Accelerator; 2] = [Accelerator::Um, Accelerator::Tcg];

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let mut rates = ACCELERATORS.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for (accelerator, (out, into)) in ACCELERATORS.into_iter().zip(&mut rates) {
            let start = |flags: &[&str], script: &str| {
                command(kernel.run(root, accelerator), flags, script)
            };
            out.push(rate_out(start)?);
            into.push(rate_in(start)?);
        }
    }
    let rows = ACCELERATORS.into_iter().zip(rates);
    let rows = rows.flat_map(|(accelerator, (out, into))| {
        [("output", out), ("input", into)].map(|(what, rates)| {
            let what = format!("{}: standard {what}", accelerator.name());
            Row::new(what, TARGET, Unit::Rate, Sample::of(rates))
        })
    });
    Ok(rows.collect())
}

/// Bytes in a second, from the first that arrives to the last.
fn rate_out(start: impl Fn(&[&str], &str) -> Command) -> Result<f64> {
    let script = format!("exec dd if=/dev/zero bs={BLOCK} count={BLOCKS} 2>/dev/null");
    let mut child = start(&[], &script).stdin(Stdio::null()).spawn()?;
    let mut output = child.stdout.take().context("There is no pipe")?;
    let mut buffer = vec![0; 1 << 20];
    let first = output.read(&mut buffer)?;
    let (begin, mut count) = (Instant::now(), 0);
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            more => count += more,
        }
    }
    let time = begin.elapsed();
    finish(child)?;
    ensure!(
        first + count == BYTES,
        "{} bytes of {BYTES} came out",
        first + count
    );
    Ok(rate(count, time.as_secs_f64()))
}

/// Bytes in a second, from the first that is sent until the container has counted all.
fn rate_in(start: impl Fn(&[&str], &str) -> Command) -> Result<f64> {
    let script = format!("echo ready; exec dd of=/dev/null bs={BLOCK} iflag=fullblock 2>&1");
    let mut child = start(&["-i"], &script).stdin(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("There is no pipe")?;
    let mut output = BufReader::new(child.stdout.take().context("There is no pipe")?);
    output.read_line(&mut String::new())?;
    let block = vec![0; BLOCK];
    let begin = Instant::now();
    for _ in 0..BLOCKS {
        input.write_all(&block)?;
    }
    drop(input);
    let mut report = String::new();
    output.read_to_string(&mut report)?;
    let time = begin.elapsed();
    finish(child)?;
    ensure!(
        report.contains(&format!("{BLOCKS}+0 records in")),
        "{BLOCKS} blocks went in, and dd says: {report}"
    );
    Ok(rate(BYTES, time.as_secs_f64()))
}

#[allow(clippy::cast_precision_loss)]
fn rate(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds
}

fn command(run: Vmm, flags: &[&str], script: &str) -> Command {
    let words = run.arg("--rm").args(flags);
    let mut command = words.args(["busybox", "sh", "-c", script]).into_command();
    command.stdout(Stdio::piped());
    command
}

fn finish(mut child: Child) -> Result<()> {
    let status = child.wait()?;
    ensure!(status.success(), "vmm run ended with {status}");
    wait_for_all()
}
