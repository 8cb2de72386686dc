//! Virtio device models and the transports that carry them.
//!
//! A device model does not know its hypervisor: it sees guest memory through its queues, has a way to
//! signal, and is told by its transport what happened. Everything runs on one thread per event loop, so
//! nothing on the way of the data is locked.

use std::io;

pub mod balloon;
pub mod block;
pub mod event_loop;
pub mod guest_io;
pub mod net;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod virtqueue;
pub mod vsock;

use event_loop::{Readiness, Registry};
use virtqueue::{QueueError, Virtqueue};

/// A virtio device as its transport sees it (virtio 1.2 §2).
///
/// Events only mark what there is to do; [`VirtioDevice::run`] does it, in bounded pieces, once after every
/// batch of events. So a batch costs one interrupt, and no event can starve another.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2 §5).
    fn device_type(&self) -> u32;

    /// Feature bits that this device offers beyond those of rings and transports.
    fn features(&self) -> u64;

    /// Largest size of each queue in descriptors, powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Reads the configuration space. Bytes beyond its end read as zero.
    fn read_config(&self, offset: u32, data: &mut [u8]);

    /// Writes the configuration space. Most devices have nothing writable there.
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    /// Gives the device the event loop for descriptors of its own. Called once, before anything else.
    ///
    /// # Errors
    /// What the device could not register.
    fn attach(&mut self, registry: Registry) -> io::Result<()>;

    /// The driver accepted these feature bits.
    fn set_features(&mut self, _accepted: u64) {}

    /// Queue `index` runs from now on and belongs to the device until it is stopped.
    fn start_queue(&mut self, index: usize, queue: Virtqueue);

    /// Queue `index` stops; the device gives it back if it had it.
    fn stop_queue(&mut self, index: usize) -> Option<Virtqueue>;

    /// Queue `index` while it runs, for a transport that changes its interrupt.
    fn queue(&mut self, index: usize) -> Option<&mut Virtqueue>;

    /// The driver made buffers available in queue `index`.
    fn kick(&mut self, index: usize);

    /// A descriptor that the device registered under `token` became ready.
    fn ready(&mut self, token: u32, readiness: Readiness);

    /// Does what there is to do, in bounded time.
    ///
    /// # Errors
    /// [`DeviceError`]: the device does nothing more until its queues are stopped and started again.
    fn run(&mut self) -> Result<Progress, DeviceError>;

    /// Whether the configuration space has changed by itself since the last call. The transport asks after every
    /// [`VirtioDevice::run`], and tells the driver.
    fn config_changed(&mut self) -> bool {
        false
    }

    /// Whether everything that the device took from the guest has been delivered.
    fn drained(&self) -> bool {
        true
    }
}

/// Why a device does nothing more.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the rules of a queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The disk of the host that it writes to is full.
    #[error("A disk of the host is full, and what the guest writes finds no room")]
    NoRoom,
}

/// What [`VirtioDevice::run`] has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing until the next event.
    Idle,
    /// More, at once: call again after looking at other events.
    More,
}
