//! What is at the other end of the guest's cable.

use std::{io, os::fd::BorrowedFd};

use super::header::HEADER_LEN;

/// Longest frame in bytes: 64 KiB of a protocol, and an Ethernet header with a tag (virtio 1.2 §5.1.6.3.1).
pub const MAX_FRAME: usize = 65_550;

/// Shortest frame in bytes: two addresses and a type.
pub const MIN_FRAME: usize = 14;

/// Longest packet in bytes.
pub const MAX_PACKET: usize = HEADER_LEN + MAX_FRAME;

/// Something that carries frames. Nothing of it blocks.
///
/// An error of any call means that the link is gone.
pub trait Link: Send {
    /// Features of §5.1.3 that it can keep, of those about checksums and segments.
    fn features(&self) -> u64;

    /// The driver accepted these features.
    fn accept(&mut self, features: u64);

    /// Tells of packets that have come, and of room to send.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Whether it takes a packet now; tries to send what it holds if it holds some.
    ///
    /// # Errors
    /// The link is gone.
    fn has_room(&mut self) -> io::Result<bool>;

    /// Takes a packet, a header that has been checked and a frame, after [`Link::has_room`] said yes. A packet that cannot be
    /// sent is lost, as on any network.
    ///
    /// # Errors
    /// The link is gone.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;

    /// Writes the next packet, header and frame, to the beginning of `packet`, which has [`MAX_PACKET`] bytes; gives its
    /// length, or `None` if there is none now.
    ///
    /// # Errors
    /// The link is gone.
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>>;
}
