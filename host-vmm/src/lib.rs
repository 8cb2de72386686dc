//! The `vmm` command as a library, so that tests and fuzz targets reach every part of it.

pub mod devices;
pub mod vm;
