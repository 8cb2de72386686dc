//! The state that requests change: memory, rings, and which of them run.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::net::{SendFlags, send};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::message::{
    CONFIG_CHANGED, MAX_CONFIG, MessageError, Region, Request, RingAddresses, RingFd,
};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{Interest, Registry},
        transport::{EVENT_IDX, RING_FEATURES},
        virtqueue::{EventInterrupt, Interrupt, QueueError, Virtqueue},
    },
    vm::memory::{GuestMemory, MemoryError, Placement, SharedMemory},
};

/// The protocol's own bit among a device's features.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Parts of the protocol that we speak: several queues, acknowledgements, a socket for our requests, the
/// configuration space.
const PROTOCOL_FEATURES: u64 = P_MQ | P_REPLY_ACK | P_BACKEND_REQ | P_CONFIG;
const P_MQ: u64 = 1 << 0;
const P_REPLY_ACK: u64 = 1 << 3;
const P_BACKEND_REQ: u64 = 1 << 5;
const P_CONFIG: u64 = 1 << 9;

/// Largest ring that we accept, in descriptors. The protocol has no way to say what a device would like: QEMU's
/// virtio-mmio offers the driver this much whatever the device is.
const MAX_RING: u16 = 1024;

/// A device and what its front end has set up so far.
pub struct Backend {
    device: Box<dyn VirtioDevice>,
    shared: SharedMemory,
    kicks: Registry,
    offered: u64,
    features: u64,
    protocol: u64,
    memory: Option<Mapped>,
    rings: Vec<Ring>,
    /// Kept open: its hang-up reads as a dead device.
    backend_fd: Option<OwnedFd>,
}

/// Guest memory and the front end's names for its parts.
struct Mapped {
    regions: Vec<Region>,
    memory: Arc<GuestMemory>,
}

/// One ring.
#[derive(Default)]
struct Ring {
    size: Option<u16>,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    enabled: bool,
    running: bool,
}

