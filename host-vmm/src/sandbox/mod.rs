//! What a process that a guest may come to own is confined to.
//!
//! A kernel that runs as a process is one; whoever takes it over has this process and nothing else. The layers, from the
//! one that every host has to those that not every host permits:
//!
//! - an empty environment, and only the descriptors that it was given;
//! - no privileges, and none to be had (`no_new_privs`, an empty bounding set, no capabilities);
//! - a filter of system calls ([`filter`]);
//! - limits on what it may use up ([`limits`]);
//! - a user who owns nothing, if we are root;
//! - Landlock without a single rule: no path can be opened, no port reached ([`landlock`]);
//! - namespaces of its own: no network, no other process in sight, and an end that takes everything with it that it started
//!   ([`namespaces`]); without them the last is a [`guard`]'s work;
//! - an empty, read-only root.
//!
//! The first three are the least that anything runs with, unless somebody asks for less ([`Sandbox`]). Of the others it
//! has those that the host permits, and what says that it does not are the host's own words for it: one that fails in
//! another way is an error, and then nothing is executed.

mod child;
pub mod filter;
mod forbidden;
mod guard;
mod landlock;
mod layers;
mod limits;
mod names;
mod namespaces;
#[cfg(test)]
mod tests;

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags,
        SocketType, recvmsg, socketpair,
    },
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
};

pub use forbidden::Forbidden;
pub use guard::Guard;
pub use layers::{Layer, Missing};
pub use limits::Needs;
pub use names::name as call_name;
use namespaces::Namespaces;

/// What has to be there for anything to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// The layers that are the least, which nearly every host has.
    #[default]
    Minimum,
    /// None, but all that the host permits.
    Weak,
}

impl Sandbox {
    /// Its name as `--sandbox` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minimum => "minimum",
            Self::Weak => "weak",
        }
    }
}

/// Everything about a confined process.
#[derive(Debug)]
pub struct Plan<'a> {
    /// An executable that needs no other file, open.
    pub program: BorrowedFd<'a>,
    /// Its arguments, the first of which is its name.
    pub arguments: Vec<CString>,
    /// Descriptors that it gets, under the numbers that they have here, beside standard output and error.
    pub inherited: Vec<BorrowedFd<'a>>,
    /// Its standard output and error.
    pub output: BorrowedFd<'a>,
    /// The system calls that it may make.
    pub filter: filter::Program,
    /// What it may use up.
    pub needs: Needs,
    /// What it has to be confined by.
    pub sandbox: Sandbox,
}

/// A confined process. The caller has to reap it.
#[derive(Debug)]
pub struct Confined {
    /// Its id.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// The layers that it does without, as this host does not permit them.
    pub missing: Vec<Missing>,
    /// What it was killed for, if it made a forbidden call on a host that tells which.
    pub forbidden: Forbidden,
    /// Who takes care that nothing outlives it which it has started, where its namespaces do not. To be dropped after its end.
    pub guard: Option<Guard>,
}

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no process to be had, or nothing to make one of.
    #[error("Cannot prepare a confined process")]
    Prepare(#[source] io::Error),
    /// It could not be confined.
    #[error("Cannot {doing} in a confined process")]
    Confine {
        /// The step.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The host does not permit what is the least.
    #[error(
        "Cannot {doing} in a confined process, and nothing runs without; {remedy}, or choose --sandbox weak"
    )]
    Minimum {
        /// The step.
        doing: &'static str,
        /// What to do.
        remedy: String,
        /// Why not.
        source: io::Error,
    },
}

/// Starts a process that is confined before it executes the first instruction of its program. It is killed when the
/// calling thread ends.
///
/// # Errors
/// A layer that this host permits could not be had, or one that is the least is not permitted: the process has not
/// executed anything then.
pub fn spawn(plan: &Plan<'_>) -> Result<Confined, SandboxError> {
    let mut arguments: Vec<*const libc::c_char> =
        plan.arguments.iter().map(|text| text.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let inherited: Vec<RawFd> = plan.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let attempt = Attempt {
        program: Some(plan.program),
        arguments: &arguments,
        inherited: &inherited,
        output: Some(plan.output),
        filter: &plan.filter,
        needs: plan.needs,
        sandbox: plan.sandbox,
    };
    attempt.start()
}

/// The layers that this host does not permit, without starting anything that stays.
///
/// # Errors
/// There is no process to be had to try it with, or a layer that is permitted cannot be had.
pub fn probe() -> Result<Vec<Missing>, SandboxError> {
    let filter = filter::all_but(&[]).map_err(|error| prepare(io::Error::other(error)))?;
    let attempt = Attempt {
        program: None,
        arguments: &[],
        inherited: &[],
        output: None,
        filter: &filter,
        needs: NOTHING,
        sandbox: Sandbox::Weak,
    };
    let Confined {
        pid,
        missing,
        guard,
        ..
    } = attempt.start()?;
    reap(pid);
    drop(guard);
    Ok(missing)
}

/// What a process needs that executes nothing.
const NOTHING: Needs = Needs {
    processes: u64::MAX,
    private: u64::MAX,
    file: 0,
};

/// A process that is to be confined.
struct Attempt<'a> {
    program: Option<BorrowedFd<'a>>,
    arguments: &'a [*const libc::c_char],
    inherited: &'a [RawFd],
    output: Option<BorrowedFd<'a>>,
    filter: &'a filter::Program,
    needs: Needs,
    sandbox: Sandbox,
}

