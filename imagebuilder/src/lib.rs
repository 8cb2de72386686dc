//! Kernels, initfs and OCI images → what a VM boots.

pub mod atomic;
pub mod ext4;
pub mod hashes;
pub mod initfs;
pub mod kernel;
pub mod manifest;
pub mod oci;
pub mod progress;
pub mod recipe;
pub mod reference;
pub mod sha256;
pub mod spool;
pub mod store;
pub mod tarball;
pub mod tree;
pub mod writable;

mod geometry;
mod sparse;
#[cfg(test)]
mod testing;
mod text;
