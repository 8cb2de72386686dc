//! `vmm supervise`, which other commands start: the process that owns a container.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::Environment;
use crate::{
    container::{
        Channel, Containers,
        store::is_id,
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
        let containers = Containers::open(&environment.paths);
        if !is_id(&self.id) {
            bail!("{:?} is no container's ID", self.id);
        }
        let directory = containers.at(&self.id);
        let lock = take_inherited(self.lock)
            .and_then(|fd| directory.inherit_lock(fd))
            .with_context(|| format!("Descriptor {} is not the container's lock", self.lock))?;
        let attached = take_inherited(self.channel)
            .and_then(Channel::inherit)
            .with_context(|| format!("Descriptor {} is no channel", self.channel))?;
        let task = Task {
            id: self.id,
            lock,
            attached,
        };
        supervise(&environment.paths, task);
        Ok(ExitCode::SUCCESS)
    }
}
