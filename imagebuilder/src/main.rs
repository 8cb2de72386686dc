//! The `imagebuilder` command: makes what a VM boots.

use std::io::{ErrorKind, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use imagebuilder::manifest::{self, Kind, Manifest, Origin};
use imagebuilder::progress::Progress;
use imagebuilder::store::Store;
use imagebuilder::{atomic, initfs, kernel, recipe};

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
        #[command(flatten)]
        origin: OriginFiles,
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
        /// Where nobody has the source, warn, write nothing and succeed
        #[arg(long)]
        optional: bool,
        #[command(flatten)]
        origin: OriginFiles,
    },
    /// Make an OCI image by a recipe
    Recipe {
        /// The recipe
        #[arg(value_name = "FILE")]
        recipe: PathBuf,
        /// The OCI layout directory to write
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        origin: OriginFiles,
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
        #[command(flatten)]
        origin: OriginFiles,
    },
    /// Write down what a file is, and what it was made of
    Origin {
        /// What to call it
        #[arg(long)]
        name: String,
        /// Something to know about it
        #[arg(long = "version", value_name = "NAME=TEXT", value_parser = pair)]
        versions: Vec<(String, String)>,
        /// A file that it was made of
        #[arg(long = "input", value_name = "NAME=FILE", value_parser = pair)]
        inputs: Vec<(String, String)>,
        #[command(flatten)]
        origin: OriginFiles,
        /// The file
        #[arg(value_name = "FILE")]
        of: PathBuf,
    },
    /// Write the manifest of an installation
    Manifest {
        /// The directory that has bin/ and share/ in it
        #[arg(long, value_name = "DIR")]
        prefix: PathBuf,
        /// What was written about a program, by --origin
        #[arg(long = "program", value_name = "FILE")]
        programs: Vec<PathBuf>,
        /// About a kernel
        #[arg(long = "kernel", value_name = "FILE")]
        kernels: Vec<PathBuf>,
        /// About the initfs
        #[arg(long, value_name = "FILE")]
        initfs: PathBuf,
        /// About an image
        #[arg(long = "image", value_name = "FILE")]
        images: Vec<PathBuf>,
    },
}

/// Files that say what something was made of.
#[derive(Debug, Args)]
struct OriginFiles {
    /// Write down what it was made of
    #[arg(long, value_name = "FILE")]
    origin: Option<PathBuf>,
    /// What was written about one of its inputs, by --origin
    #[arg(long, value_name = "FILE")]
    knowing: Vec<PathBuf>,
}

impl OriginFiles {
    fn write(&self, mut origin: Origin) -> Result<()> {
        let Some(path) = &self.origin else {
            return Ok(());
        };
        for known in &self.knowing {
            origin.explain(&Origin::read(known)?);
        }
        write(path, &manifest::to_json(&origin)?)
    }

    fn remove(&self) -> Result<()> {
        match self.origin.as_deref().map(std::fs::remove_file) {
            Some(Err(error)) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic::update(path, bytes).with_context(|| format!("Cannot write {}", path.display()))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("there is no = in it")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
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
        Command::Initfs {
            vminitd,
            out,
            origin,
        } => origin.write(initfs::build(&vminitd, &out)?)?,
        Command::Kernel {
            config_dir,
            variant,
            cache,
            out,
            source,
            local_version,
            jobs,
            optional,
            origin,
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
            match kernel::build(&request, &progress) {
                Err(error) if optional && error.is_without_source() => {
                    progress.warn(&format!(
                        "going on without the kernel {}: {error}",
                        request.variant
                    ));
                    kernel::forget(&request)?;
                    origin.remove()?;
                }
                built => origin.write(built?)?,
            }
        }
        Command::Recipe {
            recipe,
            out,
            origin,
        } => {
            let made = recipe::build(&recipe, &out)?;
            println!("sha256:{}", made.sha256);
            origin.write(made)?;
        }
        Command::Load {
            store,
            name,
            image: package,
            origin,
        } => {
            let images = Store::open(&store).load(&package, name.as_deref(), &progress)?;
            for image in &images {
                println!("{} {}", image.digest, image.names.join(" "));
            }
            match images.as_slice() {
                [image] => origin.write(image.origin())?,
                _ if origin.origin.is_none() => {}
                _ => bail!(
                    "Cannot write one origin of the {} images in {}",
                    images.len(),
                    package.display()
                ),
            }
        }
        Command::Origin {
            name,
            versions,
            inputs,
            origin,
            of,
        } => {
            let inputs = inputs
                .iter()
                .map(|(name, path)| Origin::of_file(name, Path::new(path)));
            origin.write(Origin {
                versions: versions.into_iter().collect(),
                inputs: inputs.collect::<Result<_, _>>()?,
                ..Origin::of_file(&name, &of)?
            })?;
        }
        Command::Manifest {
            prefix,
            programs,
            kernels,
            initfs,
            images,
        } => {
            let origins = [
                (Kind::Program, programs),
                (Kind::Kernel, kernels),
                (Kind::Initfs, vec![initfs]),
                (Kind::Image, images),
            ];
            let origins = origins
                .iter()
                .flat_map(|(kind, paths)| paths.iter().map(|path| (*kind, path)))
                .map(|(kind, path)| Ok((kind, Origin::read(path)?)))
                .collect::<Result<Vec<_>>>()?;
            let text = manifest::to_json(&Manifest::gather(&prefix, origins)?)?;
            write(&prefix.join("share/vmm").join(manifest::FILE), &text)?;
        }
    }
    Ok(())
}
