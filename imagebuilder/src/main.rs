//! The `imagebuilder` command: makes what a VM boots.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "imagebuilder", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the initfs with vminitd as its /init
    Initfs {
        /// The static vminitd program
        #[arg(long, value_name = "PATH")]
        vminitd: PathBuf,
        /// The archive to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Initfs { vminitd, out } => imagebuilder::initfs::build(&vminitd, &out)?,
    }
    Ok(())
}
