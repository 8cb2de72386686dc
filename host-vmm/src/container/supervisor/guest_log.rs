//! What the guest's init says to people. It may say as much as it likes: how much of that gets further is bounded.

use std::time::{Duration, Instant};

use agent_protocol::Level;

use crate::terminal::printable;

/// Characters of a line that are shown.
const MAX_LINE: usize = 400;

/// Lines that are logged in each [`WINDOW`].
const MAX_LINES: u32 = 50;

const WINDOW: Duration = Duration::from_secs(1);

/// Warnings that the user is told of at the end, the first.
const MAX_WARNINGS: usize = 8;

/// Takes the lines.
#[derive(Debug)]
pub struct GuestLog {
    warnings: Vec<String>,
    window: Instant,
    lines: u32,
    left_out: u64,
}

impl GuestLog {
    /// One in which nothing has been said.
    pub fn new() -> Self {
        Self {
            warnings: Vec::new(),
            window: Instant::now(),
            lines: 0,
            left_out: 0,
        }
    }

    /// Takes a line.
    pub fn take(&mut self, level: Level, text: &str) {
        self.take_at(Instant::now(), level, text);
    }

    fn take_at(&mut self, now: Instant, level: Level, text: &str) {
        let text = printable(text.trim(), MAX_LINE);
        if now.saturating_duration_since(self.window) >= WINDOW {
            self.tell_left_out();
            (self.window, self.lines) = (now, 0);
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines <= MAX_LINES {
            tracing::debug!("The guest says: {text}");
        } else {
            self.left_out += 1;
        }
        if level == Level::Warn && !text.is_empty() && self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(text);
        }
    }

    /// The warnings.
    pub fn finish(mut self) -> Vec<String> {
        self.tell_left_out();
        self.warnings
    }

    fn tell_left_out(&mut self) {
        if self.left_out > 0 {
            tracing::debug!("The guest says {} lines more in a second", self.left_out);
            self.left_out = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_lines_and_warnings_get_through() {
        let mut log = GuestLog::new();
        let now = Instant::now();
        for number in 0..1000 {
            log.take_at(now, Level::Debug, "chatter");
            let long = format!("{number}\x1b[2J{}", "x".repeat(1000));
            log.take_at(now, Level::Warn, &long);
        }
        assert_eq!(log.left_out, 2000 - u64::from(MAX_LINES));
        log.take_at(now + WINDOW, Level::Debug, "later");
        assert_eq!(log.left_out, 0);
        let warnings = log.finish();
        assert_eq!(warnings.len(), MAX_WARNINGS);
        assert!(warnings.iter().all(|text| text.chars().count() == MAX_LINE));
        assert!(warnings[0].starts_with("0\u{fffd}[2J"));
    }
}
