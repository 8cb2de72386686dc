//! A vhost-user back end: a device model in this process for a driver behind another one.
//!
//! Written after the protocol's description in QEMU's documentation (`interop/vhost-user`). The front end may be
//! an attacker (in a kernel that runs as a process it is the guest itself), so every message has a bounded
//! size and number of descriptors, an unexpected one ends this device, and guest memory is never mapped from a
//! descriptor of the peer.

pub mod backend;
pub mod channel;
pub mod message;
mod server;
#[cfg(test)]
mod tests;

pub use backend::BackendError;
pub use channel::ChannelError;
pub use server::{Failure, Server};
