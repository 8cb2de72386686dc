//! The device: three queues, and the connections that share them.

use std::{collections::VecDeque, io};

use super::{
    HostPorts,
    connection::{BUF_ALLOC, Connection, Key, Violation},
    connections::Connections,
    packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op},
};
use crate::devices::{
    DeviceError, Progress, VirtioDevice,
    event_loop::{Readiness, Registry},
    guest_io,
    virtqueue::{Chain, QueueError, Virtqueue, total},
};

/// Device ID (virtio 1.2 §5.10.1).
const DEVICE_TYPE: u32 = 19;

/// Queues (virtio 1.2 §5.10.2).
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [256; 3];

/// Packets handled in each direction before other events are looked at again.
const BUDGET: usize = 128;

/// Packets that one connection sends to the guest before the next has its turn.
const TURN: usize = 16;

/// Refusals that wait for the guest to make room. While there are so many, nothing more is taken from it.
const MAX_RESETS: usize = 256;

/// The virtio socket device.
pub struct Vsock {
    cid: u64,
    ports: Box<dyn HostPorts>,
    registry: Option<Registry>,
    queues: [Option<Virtqueue>; 3],
    connections: Connections,
    /// Connections with something to send, in the order of their turns.
    turns: VecDeque<u32>,
    /// Packets that the first of them has sent in its turn.
    turn: usize,
    /// Connections that the guest is to learn are no more.
    resets: VecDeque<Key>,
    /// The guest may have sent something.
    tx_pending: bool,
    chain: Chain,
}

impl Vsock {
    /// A device for the guest with this context identifier (3 or more), whose connections `ports` takes.
    #[must_use]
    pub fn new(cid: u64, ports: Box<dyn HostPorts>) -> Self {
        Self {
            cid,
            ports,
            registry: None,
            queues: [None, None, None],
            connections: Connections::default(),
            turns: VecDeque::new(),
            turn: 0,
            resets: VecDeque::new(),
            tx_pending: false,
            chain: Chain::default(),
        }
    }

    /// Connections at this moment, those included that only deliver their last bytes.
    #[cfg(test)]
    pub(super) fn connection_count(&self) -> usize {
        self.connections.iter().count()
    }

    /// Turns that are waited for, which must not outnumber the connections.
    #[cfg(test)]
    pub(super) fn turn_count(&self) -> usize {
        self.turns.len()
    }

    /// Takes packets from the guest; says whether there are more.
    fn receive_from_guest(&mut self) -> Result<Progress, QueueError> {
        let Some(mut queue) = self.queues[TX].take() else {
            return Ok(Progress::Idle);
        };
        let result = self.receive_with(&mut queue);
        self.queues[TX] = Some(queue);
        result
    }

    fn receive_with(&mut self, queue: &mut Virtqueue) -> Result<Progress, QueueError> {
        let mut chain = std::mem::take(&mut self.chain);
        let mut used = 0;
        let result = loop {
            if !self.tx_pending || self.resets.len() >= MAX_RESETS {
                break Ok(Progress::Idle);
            }
            if used == BUDGET {
                break Ok(Progress::More);
            }
            match queue.pop(&mut chain) {
                Err(error) => break Err(error),
                Ok(false) => match queue.enable_kicks() {
                    Ok(more) => self.tx_pending = more,
                    Err(error) => break Err(error),
                },
                Ok(true) => {
                    used += 1;
                    if let Err(error) = self
                        .take_packet(queue, &chain)
                        .and_then(|()| queue.push(chain.head, 0))
                    {
                        break Err(error);
                    }
                }
            }
        };
        self.chain = chain;
        if used > 0 {
            queue.notify()?;
        }
        result
    }

