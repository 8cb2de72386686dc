//! The memory balloon (virtio 1.2 §5.5): memory that the guest does not use goes back to the host.
//!
//! By two ways. With *free page reporting* the guest's kernel tells of what is free by itself, in large pieces, some seconds
//! after it was freed: the device forgets the content and is done, and the guest takes such pages again without asking. That
//! is what keeps a VM as small as what runs in it. By *inflating* the guest hands over as many pages as the host wants, and
//! does without them; nobody wants any so far. `DEFLATE_ON_OOM` lets the guest take those back before it kills a process.
//!
//! The specification numbers the queues as if each optional one were there (reporting is 4, §5.5.2). Drivers, Linux's among
//! them, leave no gaps, and report by queue 2; and user-mode Linux takes no device that has fewer than all five. As none of
//! the other optional ones is offered, whatever comes by 2 or after it is a report.
//!
//! Whoever plugs it in needs nothing but [`Balloon::new`]. What a page is given back by follows from how guest memory is mapped
//! ([`crate::vm::memory::give_back`]).

mod device;
#[cfg(test)]
mod tests;

pub use device::Balloon;
