//! `vmm system verify`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{Environment, artifacts::short, output, print, ps::Format, run::images};
use crate::{
    boot_files::{self, Finding},
    report::Report,
};

/// Look at every file that machines boot from, byte by byte
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm system verify\n  vmm system verify --format json")]
pub struct Verify {
    /// How to show it: table, or json, an object a line
    #[arg(long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

impl Verify {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let findings = boot_files::verify(&environment.paths, &images(environment))?;
        print(&match self.format {
            Format::Json => findings.iter().map(json).collect(),
            Format::Table => {
                let rows: Vec<_> = findings.iter().map(row).collect();
                output::table(&["RESULT", "FILE", "SHA-256", "PATH", "PROBLEM"], &rows)
            }
        })?;
        let wrong = findings.iter().filter(|found| found.problem.is_some());
        match (wrong.count(), findings.len()) {
            (0, _) => Ok(ExitCode::SUCCESS),
            (wrong, all) => {
                Report::new(format!(
                    "{wrong} of {all} files are not what they should be"
                ))
                .show();
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

fn result(finding: &Finding) -> &'static str {
    match finding.problem {
        None => "ok",
        Some(_) => "wrong",
    }
}

fn row(finding: &Finding) -> Vec<String> {
    vec![
        result(finding).to_owned(),
        finding.what.clone(),
        short(finding.found.as_deref().unwrap_or("-")),
        finding.path.display().to_string(),
        finding.problem.clone().unwrap_or_default(),
    ]
}

fn json(finding: &Finding) -> String {
    let object = serde_json::json!({
        "Result": result(finding),
        "File": finding.what,
        "Path": finding.path.display().to_string(),
        "SHA256": finding.found,
        "Expected": finding.expected,
        "Problem": finding.problem,
    });
    format!("{object}\n")
}
