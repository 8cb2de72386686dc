//! The device: queues to inflate, to deflate, and to report.

use std::io;

use vm_memory::GuestAddress;

use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{Readiness, Registry},
        guest_io,
        virtqueue::{Chain, QueueError, Virtqueue, total},
    },
    vm::memory::{GuestMemory, give_back},
};

/// Device ID (virtio 1.2 §5.5.1).
const DEVICE_TYPE: u32 = 5;

/// Feature bits (§5.5.3), which the crate of such numbers does not have.
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// Queues (§5.5.2). Every other is one to report by: the module's documentation says why.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const QUEUES: usize = 5;
const QUEUE_SIZES: [u16; QUEUES] = [128, 128, 32, 32, 32];

/// Bytes of a page of the balloon, whatever the guest's are (§5.5.6).
const PAGE: u64 = 4096;

/// Most bytes that name pages in one chain: 256 of 32 bits, as drivers send them.
const MAX_PAGES_LEN: usize = 256 * 4;

/// Chains handled in each queue before other events are looked at again. Of those that report, each may name a large part of
/// guest memory, which takes the host a while to free.
const BUDGET: usize = 8;

/// Offset and length of what the driver writes into the configuration space: the pages that the balloon has.
const ACTUAL: usize = 4;
const CONFIG_LEN: usize = 8;

/// The balloon.
#[derive(Debug)]
pub struct Balloon {
    /// Pages that the host wants.
    wanted: u32,
    /// Pages that the guest says it has handed over.
    actual: u32,
    queues: [Option<Virtqueue>; QUEUES],
    pending: [bool; QUEUES],
    chain: Chain,
    /// The host does not take pages back; that was said once.
    complained: bool,
}

impl Balloon {
    /// A balloon into which the host wants so many pages of 4 KiB.
    #[must_use]
    pub fn new(wanted: u32) -> Self {
        Self {
            wanted,
            actual: 0,
            queues: [const { None }; QUEUES],
            pending: [false; QUEUES],
            chain: Chain::default(),
            complained: false,
        }
    }

    /// Pages of 4 KiB that the guest says it has handed over.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.actual
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        config[..ACTUAL].copy_from_slice(&self.wanted.to_le_bytes());
        config[ACTUAL..].copy_from_slice(&self.actual.to_le_bytes());
        config
    }

    fn serve(&mut self, index: usize) -> Result<Progress, DeviceError> {
        let Some(mut queue) = self.queues[index].take_if(|_| self.pending[index]) else {
            return Ok(Progress::Idle);
        };
        let mut chain = std::mem::take(&mut self.chain);
        let result = queue.serve(&mut chain, BUDGET, |memory, chain| {
            match index {
                INFLATE => self.inflate(memory, chain)?,
                // The pages are there again when the guest touches them.
                DEFLATE => {}
                _ => self.reported(memory, chain)?,
            }
            Ok(Some(0))
        });
        self.chain = chain;
        self.queues[index] = Some(queue);
        let progress = result.map_err(DeviceError::Queue)?;
        self.pending[index] = progress == Progress::More;
        Ok(progress)
    }

    /// The guest does without pages: their numbers are 32 bits each (§5.5.6.1).
    fn inflate(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<(), QueueError> {
        let unusable = |why| QueueError::Buffer {
            head: chain.head,
            why,
        };
        let len = total(&chain.readable);
        if len > MAX_PAGES_LEN || !len.is_multiple_of(4) || !chain.writable.is_empty() {
            return Err(unusable("not a list of pages"));
        }
        let mut list = [0; MAX_PAGES_LEN];
        let list = &mut list[..len];
        if !guest_io::copy_from(memory, &chain.readable, 0, list) {
            return Err(unusable("outside of guest memory"));
        }
        // Pages that follow each other go together.
        let mut run: Option<(u64, u64)> = None;
        for number in list.as_chunks::<4>().0 {
            let page = u64::from(u32::from_le_bytes(*number));
            run = match run {
                Some((first, end)) if end == page => Some((first, page + 1)),
                previous => {
                    self.free_run(memory, previous, &unusable)?;
                    Some((page, page + 1))
                }
            };
        }
        self.free_run(memory, run, &unusable)
    }

    fn free_run(
        &mut self,
        memory: &GuestMemory,
        run: Option<(u64, u64)>,
        unusable: &impl Fn(&'static str) -> QueueError,
    ) -> Result<(), QueueError> {
        let Some((first, end)) = run else {
            return Ok(());
        };
        // Numbers of 32 bits: neither product is too large.
        match self.free(memory, GuestAddress(first * PAGE), (end - first) * PAGE) {
            true => Ok(()),
            false => Err(unusable("names a page that is not there")),
        }
    }

    /// The guest does not use these buffers, and will not look at what was in them (§5.5.6.7).
    fn reported(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<(), QueueError> {
        let unusable = |why| QueueError::Buffer {
            head: chain.head,
            why,
        };
        if !chain.readable.is_empty() {
            return Err(unusable("reports memory that may not be written"));
        }
        for range in &chain.writable {
            if !self.free(memory, range.address, u64::from(range.len)) {
                return Err(unusable("outside of guest memory"));
            }
        }
        Ok(())
    }

    /// Gives memory back; whether it was the guest's. A host that does not want it is no error: the guest may go on as if.
    fn free(&mut self, memory: &GuestMemory, address: GuestAddress, len: u64) -> bool {
        match give_back(memory, address, len) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => false,
            Err(error) => {
                if !self.complained {
                    self.complained = true;
                    tracing::warn!("Cannot give a guest's memory back to the host: {error}");
                }
                true
            }
        }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1 << VIRTIO_BALLOON_F_REPORTING
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

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let mut config = self.config();
        for (at, byte) in (offset as usize..).zip(data) {
            // What the host wants is not the driver's to say.
            if let Some(place) = config.get_mut(at).filter(|_| at >= ACTUAL) {
                *place = *byte;
            }
        }
        let [.., a, b, c, d] = config;
        self.actual = u32::from_le_bytes([a, b, c, d]);
    }

    fn attach(&mut self, _registry: Registry) -> io::Result<()> {
        Ok(())
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        if let Some(slot) = self.queues.get_mut(index) {
            *slot = Some(queue);
        }
    }

    fn stop_queue(&mut self, index: usize) -> Option<Virtqueue> {
        *self.pending.get_mut(index)? = false;
        self.queues[index].take()
    }

    fn queue(&mut self, index: usize) -> Option<&mut Virtqueue> {
        self.queues.get_mut(index)?.as_mut()
    }

    fn kick(&mut self, index: usize) {
        if let Some(pending) = self.pending.get_mut(index) {
            *pending = true;
        }
    }

    fn ready(&mut self, _token: u32, _readiness: Readiness) {}

    fn run(&mut self) -> Result<Progress, DeviceError> {
        let mut more = Progress::Idle;
        for index in 0..QUEUES {
            if self.serve(index)? == Progress::More {
                more = Progress::More;
            }
        }
        Ok(more)
    }
}