impl Attempt<'_> {
    fn start(&self) -> Result<Confined, SandboxError> {
        // All that needs memory is made before there is a child, which may not allocate any.
        let nothing = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(prepare)?;
        let (reports, report) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(prepare)?;
        let landlock = landlock::Ruleset::create(self.program);
        let session = filter::session().map_err(|error| prepare(io::Error::other(error)))?;
        let output = self.output.unwrap_or(nothing.as_fd());
        let child = child::Child {
            program: self.program.map(|program| program.as_raw_fd()),
            arguments: self.arguments,
            inherited: self.inherited,
            input: nothing.as_raw_fd(),
            output: output.as_raw_fd(),
            landlock: landlock.as_ref().ok().map(AsRawFd::as_raw_fd),
            filter: self.filter,
            session: &session,
            limits: limits::of(self.needs),
            sandbox: self.sandbox,
            is_root: rustix::process::geteuid().is_root(),
            report: report.as_raw_fd(),
        };
        let forked = namespaces::fork(|namespaces| child.run(namespaces)).map_err(prepare)?;
        drop(report);
        let mut missing = Vec::new();
        if let Err(error) = landlock {
            let layer = Layer::Landlock;
            missing.push(Missing { layer, error });
        }
        if let Some(error) = forked.refused {
            let errno = error.raw_os_error().unwrap_or(0);
            missing.push(Missing::new(Layer::Root, errno));
            let layer = Layer::Namespaces;
            missing.push(Missing { layer, error });
        }
        let pid = forked.pid;
        let watched = listen(&reports, &mut missing)
            .and_then(|listener| match listener {
                Some(listener) => Ok(Forbidden::watch(
                    listener,
                    forked.pidfd.try_clone().map_err(prepare)?,
                )
                .map_err(prepare)?),
                None => Ok(Forbidden::default()),
            })
            .inspect_err(|_| {
                let _ = kill_process(pid, Signal::KILL);
                reap(pid);
            });
        Ok(Confined {
            pid,
            pidfd: forked.pidfd,
            missing,
            forbidden: watched?,
            guard: forked.guard,
        })
    }
}

fn prepare(error: impl Into<io::Error>) -> SandboxError {
    SandboxError::Prepare(error.into())
}

fn reap(pid: Pid) {
    while let Err(Errno::INTR) = waitpid(Some(pid), WaitOptions::empty()) {}
}

/// Takes everything that the child says until it executes its program, and gives the descriptor that tells of forbidden calls.
fn listen(reports: &OwnedFd, missing: &mut Vec<Missing>) -> Result<Option<OwnedFd>, SandboxError> {
    let mut listener = None;
    loop {
        let report = match receive(reports).map_err(prepare)? {
            Told::Listener(fd) => {
                listener = Some(fd);
                continue;
            }
            Told::Report(report) => report,
            Told::Nothing => return Ok(listener),
        };
        let lacking = |layer| Missing::new(layer, report.errno);
        let layer = report.step.layer();
        if report.went_on {
            missing.extend(layer.map(lacking));
            continue;
        }
        let source = io::Error::from_raw_os_error(report.errno);
        let doing = report.step.doing();
        return Err(match layer {
            Some(layer) if layer.is_minimum() && layers::is_forbidden(&source) => {
                let remedy = lacking(layer).remedy();
                SandboxError::Minimum {
                    doing,
                    remedy,
                    source,
                }
            }
            _ => SandboxError::Confine { doing, source },
        });
    }
}

/// What a child says.
enum Told {
    /// A descriptor that tells of forbidden calls.
    Listener(OwnedFd),
    /// A step could not be done.
    Report(child::Report),
    /// Nothing more: it executes its program, or is dead.
    Nothing,
}

fn receive(reports: &OwnedFd) -> Result<Told, Errno> {
    let mut bytes = [0; child::REPORT_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(reports, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    if received == child::REPORT_LEN {
        return Ok(Told::Report(child::Report::from_bytes(bytes)));
    }
    let listener = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(listener.map_or(Told::Nothing, Told::Listener))
}

/// An empty text for the kernel.
const EMPTY: &CStr = c"";
