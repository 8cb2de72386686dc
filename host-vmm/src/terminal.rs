//! The user's terminal.

use std::{
    io::{self, Write, stderr, stdin, stdout},
    os::fd::{AsFd, OwnedFd},
};

use rustix::termios::{
    OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};

/// A terminal that shows what it is sent as it is, for another in the container has dealt with it. Dropping it makes the
/// terminal what it was.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes the terminal of standard input raw; with `keys` they are passed on as they are, too. Without, nobody reads
    /// them, and the keys that send signals go on to do so: nothing else could end the container from here. `None` if
    /// standard input is no terminal.
    ///
    /// # Errors
    /// Those of `tcsetattr(3)`.
    pub fn enter(keys: bool) -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let terminal = stdin().as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        match keys {
            true => raw.make_raw(),
            false => raw.output_modes.remove(OutputModes::OPOST),
        }
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Whether standard input is a terminal.
#[must_use]
pub fn is_interactive() -> bool {
    isatty(stdin())
}

/// Lines and characters in a line of the first standard stream that is a terminal.
#[must_use]
pub fn size() -> Option<(u16, u16)> {
    let size = |fd: &dyn AsFd| tcgetwinsize(fd.as_fd()).ok();
    let size = size(&stdout())
        .or_else(|| size(&stdin()))
        .or_else(|| size(&stderr()))?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Standard error, which may be a terminal that we or others have made raw: it takes a line feed for just that then.
#[derive(Clone, Copy, Debug)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let raw =
            tcgetattr(stderr()).is_ok_and(|modes| !modes.output_modes.contains(OutputModes::OPOST));
        if !raw {
            return stderr().write(bytes);
        }
        let mut shown = Vec::with_capacity(bytes.len() + 16);
        for &byte in bytes {
            if byte == b'\n' {
                shown.push(b'\r');
            }
            shown.push(byte);
        }
        stderr().write_all(&shown)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

/// At most `max` characters of what a guest said, without what could change a terminal or the order of what is read on it.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    let shown = |c| {
        if changes_terminal(c) { '\u{fffd}' } else { c }
    };
    text.chars().take(max).map(shown).collect()
}

/// Whether a character does something else than to be shown.
#[must_use]
pub fn changes_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_changes_a_terminal_is_printable() {
        let text = "a\u{1b}[2J\u{202e}b\r\n\u{9b}c";
        let shown = printable(text, 100);
        assert_eq!(shown, "a\u{fffd}[2J\u{fffd}b\u{fffd}\u{fffd}\u{fffd}c");
        assert_eq!(printable(text, 1), "a");
    }
}
