//! The `vmm` command as a library, so that tests and fuzz targets reach every part of it.

use std::io::Write;

pub mod agent;
pub mod boot_files;
pub mod cli;
pub mod container;
pub mod devices;
pub mod paths;
pub mod process;
pub mod terminal;
pub mod vm;

/// Shows an error and its causes on standard error, where nobody may be left to read.
pub fn complain(error: &anyhow::Error) {
    let lines: Vec<String> = error.chain().map(ToString::to_string).collect();
    let _ = std::io::stderr().write_all(error_text(&lines).as_bytes());
}

/// The one form in which an error is shown: what went wrong, and the causes of that below it.
#[must_use]
pub fn error_text(lines: &[String]) -> String {
    let mut text = String::from("vmm: ");
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            text.push_str("  because: ");
        }
        text.push_str(&line.trim_end().replace('\n', "\n    "));
        text.push('\n');
    }
    text
}
