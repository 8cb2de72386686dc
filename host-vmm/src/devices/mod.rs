//! Virtio device models and the transports that carry them.

pub mod vsock;
