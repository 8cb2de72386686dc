//! What the frames say.
//!
//! `vminitd` does not know OCI: the host resolves every default and sends a plain description of
//! disks, mounts and one process. Strings that Linux treats as bytes (arguments, environment, paths)
//! are [`Bytes`], so that names which are not UTF-8 survive.

use serde::{Deserialize, Serialize};

use crate::Token;

/// A byte string as Linux knows it: any bytes but NUL where it ends up in a system call.
pub type Bytes = Vec<u8>;

/// Frames from `vminitd` to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestFrame {
    /// First frame of the connection.
    Hello(Hello),
    /// The container's main process has been executed: its program is running.
    Started(Started),
    /// The main process has ended, its output has been delivered and the file systems are synced.
    /// Nothing follows.
    Exited(Exited),
    /// The container could not be started. Nothing follows.
    Error(StartError),
    /// A line for the host's log about something that is not fatal.
    Log {
        /// How important the line is.
        level: Level,
        /// The line, without a line feed.
        text: String,
    },
}

/// Frames from the host to `vminitd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostFrame {
    /// The one answer to [`GuestFrame::Hello`]: everything needed to start the container.
    Boot(Box<Boot>),
    /// Send a signal to the container's main process.
    Signal {
        /// Linux signal number on x86-64, 1 to 64.
        signal: u8,
    },
    /// The terminal has another size.
    Resize(WindowSize),
}

/// How `vminitd` introduces itself. Its first field never moves: [`Hello::peek_version`] reads it
/// even where the rest has another shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the guest.
    pub version: u32,
    /// `uname -r` of the guest kernel.
    pub kernel_release: String,
    /// `CLOCK_MONOTONIC` of the guest at the moment of sending, in ns. Pairs the guest's clock with
    /// the host's.
    pub now_ns: u64,
    /// `CLOCK_MONOTONIC` at which `main` of `vminitd` began, in ns.
    pub init_ns: u64,
}

impl Hello {
    /// Reads the protocol version from the body of a frame that should be a
    /// [`GuestFrame::Hello`] of any version. `None` if it is no `Hello`.
    pub fn peek_version(body: &[u8]) -> Option<u32> {
        match postcard::take_from_bytes::<(u32, u32)>(body) {
            Ok(((0, version), _)) => Some(version),
            _ => None,
        }
    }
}

/// Everything `vminitd` needs to start the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Wall clock to set: ns since the Unix epoch.
    pub realtime_ns: u64,
    /// Entropy that is credited to the guest's random number generator before anything else runs.
    pub entropy: [u8; 32],
    /// Host name of the container.
    pub hostname: String,
    /// Content of `/etc/hosts`.
    pub hosts: Bytes,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: Bytes,
    /// The container's root file system.
    pub root: Root,
    /// Further mounts in order, inside the container's root.
    pub mounts: Vec<Mount>,
    /// Ceiling on CPU time in thousandths of a CPU, if it is less than all CPUs of the VM.
    pub cpu_limit_milli: Option<u32>,
    /// The main process.
    pub process: Process,
}

/// Where the container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Name under `/dev` of the disk with the image (ext4), mounted read-only.
    pub image_device: String,
    /// Name under `/dev` of the disk with the writable layer (ext4).
    pub writable_device: String,
    /// The container sees its root file system read-only.
    pub read_only: bool,
    /// The writable layer is thrown away after the run: there is nothing to sync.
    pub ephemeral: bool,
}

/// A mount inside the container's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// A `tmpfs`.
    Tmpfs {
        /// Absolute path in the container; created if it is missing.
        target: Bytes,
        /// Mount flags (`MS_*` of `mount(2)`).
        flags: u64,
        /// Options as `mount(2)` takes them in its data argument, such as `size=64m,mode=1777`.
        data: Bytes,
    },
}

/// A process to execute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments, at least one. A program without `/` is searched for in the `PATH` of
    /// [`Process::env`].
    pub args: Vec<Bytes>,
    /// Environment as `NAME=value`. `HOME` is added from the container's `/etc/passwd` if missing.
    pub env: Vec<Bytes>,
    /// Working directory; created if it is missing. Absolute.
    pub cwd: Bytes,
    /// `user`, `user:group`, `uid` or `uid:gid` as Docker's `--user` takes it, looked up in the
    /// container's `/etc/passwd` and `/etc/group`. Empty means `0:0`.
    pub user: String,
    /// Capabilities in the process's bounding set, as a bit mask of `CAP_*` numbers. Root holds
    /// them all; other users hold none until they gain some.
    pub capabilities: u64,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// How a process's standard streams are connected to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Three pipes. A missing standard input reads as end of file.
    Pipes {
        /// Stream for standard input, host to guest.
        stdin: Option<Token>,
        /// Stream for standard output, guest to host.
        stdout: Token,
        /// Stream for standard error, guest to host.
        stderr: Token,
    },
    /// A pseudo-terminal.
    Terminal {
        /// Stream for what is typed, host to guest.
        stdin: Option<Token>,
        /// Stream for what is shown, guest to host.
        stdout: Token,
        /// Size at the start.
        size: WindowSize,
    },
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The container's main process is running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// `CLOCK_MONOTONIC` when the root file system and mounts were ready, in ns.
    pub mounted_ns: u64,
    /// `CLOCK_MONOTONIC` when the program had been executed, in ns.
    pub executed_ns: u64,
}

/// The container's main process has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// How it ended.
    pub status: ExitStatus,
    /// The guest's kernel killed a process of the container because memory had run out.
    pub oom: bool,
    /// `CLOCK_MONOTONIC` when the process was reaped, in ns.
    pub exited_ns: u64,
    /// `CLOCK_MONOTONIC` when output had been delivered and file systems synced, in ns.
    pub synced_ns: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// It was killed by this signal, 1 to 64.
    Signal(u8),
}

impl ExitStatus {
    /// The exit code a shell would show: the code itself, or 128 + n for signal n.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// Why the container could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartError {
    /// What was being done.
    pub stage: Stage,
    /// The system call's error number, 0 if none failed.
    pub errno: i32,
    /// On what, for people.
    pub text: String,
}

/// Steps of starting a container, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Mounting the guest's own file systems, clock, entropy, loopback.
    System,
    /// Mounting the container's root.
    Root,
    /// Mounting what lies inside the container's root.
    Mount,
    /// Opening the standard streams.
    Stdio,
    /// Looking up user and groups.
    User,
    /// Entering the working directory.
    WorkingDirectory,
    /// Executing the program.
    Execute,
}

/// Importance of a [`GuestFrame::Log`] line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Something was lost or refused.
    Warn,
    /// A step of the normal course.
    Debug,
}
