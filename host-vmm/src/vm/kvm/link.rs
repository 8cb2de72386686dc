//! The socket between a machine's process and its supervisor: messages of bounded length, a few kinds of them.
//!
//! The machine asks for connections to the host's ports, and says why it ends. The supervisor answers the one and believes
//! none of the other: who sends may be the guest. Whatever is no such message ends the conversation.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::sys::signal::SigSet;
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
        recvmsg, sendmsg, shutdown, socketpair,
    },
};

use crate::{
    devices::vsock::HostPorts, process::is_readable_within, sandbox::call_name, terminal::printable,
};

/// Longest message in bytes.
const MAX: usize = 1024;

/// How long a machine waits for an answer. The supervisor has nothing else to do.
const ANSWER: Duration = Duration::from_secs(5);

/// How long what a dead machine has said may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Kinds of messages, by their first byte.
const CONNECT: u8 = 1;
const FAILED: u8 = 2;
const FORBIDDEN: u8 = 3;

/// Makes the socket: the machine's end, and the supervisor's.
///
/// # Errors
/// The host is out of descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    Ok(socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

/// The machine's end.
#[derive(Clone, Debug)]
pub struct Link {
    socket: Arc<OwnedFd>,
    /// Counts requests, so that an answer which comes too late is not taken for another's.
    asked: u32,
}

impl Link {
    /// A machine that inherited this socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Arc::new(socket),
            asked: 0,
        }
    }

    /// Says why the machine ends.
    pub fn failed(&self, why: &str) {
        let mut message = vec![FAILED];
        message.extend(why.bytes().take(MAX - 1));
        self.send(&message);
    }

    /// What [`Link::failed`] sends begins with this, for who may allocate nothing.
    pub fn forbidden(call: i32) -> [u8; 5] {
        let [a, b, c, d] = call.to_le_bytes();
        [FORBIDDEN, a, b, c, d]
    }

    fn send(&self, message: &[u8]) {
        // A supervisor that does not listen is gone, and this machine with it.
        let _ = rustix::net::send(&*self.socket, message, SendFlags::NOSIGNAL);
    }

    fn ask(&mut self, port: u32) -> Option<UnixStream> {
        self.asked = self.asked.wrapping_add(1);
        let asked = self.asked.to_le_bytes();
        let mut message = vec![CONNECT];
        message.extend(asked);
        message.extend(port.to_le_bytes());
        self.send(&message);
        loop {
            if !is_readable_within(self.socket.as_fd(), ANSWER) {
                return None;
            }
            let mut buffer = [0; MAX];
            let (len, descriptor) = receive(&self.socket, &mut buffer).ok()?;
            match &buffer[..len] {
                [] => return None,
                answer if *answer == asked => return descriptor.map(UnixStream::from),
                _ => {}
            }
        }
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

impl HostPorts for Link {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        self.ask(port)
    }
}

/// What a machine says of its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastWords {
    /// What went wrong, as far as it is fit to be shown.
    pub failed: Option<String>,
    /// The name of a system call that it may not make and tried to.
    pub forbidden: Option<String>,
}

/// The supervisor's end: a thread that answers.
#[derive(Debug)]
pub struct Answering {
    socket: OwnedFd,
    ended: Arc<OwnedFd>,
    heard: Arc<Mutex<LastWords>>,
}

impl Answering {
    /// Answers what comes in by `socket`, with connections that `ports` makes.
    ///
    /// # Errors
    /// The host is out of descriptors or threads.
    pub fn spawn(socket: OwnedFd, ports: Box<dyn HostPorts>) -> io::Result<Self> {
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let heard = Arc::<Mutex<LastWords>>::default();
        let answering = Self {
            socket: socket.try_clone()?,
            ended: Arc::clone(&ended),
            heard: Arc::clone(&heard),
        };
        std::thread::Builder::new()
            .name("machine's link".to_owned())
            .spawn(move || {
                // Signals are for the process's own loop.
                let _ = SigSet::all().thread_block();
                answer(&socket, ports, &heard);
                // Nobody waits for an answer that does not come.
                let _ = shutdown(&socket, Shutdown::Both);
                let _ = rustix::io::write(&*ended, &1_u64.to_ne_bytes());
            })?;
        Ok(answering)
    }

