//! The virtio socket device (virtio 1.2 §5.10).
//!
//! Streams that the guest opens to its host (CID 2) become Unix streams on the host. Each direction has its own
//! flow control: a side says how much it can hold (`buf_alloc`) and how much it has passed on (`fwd_cnt`), and
//! the other never sends beyond the difference (§5.10.6.3). So a reader that stops, on either side, stalls its own
//! connection and nothing else. Each direction also closes by itself (`SHUTDOWN` with a flag for each), and a
//! connection is over when either side sends `RST`; we answer the guest's full `SHUTDOWN` with it only after
//! everything the guest sent is in the host's socket.

use std::os::unix::net::UnixStream;

mod connection;
mod connections;
mod credit;
mod device;
mod packet;
#[cfg(test)]
mod tests;

pub use device::Vsock;

/// The host's side of the vsock address space: what answers when the guest dials CID 2.
pub trait HostPorts: Send {
    /// The guest asks for a connection to `port`. Returns the device's end of a connected stream,
    /// whose other end is with whoever serves the port, or `None` to refuse.
    ///
    /// Called on the device's thread: it must not block.
    fn connect(&mut self, port: u32) -> Option<UnixStream>;
}
