//! `vmm rm`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{Environment, print};
use crate::{
    container::{Containers, StoreError, state::Status, supervisor},
    report::Report,
};

/// Remove containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm rm my-container\n  vmm rm -f $(vmm ps -aq)")]
pub struct Rm {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Names, IDs, or the first digits of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let containers = Containers::open(&environment.paths);
        containers.sweep();
        let mut code = ExitCode::SUCCESS;
        for reference in &self.containers {
            match self.remove(&containers, environment, reference) {
                Ok(()) => print(&format!("{reference}\n"))?,
                Err(error) => {
                    Report::of(&error).show();
                    // As Docker: the others are removed all the same.
                    code = ExitCode::from(1);
                }
            }
        }
        containers.collect_boot_files();
        Ok(code)
    }

    fn remove(
        &self,
        containers: &Containers,
        environment: &Environment,
        reference: &str,
    ) -> Result<(), StoreError> {
        let found = match containers.find(reference) {
            // As Docker: what is to be gone is gone.
            Err(StoreError::NotFound(_)) if self.force => return Ok(()),
            other => other?,
        };
        let _lock = match found.directory.lock()? {
            Some(lock) => lock,
            // It is being taken down.
            None if found.state.status == Status::Exited => found.directory.wait_for_lock()?,
            None if self.force => {
                let short_id = found.spec.short_id();
                match supervisor::kill(&environment.paths, &found.directory, short_id) {
                    // It has removed itself.
                    Err(_) if !found.directory.path().is_dir() => return Ok(()),
                    other => other?,
                }
            }
            None => return Err(StoreError::Running(reference.to_owned())),
        };
        match containers.hide(&found.spec) {
            Ok(hidden) => hidden.delete(),
            // Somebody else was quicker.
            Err(_) if !found.directory.path().is_dir() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
