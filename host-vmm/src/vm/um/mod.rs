//! A kernel as a process: user-mode Linux, on any host, without virtualization of any kind.
//!
//! The kernel is a program of the host. It runs its guest's processes as processes of the host, whose system calls and
//! faults it takes by ptrace; no instruction of theirs reaches the host's kernel. Memory is ours and sealed; disks and
//! vsock are our own devices behind vhost-user, whose front end is the guest's kernel and so the attacker. The kernel's
//! process, and with it all that it starts, is confined ([`crate::sandbox`]).

mod calls;
mod ptrace;

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::Path,
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use super::{
    Failed, Hypervisor, Vm, VmConfig, VmError,
    guest_process::{End, GuestProcess},
    memory::SharedMemory,
};
use crate::{
    devices::{
        VirtioDevice,
        balloon::Balloon,
        block::{Block, Disk},
        transport::vhost_user::Server,
        vsock::Vsock,
    },
    sandbox::{self, Forbidden, Needs, Plan, Sandbox},
};

/// Only warnings and a panic are printed.
const CMDLINE_QUIET: &str = "quiet";

/// It prints everything, what PID 1 says too.
const CMDLINE_VERBOSE: &str = "printk.devkmsg=on";

/// What an idle kernel would wake up for, each time by some signals and system calls of the host: twice a second to look
/// whether memory should be compacted for huge pages, which it does not have, and every five seconds to look after neighbours
/// that somebody has asked to be kept, in either version of the Internet protocol; now once a day.
const CMDLINE_IDLE: &str = "sysctl.vm.compaction_proactiveness=0 \
     sysctl.net.ipv4.neigh.default.interval_probe_time_ms=86400000 \
     sysctl.net.ipv6.neigh.default.interval_probe_time_ms=86400000";

/// Processes that run guest code need not have a filter of their own where the host gives them none.
const CMDLINE_WEAK: &str = "unfiltered_stubs";

/// What a kernel may use up.
const NEEDS: Needs = Needs {
    processes: 32_768,
    // Twenty times what it has. Guest memory is shared, and no part of it.
    private: 64 << 20,
    // As much as the program that runs guest code, several times.
    file: 16 << 20,
};

/// Exit statuses by which the kernel tells how it ended; 0 is a power-off.
const RESTARTED: i32 = 2;
const PANICKED: i32 = 3;

/// A kernel as a process.
pub struct Um;

impl Hypervisor for Um {
    fn name(&self) -> &'static str {
        "um"
    }

    fn probe(&self) -> Result<(), String> {
        ptrace::probe().map_err(|error| {
            format!("no process may be traced here ({error}); allow ptrace, as by the profile of a container's runtime")
        })
    }

    fn describe(&self) -> Result<String, String> {
        self.probe()?;
        super::confined_process()
    }

    fn disk_device(&self, index: usize) -> String {
        super::virtio_disk_name(index)
    }

    fn start(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        let kernel = open(&config.kernel, "the kernel")?;
        let initfs = open(&config.initfs, "the initfs")?;
        let memory = SharedMemory::create(config.memory).map_err(step("make guest memory"))?;
        let mut machine = Machine {
            memory: &memory,
            servers: Vec::new(),
            sockets: Vec::new(),
        };
        let vsock = Vsock::new(config.vsock.cid, config.vsock.ports);
        machine.add(Box::new(vsock), "vsock")?;
        machine.add(Box::new(Balloon::new(0)), "balloon")?;
        for disk in &config.disks {
            let file = File::options()
                .read(true)
                .write(!disk.read_only)
                .open(&disk.path)
                .and_then(|file| Disk::new(file, disk.read_only, disk.ephemeral))
                .map_err(step(&format!("open the disk {}", disk.path.display())))?;
            machine.add(Box::new(Block::new(file)), "block")?;
        }
        let mut words = vec![match config.verbose {
            true => CMDLINE_VERBOSE,
            false => CMDLINE_QUIET,
        }];
        words.extend(CMDLINE_IDLE.split_ascii_whitespace());
        if config.sandbox == Sandbox::Weak {
            words.push(CMDLINE_WEAK);
        }
        words.extend(config.cmdline.split_ascii_whitespace());
        let Machine {
            servers, sockets, ..
        } = machine;
        let mut inherited: Vec<BorrowedFd<'_>> = vec![memory.as_fd(), initfs.as_fd()];
        inherited.extend(sockets.iter().map(|(_, socket)| socket.as_fd()));
        let plan = Plan {
            program: kernel.as_fd(),
            arguments: arguments(&memory, &initfs, &sockets, &words)?,
            inherited,
            output: config.console.as_fd(),
            filter: calls::filter().map_err(|error| VmError::Host {
                doing: "compile the filter of system calls".to_owned(),
                source: io::Error::other(error),
            })?,
            needs: NEEDS,
            sandbox: config.sandbox,
        };
        let placed = Placed::here().map_err(step("choose a CPU"))?;
        let confined = sandbox::spawn(&plan);
        drop(placed);
        let confined = confined.map_err(|error| VmError::Host {
            doing: format!("start {}", config.kernel.display()),
            source: io::Error::other(error),
        })?;
        for missing in &confined.missing {
            tracing::debug!(
                "The kernel goes without a layer ({}): {}",
                missing.layer,
                missing.error
            );
        }
        let process = GuestProcess::watch(confined.pid, servers, confined.guard)
            .map_err(step("watch the kernel"))?;
        Ok(Box::new(UmVm {
            process,
            forbidden: confined.forbidden,
        }))
    }
}

