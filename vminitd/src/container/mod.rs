//! The container's first process: PID 1 of its own PID namespace.
//!
//! It is forked into its namespaces, sets up what it sees and what it is, and executes the program. On the way it
//! has one pipe to PID 1 of the VM, on which it reports at most one message; the pipe closes by itself when the
//! program is executed.

mod filesystem;
mod process;

use std::{
    convert::Infallible,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use agent_protocol::{Boot, Decoder, GuestFrame, Stage, StartError, Started, encode};
use rustix::{
    fs::Mode,
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, umask},
    system::sethostname,
};

use crate::{
    cgroup::Cgroup,
    clock, end,
    failure::{During, Failure},
    sys::{self, Forked},
};

pub use process::Streams;

/// A child on its way to becoming the container's process.
pub struct Child {
    /// Its id in the VM's PID namespace.
    pub pid: Pid,
    pipe: OwnedFd,
    report: Report,
    /// Keeps the kernel from taking the container's namespaces down, mount by mount, as the process ends and before
    /// anybody hears of it: the whole VM ends right after.
    pub namespaces: [Option<OwnedFd>; 2],
}

/// How a child's way ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its program is running.
    Executed {
        /// `CLOCK_MONOTONIC` when its mounts were ready, in ns.
        mounted_ns: u64,
    },
    /// It could not be started.
    Failed(StartError),
}

impl Child {
    /// Forks the container's process, which then sets itself up.
    ///
    /// # Errors
    /// If there is no process or socket to be had.
    pub fn start(boot: &Boot, streams: Streams, cgroup: &Cgroup) -> Result<Self, Failure> {
        let what = "the container's process";
        let (pipe, to_parent) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).during(Stage::System, what)?;
        let namespaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        let namespaces = u64::from(namespaces.unsigned_abs());
        match sys::fork(namespaces, cgroup.as_fd()).during(Stage::System, what)? {
            Forked::Child => run_child(boot, streams, to_parent),
            Forked::Parent(pid, pidfd) => Ok(Self {
                pid,
                pipe,
                report: Report::default(),
                namespaces: sys::namespaces(&pidfd),
            }),
        }
    }

    /// How it went, once that is known. Call it when the child's pipe is readable or the child has ended.
    pub fn outcome(&mut self) -> Option<Outcome> {
        let mut buffer = [0; 1024];
        loop {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => break,
                Ok(count) => self.report.add(&buffer[..count]),
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        Some(std::mem::take(&mut self.report).outcome())
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// What the child has said: `Started` right before it executes its program, and `Error` if that or anything before
/// it failed.
#[derive(Default)]
struct Report {
    decoder: Decoder,
    started: Option<Started>,
    error: Option<StartError>,
}

impl Report {
    fn add(&mut self, bytes: &[u8]) {
        self.decoder.feed(bytes);
        while let Ok(Some(frame)) = self.decoder.next_message() {
            match frame {
                GuestFrame::Started(started) => self.started = Some(started),
                GuestFrame::Error(error) => self.error = Some(error),
                _ => {}
            }
        }
    }

    /// What it comes to when nothing follows: the pipe was closed, by the program's execution or by the
    /// child's end.
    fn outcome(self) -> Outcome {
        match (self.error, self.started) {
            (Some(error), _) => Outcome::Failed(error),
            (None, Some(started)) => Outcome::Executed {
                mounted_ns: started.mounted_ns,
            },
            (None, None) => {
                let text = "the container's process was killed before it executed its program";
                Outcome::Failed(Failure::new(Stage::System, text).into())
            }
        }
    }
}

/// The child's whole life before its program.
fn run_child(boot: &Boot, streams: Streams, pipe: OwnedFd) -> ! {
    end::become_child();
    let failure = match become_container(boot, streams, &pipe) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    send(&pipe, &GuestFrame::Error(failure.into()));
    sys::exit_child(1)
}

fn become_container(boot: &Boot, streams: Streams, pipe: &OwnedFd) -> Result<Infallible, Failure> {
    umask(Mode::empty());
    sys::unshare_cgroup_namespace().during(Stage::Mount, "a cgroup namespace")?;
    sethostname(boot.hostname.as_bytes()).during(
        Stage::Mount,
        format_args!("the host name {:?}", boot.hostname),
    )?;
    let terminal = match &streams {
        Streams::Terminal(number) => Some(*number),
        Streams::Pipes { .. } => None,
    };
    filesystem::enter(boot, terminal)?;
    let mounted_ns = clock::monotonic_ns();
    let process = process::become_process(&boot.process, streams)?;
    let started = Started {
        mounted_ns,
        executed_ns: 0,
    };
    send(pipe, &GuestFrame::Started(started));
    Err(process.execute())
}

/// Tells PID 1. If that fails PID 1 takes the child's end for what it is. A pipe takes one frame of these at once.
fn send(pipe: &OwnedFd, frame: &GuestFrame) {
    if let Ok(bytes) = encode(frame) {
        let _ = rustix::io::write(pipe, &bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(frames: &[GuestFrame]) -> Outcome {
        let mut report = Report::default();
        for byte in frames.iter().flat_map(|frame| encode(frame).unwrap()) {
            report.add(&[byte]);
        }
        report.outcome()
    }

    fn started() -> GuestFrame {
        GuestFrame::Started(Started {
            mounted_ns: 5,
            executed_ns: 0,
        })
    }

    #[test]
    fn a_child_that_was_about_to_execute_has_done_so() {
        assert_eq!(outcome(&[started()]), Outcome::Executed { mounted_ns: 5 });
    }

    #[test]
    fn an_error_counts_before_and_after() {
        let error = StartError {
            stage: Stage::Execute,
            errno: 2,
            text: "sh".repeat(2000),
        };
        let frame = GuestFrame::Error(error.clone());
        assert_eq!(
            outcome(&[started(), frame.clone()]),
            Outcome::Failed(error.clone())
        );
        assert_eq!(outcome(&[frame]), Outcome::Failed(error));
    }

    #[test]
    fn a_child_that_said_nothing_was_killed() {
        assert!(matches!(outcome(&[]), Outcome::Failed(error) if error.text.contains("killed")));
    }
}
