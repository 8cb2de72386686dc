//! Entry point of the `vmm` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: what it costs is the boot's.
    if let Some(never) = host_vmm::vm::kvm::enter() {
        match never {}
    }
    host_vmm::cli::execute().unwrap_or_else(|error| {
        host_vmm::report::Report::of(error.as_ref()).show();
        ExitCode::from(host_vmm::container::FAILED)
    })
}
