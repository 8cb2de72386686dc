//! The user's terminal.

use std::{
    io::{self, stderr, stdin, stdout},
    os::fd::{AsFd, OwnedFd},
};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal that passes on every key as it is. Dropping it makes the terminal what it was.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes the terminal of standard input raw. `None` if that is no terminal.
    ///
    /// # Errors
    /// Those of `tcsetattr(3)`.
    pub fn enter() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let terminal = stdin().as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
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

/// At most `max` characters of what a guest said, without what could change a terminal or the order of what is read on it.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    let changes = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let shown = |c| if changes(c) { '\u{fffd}' } else { c };
    text.chars().take(max).map(shown).collect()
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
