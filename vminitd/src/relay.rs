//! One direction of a standard stream: bytes from one descriptor to another, never blocking.
//!
//! A relay holds at most one buffer of bytes. It reads only what it could pass on, so a reader that stops
//! makes the pipe or the socket in front of the relay fill up, and stalls whoever writes into it and nobody
//! else. Both descriptors are watched edge-triggered: [`Relay::pump`] goes on until one of them would
//! block.

use std::{
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::{Errno, read, write},
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown},
};

/// Bytes held at most. Less costs a switch between processes more often; measured, more does not pay.
const BUFFER: usize = 128 << 10;

/// Bytes moved before others have their turn.
const TURN: usize = 1 << 20;

/// A descriptor by what it is, which decides how its end looks and how it is ended.
#[derive(Debug)]
pub enum End {
    /// A connected stream socket to the host.
    Socket(OwnedFd),
    /// Our end of a pipe to the container's process.
    Pipe(OwnedFd),
    /// The master of the container's pseudo-terminal.
    Terminal(OwnedFd),
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (Self::Socket(fd) | Self::Pipe(fd) | Self::Terminal(fd)) = self;
        fd.as_fd()
    }
}

/// What [`Relay::pump`] left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do before the next event on one of the descriptors.
    Waiting,
    /// There is more to move at once.
    More,
    /// All that will ever be moved has been, and the host has it. Both descriptors are closed.
    Done,
}

/// Moves bytes from a source to a sink until the source ends or the sink breaks.
#[derive(Debug)]
pub struct Relay {
    state: State,
    /// Empty before the first use. Pages of it that are never used take no memory.
    buffer: Vec<u8>,
    /// What of `buffer` has been read and not written yet.
    held: Range<usize>,
}

#[derive(Debug)]
enum State {
    /// Bytes may flow.
    Open {
        source: End,
        sink: End,
    },
    /// The source has ended; what is in the buffer still goes to the sink.
    Draining {
        sink: End,
    },
    /// Nobody reads from the container's terminal any more. It goes on as if somebody did.
    Discarding {
        source: End,
    },
    /// The host has been told that this was the end, and hangs up once it has read it.
    Closing {
        socket: OwnedFd,
    },
    Done,
}

impl Relay {
    /// A relay between two descriptors that do not block.
    pub fn new(source: End, sink: End) -> Self {
        Self {
            state: State::Open { source, sink },
            buffer: Vec::new(),
            held: 0..0,
        }
    }

    /// The descriptors to watch, for as long as they are open.
    pub fn watched(&self) -> [Option<BorrowedFd<'_>>; 2] {
        match &self.state {
            State::Open { source, sink } => [Some(source.as_fd()), Some(sink.as_fd())],
            State::Draining { sink } => [None, Some(sink.as_fd())],
            State::Discarding { source } => [Some(source.as_fd()), None],
            State::Closing { socket } => [None, Some(socket.as_fd())],
            State::Done => [None, None],
        }
    }

    /// Whether [`Progress::Done`] has been reached.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Moves what can be moved now.
    pub fn pump(&mut self) -> Progress {
        let mut left = TURN;
        loop {
            let step = match &self.state {
                State::Done => return Progress::Done,
                State::Closing { socket } => has_hung_up(socket),
                State::Draining { .. } if self.held.is_empty() => Step::Finished,
                State::Open { source, .. } | State::Discarding { source }
                    if self.held.is_empty() =>
                {
                    self.buffer.resize(BUFFER, 0);
                    let (step, count) = get(source, &mut self.buffer);
                    self.held = 0..count;
                    match (step, &self.state) {
                        // With nothing to write, only asking tells that nobody would read.
                        (Step::Blocked, State::Open { sink, .. }) if is_broken(sink) => {
                            Step::Broken
                        }
                        (step, _) => step,
                    }
                }
                State::Open { sink, .. } | State::Draining { sink } => {
                    match put(sink, &self.buffer[self.held.clone()]) {
                        Ok(count) => {
                            self.held.start += count;
                            left = left.saturating_sub(count);
                            Step::Moved
                        }
                        Err(Errno::AGAIN) => Step::Blocked,
                        Err(Errno::INTR) => Step::Moved,
                        Err(_) => Step::Broken,
                    }
                }
                State::Discarding { .. } => {
                    left = left.saturating_sub(self.held.len());
                    self.held = 0..0;
                    Step::Moved
                }
            };
            match step {
                Step::Moved if left == 0 => return Progress::More,
                Step::Moved => {}
                Step::Blocked => return Progress::Waiting,
                Step::Ended => self.end(),
                Step::Finished => self.finish(),
                Step::Broken => self.break_off(),
            }
        }
    }

    /// The source has ended.
    fn end(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Open { sink, .. } => State::Draining { sink },
            _ => State::Done,
        };
    }

    /// Everything has been written.
    fn finish(&mut self) {
        self.held = 0..0;
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Draining {
                sink: End::Socket(socket),
            } => match shutdown(&socket, Shutdown::Write) {
                Ok(()) => State::Closing { socket },
                Err(_) => State::Done,
            },
            // Closing a pipe is its end of file. The terminal has none: somebody who types no more does not
            // end it.
            _ => State::Done,
        };
    }

    /// The sink takes no more: whoever writes into the source is to learn of it.
    fn break_off(&mut self) {
        self.held = 0..0;
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            // To close the master would hang up the terminal.
            State::Open {
                source: source @ End::Terminal(_),
                ..
            } => State::Discarding { source },
            // Closing tells both a process that writes into a pipe and the host.
            _ => State::Done,
        };
    }
}

/// What one step came to.
enum Step {
    Moved,
    /// Nothing can be done now.
    Blocked,
    /// The source has no more.
    Ended,
    /// The sink has it all.
    Finished,
    /// The sink takes no more, or the host has hung up.
    Broken,
}

fn get(source: &End, buffer: &mut [u8]) -> (Step, usize) {
    match read(source, buffer) {
        Ok(0) => (Step::Ended, 0),
        Ok(count) => (Step::Moved, count),
        Err(Errno::AGAIN) => (Step::Blocked, 0),
        Err(Errno::INTR) => (Step::Moved, 0),
        // A terminal that no process has open any more gives EIO, a socket whose peer is gone ECONNRESET.
        Err(_) => (Step::Ended, 0),
    }
}

fn put(sink: &End, bytes: &[u8]) -> rustix::io::Result<usize> {
    match sink {
        End::Socket(socket) => send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
        // PID 1 has every signal blocked, SIGPIPE too.
        End::Pipe(fd) | End::Terminal(fd) => write(fd, bytes),
    }
}

/// Whether nobody will ever read what is written into `sink`.
fn is_broken(sink: &End) -> bool {
    match sink {
        // Sends nothing, and still says whether something could be sent.
        End::Socket(_) => put(sink, &[]).is_err_and(|error| error != Errno::AGAIN),
        End::Pipe(pipe) => crate::host::has_error(pipe),
        End::Terminal(_) => false,
    }
}

/// Whether the host has hung up a socket to which we have said that nothing follows.
fn has_hung_up(socket: &OwnedFd) -> Step {
    loop {
        match recv(socket, &mut [0_u8; 64][..], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return Step::Blocked,
            // Nobody may say anything on an output stream; should the host do so, it is of no interest.
            Ok((count, _)) if count > 0 => {}
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return Step::Broken,
        }
    }
}
