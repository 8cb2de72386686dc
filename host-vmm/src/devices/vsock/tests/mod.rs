//! The device with a driver of ours and no VM.
#![allow(clippy::unwrap_used)]

mod hostile;
mod streams;

use std::{
    io::Read,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

use vm_memory::{Bytes, GuestAddress};

use super::{
    HostPorts, Vsock,
    packet::{HEADER_LEN, Header, TYPE_STREAM, op},
};
use crate::{
    devices::{DeviceError, Progress, VirtioDevice, event_loop::EventLoop, testing::DriverQueue},
    vm::memory::{GuestMemory, Placement, SharedMemory},
};

const CID: u64 = 42;
const MEMORY: u64 = 4 << 20;
/// Where rings lie.
const RX_RINGS: u64 = 0;
const TX_RINGS: u64 = 0x4000;
const EVENT_RINGS: u64 = 0x8000;
/// Where buffers for received packets lie, one page and one slot each.
const RX_BUFFERS: u64 = 0x10_0000;
const RX_BUFFER: u32 = 4096;
/// Where packets to send lie, one after the other, round and round.
const TX_BUFFER: u64 = 0x20_0000;
const TX_BUFFERS_END: u64 = 0x38_0000;
/// Where indirect tables lie.
const TABLE: u64 = 0x39_0000;
/// Ports below this one are served.
const SERVED: u32 = 5000;

/// Serves its ports by handing the host's ends to the test.
struct Ports(Sender<UnixStream>);

impl HostPorts for Ports {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if port >= SERVED {
            return None;
        }
        let (device, host) = UnixStream::pair().ok()?;
        host.set_nonblocking(true).ok()?;
        self.0.send(host).ok()?;
        Some(device)
    }
}

/// A guest, as far as the device can tell.
struct Guest {
    device: Vsock,
    events: EventLoop,
    memory: Arc<GuestMemory>,
    rx: DriverQueue,
    tx: DriverQueue,
    hosts: Receiver<UnixStream>,
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Where the next packet to send is written.
    tx_at: u64,
}

impl Guest {
    /// A guest with plenty of buffers to receive into.
    fn new() -> Self {
        let mut guest = Self::without_buffers(false);
        guest.post(64);
        guest
    }

