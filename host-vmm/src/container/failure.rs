//! What it means for the user that the guest could not start the container.

use std::io;

use agent_protocol::{Stage, StartError};

use crate::terminal::printable;

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
pub fn explain(error: &StartError) -> Vec<String> {
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
    let mut lines = vec![format!("{what} {text}")];
    // Linux has no others.
    if (1..4096).contains(&error.errno) {
        lines.push(describe(error.errno));
    }
    lines
}

fn describe(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    // The number says nothing to most people.
    match text.rsplit_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
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
            (Stage::Execute, libc::ENOEXEC, 126),
            (Stage::User, libc::ENOENT, 125),
            (Stage::Root, libc::EINVAL, 125),
        ] {
            assert_eq!(exit_code(&error(stage, errno, "x")), code);
        }
    }

    #[test]
    fn a_guest_cannot_write_to_the_terminal_by_its_error() {
        let lines = explain(&error(Stage::Execute, libc::ENOENT, "\x1b[2Jx\n"));
        assert_eq!(
            lines,
            [
                "Cannot execute \u{fffd}[2Jx\u{fffd}",
                "No such file or directory"
            ]
        );
    }
}
