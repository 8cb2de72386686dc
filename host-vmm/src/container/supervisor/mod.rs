//! The process that owns a container: its machine, the connection to its init, its log and its state. There is one for
//! each container, and it ends with it.

mod console;
mod end;
mod events;
mod failed_logs;
mod guest_log;
mod socket;

use std::{fs::File, io, path::PathBuf, time::Duration};

use imagebuilder::writable;
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use self::{
    console::Console,
    events::{Parts, Running},
    socket::ControlSocket,
};
use super::{
    Containers, StoreError,
    channel::{Channel, Ending, FromSupervisor},
    directory::{Directory, Lock, durability},
    failure::FAILED,
    spec::ContainerSpec,
    state::{self, State, Status},
    timeline::{Event, Timeline, wall_clock_ns},
};
use crate::{
    agent, failpoint,
    paths::Paths,
    report::Report,
    vm::{self, Disk, NoAccelerator, VmConfig, VmError, VsockConfig},
};

/// The guest's context identifier. Every guest has a host of its own, so all can be called the same.
const CID: u64 = 3;

/// What a new supervisor is given.
pub struct Task {
    /// The container.
    pub id: String,
    /// The container's lock, held already.
    pub lock: Lock,
    /// The command that started it.
    pub attached: Channel,
}

/// Why a container's machine could not be started.
#[derive(Debug, thiserror::Error)]
enum StartFailure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Writable(#[from] writable::Error),
    #[error(transparent)]
    Accelerator(#[from] NoAccelerator),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("Cannot write the console's log {}", .path.display())]
    Console { path: PathBuf, source: io::Error },
    #[error("Cannot make the supervisor's socket in {} (with --root it goes below that)", .path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("Cannot prepare the supervisor")]
    Prepare(#[source] io::Error),
}

/// Runs a container from its start to its end, and tells whoever is attached.
pub fn supervise(paths: &Paths, task: Task) {
    let mut timeline = Timeline::default();
    timeline.note(Event::SupervisorStarted);
    failpoint::reach("supervise");
    tracing::debug!("The supervisor is up, process {}", std::process::id());
    let Task { id, lock, attached } = task;
    let (containers, mut record) = match open(paths, &id) {
        Ok(opened) => opened,
        Err(error) => return tell(&[attached], failed(&error, timeline)),
    };
    let hidden = match start(paths, &mut record, timeline.clone()) {
        Err(failure) => {
            // Nothing has run: there is nothing to keep, whatever the user wants kept.
            let hidden = hide(&containers, &record.spec);
            tell(&[attached], failed(&failure, timeline));
            hidden
        }
        Ok(running) => {
            let over = running
                .attach(attached, record.spec.machine.debug_console)
                .run(&mut record);
            let hidden = conclude(&containers, record, over.ending, &over.attached);
            // The user has the answer; this is behind it.
            drop(over.attached);
            failpoint::reach("teardown");
            drop(over.machine);
            tracing::debug!("Took the machine down");
            hidden
        }
    };
    if let Some(hidden) = hidden {
        hidden.delete();
        tracing::debug!("Removed the container");
    }
    drop(lock);
}

/// The container as it was created.
fn open(paths: &Paths, id: &str) -> Result<(Containers, Record), StoreError> {
    let containers = Containers::open(paths);
    let directory = containers.at(id);
    let spec: ContainerSpec =
        state::read(&directory.config())?.ok_or_else(|| StoreError::NotFound(id.to_owned()))?;
    let record = Record {
        state: State {
            supervisor_pid: Some(std::process::id()),
            ..State::default()
        },
        directory,
        spec,
    };
    Ok((containers, record))
}

/// The end of a container that was not started.
fn failed(error: &(dyn std::error::Error + 'static), timeline: Timeline) -> Ending {
    Ending {
        exit_code: FAILED,
        oom: false,
        error: Some(Report::of(error)),
        warnings: Vec::new(),
        timeline,
        lost: false,
    }
}

/// What is written down of the container.
pub(super) struct Record {
    pub(super) spec: ContainerSpec,
    pub(super) state: State,
    directory: Directory,
}

impl Record {
    fn write(&self) -> Result<(), StoreError> {
        let durability = durability(&self.spec);
        state::write(&self.directory.state(), &self.state, durability)
    }
}

/// Writes down how it ended, frees the name of a container that does not stay, and tells. Gives the directory that is
/// to be deleted.
fn conclude(
    containers: &Containers,
    mut record: Record,
    mut ending: Ending,
    attached: &[Channel],
) -> Option<Directory> {
    record.state.status = Status::Exited;
    record.state.finished_ns = Some(wall_clock_ns());
    record.state.exit_code = Some(ending.exit_code);
    record.state.oom_killed = ending.oom;
    let error = ending.error.as_ref();
    record.state.error = error.map(|report| report.causes.join(": "));
    let hidden = match record.spec.auto_remove {
        true => hide(containers, &record.spec),
        false => {
            if let Err(error) = record.write() {
                ending.error.get_or_insert_with(|| Report::of(&error));
            }
            None
        }
    };
    tell(attached, ending);
    hidden
}

/// Frees the container's name. What cannot be removed is swept up later.
fn hide(containers: &Containers, spec: &ContainerSpec) -> Option<Directory> {
    let hidden = containers.hide(spec);
    hidden
        .inspect_err(|error| tracing::debug!("Cannot remove the container: {error}"))
        .ok()
}

fn tell(attached: &[Channel], ending: Ending) {
    let message = FromSupervisor::Ended(ending);
    for channel in attached {
        // Who is gone does not want to know.
        let _ = channel.send(&message, None);
    }
}

/// Makes what the machine needs and starts it.
fn start(
    paths: &Paths,
    record: &mut Record,
    mut timeline: Timeline,
) -> Result<Running, StartFailure> {
    let spec = &record.spec;
    let directory = &record.directory;
    let signals = take_signals().map_err(StartFailure::Prepare)?;
    let hypervisor = vm::open(spec.machine.accelerator)?;
    let layer = directory.writable_layer();
    writable::create(&layer, writable::DEFAULT_SIZE, spec.auto_remove)?;
    tracing::debug!("Made the writable layer");
    let socket = ControlSocket::bind(paths.run(), spec.short_id()).map_err(|source| {
        StartFailure::Socket {
            path: paths.run().to_owned(),
            source,
        }
    })?;
    let path = directory.console_log();
    let (console, guest_console) =
        Console::open(&path).map_err(|source| StartFailure::Console { path, source })?;
    let (ports, listener) = agent::listen().map_err(StartFailure::Prepare)?;
    let config = vm_config(spec, layer, guest_console, VsockConfig { cid: CID, ports });
    let disks = super::boot::DiskNames {
        image: hypervisor.disk_device(0),
        writable: hypervisor.disk_device(1),
    };
    record.state.accelerator = Some(hypervisor.name().to_owned());
    let machine = &spec.machine;
    let vm = hypervisor.start(config)?;
    timeline.note(Event::VmStarted);
    tracing::debug!(
        "Spawned the machine by {}: CPUs {}, memory {} MiB, kernel {}, initfs {}",
        hypervisor.name(),
        machine.cpus(),
        machine.memory >> 20,
        machine.kernel.path.display(),
        machine.initfs.path.display()
    );
    failpoint::reach("spawn");
    Ok(Running::new(Parts {
        vm,
        console,
        listener,
        socket,
        signals,
        disks,
        timeline,
        start_timeout: Duration::from_secs(spec.machine.start_timeout_s.into()),
        aside: spec.auto_remove.then(|| paths.failed_log(spec.short_id())),
    }))
}

/// The machine of a container: its disks are the image and the writable layer, in this order.
#[must_use]
pub fn vm_config(
    spec: &ContainerSpec,
    layer: PathBuf,
    console: File,
    vsock: VsockConfig,
) -> VmConfig {
    let machine = &spec.machine;
    VmConfig {
        cpus: machine.cpus(),
        memory: machine.memory,
        kernel: machine.kernel.path.clone(),
        initfs: machine.initfs.path.clone(),
        mitigations: machine.mitigations,
        sandbox: machine.sandbox,
        cmdline: machine.cmdline.clone(),
        verbose: machine.debug_console,
        disks: vec![
            Disk {
                path: spec.surroundings.rootfs.clone(),
                read_only: true,
                ephemeral: true,
            },
            Disk {
                path: layer,
                read_only: false,
                ephemeral: spec.auto_remove,
            },
        ],
        vsock,
        console,
    }
}

/// The signals by which a supervisor is told to end its container.
fn take_signals() -> io::Result<SignalFd> {
    let signals: SigSet = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ]
    .into_iter()
    .collect();
    signals.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&signals, flags)?)
}

/// Ends a container that somebody else runs, and waits until nobody does, but not for ever.
///
/// # Errors
/// Its supervisor does not answer or does not end.
pub fn kill(paths: &Paths, directory: &Directory, short_id: &str) -> Result<Lock, StoreError> {
    socket::kill(paths.run(), short_id).map_err(StoreError::disk(
        "reach the supervisor at",
        &paths.run().join(short_id),
    ))?;
    directory.wait_for_lock()
}
