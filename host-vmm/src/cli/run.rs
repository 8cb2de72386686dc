//! `vmm run`.

use std::{ffi::OsString, io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use imagebuilder::store::Store;

use super::{Environment, config::Config, output, suggest::nearest, values};
use crate::{
    boot_files::{self, BootFiles},
    container::{
        Containers, Foreground, Logging,
        request::{Identity, Request},
        spec::Tmpfs,
        start,
        timeline::{Event, Timeline, wall_clock_ns},
    },
    failpoint, once,
    paths::Paths,
    report::Report,
    sandbox::Sandbox,
    terminal,
    vm::{self, Accelerator, Isolation, Mitigations, kernel::Entry},
};

/// Run a command in a new container
#[derive(Debug, Args)]
// Docker's -h is the host name here.
#[command(disable_help_flag = true)]
#[command(override_usage = "vmm run [OPTIONS] IMAGE [COMMAND] [ARGUMENT]...")]
#[command(after_help = "Examples:\n  \
    vmm run --rm busybox echo hello\n  \
    vmm run -it --rm busybox sh\n  \
    vmm run --rm -m 256m --cpus 0.5 -e GREETING=hi busybox sh -c 'echo $GREETING'\n  \
    vmm run --rm --kernel ./vmlinux busybox uname -r")]
pub struct Run {
    /// Give the command our standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Call the container by this name
    #[arg(long)]
    name: Option<String>,
    /// The container's host name
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// Set an environment variable, or pass ours on if there is no =
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Set the environment variables that a file holds, a line each
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Replace the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// Memory of the machine, in bytes, or with k, m or g [default: 1g]
    #[arg(short, long, value_name = "BYTES", value_parser = values::memory)]
    memory: Option<u64>,
    /// CPUs that the container may use, such as 0.5 [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = values::cpus)]
    cpus: Option<u32>,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Mount a tmpfs, with options such as size=64m,mode=0700,exec
    #[arg(long, value_name = "DIR[:OPTIONS]", value_parser = values::tmpfs)]
    tmpfs: Vec<Tmpfs>,
    /// Boot this kernel, an uncompressed vmlinux
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    kernel: Option<PathBuf>,
    /// Boot with this initfs
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    initfs: Option<PathBuf>,
    /// Guard against what CPUs leak: auto, or off as under tcg
    #[arg(long, value_name = "MODE", value_parser = mitigations, help_heading = "Machine")]
    mitigations: Option<Mitigations>,
    /// Add words to the kernel's command line
    #[arg(long, value_name = "TEXT", help_heading = "Machine")]
    cmdline_append: Vec<String>,
    /// What runs the machine: auto, kvm, um or tcg [default: auto]
    #[arg(long, value_name = "NAME", value_parser = values::accelerator, help_heading = "Machine")]
    accel: Option<Accelerator>,
    /// What has to isolate it: any or hardware [default: any]
    #[arg(long, value_name = "KIND", value_parser = values::isolation, help_heading = "Machine")]
    isolation: Option<Isolation>,
    /// What confines um's kernel: minimum or weak
    #[arg(long, value_name = "KIND", default_value = "minimum", value_parser = sandbox, help_heading = "Machine")]
    sandbox: Sandbox,
    /// How long the start may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = values::start_timeout, help_heading = "Machine")]
    start_timeout: u32,
    /// Show all that the guest's kernel prints, on standard error
    #[arg(long, help_heading = "Machine")]
    debug_console: bool,
    /// Show what happened when on standard error, as text or json
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "text", help_heading = "Machine")]
    timings: Option<Timings>,
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
    /// The image, by its name or ID, and then a command in the place of its own
    // One argument: as two, flags between them would be ours, and are the container's.
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Timings {
    Text,
    Json,
}

fn sandbox(name: &str) -> Result<Sandbox, String> {
    [Sandbox::Minimum, Sandbox::Weak]
        .into_iter()
        .find(|sandbox| sandbox.name() == name)
        .ok_or_else(|| "choose minimum or weak".to_owned())
}

