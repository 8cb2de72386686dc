//! Software emulation: drives QEMU's `microvm`, which runs any x86 kernel on any machine.
//!
//! Guest memory is ours and sealed; vsock is our own device behind vhost-user; the block devices and the serial port
//! are QEMU's. QEMU is confined by its own system call filter, and dies with the process that started it.

mod arguments;
mod tsc;
mod version;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{Failed, Hypervisor, Vm, VmConfig, VmError, memory::SharedMemory};
use crate::{
    devices::{transport::vhost_user::Server, vsock::Vsock},
    process::{Bond, is_readable_within, is_stopped, spawn},
    terminal::printable,
};

/// The emulator's program.
const PROGRAM: &str = "qemu-system-x86_64";

/// Most of what QEMU prints that is kept for an error, in bytes.
const MAX_OUTPUT: usize = 4096;

/// How long QEMU may take to end after it has let go of our device.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long what a dead guest has sent may take to reach whoever reads it on the host.
const DRAIN: Duration = Duration::from_secs(5);

/// QEMU in software emulation.
pub struct Qemu {
    /// The program, if it is installed.
    program: Option<PathBuf>,
    /// Taken early, so that there is some time to the next.
    tsc: tsc::Reading,
}

impl Qemu {
    /// Looks for the emulator in the directories of `PATH`.
    #[must_use]
    pub fn from_path() -> Self {
        Self::from_directories(&env::var_os("PATH").unwrap_or_default())
    }

    /// Looks for the emulator in directories that are written as in `PATH`.
    #[must_use]
    pub fn from_directories(directories: &OsStr) -> Self {
        let tsc = tsc::Reading::take();
        let program = env::split_paths(directories)
            .map(|directory| directory.join(PROGRAM))
            .find(|path| is_executable(path));
        Self { program, tsc }
    }

    fn installed(&self) -> Result<&Path, String> {
        self.program.as_deref().ok_or_else(|| {
            format!(
                "{PROGRAM} is not in the PATH; install QEMU (Debian's package is qemu-system-x86)"
            )
        })
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "tcg"
    }

    fn probe(&self) -> Result<(), String> {
        self.installed().map(drop)
    }

    fn describe(&self) -> Result<String, String> {
        let program = self.installed()?;
        let shown = program.display();
        match version::of(program) {
            Some(version) if version < version::OLDEST => Err(format!(
                "{shown} is version {version}, and {} is the oldest that works; install a newer QEMU",
                version::OLDEST
            )),
            Some(version) => Ok(format!("{shown}, version {version}")),
            None => Ok(format!("{shown}, which does not tell its version")),
        }
    }

    fn disk_device(&self, index: usize) -> String {
        super::virtio_disk_name(index)
    }

    fn start(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        let program = self.program.as_ref().ok_or_else(|| VmError::Host {
            doing: format!("find {PROGRAM}"),
            source: io::Error::from_raw_os_error(libc::ENOENT),
        })?;
        let step = |doing: &str| {
            let doing = doing.to_owned();
            move |source: io::Error| VmError::Host { doing, source }
        };
        let memory = SharedMemory::create(config.memory).map_err(step("make guest memory"))?;
        let (ours, theirs) = UnixStream::pair().map_err(step("make the vsock device's socket"))?;
        let device = Vsock::new(config.vsock.cid, config.vsock.ports);
        let server = Server::spawn(ours, memory.clone(), Box::new(device))
            .map_err(step("start the vsock device"))?;
        let (output, qemu_output) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|errno| step("make a pipe")(errno.into()))?;
        let machine = arguments::Machine {
            cpus: config.cpus,
            memory_bytes: config.memory,
            memory_fd: memory.as_fd().as_raw_fd(),
            kernel: &config.kernel,
            initfs: &config.initfs,
            mitigations: config.mitigations,
            cmdline: &config.cmdline,
            verbose: config.verbose,
            tsc_khz: self.tsc.khz(),
            disks: &config.disks,
            vsock_fd: theirs.as_raw_fd(),
            console_fd: config.console.as_raw_fd(),
        };
        let mut command = Command::new(program);
        command
            .args(machine.arguments())
            // Nothing of ours is of use to it, and what it does must not depend on who runs it.
            .env_clear()
            .stdout(Stdio::null())
            .stderr(qemu_output);
        let inherited = [memory.as_fd(), theirs.as_fd(), config.console.as_fd()];
        let child = spawn(&mut command, &inherited, Bond::DiesWithUs)
            .map_err(step(&format!("start {}", program.display())))?;
        QemuVm::watch(program.clone(), child, server, output.into())
            .map(|vm| Box::new(vm) as Box<dyn Vm>)
            .map_err(step("watch the emulator"))
    }
}

