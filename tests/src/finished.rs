//! What came of a command.

use std::process::ExitStatus;

use serde_json::Value;

use crate::transcript::shown;

/// A command that has ended. What is expected of it is said by the methods, which panic with everything known
/// about it if it did something else.
#[derive(Debug, Clone)]
pub struct Finished {
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Finished {
    /// It exited with `code`.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        self.check(
            self.status.code() == Some(code),
            &format!("exit code {code}"),
        )
    }

    /// The number of the signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(&self.status)
    }

    /// Whether it exited with 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// Its standard output was exactly `expected`.
    #[track_caller]
    pub fn stdout(&self, expected: impl AsRef<[u8]>) -> &Self {
        let expected = expected.as_ref();
        self.check(
            self.stdout == expected,
            &format!("on standard output: {}", shown(expected)),
        )
    }

    /// Its standard error was exactly `expected`.
    #[track_caller]
    pub fn stderr(&self, expected: impl AsRef<[u8]>) -> &Self {
        let expected = expected.as_ref();
        self.check(
            self.stderr == expected,
            &format!("on standard error: {}", shown(expected)),
        )
    }

    /// `part` is in its standard output.
    #[track_caller]
    pub fn stdout_has(&self, part: &str) -> &Self {
        self.check(
            self.text().contains(part),
            &format!("{part:?} in standard output"),
        )
    }

    /// `part` is not in its standard output.
    #[track_caller]
    pub fn stdout_lacks(&self, part: &str) -> &Self {
        self.check(
            !self.text().contains(part),
            &format!("no {part:?} in standard output"),
        )
    }

    /// It failed with exit code 125 and one error from `vmm` itself that names `part`.
    #[track_caller]
    pub fn fails(&self, part: &str) -> &Self {
        self.code(125).complains(part)
    }

    /// There is one error from `vmm` itself on standard error, which names `part`.
    #[track_caller]
    pub fn complains(&self, part: &str) -> &Self {
        let text = String::from_utf8_lossy(&self.stderr).into_owned();
        let errors = text
            .lines()
            .filter(|line| line.starts_with("vmm: "))
            .count();
        self.check(
            errors == 1 && text.contains(part),
            &format!("one error of vmm that has {part:?}"),
        )
    }

    /// It failed with this code and one error of `vmm` that has all of `parts`, and put nothing out.
    #[track_caller]
    pub fn is_refused(&self, code: i32, parts: &[&str]) -> &Self {
        self.code(code).stdout("");
        for part in parts {
            self.complains(part);
        }
        self
    }

    /// Its standard output as text, without white space around it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Its standard error as text, without white space around it.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// The values in its standard output, one a line.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Vec<Value> {
        let values = serde_json::Deserializer::from_slice(&self.stdout).into_iter();
        match values.collect() {
            Ok(values) => values,
            Err(error) => self.surprise(&format!("JSON on standard output ({error})")),
        }
    }

    /// Panics with `expected` and everything known about the command unless `is_as_expected`.
    #[track_caller]
    pub fn check(&self, is_as_expected: bool, expected: &str) -> &Self {
        if !is_as_expected {
            self.surprise(expected);
        }
        self
    }

    #[track_caller]
    fn surprise(&self, expected: &str) -> ! {
        panic!("expected {expected}\n{}", self.description());
    }

    /// Everything known about it.
    #[must_use]
    pub fn description(&self) -> String {
        format!(
            "--- command\n{}\n--- {}\n--- standard output ({} bytes)\n{}\n--- standard error\n{}",
            self.command,
            self.status,
            self.stdout.len(),
            shown(&self.stdout),
            shown(&self.stderr)
        )
    }
}
