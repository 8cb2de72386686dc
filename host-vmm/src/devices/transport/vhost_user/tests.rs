//! A front end of ours against a whole server.
#![allow(clippy::unwrap_used)]

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::mpsc,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use vm_memory::{Bytes, GuestAddress};

use super::{
    Server,
    backend::Backend,
    message::{HEADER_LEN, Header, Request},
};
use crate::{
    devices::{
        event_loop::EventLoop,
        testing::{DriverQueue, Random},
        vsock::{HostPorts, Vsock},
    },
    vm::memory::{GuestMemory, Placement, SharedMemory},
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
        let shared = SharedMemory::create(MEMORY).unwrap();
        let whole = Placement {
            guest: 0,
            offset: 0,
            len: MEMORY,
        };
        let memory = shared.map(&[whole]).unwrap();
        let (device, hosts) = vsock();
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
        let protocol = self.ask_u64(GET_PROTOCOL_FEATURES);
        assert_eq!(protocol, 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9);
        self.send(SET_PROTOCOL_FEATURES, &longs(&[protocol]), &[]);
        assert_eq!(self.ask_u64(GET_QUEUE_NUM), 3);
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
        self.server.failure().expect("the server saw no failure")
    }
}

#[test]
fn a_whole_session() {
    let mut front = FrontEnd::new();
    front.set_up();
    let mut config = words(&[0, 8, 0]);
    config.extend([0xee; 8]);
    let reply = front.ask(GET_CONFIG, &config);
    assert_eq!(reply[..12], config[..12]);
    assert_eq!(reply[12..], 3_u64.to_le_bytes());

    let (backend, kept) = UnixStream::pair().unwrap();
    front.send(SET_BACKEND_FD, &[], &[backend.as_fd()]);
    drop(backend);

    let mut rx = DriverQueue::new(0x1_0000, 8);
    let mut tx = DriverQueue::new(0x1_4000, 8);
    let [rx_kick, rx_call, tx_kick, tx_call] = [(); 4].map(|()| new_eventfd());
    front.set_ring(0, &rx, &rx_kick, &rx_call);
    front.set_ring(1, &tx, &tx_kick, &tx_call);

    // A request for a connection, in the upper region.
    rx.add(&front.memory, &[(0xa_0000, 4096, true)]);
    let mut header = [0; 44];
    header[0] = 3;
    header[8] = 2;
    header[16] = 99;
    header[20] = 80;
    header[28] = 1;
    header[30] = 1;
    header[38] = 1;
    front
        .memory
        .write_slice(&header, GuestAddress(0xb_0000))
        .unwrap();
    tx.add(&front.memory, &[(0xb_0000, 44, false)]);
    rustix::io::write(&tx_kick, &1_u64.to_ne_bytes()).unwrap();
    wait_readable(rx_call.as_fd());
    wait_readable(tx_call.as_fd());
    assert_eq!(rx.used(&front.memory), Some((0, 44)));
    assert_eq!(tx.used(&front.memory), Some((0, 0)));
    let operation: u16 = front.memory.read_obj(GuestAddress(0xa_0000 + 30)).unwrap();
    assert_eq!(operation, 2);
    let mut host = front.hosts.recv().unwrap();

    // The socket for our requests stays open.
    let mut fds = [PollFd::new(&kept, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(0));

    // The driver did not ask for another interrupt (EVENT_IDX), so it gets none.
    rustix::io::read(&tx_call, &mut [0; 8]).unwrap();
    header[30] = 6;
    front
        .memory
        .write_slice(&header, GuestAddress(0xb_0000))
        .unwrap();
    let mut send = |front: &mut FrontEnd, tx_kick: &OwnedFd| {
        tx.add(&front.memory, &[(0xb_0000, 44, false)]);
        rustix::io::write(tx_kick, &1_u64.to_ne_bytes()).unwrap();
        // A message later than the kick is handled later, or else the next one is.
        (0..100_000)
            .find_map(|_| {
                front.ask(GET_QUEUE_NUM, &[]);
                tx.used(&front.memory)
            })
            .expect("the packet is not taken")
    };
    assert_eq!(send(&mut front, &tx_kick), (1, 0));
    let mut fds = [PollFd::new(&tx_call, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(0));
    // A new descriptor for interrupts is told once, in case one was lost.
    let tx_call = new_eventfd();
    front.send(SET_RING_CALL, &words(&[1, 0]), &[tx_call.as_fd()]);
    wait_readable(tx_call.as_fd());

    // Stopped rings say where they stopped, and the connection is over.
    assert_eq!(front.ask(GET_RING_BASE, &words(&[1, 0])), words(&[1, 2]));
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    // They go on from there.
    let same_place = DriverQueue::new(0x1_4000, 8);
    front.set_ring_from(2, 1, &same_place, &tx_kick, &tx_call);
    assert_eq!(send(&mut front, &tx_kick), (2, 0));
    assert_eq!(front.ask(GET_RING_BASE, &words(&[0, 0])), words(&[0, 1]));

    // The front end goes, the server ends without complaint.
    let FrontEnd { socket, server, .. } = front;
    drop(socket);
    wait_readable(server.ended());
    assert_eq!(server.failure(), None);
}

/// Bytes in a packet.
const DATA: usize = 200_000;

#[test]
fn what_the_guest_sent_before_it_ended_is_delivered() {
    let mut front = FrontEnd::new();
    front.set_up();
    let rx = DriverQueue::new(0x1_0000, 8);
    let mut tx = DriverQueue::new(0x1_4000, 8);
    let [rx_kick, rx_call, tx_kick, tx_call] = [(); 4].map(|()| new_eventfd());
    front.set_ring(0, &rx, &rx_kick, &rx_call);
    front.set_ring(1, &tx, &tx_kick, &tx_call);
    // The rings have been looked at by the time of the second answer.
    assert_eq!(front.ask_u64(GET_QUEUE_NUM), 3);
    assert_eq!(front.ask_u64(GET_QUEUE_NUM), 3);
    // A request and data, and no kick: the guest dies before it comes to that. It is more than a socket holds.
    let mut packet = vec![0x5a; 44 + DATA];
    packet[..44].fill(0);
    packet[0] = 3;
    packet[8] = 2;
    packet[20] = 80;
    packet[28] = 1;
    packet[30] = 1;
    let write = |at, bytes: &[u8]| front.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    write(0xb_0000, &packet[..44]);
    packet[24..28].copy_from_slice(&200_000_u32.to_le_bytes());
    packet[30] = 5;
    write(0x2_0000, &packet);
    tx.add(&front.memory, &[(0xb_0000, 44, false)]);
    tx.add(&front.memory, &[(0x2_0000, 44 + 200_000, false)]);
    tx.add(&front.memory, &[(0x2_0000, 44 + 200_000, false)]);
    drop(front.socket);
    let mut host = front.hosts.recv_timeout(Duration::from_secs(20)).unwrap();
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert_eq!(received, [0x5a; 2 * DATA]);
    wait_readable(front.server.ended());
    assert_eq!(front.server.failure(), None);
}

#[test]
fn dropping_the_server_ends_it() {
    let mut front = FrontEnd::new();
    front.set_up();
    let FrontEnd {
        mut socket, server, ..
    } = front;
    drop(server);
    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn messages_may_come_in_pieces() {
    let mut front = FrontEnd::new();
    for byte in message(GET_FEATURES, 1, &[]) {
        front.socket.write_all(&[byte]).unwrap();
    }
    assert_eq!(front.reply(GET_FEATURES).len(), 8);
    // Several at once, too, more than are handled in one go.
    let many = message(GET_FEATURES, 1, &[]).repeat(50);
    front.socket.write_all(&many).unwrap();
    for _ in 0..50 {
        assert_eq!(front.reply(GET_FEATURES).len(), 8);
    }
}

#[test]
fn bad_headers_and_bodies_end_the_device() {
    let cases: [(&str, Vec<u8>); 8] = [
        ("unusable flags", message(GET_FEATURES, 0, &[])),
        ("unusable flags", message(GET_FEATURES, 5, &[])),
        ("too long", words(&[SET_MEM_TABLE, 1, 1033])),
        ("too long", words(&[SET_MEM_TABLE, 1, u32::MAX])),
        ("not supported", message(6, 1, &[0; 16])),
        ("not supported", message(u32::MAX, 1, &[])),
        ("body of 0 bytes", message(SET_FEATURES, 1, &[])),
        ("body of 1 bytes", message(GET_FEATURES, 1, &[0])),
    ];
    for (expected, bytes) in cases {
        let front = FrontEnd::new();
        front.send_bytes(&bytes, &[]);
        let failure = front.failure();
        assert!(failure.contains(expected), "{failure}");
    }
}

#[test]
fn an_end_in_the_middle_of_a_message_is_a_failure() {
    let front = FrontEnd::new();
    front.send_bytes(&message(SET_FEATURES, 1, &[0; 8])[..15], &[]);
    let FrontEnd { socket, server, .. } = front;
    drop(socket);
    wait_readable(server.ended());
    assert!(server.failure().unwrap().contains("middle of a message"));
}

/// What a test sends: request, body, and how many descriptors.
type Step = (u32, Vec<u8>, usize);

fn addresses(index: u32, offset: u64) -> Vec<u8> {
    let mut body = words(&[index, 0]);
    body.extend(longs(&[USER + offset, USER + offset, USER + offset, 0]));
    body
}

#[test]
fn requests_that_make_no_sense_end_the_device() {
    let region = |guest, size, offset| longs(&[1, guest, size, USER, offset]);
    let size = |size| (SET_RING_SIZE, words(&[0, size]), 0);
    let enable = || (SET_RING_ENABLE, words(&[0, 1]), 0);
    let kick = || (SET_RING_KICK, words(&[0, 0]), 1);
    let cases: Vec<(&str, Vec<Step>)> = vec![
        ("not offered", vec![(SET_FEATURES, longs(&[1 << 26]), 0)]),
        ("not offered", vec![(SET_PROTOCOL_FEATURES, longs(&[2]), 0)]),
        // Memory that is not the guest's.
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(0, MEMORY + 4096, 0), 1)],
        ),
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(0, 4096, MEMORY), 1)],
        ),
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(0, 4096, 1), 1)],
        ),
        ("unusable memory", vec![(SET_MEM_TABLE, region(0, 0, 0), 1)]),
        (
            "unusable memory",
            vec![(SET_MEM_TABLE, region(u64::MAX - 4095, 4096, 0), 1)],
        ),
        (
            "unusable memory",
            vec![(
                SET_MEM_TABLE,
                longs(&[2, 0, 8192, USER, 0, 4096, 4096, USER, 0]),
                2,
            )],
        ),
        (
            "number of memory regions",
            vec![(SET_MEM_TABLE, longs(&[0]), 0)],
        ),
        // Descriptors that do not belong.
        ("carries 1 descriptors", vec![(SET_OWNER, vec![], 1)]),
        (
            "carries 2 descriptors",
            vec![(SET_MEM_TABLE, region(0, 4096, 0), 2)],
        ),
        (
            "carries 0 descriptors",
            vec![(SET_RING_KICK, words(&[0, 0]), 0)],
        ),
        (
            "carries 1 descriptors",
            vec![(SET_RING_CALL, words(&[0x100, 0]), 1)],
        ),
        ("more than 32 descriptors", vec![(SET_OWNER, vec![], 33)]),
        ("more than 32 descriptors", vec![(SET_OWNER, vec![], 60)]),
        (
            "without a kick descriptor",
            vec![(SET_RING_KICK, words(&[0x100, 0]), 0)],
        ),
        // Rings.
        ("ring 3", vec![(SET_RING_SIZE, words(&[3, 64]), 0)]),
        ("ring 3", vec![(SET_RING_CALL, words(&[3, 0]), 1)]),
        ("ring 255", vec![(SET_RING_KICK, words(&[255, 0]), 1)]),
        (
            "ring 4294967295",
            vec![(GET_RING_BASE, words(&[u32::MAX, 0]), 0)],
        ),
        ("impossible size", vec![size(0)]),
        ("impossible size", vec![size(3)]),
        ("impossible size", vec![size(2048)]),
        ("impossible size", vec![size(0x1_0040)]),
        (
            "impossible base",
            vec![(SET_RING_BASE, words(&[0, 0x1_0000]), 0)],
        ),
        ("without addresses", vec![enable(), kick()]),
        (
            "without a size",
            vec![(SET_RING_ADDRESSES, addresses(0, 0), 0), enable(), kick()],
        ),
        (
            "unusable ring",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 1), 0),
                enable(),
                kick(),
            ],
        ),
        (
            "unusable ring",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, MEMORY - 16), 0),
                enable(),
                kick(),
            ],
        ),
        (
            "impossible address",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, MEMORY), 0),
                kick(),
                enable(),
            ],
        ),
        (
            "while a ring runs",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 0), 0),
                kick(),
                enable(),
                (SET_MEM_TABLE, region(0, 4096, 0), 1),
            ],
        ),
        (
            "while a ring runs",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 0), 0),
                kick(),
                enable(),
                size(32),
            ],
        ),
        (
            "while a ring runs",
            vec![
                size(64),
                (SET_RING_ADDRESSES, addresses(0, 0), 0),
                kick(),
                enable(),
                kick(),
            ],
        ),
    ];
    for (expected, steps) in cases {
        let mut front = FrontEnd::new();
        front.set_up();
        for (request, body, count) in &steps {
            let fds: Vec<OwnedFd> = (0..*count).map(|_| new_eventfd()).collect();
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            front.send(*request, body, &fds);
        }
        let failure = front.failure();
        assert!(failure.contains(expected), "{failure} for {steps:?}");
    }
}