/// Keeps what the calling thread starts on the CPU that it is on, until it is dropped.
///
/// A system call or a fault of the guest switches between the kernel and a stub and back. On one CPU that is several
/// times as quick as between two that are idle: a gibibyte touched in random order takes 14 s there, and 94 s otherwise.
/// The scheduler has put this thread, which is new, where there was least to do.
struct Placed(CpuSet);

impl Placed {
    fn here() -> io::Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        sched_setaffinity(None, &here)?;
        Ok(Self(before))
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // Was allowed before. If not, the devices stay beside their guest.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// The devices of a machine that is being made.
struct Machine<'a> {
    memory: &'a SharedMemory,
    servers: Vec<Server>,
    /// The front ends' sockets, with the type of each device.
    sockets: Vec<(u32, UnixStream)>,
}

impl Machine<'_> {
    fn add(&mut self, device: Box<dyn VirtioDevice>, name: &str) -> Result<(), VmError> {
        let kind = device.device_type();
        let serve = || {
            let (ours, theirs) = UnixStream::pair()?;
            let server = Server::spawn(ours, self.memory.clone(), device)?;
            Ok((server, theirs))
        };
        let (server, theirs) = serve().map_err(step(&format!("start the {name} device")))?;
        self.servers.push(server);
        self.sockets.push((kind, theirs));
        Ok(())
    }
}

/// The kernel's arguments: its name, and the words of its command line.
fn arguments(
    memory: &SharedMemory,
    initfs: &File,
    sockets: &[(u32, UnixStream)],
    more: &[&str],
) -> Result<Vec<CString>, VmError> {
    let mut words = vec![
        "linux".to_owned(),
        format!("mem=fd{}", memory.as_fd().as_raw_fd()),
        format!("initrd=fd{}", initfs.as_raw_fd()),
    ];
    for (kind, socket) in sockets {
        words.push(format!("virtio_uml.device=fd{}:{kind}", socket.as_raw_fd()));
    }
    words.extend(more.iter().map(|word| (*word).to_owned()));
    let strings: Result<_, _> = words.into_iter().map(CString::new).collect();
    strings.map_err(|error| VmError::Host {
        doing: "write the kernel's command line".to_owned(),
        source: error.into(),
    })
}

fn open(path: &Path, what: &str) -> Result<File, VmError> {
    File::open(path).map_err(step(&format!("open {what} {}", path.display())))
}

fn step(doing: &str) -> impl Fn(io::Error) -> VmError {
    let doing = doing.to_owned();
    move |source| VmError::Host {
        doing: doing.clone(),
        source,
    }
}

/// A running kernel and our devices beside it.
struct UmVm {
    process: GuestProcess,
    /// What the host has killed it for.
    forbidden: Forbidden,
}

impl Vm for UmVm {
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
        let failed = |what: String| Some(Failed { what, advice: None });
        let status = match self.process.wait()? {
            End::Killed => return Ok(None),
            End::BrokeRules(how) => {
                return Ok(failed(format!(
                    "The guest broke the rules of a device: {how}"
                )));
            }
            End::NoRoom => return Ok(Some(Failed::no_room())),
            End::HungUp => {
                return Ok(failed(
                    "The kernel hung up a device and did not end".to_owned(),
                ));
            }
            End::Exited(status) => status,
        };
        if let Some(call) = self.forbidden.call() {
            return Ok(failed(format!(
                "The guest's kernel was killed for the system call {call}, which is none of its business"
            )));
        }
        Ok(match (status.code(), status.signal()) {
            (Some(0 | RESTARTED), _) => None,
            (Some(PANICKED), _) => failed("The guest's kernel panicked".to_owned()),
            (_, Some(libc::SIGSYS)) => failed(
                "The guest's kernel was killed for a system call that is none of its business"
                    .to_owned(),
            ),
            (_, Some(signal)) => {
                failed(format!("The guest's kernel was killed by signal {signal}"))
            }
            (code, None) => failed(format!(
                "The guest's kernel failed with exit code {}",
                code.unwrap_or_default()
            )),
        })
    }
}
