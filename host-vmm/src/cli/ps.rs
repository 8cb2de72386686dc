//! `vmm ps`.

use std::{
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{Environment, output, print};
use crate::container::{Containers, state::Status, store::Found, timeline::wall_clock_ns};

/// Characters of a command that are shown.
const COMMAND: usize = 20;

/// List containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm ps -a\n  vmm ps -aq\n  vmm ps -a --format json")]
pub struct Ps {
    /// Show containers that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Show IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Show IDs and commands in full
    #[arg(long)]
    no_trunc: bool,
    /// How to show them: table, or json, an object a line
    #[arg(long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

/// Ways to show a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

impl Ps {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let containers = Containers::open(&environment.paths);
        containers.sweep();
        let mut found = containers.list()?;
        found.retain(|found| self.all || found.state.status == Status::Running);
        let rows: Vec<Row> = found.iter().map(|found| self.row(found)).collect();
        print(&match (self.quiet, self.format) {
            (true, _) => rows.iter().map(|row| format!("{}\n", row.id)).collect(),
            (false, Format::Json) => rows.iter().map(Row::json).collect(),
            (false, Format::Table) => table(rows),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn row(&self, found: &Found) -> Row {
        let spec = &found.spec;
        let words = spec.process.args.iter().map(ToString::to_string);
        let command = words.collect::<Vec<_>>().join(" ");
        let ago = wall_clock_ns().saturating_sub(spec.created_ns);
        Row {
            id: match self.no_trunc {
                true => spec.id.clone(),
                false => spec.short_id().to_owned(),
            },
            image: spec.surroundings.image.clone(),
            command: match self.no_trunc {
                true => quoted(&command),
                false => quoted(&shortened(&command)),
            },
            created: timestamp(spec.created_ns),
            running_for: format!("{} ago", output::duration(ago)),
            state: found.state.status.name(),
            status: status(found),
            name: spec.name.clone(),
        }
    }
}

struct Row {
    id: String,
    image: String,
    command: String,
    created: String,
    running_for: String,
    state: &'static str,
    status: String,
    name: String,
}

impl Row {
    /// With Docker's names.
    fn json(&self) -> String {
        let object = serde_json::json!({
            "ID": self.id,
            "Image": self.image,
            "Command": self.command,
            "CreatedAt": self.created,
            "RunningFor": self.running_for,
            "State": self.state,
            "Status": self.status,
            "Names": self.name,
        });
        format!("{object}\n")
    }
}

fn table(rows: Vec<Row>) -> String {
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| {
            vec![
                row.id,
                row.image,
                row.command,
                row.running_for,
                row.status,
                row.name,
            ]
        })
        .collect();
    let heading = [
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "NAMES",
    ];
    output::table(&heading, &rows)
}

fn quoted(command: &str) -> String {
    let shown: String = command
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("\"{shown}\"")
}

fn shortened(command: &str) -> String {
    match command.chars().count() > COMMAND {
        true => command.chars().take(COMMAND - 1).chain(['…']).collect(),
        false => command.to_owned(),
    }
}

fn status(found: &Found) -> String {
    let state = &found.state;
    let since = |ns: Option<u64>| ns.map(|ns| output::duration(wall_clock_ns().saturating_sub(ns)));
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", since(state.started_ns).unwrap_or_default()),
        Status::Exited => {
            let code = state.exit_code.unwrap_or_default();
            match since(state.finished_ns) {
                Some(ago) => format!("Exited ({code}) {ago} ago"),
                None => format!("Exited ({code})"),
            }
        }
    }
}

/// An RFC 3339 time of ns since the Unix epoch.
pub fn timestamp(ns: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_nanos(ns);
    humantime::format_rfc3339_seconds(time).to_string()
}
