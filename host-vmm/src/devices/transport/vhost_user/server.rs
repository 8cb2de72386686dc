//! A device's thread: one event loop over the front end's socket, the rings' kicks and the device's own
//! descriptors.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::signal::SigSet;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    backend::{Backend, BackendError},
    channel::{Channel, ChannelError, Received},
    message::Request,
};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{EventLoop, Interest},
    },
    vm::memory::SharedMemory,
};

/// Owners of events in the loop.
const CONTROL: u32 = 0;
const KICK: u32 = 1;
const DEVICE: u32 = 2;

/// Tokens of [`CONTROL`].
const STOP: u32 = 0;
const SOCKET: u32 = 1;

/// Messages handled before other events are looked at again.
const MESSAGES: usize = 16;

/// Runs of the device that may finish what a front end left behind: more than its rings can hold.
const LAST_RUNS: usize = 64;

/// How long a stopping server waits for its thread. A call descriptor of a hostile front end can hold the thread
/// up; the server's owner must not hang with it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A device that serves one vhost-user front end. Dropping it stops the device at once: what it holds for
/// slow readers on the host is lost then, so whoever cares waits for [`Server::ended`] first.
#[derive(Debug)]
pub struct Server {
    stop: OwnedFd,
    ended: Arc<OwnedFd>,
    failure: Arc<Mutex<Option<Failure>>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a device was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The front end or the driver did something wrong.
    Broken(String),
    /// The disk of the host that it writes to is full.
    NoRoom,
}

impl Failure {
    fn broken(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Broken(text)
    }
}

impl Server {
    /// Serves `device` to the front end at the other end of `socket`, on a thread of its own. Guest memory is
    /// `memory`, whatever the front end sends.
    ///
    /// # Errors
    /// The host is out of descriptors or threads.
    pub fn spawn(
        socket: UnixStream,
        memory: SharedMemory,
        mut device: Box<dyn VirtioDevice>,
    ) -> io::Result<Self> {
        let events = EventLoop::new()?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop = eventfd(0, flags)?;
        let ended = Arc::new(eventfd(0, flags)?);
        let control = events.registry(CONTROL);
        control.add(&stop, STOP, Interest::Read)?;
        control.add(&socket, SOCKET, Interest::Read)?;
        device.attach(events.registry(DEVICE))?;
        let failure = Arc::new(Mutex::new(None));
        let worker = Worker {
            backend: Backend::new(device, memory, events.registry(KICK)),
            events,
            channel: Some(Channel::new(socket)),
            messages: true,
            failure: Arc::clone(&failure),
        };
        let guard = Ended(Arc::clone(&ended));
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || {
                let _guard = guard;
                // Signals are for the process's own loop; and a pipe that the peer gave for interrupts must not be
                // able to raise one here.
                if let Err(error) = SigSet::all().thread_block() {
                    tracing::warn!("Cannot block signals on a device thread: {error}");
                }
                worker.work();
            })?;
        Ok(Self {
            stop,
            ended,
            failure,
            thread: Some(thread),
        })
    }

    /// Why the device was given up, if it was.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Becomes readable when the front end is gone and everything taken from the guest has been delivered, or the
    /// device failed.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        let timeout = Timespec::try_from(STOP_TIMEOUT).ok();
        let mut fds = [PollFd::new(&*self.ended, PollFlags::IN)];
        let ended = loop {
            match poll(&mut fds, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other == Ok(1),
            }
        };
        match self.thread.take() {
            Some(thread) if ended => {
                if thread.join().is_err() {
                    tracing::error!("A device thread panicked");
                }
            }
            _ => tracing::warn!("A device thread does not stop; it is left behind"),
        }
    }
}

/// Tells [`Server::ended`], however the thread ends.
struct Ended(Arc<OwnedFd>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// What the thread owns.
struct Worker {
    events: EventLoop,
    backend: Backend,
    /// Gone when the front end is.
    channel: Option<Channel>,
    /// There may be messages to receive.
    messages: bool,
    failure: Arc<Mutex<Option<Failure>>>,
}

/// Why the conversation with the front end ends early.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Worker {
    fn work(mut self) {
        let mut events = Vec::new();
        let mut progress = Progress::Idle;
        loop {
            events.clear();
            let busy = self.messages || progress == Progress::More;
            if let Err(error) = self.events.wait(busy, &mut events) {
                return self.fail(Failure::broken(&error));
            }
            for event in &events {
                match (event.owner, event.token) {
                    (CONTROL, STOP) => return,
                    (CONTROL, _) => self.messages = true,
                    (KICK, ring) => self.backend.kick(ring as usize),
                    (_, token) => self.backend.device().ready(token, event.readiness),
                }
            }
            let (now, error) = self.backend.run();
            progress = now;
            if let Some(error) = error {
                tracing::warn!("Stopped a device: {error}");
                match error {
                    DeviceError::Queue(error) => self.fail(Failure::broken(&error)),
                    // Not the guest's fault, and nothing that it could go on with.
                    DeviceError::NoRoom => {
                        self.fail(Failure::NoRoom);
                        self.hang_up();
                    }
                }
            }
            match self.receive() {
                Ok(0) => {}
                // What was changed may give the device something to do, such as a ring that starts full.
                Ok(_) => progress = Progress::More,
                Err(error) => {
                    self.fail(Failure::broken(&error));
                    self.hang_up();
                }
            }
            if self.channel.is_none() && self.backend.device().drained() {
                return;
            }
        }
    }

    /// Handles some of the front end's messages; returns how many.
    fn receive(&mut self) -> Result<usize, WorkerError> {
        for handled in 0..MESSAGES {
            let Some(channel) = self.channel.as_mut().filter(|_| self.messages) else {
                return Ok(handled);
            };
            let message = match channel.receive()? {
                Received::Message(message) => message,
                Received::Nothing => {
                    self.messages = false;
                    return Ok(handled);
                }
                Received::End => {
                    self.finish_rings();
                    self.hang_up();
                    return Ok(handled);
                }
            };
            let header = message.header;
            let request = Request::parse(&header, &message.body).map_err(BackendError::Message)?;
            tracing::trace!(?request, "vhost-user");
            let reply = self
                .backend
                .handle(request, header.need_reply, message.descriptors)?;
            if let Some(reply) = reply {
                channel.reply(&header.reply(&reply))?;
            }
        }
        Ok(MESSAGES)
    }

    /// Takes what the guest had made available before it went: at most the rings' length of it.
    fn finish_rings(&mut self) {
        self.backend.kick_all();
        for _ in 0..LAST_RUNS {
            if !matches!(self.backend.run(), (Progress::More, None)) {
                break;
            }
        }
    }

    /// The front end is gone or is sent away: nothing more comes from the guest.
    fn hang_up(&mut self) {
        self.backend.stop_all();
        self.channel = None;
        self.messages = false;
    }

    /// Keeps the first failure.
    fn fail(&self, failure: Failure) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(failure);
    }
}
