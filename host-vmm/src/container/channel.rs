//! What a supervisor and whoever attaches to it say to each other: messages over a Unix socket that keeps their
//! boundaries, some with a descriptor.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
        sendmsg, socketpair, sockopt,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::timeline::Timeline;
use crate::{agent::Which, report::Report};

/// Largest message in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// To a supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// Send this signal to the container's main process.
    Signal(u8),
    /// The terminal has another size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// End the container at once.
    Kill,
}

/// From a supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSupervisor {
    /// The host's end of a standard stream comes with this message.
    Stream(Which),
    /// What the guest's kernel prints comes from the socket that comes with this message.
    Console,
    /// The container is over.
    Ended(Ending),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// What `run` exits with.
    pub exit_code: u8,
    /// The guest's kernel killed a process of it because memory had run out.
    pub oom: bool,
    /// It did not end by itself, or did not even start.
    pub error: Option<Report>,
    /// What the guest's init warned of.
    pub warnings: Vec<String>,
    /// What happened when.
    pub timeline: Timeline,
    /// Nobody has told: the supervisor is gone.
    #[serde(skip)]
    pub lost: bool,
}

/// One end of the connection.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two ends.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((ours.into(), theirs.into()))
    }

    /// The end that whoever started this process has passed on.
    ///
    /// # Errors
    /// `InvalidInput` if it is anything else.
    pub fn inherit(socket: OwnedFd) -> io::Result<Self> {
        let is_one = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
            && sockopt::socket_type(&socket)? == SocketType::SEQPACKET;
        match is_one {
            true => Ok(socket.into()),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Sends a message, and a descriptor with it. A peer that does not read what little there is to read loses it.
    ///
    /// # Errors
    /// The peer is gone, or does not read.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.map(|descriptor| [descriptor]);
        if let Some(descriptors) = &descriptors {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    /// The next message, waiting for none: `WouldBlock` if there is none, `UnexpectedEof` if the peer is gone.
    ///
    /// # Errors
    /// Those, and `InvalidData` for what is no message.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Option<OwnedFd>)> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut receive = || {
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let buffer = &mut [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.socket, buffer, &mut ancillary, flags)
        };
        let received = match receive() {
            // The peer is gone and has not read all that it was sent. What it said itself is behind that.
            Err(Errno::CONNRESET) => receive(),
            other => other,
        }?;
        let descriptor = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .next();
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let message = serde_json::from_slice(&bytes[..received.bytes])?;
        Ok((message, descriptor))
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_last_word_of_a_peer_that_has_not_listened_arrives() {
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&ToSupervisor::Signal(15), None).unwrap();
        ours.send(&FromSupervisor::Stream(Which::Stdin), None)
            .unwrap();
        drop(ours);
        let (received, _) = theirs.receive::<FromSupervisor>().unwrap();
        assert_eq!(received, FromSupervisor::Stream(Which::Stdin));
        let error = theirs.receive::<FromSupervisor>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn messages_and_descriptors_arrive() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let message = FromSupervisor::Stream(Which::Stderr);
        ours.send(&message, Some(writer.as_fd())).unwrap();
        drop(writer);
        let (received, descriptor) = theirs.receive::<FromSupervisor>().unwrap();
        assert_eq!(received, message);
        rustix::io::write(descriptor.unwrap(), b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");

        let error = theirs.receive::<FromSupervisor>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        let error = theirs.receive::<FromSupervisor>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
