//! The block device (virtio 1.2 §5.2): a disk that is a file of the host.
//!
//! A request is a chain: a header that the device reads, data in one direction or the other, and a byte for the
//! status. Requests are done one after the other on the device's thread, with plain `preadv` and `pwritev` straight
//! between the file and guest memory: what a container reads is in the host's page cache as a rule, and then handing it
//! to another thread costs more than doing it.
//!
//! A request that makes no sense to the disk (beyond its end, not whole sectors) is answered with an error, as the
//! specification has it; a chain that is none (no header, no status) breaks the rules and ends the device.

mod device;
mod disk;
mod request;
#[cfg(test)]
mod tests;

pub use device::Block;
pub use disk::Disk;
