//! The one progress reporter: bars on a terminal, a few plain lines elsewhere, nothing when quiet.
//!
//! A [`Progress`] makes [`Step`]s. A step says what is being done while it is done, and leaves one line with the time
//! it took once it has [`finish`](Step::finish)ed; a step that is dropped before leaves nothing, for the error speaks.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// On a pipe, how long a step is silent before it says again that it lives.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How often the bar of a step without news moves.
const TICK: Duration = Duration::from_millis(120);

const STEP: &str = "{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}";
const BYTES: &str = "{spinner} {prefix} [{bar:24}] {binary_bytes}/{binary_total_bytes} {msg}";
const COUNT: &str = "{spinner} {prefix} [{bar:24}] {pos}/{len} {wide_msg:.dim}";

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Silent,
    Lines,
    Bars,
}

/// Where progress goes.
#[derive(Debug, Clone)]
pub struct Progress {
    style: Style,
}

impl Progress {
    /// Bars if standard error is a terminal, else lines; nothing if `quiet`.
    pub fn to_stderr(quiet: bool) -> Self {
        let style = match (quiet, stderr().is_terminal()) {
            (true, _) => Style::Silent,
            (false, true) => Style::Bars,
            (false, false) => Style::Lines,
        };
        Self { style }
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self {
            style: Style::Silent,
        }
    }

    /// Begins a step whose end cannot be told, such as "Building the kernel".
    pub fn step(&self, what: impl Into<String>) -> Step {
        self.begin(what.into(), None, STEP)
    }

    /// Begins a step of `total` bytes.
    pub fn bytes(&self, what: impl Into<String>, total: u64) -> Step {
        self.begin(what.into(), Some(total), BYTES)
    }

    /// Begins a step of `total` things, such as the files of a build.
    pub fn count(&self, what: impl Into<String>, total: u64) -> Step {
        self.begin(what.into(), Some(total), COUNT)
    }

    /// Says something that whoever waits should know, though it goes on.
    pub fn warn(&self, what: &str) {
        if self.style != Style::Silent {
            // Nobody is left to tell that standard error is closed.
            let _ = writeln!(stderr(), "warning: {what}");
        }
    }

    fn begin(&self, what: String, total: Option<u64>, template: &str) -> Step {
        let bar = (self.style == Style::Bars).then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(what.clone());
            bar.enable_steady_tick(TICK);
            bar
        });
        let step = Step {
            what,
            style: self.style,
            bar,
            began: Instant::now(),
            spoke: Cell::new(Instant::now()),
        };
        step.line(|what| format!("{what}…"));
        step
    }
}

/// Something that is being done.
#[derive(Debug)]
pub struct Step {
    what: String,
    style: Style,
    bar: Option<ProgressBar>,
    began: Instant,
    spoke: Cell<Instant>,
}

impl Step {
    /// `amount` more bytes or things are done.
    pub fn advance(&self, amount: u64) {
        match &self.bar {
            Some(bar) => bar.inc(amount),
            None => self.heartbeat(""),
        }
    }

    /// What the step is at, such as the file being compiled.
    pub fn note(&self, detail: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(detail.to_owned()),
            None => self.heartbeat(detail),
        }
    }

    /// The step succeeded.
    pub fn finish(self) {
        let seconds = self.began.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            // Nobody is left to tell that the terminal is gone.
            let _ = writeln!(stderr(), "{} ({seconds:.1} s)", self.what);
        }
        // What took no time needs no second line.
        if seconds >= 1.0 {
            self.line(|what| format!("{what}: done in {seconds:.1} s"));
        }
    }

    fn heartbeat(&self, detail: &str) {
        if self.style == Style::Lines && self.spoke.get().elapsed() >= HEARTBEAT {
            self.spoke.set(Instant::now());
            let seconds = self.began.elapsed().as_secs();
            let space = if detail.is_empty() { "" } else { " " };
            self.line(|what| format!("{what}: {seconds} s{space}{detail}"));
        }
    }

    fn line(&self, text: impl FnOnce(&str) -> String) {
        if self.style == Style::Lines {
            let _ = writeln!(stderr(), "{}", text(&self.what));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_one_that_the_bars_understand() {
        for template in [STEP, BYTES, COUNT] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_bar_moves_by_what_is_done() {
        // Standard error of a test is no terminal, or captured: nothing is drawn.
        let step = Progress { style: Style::Bars }.bytes("a", 10);
        step.advance(3);
        step.note("b");
        assert_eq!(step.bar.as_ref().unwrap().position(), 3);
        step.finish();
    }

    #[test]
    fn a_silent_step_has_no_bar() {
        let step = Progress::silent().step("a");
        step.advance(1);
        assert!(step.bar.is_none());
        assert_eq!(step.style, Style::Silent);
        step.finish();
    }
}
