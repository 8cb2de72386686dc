//! How a device model meets its driver.

pub mod mmio;
pub mod vhost_user;

use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// Features of rings and of this version of virtio, which every device of ours has (virtio 1.2 §6).
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The driver reads and writes the fields by which notifications are avoided (virtio 1.2 §2.7.7).
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
