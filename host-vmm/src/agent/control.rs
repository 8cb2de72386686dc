//! The control connection, as the host sees it. The guest is hostile: what it sends is decoded with bounds, and what
//! it does not read is kept with a bound.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use agent_protocol::{Decoder, FrameError, GuestFrame, Hello, HostFrame, VERSION, encode};

/// Bytes read at once.
const READ_SIZE: usize = 16 << 10;

/// Most bytes kept for a guest that does not read: a `Boot` and many signals.
const MAX_OUTGOING: usize = 8 << 20;

/// Why the control connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It failed.
    #[error("The connection to the guest's init failed")]
    Io(#[from] io::Error),
    /// The guest sent something that is not of this protocol.
    #[error(
        "The guest's init broke the agent protocol; use the initfs that came with this program"
    )]
    Frame(#[from] FrameError),
    /// The guest's init is of another version.
    #[error(
        "The initfs speaks version {theirs} of the agent protocol, this program version {VERSION}; use the initfs that came with it"
    )]
    Version {
        /// The guest's version.
        theirs: u32,
    },
    /// A frame in another order than the protocol has.
    #[error(
        "The guest's init sent a frame out of turn; use the initfs that came with this program"
    )]
    OutOfTurn,
    /// The guest does not read what it is sent.
    #[error(
        "The guest's init does not read what it is sent; use the initfs that came with this program"
    )]
    Stuck,
}

/// A control connection that never blocks.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    decoder: Decoder,
    outgoing: Vec<u8>,
    greeted: bool,
}

impl Control {
    /// Speaks over `stream`, which does not block.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
            greeted: false,
        }
    }

    /// The next frame, if one has arrived; its first is always a [`GuestFrame::Hello`] of our version, and no later
    /// one is. Call it until it gives `None`.
    ///
    /// # Errors
    /// [`ControlError`]; the end of the connection is one too, with `UnexpectedEof`.
    pub fn receive(&mut self) -> Result<Option<GuestFrame>, ControlError> {
        let mut buffer = [0; READ_SIZE];
        loop {
            if let Some(body) = self.decoder.next_body()? {
                return Self::parse(body, &mut self.greeted).map(Some);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => self.decoder.feed(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn parse(body: &[u8], greeted: &mut bool) -> Result<GuestFrame, ControlError> {
        if !*greeted
            && let Some(theirs) = Hello::peek_version(body)
            && theirs != VERSION
        {
            return Err(ControlError::Version { theirs });
        }
        let frame = agent_protocol::frame::decode(body)?;
        let is_hello = matches!(frame, GuestFrame::Hello(_));
        if is_hello == *greeted {
            return Err(ControlError::OutOfTurn);
        }
        *greeted = true;
        Ok(frame)
    }

    /// Sends a frame as soon as the guest takes it.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn send(&mut self, frame: &HostFrame) -> Result<(), ControlError> {
        let bytes = encode(frame)?;
        if self.outgoing.len() + bytes.len() > MAX_OUTGOING {
            return Err(ControlError::Stuck);
        }
        self.outgoing.extend_from_slice(&bytes);
        self.flush()
    }

    /// Whether something waits for the socket to become writable.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// [`ControlError::Io`].
    pub fn flush(&mut self) -> Result<(), ControlError> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use agent_protocol::{ExitStatus, Exited};

    use super::*;

    fn pair() -> (Control, UnixStream) {
        let (ours, guest) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Control::new(ours), guest)
    }

    fn hello(version: u32) -> Vec<u8> {
        encode(&GuestFrame::Hello(Hello {
            version,
            kernel_release: "6".into(),
            now_ns: 2,
            init_ns: 1,
        }))
        .unwrap()
    }

    fn exited() -> Vec<u8> {
        encode(&GuestFrame::Exited(Exited {
            status: ExitStatus::Code(0),
            oom: false,
            exited_ns: 0,
            synced_ns: 0,
        }))
        .unwrap()
    }

    #[test]
    fn hello_comes_first_and_once() {
        let (mut control, mut guest) = pair();
        guest.write_all(&exited()).unwrap();
        assert!(matches!(control.receive(), Err(ControlError::OutOfTurn)));

        let (mut control, mut guest) = pair();
        guest.write_all(&hello(VERSION)).unwrap();
        guest.write_all(&hello(VERSION)).unwrap();
        assert!(matches!(control.receive(), Ok(Some(GuestFrame::Hello(_)))));
        assert!(matches!(control.receive(), Err(ControlError::OutOfTurn)));
    }

    #[test]
    fn another_version_is_told_from_nonsense() {
        let (mut control, mut guest) = pair();
        guest.write_all(&hello(VERSION + 1)).unwrap();
        let error = control.receive().unwrap_err();
        assert!(matches!(error, ControlError::Version { theirs } if theirs == VERSION + 1));

        let (mut control, mut guest) = pair();
        guest.write_all(&[3, 0, 0, 0, 77, 77, 77]).unwrap();
        assert!(matches!(control.receive(), Err(ControlError::Frame(_))));
    }

    #[test]
    fn a_guest_that_does_not_read_is_given_up() {
        let (mut control, _guest) = pair();
        let signal = HostFrame::Signal { signal: 15 };
        let mut result = Ok(());
        for _ in 0..3_000_000 {
            result = control.send(&signal);
            if result.is_err() {
                break;
            }
        }
        assert!(matches!(result, Err(ControlError::Stuck)));
    }
}
