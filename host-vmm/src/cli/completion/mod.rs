//! `vmm completion`, a script for a shell, and `vmm complete`, which the scripts ask for what could come next.
//!
//! The scripts know nothing of commands and flags. So the three cannot differ, and names of images and containers are
//! as easily had as those of flags.

mod candidates;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Args, CommandFactory, ValueEnum};

use self::candidates::Names;
use super::{Arguments, Environment, print, run::images};
use crate::{container::Containers, paths::Paths};

/// Print what makes a shell complete this program's commands, flags and names
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    source <(vmm completion bash)\n  \
    source <(vmm completion zsh)\n  \
    vmm completion fish | source")]
pub struct Completion {
    /// The shell that reads it
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub(super) fn execute(self) -> Result<ExitCode> {
        print(match self.shell {
            Shell::Bash => include_str!("vmm.bash"),
            Shell::Zsh => include_str!("vmm.zsh"),
            Shell::Fish => include_str!("vmm.fish"),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print what the last word could be: a candidate a line, and behind a tab what it means
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm complete -- vmm run --r")]
pub struct Complete {
    /// The command line as far as the cursor, with the program's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

impl Complete {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let mut commands = Arguments::command();
        commands.build();
        let words = self.words.get(1..).unwrap_or_default();
        let found = candidates::find(&commands, words, |names, root| match root {
            Some(root) => known(
                names,
                &environment.at(Paths::find(Some(root.as_ref()), None)?),
            ),
            None => known(names, environment),
        });
        let lines = found.into_iter().map(|candidate| candidate.line());
        print(&lines.collect::<String>())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The names that somebody may mean.
fn known(names: Names, environment: &Environment) -> Result<Vec<String>> {
    Ok(match names {
        Names::Containers => {
            let containers = Containers::open(&environment.paths).list()?;
            containers.into_iter().map(|one| one.spec.name).collect()
        }
        Names::Images => {
            let images = images(environment).list()?;
            let names = images.into_iter().flat_map(|image| image.names);
            // A tag that goes without saying.
            names
                .map(|name| name.strip_suffix(":latest").unwrap_or(&name).to_owned())
                .collect()
        }
    })
}
