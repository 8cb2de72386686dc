//! A split virtqueue (virtio 1.2 §2.7) as a device model uses it.

use std::{io, os::fd::OwnedFd, sync::Arc};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::Progress;
use crate::vm::memory::GuestMemory;

/// A running queue: the rings, the memory they lie in, and the way to interrupt the driver.
pub struct Virtqueue {
    ring: Queue,
    memory: Arc<GuestMemory>,
    interrupt: Box<dyn Interrupt>,
    /// Where the used ring was before chains were given back together, since the driver was told the last time.
    together_since: Option<u16>,
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
            together_since: None,
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

    /// Gives chains back, each with the bytes written in it, so that the driver sees all of them or none.
    ///
    /// # Errors
    /// There is no such descriptor, or the rings cannot be reached.
    pub fn push_together(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(last, written), rest)) = chains.split_last() else {
            return Ok(());
        };
        let before = self.ring.next_used();
        let mut at = before;
        for &(head, written) in rest {
            if head >= self.ring.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            self.write_used(at, head, written)?;
            at = at.wrapping_add(1);
        }
        self.ring.set_next_used(at);
        // This makes its index known, and with it all before.
        self.push(last, written)?;
        if !rest.is_empty() {
            self.together_since.get_or_insert(before);
        }
        Ok(())
    }

    /// Writes an element of the used ring (§2.7.8): the head as 32 bits, and the bytes.
    fn write_used(&self, index: u16, head: u16, written: u32) -> Result<(), QueueError> {
        let slot = u64::from(index % self.ring.size());
        let address = self.ring.used_ring().saturating_add(4 + 8 * slot);
        let element = u64::from(written) << 32 | u64::from(head);
        self.memory
            .write_obj(element.to_le(), GuestAddress(address))
            .map_err(|error| virtio_queue::Error::GuestMemory(error).into())
    }

    /// Hands up to `budget` available chains to `answer`, gives each back with the bytes that were written, and tells the
    /// driver at the end. [`Progress::Idle`] says that the driver kicks when there are more, or that `answer` gave `None`,
    /// which leaves the chain for later.
    ///
    /// # Errors
    /// Rings or a chain are malformed, or `answer` says so.
    pub fn serve<E: From<QueueError>>(
        &mut self,
        chain: &mut Chain,
        budget: usize,
        mut answer: impl FnMut(&GuestMemory, &Chain) -> Result<Option<u32>, E>,
    ) -> Result<Progress, E> {
        let mut used = 0;
        let result = loop {
            if used == budget {
                break Ok(Progress::More);
            }
            match self.serve_one(chain, &mut answer) {
                Ok(Some(())) => used += 1,
                Ok(None) => break Ok(Progress::Idle),
                Err(error) => break Err(error),
            }
        };
        if used > 0 {
            self.notify()?;
        }
        result
    }

    /// `None` if there is no chain, and a kick will come with the next; or if this one is left.
    fn serve_one<E: From<QueueError>>(
        &mut self,
        chain: &mut Chain,
        answer: &mut impl FnMut(&GuestMemory, &Chain) -> Result<Option<u32>, E>,
    ) -> Result<Option<()>, E> {
        while !self.pop(chain)? {
            if !self.enable_kicks()? {
                return Ok(None);
            }
        }
        match answer(&self.memory, chain)? {
            Some(written) => self.push(chain.head, written)?,
            None => {
                self.undo_pop();
                return Ok(None);
            }
        }
        Ok(Some(()))
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
        let wanted = self.ring.needs_notification(&*self.memory)?;
        // The ring has counted one of each that were given back together.
        let wanted = match self.together_since.take() {
            Some(since) if !wanted => contains(since, self.ring.next_used(), self.used_event()?),
            _ => wanted,
        };
        if wanted {
            self.interrupt.raise();
        }
        Ok(())
    }

    /// The index in the used ring at which the driver wants to be told (§2.7.7).
    fn used_event(&self) -> Result<u16, QueueError> {
        let after = 4 + 2 * u64::from(self.ring.size());
        let address = self.ring.avail_ring().saturating_add(after);
        let event: u16 = self
            .memory
            .read_obj(GuestAddress(address))
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(event))
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

/// Whether `index` is among those from `start` on and before `end`, of indices that begin again after the last.
fn contains(start: u16, end: u16, index: u16) -> bool {
    index.wrapping_sub(start) < end.wrapping_sub(start)
}

