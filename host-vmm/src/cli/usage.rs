//! What is wrong with a command line, and how it should have been.

use std::{io, process::ExitCode};

use anyhow::{Context, Result};
use clap::{
    CommandFactory, Error,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{Arguments, output, suggest::nearest};
use crate::container::FAILED;

/// Shows what was asked for, or how the command line should have been.
///
/// # Errors
/// Standard output cannot be written to.
pub fn show(error: Error) -> Result<ExitCode> {
    if !error.use_stderr() {
        return match error.print() {
            // Nobody being left to read it is no error.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("Cannot write to standard output")
            }
            _ => Ok(ExitCode::SUCCESS),
        };
    }
    // As Docker: what is wrong with the command line is no container's exit code.
    let code = ExitCode::from(FAILED);
    let help = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Some(error.render()),
        // Only flags of all commands were given.
        ErrorKind::MissingSubcommand => Some(Arguments::command().render_help()),
        _ => None,
    };
    if let Some(help) = help {
        output::complain(&help.to_string());
        return Ok(code);
    }
    let text = improved(error).render().to_string();
    output::complain(&format!(
        "vmm: {}",
        text.strip_prefix("error: ").unwrap_or(&text)
    ));
    Ok(code)
}

/// With a hint that helps, and without one that does not.
fn improved(mut error: Error) -> Error {
    match error.kind() {
        // Letters that were swapped are far apart for clap.
        ErrorKind::InvalidSubcommand if error.get(ContextKind::SuggestedSubcommand).is_none() => {
            let commands = Arguments::command();
            let names = commands.get_subcommands().map(clap::Command::get_name);
            if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand)
                && let Some(meant) = nearest(word, names)
            {
                let meant = ContextValue::Strings(vec![meant.to_owned()]);
                error.insert(ContextKind::SuggestedSubcommand, meant);
            }
        }
        // Nobody wants to run the image `-- --flag`.
        ErrorKind::UnknownArgument => {
            if let Some(ContextValue::StyledStrs(mut hints)) = error.remove(ContextKind::Suggested)
            {
                hints.retain(|hint| !hint.to_string().contains("as a value"));
                if !hints.is_empty() {
                    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(hints));
                }
            }
        }
        _ => {}
    }
    error
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    fn text(words: &[&str]) -> String {
        let error = Arguments::try_parse_from(words).unwrap_err();
        improved(error).render().to_string()
    }

    #[test]
    fn a_swapped_command_is_recognized() {
        assert!(text(&["vmm", "rnu"]).contains("'run'"));
        assert!(text(&["vmm", "image", "lsit"]).contains("unrecognized"));
    }

    #[test]
    fn a_flag_that_is_none_is_not_taken_for_a_value() {
        let unknown = text(&["vmm", "run", "--bogus", "busybox"]);
        assert!(unknown.contains("'--bogus'"), "{unknown}");
        assert!(!unknown.contains("tip:"), "{unknown}");
        let misspelt = text(&["vmm", "run", "--memroy", "1g", "busybox"]);
        assert!(misspelt.contains("'--memory'"), "{misspelt}");
    }
}
