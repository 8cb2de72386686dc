//! What a machine's process is told of its machine: plain data, in one argument. What it names by numbers are descriptors that
//! the process inherits.

use std::{ffi::OsStr, os::fd::RawFd};

/// The word by which the program knows that it is to be a machine.
pub const NAME: &str = "kvm-machine";

/// A machine.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Description {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// The kernel's command line, without what its devices add to it.
    pub cmdline: String,
    /// The vsock device's context identifier.
    pub cid: u64,
    /// `/dev/kvm`.
    pub kvm: RawFd,
    /// The kernel's file.
    pub kernel: RawFd,
    /// The initfs.
    pub initfs: RawFd,
    /// The socket to the supervisor.
    pub link: RawFd,
    /// Disks in the guest's order.
    pub disks: Vec<DiskDescription>,
}

/// A disk.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskDescription {
    /// The image.
    pub file: RawFd,
    /// It may not be written.
    pub read_only: bool,
    /// It is thrown away with the machine.
    pub ephemeral: bool,
}

impl Description {
    /// As the argument.
    ///
    /// # Errors
    /// None in practice: every value has a text.
    pub fn to_argument(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// From the argument.
    ///
    /// # Errors
    /// It is none.
    pub fn from_argument(argument: &OsStr) -> serde_json::Result<Self> {
        serde_json::from_slice(argument.as_encoded_bytes())
    }
}
