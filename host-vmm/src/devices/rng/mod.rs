//! The entropy device (virtio 1.2 §5.4): buffers that come back full of the host's random bytes.
//!
//! Whoever plugs it in needs nothing but [`Rng::new`]; it has no descriptors and no configuration.

mod device;
#[cfg(test)]
mod tests;

pub use device::Rng;
