//! The `imagebuilder` command: makes what a VM boots.

use std::io::Write;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use imagebuilder::progress::Progress;
use imagebuilder::store::Store;
use imagebuilder::{initfs, kernel, recipe};

/// Makes what a VM boots
#[derive(Debug, Parser)]
#[command(name = "imagebuilder", version)]
struct Arguments {
    /// Show no progress
    #[arg(short, long, global = true)]
    quiet: bool,
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
    /// Build a kernel, or take it from the cache
    Kernel {
        /// The directory of fragments and variants
        #[arg(long, value_name = "DIR")]
        config_dir: PathBuf,
        /// The variant
        #[arg(long, value_name = "NAME", default_value = "default")]
        variant: String,
        /// The directory of sources, object files and built kernels, which working trees share
        #[arg(long, value_name = "DIR")]
        cache: PathBuf,
        /// The vmlinux to write; its configuration is written beside it, as config
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The tarball of Linux's source, instead of the one that the distribution's package has
        #[arg(long, value_name = "TARBALL")]
        source: Option<PathBuf>,
        /// What to append to the kernel's release
        #[arg(
            long,
            value_name = "SUFFIX",
            default_value = "",
            allow_hyphen_values = true
        )]
        local_version: String,
        /// How many compilers to run at once [default: one for each CPU]
        #[arg(long, value_name = "N")]
        jobs: Option<NonZero<usize>>,
    },
    /// Make an OCI image by a recipe
    Recipe {
        /// The recipe
        #[arg(value_name = "FILE")]
        recipe: PathBuf,
        /// The OCI layout directory to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Load OCI images into a store, ready to boot
    Load {
        /// The directory of the store, in which images/ is
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// What to call the image instead of what it calls itself
        #[arg(long)]
        name: Option<String>,
        /// An OCI layout directory, a tar archive of one, or one of a root file system
        #[arg(value_name = "ARCHIVE|LAYOUT")]
        image: PathBuf,
    },
}

fn main() -> ExitCode {
    let Err(error) = execute(Arguments::parse()) else {
        return ExitCode::SUCCESS;
    };
    let mut text = format!("imagebuilder: {error}\n");
    for cause in error.chain().skip(1) {
        text += &format!("  because: {cause}\n");
    }
    // Nobody is left to tell that standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}

fn execute(Arguments { quiet, command }: Arguments) -> Result<()> {
    let progress = Progress::to_stderr(quiet);
    match command {
        Command::Initfs { vminitd, out } => initfs::build(&vminitd, &out)?,
        Command::Kernel {
            config_dir,
            variant,
            cache,
            out,
            source,
            local_version,
            jobs,
        } => {
            let request = kernel::Request {
                config_directory: config_dir,
                variant,
                source,
                local_version,
                jobs: jobs.map_or_else(std::thread::available_parallelism, Ok)?,
                cache,
                out,
            };
            kernel::build(&request, &progress)?;
        }
        Command::Recipe { recipe, out } => {
            let layout = recipe::build(&recipe, &out)?;
            println!("{}", layout.digest);
        }
        Command::Load { store, name, image } => {
            for image in Store::open(&store).load(&image, name.as_deref(), &progress)? {
                println!("{} {}", image.digest, image.names.join(" "));
            }
        }
    }
    Ok(())
}
