//! What `vmm` costs on this machine, beside what it may cost; and where the kernel's boot spends its instructions.
//!
//! Nothing here is a test: a target that is missed is a line of the table. It runs `out/bin/vmm` as a user does, on real
//! machines. Times are taken in turn with what they are compared to, because a machine is never idle for long; where that
//! does not help, it counts instructions.

mod guest;
mod machine;
mod processes;
mod profile;
mod sample;
mod table;
mod targets;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser};
use targets::Benchmark;

/// Measures what vmm costs.
#[derive(Parser)]
enum Command {
    /// Every target beside its figure
    Targets {
        /// Only these
        names: Vec<Benchmark>,
        #[command(flatten)]
        kernel: Kernel,
    },
    /// Where the kernel's boot spends its instructions
    KernelProfile {
        #[command(flatten)]
        kernel: Kernel,
    },
}

/// What is booted, where it is not the default.
#[derive(Args, Clone, Debug, Default)]
struct Kernel {
    /// Boot this kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Add to the kernel's command line
    #[arg(long, value_name = "TEXT")]
    cmdline_append: Option<String>,
}

impl Kernel {
    /// Its absolute path: containers are run in another directory.
    fn path(&self) -> Option<PathBuf> {
        let kernel = self.kernel.as_ref()?;
        Some(std::path::absolute(kernel).unwrap_or_else(|_| kernel.clone()))
    }

    /// As `vmm run` takes it.
    fn flags(&self) -> Vec<OsString> {
        let mut flags = Vec::new();
        if let Some(kernel) = self.path() {
            flags.extend(["--kernel".into(), kernel.into()]);
        }
        if let Some(words) = &self.cmdline_append {
            flags.extend(["--cmdline-append".into(), words.into()]);
        }
        flags
    }
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Targets { names, kernel } => targets::show(&names, &kernel),
        Command::KernelProfile { kernel } => profile::show(&kernel),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benchmarks: {error:#}");
            ExitCode::FAILURE
        }
    }
}