#[test]
fn a_driver_that_breaks_its_queue_is_a_failure_and_can_start_again() {
    let mut front = FrontEnd::new();
    front.set_up();
    let mut tx = DriverQueue::new(0x1_4000, 8);
    let [kick, call, err] = [(); 3].map(|()| new_eventfd());
    front.send(SET_RING_ERR, &words(&[1, 0]), &[err.as_fd()]);
    front.set_ring(1, &tx, &kick, &call);
    tx.add(&front.memory, &[(0xb_0000, 1, false)]);
    rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
    wait_readable(err.as_fd());
    // It took the packet with it, and answers as before.
    assert_eq!(front.ask(GET_RING_BASE, &words(&[1, 0])), words(&[1, 1]));
    let failure = front.server.failure().unwrap();
    assert!(failure.contains("header"), "{failure}");
    let tx = DriverQueue::new(0x1_8000, 8);
    front.set_ring(1, &tx, &kick, &call);
    assert_eq!(front.ask(GET_RING_BASE, &words(&[1, 0])), words(&[1, 0]));
}

/// Any sequence of well-formed requests leaves the state machine standing.
#[test]
fn random_requests() {
    let shared = SharedMemory::create(MEMORY).unwrap();
    let (mut done, mut refused, mut ran) = (0, 0, 0);
    for seed in 1..=4000 {
        let mut random = Random::new(seed);
        let events = EventLoop::new().unwrap();
        let (mut device, _hosts) = vsock();
        crate::devices::VirtioDevice::attach(&mut *device, events.registry(2)).unwrap();
        let mut backend = Backend::new(device, shared.clone(), events.registry(1));
        for _ in 0..60 {
            let Some((request, fds)) = random_request(&mut random) else {
                continue;
            };
            match backend.handle(request, random.below(2) == 0, fds) {
                Ok(_) => done += 1,
                // The conversation would be over here, but a sound state machine does not depend on it.
                Err(_) => refused += 1,
            }
            for index in 0..3 {
                backend.kick(index);
            }
            if backend.run().1.is_some() {
                ran += 1;
            }
        }
        backend.stop_all();
    }
    assert!(done > 50_000 && refused > 20_000, "{done} {refused} {ran}");
}

