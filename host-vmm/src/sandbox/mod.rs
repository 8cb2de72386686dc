//! What a process that a guest may come to own is confined to.
//!
//! A kernel that runs as a process is one; whoever takes it over has this process and nothing else. The layers, from the
//! one that every host has to those that not every host permits:
//!
//! - an empty environment, and only the descriptors that it was given;
//! - no privileges, and none to be had (`no_new_privs`, an empty bounding set, no capabilities);
//! - limits on what it may use up ([`limits`]);
//! - a filter of system calls ([`filter`]);
//! - Landlock without a single rule: no path can be opened, no port reached ([`landlock`]);
//! - namespaces of its own: an empty, read-only root, no network, no other process in sight, and an end that takes
//!   everything with it that it started ([`namespaces`]).

mod child;
pub mod filter;
mod forbidden;
mod landlock;
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
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
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
pub use namespaces::Namespaces;

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
    /// Most processes and threads that it may have at a time.
    pub processes: u64,
}

/// A confined process. The caller has to reap it.
#[derive(Debug)]
pub struct Confined {
    /// Its id.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// What of the layers that not every host permits it has.
    pub layers: Layers,
    /// What it was killed for, if it made a forbidden call on a host that tells which.
    pub forbidden: Forbidden,
}

/// The layers that not every host permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Layers {
    /// Namespaces of its own.
    pub namespaces: bool,
    /// Landlock's version, if the host has it.
    pub landlock: Option<u32>,
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
}

/// Starts a process that is confined before it executes the first instruction of its program. It is killed when the
/// calling thread ends.
///
/// # Errors
/// A layer that this host permits could not be had: the process has not executed anything then.
pub fn spawn(plan: &Plan<'_>) -> Result<Confined, SandboxError> {
    // All that needs memory is made before there is a child, which may not allocate any.
    let nothing = File::open("/dev/null").map_err(SandboxError::Prepare)?;
    let (reports, report) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| SandboxError::Prepare(errno.into()))?;
    let landlock = landlock::Ruleset::create(Some(plan.program));
    let inherited: Vec<RawFd> = plan.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut arguments: Vec<*const libc::c_char> =
        plan.arguments.iter().map(|text| text.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let child = child::Child {
        program: plan.program.as_raw_fd(),
        arguments: &arguments,
        inherited: &inherited,
        input: nothing.as_raw_fd(),
        output: plan.output.as_raw_fd(),
        landlock: landlock.as_ref().map(|ruleset| ruleset.as_raw_fd()),
        filter: &plan.filter,
        limits: limits::of(plan.processes),
        report: report.as_raw_fd(),
    };
    let (pid, pidfd, namespaces) = namespaces::fork(|namespaces, told| child.run(namespaces, told))
        .map_err(SandboxError::Prepare)?;
    drop(report);
    let end = || {
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    };
    let mut listener = None;
    // It ends without a word when the program is executed.
    let told = loop {
        match receive(&reports) {
            Ok(Told::Listener(fd)) => listener = Some(fd),
            other => break other,
        }
    };
    match told {
        Ok(Told::Failed(step, source)) => {
            end();
            return Err(SandboxError::Confine {
                doing: step.doing(),
                source,
            });
        }
        Ok(_) => {}
        Err(errno) => {
            end();
            return Err(SandboxError::Prepare(errno.into()));
        }
    }
    let watch = |listener| Forbidden::watch(listener, pidfd.try_clone()?);
    let forbidden = listener.map_or_else(|| Ok(Forbidden::default()), watch);
    let forbidden = forbidden.map_err(|error| {
        end();
        SandboxError::Prepare(error)
    })?;
    Ok(Confined {
        pid,
        pidfd,
        layers: Layers {
            namespaces: namespaces == Namespaces::Own,
            landlock: landlock.as_ref().map(landlock::Ruleset::version),
        },
        forbidden,
    })
}

/// What a child says.
enum Told {
    /// A descriptor that tells of forbidden calls.
    Listener(OwnedFd),
    /// It could not be confined.
    Failed(child::Step, io::Error),
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
        let (step, error) = child::read_report(bytes);
        return Ok(Told::Failed(step, error));
    }
    let listener = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(listener.map_or(Told::Nothing, Told::Listener))
}

/// The layers that this host permits, without starting anything that stays.
///
/// # Errors
/// There is no process to be had to try it with.
pub fn probe() -> io::Result<Layers> {
    let landlock = landlock::Ruleset::create(None);
    let (pid, _, namespaces) = namespaces::fork(|_, _| 0)?;
    waitpid(Some(pid), WaitOptions::empty())?;
    Ok(Layers {
        namespaces: namespaces == Namespaces::Own,
        landlock: landlock.as_ref().map(landlock::Ruleset::version),
    })
}

/// An empty text for the kernel.
const EMPTY: &CStr = c"";
