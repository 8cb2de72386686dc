//! virtio-mmio (virtio 1.2 §4.2), version 2: a device as a page of registers.
//!
//! Two halves, on two threads. The [`Registers`] are the driver's: whoever takes the machine's exits reads and writes
//! them, and passes on what a write asks of the device ([`Request`]). The [`Slot`] is the device's: it has the model, its
//! queues and its memory, and lives where events are waited for. They share two words ([`Lines`]), and no lock. Nothing
//! here knows what kind of machine the driver runs in: it has an [`Irq`] to raise, and memory.

mod registers;
mod slot;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

pub use registers::{QUEUE_NOTIFY, Registers, Request, SIZE};
pub use slot::Slot;

/// How an interrupt reaches the driver.
pub trait Irq: Send + Sync {
    /// Raises it. It must not block.
    fn raise(&self);
}

/// What both halves of a device may change.
#[derive(Debug, Default)]
struct Lines {
    /// `InterruptStatus` (§4.2.2).
    interrupts: AtomicU32,
    /// [`NEEDS_RESET`], or nothing.
    broken: AtomicU32,
}

/// Bits of `InterruptStatus`.
const USED_BUFFER: u32 = 1;
const CONFIGURATION: u32 = 2;

/// `DEVICE_NEEDS_RESET` (§2.1).
const NEEDS_RESET: u32 = 64;

impl Lines {
    /// The driver has to reset the device: it broke the rules.
    fn break_down(&self, irq: &dyn Irq) {
        self.broken.store(NEEDS_RESET, Ordering::Release);
        self.interrupts.fetch_or(CONFIGURATION, Ordering::AcqRel);
        irq.raise();
    }
}

/// The interrupt of a queue.
struct QueueInterrupt {
    lines: Arc<Lines>,
    irq: Arc<dyn Irq>,
}

impl crate::devices::virtqueue::Interrupt for QueueInterrupt {
    fn raise(&self) {
        self.lines
            .interrupts
            .fetch_or(USED_BUFFER, Ordering::AcqRel);
        self.irq.raise();
    }
}
