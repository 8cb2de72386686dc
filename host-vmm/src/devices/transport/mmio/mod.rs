//! virtio-mmio (virtio 1.2 §4.2), version 2: a device as a page of registers.
//!
//! Two halves, on two threads. The [`Registers`] are the driver's: whoever takes the machine's exits has them written, and
//! passes on what a write asks of the device ([`Request`]). The [`Slot`] is the device's: it has the model, its queues and its
//! memory, and lives where events are waited for. They share what can be read ([`Page`]), and no lock. Nothing here knows
//! what kind of machine the driver runs in: it has an [`Irq`] to raise, and memory.

mod page;
mod registers;
mod slot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use page::Page;
pub use registers::{INTERRUPT_ACK, QUEUE_NOTIFY, Registers, Request, SIZE};
pub use slot::Slot;

/// How an interrupt reaches the driver.
pub trait Irq: Send + Sync {
    /// Raises it. It must not block.
    fn raise(&self);
}

/// Bits of `InterruptStatus` (§4.2.2).
pub const USED_BUFFER: u32 = 1;
const CONFIGURATION: u32 = 2;

/// `DEVICE_NEEDS_RESET` (§2.1).
const NEEDS_RESET: u32 = 64;

/// The interrupt of a queue.
struct QueueInterrupt {
    page: Arc<Page>,
    irq: Arc<dyn Irq>,
}

impl crate::devices::virtqueue::Interrupt for QueueInterrupt {
    fn raise(&self) {
        self.page.add_interrupt(USED_BUFFER);
        self.irq.raise();
    }
}
