//! Entry point of the `vmm` command.

use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    match host_vmm::cli::execute() {
        Ok(code) => code,
        Err(error) => {
            let lines: Vec<String> = error.chain().map(ToString::to_string).collect();
            // Nobody is left to tell that standard error is closed.
            let _ = std::io::stderr().write_all(host_vmm::error_text(&lines).as_bytes());
            ExitCode::from(host_vmm::container::FAILED)
        }
    }
}
