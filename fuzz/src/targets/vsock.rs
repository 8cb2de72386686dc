//! Packets to the socket device, from a driver in guest memory, with a host that does all a host may do.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use host_vmm::{
    devices::{
        Progress, VirtioDevice,
        event_loop::EventLoop,
        vsock::{HostPorts, Vsock},
    },
    vm::memory::GuestMemory,
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    guest::{Buffer, Ring, memory, put, scribble},
    input::Input,
};

const CID: u64 = 42;
const HEADER: usize = 44;

const RX: usize = 0;
const TX: usize = 1;

/// Where packets to send lie, and buffers to receive into, one for each descriptor.
const PACKETS: u64 = 0x9000;
const BUFFERS: u64 = 0x2_0000;
const BUFFER: u32 = 256;

const STEPS: usize = 128;

/// Hands the host's ends to the target. Port 3 is refused.
struct Ports(Arc<Mutex<Vec<UnixStream>>>);

impl HostPorts for Ports {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if port == 3 {
            return None;
        }
        let (device, host) = UnixStream::pair().ok()?;
        host.set_nonblocking(true).ok()?;
        self.0.lock().ok()?.push(host);
        Some(device)
    }
}

struct Machine {
    device: Vsock,
    events: EventLoop,
    memory: Arc<GuestMemory>,
    rings: [Ring; 3],
    event_idx: bool,
    hosts: Arc<Mutex<Vec<UnixStream>>>,
    /// The driver has kept to packets: what is in its rings is the device's word.
    honest: bool,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let hosts = Arc::default();
    let events = EventLoop::new().expect("an event loop");
    let mut device = Vsock::new(CID, Box::new(Ports(Arc::clone(&hosts))));
    device
        .attach(events.registry(0))
        .expect("a device and its events");
    let (_shared, memory) = memory();
    let (large, small) = (8, flags >> 4);
    let mut machine = Machine {
        device,
        events,
        memory,
        rings: [(0, large), (1, small), (2, large)]
            .map(|(index, size)| Ring::new(index * Ring::LEN, size)),
        event_idx: flags & 1 != 0,
        hosts,
        honest: true,
    };
    machine.start();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        machine.step(&mut input);
        if !machine.works() {
            machine.start();
        }
        machine.receive();
    }
}

