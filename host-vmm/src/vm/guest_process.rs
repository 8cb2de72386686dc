//! A machine that is a process of the host, with devices of ours that it reaches over vhost-user.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    time::Duration,
};

use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid},
};

use crate::{
    devices::transport::vhost_user::{Failure, Server},
    process::{is_readable_within, is_stopped},
    sandbox::Guard,
};

/// How long the process may take to end after it has let go of a device.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long what a dead guest has sent may take to reach whoever reads it on the host.
const DRAIN: Duration = Duration::from_secs(5);

/// The process and its devices. Dropping it kills the process, and what it has started.
#[derive(Debug)]
pub struct GuestProcess {
    pid: Pid,
    /// Watched by `gone`, which it must outlive.
    pidfd: OwnedFd,
    servers: Vec<Server>,
    /// Kills what the process has started, if it takes somebody to do so. Watched by `gone`.
    guard: Option<Guard>,
    /// An epoll descriptor over everything that means the end.
    gone: OwnedFd,
    /// How it ended, once it has been reaped.
    ended: Option<ExitStatus>,
    killed: bool,
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// We killed it.
    Killed,
    /// It broke the rules of a device, and was killed for it.
    BrokeRules(String),
    /// It was killed, as a disk of the host is full that it writes to.
    NoRoom,
    /// It hung up a device and went on, and was killed for it.
    HungUp,
    /// The process ended by itself, or somebody killed it, or its guard.
    Exited(ExitStatus),
}

impl GuestProcess {
    /// Takes over the child `pid`, which serves itself of `servers`, and its guard if it has one. If that fails it is killed.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn watch(pid: Pid, servers: Vec<Server>, guard: Option<Guard>) -> io::Result<Self> {
        let watched = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
            let gone = epoll::create(CreateFlags::CLOEXEC)?;
            let ends = servers.iter().map(Server::ended);
            let guard = guard.as_ref().map(Guard::gone);
            for fd in std::iter::once(pidfd.as_fd()).chain(ends).chain(guard) {
                epoll::add(&gone, fd, EventData::new_u64(0), EventFlags::IN)?;
            }
            Ok((pidfd, gone))
        });
        match watched {
            Ok((pidfd, gone)) => Ok(Self {
                pid,
                pidfd,
                servers,
                guard,
                gone,
                ended: None,
                killed: false,
            }),
            Err(error) => {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
                Err(error.into())
            }
        }
    }

    /// Becomes readable when the machine is gone.
    pub fn gone(&self) -> BorrowedFd<'_> {
        self.gone.as_fd()
    }

    /// Whether somebody has stopped it, as by SIGSTOP.
    pub fn is_stopped(&self) -> bool {
        self.ended.is_none() && is_stopped(self.pid)
    }

    /// Ends it at once. Does nothing if it is gone already.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            self.killed = true;
            // Fails only if it has ended.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }

    /// Waits until it is gone, and everything that it sent has been delivered if it ended by itself.
    ///
    /// # Errors
    /// Somebody else has reaped it.
    pub fn wait(&mut self) -> io::Result<End> {
        // A device that failed leaves the guest without a host: that is its end, too.
        let failure = self.servers.iter().find_map(Server::failure);
        if failure.is_some() {
            self.kill();
        }
        let is_unguarded = |guard: &Guard| is_readable_within(guard.gone(), Duration::ZERO);
        let unguarded = !self.killed && self.guard.as_ref().is_some_and(is_unguarded);
        if unguarded {
            self.kill();
        }
        // Without its device, too, but it may only be on its way.
        let hung = !self.killed && !is_readable_within(self.pidfd.as_fd(), FAREWELL);
        if hung {
            self.kill();
        }
        let status = self.reap()?;
        // All that it may have started.
        self.guard = None;
        if !self.killed {
            for server in &self.servers {
                is_readable_within(server.ended(), DRAIN);
            }
        }
        Ok(match failure {
            Some(Failure::Broken(how)) => End::BrokeRules(how),
            Some(Failure::NoRoom) => End::NoRoom,
            None if hung => End::HungUp,
            None if self.killed && !unguarded => End::Killed,
            None => End::Exited(status),
        })
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    let status = ExitStatus::from_raw(status.as_raw());
                    self.ended = Some(status);
                    return Ok(status);
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        self.kill();
        // It was killed: this does not take long.
        let _ = self.reap();
    }
}
