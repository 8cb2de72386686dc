//! `vmm version`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{Environment, artifacts, print, ps::Format};

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Show the version
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm version\n  vmm version --verbose")]
pub struct Version {
    /// Show what belongs to it, too: hashes, and what it was made of
    #[arg(long)]
    verbose: bool,
    /// How to show it: table or json
    #[arg(long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

impl Version {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let protocol = agent_protocol::VERSION;
        let artifacts = match self.verbose {
            true => Some(artifacts::list(&environment.paths)),
            false => None,
        };
        print(&match self.format {
            Format::Table => {
                let version = format!("vmm {VERSION} (agent protocol {protocol})\n");
                let more = artifacts.map(|artifacts| format!("\n{}", artifacts::table(&artifacts)));
                version + &more.unwrap_or_default()
            }
            Format::Json => {
                let mut object = serde_json::json!({"Version": VERSION, "AgentProtocol": protocol});
                if let Some(artifacts) = artifacts {
                    object["Artifacts"] = serde_json::to_value(artifacts)?;
                }
                format!("{object}\n")
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
