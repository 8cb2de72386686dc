//! A socket that carries frames, each behind its length: 32 bits, the highest byte first. That is how `passt` and QEMU's
//! `-netdev stream` speak.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg},
};

use super::{
    header::HEADER_LEN,
    link::{Link, MAX_FRAME},
};

/// Bytes of a length.
const LENGTH_LEN: usize = 4;

/// Bytes that are read ahead: two of the longest frames, so that moving what is left to the front is rare.
const AHEAD: usize = 2 * (LENGTH_LEN + MAX_FRAME);

/// A link that is a stream socket.
pub struct Stream {
    socket: UnixStream,
    /// The rest of a frame that the socket had no room for.
    unsent: Vec<u8>,
    /// What has come and was not taken yet is `input[start..end]`.
    input: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stream {
    /// A link to whoever is at the other end of `socket`.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            unsent: Vec::new(),
            input: vec![0; AHEAD].into(),
            start: 0,
            end: 0,
        }
    }

    /// Takes the next frame out of what has come, if it is whole.
    fn take_frame(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        let there = &self.input[self.start..self.end];
        let Some((length, rest)) = there.split_first_chunk::<LENGTH_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*length) as usize;
        if len > MAX_FRAME {
            // Whatever follows, where the next frame begins is not known any more.
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame of {len} bytes"),
            ));
        }
        let Some(frame) = rest.get(..len) else {
            return Ok(None);
        };
        let packet = &mut packet[..HEADER_LEN + len];
        packet[..HEADER_LEN].fill(0);
        packet[HEADER_LEN..].copy_from_slice(frame);
        self.start += LENGTH_LEN + len;
        Ok(Some(packet.len()))
    }

    /// Reads what has come; `false` if there is nothing.
    fn read_ahead(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.input.len() - self.start < LENGTH_LEN + MAX_FRAME {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            let room = &mut self.input[self.end..];
            match recv(&self.socket, room, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, _)) => {
                    self.end += count;
                    return Ok(true);
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Link for Stream {
    fn features(&self) -> u64 {
        0
    }

    fn accept(&mut self, _features: u64) {}

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn has_room(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            match send(&self.socket, &self.unsent, FLAGS) {
                Ok(count) => {
                    self.unsent.drain(..count);
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let frame = packet.get(HEADER_LEN..).unwrap_or_default();
        let length = u32::try_from(frame.len())
            .map_err(|_| io::ErrorKind::InvalidInput)?
            .to_be_bytes();
        let parts = [IoSlice::new(&length), IoSlice::new(frame)];
        let mut none = SendAncillaryBuffer::default();
        let sent = loop {
            match sendmsg(&self.socket, &parts, &mut none, FLAGS) {
                Ok(count) => break count,
                Err(Errno::AGAIN) => break 0,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        // A frame that has begun has to end.
        let of_length = sent.min(LENGTH_LEN);
        self.unsent.extend_from_slice(&length[of_length..]);
        self.unsent.extend_from_slice(&frame[sent - of_length..]);
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(len) = self.take_frame(packet)? {
                return Ok(Some(len));
            }
            if !self.read_ahead()? {
                return Ok(None);
            }
        }
    }
}

/// Neither blocks, nor is a peer that is gone a signal.
const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
