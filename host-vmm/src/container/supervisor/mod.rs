//! The process that owns a container: its machine, the connection to its init, its log and its state. There is one for
//! each container, and it ends with it.

mod console;
mod events;
mod socket;

use std::{error::Error, fs::File, io, path::PathBuf};

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
    agent,
    paths::Paths,
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
    #[error("Cannot make the supervisor's socket in {}", .path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("Cannot prepare the supervisor")]
    Prepare(#[source] io::Error),
}

/// Runs a container from its start to its end, and tells whoever is attached.
///
/// # Errors
/// The container's own record cannot be read or written. Everything else is told over the channel.
pub fn supervise(paths: &Paths, task: Task) -> Result<(), StoreError> {
    let mut timeline = Timeline::default();
    timeline.note(Event::SupervisorStarted);
    let containers = Containers::open(paths)?;
    let directory = containers.at(&task.id);
    let spec: ContainerSpec =
        state::read(&directory.config())?.ok_or_else(|| StoreError::NotFound(task.id.clone()))?;
    let mut record = Record {
        state: State {
            supervisor_pid: Some(std::process::id()),
            ..State::default()
        },
        directory,
        spec,
    };
    let attached = task.attached;
    match start(paths, &mut record, timeline.clone()) {
        Err(failure) => {
            let ending = Ending {
                exit_code: FAILED,
                oom: false,
                error: chain(&failure),
                timeline,
                lost: false,
            };
            conclude(&containers, record, ending, &[attached]).map(|hidden| {
                if let Some(hidden) = hidden {
                    hidden.delete();
                }
            })
        }
        Ok(running) => {
            let over = running.attach(attached).run(&mut record);
            let hidden = conclude(&containers, record, over.ending, &over.attached)?;
            // The user has the answer; this is behind it.
            drop(over.attached);
            drop(over.machine);
            if let Some(hidden) = hidden {
                hidden.delete();
            }
            drop(task.lock);
            Ok(())
        }
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
    ending: Ending,
    attached: &[Channel],
) -> Result<Option<Directory>, StoreError> {
    record.state.status = Status::Exited;
    record.state.finished_ns = Some(wall_clock_ns());
    record.state.exit_code = Some(ending.exit_code);
    record.state.oom_killed = ending.oom;
    record.state.error = (!ending.error.is_empty()).then(|| ending.error.join(": "));
    let kept = match record.spec.auto_remove {
        true => containers.hide(&record.spec).map(Some),
        false => record.write().map(|()| None),
    };
    let message = FromSupervisor::Ended(ending);
    for channel in attached {
        // Who is gone does not want to know.
        let _ = channel.send(&message, None);
    }
    kept
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
    let hypervisor = vm::select(spec.machine.accelerator)?;
    let layer = directory.writable_layer();
    writable::create(&layer, writable::DEFAULT_SIZE, spec.auto_remove)?;
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
    let vm = hypervisor.start(config)?;
    timeline.note(Event::VmStarted);
    Ok(Running::new(Parts {
        vm,
        console,
        listener,
        socket,
        signals,
        disks,
        timeline,
    }))
}

/// The machine of a container: its disks are the image and the writable layer, in this order.
fn vm_config(spec: &ContainerSpec, layer: PathBuf, console: File, vsock: VsockConfig) -> VmConfig {
    let machine = &spec.machine;
    VmConfig {
        cpus: machine.cpus(),
        memory: machine.memory,
        kernel: machine.kernel.path.clone(),
        initfs: machine.initfs.path.clone(),
        cmdline: machine.cmdline.clone(),
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

/// An error and its causes, one line each.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        lines.push(cause.to_string());
        source = cause.source();
    }
    lines
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
