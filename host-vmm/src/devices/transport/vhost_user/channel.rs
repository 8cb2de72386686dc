//! The socket to the front end: whole messages in, replies out, never blocking.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::AsFd, fd::BorrowedFd, fd::OwnedFd, unix::net::UnixStream},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
    },
};

use super::message::{HEADER_LEN, Header, MAX_BODY, MAX_FDS, MessageError};

/// The front end's socket and the message that is arriving on it.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    bytes: [u8; HEADER_LEN + MAX_BODY],
    received: usize,
    descriptors: Vec<OwnedFd>,
}

/// A message with what came along.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its body, as long as the header says.
    pub body: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// What there is to receive.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// Not a whole message yet.
    Nothing,
    /// The front end closed the socket.
    End,
}

/// Why the conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A header that we do not accept.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// More descriptors than any message has.
    #[error("vhost-user message carries more than {MAX_FDS} descriptors")]
    TooManyDescriptors,
    /// The front end went away in the middle of a message.
    #[error("vhost-user front end ended in the middle of a message")]
    Truncated,
    /// The front end does not take our replies.
    #[error("Cannot reply to the vhost-user front end")]
    Reply(#[source] io::Error),
    /// The socket failed.
    #[error("Cannot receive from the vhost-user front end")]
    Receive(#[source] io::Error),
}

impl Channel {
    /// Takes over the back end's end of the socket.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            bytes: [0; HEADER_LEN + MAX_BODY],
            received: 0,
            descriptors: Vec::new(),
        }
    }

    /// Receives what is there, up to one message.
    ///
    /// # Errors
    /// [`ChannelError`]; the channel is of no use afterwards.
    pub fn receive(&mut self) -> Result<Received, ChannelError> {
        loop {
            let header = self.header()?;
            let wanted = HEADER_LEN + header.map_or(0, |header| header.size);
            if let Some(header) = header.filter(|_| self.received == wanted) {
                self.received = 0;
                return Ok(Received::Message(Message {
                    header,
                    body: self.bytes[HEADER_LEN..wanted].to_vec(),
                    descriptors: std::mem::take(&mut self.descriptors),
                }));
            }
            match self.receive_bytes(wanted)? {
                Some(0) if self.received == 0 => return Ok(Received::End),
                Some(0) => return Err(ChannelError::Truncated),
                Some(count) => self.received += count,
                None => return Ok(Received::Nothing),
            }
        }
    }

    /// Sends a reply.
    ///
    /// # Errors
    /// The front end is gone, or lets its replies pile up.
    pub fn reply(&self, bytes: &[u8]) -> Result<(), ChannelError> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(&self.socket, bytes, flags) {
            Ok(count) if count == bytes.len() => Ok(()),
            Ok(_) => Err(ChannelError::Reply(io::ErrorKind::WriteZero.into())),
            Err(errno) => Err(ChannelError::Reply(errno.into())),
        }
    }

    fn header(&self) -> Result<Option<Header>, MessageError> {
        let mut bytes = [0; HEADER_LEN];
        if self.received < HEADER_LEN {
            return Ok(None);
        }
        bytes.copy_from_slice(&self.bytes[..HEADER_LEN]);
        Header::parse(&bytes).map(Some)
    }

    /// Receives bytes up to `wanted` and the descriptors that come with them; `None` if there is nothing now.
    fn receive_bytes(&mut self, wanted: usize) -> Result<Option<usize>, ChannelError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let result = loop {
            let mut buffer = [IoSliceMut::new(&mut self.bytes[self.received..wanted])];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut buffer, &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        let result = match result {
            Ok(result) => result,
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => return Ok(Some(0)),
            Err(errno) => return Err(ChannelError::Receive(errno.into())),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if result.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > MAX_FDS {
            return Err(ChannelError::TooManyDescriptors);
        }
        Ok(Some(result.bytes))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