    fn take_packet(&mut self, queue: &Virtqueue, chain: &Chain) -> Result<(), QueueError> {
        let unusable = |why| QueueError::Buffer {
            head: chain.head,
            why,
        };
        if !chain.writable.is_empty() {
            return Err(unusable("a packet to send is writable"));
        }
        let mut bytes = [0; HEADER_LEN];
        if !guest_io::copy_from(queue.memory(), &chain.readable, 0, &mut bytes) {
            return Err(unusable("shorter than a packet's header"));
        }
        let header = Header::parse(&bytes);
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            return Ok(());
        }
        let key = Key {
            guest: header.src_port,
            host: header.dst_port,
        };
        let data = total(&chain.readable) - HEADER_LEN;
        let known = self.connections.find(key);
        if header.kind != TYPE_STREAM || header.len as usize > data {
            self.refuse(key, header.op);
            return Ok(());
        }
        match (header.op, known) {
            (op::REQUEST, None) => self.connect(key, &header),
            (_, None) => self.refuse(key, header.op),
            (op::RST, Some(token)) => self.detach(token),
            (_, Some(token)) => {
                if self.dispatch(token, &header, queue, chain) == Err(Violation) {
                    self.refuse(key, header.op);
                } else {
                    self.settle(token);
                }
            }
        }
        Ok(())
    }

    /// Hands a packet to its connection.
    fn dispatch(
        &mut self,
        token: u32,
        header: &Header,
        queue: &Virtqueue,
        chain: &Chain,
    ) -> Result<(), Violation> {
        let connection = self.connections.get(token).ok_or(Violation)?;
        connection.update_credit(header);
        match header.op {
            op::RW => connection.forward(queue.memory(), &chain.readable, header.len),
            op::CREDIT_UPDATE => Ok(()),
            op::CREDIT_REQUEST => {
                connection.request_credit();
                Ok(())
            }
            op::SHUTDOWN => {
                connection.guest_shutdown(header.flags);
                Ok(())
            }
            // A second request, a response to none of ours, or an operation that does not exist.
            _ => Err(Violation),
        }
    }

    fn connect(&mut self, key: Key, request: &Header) {
        let Self {
            connections,
            ports,
            registry,
            ..
        } = self;
        let token = connections.insert(key, |token| {
            let registry = registry.as_ref()?;
            let socket = ports.connect(key.host)?;
            Connection::accept(key, token, request, socket, registry).ok()
        });
        match token {
            Some(token) => self.settle(token),
            None => self.refuse(key, request.op),
        }
    }

    /// After anything happened to a connection: ends it if it is over, else gives it a turn if it has something to
    /// send.
    fn settle(&mut self, token: u32) {
        let Some(connection) = self.connections.get(token) else {
            return;
        };
        let key = connection.key();
        if connection.orphan {
            if !connection.undelivered() {
                self.remove(token);
            }
        } else if connection.finished() {
            self.remove(token);
            self.resets.push_back(key);
        } else if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.turns.push_back(token);
        }
    }

    /// Tells the guest that there is no such connection (any more).
    fn refuse(&mut self, key: Key, operation: u16) {
        if let Some(token) = self.connections.find(key) {
            self.detach(token);
        }
        if operation != op::RST {
            self.resets.push_back(key);
        }
    }

    /// The guest has no part in the connection any more: what it sent is still delivered.
    fn detach(&mut self, token: u32) {
        let Some(connection) = self.connections.get(token) else {
            return;
        };
        let key = connection.key();
        connection.orphan = true;
        connection.flush();
        if !connection.undelivered() {
            self.remove(token);
            return;
        }
        connection.queued = false;
        self.turns.retain(|turn| *turn != token);
        self.connections.forget(key);
    }

    fn remove(&mut self, token: u32) {
        if let Some(connection) = self.connections.remove(token)
            && connection.queued
        {
            self.turns.retain(|turn| *turn != token);
        }
    }

    /// Sends packets to the guest; says whether there are more and room for them.
    fn send_to_guest(&mut self) -> Result<Progress, QueueError> {
        let Some(mut queue) = self.queues[RX].take() else {
            return Ok(Progress::Idle);
        };
        let result = self.send_with(&mut queue);
        self.queues[RX] = Some(queue);
        result
    }

    fn send_with(&mut self, queue: &mut Virtqueue) -> Result<Progress, QueueError> {
        let mut chain = std::mem::take(&mut self.chain);
        let mut used = 0;
        let result = loop {
            if self.resets.is_empty() && self.turns.is_empty() {
                break Ok(Progress::Idle);
            }
            if used >= BUDGET {
                break Ok(Progress::More);
            }
            match queue.pop(&mut chain) {
                Err(error) => break Err(error),
                Ok(false) => match queue.enable_kicks() {
                    Ok(true) => continue,
                    Ok(false) => break Ok(Progress::Idle),
                    Err(error) => break Err(error),
                },
                Ok(true) => {}
            }
            match self.put_packet(queue, &chain) {
                Ok(Some(len)) => {
                    used += 1;
                    if let Err(error) = queue.push(chain.head, len) {
                        break Err(error);
                    }
                }
                Ok(None) => queue.undo_pop(),
                Err(error) => break Err(error),
            }
        };
        self.chain = chain;
        if used > 0 {
            queue.notify()?;
        }
        result
    }

    /// Writes the packet whose turn it is into `chain`; `None` if it turned out that there is none.
    fn put_packet(&mut self, queue: &Virtqueue, chain: &Chain) -> Result<Option<u32>, QueueError> {
        let unusable = |why| QueueError::Buffer {
            head: chain.head,
            why,
        };
        if !chain.readable.is_empty() {
            return Err(unusable("a buffer to receive into is not writable"));
        }
        if total(&chain.writable) <= HEADER_LEN {
            return Err(unusable("no room for a packet with data"));
        }
        let written = if let Some(key) = self.resets.pop_front() {
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.cid,
                src_port: key.host,
                dst_port: key.guest,
                kind: TYPE_STREAM,
                op: op::RST,
                buf_alloc: BUF_ALLOC,
                ..Header::default()
            };
            guest_io::copy_to(queue.memory(), &chain.writable, &header.to_bytes())
                .then_some(u32::try_from(HEADER_LEN).ok())
        } else {
            let Some(token) = self.turns.front().copied() else {
                return Ok(None);
            };
            let Some(connection) = self.connections.get(token) else {
                self.turns.pop_front();
                return Ok(None);
            };
            let written = connection
                .fill(self.cid, queue.memory(), chain)
                .map_err(|_| unusable("outside of guest memory"))?;
            self.turn += 1;
            if !connection.has_packet() {
                connection.queued = false;
                self.turns.pop_front();
                self.turn = 0;
            } else if self.turn >= TURN {
                self.turns.rotate_left(1);
                self.turn = 0;
            }
            Some(written)
        };
        written.ok_or_else(|| unusable("outside of guest memory"))
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.cid.to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn attach(&mut self, registry: Registry) -> io::Result<()> {
        self.registry = Some(registry);
        Ok(())
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        if let Some(slot) = self.queues.get_mut(index) {
            *slot = Some(queue);
        }
    }

    fn stop_queue(&mut self, index: usize) -> Option<Virtqueue> {
        if index != EVENT {
            for token in self.connections.tokens() {
                self.detach(token);
            }
            self.resets.clear();
            self.tx_pending = false;
        }
        self.queues.get_mut(index)?.take()
    }

    fn queue(&mut self, index: usize) -> Option<&mut Virtqueue> {
        self.queues.get_mut(index)?.as_mut()
    }

    fn kick(&mut self, index: usize) {
        // Room in RX is looked for at every run, and the event queue only holds buffers that are never needed:
        // the guest's identifier does not change while it runs.
        if index == TX {
            self.tx_pending = true;
        }
    }

    fn ready(&mut self, token: u32, readiness: Readiness) {
        let Some(connection) = self.connections.get(token) else {
            return;
        };
        if readiness.hung_up {
            connection.set_hung_up();
        }
        if readiness.readable {
            connection.set_readable();
        }
        if readiness.writable {
            connection.flush();
        }
        self.settle(token);
    }

    fn run(&mut self) -> Result<Progress, DeviceError> {
        // Refusals that wait for room hold up what the guest sends: they go first.
        if self.resets.len() >= MAX_RESETS {
            self.send_to_guest()?;
        }
        let received = self.receive_from_guest()?;
        let sent = self.send_to_guest()?;
        let held_up = self.tx_pending && self.resets.len() < MAX_RESETS;
        if received == Progress::More || sent == Progress::More || held_up {
            Ok(Progress::More)
        } else {
            Ok(Progress::Idle)
        }
    }

    fn drained(&self) -> bool {
        !self.connections.iter().any(Connection::undelivered)
    }
}
