//! What the container's process is before it becomes its program: who it is, what it may do, what it reads
//! and writes.

use std::{ffi::CString, os::fd::OwnedFd};

use agent_protocol::{Process, Stage};
use nix::sys::signal::SigSet;
use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchown, open},
    io::Errno,
    process::{Resource, Rlimit, chdir, ioctl_tiocsctty, setrlimit, setsid, umask},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
    thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::filesystem::make_directories;
use crate::{
    failure::{During, Failure, shown},
    sys,
    user::{Identity, read_file},
};

/// The standard streams on the container's side.
pub enum Streams {
    /// Ends of pipes.
    Pipes {
        /// `None` reads as end of file.
        stdin: Option<OwnedFd>,
        /// Written by the process.
        stdout: OwnedFd,
        /// Written by the process.
        stderr: OwnedFd,
    },
    /// The pseudo-terminal with this number.
    Terminal(u32),
}

/// A process that lacks only its program.
pub struct Prepared {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Prepared {
    /// Executes the program.
    ///
    /// # Errors
    /// Why that failed, as [`crate::execute::execute`] says it.
    pub fn execute(&self) -> Failure {
        let errno = crate::execute::execute(&self.arguments, &self.environment);
        let program = self.arguments.first().map(|program| program.as_bytes());
        Failure {
            stage: Stage::Execute,
            errno: errno as i32,
            text: shown(program.unwrap_or_default()).to_string(),
        }
    }
}

/// Turns this process, which is in the container's root, into the one that is described.
///
/// # Errors
/// The step that failed.
pub fn become_process(process: &Process, streams: Streams) -> Result<Prepared, Failure> {
    let identity = identify(&process.user)?;
    let prepared = Prepared {
        arguments: strings(&process.args)?,
        environment: environment(process, &identity)?,
    };
    setsid().during(Stage::Stdio, "a session of its own")?;
    connect(streams, &identity)?;
    limit().during(Stage::Execute, "the process's limits")?;
    make_directories(&process.cwd)
        .and_then(|()| chdir(process.cwd.as_slice()))
        .during(Stage::WorkingDirectory, shown(&process.cwd))?;
    drop_privileges(&identity, process.capabilities)
        .during(Stage::User, "its ids and capabilities")?;
    umask(Mode::from_raw_mode(0o022));
    // Everything but the standard streams is PID 1's and stays with it.
    sys::close_on_exec_from(3).during(Stage::Execute, "descriptors")?;
    SigSet::empty()
        .thread_set_mask()
        .during(Stage::Execute, "the signal mask")?;
    Ok(prepared)
}

fn identify(user: &str) -> Result<Identity, Failure> {
    let read = |path| read_file(path).during(Stage::User, path);
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    Identity::find(user, &passwd, &group)
        .map_err(|error| Failure::new(Stage::User, error.to_string()))
}

/// The environment with `HOME`.
fn environment(process: &Process, identity: &Identity) -> Result<Vec<CString>, Failure> {
    let mut environment = strings(&process.env)?;
    if !process
        .env
        .iter()
        .any(|variable| variable.starts_with(b"HOME="))
    {
        let home = [b"HOME=", identity.home.as_slice()].concat();
        environment.extend(strings(&[home])?);
    }
    Ok(environment)
}

/// As `execve` takes them. A NUL can be in none of them.
fn strings(bytes: &[Vec<u8>]) -> Result<Vec<CString>, Failure> {
    bytes
        .iter()
        .map(|bytes| {
            CString::new(bytes.as_slice())
                .map_err(|_| Errno::INVAL)
                .during(Stage::Execute, shown(bytes))
        })
        .collect()
}

/// Makes `streams` descriptors 0 to 2. They belong to the user, who may then open `/dev/stdout` and the like by
/// name.
fn connect(streams: Streams, identity: &Identity) -> Result<(), Failure> {
    let open = |path: &str, flags| {
        open(
            path,
            flags | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .during(Stage::Stdio, path)
    };
    let (stdin, stdout, stderr) = match streams {
        Streams::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            let stdin = match stdin {
                Some(pipe) => pipe,
                None => open("/dev/null", OFlags::RDONLY)?,
            };
            (stdin, stdout, stderr)
        }
        Streams::Terminal(number) => {
            let path = format!("/dev/pts/{number}");
            let terminal = open(&path, OFlags::RDWR)?;
            ioctl_tiocsctty(&terminal).during(Stage::Stdio, "the controlling terminal")?;
            let again = || terminal.try_clone().during(Stage::Stdio, path.as_str());
            (again()?, again()?, again()?)
        }
    };
    let owner = Some(Uid::from_raw(identity.uid)).filter(|_| identity.uid != 0);
    for stream in [&stdin, &stdout, &stderr] {
        if owner.is_some() && !is_null(stream) {
            fchown(stream, owner, None).during(Stage::Stdio, "the owner of a standard stream")?;
        }
    }
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .during(Stage::Stdio, "descriptors 0 to 2")
}

/// `/dev/null` belongs to everybody in the container.
fn is_null(stream: &OwnedFd) -> bool {
    rustix::fs::fstat(stream).is_ok_and(|status| status.st_rdev == rustix::fs::makedev(1, 3))
}

/// Limits as programs expect them: the soft one low, since some programs close every descriptor that they could
/// have, the hard one as high as Docker's.
fn limit() -> Result<(), Errno> {
    let limit = |current, maximum| Rlimit { current, maximum };
    setrlimit(Resource::Nofile, limit(Some(1024), Some(1_048_576)))?;
    setrlimit(Resource::Nproc, limit(None, None))
}

/// Leaves the process with `mask` as its bounding set, and all of that if it is root's.
fn drop_privileges(identity: &Identity, mask: u64) -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        let capability = 1_u64 << bit;
        if mask & capability != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(capability)) {
            Ok(()) => {}
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    let gid = Gid::from_raw(identity.gid);
    set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(identity.uid);
    set_thread_res_uid(uid, uid, uid)?;
    let held = if identity.uid == 0 { mask } else { 0 };
    let current = rustix::thread::capabilities(None)?;
    let held = current.permitted & CapabilitySet::from_bits_retain(held);
    set_capabilities(
        None,
        CapabilitySets {
            effective: held,
            permitted: held,
            inheritable: CapabilitySet::empty(),
        },
    )
}
