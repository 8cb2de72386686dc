//! `vmm system`.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    Environment, artifacts, output, print, ps::Format, run::images, values::host_memory,
    verify::Verify, version::VERSION,
};
use crate::{
    boot_files,
    container::{Containers, state::Status},
    sandbox::{self, Layer},
    vm::{self, Accelerator, kernel::Entry},
};

/// Show what this program finds on this machine
#[derive(Debug, Args)]
pub struct System {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show where everything is, and which accelerators work
    #[command(after_help = "Examples:\n  vmm system info\n  vmm system info --format json")]
    Info {
        /// How to show it: table or json
        #[arg(long, value_enum, default_value = "table", hide_possible_values = true)]
        format: Format,
    },
    /// Look at every file that machines boot from, byte by byte
    Verify(Verify),
}

impl System {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let format = match self.command {
            Command::Verify(command) => return command.execute(environment),
            Command::Info { format } => format,
        };
        let info = Info::gather(environment)?;
        print(&match format {
            Format::Table => info.table(),
            Format::Json => format!("{}\n", serde_json::to_string(&info)?),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    version: &'static str,
    root: String,
    run: String,
    failed_logs: String,
    config: Vec<String>,
    kernel: Option<File>,
    initfs: Option<File>,
    containers: usize,
    running: usize,
    images: usize,
    host: Host,
    accelerators: Vec<vm::Verdict>,
    sandbox: Vec<Wall>,
    artifacts: Vec<imagebuilder::manifest::Artifact>,
}

/// This machine.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Host {
    kernel: String,
    architecture: String,
    cpus: usize,
    /// In bytes.
    memory: u64,
}

impl Host {
    fn look() -> Self {
        let names = rustix::system::uname();
        let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
        Self {
            kernel: text(names.release()),
            architecture: text(names.machine()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: host_memory(),
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kernel,
            architecture,
            cpus,
            memory,
        } = self;
        let memory = memory >> 20;
        write!(
            f,
            "Linux {kernel}, {architecture}, CPUs {cpus}, memory {memory} MiB"
        )
    }
}

/// What confines a kernel that is a process, or would.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct Wall {
    layer: Layer,
    permitted: bool,
    /// What it does; or, where it is not permitted, what to do to have it.
    remark: String,
}

impl Wall {
    /// All of them. None where there is no process to try it with.
    fn look() -> Vec<Self> {
        let Ok(missing) = sandbox::probe() else {
            return Vec::new();
        };
        let wall = |layer: Layer| {
            let lacking = missing.iter().find(|missing| missing.layer == layer);
            Self {
                layer,
                permitted: lacking.is_none(),
                remark: lacking.map_or_else(|| layer.what().to_owned(), sandbox::Missing::remedy),
            }
        };
        Layer::ALL.into_iter().map(wall).collect()
    }
}

/// A file of the installation.
#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    path: String,
    size: Option<u64>,
}

impl Info {
    fn gather(environment: &Environment) -> Result<Self> {
        let paths = &environment.paths;
        let containers = Containers::open(paths);
        containers.sweep();
        let containers = containers.list()?;
        let running = containers
            .iter()
            .filter(|found| found.state.status == Status::Running);
        let installed = |entry| boot_files::has_kernel(paths, entry);
        // That of a run which asks for nothing.
        let config = &environment.config;
        let asked = config.accelerator.unwrap_or_default();
        let entry = vm::decide(
            paths.run(),
            asked,
            config.isolation.unwrap_or_default(),
            None,
            installed,
        )
        .map_or(Entry::Pvh, Accelerator::entry);
        let kernel = paths.installed_kernel(boot_files::variant(entry));
        Ok(Self {
            version: VERSION,
            root: paths.root().display().to_string(),
            run: paths.run().display().to_string(),
            failed_logs: paths.failed_logs().display().to_string(),
            config: config
                .files
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            kernel: kernel.as_deref().map(File::look),
            initfs: paths.default_initfs().as_deref().map(File::look),
            running: running.count(),
            containers: containers.len(),
            images: images(environment).list()?.len(),
            host: Host::look(),
            accelerators: vm::verdicts(paths.run(), installed),
            sandbox: Wall::look(),
            artifacts: artifacts::list(paths),
        })
    }

    fn table(&self) -> String {
        let config = match self.config.is_empty() {
            true => "none".to_owned(),
            false => self.config.join(", "),
        };
        let counted = format!("{} ({} running)", self.containers, self.running);
        let rows = [
            ("Version", self.version.to_owned()),
            ("Root", self.root.clone()),
            ("Sockets", self.run.clone()),
            ("Failed logs", self.failed_logs.clone()),
            ("Config", config),
            ("Host", self.host.to_string()),
            ("Kernel", File::shown(self.kernel.as_ref())),
            ("Initfs", File::shown(self.initfs.as_ref())),
            ("Images", self.images.to_string()),
            ("Containers", counted),
        ];
        let mut text = String::new();
        for (name, value) in rows {
            text += &format!("{name:<12} {value}\n");
        }
        let rows: Vec<Vec<String>> = self
            .accelerators
            .iter()
            .map(|verdict| {
                let usable = if verdict.usable { "yes" } else { "no" };
                vec![
                    verdict.name.to_owned(),
                    usable.to_owned(),
                    verdict.reason.clone(),
                ]
            })
            .collect();
        text.push('\n');
        text += &output::table(&["ACCELERATOR", "USABLE", "REASON"], &rows);
        text.push('\n');
        text += &output::table(
            &["LAYER", "HERE", "WHAT IT DOES, OR HOW TO HAVE IT"],
            &self.walls(),
        );
        text.push('\n');
        text + &artifacts::table(&self.artifacts)
    }
}

impl Info {
    fn walls(&self) -> Vec<Vec<String>> {
        let yes_or_no = |is_there| if is_there { "yes" } else { "no" };
        let row = |wall: &Wall| {
            vec![
                wall.layer.to_string(),
                yes_or_no(wall.permitted).to_owned(),
                wall.remark.clone(),
            ]
        };
        self.sandbox.iter().map(row).collect()
    }
}

impl File {
    fn look(path: &Path) -> Self {
        Self {
            path: path.display().to_string(),
            size: path.metadata().ok().map(|metadata| metadata.len()),
        }
    }

    fn shown(file: Option<&Self>) -> String {
        match file {
            None => "none installed beside this program".to_owned(),
            Some(Self { path, size: None }) => format!("{path} (missing; make image builds it)"),
            Some(Self {
                path,
                size: Some(size),
            }) => format!("{path} ({})", output::size(*size)),
        }
    }
}
