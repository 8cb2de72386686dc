//! The control connection to the host.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use agent_protocol::{
    Boot, CONTROL_PORT, Decoder, GuestFrame, Hello, HostFrame, Level, VERSION, encode,
};
use rustix::{
    event::PollFlags,
    io::Errno,
    net::{Shutdown, shutdown},
    system::uname,
};

use crate::{clock, host};

/// Bytes read at once.
const READ_SIZE: usize = 16 << 10;

/// Log lines are dropped while so many bytes wait for the host to read, so that a host that does not read
/// cannot make us grow.
const MAX_LOG_BACKLOG: usize = 64 << 10;

/// How long the host may take to hang up after the last frame. What it does not read by then it has lost.
const FAREWELL: Duration = Duration::from_secs(2);

/// The connection is of no more use, and so is the VM.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The host closed it.
    #[error("The host closed the control connection")]
    Closed,
    /// It could not be opened or failed.
    #[error("Cannot {0} the control connection: {1}")]
    Io(&'static str, io::Error),
    /// The host sent what no host sends.
    #[error("The host broke the agent protocol: {0}")]
    Protocol(String),
}

/// The control connection. Nothing but [`Control::receive_boot`] and [`Control::say_farewell`] blocks.
pub struct Control {
    stream: OwnedFd,
    decoder: Decoder,
    /// Encoded frames that the socket has not taken yet.
    outgoing: Vec<u8>,
}

impl Control {
    /// Begins to connect to the host.
    ///
    /// # Errors
    /// [`Lost::Io`].
    pub fn dial() -> Result<Self, Lost> {
        let stream = host::dial(CONTROL_PORT).map_err(|error| Lost::Io("open", error))?;
        Ok(Self::new(stream))
    }

