//! Hardware virtualization: a thin VMM of our own on KVM.
//!
//! A machine is a process of its own: this program, started again with nothing but the descriptors that it needs, confined
//! like any process that a guest may come to own ([`crate::sandbox`]). It makes the machine itself, as KVM binds a machine to
//! the memory of the process that made it, and has all of its devices; before the guest's first instruction each of its
//! threads enters a tighter filter of system calls ([`calls`]). All that is left on this side is a thread that answers when
//! the guest dials a port of its host ([`link`]).

mod access;
pub mod boot;
pub mod bus;
mod calls;
mod cpuid;
mod description;
pub mod interrupts;
pub mod ioapic;
pub mod layout;
pub mod link;
mod machine;
pub mod memory;
mod mptable;
mod parts;
pub mod probe;
pub mod serial;
mod signals;
pub mod vcpu;
mod verdict;
pub mod worker;

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::Path,
    process::ExitStatus,
};

pub use access::{NoKvm, access, usable};

use self::{
    description::{Description, DiskDescription, NAME},
    link::{Answering, LastWords},
};
use super::{
    Failed, Hypervisor, Vm, VmConfig, VmError,
    guest_process::{End, GuestProcess},
};
use crate::{
    failpoint,
    sandbox::{self, Forbidden, Needs, Plan},
};

/// What every kernel needs on this machine:
///
/// - a panic, and a restart, end the VM by the keyboard controller's reset, at once and without looking after other
///   processors; a panic says so where the next start would look whether it is a warm one;
/// - the timer is not checked, and the time stamp counter not watched;
/// - lock prefixes are not patched out.
const CMDLINE: &str =
    "console=ttyS0 panic=-1 reboot=k,f,panic_warm no_timer_check tsc=reliable noreplace-smp";

/// The serial port shows errors and a panic, and nothing else: each byte costs an exit.
const CMDLINE_QUIET: &str = "quiet";

/// It shows everything, what PID 1 says too, however much that is.
const CMDLINE_VERBOSE: &str = "printk.devkmsg=on";

/// Private memory of a machine's process beside the guest's, in bytes: several times what it has.
const PRIVATE: u64 = 64 << 20;

/// Most processes and threads. Where there are no namespaces of users, or the host's kernel is older than 5.14, this counts
/// all of the user's; what keeps a machine from making any more are its threads' filters.
const PROCESSES: u64 = 32_768;

/// Becomes a machine, if this process was started to be one.
#[must_use]
pub fn enter() -> Option<Infallible> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == NAME).then(|| machine::run(&arguments.next().unwrap_or_default()))
}

/// A thin VMM on KVM.
pub struct Kvm;

impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    /// Whether Linux runs on it was found out before.
    fn probe(&self) -> Result<(), String> {
        access().map_err(|error| error.to_string())
    }

    fn describe(&self) -> Result<String, String> {
        self.probe()?;
        let process = super::confined_process()?;
        Ok(format!("hardware virtualization, driven by {process}"))
    }

    fn disk_device(&self, index: usize) -> String {
        super::virtio_disk_name(index)
    }

    fn start(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        let device = open(Path::new(access::DEVICE), true, "")?;
        let program = open(Path::new("/proc/self/exe"), false, "this program, ")?;
        let kernel = open(&config.kernel, false, "the kernel ")?;
        let initfs = open(&config.initfs, false, "the initfs ")?;
        let disks = config.disks.iter().map(|disk| {
            let file = open(&disk.path, !disk.read_only, "the disk ")?;
            Ok((file, disk))
        });
        let disks = disks.collect::<Result<Vec<_>, VmError>>()?;
        let (link, ours) = link::pair().map_err(step("make a socket for the machine"))?;
        let description = Description {
            cpus: config.cpus,
            memory: config.memory,
            cmdline: cmdline(&config),
            cid: config.vsock.cid,
            kvm: device.as_raw_fd(),
            kernel: kernel.as_raw_fd(),
            initfs: initfs.as_raw_fd(),
            link: link.as_raw_fd(),
            disks: disks
                .iter()
                .map(|(file, disk)| DiskDescription {
                    file: file.as_raw_fd(),
                    read_only: disk.read_only,
                    ephemeral: disk.ephemeral,
                })
                .collect(),
        };
        let mut inherited: Vec<BorrowedFd<'_>> =
            [&device, &kernel, &initfs].map(AsFd::as_fd).into();
        inherited.push(link.as_fd());
        inherited.extend(disks.iter().map(|(file, _)| file.as_fd()));
        let plan = Plan {
            program: program.as_fd(),
            arguments: arguments(&description)?,
            inherited,
            output: config.console.as_fd(),
            filter: calls::process().map_err(|error| VmError::Host {
                doing: "compile the filter of system calls".to_owned(),
                source: io::Error::other(error),
            })?,
            needs: Needs {
                processes: PROCESSES,
                private: config.memory + PRIVATE,
                file: longest(&disks).map_err(step("look at the disks"))?,
            },
            sandbox: config.sandbox,
        };
        let answering = Answering::spawn(ours, config.vsock.ports)
            .map_err(step("answer the machine's process"))?;
        let confined = sandbox::spawn(&plan).map_err(|error| VmError::Host {
            doing: "start the machine's process".to_owned(),
            source: io::Error::other(error),
        })?;
        for missing in &confined.missing {
            tracing::debug!(
                "The machine goes without a layer ({}): {}",
                missing.layer,
                missing.error
            );
        }
        let process = GuestProcess::watch(confined.pid, Vec::new(), confined.guard)
            .map_err(step("watch the machine's process"))?;
        Ok(Box::new(KvmVm {
            process,
            forbidden: confined.forbidden,
            answering,
        }))
    }
}

