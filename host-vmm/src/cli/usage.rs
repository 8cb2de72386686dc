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

/// Docker's names for commands that have other names here.
const DOCKERS: [(&str, &str); 5] = [
    ("images", "image ls"),
    ("info", "system info"),
    ("load", "image load"),
    ("ls", "ps"),
    ("rmi", "image rm"),
];

/// With a hint that helps, and without one that does not.
fn improved(mut error: Error) -> Error {
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let commands = Arguments::command();
            let commands = commands.get_subcommands();
            let (hidden, shown): (Vec<_>, Vec<_>) = commands.partition(|one| one.is_hide_set());
            let names = shown.into_iter().map(clap::Command::get_name);
            // Clap suggests what is hidden, too.
            let mut meant = match error.remove(ContextKind::SuggestedSubcommand) {
                Some(ContextValue::Strings(meant)) => meant,
                _ => Vec::new(),
            };
            meant.retain(|name| hidden.iter().all(|one| one.get_name() != name));
            if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) {
                if let Some((_, ours)) = DOCKERS.iter().find(|(theirs, _)| theirs == word) {
                    meant = vec![(*ours).to_owned()];
                } else if meant.is_empty() {
                    // Letters that were swapped are far apart for clap.
                    meant.extend(nearest(word, names).map(str::to_owned));
                }
            }
            if !meant.is_empty() {
                let meant = ContextValue::Strings(meant);
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
        // What is hidden is no hint.
        assert!(!text(&["vmm", "complte"]).contains("'complete'"));
        assert!(text(&["vmm", "image", "lod"]).contains("'load'"));
    }

    #[test]
    fn who_knows_dockers_names_is_told_ours() {
        for (theirs, ours) in DOCKERS {
            let told = text(&["vmm", theirs]);
            assert!(told.contains(&format!("'{ours}'")), "{told}");
        }
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