impl Machine {
    fn start(&mut self) {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            self.device.stop_queue(index);
            let queue = ring.start(&self.memory, self.event_idx);
            self.device.start_queue(index, queue);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0 => {
                self.honest = false;
                scribble(&self.memory, input);
            }
            1 => {
                self.honest = false;
                let buffers: Vec<Buffer> =
                    (0..input.u8() % 4).map(|_| Buffer::take(input)).collect();
                let index = usize::from(input.u8() % 3);
                self.rings[index].add(&self.memory, &buffers, None);
                self.device.kick(index);
            }
            2 => {
                self.honest = false;
                let index = usize::from(input.u8() % 2);
                self.rings[index].skip(&self.memory, input.u16());
                self.device.kick(index);
            }
            3 => self.start(),
            4..6 => self.post(input.u8() % 64),
            6..8 => self.with_host(input),
            _ => self.packet(input),
        }
    }

    /// Offers buffers to receive into.
    fn post(&mut self, count: u8) {
        for _ in 0..count {
            let buffer = Buffer {
                address: BUFFERS + u64::from(self.rings[RX].next_head()) * u64::from(BUFFER),
                len: BUFFER,
                writable: true,
            };
            self.rings[RX].add(&self.memory, &[buffer], None);
        }
        self.device.kick(RX);
    }

    /// Sends a packet with a header that is right in most of what it says.
    fn packet(&mut self, input: &mut Input<'_>) {
        let (operation, ports, details) = (input.u8(), input.u8(), input.u8());
        let data = usize::from(input.u8());
        let data = input.bytes(data);
        let len = match details & 3 {
            0 => input.u32(),
            _ => u32::try_from(data.len()).unwrap_or(0),
        };
        let credit = |choice: u8| match choice & 3 {
            0 => 0,
            1 => 64,
            2 => u32::MAX,
            _ => 1 << 16,
        };
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&(CID ^ u64::from(operation == 0xff)).to_le_bytes());
        header.extend_from_slice(&2_u64.to_le_bytes());
        header.extend_from_slice(&(1024 + u32::from(ports >> 4)).to_le_bytes());
        header.extend_from_slice(&u32::from(ports & 3).to_le_bytes());
        header.extend_from_slice(&len.to_le_bytes());
        header.extend_from_slice(&(1 + u16::from(operation == 0xfe)).to_le_bytes());
        header.extend_from_slice(&u16::from(operation % 10).to_le_bytes());
        header.extend_from_slice(&u32::from(details >> 2 & 3).to_le_bytes());
        header.extend_from_slice(&credit(details >> 4).to_le_bytes());
        header.extend_from_slice(&credit(details >> 6).to_le_bytes());
        put(&self.memory, PACKETS, &header);
        put(&self.memory, PACKETS + HEADER as u64, data);
        // In one piece, or in three.
        let whole = HEADER + data.len();
        let cut = match ports & 4 {
            0 => 0,
            _ => usize::from(operation >> 4),
        };
        let buffers: Vec<Buffer> = [0..cut, cut..whole - cut, whole - cut..whole]
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(|part| Buffer {
                address: PACKETS + part.start as u64,
                len: u32::try_from(part.len()).unwrap_or(0),
                writable: false,
            })
            .collect();
        self.rings[TX].add(&self.memory, &buffers, None);
        self.device.kick(TX);
    }

    /// The host does something with one of its ends.
    fn with_host(&mut self, input: &mut Input<'_>) {
        let (action, which, amount) = (input.u8(), input.u8(), input.u8());
        let mut hosts = self.hosts.lock().expect("the hosts");
        let Some(which) = usize::from(which).checked_rem(hosts.len()) else {
            return;
        };
        let mut host = &hosts[which];
        let mut bytes = vec![7; usize::from(amount) * 64];
        match action % 6 {
            0 | 1 => drop(host.write(&bytes)),
            2 | 3 => drop(host.read(&mut bytes)),
            4 => drop(host.shutdown(match amount % 3 {
                0 => Shutdown::Read,
                1 => Shutdown::Write,
                _ => Shutdown::Both,
            })),
            _ => drop(hosts.swap_remove(which)),
        }
    }

    /// Lets the device work until it rests; whether its driver kept the rules.
    fn works(&mut self) -> bool {
        let mut events = Vec::new();
        for _ in 0..100_000 {
            events.clear();
            self.events.wait(true, &mut events).expect("an event loop");
            for event in &events {
                self.device.ready(event.token, event.readiness);
            }
            match self.device.run() {
                Ok(Progress::Idle) if events.is_empty() => return true,
                Ok(_) => {}
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return false;
                }
            }
        }
        panic!("the device never rests");
    }

    /// Looks at what the device has sent.
    fn receive(&mut self) {
        if !self.honest {
            return;
        }
        while let Some((head, len)) = self.rings[RX].used(&self.memory) {
            assert!(
                (HEADER..=BUFFER as usize).contains(&(len as usize)),
                "{len}"
            );
            let mut header = [0; HEADER];
            let at = BUFFERS + u64::from(head) * u64::from(BUFFER);
            self.memory
                .read_slice(&mut header, GuestAddress(at))
                .expect("a buffer");
            assert_eq!(header[..8], 2_u64.to_le_bytes(), "from the host");
            assert_eq!(header[8..16], CID.to_le_bytes(), "to the guest");
            let data = len - u32::try_from(HEADER).unwrap_or(0);
            assert_eq!(header[24..28], data.to_le_bytes(), "length of the data");
            assert_eq!(header[28..30], 1_u16.to_le_bytes(), "a stream");
        }
        while self.rings[TX].used(&self.memory).is_some() {}
    }
}
