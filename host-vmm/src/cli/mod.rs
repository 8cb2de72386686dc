//! The command line: one file for each command, from flags to a request and from an answer to text.

mod artifacts;
mod completion;
pub mod config;
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

use crate::{container::timeline::now_ns, paths::Paths, root};
use config::Config;

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
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    root: Option<PathBuf>,
    /// Tell the story of what happens on standard error (as --log-level debug)
    #[arg(long, global = true, help_heading = "Global options")]
    debug: bool,
    /// Show messages as far as error, warn, info, debug or trace
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        help_heading = "Global options"
    )]
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
    config: Config,
    /// The level of the log, if one was asked for.
    log_level: Option<tracing::Level>,
    /// When this command began, in ns of `CLOCK_MONOTONIC`.
    started_ns: u64,
}

impl Environment {
    /// The same with other paths.
    fn at(&self, paths: Paths) -> Self {
        let config = self.config.clone();
        Self {
            paths,
            config,
            ..*self
        }
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
    let config = match arguments.command {
        // They have no use for one, or were told all of it.
        Command::Version(_) | Command::Completion(_) | Command::Supervise(_) => Config::default(),
        _ => Config::read()?,
    };
    let environment = Environment {
        paths: Paths::find(arguments.root.as_deref(), config.root.as_deref())?,
        config,
        log_level,
        started_ns,
    };
    if !matches!(
        arguments.command,
        Command::Version(_) | Command::Completion(_)
    ) {
        environment.paths.check_owners()?;
        root::check(environment.paths.root())?;
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The commands that people use and that have no commands of their own, by their full names.
    fn leaves(command: &clap::Command, found: &mut Vec<(String, clap::Command)>, names: &str) {
        let name = format!("{names} {}", command.get_name());
        let name = name.trim();
        let commands = command.get_subcommands();
        let commands = commands.filter(|one| !one.is_hide_set() && one.get_name() != "help");
        let before = found.len();
        for command in commands {
            leaves(command, found, name);
        }
        if found.len() == before {
            found.push((name.to_owned(), command.clone()));
        }
    }

    fn all() -> Vec<(String, clap::Command)> {
        let mut commands = Arguments::command();
        commands.build();
        let mut found = Vec::new();
        leaves(&commands, &mut found, "");
        assert!(found.len() >= 8, "{} commands", found.len());
        found.push(("vmm".to_owned(), commands));
        found
    }

    /// The words of a command line, as a shell that knows of quotes and nothing else has them.
    fn words(line: &str) -> Vec<String> {
        let quoted = line.split('\'').enumerate();
        quoted
            .flat_map(|(at, part)| match at % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            })
            .collect()
    }

    #[test]
    fn every_command_has_examples_that_are_right() {
        for (name, mut command) in all() {
            let help = command.render_help().to_string();
            let examples = help
                .split_once("\nExamples:\n")
                .map(|(_, examples)| examples);
            let examples = examples.unwrap_or_else(|| panic!("{name} has no examples:\n{help}"));
            let lines = examples.lines().take_while(|line| !line.is_empty());
            for line in lines {
                // What is around it is the shell's: a pipe before it, a substitution.
                let (_, ours) = line.split_once("vmm ").expect("an example of vmm");
                let ours = ours.replace("$(vmm ps -aq)", "0123456789ab");
                let ours = ours.split(['|', ')']).next().unwrap_or_default();
                let words = words(&format!("vmm {ours}"));
                if let Err(error) = Arguments::try_parse_from(words) {
                    panic!("{line}\n{error}");
                }
            }
        }
    }

    #[test]
    fn global_flags_may_stand_behind_a_command_but_not_behind_an_image() {
        let root = |line: &str| {
            let words = line.split(' ');
            let arguments = Arguments::try_parse_from(words).expect("a right command line");
            arguments.root.map(|root| root.display().to_string())
        };
        let ours = Some("/r".to_owned());
        assert_eq!(root("vmm --root /r ps"), ours);
        assert_eq!(root("vmm ps --root /r"), ours);
        assert_eq!(root("vmm run --rm --root /r busybox true"), ours);
        assert_eq!(root("vmm run --rm busybox --root /r"), None);
        assert_eq!(root("vmm run --rm busybox true --root /r"), None);
    }

    #[test]
    fn every_flag_is_explained_in_a_line_that_fits() {
        for (name, mut command) in all() {
            for argument in command.get_arguments() {
                let id = argument.get_id();
                assert!(
                    argument.get_help().is_some(),
                    "{name} does not explain {id}"
                );
            }
            let help = command.render_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{name}: {line}");
            }
        }
    }
}