/// Why the front end's request ends the device.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The message is malformed.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// More or fewer descriptors than the request has.
    #[error("vhost-user request carries {found} descriptors")]
    Descriptors {
        /// How many came.
        found: usize,
    },
    /// Features that were not offered.
    #[error("vhost-user front end accepts features {0:#x} that were not offered")]
    Features(u64),
    /// A ring that the device does not have.
    #[error("vhost-user front end names ring {0}, which does not exist")]
    NoRing(usize),
    /// Something that must not change while a ring runs.
    #[error("vhost-user front end changes {0} while a ring runs")]
    Running(&'static str),
    /// A ring lacks something when it is started.
    #[error("vhost-user front end starts ring {index} without {missing}")]
    Incomplete {
        /// Ring.
        index: usize,
        /// What it lacks.
        missing: &'static str,
    },
    /// A size, base or address that cannot be.
    #[error("vhost-user front end sets an impossible {what} for ring {index}")]
    RingValue {
        /// Ring.
        index: usize,
        /// What.
        what: &'static str,
    },
    /// Announced memory is not the guest's.
    #[error("vhost-user front end announces unusable memory")]
    Memory(#[source] MemoryError),
    /// Rings that are not in guest memory.
    #[error("vhost-user front end sets up an unusable ring")]
    Queue(#[source] QueueError),
    /// The kick descriptor cannot be waited for.
    #[error("Cannot watch the kick descriptor of a vhost-user ring")]
    Kick(#[source] io::Error),
}

impl Backend {
    /// A device that no driver has touched. Its kicks are reported through `kicks` with the ring as token.
    pub fn new(device: Box<dyn VirtioDevice>, shared: SharedMemory, kicks: Registry) -> Self {
        let rings = device.queue_sizes().iter().map(|_| Ring::default());
        Self {
            offered: device.features() | RING_FEATURES | F_PROTOCOL_FEATURES,
            rings: rings.collect(),
            device,
            shared,
            kicks,
            features: 0,
            protocol: 0,
            memory: None,
            backend_fd: None,
        }
    }

    /// The device.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    /// The driver kicked ring `index`.
    pub fn kick(&mut self, index: usize) {
        if self.rings.get(index).is_some_and(|ring| ring.running) {
            self.device.kick(index);
        }
    }

    /// Has the device look at every ring that runs.
    pub fn kick_all(&mut self) {
        for index in 0..self.rings.len() {
            self.kick(index);
        }
    }

    /// Lets the device work. A driver that breaks the rules of a queue stops them all, until the front end sets
    /// them up again.
    pub fn run(&mut self) -> (Progress, Option<DeviceError>) {
        let result = self.device.run();
        if self.device.config_changed() {
            self.tell_of_config();
        }
        match result {
            Ok(progress) => (progress, None),
            Err(error) => {
                for ring in &self.rings {
                    if let Some(err) = &ring.err {
                        EventInterruptRef(err).raise();
                    }
                }
                self.stop_all();
                (Progress::Idle, Some(error))
            }
        }
    }

    /// Tells the front end to look at the configuration space again, if it wants to be told such things.
    fn tell_of_config(&self) {
        const BOTH: u64 = P_BACKEND_REQ | P_CONFIG;
        if let Some(socket) = self
            .backend_fd
            .as_ref()
            .filter(|_| self.protocol & BOTH == BOTH)
        {
            // A front end that does not read what it asked for does without.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = send(socket, &CONFIG_CHANGED, flags);
        }
    }

    /// Stops every ring.
    pub fn stop_all(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
        }
    }

    /// Does what `request` asks; returns the body of the reply if there is one.
    ///
    /// # Errors
    /// [`BackendError`]; the conversation is over then.
    pub fn handle(
        &mut self,
        request: Request,
        need_reply: bool,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Vec<u8>>, BackendError> {
        let (least, most) = request.descriptors();
        if !(least..=most).contains(&descriptors.len()) {
            return Err(BackendError::Descriptors {
                found: descriptors.len(),
            });
        }
        let descriptor = descriptors.pop();
        match request {
            Request::GetFeatures => return Ok(Some(self.offered.to_le_bytes().to_vec())),
            Request::GetProtocolFeatures => {
                return Ok(Some(PROTOCOL_FEATURES.to_le_bytes().to_vec()));
            }
            Request::GetQueueNum => {
                return Ok(Some((self.rings.len() as u64).to_le_bytes().to_vec()));
            }
            Request::GetRingBase { index } => return self.ring_base(index).map(Some),
            Request::GetConfig { offset, size } => return Ok(Some(self.config(offset, size))),
            Request::SetOwner => {}
            Request::ResetOwner => self.stop_all(),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::SetProtocolFeatures(features) => {
                if features & !PROTOCOL_FEATURES != 0 {
                    return Err(BackendError::Features(features));
                }
                self.protocol = features;
            }
            // The peer's descriptors are closed: we map our own.
            Request::SetMemTable(regions) => self.set_memory(regions)?,
            Request::SetRingSize { index, size } => self.set_size(index, size)?,
            Request::SetRingAddresses { index, addresses } => {
                self.stopped(index, "the ring's address")?.addresses = Some(addresses);
            }
            Request::SetRingBase { index, base } => {
                let base = u16::try_from(base).map_err(|_| BackendError::RingValue {
                    index,
                    what: "base",
                })?;
                self.stopped(index, "the ring's base")?.base = base;
            }
            Request::SetRingKick(ring) => self.set_kick(ring, descriptor)?,
            Request::SetRingCall(ring) => self.set_call(ring, descriptor)?,
            Request::SetRingErr(ring) => self.ring(ring.index)?.err = nonblocking(descriptor),
            Request::SetRingEnable { index, enable } => {
                self.ring(index)?.enabled = enable;
                if enable {
                    self.start_if_ready(index)?;
                } else {
                    self.stop(index);
                }
            }
            Request::SetBackendFd => self.backend_fd = descriptor,
            Request::SetConfig { offset, data } => self.device.write_config(offset, &data),
        }
        let acknowledge = need_reply && self.protocol & P_REPLY_ACK != 0;
        Ok(acknowledge.then(|| 0_u64.to_le_bytes().to_vec()))
    }

    fn ring(&mut self, index: usize) -> Result<&mut Ring, BackendError> {
        self.rings.get_mut(index).ok_or(BackendError::NoRing(index))
    }

    /// Ring `index`, which must not run.
    fn stopped(&mut self, index: usize, what: &'static str) -> Result<&mut Ring, BackendError> {
        let ring = self.ring(index)?;
        if ring.running {
            return Err(BackendError::Running(what));
        }
        Ok(ring)
    }

    fn set_features(&mut self, features: u64) -> Result<(), BackendError> {
        if features & !self.offered != 0 {
            return Err(BackendError::Features(features));
        }
        // Sent again with the same value while rings run, when logging would be switched.
        if features != self.features && self.rings.iter().any(|ring| ring.running) {
            return Err(BackendError::Running("its features"));
        }
        self.features = features;
        self.device.set_features(features & !F_PROTOCOL_FEATURES);
        Ok(())
    }

    fn set_memory(&mut self, regions: Vec<Region>) -> Result<(), BackendError> {
        if self.rings.iter().any(|ring| ring.running) {
            return Err(BackendError::Running("guest memory"));
        }
        let placements: Vec<Placement> = regions
            .iter()
            .map(|region| Placement {
                guest: region.guest,
                offset: region.offset,
                len: region.size,
            })
            .collect();
        let memory = self.shared.map(&placements).map_err(BackendError::Memory)?;
        self.memory = Some(Mapped {
            regions,
            memory: Arc::new(memory),
        });
        Ok(())
    }

    fn set_size(&mut self, index: usize, size: u32) -> Result<(), BackendError> {
        let ring = self.stopped(index, "the ring's size")?;
        ring.size = Some(
            u16::try_from(size)
                .ok()
                .filter(|size| size.is_power_of_two() && *size <= MAX_RING)
                .ok_or(BackendError::RingValue {
                    index,
                    what: "size",
                })?,
        );
        Ok(())
    }

    fn set_kick(&mut self, ring: RingFd, kick: Option<OwnedFd>) -> Result<(), BackendError> {
        let index = ring.index;
        let Some(kick) = kick else {
            // A ring without a kick descriptor would have to be polled.
            return Err(BackendError::Incomplete {
                index,
                missing: "a kick descriptor",
            });
        };
        self.stopped(index, "the ring's kick descriptor")?.kick = Some(kick);
        self.start_if_ready(index)
    }

    fn set_call(&mut self, ring: RingFd, call: Option<OwnedFd>) -> Result<(), BackendError> {
        let call = nonblocking(call);
        let index = ring.index;
        let ring = self.ring(index)?;
        if ring.running {
            // What was raised on the old descriptor may have been lost with it: raise once on the new one.
            let interrupt = interrupt(call.as_ref());
            interrupt.raise();
            if let Some(queue) = self.device.queue(index) {
                queue.set_interrupt(interrupt);
            }
        }
        self.ring(index)?.call = call;
        Ok(())
    }

    fn start_if_ready(&mut self, index: usize) -> Result<(), BackendError> {
        let with_protocol = self.features & F_PROTOCOL_FEATURES != 0;
        let event_idx = self.features & EVENT_IDX != 0;
        let ring = self
            .rings
            .get_mut(index)
            .ok_or(BackendError::NoRing(index))?;
        // Rings are enabled one by one only where the protocol's extensions were accepted.
        if ring.running || (with_protocol && !ring.enabled) {
            return Ok(());
        }
        let Some(kick) = &ring.kick else {
            return Ok(());
        };
        let missing = |missing| BackendError::Incomplete { index, missing };
        let addresses = ring.addresses.ok_or_else(|| missing("addresses"))?;
        let size = ring.size.ok_or_else(|| missing("a size"))?;
        let mapped = self.memory.as_ref().ok_or_else(|| missing("memory"))?;
        let address = |user| {
            mapped.translate(user).ok_or(BackendError::RingValue {
                index,
                what: "address",
            })
        };
        let queue_error = |error: virtio_queue::Error| BackendError::Queue(error.into());
        let mut queue = Queue::new(MAX_RING).map_err(queue_error)?;
        queue.try_set_size(size).map_err(queue_error)?;
        queue
            .try_set_desc_table_address(address(addresses.descriptors)?)
            .map_err(queue_error)?;
        queue
            .try_set_avail_ring_address(address(addresses.available)?)
            .map_err(queue_error)?;
        queue
            .try_set_used_ring_address(address(addresses.used)?)
            .map_err(queue_error)?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(ring.base);
        // Every buffer that was taken before the ring last stopped was given back then.
        queue.set_next_used(ring.base);
        let queue = Virtqueue::new(
            queue,
            Arc::clone(&mapped.memory),
            interrupt(ring.call.as_ref()),
        )
        .map_err(BackendError::Queue)?;
        let token = u32::try_from(index).map_err(|_| BackendError::NoRing(index))?;
        self.kicks
            .add(kick, token, Interest::Read)
            .map_err(BackendError::Kick)?;
        ring.running = true;
        self.device.start_queue(index, queue);
        // A kick from before may have gone unseen.
        self.device.kick(index);
        Ok(())
    }

    fn stop(&mut self, index: usize) {
        let Some(ring) = self.rings.get_mut(index).filter(|ring| ring.running) else {
            return;
        };
        ring.running = false;
        if let Some(kick) = &ring.kick {
            self.kicks.remove(kick);
        }
        if let Some(queue) = self.device.stop_queue(index) {
            ring.base = queue.ring().next_avail();
        }
    }

    /// Stops the ring and forgets its descriptors; the reply says where to go on.
    fn ring_base(&mut self, index: usize) -> Result<Vec<u8>, BackendError> {
        self.ring(index)?;
        self.stop(index);
        let ring = self.ring(index)?;
        ring.kick = None;
        ring.call = None;
        let number = u32::try_from(index).map_err(|_| BackendError::NoRing(index))?;
        let mut reply = number.to_le_bytes().to_vec();
        reply.extend_from_slice(&u32::from(ring.base).to_le_bytes());
        Ok(reply)
    }

    fn config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut reply = Vec::with_capacity(12 + MAX_CONFIG as usize);
        for word in [offset, size, 0] {
            reply.extend_from_slice(&word.to_le_bytes());
        }
        let mut data = vec![0; size as usize];
        self.device.read_config(offset, &mut data);
        reply.extend_from_slice(&data);
        reply
    }
}

impl Mapped {
    /// The guest's address of what the front end calls `user`.
    fn translate(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user
                .checked_sub(region.user)
                .filter(|offset| *offset < region.size)?;
            region.guest.checked_add(offset).map(GuestAddress)
        })
    }
}