/// The kernel's command line, without the devices'.
fn cmdline(config: &VmConfig) -> String {
    let mut words = vec![CMDLINE.to_owned()];
    // Left to itself, a kernel does what is right on this processor.
    words.extend(
        config
            .mitigations
            .map(|mitigations| format!("mitigations={}", mitigations.name())),
    );
    words.push(
        match config.verbose {
            true => CMDLINE_VERBOSE,
            false => CMDLINE_QUIET,
        }
        .to_owned(),
    );
    words.extend(config.cmdline.split_ascii_whitespace().map(str::to_owned));
    words.join(" ")
}

fn arguments(description: &Description) -> Result<Vec<CString>, VmError> {
    let argument = description.to_argument().map_err(io::Error::from);
    let argument = argument.and_then(|text| Ok(CString::new(text)?));
    let argument = argument.map_err(step("describe the machine"))?;
    let words = [CString::new("vmm"), CString::new(NAME)];
    let words: Result<Vec<_>, _> = words.into_iter().collect();
    let mut words = words.map_err(|error| step("describe the machine")(error.into()))?;
    words.push(argument);
    words.extend(failpoint::misbehaviour());
    Ok(words)
}

/// The length of the longest of the disks that are written, in bytes.
fn longest(disks: &[(OwnedFd, &super::Disk)]) -> io::Result<u64> {
    let mut longest = 0;
    for (file, _) in disks.iter().filter(|(_, disk)| !disk.read_only) {
        let size = rustix::fs::fstat(file)?.st_size;
        longest = longest.max(u64::try_from(size).unwrap_or(0));
    }
    Ok(longest)
}

fn open(path: &Path, writable: bool, what: &str) -> Result<OwnedFd, VmError> {
    let file = File::options().read(true).write(writable).open(path);
    let file = file.map_err(step(&format!("open {what}{}", path.display())))?;
    Ok(file.into())
}

fn step(doing: &str) -> impl Fn(io::Error) -> VmError {
    let doing = doing.to_owned();
    move |source| VmError::Host {
        doing: doing.clone(),
        source,
    }
}

/// A machine's process.
struct KvmVm {
    process: GuestProcess,
    /// What it was killed for while it made the machine.
    forbidden: Forbidden,
    answering: Answering,
}

impl KvmVm {
    fn explain(&self, status: ExitStatus) -> Option<Failed> {
        let failed = |what: String| Some(Failed { what, advice: None });
        let LastWords {
            failed: why,
            forbidden,
        } = self.answering.last_words();
        if let Some(call) = self.forbidden.call().or(forbidden) {
            return failed(format!(
                "The machine's process was ended for the system call {call}, which is none of its business"
            ));
        }
        match (status.code(), status.signal()) {
            (Some(0), _) => None,
            (Some(machine::PANICKED), _) => failed("The guest's kernel panicked".to_owned()),
            (Some(machine::NO_ROOM), _) => Some(Failed::no_room()),
            (Some(machine::FAILED), _) if why.is_some() => why.and_then(failed),
            (_, Some(libc::SIGSYS)) => failed(
                "The machine's process was killed for a system call that is none of its business"
                    .to_owned(),
            ),
            (_, Some(signal)) => failed(format!(
                "The machine's process was killed by signal {signal}"
            )),
            (code, None) => failed(format!(
                "The machine's process failed with exit code {}",
                code.unwrap_or_default()
            )),
        }
    }
}

impl Vm for KvmVm {
    fn gone(&self) -> BorrowedFd<'_> {
        self.process.gone()
    }

    fn is_stopped(&self) -> bool {
        self.process.is_stopped()
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    fn wait(&mut self) -> io::Result<Option<Failed>> {
        Ok(match self.process.wait()? {
            End::Exited(status) => self.explain(status),
            End::Killed => None,
            // It has no devices on this side.
            End::BrokeRules(_) | End::NoRoom | End::HungUp => None,
        })
    }
}