/// Sum of the lengths of `ranges` in bytes. The rings forbid more than 4 GiB.
#[must_use]
pub fn total(ranges: &[Range]) -> usize {
    ranges
        .iter()
        .fold(0_usize, |sum, range| sum.saturating_add(range.len as usize))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::devices::testing::{Descriptor, DriverQueue, INDIRECT, NEXT, WRITE, memory};

    const DATA: u64 = 0x8000;

    /// Every index, from every kind of start, against a walk from one end to the other.
    #[test]
    fn an_index_is_between_two_others_if_one_comes_past_it() {
        for start in [0, 1, 255, 256, 0x7fff, 0x8000, 0xff00, u16::MAX] {
            for count in [0, 1, 2, 255, 256, 0x7fff, 0x8000, 0xfffe, u16::MAX] {
                let mut passed = vec![false; 1 << 16];
                let mut at = start;
                for _ in 0..count {
                    passed[usize::from(at)] = true;
                    at = at.wrapping_add(1);
                }
                for index in 0..=u16::MAX {
                    let is_in = contains(start, at, index);
                    assert_eq!(is_in, passed[usize::from(index)], "{start} {count} {index}");
                }
            }
        }
    }

    /// Chains given back together are all there when the first is, at every place of the rings, and round their end.
    #[test]
    fn chains_that_go_together_come_in_order_and_at_once() {
        for count in 1..=8_u16 {
            let memory = memory(1 << 16);
            let mut driver = DriverQueue::new(0, 8);
            let mut queue = driver.device_side(&memory, true);
            let mut chain = Chain::default();
            for round in 0..40_u32 {
                driver.want_interrupt(&memory);
                let before = driver.interrupted();
                let mut given = Vec::new();
                for index in 0..count {
                    driver.add(&memory, &[(DATA, 64, true)]);
                    assert!(queue.pop(&mut chain).unwrap());
                    given.push((chain.head, round + u32::from(index)));
                }
                assert_eq!(driver.used(&memory), None);
                queue.push_together(&given).unwrap();
                queue.notify().unwrap();
                assert_eq!(driver.interrupted(), before + 1, "{count} {round}");
                for expected in given {
                    assert_eq!(driver.used(&memory), Some(expected));
                }
                assert_eq!(driver.used(&memory), None);
                // Nothing new is nothing to tell.
                queue.notify().unwrap();
                assert_eq!(driver.interrupted(), before + 1);
            }
        }
    }

    #[test]
    fn a_driver_that_waits_for_a_later_chain_is_told_at_that() {
        for wanted in 0..6_u16 {
            let memory = memory(1 << 16);
            let mut driver = DriverQueue::new(0, 8);
            let mut queue = driver.device_side(&memory, true);
            let mut chain = Chain::default();
            driver.want_interrupt_at(&memory, wanted);
            let mut heads = Vec::new();
            for _ in 0..5 {
                driver.add(&memory, &[(DATA, 64, true)]);
                assert!(queue.pop(&mut chain).unwrap());
                heads.push((chain.head, 0));
            }
            // One, three at once, one.
            let mut told = Vec::new();
            for part in [&heads[..1], &heads[1..4], &heads[4..]] {
                queue.push_together(part).unwrap();
                queue.notify().unwrap();
                told.push(driver.interrupted());
            }
            let expected = match wanted {
                0 => [1, 1, 1],
                1..=3 => [0, 1, 1],
                4 => [0, 0, 1],
                _ => [0, 0, 0],
            };
            assert_eq!(told, expected, "{wanted}");
        }
    }

    /// Memory of the guests below, and the indirect table in it.
    const SMALL: u64 = 1 << 16;
    const TABLE: u64 = 0xa000;

    /// Kinds of a descriptor: all flags, and what it leads to and where it lies, as far as that makes a difference in a ring
    /// of two.
    fn kinds() -> Vec<Descriptor> {
        let mut kinds = Vec::new();
        for flags in 0..8 {
            for next in [0, 1, 2] {
                // Data, an edge that is crossed, and nothing at all.
                for (address, len) in [(DATA, 16), (SMALL - 8, 16), (DATA, 0)] {
                    kinds.push(Descriptor {
                        address,
                        len,
                        flags,
                        next,
                    });
                }
            }
        }
        kinds
    }

    /// What a chain is by the specification: what can be read, and what can be written; `None` if it breaks a rule.
    fn walk(
        head: u16,
        ring: &[Descriptor],
        indirect: &[Descriptor],
    ) -> Option<[Vec<(u64, u32)>; 2]> {
        let (mut table, mut at, mut seen) = (ring, head, 0);
        let mut lists = [Vec::new(), Vec::new()];
        loop {
            let found = *table.get(usize::from(at))?;
            if found.flags & INDIRECT != 0 {
                // A table leads to no other. What else is said of it is not looked at, NEXT and WRITE among it.
                if !std::ptr::eq(table, ring) {
                    return None;
                }
                let size = found.len as usize / 16;
                table = match found.address {
                    _ if size == 0 || !found.len.is_multiple_of(16) => return None,
                    TABLE => &indirect[..size],
                    // Zeroes: one empty piece.
                    DATA => &EMPTY,
                    _ => return None,
                };
                at = 0;
                continue;
            }
            seen += 1;
            let writable = found.flags & WRITE != 0;
            let end = found.address.checked_add(u64::from(found.len))?;
            if seen > ring.len() || end > SMALL || (!writable && !lists[1].is_empty()) {
                return None;
            }
            if found.len > 0 {
                lists[usize::from(writable)].push((found.address, found.len));
            }
            if found.flags & NEXT == 0 {
                return Some(lists);
            }
            at = found.next;
        }
    }

    const EMPTY: [Descriptor; 1] = [Descriptor {
        address: 0,
        len: 0,
        flags: 0,
        next: 0,
    }];

    /// Takes a chain from a fresh queue with these descriptors.
    fn popped(
        memory: &Arc<GuestMemory>,
        head: u16,
        ring: &[Descriptor],
        indirect: &[Descriptor],
    ) -> Option<[Vec<(u64, u32)>; 2]> {
        let mut driver = DriverQueue::new(0, 2);
        for (table, descriptors) in [(0, ring), (TABLE, indirect)] {
            for (index, descriptor) in (0..).zip(descriptors) {
                driver.write(memory, table, index, *descriptor);
            }
        }
        driver.offer(memory, head);
        let mut chain = Chain::default();
        let mut queue = driver.device_side(memory, false);
        let found = queue.pop(&mut chain).ok()?;
        assert!(found, "a chain was made available");
        assert_eq!(chain.head, head);
        let plain = |list: &[Range]| {
            let ranges = list.iter();
            ranges.map(|range| (range.address.0, range.len)).collect()
        };
        Some([plain(&chain.readable), plain(&chain.writable)])
    }

    /// Every chain there can be in a ring of two, one of tables left out.
    #[test]
    fn every_chain_of_a_small_ring_is_what_the_specification_says() {
        let memory = memory(SMALL);
        let mut taken = 0;
        for first in kinds() {
            for second in kinds() {
                for head in [0, 1, 2, u16::MAX] {
                    let ring = [first, second];
                    let expected = walk(head, &ring, &[]);
                    let found = popped(&memory, head, &ring, &[]);
                    assert_eq!(found, expected, "{head} {ring:?}");
                    taken += usize::from(found.is_some());
                }
            }
        }
        println!("{taken} chains are some");
        assert!(taken > 1000);
    }

    /// Every table of two that a descriptor leads to, in every way that it can.
    #[test]
    fn every_small_table_is_what_the_specification_says() {
        let memory = memory(SMALL);
        let data = Descriptor {
            address: DATA,
            len: 8,
            flags: 0,
            next: 0,
        };
        let mut taken = 0;
        for len in [0, 8, 16, 24, 32] {
            for flags in [INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT] {
                let to_table = Descriptor {
                    address: TABLE,
                    len,
                    flags,
                    next: 1,
                };
                for first in kinds() {
                    for second in kinds() {
                        let table = [first, second];
                        let ring = [to_table, data];
                        let expected = walk(0, &ring, &table);
                        let found = popped(&memory, 0, &ring, &table);
                        assert_eq!(found, expected, "{to_table:?} {table:?}");
                        taken += usize::from(found.is_some());
                    }
                }
            }
        }
        println!("{taken} tables are some");
        assert!(taken > 1000);
    }

    #[test]
    fn a_head_that_does_not_exist_is_not_given_back() {
        let memory = memory(1 << 16);
        let mut queue = DriverQueue::new(0, 8).device_side(&memory, false);
        for chains in [&[(8, 0)][..], &[(8, 0), (0, 0)], &[(0, 0), (u16::MAX, 0)]] {
            assert!(queue.push_together(chains).is_err(), "{chains:?}");
        }
        queue.push_together(&[]).unwrap();
    }
}
