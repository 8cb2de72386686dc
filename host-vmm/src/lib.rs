//! The `vmm` command as a library, so that tests and fuzz targets reach every part of it.

pub mod agent;
pub mod boot_files;
pub mod cli;
pub mod container;
pub mod devices;
pub mod failpoint;
pub mod once;
pub mod paths;
pub mod process;
pub mod report;
pub mod root;
pub mod sandbox;
pub mod terminal;
pub mod vm;
