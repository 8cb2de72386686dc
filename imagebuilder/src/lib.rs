//! Kernels, initfs and OCI images → what a VM boots.

pub mod atomic;
pub mod initfs;
pub mod progress;
pub mod writable;

mod geometry;
mod sparse;
#[cfg(test)]
mod testing;
