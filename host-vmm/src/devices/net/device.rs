//! The device: two queues, and the link.

use std::io;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::QueueT;

use super::{
    header::{self, HEADER_LEN, NUM_BUFFERS},
    link::{Link, MAX_PACKET, MIN_FRAME},
};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{Interest, Readiness, Registry},
        guest_io,
        virtqueue::{Chain, QueueError, Virtqueue, total},
    },
    vm::memory::GuestMemory,
};

/// Device ID (virtio 1.2 §5.1.1).
const DEVICE_TYPE: u32 = 1;

/// Queues (§5.1.2).
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256; 2];

/// Packets handled in each direction before other events are looked at again.
const BUDGET: usize = 64;

/// Bytes of the configuration space (§5.1.4) up to and with the MTU.
const CONFIG_LEN: usize = 12;

/// The network device.
pub struct Net {
    mac: [u8; 6],
    mtu: Option<u16>,
    registry: Option<Registry>,
    /// `None` if it is down, which it stays.
    link: Option<Box<dyn Link>>,
    /// It has gone down, and the driver was not told yet.
    changed: bool,
    /// What the driver may accept, and what it accepted.
    offered: u64,
    accepted: u64,
    queues: [Option<Virtqueue>; 2],
    /// The link may have packets.
    readable: bool,
    /// The driver may have made buffers available for them.
    has_buffers: bool,
    /// The driver may have something to send.
    tx_pending: bool,
    /// A packet of the link's, `held` bytes of it, that the guest has no buffers for yet.
    incoming: Box<[u8]>,
    held: usize,
    /// Room for a packet of the guest's.
    outgoing: Box<[u8]>,
    chain: Chain,
    /// The first of the chains that make up a packet, and all of them with what is in each.
    first: Chain,
    taken: Vec<(u16, u32)>,
}

impl Net {
    /// A device with this address and this link. With an `mtu` (68 or more) the guest sends no longer packets than that
    /// behind the Ethernet header, and may send as long ones; without, 1500.
    #[must_use]
    pub fn new(mac: [u8; 6], mtu: Option<u16>, link: Box<dyn Link>) -> Self {
        let of_mtu = mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU);
        let always = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_STATUS;
        Self {
            mac,
            mtu,
            offered: always | of_mtu | link.features(),
            registry: None,
            link: Some(link),
            changed: false,
            accepted: 0,
            queues: [None, None],
            readable: true,
            has_buffers: false,
            tx_pending: false,
            incoming: vec![0; MAX_PACKET].into(),
            held: 0,
            outgoing: vec![0; MAX_PACKET].into(),
            chain: Chain::default(),
            first: Chain::default(),
            taken: Vec::new(),
        }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&self.mac);
        if self.link.is_some() {
            // 1, of 16 bits.
            config[6] = VIRTIO_NET_S_LINK_UP.to_le_bytes()[0];
        }
        config[8] = 1;
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    /// The peer is gone. What the guest sends from now on is lost, as with a cable that was pulled.
    fn down(&mut self, error: &io::Error) {
        if let Some(link) = self.link.take() {
            tracing::warn!("A guest's network link is down: {error}");
            if let Some(registry) = &self.registry {
                registry.remove(link.fd());
            }
            self.changed = true;
            self.held = 0;
        }
    }

    /// Takes packets from the guest.
    fn transmit(&mut self) -> Result<Progress, DeviceError> {
        // The end of the last may wait for room yet, be there more or not.
        if let Some(Err(error)) = self.link.as_mut().map(|link| link.has_room()) {
            self.down(&error);
        }
        let Some(mut queue) = self.queues[TX].take_if(|_| self.tx_pending) else {
            return Ok(Progress::Idle);
        };
        let mut chain = std::mem::take(&mut self.chain);
        let (mut failed, mut full) = (None, false);
        let result = queue.serve(&mut chain, BUDGET, |memory, chain| {
            let link = self.link.as_mut().filter(|_| failed.is_none());
            let has_room = link.map_or(Ok(true), |link| link.has_room());
            match has_room {
                Ok(true) => {}
                Ok(false) => {
                    full = true;
                    return Ok(None);
                }
                Err(error) => failed = Some(error),
            }
            let packet = take(memory, chain, &mut self.outgoing, self.accepted)?;
            if let (Some(packet), Some(link), None) = (packet, &mut self.link, &failed) {
                failed = link.send(packet).err();
            }
            Ok(Some(0))
        });
        self.chain = chain;
        self.queues[TX] = Some(queue);
        if let Some(error) = failed {
            self.down(&error);
        }
        let progress = result.map_err(DeviceError::Queue)?;
        self.tx_pending = full || progress == Progress::More;
        Ok(progress)
    }

    /// Gives packets to the guest.
    fn receive(&mut self) -> Result<Progress, DeviceError> {
        let Some(mut queue) = self.queues[RX].take() else {
            return Ok(Progress::Idle);
        };
        let mut delivered = false;
        let result = self.receive_with(&mut queue, &mut delivered);
        let told = match delivered {
            true => queue.notify(),
            false => Ok(()),
        };
        self.queues[RX] = Some(queue);
        let progress = result?;
        told?;
        Ok(progress)
    }

    fn receive_with(
        &mut self,
        queue: &mut Virtqueue,
        delivered: &mut bool,
    ) -> Result<Progress, DeviceError> {
        for _ in 0..BUDGET {
            if self.held == 0 {
                let Some(link) = self.link.as_mut().filter(|_| self.readable) else {
                    return Ok(Progress::Idle);
                };
                match link.receive(&mut self.incoming) {
                    // What is no frame is lost.
                    Ok(Some(len)) if len < HEADER_LEN + MIN_FRAME => continue,
                    Ok(Some(len)) => self.held = len,
                    Ok(None) => self.readable = false,
                    Err(error) => self.down(&error),
                }
                if self.held == 0 {
                    return Ok(Progress::Idle);
                }
            }
            if !self.has_buffers {
                return Ok(Progress::Idle);
            }
            match self.deliver(queue)? {
                true => (self.held, *delivered) = (0, true),
                false => self.has_buffers = false,
            }
        }
        Ok(Progress::More)
    }

    /// Writes the packet that is held into the guest's buffers; `false` if there are not enough, and the driver kicks when
    /// there are more. A packet for which there can never be enough is lost.
    fn deliver(&mut self, queue: &mut Virtqueue) -> Result<bool, QueueError> {
        let mergeable = self.accepted & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let most = if mergeable { queue.ring().size() } else { 1 };
        self.taken.clear();
        let mut done = 0;
        while done < self.held {
            let is_lost = self.taken.len() == usize::from(most);
            if is_lost || !next_chain(queue, &mut self.chain)? {
                for _ in 0..self.taken.len() {
                    queue.undo_pop();
                }
                return Ok(is_lost);
            }
            let unusable = |why| QueueError::Buffer {
                head: self.chain.head,
                why,
            };
            let room = total(&self.chain.writable);
            if !self.chain.readable.is_empty() {
                return Err(unusable("a buffer to receive into is not writable"));
            }
            if room < if done == 0 { HEADER_LEN } else { 1 } {
                return Err(unusable("no room for a packet"));
            }
            let part = &self.incoming[done..self.held];
            let part = &part[..room.min(part.len())];
            if !guest_io::copy_to(queue.memory(), &self.chain.writable, part) {
                return Err(unusable("outside of guest memory"));
            }
            let written = u32::try_from(part.len()).map_err(|_| unusable("too long"))?;
            self.taken.push((self.chain.head, written));
            if done == 0 {
                std::mem::swap(&mut self.first, &mut self.chain);
            }
            done += part.len();
        }
        // No more than a ring has.
        let count = u16::try_from(self.taken.len()).unwrap_or(u16::MAX);
        let at = (NUM_BUFFERS, &count.to_le_bytes());
        if !guest_io::copy_to_at(queue.memory(), &self.first.writable, at.0, at.1) {
            return Err(QueueError::Buffer {
                head: self.first.head,
                why: "outside of guest memory",
            });
        }
        queue.push_together(&self.taken)?;
        Ok(true)
    }
}

