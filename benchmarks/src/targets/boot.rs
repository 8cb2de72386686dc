//! From reset to PID 1, in instructions of an emulated machine; and what its kernel takes for what programs ask of it.

use anyhow::{Context, Result};
use end_to_end::Root;
use host_vmm::vm::Accelerator;

use crate::{
    Kernel,
    guest::{PROCESSES, Program, SYSTEM_CALLS},
    machine::Machine,
    sample::Sample,
    table::{Row, Target, Unit},
};

/// It differs by what comes from outside: how soon devices answer.
const ROUNDS: usize = 3;

pub fn measure(root: &Root, kernel: &Kernel) -> Result<Vec<Row>> {
    let small = Counted::sample(root, kernel, &["-m", "256m"])?;
    let usual = Counted::sample(root, kernel, &[])?;
    let (call, process) = (usual.each(|run| run.call), usual.each(|run| run.process));
    Ok(vec![
        Row::new(
            "reset to PID 1, 1 GiB",
            Target::AtMost(45e6),
            Unit::MegaInstructions,
            usual.each(|run| run.boot),
        ),
        Row::new(
            "reset to PID 1, 256 MiB",
            Target::None,
            Unit::MegaInstructions,
            small.each(|run| run.boot),
        ),
        Row::new(
            "system call, instructions",
            Target::None,
            Unit::Instructions,
            call,
        ),
        Row::new(
            "fork, exit and wait, instructions",
            Target::None,
            Unit::Instructions,
            process,
        ),
    ])
}

/// Instructions of one run.
struct Counted {
    boot: f64,
    call: f64,
    process: f64,
}

struct Runs(Vec<Counted>);

impl Counted {
    fn sample(root: &Root, kernel: &Kernel, flags: &[&str]) -> Result<Runs> {
        let initfs = Program::Count.initfs(&root.files())?;
        let machine = Machine::of_container(root, kernel, Accelerator::Tcg, flags, initfs)?
            .counting_instructions()?;
        (0..ROUNDS)
            .map(|_| Self::read(&machine.run()?.1))
            .collect::<Result<_>>()
            .map(Runs)
    }

    fn read(printed: &str) -> Result<Self> {
        let mut readings = printed.lines().filter_map(reading);
        let mut next = || {
            readings
                .next()
                .with_context(|| format!("Too few numbers in: {printed}"))
        };
        let (boot, calls, processes) = (next()?, next()?, next()?);
        Ok(Self {
            boot,
            call: (calls - boot) / SYSTEM_CALLS,
            process: (processes - calls) / PROCESSES,
        })
    }
}

impl Runs {
    fn each(&self, part: impl Fn(&Counted) -> f64) -> Sample {
        Sample::of(self.0.iter().map(part).collect())
    }
}

/// The time stamp counter in a line that says nothing else.
#[allow(clippy::cast_precision_loss)]
pub fn reading(line: &str) -> Option<f64> {
    let digits = line.trim();
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16).then_some(number as f64)
}
