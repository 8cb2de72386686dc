//! The network device (virtio 1.2 §5.1): one queue in each direction, and a link behind it.
//!
//! A packet is a frame behind a header of 12 bytes, which says what is left to do on it: a checksum, or cutting it into segments.
//! Links differ in what of that they take over. A [`Tap`] has the host's kernel behind it, which takes the header as it is,
//! so that a packet may be 64 KiB long and without checksums all the way. A [`Stream`] is a socket that carries frames, each
//! behind its length, as `passt` speaks: there the header ends here, nothing is offered that it would be needed for, and
//! large frames come by a large MTU alone.
//!
//! Packets are copied, once in each direction: what the guest sends is checked on a copy that it cannot change, and how long
//! a packet is that comes in is known before the guest's buffers for it are chosen. While the guest has none nothing is read
//! from the link, and while a link is full nothing is taken from the guest. A peer that is gone is a link that is down.
//!
//! Whoever plugs it in opens the link, which needs rights that a confined VMM has not, and makes a [`Net`] of it. Between a
//! [`Tap`] and the guest's kernel nobody looks into frames: what the guest may send to whom is the host's firewall's to say.
//! At feature negotiation the device calls `TUNSETOFFLOAD`, which a filter of system calls has to allow.

mod device;
mod header;
mod link;
mod stream;
mod tap;
#[cfg(test)]
mod tests;

pub use device::Net;
pub use link::Link;
pub use stream::Stream;
pub use tap::{Tap, TapError};
