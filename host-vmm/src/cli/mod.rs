//! The command line: one file for each command, from flags to a request and from an answer to text.

mod artifacts;
mod completion;
mod image;
mod log;
mod output;
mod ps;
mod rm;
mod run;
mod suggest;
mod supervise;
mod system;
mod usage;
mod values;
mod verify;
mod version;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{container::timeline::now_ns, paths::Paths};

/// Runs every container in a virtual machine of its own, with a kernel of its own.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, propagate_version = false, max_term_width = 100)]
#[command(after_help = "Examples:\n  \
    vmm run --rm busybox echo hello\n  \
    vmm run -it --rm busybox sh\n  \
    vmm image load -i image.tar\n  \
    vmm ps -a\n\n\
    'vmm COMMAND --help' says more about a command.")]
pub struct Arguments {
    /// Keep images and containers in this directory
    #[arg(long, value_name = "DIR", help_heading = "Global options")]
    root: Option<PathBuf>,
    /// Tell the story of what happens on standard error (as --log-level debug)
    #[arg(long, help_heading = "Global options")]
    debug: bool,
    /// Show messages of this importance and above: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", help_heading = "Global options")]
    log_level: Option<tracing::Level>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new container
    Run(Box<run::Run>),
    /// List containers
    Ps(ps::Ps),
    /// Remove containers
    Rm(rm::Rm),
    /// Manage images
    Image(image::Image),
    /// Show what this program finds on this machine
    System(system::System),
    /// Show the version
    Version(version::Version),
    /// Print what makes a shell complete commands, flags and names
    Completion(completion::Completion),
    /// Print what could come next (asked for by shells)
    #[command(hide = true)]
    Complete(completion::Complete),
    /// Own a container's machine (started by other commands)
    #[command(hide = true)]
    Supervise(supervise::Supervise),
}

/// What every command may need.
struct Environment {
    paths: Paths,
    /// The level of the log, if one was asked for.
    log_level: Option<tracing::Level>,
    /// When this command began, in ns of `CLOCK_MONOTONIC`.
    started_ns: u64,
}

impl Environment {
    /// The same with other paths.
    fn at(&self, paths: Paths) -> Self {
        Self { paths, ..*self }
    }
}

/// Does what the command line asks for.
///
/// # Errors
/// What went wrong, for the user.
pub fn execute() -> Result<ExitCode> {
    let started_ns = now_ns();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage::show(error),
    };
    let log_level = match arguments.debug {
        true => Some(tracing::Level::DEBUG),
        false => arguments.log_level,
    };
    // The times of a supervisor are those of the command that started it.
    let began_ns = match &arguments.command {
        Command::Supervise(command) => command.began_ns(),
        _ => started_ns,
    };
    log::start(log_level, began_ns);
    let environment = Environment {
        paths: Paths::find(arguments.root.as_deref())?,
        log_level,
        started_ns,
    };
    if !matches!(
        arguments.command,
        Command::Version(_) | Command::Completion(_)
    ) {
        environment.paths.check_owners()?;
    }
    match arguments.command {
        Command::Run(command) => command.execute(&environment),
        Command::Ps(command) => command.execute(&environment),
        Command::Rm(command) => command.execute(&environment),
        Command::Image(command) => command.execute(&environment),
        Command::System(command) => command.execute(&environment),
        Command::Version(command) => command.execute(&environment),
        Command::Completion(command) => command.execute(),
        Command::Complete(command) => command.execute(&environment),
        Command::Supervise(command) => command.execute(&environment),
    }
}

/// Shows `text`. Nobody being left to read it is no error.
fn print(text: &str) -> Result<()> {
    match std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("Cannot write to standard output"),
    }
}