fn mitigations(name: &str) -> Result<Mitigations, String> {
    [Mitigations::Auto, Mitigations::Off]
        .into_iter()
        .find(|mitigations| mitigations.name() == name)
        .ok_or_else(|| "choose auto or off".to_owned())
}

impl Run {
    pub(super) fn execute(self, environment: &Environment) -> Result<ExitCode> {
        let mut timeline = Timeline::default();
        timeline.note_at(Event::CliStart, environment.started_ns);
        if self.tty && self.interactive && !terminal::is_interactive() {
            bail!("Cannot attach a terminal: standard input is none; leave -t out");
        }
        let paths = &environment.paths;
        let images = images(environment);
        let reference = self.image();
        let image = match images.resolve(&reference)? {
            Some(image) => image,
            None => bail!(no_image(&images, &reference)),
        };
        boot_files::check_image(paths, &image)?;
        timeline.note(Event::ImageResolved);
        tracing::debug!("Resolved the image {reference} to {}", image.digest);
        failpoint::reach("resolve");

        let timings = self.timings;
        let name = self.name.clone();
        let (has_terminal, has_keys) = (self.tty, self.interactive);
        let (kernel, initfs) = (self.kernel.clone(), self.initfs.clone());
        let entry = kernel.as_deref().map(boot_files::entry).transpose()?;
        let accelerator = self.accelerator(environment, entry)?;
        if accelerator != Accelerator::Kvm && self.asked(environment) == Accelerator::Auto {
            tell_of_kvm(paths);
        }
        let request = self.request(accelerator, &environment.config)?;
        let containers = Containers::open(paths);
        let boot = BootFiles::choose(
            paths,
            kernel.as_deref(),
            initfs.as_deref(),
            accelerator.entry(),
        )?;
        let create = |id, name| {
            let identity = Identity {
                id,
                name,
                created_ns: wall_clock_ns(),
            };
            anyhow::Ok(request.resolve(&image, &boot, identity)?)
        };
        // Before there is a container that a signal could leave behind.
        let signals = Foreground::take_signals().context("Cannot take signals over")?;
        let brought = kernel.is_some() || initfs.is_some();
        let created = containers.create(name.as_deref(), create);
        // The container refers to its files now, if there is one.
        drop(boot);
        if created.is_err() && brought {
            containers.collect_boot_files();
        }
        let (spec, directory, lock) = created?;
        timeline.note(Event::ContainerPrepared);
        tracing::debug!(
            "Prepared the container {}: {}",
            spec.name,
            directory.path().display()
        );
        failpoint::reach("publish");

        let foreground = Foreground {
            terminal: has_terminal,
            signals,
        };
        let logging = Logging {
            level: environment.log_level.map(|level| level.to_string()),
            began_ns: environment.started_ns,
        };
        let attached = start(paths.root(), &spec.id, lock, &logging)
            .context("Cannot start the container's supervisor")?;
        // While the machine boots there is time for what others have left.
        containers.sweep();
        let raw = match has_terminal {
            true => terminal::Raw::enter(has_keys).context("Cannot set the terminal up")?,
            false => None,
        };
        let ending = attached.wait(&foreground);
        drop(raw);
        let ending = ending.context("Cannot wait for the container")?;
        failpoint::reach("end");
        if ending.lost {
            // It had no time to clear up.
            containers.sweep();
        }
        if spec.auto_remove && brought {
            containers.collect_boot_files();
        }
        for warning in &ending.warnings {
            Report::new(format!("The guest warns: {warning}")).show();
        }
        if let Some(report) = &ending.error {
            report.show();
        }
        tracing::debug!("The container is over: exit code {}", ending.exit_code);
        if let Some(format) = timings {
            timeline.merge(&ending.timeline);
            output::complain(&match format {
                Timings::Text => output::timeline_table(&timeline),
                Timings::Json => output::timeline_json(&timeline),
            });
        }
        Ok(ExitCode::from(ending.exit_code))
    }

