//! The socket by which other commands reach a supervisor: `RUN/<short id>/supervisor.sock`.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, open},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
        socket_with,
    },
};

use crate::container::channel::{Channel, ToSupervisor};

const NAME: &str = "supervisor.sock";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// A bound socket. Dropping it removes it.
#[derive(Debug)]
pub struct ControlSocket {
    socket: OwnedFd,
    directory: PathBuf,
}

impl ControlSocket {
    /// Makes the socket of the container `short_id`.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn bind(run: &Path, short_id: &str) -> io::Result<Self> {
        let directory = run.join(short_id);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let made = make(&directory);
        match made {
            Ok(socket) => Ok(Self { socket, directory }),
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                Err(error)
            }
        }
    }

    /// The next connection, if one waits.
    pub fn accept(&self) -> Option<Channel> {
        accept_with(&self.socket, SocketFlags::CLOEXEC)
            .ok()
            .map(Channel::from)
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn make(directory: &Path) -> io::Result<OwnedFd> {
    // A supervisor that was killed has left its own; nobody but the holder of the container's lock comes here.
    match fs::remove_file(directory.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_held, address) = address(directory)?;
    let socket = new_socket()?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// The socket's address, however long the directory's name is: by way of the directory's descriptor.
fn address(directory: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    use std::os::fd::AsRawFd;

    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held = open(directory, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{NAME}", held.as_raw_fd());
    let address = SocketAddrUnix::new(path.as_str())?;
    Ok((held, address))
}

/// Tells the supervisor of the container `short_id` to end it.
///
/// # Errors
/// Nobody listens.
pub fn kill(run: &Path, short_id: &str) -> io::Result<()> {
    let (_held, address) = address(&run.join(short_id))?;
    let socket = new_socket()?;
    connect(&socket, &address)?;
    Channel::from(socket).send(&ToSupervisor::Kill, None)
}
