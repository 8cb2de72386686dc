//! The one form in which a failure is told.

use std::{error::Error, io, io::Write};

use imagebuilder::store;
use serde::{Deserialize, Serialize};

use crate::{boot_files, container::StoreError, root::RootError, terminal};

/// What went wrong, why, and what can be done about it. It travels from a supervisor to its command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What went wrong, then the causes of that, each the cause of the one before.
    pub causes: Vec<String>,
    /// What the guest's kernel said last.
    pub console: Vec<String>,
    /// Where all that it said is kept.
    pub log: Option<String>,
    /// What to do.
    pub advice: Option<String>,
}

impl Report {
    /// A failure without a cause that anybody knows.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            causes: vec![what.into()],
            ..Self::default()
        }
    }

    /// An error with its causes.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut report = Self::default();
        let mut next = Some(error);
        while let Some(error) = next {
            report.causes.push(error.to_string());
            next = error.source();
        }
        report.advice = advice(error).map(str::to_owned);
        report
    }

    /// The same with something to do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// What is shown.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from("vmm: ");
        for (index, cause) in self.causes.iter().enumerate() {
            if index > 0 {
                text.push_str("  because: ");
            }
            push(&mut text, without_number(cause.trim_end()));
        }
        if !self.console.is_empty() {
            text.push_str("  the guest's console, its last lines:\n");
            for line in &self.console {
                text.push_str("    ");
                push(&mut text, line);
            }
        }
        if let Some(log) = &self.log {
            text.push_str("  all of it: ");
            push(&mut text, log);
        }
        if let Some(advice) = &self.advice {
            text.push_str("  try: ");
            push(&mut text, advice);
        }
        text
    }

    /// Shows it on standard error, where nobody may be left to read.
    pub fn show(&self) {
        let _ = terminal::Stderr.write_all(self.text().as_bytes());
    }
}

/// Adds a line, and what it breaks into below it.
fn push(text: &mut String, line: &str) {
    text.push_str(&line.replace('\n', "\n    "));
    text.push('\n');
}

/// A system call's error as the standard library writes it, without the number: it says nothing to most people.
fn without_number(line: &str) -> &str {
    match line.rsplit_once(" (os error ") {
        Some((text, number)) if number.ends_with(')') => text,
        _ => line,
    }
}

/// What helps against an error of the system, whatever was being done.
fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let chain = || std::iter::successors(Some(error), |error| (*error).source());
    let cause = chain().find_map(|error| error.downcast_ref::<io::Error>())?;
    match cause.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            return Some("a higher limit on open files (ulimit -n)");
        }
        Some(libc::ENOMEM) => return Some("free memory"),
        Some(libc::EAGAIN) => return Some("a higher limit on processes (ulimit -u)"),
        _ => {}
    }
    let in_root = chain().any(is_about_root);
    match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded if in_root => {
            Some("make room on that disk, or name a directory on another with --root")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some("make room on that disk"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if in_root => {
            Some("name a directory that you may write to with --root, or in VMM_ROOT")
        }
        _ => None,
    }
}

/// Whether an error is one of a file below the root.
fn is_about_root(error: &(dyn Error + 'static)) -> bool {
    let containers = error.downcast_ref::<StoreError>();
    let root = error.downcast_ref::<RootError>();
    let images = error.downcast_ref::<store::Error>();
    let boot = error.downcast_ref::<boot_files::Error>();
    matches!(
        containers,
        Some(StoreError::Disk { .. } | StoreError::Root(RootError::Disk { .. }))
    ) || matches!(root, Some(RootError::Disk { .. }))
        || matches!(images, Some(store::Error::Disk { .. }))
        || matches!(boot, Some(boot_files::Error::Take(error)) if error.is_about_root())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn everything_has_its_line() {
        let error = StoreError::disk("write", Path::new("/a"))(io::Error::from_raw_os_error(28));
        let report = Report {
            console: vec!["last".to_owned(), "words".to_owned()],
            log: Some("/log".to_owned()),
            ..Report::of(&error)
        };
        assert_eq!(
            report.text(),
            "vmm: Cannot write /a\n  \
               because: No space left on device\n  \
               the guest's console, its last lines:\n    last\n    words\n  \
               all of it: /log\n  \
               try: make room on that disk, or name a directory on another with --root\n"
        );
        assert_eq!(Report::new("x\ny").text(), "vmm: x\n    y\n");
    }

    #[test]
    fn a_limit_that_was_reached_is_named() {
        for (errno, limit) in [(libc::EMFILE, "ulimit -n"), (libc::EAGAIN, "ulimit -u")] {
            let advice = Report::of(&io::Error::from_raw_os_error(errno)).advice;
            assert!(advice.is_some_and(|advice| advice.contains(limit)));
        }
    }

    #[test]
    fn who_may_not_write_is_told_of_another_root_only_if_it_is_about_the_root() {
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(Report::of(&denied()).advice, None);
        let error = StoreError::disk("create", Path::new("/a"))(denied());
        let advice = Report::of(&error).advice;
        assert!(advice.is_some_and(|advice| advice.contains("--root")));
    }
}