    fn new(stream: OwnedFd) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
        }
    }

    /// Waits for the connection and introduces this init, whose `main` began at `init_ns`.
    ///
    /// # Errors
    /// [`Lost::Io`].
    pub fn hello(&mut self, init_ns: u64) -> Result<(), Lost> {
        host::connected(&self.stream).map_err(|error| Lost::Io("open", error))?;
        let kernel_release = uname().release().to_string_lossy().into_owned();
        self.send(&GuestFrame::Hello(Hello {
            version: VERSION,
            kernel_release,
            now_ns: clock::monotonic_ns(),
            init_ns,
        }))
    }

    /// Waits for the host's one `Boot`.
    ///
    /// # Errors
    /// If there is none in time, or something else.
    pub fn receive_boot(&mut self) -> Result<Box<Boot>, Lost> {
        let deadline = Instant::now() + host::DEADLINE;
        loop {
            match self.receive()? {
                Some(HostFrame::Boot(boot)) => return Ok(boot),
                Some(_) => return Err(Lost::Protocol("another frame came before Boot".into())),
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    host::wait(&self.stream, PollFlags::IN, left)
                        .map_err(|error| Lost::Io("receive Boot on", error))?;
                }
            }
        }
    }

    /// The next frame, if one is there. Call it until it gives `None`.
    ///
    /// # Errors
    /// The end of the connection is one too.
    pub fn receive(&mut self) -> Result<Option<HostFrame>, Lost> {
        let mut buffer = [0; READ_SIZE];
        loop {
            let frame = self.decoder.next_message();
            if let Some(frame) = frame.map_err(|error| Lost::Protocol(error.to_string()))? {
                return Ok(Some(frame));
            }
            match rustix::io::read(&self.stream, &mut buffer) {
                Ok(0) => return Err(Lost::Closed),
                Ok(count) => self.decoder.feed(&buffer[..count]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Lost::Io("read", error.into())),
            }
        }
    }

    /// Sends a frame as soon as the socket takes it.
    ///
    /// # Errors
    /// [`Lost::Io`].
    pub fn send(&mut self, frame: &GuestFrame) -> Result<(), Lost> {
        let bytes = encode(frame).map_err(|error| Lost::Protocol(error.to_string()))?;
        self.outgoing.extend_from_slice(&bytes);
        self.flush()
    }

    /// Sends a line for the host's log, unless the host does not keep up.
    ///
    /// # Errors
    /// [`Lost::Io`].
    pub fn warn(&mut self, text: String) -> Result<(), Lost> {
        if self.outgoing.len() > MAX_LOG_BACKLOG {
            return Ok(());
        }
        self.send(&GuestFrame::Log {
            level: Level::Warn,
            text,
        })
    }

    /// Writes what waits. Call it when the socket may have become writable.
    ///
    /// # Errors
    /// [`Lost::Io`].
    pub fn flush(&mut self) -> Result<(), Lost> {
        while !self.outgoing.is_empty() {
            match rustix::io::write(&self.stream, &self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Lost::Io("write", error.into())),
            }
        }
        Ok(())
    }

    /// Sends the last frame and waits, not for ever, until the host has read it and hung up.
    ///
    /// # Errors
    /// If the host was gone before.
    pub fn say_farewell(mut self, frame: &GuestFrame) -> Result<(), Lost> {
        let deadline = Instant::now() + FAREWELL;
        let left = || deadline.saturating_duration_since(Instant::now());
        let failed = |error| Lost::Io("write", error);
        self.send(frame)?;
        while !self.outgoing.is_empty() {
            host::wait(&self.stream, PollFlags::OUT, left()).map_err(failed)?;
            self.flush()?;
        }
        shutdown(&self.stream, Shutdown::Write).map_err(|error| failed(error.into()))?;
        // Frames that come now come too late.
        while matches!(self.receive(), Ok(Some(_)) | Err(Lost::Protocol(_))) {}
        let mut buffer = [0; READ_SIZE];
        loop {
            match rustix::io::read(&self.stream, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    host::wait(&self.stream, PollFlags::IN, left()).map_err(failed)?;
                }
                Err(_) => return Ok(()),
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn pair() -> (Control, UnixStream) {
        let (ours, host) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Control::new(ours.into()), host)
    }

    fn signal(signal: u8) -> Vec<u8> {
        encode(&HostFrame::Signal { signal }).unwrap()
    }

    #[test]
    fn frames_arrive_in_any_portions() {
        let (mut control, mut host) = pair();
        let bytes = [signal(15), signal(2)].concat();
        let mut frames = Vec::new();
        for byte in bytes {
            host.write_all(&[byte]).unwrap();
            frames.extend(control.receive().unwrap());
        }
        assert_eq!(
            frames,
            [15, 2].map(|signal| HostFrame::Signal { signal }).to_vec()
        );
        assert!(control.receive().unwrap().is_none());
    }

    #[test]
    fn the_end_and_garbage_are_losses() {
        let (mut control, host) = pair();
        drop(host);
        assert!(matches!(control.receive(), Err(Lost::Closed)));

        let (mut control, mut host) = pair();
        host.write_all(&[255; 64]).unwrap();
        assert!(matches!(control.receive(), Err(Lost::Protocol(_))));
    }

    #[test]
    fn anything_before_boot_is_a_loss() {
        let (mut control, mut host) = pair();
        host.write_all(&signal(9)).unwrap();
        assert!(matches!(control.receive_boot(), Err(Lost::Protocol(_))));
    }

    #[test]
    fn the_farewell_waits_until_the_host_hangs_up() {
        let (control, mut host) = pair();
        let frame = GuestFrame::Log {
            level: Level::Debug,
            text: "x".repeat(1 << 20),
        };
        let expected = encode(&frame).unwrap();
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            host.write_all(&signal(15)).unwrap();
            host.read_to_end(&mut bytes).unwrap();
            bytes
        });
        control.say_farewell(&frame).unwrap();
        assert_eq!(reader.join().unwrap(), expected);
    }
}
