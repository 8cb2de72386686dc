//! Hardware virtualization: a thin VMM of our own on KVM.

mod access;

pub use access::{NoKvm, access};
