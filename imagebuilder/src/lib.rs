//! Kernels, initfs and OCI images → what a VM boots.
