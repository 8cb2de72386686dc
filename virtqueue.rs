//! A split virtqueue (virtio 1.2 §2.7) as a device model uses it.

use std::{io, os::fd::OwnedFd, sync::Arc};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

use crate::vm::memory::GuestMemory;

/// A running queue: the rings, the memory they lie in, and the way to interrupt the driver.
pub struct Virtqueue {
    ring: Queue,
    memory: Arc<GuestMemory>,
    interrupt: Box<dyn Interrupt>,
}

/// Tells the driver that buffers were used.
pub trait Interrupt: Send {
    /// Raises the interrupt. It must not block; a driver that cannot be told is gone.
    fn raise(&self);
}

/// An interrupt that is an event descriptor, as KVM and vhost-user use.
#[derive(Debug)]
pub struct EventInterrupt(pub OwnedFd);

/// Buffers that the driver made available, as addresses checked against guest memory.
///
/// Reused from chain to chain, so that nothing is allocated for a packet.
#[derive(Debug, Default)]
pub struct Chain {
    /// Head descriptor: what is given back.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: Vec<Range>,
    /// What the device may write, in order.
    pub writable: Vec<Range>,
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// How a driver broke the rules of its queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Rings that are not in guest memory, or indices that make no sense.
    #[error("Virtqueue cannot be used: {0}")]
    Ring(virtio_queue::Error),
    /// A chain that is empty, too long, a loop, or outside of guest memory.
    #[error("Virtqueue has a malformed descriptor chain at {head}")]
    Chain {
        /// Head descriptor.
        head: u16,
    },
    /// A chain that does not fit the device's purpose.
    #[error("Virtqueue has an unusable buffer at {head}: {why}")]
    Buffer {
        /// Head descriptor.
        head: u16,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl From<virtio_queue::Error> for QueueError {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Ring(error)
    }
}

impl Virtqueue {
    /// Joins rings that are set up, `memory` in which they lie, and an interrupt.
    ///
    /// # Errors
    /// The rings do not lie in `memory`.
    pub fn new(
        mut ring: Queue,
        memory: Arc<GuestMemory>,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Self, QueueError> {
        ring.set_ready(true);
        if !ring.is_valid(&*memory) {
            return Err(virtio_queue::Error::QueueNotReady.into());
        }
        Ok(Self {
            ring,
            memory,
            interrupt,
        })
    }

    /// The memory in which buffers lie.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The rings, for a transport that stops the queue.
    #[must_use]
    pub fn ring(&self) -> &Queue {
        &self.ring
    }

    /// Replaces the interrupt, as vhost-user's front end may.
    pub fn set_interrupt(&mut self, interrupt: Box<dyn Interrupt>) {
        self.interrupt = interrupt;
    }

    /// Takes the next available chain into `chain`; `false` if there is none.
    ///
    /// # Errors
    /// Rings or chain are malformed.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let Some(descriptors) = self.ring.iter(&*self.memory)?.next() else {
            return Ok(false);
        };
        let head = descriptors.head_index();
        let malformed = || QueueError::Chain { head };
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        let limit = usize::from(self.ring.size());
        // The iterator ends silently at anything it cannot follow; then the last descriptor it gave still
        // promises a next one.
        let mut more = true;
        for (count, descriptor) in descriptors.enumerate() {
            let range = Range {
                address: descriptor.addr(),
                len: descriptor.len(),
            };
            let (list, access) = if descriptor.is_write_only() {
                (&mut chain.writable, Permissions::Write)
            } else if chain.writable.is_empty() {
                (&mut chain.readable, Permissions::Read)
            } else {
                // What the device reads comes before what it writes (§2.7.4.2).
                return Err(malformed());
            };
            let len = usize::try_from(range.len).map_err(|_| malformed())?;
            if !self.memory.check_range(range.address, len, access) {
                return Err(malformed());
            }
            // An indirect table may be longer than the ring; a chain may not (§2.7.5.3.1).
            if count >= limit {
                return Err(malformed());
            }
            if len > 0 {
                list.push(range);
            }
            more = descriptor.has_next();
        }
        if more {
            return Err(malformed());
        }
        Ok(true)
    }

    /// Puts back the chain that was taken last: the next [`Virtqueue::pop`] gives it again.
    pub fn undo_pop(&mut self) {
        self.ring
            .set_next_avail(self.ring.next_avail().wrapping_sub(1));
    }

    /// Gives the chain at `head` back to the driver with `written` bytes in it.
    ///
    /// # Errors
    /// There is no such descriptor.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        Ok(self.ring.add_used(&*self.memory, head, written)?)
    }

    /// Asks the driver to kick at the next buffer. `true` if there is one already.
    ///
    /// # Errors
    /// The rings cannot be reached.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        Ok(self.ring.enable_notification(&*self.memory)?)
    }

    /// Tells the driver that kicks are not needed for now.
    ///
    /// # Errors
    /// The rings cannot be reached.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        Ok(self.ring.disable_notification(&*self.memory)?)
    }

    /// Interrupts the driver if it wants to know about what was given back since the last call.
    ///
    /// # Errors
    /// The rings cannot be reached.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        if self.ring.needs_notification(&*self.memory)? {
            self.interrupt.raise();
        }
        Ok(())
    }
}

impl std::fmt::Debug for Virtqueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Virtqueue")
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl Interrupt for EventInterrupt {
    fn raise(&self) {
        // A full counter means that the driver has not looked yet: it will. Anything else means that it is
        // gone, which the transport learns by itself.
        let _: Result<usize, io::Error> =
            rustix::io::write(&self.0, &1_u64.to_ne_bytes()).map_err(io::Error::from);
    }
}

/// Sum of the lengths of `ranges` in bytes. The rings forbid more than 4 GiB.
#[must_use]
pub fn total(ranges: &[Range]) -> usize {
    ranges
        .iter()
        .fold(0_usize, |sum, range| sum.saturating_add(range.len as usize))
}
