//! Streams to the host.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, connect, getsockopt, socket, sockopt::SocketError,
    },
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vsock::{VMADDR_CID_HOST, VsockAddr};

use crate::sys;

/// How long the host may take to answer anything while the container is being started. It may be stopped or
/// very busy, and has a deadline of its own which is shorter in effect.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Begins to connect to a port of the host, without waiting. The socket does not block.
///
/// # Errors
/// Those of `socket(2)` and `connect(2)`; without a vsock device `ENODEV`.
pub fn dial(port: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    sys::set_vsock_connect_timeout(&socket, DEADLINE)?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_HOST, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Waits until a socket of [`dial`] is connected.
///
/// # Errors
/// Why it could not be connected.
pub fn connected(socket: &OwnedFd) -> io::Result<()> {
    wait(socket, PollFlags::OUT, DEADLINE)?;
    match getsockopt(socket, SocketError)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Waits for one of `events` on `fd`.
///
/// # Errors
/// `TimedOut`, or those of `poll(2)`.
pub fn wait(fd: &impl AsFd, events: PollFlags, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(fd, events)], Some(&timeout)) {
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether `fd` is in error, as the writing end of a pipe is when nobody reads.
pub fn has_error(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())) == Ok(1) && fds[0].revents().contains(PollFlags::ERR)
}
