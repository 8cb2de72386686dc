//! The targets, each with how it is measured.

mod boot;
mod help;
mod idle;
mod inside;
mod memory;
mod parallel;
mod run;
mod sizes;
mod streams;
mod vsock;

pub use boot::reading;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use end_to_end::{Root, Running, Signal};

use crate::{
    Kernel,
    processes::{adopt_orphans, wait_for_all},
    table::{Row, table},
};

/// How often a time is taken.
const ROUNDS: usize = 15;

/// One measurement, for one or more lines of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Benchmark {
    /// A container's run against other accelerators' and its machine alone
    Run,
    /// The boot of an emulated machine's kernel, in instructions
    Boot,
    /// Many containers at once
    Parallel,
    /// What programs do inside, against the host itself
    Inside,
    /// A container's standard output and input
    Streams,
    /// The guest's socket to its host
    Vsock,
    /// Files
    Sizes,
    /// Memory and CPU time of a container that does nothing
    Idle,
    /// Memory of the guest, of its PID 1, and of vmm
    Memory,
    /// A command that starts nothing
    Help,
}

/// Measures what is named, or everything, and prints one table. A target that is missed is a line of it.
///
/// # Errors
/// Something could not be measured. All else is in the table.
pub fn show(names: &[Benchmark], kernel: &Kernel) -> Result<()> {
    adopt_orphans()?;
    let load_before = load()?;
    let chosen = |benchmark: &&Benchmark| names.is_empty() || names.contains(benchmark);
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for benchmark in Benchmark::value_variants().iter().filter(chosen) {
        eprintln!("Measuring: {benchmark:?}");
        match benchmark.measure(kernel) {
            Ok(more) => rows.extend(more),
            Err(error) => failures.push(format!("{benchmark:?} could not be measured: {error:#}")),
        }
    }
    print!("{}", table(&rows));
    println!(
        "\n{} CPUs; load {load_before} before and {} after, with what was measured in it",
        std::thread::available_parallelism()?,
        load()?
    );
    if !failures.is_empty() {
        bail!(failures.join("\n"));
    }
    Ok(())
}

/// How many processes have wanted a CPU in the last minute, and in the last five, on average.
fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("Cannot read /proc/loadavg")?;
    let averages: Vec<&str> = text.split_whitespace().take(2).collect();
    Ok(averages.join(", "))
}

impl Benchmark {
    fn measure(self, kernel: &Kernel) -> Result<Vec<Row>> {
        let root = Root::alone();
        let measure = match self {
            Self::Run => run::measure,
            Self::Boot => boot::measure,
            Self::Parallel => parallel::measure,
            Self::Inside => inside::measure,
            Self::Streams => streams::measure,
            Self::Vsock => vsock::measure,
            Self::Sizes => sizes::measure,
            Self::Idle => idle::measure,
            Self::Memory => memory::measure,
            Self::Help => help::measure,
        };
        measure(&root, kernel)
    }
}

/// Ends a container.
fn stop(run: Running) -> Result<()> {
    run.signal(Signal::KILL);
    let _ = run.finish();
    wait_for_all()
}
