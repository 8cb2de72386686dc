//! A front end of ours against a whole server.
#![allow(clippy::unwrap_used)]

mod hostile;
mod session;

use std::{
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::mpsc,
    time::Duration,
};

use super::{Failure, Server, message::HEADER_LEN};
use crate::{
    devices::{
        VirtioDevice,
        testing::DriverQueue,
        vsock::{HostPorts, Vsock},
    },
    vm::memory::{GuestMemory, Placement, SharedMemory},
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};

const MEMORY: u64 = 1 << 20;
/// What the front end calls the start of guest memory.
const USER: u64 = 0x7f00_0000_0000;
/// Long enough that only a defect takes it.
const DEADLINE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_RING_SIZE: u32 = 8;
const SET_RING_ADDRESSES: u32 = 9;
const SET_RING_BASE: u32 = 10;
const GET_RING_BASE: u32 = 11;
const SET_RING_KICK: u32 = 12;
const SET_RING_CALL: u32 = 13;
const SET_RING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_RING_ENABLE: u32 = 18;
const SET_BACKEND_FD: u32 = 21;
const GET_CONFIG: u32 = 24;

struct Ports(mpsc::Sender<UnixStream>);

impl HostPorts for Ports {
    fn connect(&mut self, _port: u32) -> Option<UnixStream> {
        let (device, host) = UnixStream::pair().ok()?;
        self.0.send(host).ok()?;
        Some(device)
    }
}

/// A front end with its guest.
struct FrontEnd {
    socket: UnixStream,
    server: Server,
    memory: GuestMemory,
    hosts: mpsc::Receiver<UnixStream>,
}

fn vsock() -> (Box<Vsock>, mpsc::Receiver<UnixStream>) {
    let (sender, hosts) = mpsc::channel();
    (Box::new(Vsock::new(3, Box::new(Ports(sender)))), hosts)
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// Little-endian bytes of 32-bit words.
fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Little-endian bytes of 64-bit words.
fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[request, flags, u32::try_from(body.len()).unwrap()]);
    bytes.extend_from_slice(body);
    bytes
}

fn wait_readable(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&DEADLINE)), Ok(1), "nothing happens");
}

impl FrontEnd {
    fn new() -> Self {
        let (device, hosts) = vsock();
        Self::of(device, hosts)
    }

    fn of(device: Box<dyn VirtioDevice>, hosts: mpsc::Receiver<UnixStream>) -> Self {
        let shared = SharedMemory::create(MEMORY).unwrap();
        let whole = Placement {
            guest: 0,
            offset: 0,
            len: MEMORY,
        };
        let memory = shared.map(&[whole]).unwrap();
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let server = Server::spawn(theirs, shared, device).unwrap();
        Self {
            socket,
            server,
            memory,
            hosts,
        }
    }

    fn send(&self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send_bytes(&message(request, 1, body), fds);
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        // The server may have hung up already, as it should on some of these.
        let _ = sendmsg(
            &self.socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
    }

    fn reply(&mut self, request: u32) -> Vec<u8> {
        let mut header = [0; HEADER_LEN];
        self.socket.read_exact(&mut header).unwrap();
        assert_eq!(header[..4], request.to_le_bytes());
        assert_eq!(header[4..8], [5, 0, 0, 0]);
        let mut body = vec![0; usize::from(header[8])];
        self.socket.read_exact(&mut body).unwrap();
        body
    }

    fn ask(&mut self, request: u32, body: &[u8]) -> Vec<u8> {
        self.send(request, body, &[]);
        self.reply(request)
    }

    fn ask_u64(&mut self, request: u32) -> u64 {
        u64::from_le_bytes(self.ask(request, &[]).try_into().unwrap())
    }

    /// Everything up to guest memory.
    fn set_up(&mut self) {
        let features = self.ask_u64(GET_FEATURES);
        assert_eq!(features, 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28);
        self.accept(features, 3);
    }

    /// The same with these features, and a device of so many queues.
    fn accept(&mut self, features: u64, queues: u64) {
        let protocol = self.ask_u64(GET_PROTOCOL_FEATURES);
        assert_eq!(protocol, 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9);
        self.send(SET_PROTOCOL_FEATURES, &longs(&[protocol]), &[]);
        assert_eq!(self.ask_u64(GET_QUEUE_NUM), queues);
        self.send(SET_OWNER, &[], &[]);
        self.send(SET_FEATURES, &longs(&[features]), &[]);
        // Two regions; the descriptor is of something else entirely, which must not matter.
        let half = MEMORY / 2;
        let table = longs(&[2, 0, half, USER, 0, half, half, USER + half, half]);
        let other = new_eventfd();
        self.send_bytes(&message(SET_MEM_TABLE, 9, &table), &[other.as_fd()]);
        assert_eq!(self.reply(SET_MEM_TABLE), [0; 8]);
    }

    fn set_ring(&self, index: u32, queue: &DriverQueue, kick: &OwnedFd, call: &OwnedFd) {
        self.set_ring_from(0, index, queue, kick, call);
    }

    fn set_ring_from(
        &self,
        base: u32,
        index: u32,
        queue: &DriverQueue,
        kick: &OwnedFd,
        call: &OwnedFd,
    ) {
        let size = u32::from(queue.size);
        let [descriptors, available, used] = queue.addresses().map(|address| USER + address);
        let mut addresses = words(&[index, 0]);
        addresses.extend(longs(&[descriptors, used, available, 0]));
        self.send(SET_RING_SIZE, &words(&[index, size]), &[]);
        self.send(SET_RING_BASE, &words(&[index, base]), &[]);
        self.send(SET_RING_ADDRESSES, &addresses, &[]);
        self.send(SET_RING_KICK, &words(&[index, 0]), &[kick.as_fd()]);
        self.send(SET_RING_CALL, &words(&[index, 0]), &[call.as_fd()]);
        self.send(SET_RING_ENABLE, &words(&[index, 1]), &[]);
    }

    /// Waits for the server to end, and returns why it did.
    fn failure(self) -> String {
        wait_readable(self.server.ended());
        broken(&self.server)
    }
}

/// What the server found that the front end did wrong.
fn broken(server: &Server) -> String {
    match server.failure() {
        Some(Failure::Broken(how)) => how,
        other => panic!("expected a failure of the front end, got {other:?}"),
    }
}