    /// What a machine that is gone has said.
    pub fn last_words(&self) -> LastWords {
        is_readable_within(self.ended.as_fd(), LAST_WORDS);
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // Ends the thread, if the machine's end has not.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// Answers until there is nobody left, or nobody who keeps to the rules.
fn answer(socket: &OwnedFd, mut ports: Box<dyn HostPorts>, heard: &Mutex<LastWords>) {
    loop {
        let mut buffer = [0; MAX];
        // Descriptors that come along are closed.
        let Ok((len, _)) = receive(socket, &mut buffer) else {
            return;
        };
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        match buffer[..len] {
            [CONNECT, a, b, c, d, e, f, g, h] => {
                drop(heard);
                let stream = ports.connect(u32::from_le_bytes([e, f, g, h]));
                let stream = stream.as_ref().map(AsFd::as_fd);
                if reply(socket, [a, b, c, d], stream).is_err() {
                    return;
                }
            }
            [FAILED, ref text @ ..] => {
                let text = printable(&String::from_utf8_lossy(text), MAX);
                heard.failed.get_or_insert(text);
            }
            [FORBIDDEN, a, b, c, d] => {
                let name = call_name(i32::from_le_bytes([a, b, c, d]));
                heard.forbidden.get_or_insert(name);
            }
            _ => return,
        }
    }
}

/// Never blocks: who asks without taking answers gets none.
fn reply(socket: &OwnedFd, asked: [u8; 4], stream: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let descriptors: Vec<_> = stream.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&asked)], &mut ancillary, flags).map(|_| ())
}

/// The next message's length, with a descriptor if there is one. An end is an error, and so is a message that is too long.
fn receive(socket: &OwnedFd, buffer: &mut [u8; MAX]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 || received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::PROTO);
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Serves port 7 and keeps the host's ends.
    struct Ports(Arc<Mutex<Vec<UnixStream>>>);

    impl HostPorts for Ports {
        fn connect(&mut self, port: u32) -> Option<UnixStream> {
            let (device, host) = UnixStream::pair().unwrap();
            self.0.lock().unwrap().push(host);
            (port == 7).then_some(device)
        }
    }

    fn start() -> (Link, Answering, Arc<Mutex<Vec<UnixStream>>>) {
        let (machine, supervisor) = pair().unwrap();
        let hosts = Arc::<Mutex<Vec<UnixStream>>>::default();
        let ports = Box::new(Ports(Arc::clone(&hosts)));
        let answering = Answering::spawn(supervisor, ports).unwrap();
        (Link::new(machine), answering, hosts)
    }

    #[test]
    fn a_connection_reaches_the_machine_and_a_refusal_too() {
        let (mut link, _answering, hosts) = start();
        assert!(link.connect(8).is_none());
        let mut stream = link.connect(7).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut found = [0; 5];
        hosts.lock().unwrap()[1].read_exact(&mut found).unwrap();
        assert_eq!(&found, b"hello");
    }

    #[test]
    fn last_words_are_heard_once_and_cannot_change_a_terminal() {
        let (link, answering, _) = start();
        link.failed("It \u{1b}[2J broke");
        link.failed(&"x".repeat(2 * MAX));
        link.send(&Link::forbidden(0));
        drop(link);
        let words = answering.last_words();
        assert!(!words.failed.as_ref().unwrap().contains('\u{1b}'));
        assert!(words.failed.unwrap().ends_with("broke"));
        assert_eq!(words.forbidden.unwrap(), "read");
    }

    #[test]
    fn who_breaks_the_rules_is_not_heard_any_more() {
        for message in [
            &[0; 9][..],
            &[CONNECT],
            &[CONNECT; 10],
            &[9],
            &[FORBIDDEN; 4],
            &[FAILED; MAX + 1],
        ] {
            let (mut link, answering, _) = start();
            link.send(message);
            assert!(link.connect(7).is_none(), "{message:?}");
            assert_eq!(answering.last_words(), LastWords::default());
        }
    }

    #[test]
    fn an_answer_that_is_late_is_not_anothers() {
        let (machine, supervisor) = pair().unwrap();
        let mut link = Link::new(machine);
        let (late, _) = UnixStream::pair().unwrap();
        reply(&supervisor, 77_u32.to_le_bytes(), Some(late.as_fd())).unwrap();
        reply(&supervisor, 1_u32.to_le_bytes(), None).unwrap();
        assert!(link.connect(7).is_none());
        drop(supervisor);
        assert!(link.connect(7).is_none());
    }
}
