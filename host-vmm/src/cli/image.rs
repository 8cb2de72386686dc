//! `vmm image`.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use imagebuilder::{
    progress::Progress,
    store::{self, Store},
};

use super::{Environment, output, print, ps::Format, run::images};
use crate::{container::timeline::wall_clock_ns, report::Report, root};

/// Manage images
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List images
    Ls(Ls),
    /// Load images from an archive
    Load(Load),
    /// Remove images
    Rm(Remove),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm image ls\n  vmm image ls --format json")]
struct Ls {
    /// Show IDs only
    #[arg(short, long)]
    quiet: bool,
    /// How to show them: table, or json, an object a line
    #[arg(long, value_enum, default_value = "table", hide_possible_values = true)]
    format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmm image load -i alpine.tar\n  \
    docker save alpine | vmm image load\n  \
    vmm image load --name mine:1 rootfs.tar.gz")]
struct Load {
    /// The archive or OCI layout directory; standard input if none is named
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// What to call the image instead of what it calls itself
    #[arg(long)]
    name: Option<String>,
    /// Show no progress, and IDs only
    #[arg(short, long)]
    quiet: bool,
    /// As --input FILE
    #[arg(value_name = "FILE", conflicts_with = "input")]
    path: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vmm image rm alpine\n  vmm image rm mine:1 mine:2")]
struct Remove {
    /// Names, or IDs as vmm image ls shows them
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Image {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        match self.command {
            Command::Ls(command) => command.execute(environment),
            Command::Load(command) => command.execute(environment),
            Command::Rm(command) => command.execute(environment),
        }
    }
}

impl Ls {
    fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let images = images(environment).list()?;
        if self.quiet {
            print(
                &images
                    .iter()
                    .map(|image| format!("{}\n", image.short_id()))
                    .collect::<String>(),
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        print(&match self.format {
            Format::Json => images.iter().map(json).collect(),
            Format::Table => {
                let rows: Vec<_> = images.iter().flat_map(rows).collect();
                output::table(&["NAME", "IMAGE ID", "CREATED", "SIZE", "ON DISK"], &rows)
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A line for each name.
fn rows(image: &store::Image) -> Vec<Vec<String>> {
    let created = match image.created().map(humantime::parse_rfc3339_weak) {
        Some(Ok(time)) => {
            let since = time
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            let ns = u64::try_from(since.as_nanos()).unwrap_or(0);
            format!(
                "{} ago",
                output::duration(wall_clock_ns().saturating_sub(ns))
            )
        }
        _ => "N/A".to_owned(),
    };
    let row = |name: &str| {
        vec![
            name.to_owned(),
            image.short_id().to_owned(),
            created.clone(),
            output::size(image.size),
            output::size(image.size_on_disk),
        ]
    };
    match image.names.is_empty() {
        true => vec![row("<none>")],
        false => image.names.iter().map(|name| row(name)).collect(),
    }
}

fn json(image: &store::Image) -> String {
    let object = serde_json::json!({
        "ID": image.short_id(),
        "Digest": image.digest,
        "Names": image.names,
        "CreatedAt": image.created(),
        "Size": image.size,
        "SizeOnDisk": image.size_on_disk,
        "Removable": image.removable,
    });
    format!("{object}\n")
}

impl Load {
    fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let root = environment.paths.root();
        root::claim(root)?;
        let store = Store::open(root);
        let progress = Progress::to_stderr(self.quiet);
        let given = self.input.or(self.path);
        let input = match &given {
            Some(path) => Input::Path(path),
            None => Input::spool(environment)?,
        };
        let loaded = store.load(input.path(), self.name.as_deref(), &progress);
        for image in loaded.map_err(|error| input.named_in(error))? {
            match (self.quiet, image.names.is_empty()) {
                (true, _) => print(&format!("{}\n", image.short_id()))?,
                (false, true) => print(&format!("Loaded image: {}\n", image.digest))?,
                (false, false) => {
                    for name in &image.names {
                        print(&format!("Loaded image: {name}\n"))?;
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Where the archive is read from.
enum Input<'a> {
    Path(&'a Path),
    /// Standard input, in a file without a name, and a path to that.
    Spooled {
        _file: File,
        path: PathBuf,
    },
}

impl Input<'_> {
    /// An archive is read here and there: what comes in a stream is written to the disk first.
    fn spool(environment: &Environment) -> Result<Self> {
        use std::os::fd::AsRawFd;

        let stdin = io::stdin();
        if rustix::termios::isatty(&stdin) {
            bail!(
                "Cannot read an image from the terminal; name an archive, or send one through a pipe"
            );
        }
        let root = environment.paths.root();
        let spool = || {
            let flags = rustix::fs::OFlags::TMPFILE
                | rustix::fs::OFlags::RDWR
                | rustix::fs::OFlags::CLOEXEC;
            let file: File =
                rustix::fs::open(root, flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?
                    .into();
            io::copy(&mut stdin.lock(), &mut &file)?;
            io::Result::Ok(file)
        };
        let file = spool().map_err(|source| store::Error::Disk {
            action: "store what comes on standard input in",
            path: root.to_owned(),
            source,
        })?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Self::Spooled { _file: file, path })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Path(path) => path,
            Self::Spooled { path, .. } => path,
        }
    }

    /// The error with what the user knows the archive by.
    fn named_in(&self, error: store::Error) -> store::Error {
        match (self, error) {
            (Self::Spooled { .. }, store::Error::Package { source, .. }) => store::Error::Package {
                path: "what comes on standard input".into(),
                source,
            },
            (_, error) => error,
        }
    }
}

impl Remove {
    fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let store = images(environment);
        let mut code = ExitCode::SUCCESS;
        for image in &self.images {
            match store.remove(image) {
                Ok(removed) => print(&described(&removed))?,
                Err(error) => {
                    Report::of(&error).show();
                    code = ExitCode::from(1);
                }
            }
        }
        Ok(code)
    }
}

/// What a removal did, as Docker says it.
fn described(removed: &store::Removed) -> String {
    let untagged = removed
        .untagged
        .iter()
        .map(|name| format!("Untagged: {name}\n"));
    let deleted = removed
        .deleted
        .iter()
        .map(|digest| format!("Deleted: {digest}\n"));
    untagged.chain(deleted).collect()
}
