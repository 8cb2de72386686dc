//! A guest's memory, and a driver in it that does what it is told, be it wrong.

use std::sync::Arc;

use host_vmm::{
    devices::virtqueue::{Interrupt, Virtqueue},
    vm::kvm,
    vm::memory::{GuestMemory, Placement, SharedMemory},
};
use rustix::mm::munmap;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::input::Input;

/// Bytes of guest memory.
pub const MEMORY: u64 = 256 << 10;

/// Flags of a descriptor (virtio 1.2 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Memory of a guest: the file, and all of it mapped.
pub fn memory() -> (SharedMemory, Arc<GuestMemory>) {
    let shared = SharedMemory::create(MEMORY).expect("guest memory");
    let whole = Placement {
        guest: 0,
        offset: 0,
        len: MEMORY,
    };
    let memory = shared.map(&[whole]).expect("guest memory");
    (shared, Arc::new(memory))
}

/// Memory of a machine's. In the product it stays for as long as the process, and so is not unmapped there.
pub struct MachineMemory(Arc<GuestMemory>);

impl MachineMemory {
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(kvm::memory::map(bytes).expect("guest memory")))
    }

    pub fn get(&self) -> &Arc<GuestMemory> {
        &self.0
    }
}

impl Drop for MachineMemory {
    fn drop(&mut self) {
        assert_eq!(Arc::strong_count(&self.0), 1, "memory that is in use");
        for region in self.0.iter() {
            let len = usize::try_from(region.len()).expect("a length");
            // SAFETY: nobody else has it any more, and this process looks at it by its descriptions only.
            unsafe { munmap(region.as_ptr().cast(), len) }.expect("a mapping");
        }
    }
}

/// Writes bytes wherever the input says. What would be outside of memory is left out.
pub fn scribble(memory: &GuestMemory, input: &mut Input<'_>) {
    let at = u64::from(input.u16()) * 4;
    let count = usize::from(input.u8());
    let _ = memory.write_slice(input.bytes(count), GuestAddress(at));
}

/// A buffer as a driver describes it.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    /// The device may write it.
    pub writable: bool,
}

impl Buffer {
    /// One of the input's choice, most often within memory.
    pub fn take(input: &mut Input<'_>) -> Self {
        let kind = input.u8();
        let address = match kind >> 4 {
            0 => u64::MAX - u64::from(input.u16()),
            1 => MEMORY - u64::from(input.u16()),
            _ => u64::from(input.u16()) * 4,
        };
        let len = match kind >> 1 & 7 {
            0 => u32::MAX - u32::from(input.u16()),
            1 => u32::from(input.u8()) * 512,
            _ => u32::from(input.u16()),
        };
        Self {
            address,
            len,
            writable: kind & 1 != 0,
        }
    }
}

/// The driver's side of a virtqueue of up to 256 descriptors in three pages: descriptors from 0 up, used round and round.
pub struct Ring {
    base: u64,
    size: u16,
    next: u16,
    available: u16,
    used: u16,
}

struct Nobody;

impl Interrupt for Nobody {
    fn raise(&self) {}
}

impl Ring {
    /// Bytes that one takes up.
    pub const LEN: u64 = 3 << 12;

    /// One at `base`, whose size the lowest bits of `size` choose.
    pub fn new(base: u64, size: u8) -> Self {
        Self {
            base,
            size: 1 << (size % 9),
            next: 0,
            available: 0,
            used: 0,
        }
    }

    /// The device's side of it, from the beginning.
    pub fn start(&mut self, memory: &Arc<GuestMemory>, event_idx: bool) -> Virtqueue {
        self.clear(memory);
        let [descriptors, available, used] = self.parts().map(GuestAddress);
        let mut ring = Queue::new(self.size).expect("a power of two");
        ring.try_set_desc_table_address(descriptors)
            .expect("aligned");
        ring.try_set_avail_ring_address(available).expect("aligned");
        ring.try_set_used_ring_address(used).expect("aligned");
        ring.set_event_idx(event_idx);
        Virtqueue::new(ring, Arc::clone(memory), Box::new(Nobody)).expect("rings in memory")
    }

    /// How many descriptors it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where its parts are: descriptors, available and used ring.
    pub fn parts(&self) -> [u64; 3] {
        [0, 0x1000, 0x2000].map(|offset| self.base + offset)
    }

    /// Begins anew, as its driver sees it.
    pub fn clear(&mut self, memory: &GuestMemory) {
        (self.next, self.available, self.used) = (0, 0, 0);
        // The indices; the rest is as it was.
        for at in [self.base + 0x1000, self.base + 0x2000] {
            memory.write_obj(0_u32, GuestAddress(at)).expect("a ring");
        }
    }

    /// Head of the chain that is added next.
    pub fn next_head(&self) -> u16 {
        self.next
    }

    /// Makes a chain of these buffers available; through a table at `indirect`, if that is given.
    pub fn add(&mut self, memory: &GuestMemory, buffers: &[Buffer], indirect: Option<u64>) {
        let head = self.next;
        let (table, first, size) = match indirect {
            Some(table) => (table, 0, u16::MAX),
            None => (self.base, head, self.size),
        };
        let mut at = first;
        for (index, buffer) in buffers.iter().enumerate() {
            let following = at.wrapping_add(1) % size;
            let last = index + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            write(memory, table, at, *buffer, flags, following);
            at = following;
        }
        if let Some(table) = indirect {
            let pointer = Buffer {
                address: table,
                len: 16 * u32::try_from(buffers.len()).unwrap_or(0),
                writable: false,
            };
            write(memory, self.base, head, pointer, INDIRECT, 0);
            at = (head + 1) % self.size;
        }
        self.next = at;
        self.offer(memory, head);
    }

    /// Makes whatever is at `head` available.
    pub fn offer(&mut self, memory: &GuestMemory, head: u16) {
        let slot = u64::from(self.available % self.size);
        put(memory, self.base + 0x1004 + 2 * slot, &head.to_le_bytes());
        self.skip(memory, 1);
    }

    /// Says that so many more are available than there are.
    pub fn skip(&mut self, memory: &GuestMemory, count: u16) {
        self.available = self.available.wrapping_add(count);
        put(memory, self.base + 0x1002, &self.available.to_le_bytes());
    }

    /// The next chain that the device gave back: its head, and the bytes that were written.
    pub fn used(&mut self, memory: &GuestMemory) -> Option<(u32, u32)> {
        let read = |at| memory.read_obj::<u32>(GuestAddress(self.base + 0x2000 + at));
        // Flags, and the index.
        let [.., low, high] = read(0).expect("the used ring").to_le_bytes();
        if u16::from_le_bytes([low, high]) == self.used {
            return None;
        }
        let at = 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        Some((
            read(at).expect("the used ring"),
            read(at + 4).expect("the used ring"),
        ))
    }
}

fn write(memory: &GuestMemory, table: u64, index: u16, buffer: Buffer, flags: u16, next: u16) {
    let mut bytes = buffer.address.to_le_bytes().to_vec();
    bytes.extend_from_slice(&buffer.len.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&next.to_le_bytes());
    put(memory, table + 16 * u64::from(index), &bytes);
}

/// Writes what lies in memory; a driver cannot write what does not.
pub fn put(memory: &GuestMemory, at: u64, bytes: &[u8]) {
    let _ = memory.write_slice(bytes, GuestAddress(at));
}
