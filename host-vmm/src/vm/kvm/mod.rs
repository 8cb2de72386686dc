//! Hardware virtualization: a thin VMM of our own on KVM.

mod access;
pub mod probe;
mod verdict;

pub use access::{NoKvm, access, usable};
