//! What the tests of several devices share: a driver without a VM, and numbers that repeat.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::virtqueue::{Interrupt, Virtqueue};
use crate::vm::memory::{GuestMemory, Placement, SharedMemory};

/// Flags of a descriptor (virtio 1.2 §2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A descriptor as the driver writes it.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// Memory of a guest, from 0 on.
pub fn memory(len: u64) -> Arc<GuestMemory> {
    let shared = SharedMemory::create(len).unwrap();
    let whole = Placement {
        guest: 0,
        offset: 0,
        len,
    };
    Arc::new(shared.map(&[whole]).unwrap())
}

/// The driver's side of a virtqueue: descriptors from 0 up, used round and round.
pub struct DriverQueue {
    pub base: u64,
    pub size: u16,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
    pub interrupts: Arc<AtomicUsize>,
}

struct Count(Arc<AtomicUsize>);

impl Interrupt for Count {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl DriverQueue {
    /// A queue whose rings lie at `base`, in three pages.
    pub fn new(base: u64, size: u16) -> Self {
        assert!(size <= 256, "the rings need a page each");
        Self {
            base,
            size,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
            interrupts: Arc::default(),
        }
    }

    /// Head of the chain that is added next.
    pub fn next_head(&self) -> u16 {
        self.next_descriptor
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.base, self.base + 4096, self.base + 8192]
    }

    /// The device's side.
    pub fn device_side(&self, memory: &Arc<GuestMemory>, event_idx: bool) -> Virtqueue {
        let [descriptors, available, used] = self.addresses().map(GuestAddress);
        let mut ring = Queue::new(self.size).unwrap();
        ring.try_set_desc_table_address(descriptors).unwrap();
        ring.try_set_avail_ring_address(available).unwrap();
        ring.try_set_used_ring_address(used).unwrap();
        ring.set_event_idx(event_idx);
        let interrupt = Box::new(Count(Arc::clone(&self.interrupts)));
        Virtqueue::new(ring, Arc::clone(memory), interrupt).unwrap()
    }

    /// Writes a descriptor as it is.
    pub fn write(&self, memory: &GuestMemory, table: u64, index: u16, descriptor: Descriptor) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let Descriptor {
            address,
            len,
            flags,
            next,
        } = descriptor;
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&next.to_le_bytes());
        memory.write_slice(&bytes, at).unwrap();
    }

    /// Makes whatever is at `head` available.
    pub fn offer(&mut self, memory: &GuestMemory, head: u16) {
        let available = self.base + 4096;
        let slot = u64::from(self.next_available % self.size);
        memory
            .write_obj(head.to_le(), GuestAddress(available + 4 + 2 * slot))
            .unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        memory
            .write_obj(self.next_available.to_le(), GuestAddress(available + 2))
            .unwrap();
    }

    /// Makes a chain of buffers (address, length, writable for the device) available; returns its head.
    pub fn add(&mut self, memory: &GuestMemory, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        self.write_chain(memory, self.base, head, buffers);
        let count = u16::try_from(buffers.len()).unwrap();
        self.next_descriptor = (head + count) % self.size;
        self.offer(memory, head);
        head
    }

    /// The same through an indirect table at `table`.
    pub fn add_indirect(
        &mut self,
        memory: &GuestMemory,
        table: u64,
        buffers: &[(u64, u32, bool)],
    ) -> u16 {
        for (index, buffer) in (0..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            self.write(memory, table, index, descriptor(*buffer, last, index + 1));
        }
        let head = self.next_descriptor;
        let pointer = Descriptor {
            address: table,
            len: 16 * u32::try_from(buffers.len()).unwrap(),
            flags: INDIRECT,
            next: 0,
        };
        self.write(memory, self.base, head, pointer);
        self.next_descriptor = (head + 1) % self.size;
        self.offer(memory, head);
        head
    }

    fn write_chain(
        &self,
        memory: &GuestMemory,
        table: u64,
        head: u16,
        buffers: &[(u64, u32, bool)],
    ) {
        for (index, buffer) in (0_u16..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            let next = (head + index + 1) % self.size;
            let at = (head + index) % self.size;
            self.write(memory, table, at, descriptor(*buffer, last, next));
        }
    }

    /// The next chain that the device gave back, with what it says it wrote.
    pub fn used(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        let used = self.base + 8192;
        let index: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
        if u16::from_le(index) == self.next_used {
            return None;
        }
        let at = used + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let id: u32 = memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((u16::try_from(id).unwrap(), len))
    }

    /// With `EVENT_IDX`: asks for an interrupt at the next chain that is given back.
    pub fn want_interrupt(&self, memory: &GuestMemory) {
        self.want_interrupt_at(memory, self.next_used);
    }

    /// The same at the one with this index in the used ring.
    pub fn want_interrupt_at(&self, memory: &GuestMemory, index: u16) {
        let at = self.base + 4096 + 4 + 2 * u64::from(self.size);
        memory.write_obj(index.to_le(), GuestAddress(at)).unwrap();
    }

    /// Interrupts so far.
    pub fn interrupted(&self) -> usize {
        self.interrupts.load(Ordering::SeqCst)
    }
}

fn descriptor(buffer: (u64, u32, bool), last: bool, next: u16) -> Descriptor {
    let (address, len, writable) = buffer;
    let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
    Descriptor {
        address,
        len,
        flags,
        next: if last { 0 } else { next },
    }
}

/// A small generator of pseudo-random numbers (xorshift), so that a failing seed can be run again.
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() >> 32).unwrap() % bound
    }

    /// One of `values`.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(u32::try_from(values.len()).unwrap()) as usize]
    }

    /// Random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next().to_le_bytes()[3];
        }
    }
}
