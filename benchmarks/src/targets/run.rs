//! `vmm run --rm busybox true` on each accelerator, against the others, against what people have instead, and against the
//! floor: the same machine with a PID 1 that restarts it at once.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use end_to_end::{Root, installed};
use host_vmm::vm::Accelerator;

use super::ROUNDS;
use crate::{
    Kernel,
    guest::Program,
    machine::Machine,
    processes::{cpu_seconds, wait_for_all},
    sample::Sample,
    table::{Row, Target, Unit},
};

/// A sandbox of the host's own kernel, with nothing in it but what the default image is made of.
const SANDBOX: &str = "bwrap";
const SANDBOXED: [&str; 10] = [
    "--unshare-all",
    "--ro-bind",
    "/bin/busybox",
    "/bin/busybox",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "/bin/busybox",
    "true",
];

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let (um_floor, tcg_floor) = (
        floor(root, kernel, Accelerator::Um)?,
        floor(root, kernel, Accelerator::Tcg)?,
    );
    let bwrap = installed(SANDBOX);
    let mut runs = [(); 5].map(|()| Vec::new());
    // The first time, files come from the disk.
    for round in 0..=ROUNDS {
        let taken = [
            Taken::by(|| Ok(um_floor.run()?.0))?,
            Taken::by(|| run(root, kernel, Accelerator::Um))?,
            Taken::by(|| match bwrap {
                Ok(()) => sandboxed(),
                Err(_) => Ok(Duration::ZERO),
            })?,
            Taken::by(|| Ok(tcg_floor.run()?.0))?,
            Taken::by(|| run(root, kernel, Accelerator::Tcg))?,
        ];
        if round > 0 {
            runs.iter_mut()
                .zip(taken)
                .for_each(|(runs, taken)| runs.push(taken));
        }
    }
    let [um_floor, um, sandbox, tcg_floor, tcg] = runs;
    let beside = match bwrap {
        Ok(()) => Row::new(
            "bwrap busybox true",
            Target::None,
            Unit::Milliseconds,
            seconds(&sandbox),
        ),
        Err(reason) => Row::skipped("bwrap busybox true", &reason),
    };
    let row = Row::new;
    Ok(vec![
        row(
            "um: run --rm busybox true",
            Target::AtMost(60e-3),
            Unit::Milliseconds,
            seconds(&um),
        ),
        row(
            "  / the same under tcg",
            Target::AtMost(0.15),
            Unit::Ratio,
            ratio(&um, &tcg, Taken::seconds),
        ),
        row(
            "  / floor",
            Target::AtMost(5.0),
            Unit::Ratio,
            ratio(&um, &um_floor, Taken::seconds),
        ),
        row(
            "  / floor, by CPU time",
            Target::None,
            Unit::Ratio,
            ratio(&um, &um_floor, Taken::cpu_seconds),
        ),
        row(
            "um: floor, its machine alone",
            Target::None,
            Unit::Milliseconds,
            seconds(&um_floor),
        ),
        beside,
        row(
            "tcg: run --rm busybox true",
            Target::Below(1.0),
            Unit::Seconds,
            seconds(&tcg),
        ),
        row(
            "  / floor",
            Target::AtMost(1.4),
            Unit::Ratio,
            ratio(&tcg, &tcg_floor, Taken::seconds),
        ),
        row(
            "  / floor, by CPU time",
            Target::None,
            Unit::Ratio,
            ratio(&tcg, &tcg_floor, Taken::cpu_seconds),
        ),
        row(
            "tcg: floor, its machine alone",
            Target::None,
            Unit::Seconds,
            seconds(&tcg_floor),
        ),
    ])
}

fn floor(root: &Root, kernel: &Kernel, accelerator: Accelerator) -> Result<Machine> {
    let initfs = Program::Restart.initfs(&root.files())?;
    Machine::of_container(root, kernel, accelerator, &[], initfs)
}

/// One over the other, in each round.
fn ratio(these: &[Taken], those: &[Taken], part: fn(&Taken) -> f64) -> Sample {
    let pairs = these.iter().zip(those);
    Sample::of(pairs.map(|(this, that)| part(this) / part(that)).collect())
}

fn seconds(taken: &[Taken]) -> Sample {
    Sample::of(taken.iter().map(Taken::seconds).collect())
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

    fn seconds(&self) -> f64 {
        self.seconds
    }

    fn cpu_seconds(&self) -> f64 {
        self.cpu_seconds
    }
}

/// Until the command has ended. Its machine is taken down behind it.
fn run(root: &Root, kernel: &Kernel, accelerator: Accelerator) -> Result<Duration> {
    let words = kernel.run(root, accelerator).arg("--rm");
    time(words.args(["busybox", "true"]).into_command())
}

fn sandboxed() -> Result<Duration> {
    let mut command = Command::new(SANDBOX);
    command.args(SANDBOXED);
    time(command)
}

/// From the start of a command's process to its end, which has to be a good one.
fn time(mut command: Command) -> Result<Duration> {
    command.stdin(Stdio::null());
    let begin = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("Cannot start {}", command.get_program().display()))?;
    let time = begin.elapsed();
    ensure!(
        status.success(),
        "{} ended with {status}",
        command.get_program().display()
    );
    Ok(time)
}