/// Takes the next chain; `false` if there is none, and the driver kicks when there is.
fn next_chain(queue: &mut Virtqueue, chain: &mut Chain) -> Result<bool, QueueError> {
    while !queue.pop(chain)? {
        if !queue.enable_kicks()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies a packet of the guest's into `buffer` and checks its header; `None` for what is no frame, and lost.
fn take<'a>(
    memory: &GuestMemory,
    chain: &Chain,
    buffer: &'a mut [u8],
    accepted: u64,
) -> Result<Option<&'a [u8]>, QueueError> {
    let unusable = |why| QueueError::Buffer {
        head: chain.head,
        why,
    };
    if !chain.writable.is_empty() {
        return Err(unusable("a packet to send is writable"));
    }
    let len = total(&chain.readable);
    let buffer = buffer
        .get_mut(..len)
        .ok_or_else(|| unusable("longer than any packet"))?;
    if !guest_io::copy_from(memory, &chain.readable, 0, buffer) {
        return Err(unusable("outside of guest memory"));
    }
    let (header, frame) = buffer
        .split_first_chunk_mut::<HEADER_LEN>()
        .ok_or_else(|| unusable("shorter than a packet's header"))?;
    header::check(header, frame.len(), accepted).map_err(unusable)?;
    Ok((frame.len() >= MIN_FRAME).then_some(buffer))
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.config();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn attach(&mut self, registry: Registry) -> io::Result<()> {
        if let Some(link) = &self.link {
            registry.add(link.fd(), 0, Interest::ReadWrite)?;
        }
        self.registry = Some(registry);
        Ok(())
    }

    fn set_features(&mut self, accepted: u64) {
        self.accepted = accepted;
        if let Some(link) = &mut self.link {
            link.accept(accepted);
        }
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        if let Some(slot) = self.queues.get_mut(index) {
            *slot = Some(queue);
        }
    }

    fn stop_queue(&mut self, index: usize) -> Option<Virtqueue> {
        match index {
            // It was made for what this driver had accepted.
            RX => (self.held, self.has_buffers) = (0, false),
            _ => self.tx_pending = false,
        }
        self.queues.get_mut(index)?.take()
    }

    fn queue(&mut self, index: usize) -> Option<&mut Virtqueue> {
        self.queues.get_mut(index)?.as_mut()
    }

    fn kick(&mut self, index: usize) {
        match index {
            RX => self.has_buffers = true,
            _ => self.tx_pending = true,
        }
    }

    fn ready(&mut self, _token: u32, readiness: Readiness) {
        // Room to send is looked for at every run.
        self.readable |= readiness.readable || readiness.hung_up;
    }

    fn run(&mut self) -> Result<Progress, DeviceError> {
        let sent = self.transmit()?;
        let received = self.receive()?;
        match sent == Progress::More || received == Progress::More {
            true => Ok(Progress::More),
            false => Ok(Progress::Idle),
        }
    }

    fn config_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}
