//! Where the kernel's boot spends its instructions: its initcalls, and the gaps between what it says of itself.
//!
//! The kernel notes each initcall in its log (`initcall_debug`), with times. The machine counts instructions and takes 1 ns
//! for each, and the kernel is told so, so that its microseconds are thousands of instructions.

use anyhow::{Context, Result};
use end_to_end::Root;
use host_vmm::vm::Accelerator;

use crate::{Kernel, guest::Program, machine::Machine, targets::reading};

/// What the kernel is told: to note initcalls, to have room for that, and that its clock is one of 1 GHz.
const WORDS: &str = "initcall_debug log_buf_len=1M tsc_early_khz=1000000 lpj=1000000";

/// The least that is shown, in instructions.
const LEAST: f64 = 100e3;

/// Prints a profile.
///
/// # Errors
/// The machine cannot be run, or its log cannot be understood.
pub fn show(kernel: &Kernel) -> Result<()> {
    let root = Root::alone();
    let machine = |program: Program| {
        let initfs = program.initfs(&root.files())?;
        Machine::of_container(&root, kernel, Accelerator::Tcg, &[], initfs)?.counting_instructions()
    };
    let plain = machine(Program::Count)?.run()?.1;
    let plain = plain
        .lines()
        .find_map(reading)
        .context("PID 1 has not read its counter")?;
    let noted = machine(Program::Log)?.with_words(WORDS).run()?.1;
    print!("{}", Profile::read(&noted)?.text(plain));
    Ok(())
}

/// A part of the boot.
#[derive(Debug, PartialEq)]
struct Part {
    name: String,
    /// Without what it takes to note it.
    instructions: f64,
}

/// All parts of a boot.
#[derive(Debug)]
struct Profile {
    /// From reset until the kernel has a clock.
    before: f64,
    initcalls: Vec<Part>,
    /// From a line of the log to the next that is no part of an initcall.
    gaps: Vec<Part>,
    /// What one line of the log takes.
    line: f64,
    /// From reset to the end of the log, lines included.
    whole: f64,
}

/// A line of the log.
#[derive(Clone, Copy)]
struct Line<'a> {
    /// When it was said, in instructions since the kernel has a clock.
    at: f64,
    text: &'a str,
}

impl<'a> Line<'a> {
    /// `<LEVEL>[SECONDS] TEXT`
    fn read(line: &'a str) -> Option<Self> {
        let (seconds, text) = line
            .strip_prefix('<')?
            .split_once(">[")?
            .1
            .split_once("] ")?;
        let seconds: f64 = seconds.trim().parse().ok()?;
        Some(Self {
            at: seconds * 1e9,
            text: text.trim_end(),
        })
    }

    /// Its beginning, for people.
    fn short(self) -> &'a str {
        const CHARACTERS: usize = 48;
        let end = self.text.char_indices().nth(CHARACTERS);
        &self.text[..end.map_or(self.text.len(), |(index, _)| index)]
    }

    /// The function that is called next.
    fn calling(self) -> Option<&'a str> {
        self.text.strip_prefix("calling  ")?.split('+').next()
    }

    fn returned(self, function: &str) -> bool {
        let name = self
            .text
            .strip_prefix("initcall ")
            .and_then(|text| text.split('+').next());
        name == Some(function)
    }
}

impl Profile {
    /// Reads what [`Program::Log`] has printed.
    fn read(printed: &str) -> Result<Self> {
        let whole = printed
            .lines()
            .find_map(reading)
            .context("PID 1 has not read its counter")?;
        let lines: Vec<_> = printed.lines().filter_map(Line::read).collect();
        let end = lines
            .iter()
            .position(|line| line.text == "log")
            .context("PID 1's line is not in the log")?;
        let (mut initcalls, mut gaps) = (Vec::new(), Vec::new());
        let mut index = 0;
        while index < end {
            let line = lines[index];
            let end_of_call = line.calling().and_then(|function| {
                let later = lines[index..end]
                    .iter()
                    .position(|line| line.returned(function))?;
                Some((function, index + later))
            });
            let (next, name, parts) = match end_of_call {
                Some((function, next)) => (next, function.to_owned(), &mut initcalls),
                None => {
                    let name = format!("{} → {}", line.short(), lines[index + 1].short());
                    (index + 1, name, &mut gaps)
                }
            };
            parts.push(Part {
                name,
                instructions: lines[next].at - line.at,
            });
            index = next;
        }
        let line = least_usual(&initcalls);
        for part in initcalls.iter_mut().chain(&mut gaps) {
            part.instructions -= line;
        }
        Ok(Self {
            before: whole - lines[end].at,
            initcalls,
            gaps,
            line,
            whole,
        })
    }

    /// `plain` is what the boot takes without notes.
    fn text(mut self, plain: f64) -> String {
        let mut text = format!(
            "From reset to PID 1: {} million instructions, and {} with initcalls noted in the log.\n\
             A line of the log takes {:.0}, which is left out below.\n\n{}  before the kernel has a clock\n",
            mega(plain),
            mega(self.whole),
            self.line,
            mega(self.before)
        );
        text += &list("Initcalls", &mut self.initcalls);
        text += &list("Between two lines of the log", &mut self.gaps);
        text
    }
}

/// What the least parts take: nine of ten take more.
fn least_usual(parts: &[Part]) -> f64 {
    let mut sizes: Vec<f64> = parts.iter().map(|part| part.instructions).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.get(sizes.len() / 10).copied().unwrap_or(0.0)
}

/// The large ones, biggest first, and the sum of the rest.
fn list(title: &str, parts: &mut [Part]) -> String {
    parts.sort_by(|a, b| b.instructions.total_cmp(&a.instructions));
    let large = parts.partition_point(|part| part.instructions >= LEAST);
    let sum = |parts: &[Part]| parts.iter().map(|part| part.instructions).sum::<f64>();
    let mut text = format!("\n{title}: {} million\n", mega(sum(parts)));
    for part in &parts[..large] {
        text += &format!("{}  {}\n", mega(part.instructions), part.name);
    }
    let rest = &parts[large..];
    text + &format!("{}  {} others\n", mega(sum(rest)), rest.len())
}

fn mega(instructions: f64) -> String {
    format!("{:6.2}", instructions / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "0000000000000fa0\n\
        <5>[    0.000000] Linux\r\n\
        <6>[    0.000000] Memory\r\n\
        <7>[    0.000001] calling  a+0x0/0x10 @ 1\r\n\
        <6>[    0.000002] a speaks\r\n\
        <7>[    0.000003] initcall a+0x0/0x10 returned 0 after 0 usecs\r\n\
        <12>[    0.000003] log\r\n\
        <6>[    0.000009] later\r\n";

    #[test]
    fn a_log_is_initcalls_and_gaps() {
        let profile = Profile::read(LOG).unwrap();
        assert_eq!(profile.initcalls.len(), 1);
        assert_eq!(profile.initcalls[0].name, "a");
        assert_eq!(profile.line, 2000.0);
        assert_eq!(profile.before, 1000.0);
        let gaps: Vec<_> = profile.gaps.iter().map(|gap| gap.name.as_str()).collect();
        assert_eq!(gaps.len(), 3);
        assert_eq!(gaps[1], "Memory → calling  a+0x0/0x10 @ 1");
    }

    #[test]
    fn a_log_that_was_cut_is_an_error() {
        assert!(Profile::read("0000000000000fa0\n<5>[    0.000000] Linux\n").is_err());
        assert!(Profile::read("<12>[    0.000003] log\n").is_err());
    }
}