    fn without_buffers(event_idx: bool) -> Self {
        let shared = SharedMemory::create(MEMORY).unwrap();
        let whole = Placement {
            guest: 0,
            offset: 0,
            len: MEMORY,
        };
        let memory = Arc::new(shared.map(&[whole]).unwrap());
        let (sender, hosts) = mpsc::channel();
        let events = EventLoop::new().unwrap();
        let mut device = Vsock::new(CID, Box::new(Ports(sender)));
        device.attach(events.registry(9)).unwrap();
        let [rx, tx, event] = [(RX_RINGS, 64), (TX_RINGS, 128), (EVENT_RINGS, 8)]
            .map(|(base, size)| DriverQueue::new(base, size));
        for (index, queue) in [&rx, &tx, &event].into_iter().enumerate() {
            device.start_queue(index, queue.device_side(&memory, event_idx));
        }
        Self {
            device,
            events,
            memory,
            rx,
            tx,
            hosts,
            tx_at: TX_BUFFER,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    /// Offers `count` buffers to receive into.
    fn post(&mut self, count: u16) {
        for _ in 0..count {
            self.post_one(&[RX_BUFFER]);
        }
    }

    /// Offers one buffer in pieces of these lengths.
    fn post_one(&mut self, pieces: &[u32]) {
        // The buffer of a chain is told by its head.
        let mut at = rx_buffer(self.rx.next_head());
        let buffers: Vec<_> = pieces
            .iter()
            .map(|len| {
                let buffer = (at, *len, true);
                at += u64::from(*len);
                buffer
            })
            .collect();
        self.rx.add(&self.memory, &buffers);
    }

    /// Lets the device work until there is nothing left to do.
    fn run(&mut self) -> Result<(), DeviceError> {
        let mut events = Vec::new();
        for _ in 0..100_000 {
            events.clear();
            self.events.wait(true, &mut events).unwrap();
            for event in &events {
                assert_eq!(event.owner, 9);
                self.device.ready(event.token, event.readiness);
            }
            if self.device.run()? == Progress::Idle && events.is_empty() {
                return Ok(());
            }
        }
        panic!("the device never rests");
    }

    fn header(&self, operation: u16, ports: (u32, u32)) -> Header {
        Header {
            src_cid: CID,
            dst_cid: 2,
            src_port: ports.0,
            dst_port: ports.1,
            kind: TYPE_STREAM,
            op: operation,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    /// Sends a packet in one buffer, without running the device.
    fn queue_packet(&mut self, header: Header, data: &[u8]) {
        let len = HEADER_LEN + data.len();
        self.queue_pieces(header, data, &[len]);
    }

    /// Sends a packet in pieces of these lengths.
    fn queue_pieces(&mut self, header: Header, data: &[u8], pieces: &[usize]) {
        let buffers = self.lay_out(header, data, pieces);
        self.tx.add(&self.memory, &buffers);
        self.device.kick(1);
    }

    /// Writes a packet to memory in pieces that do not touch.
    fn lay_out(&mut self, header: Header, data: &[u8], pieces: &[usize]) -> Vec<(u64, u32, bool)> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(data);
        assert_eq!(pieces.iter().sum::<usize>(), bytes.len());
        let mut rest = &bytes[..];
        if self.tx_at + bytes.len() as u64 + 4096 > TX_BUFFERS_END {
            self.tx_at = TX_BUFFER;
        }
        let mut buffers = Vec::new();
        for len in pieces {
            let (piece, after) = rest.split_at(*len);
            let at = self.tx_at;
            self.memory.write_slice(piece, GuestAddress(at)).unwrap();
            buffers.push((at, u32::try_from(*len).unwrap(), false));
            self.tx_at += *len as u64 + 3;
            rest = after;
        }
        buffers
    }

    /// Sends a packet and lets the device work.
    fn send(&mut self, operation: u16, ports: (u32, u32), flags: u32, data: &[u8]) {
        let mut header = self.header(operation, ports);
        header.flags = flags;
        header.len = u32::try_from(data.len()).unwrap();
        self.queue_packet(header, data);
        self.run().unwrap();
        while self.tx.used(&self.memory).is_some() {}
    }

    /// Takes the packets that the device sent, and offers their buffers again.
    fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        while let Some(packet) = self.receive_one() {
            self.post_one(&[RX_BUFFER]);
            packets.push(packet);
        }
        packets
    }

    fn receive_one(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.rx.used(&self.memory)?;
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(rx_buffer(head)))
            .unwrap();
        let (header, data) = bytes.split_first_chunk().unwrap();
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid), (2, CID));
        assert_eq!(header.kind, TYPE_STREAM);
        assert_eq!(header.len as usize, data.len());
        Some((header, data.to_vec()))
    }

    /// Receives until the device has nothing more to send; returns operations with flags, and all the data.
    fn drain(&mut self) -> (Vec<(u16, u32)>, Vec<u8>) {
        let mut operations = Vec::new();
        let mut all = Vec::new();
        for _ in 0..100_000 {
            self.run().unwrap();
            let packets = self.receive();
            if packets.is_empty() {
                return (operations, all);
            }
            for (header, data) in packets {
                if header.op == op::RW {
                    self.fwd_cnt = self.fwd_cnt.wrapping_add(header.len);
                } else {
                    operations.push((header.op, header.flags));
                }
                all.extend(data);
            }
        }
        panic!("the device never stops sending");
    }

    /// Opens a connection; returns the host's end.
    fn connect(&mut self, ports: (u32, u32)) -> UnixStream {
        self.send(op::REQUEST, ports, 0, &[]);
        let packets = self.receive();
        assert_eq!(packets.len(), 1, "{packets:?}");
        assert_eq!(packets[0].0.op, op::RESPONSE);
        assert_eq!((packets[0].0.dst_port, packets[0].0.src_port), ports);
        self.hosts.recv().unwrap()
    }
}

/// Where the buffer with this head lies.
fn rx_buffer(head: u16) -> u64 {
    RX_BUFFERS + u64::from(head) * 2 * u64::from(RX_BUFFER)
}

/// Everything that is there to read, and whether it ended.
fn read_now(mut host: &UnixStream) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        match host.read(&mut buffer) {
            Ok(0) => return (all, true),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return (all, false),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Bytes that differ from their neighbours.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251).to_le_bytes()[0]).collect()
}
