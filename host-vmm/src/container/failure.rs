//! What it means for the user that the guest could not start the container.

use std::io;

use agent_protocol::{Stage, StartError};

use crate::{report::Report, terminal::printable};

/// Characters of a guest's text that are shown.
const MAX_TEXT: usize = 400;

/// `vmm`'s own failure.
pub const FAILED: u8 = 125;
/// The program is there, but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
const NOT_FOUND: u8 = 127;

/// The exit code of `run`, after Docker.
#[must_use]
pub fn exit_code(error: &StartError) -> u8 {
    match (error.stage, error.errno) {
        (Stage::Execute, libc::ENOENT | libc::ENOTDIR) => NOT_FOUND,
        (Stage::Execute, _) => NOT_EXECUTABLE,
        _ => FAILED,
    }
}

/// The error and its cause.
#[must_use]
pub fn explain(error: &StartError) -> Report {
    // The guest may have written anything, for a terminal too.
    let text = printable(&error.text, MAX_TEXT);
    let what = match error.stage {
        Stage::System => "Cannot set up the guest:",
        Stage::Root => "Cannot mount the container's root file system:",
        Stage::Mount => "Cannot make what the container sees:",
        Stage::Stdio => "Cannot connect the container's standard streams:",
        Stage::User => "Cannot become the container's user:",
        Stage::WorkingDirectory => "Cannot enter the working directory",
        Stage::Execute => "Cannot execute",
    };
    let mut report = Report::new(format!("{what} {text}"));
    if error.stage == Stage::Execute
        && let Some(why) = not_executed(error)
    {
        report.causes.push(why.to_owned());
        return report;
    }
    // Linux has no others.
    if (1..4096).contains(&error.errno) {
        report
            .causes
            .push(io::Error::from_raw_os_error(error.errno).to_string());
    }
    report
}

/// Why Linux does not execute a program, in more words than it has for it.
fn not_executed(error: &StartError) -> Option<&'static str> {
    Some(match error.errno {
        libc::ENOENT if !error.text.contains('/') => {
            "There is no such program in the directories of the container's PATH"
        }
        libc::ENOENT => {
            "There is no such file in the container, or not the interpreter that it asks for"
        }
        libc::EISDIR => "It is a directory, not a program",
        libc::EACCES => {
            "It may not be executed: it has no permission for that, or lies on a file system that is mounted noexec"
        }
        libc::ENOEXEC => {
            "It is neither a program for x86-64 nor a script that begins with #! and an interpreter"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(stage: Stage, errno: i32, text: &str) -> StartError {
        StartError {
            stage,
            errno,
            text: text.into(),
        }
    }

    #[test]
    fn codes_are_dockers() {
        for (stage, errno, code) in [
            (Stage::Execute, libc::ENOENT, 127),
            (Stage::Execute, libc::EACCES, 126),
            (Stage::Execute, libc::EISDIR, 126),
            (Stage::Execute, libc::ENOEXEC, 126),
            (Stage::User, libc::ENOENT, 125),
            (Stage::Root, libc::EINVAL, 125),
        ] {
            assert_eq!(exit_code(&error(stage, errno, "x")), code);
        }
    }

    #[test]
    fn a_guest_cannot_write_to_the_terminal_by_its_error() {
        let report = explain(&error(Stage::Execute, libc::ENOENT, "\x1b[2Jx\n"));
        assert_eq!(
            report.causes,
            [
                "Cannot execute \u{fffd}[2Jx\u{fffd}",
                "There is no such program in the directories of the container's PATH"
            ]
        );
    }
}