    /// What the image is called. What is no text is called so by no image.
    fn image(&self) -> String {
        self.words[0].to_string_lossy().into_owned()
    }

    /// What was asked for to run the machine.
    fn asked(&self, environment: &Environment) -> Accelerator {
        let configured = environment.config.accelerator;
        self.accel.or(configured).unwrap_or_default()
    }

    /// What is to run the machine.
    fn accelerator(&self, environment: &Environment, kernel: Option<Entry>) -> Result<Accelerator> {
        let config = &environment.config;
        let accel = self.asked(environment);
        let isolation = self.isolation.or(config.isolation).unwrap_or_default();
        let installed = |entry| boot_files::has_kernel(&environment.paths, entry);
        vm::decide(environment.paths.run(), accel, isolation, kernel, installed).map_err(|error| {
            let configured = (self.accel.is_none() && config.accelerator.is_some())
                || (self.isolation.is_none() && config.isolation.is_some());
            match configured {
                // What was asked for was not asked for here.
                true => anyhow::Error::new(error).context(format!(
                    "Cannot run a machine as it is configured in {}",
                    config.files_text()
                )),
                false => error.into(),
            }
        })
    }

    /// What the flags ask for, and the configuration where they do not.
    fn request(mut self, accelerator: Accelerator, config: &Config) -> Result<Request> {
        let memory = self.memory.or(config.memory);
        let memory = memory.unwrap_or(values::DEFAULT_MEMORY);
        values::within_host(memory)?;
        Ok(Request {
            env: values::environment(&self.env, &self.env_file)?,
            image: self.image(),
            command: self.words.split_off(1),
            entrypoint: self.entrypoint,
            workdir: self.workdir,
            user: self.user,
            hostname: self.hostname,
            interactive: self.interactive,
            terminal: self.tty,
            auto_remove: self.rm,
            read_only: self.read_only,
            tmpfs: self.tmpfs,
            memory,
            start_timeout_s: self.start_timeout,
            debug_console: self.debug_console,
            cpu_milli: self.cpus.or(config.cpu_milli).unwrap_or(1000),
            accelerator,
            mitigations: self.mitigations,
            sandbox: self.sandbox,
            cmdline: values::cmdline(&self.cmdline_append.join(" ")).map_err(anyhow::Error::msg)?,
        })
    }
}

/// Tells who sits at a terminal how to get hardware virtualization, if it is only withheld: once, as the run goes on
/// without.
fn tell_of_kvm(paths: &Paths) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    if let Err(reason) = vm::kvm::access()
        && reason.can_be_granted()
        && once::since_boot(paths.run(), "kvm")
    {
        output::complain(&format!("vmm: this runs without kvm: {reason}\n"));
    }
}

/// All images that can be run: the user's, and those of the installation.
pub(super) fn images(environment: &Environment) -> Store {
    let paths = &environment.paths;
    let images = Store::open(paths.root());
    match paths.share() {
        Some(share) => images.with_behind(Store::open_read_only(share)),
        None => images,
    }
}

/// What there is in the place of an image that is not there.
fn no_image(images: &Store, wanted: &str) -> String {
    let names: Vec<String> = match images.list() {
        Ok(images) => images.into_iter().flat_map(|image| image.names).collect(),
        Err(_) => Vec::new(),
    };
    // A tag goes without saying, and so need not be mistaken.
    let untagged = |name: &'_ str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
    let names: Vec<String> = names.iter().map(|name| untagged(name)).collect();
    let meant = match nearest(&untagged(wanted), names.iter().map(String::as_str)) {
        Some(meant) => format!("; did you mean {meant}?"),
        None => String::new(),
    };
    format!(
        "There is no image {wanted}{meant} (vmm image ls lists all; vmm image load adds one from an archive)"
    )
}
