//! The device: one queue.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{Readiness, Registry},
        guest_io,
        virtqueue::{Chain, QueueError, Virtqueue, total},
    },
    vm::memory::GuestMemory,
};

/// Device ID (virtio 1.2 §5.4.1).
const DEVICE_TYPE: u32 = 4;

const QUEUE_SIZES: [u16; 1] = [64];

/// Most bytes of one request. A driver that wants more asks again; Linux wants some tens.
const MOST: usize = 256;

/// Requests handled before other events are looked at again.
const BUDGET: usize = 32;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    queue: Option<Virtqueue>,
    /// The driver may have asked for something.
    pending: bool,
    chain: Chain,
}

impl Rng {
    /// A device with the host's kernel behind it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// Fills a chain, or the beginning of one that is long.
fn fill(memory: &GuestMemory, chain: &Chain) -> Result<Option<u32>, QueueError> {
    let unusable = |why| QueueError::Buffer {
        head: chain.head,
        why,
    };
    // §5.4.6.1.
    if !chain.readable.is_empty() {
        return Err(unusable("a buffer for random bytes is not writable"));
    }
    let mut bytes = [0; MOST];
    let wanted = total(&chain.writable).min(MOST);
    if wanted == 0 {
        return Err(unusable("no room for random bytes"));
    }
    // So many are never fewer, and no signal ends the call.
    let bytes = &mut bytes[..wanted];
    let count = getrandom(&mut *bytes, GetRandomFlags::empty()).unwrap_or(0);
    if !guest_io::copy_to(memory, &chain.writable, &bytes[..count]) {
        return Err(unusable("outside of guest memory"));
    }
    Ok(u32::try_from(count).ok())
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }

    fn attach(&mut self, _registry: Registry) -> io::Result<()> {
        Ok(())
    }

    fn start_queue(&mut self, _index: usize, queue: Virtqueue) {
        self.queue = Some(queue);
    }

    fn stop_queue(&mut self, _index: usize) -> Option<Virtqueue> {
        self.pending = false;
        self.queue.take()
    }

    fn queue(&mut self, _index: usize) -> Option<&mut Virtqueue> {
        self.queue.as_mut()
    }

    fn kick(&mut self, _index: usize) {
        self.pending = true;
    }

    fn ready(&mut self, _token: u32, _readiness: Readiness) {}

    fn run(&mut self) -> Result<Progress, DeviceError> {
        let Some(queue) = self.queue.as_mut().filter(|_| self.pending) else {
            return Ok(Progress::Idle);
        };
        let progress = queue.serve(&mut self.chain, BUDGET, fill)?;
        self.pending = progress == Progress::More;
        Ok(progress)
    }
}
