//! What `vmm` costs on this machine, beside what it may cost; and where the kernel's boot spends its instructions.
//!
//! Nothing here is a test: a target that is missed is a line of the table. It runs `out/bin/vmm` as a user does, on real
//! machines. Times are taken in turn with what they are compared to, because a machine is never idle for long; where that
//! does not help, it counts instructions.

mod guest;
mod host;
mod machine;
mod processes;
mod profile;
mod sample;
mod table;
mod targets;
mod vsock_ports;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser};
use end_to_end::{Root, Vmm};
use host_vmm::vm::{Accelerator, kernel};
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
    /// Boot this kernel, on the accelerator that can
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Add to the kernel's command line
    #[arg(long, value_name = "TEXT")]
    cmdline_append: Option<String>,
}

impl Kernel {
    /// The absolute path of the one that an accelerator boots, if it is not the default: containers are run in another
    /// directory. A file that is no kernel is left to `vmm` to refuse.
    fn path(&self, accelerator: Accelerator) -> Option<PathBuf> {
        let file = self.kernel.as_ref()?;
        let fits = kernel::check(file).map_or(true, |entry| entry == accelerator.entry());
        fits.then(|| std::path::absolute(file).unwrap_or_else(|_| file.clone()))
    }

    /// `vmm run` on an accelerator, by name: what is measured is no matter of what is chosen where nothing is said.
    fn run(&self, root: &Root, accelerator: Accelerator) -> Vmm {
        let mut words: Vec<OsString> = ["run", "--accel", accelerator.name()]
            .map(OsString::from)
            .to_vec();
        if let Some(kernel) = self.path(accelerator) {
            words.extend(["--kernel".into(), kernel.into()]);
        }
        if let Some(more) = &self.cmdline_append {
            words.extend(["--cmdline-append".into(), more.into()]);
        }
        root.vmm(words)
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