fn random_request(random: &mut Random) -> Option<(Request, Vec<OwnedFd>)> {
    let index = random.pick(&[0, 0, 0, 0, 1, 1, 2, 3, u32::MAX]);
    let place = |random: &mut Random| u64::from(random.below(260)) * 4096;
    let (request, body) = match random.below(16) {
        0 => (
            SET_FEATURES,
            longs(&[random.pick(&[0, 1 << 30, 1 << 32, 1 << 29, 1])]),
        ),
        1 => (
            SET_PROTOCOL_FEATURES,
            longs(&[random.pick(&[0, 8, 1 << 5, 1 << 60])]),
        ),
        2 => (GET_RING_BASE, words(&[index, 0])),
        3 => (4, vec![]),
        4 | 5 => {
            let count = 1 + random.below(3);
            let mut body = words(&[count, 0]);
            for _ in 0..count {
                let size = random.pick(&[4096, MEMORY / 2, MEMORY, u64::MAX]);
                let values = [
                    place(random),
                    size,
                    USER,
                    random.pick(&[0, 0, 4096, MEMORY]),
                ];
                body.extend(longs(&values));
            }
            (SET_MEM_TABLE, body)
        }
        6 | 7 => (
            SET_RING_SIZE,
            words(&[index, random.pick(&[8, 64, 256, 1024, 0, 7])]),
        ),
        8 | 9 => {
            let mut body = words(&[index, 0]);
            for _ in 0..3 {
                body.extend(longs(&[USER + place(random) + u64::from(random.below(2))]));
            }
            body.extend([0; 8]);
            (SET_RING_ADDRESSES, body)
        }
        10 => (SET_RING_BASE, words(&[index, random.below(70_000)])),
        11 => (SET_RING_KICK, words(&[index & 0xff, 0])),
        12 => (SET_RING_CALL, words(&[index & 0xff, 0])),
        13 => (GET_CONFIG, {
            let size = random.below(20);
            let mut body = words(&[random.below(300), size, 0]);
            body.extend(vec![0; size as usize]);
            body
        }),
        _ => (SET_RING_ENABLE, words(&[index, random.below(2)])),
    };
    let header = Header {
        request,
        need_reply: false,
        size: body.len(),
    };
    let request = Request::parse(&header, &body).ok()?;
    let (least, _) = request.descriptors();
    Some((request, (0..least).map(|_| new_eventfd()).collect()))
}
