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
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{ffi::OsStrExt, net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};

use super::{
    Failed, Hypervisor, Vm, VmConfig, VmError,
    guest_process::{End, GuestProcess},
    memory::SharedMemory,
};
use crate::{
    devices::{transport::vhost_user::Server, vsock::Vsock},
    process::{Bond, spawn},
    terminal::printable,
};

/// The emulator's program.
const PROGRAM: &str = "qemu-system-x86_64";

/// Most of what QEMU prints that is kept for an error, in bytes.
const MAX_OUTPUT: usize = 4096;

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
        // A child of ours has a positive number.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = pid
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
            .and_then(|pid| GuestProcess::watch(pid, vec![server], None))
            .map_err(step("watch the emulator"))?;
        Ok(Box::new(QemuVm {
            program: program.clone(),
            process,
            output: output.into(),
        }))
    }
}

/// A running emulator and our device beside it.
struct QemuVm {
    program: PathBuf,
    process: GuestProcess,
    output: File,
}

impl QemuVm {
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
}

impl Vm for QemuVm {
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
        Ok(match self.process.wait()? {
            End::Killed => None,
            End::BrokeRules(how) => failed(format!(
                "The guest broke the rules of its vsock device: {how}"
            )),
            End::NoRoom => Some(Failed::no_room()),
            End::HungUp => failed("QEMU hung up its device and did not end".to_owned()),
            End::Exited(status) => self.reason(status),
        })
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
