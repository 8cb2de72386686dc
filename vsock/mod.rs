//! The virtio socket device (virtio 1.2 §5.10).

use std::os::unix::net::UnixStream;

/// The host's side of the vsock address space: what answers when the guest dials CID 2.
pub trait HostPorts: Send {
    /// The guest asks for a connection to `port`. Returns the device's end of a connected stream,
    /// whose other end is with whoever serves the port, or `None` to refuse.
    ///
    /// Called on the device's thread: it must not block.
    fn connect(&mut self, port: u32) -> Option<UnixStream>;
}
