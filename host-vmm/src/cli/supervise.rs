//! `vmm supervise`, which other commands start: the process that owns a container.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::Environment;
use crate::{
    container::{
        Channel,
        directory::Lock,
        supervisor::{Task, supervise},
    },
    process::take_inherited,
};

#[derive(Debug, Args)]
pub struct Supervise {
    /// The container
    id: String,
    /// The descriptor of the channel to the command that started this one
    #[arg(long)]
    channel: i32,
    /// The descriptor of the container's lock
    #[arg(long)]
    lock: i32,
    /// When that command began, in ns of `CLOCK_MONOTONIC`
    #[arg(long)]
    began: u64,
}

impl Supervise {
    pub(super) fn began_ns(&self) -> u64 {
        self.began
    }

    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let inherited =
            |number| take_inherited(number).context("Cannot take an inherited descriptor");
        let task = Task {
            id: self.id,
            lock: Lock::from(inherited(self.lock)?),
            attached: Channel::from(inherited(self.channel)?),
        };
        supervise(&environment.paths, task);
        Ok(ExitCode::SUCCESS)
    }
}