/// A running emulator and our device beside it.
struct QemuVm {
    program: PathBuf,
    child: Child,
    /// How it ended, once it has been reaped.
    ended: Option<ExitStatus>,
    killed: bool,
    server: Server,
    output: File,
    /// Watched by `gone`, which it must outlive.
    pidfd: OwnedFd,
    /// An epoll descriptor over everything that means the end.
    gone: OwnedFd,
}

impl QemuVm {
    fn watch(program: PathBuf, mut child: Child, server: Server, output: File) -> io::Result<Self> {
        match watch_end(&child, &server) {
            Ok((pidfd, gone)) => Ok(Self {
                program,
                child,
                ended: None,
                killed: false,
                server,
                output,
                pidfd,
                gone,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// What QEMU printed, in one line.
    fn output(&mut self) -> String {
        let mut bytes = vec![0; MAX_OUTPUT];
        let count = self.output.read(&mut bytes).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..count]);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        printable(&lines.join("; "), MAX_OUTPUT)
    }

    /// Why QEMU ended by itself, unless its guest wanted that.
    fn reason(&mut self, status: ExitStatus) -> Option<Failed> {
        let output = self.output();
        let how = match (status.signal(), status.code()) {
            (Some(signal), _) => format!("QEMU was killed by signal {signal}"),
            (None, Some(0)) if output.is_empty() => return None,
            // As when somebody sent it a signal: it tells which, and who.
            (None, Some(0)) => "QEMU ended".to_owned(),
            (None, code) => format!("QEMU failed with exit code {}", code.unwrap_or_default()),
        };
        let what = match output.is_empty() {
            true => how,
            false => format!("{how}: {output}"),
        };
        let program = self.program.display();
        let advice = match version::of(&self.program) {
            Some(version) if version < version::OLDEST => Some(format!(
                "a newer QEMU: {program} is version {version}, and {} is the oldest that works",
                version::OLDEST
            )),
            Some(_) => None,
            None => Some(format!("another QEMU: {program} does not tell its version")),
        };
        Some(Failed { what, advice })
    }

    fn wait_until_drained(&self) {
        is_readable_within(self.server.ended(), DRAIN);
    }
}

/// A descriptor for the process, and one that is readable when the process or the device has ended.
fn watch_end(child: &Child, server: &Server) -> io::Result<(OwnedFd, OwnedFd)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let gone = epoll::create(CreateFlags::CLOEXEC)?;
    for fd in [pidfd.as_fd(), server.ended()] {
        epoll::add(&gone, fd, EventData::new_u64(0), EventFlags::IN)?;
    }
    Ok((pidfd, gone))
}

impl Vm for QemuVm {
    fn gone(&self) -> BorrowedFd<'_> {
        self.gone.as_fd()
    }

    fn is_stopped(&self) -> bool {
        is_stopped(&self.child)
    }

    fn kill(&mut self) {
        if self.ended.is_none() {
            self.killed = true;
            // Fails only if it has been reaped.
            let _ = self.child.kill();
        }
    }

    fn wait(&mut self) -> io::Result<Option<Failed>> {
        // Our device failing leaves the guest without a host: that is its end, too.
        let device = self.server.failure();
        if device.is_some() {
            self.kill();
        }
        // Without its device, too, but it may only be on its way.
        let hung = !self.killed && !is_readable_within(self.pidfd.as_fd(), FAREWELL);
        if hung {
            self.kill();
        }
        let status = match self.ended {
            Some(status) => status,
            None => self.child.wait()?,
        };
        self.ended = Some(status);
        if !self.killed {
            self.wait_until_drained();
        }
        let failed = |what: String| Failed { what, advice: None };
        Ok(match device {
            Some(failure) => Some(failed(format!(
                "The guest broke the rules of its vsock device: {failure}"
            ))),
            None if hung => Some(failed("QEMU hung up its device and did not end".to_owned())),
            None if self.killed => None,
            None => self.reason(status),
        })
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        self.kill();
        if self.ended.is_none() {
            // It was killed: this does not take long.
            let _ = self.child.wait();
        }
    }
}

/// A name as QEMU's options take it: a comma is doubled.
fn escaped(path: &Path) -> OsString {
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}
