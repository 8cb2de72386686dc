//! `vmm version`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{Environment, print, ps::Format};

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Show the version
#[derive(Debug, Args)]
pub struct Version {
    /// How to show it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

impl Version {
    pub(super) fn execute(self, _environment: &Environment) -> Result<ExitCode> {
        let protocol = agent_protocol::VERSION;
        print(&match self.format {
            Format::Table => format!("vmm {VERSION} (agent protocol {protocol})\n"),
            Format::Json => {
                let object = serde_json::json!({"Version": VERSION, "AgentProtocol": protocol});
                format!("{object}\n")
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