/// An interrupt through `call`; without one the driver polls.
fn interrupt(call: Option<&OwnedFd>) -> Box<dyn Interrupt> {
    match call.and_then(|call| call.try_clone().ok()) {
        Some(call) => Box::new(EventInterrupt(call)),
        None => Box::new(Polled),
    }
}

/// The driver looks by itself.
struct Polled;

impl Interrupt for Polled {
    fn raise(&self) {}
}

/// Raises on a borrowed descriptor.
struct EventInterruptRef<'a>(&'a OwnedFd);

impl EventInterruptRef<'_> {
    fn raise(&self) {
        let _ = rustix::io::write(self.0, &1_u64.to_ne_bytes());
    }
}

/// Makes sure that a full descriptor of the peer's cannot block us.
fn nonblocking(descriptor: Option<OwnedFd>) -> Option<OwnedFd> {
    descriptor.inspect(|descriptor| {
        let fd = descriptor.as_fd();
        if let Ok(flags) = rustix::fs::fcntl_getfl(fd) {
            let _ = rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK);
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    /// Every address of two regions, wherever they lie and however they overlap in the front end's numbers, against sums that
    /// cannot overflow. A region whose end in the guest has no address is never mapped.
    #[test]
    fn an_address_is_translated_by_the_first_region_that_has_it() {
        let memory = SharedMemory::create(PAGE).unwrap();
        let whole = Placement {
            guest: 0,
            offset: 0,
            len: PAGE,
        };
        let memory = Arc::new(memory.map(&[whole]).unwrap());
        let places = [0, 1, 2, 3, u64::MAX - 2, u64::MAX - 1, u64::MAX];
        let mut regions = Vec::new();
        for user in places {
            for size in [0, 1, 2, 3, u64::MAX] {
                for guest in [0, 8, u64::MAX - 1]
                    .into_iter()
                    .filter(|guest: &u64| guest.checked_add(size).is_some())
                {
                    regions.push(Region {
                        guest,
                        size,
                        user,
                        offset: 0,
                    });
                }
            }
        }
        for first in &regions {
            for second in &regions {
                let mapped = Mapped {
                    regions: vec![*first, *second],
                    memory: Arc::clone(&memory),
                };
                for address in places {
                    let found = mapped.translate(address).map(|found| u128::from(found.0));
                    let expected = [first, second].into_iter().find(|region| {
                        let start = u128::from(region.user);
                        (start..start + u128::from(region.size)).contains(&u128::from(address))
                    });
                    let expected = expected
                        .map(|region| u128::from(region.guest) + u128::from(address - region.user));
                    assert_eq!(found, expected, "{address:#x} in {first:?} {second:?}");
                }
            }
        }
    }
}
