//! Virtual machines: what one is made of, and the accelerators that can run it.
//!
//! A hypervisor does not know containers. It gets a [`VmConfig`] and gives back a running [`Vm`] that
//! can be waited for and killed.

mod guest_process;
pub mod kernel;
pub mod kvm;
pub mod memory;
pub mod qemu;
mod select;
mod um;

use std::{fs::File, io, os::fd::BorrowedFd, path::PathBuf};

pub use select::{Accelerator, Isolation, NoAccelerator, Verdict, decide, open, verdicts};

use crate::{
    devices::vsock::HostPorts,
    report::Report,
    sandbox::{self, Sandbox},
};

/// What a VM is made of. Plain data, checked once by whoever builds it.
pub struct VmConfig {
    /// Number of virtual CPUs, at least 1.
    pub cpus: u32,
    /// Guest memory in bytes, a multiple of 1 MiB. Committed only as the guest touches it.
    pub memory: u64,
    /// Uncompressed `vmlinux` that this accelerator can enter.
    pub kernel: PathBuf,
    /// The initfs, a newc archive.
    pub initfs: PathBuf,
    /// What the kernel does against what its CPU leaks; `None` for what is of use on this accelerator.
    pub mitigations: Option<Mitigations>,
    /// What it has to be confined by, where that is ours to do.
    pub sandbox: Sandbox,
    /// Kernel command line beyond what the accelerator itself needs, and what the rest of this comes to.
    pub cmdline: String,
    /// The kernel says all it does on its console, which takes time; else only what is wrong.
    pub verbose: bool,
    /// Disks in the order in which the guest numbers them.
    pub disks: Vec<Disk>,
    /// The guest's socket to its host.
    pub vsock: VsockConfig,
    /// Receives everything the guest's kernel prints.
    pub console: File,
}

/// What a guest's kernel does against what its CPU leaks by running ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mitigations {
    /// What it thinks right for this CPU, of what was compiled into it.
    Auto,
    /// Nothing that can be left out.
    Off,
}

impl Mitigations {
    /// Its name, as `--mitigations` and Linux's `mitigations=` take it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
        }
    }
}

/// A block device backed by a raw file.
#[derive(Debug)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// The guest may not write to it, and VMs may share it.
    pub read_only: bool,
    /// Its content is thrown away with the VM: flushes need not reach the host's disk.
    pub ephemeral: bool,
}

/// The vsock device.
pub struct VsockConfig {
    /// The guest's context identifier, 3 or more.
    pub cid: u64,
    /// Takes the connections that the guest opens to its host.
    pub ports: Box<dyn HostPorts>,
}

/// Something that can run a VM.
pub trait Hypervisor {
    /// Its name as `--accel` takes it.
    fn name(&self) -> &'static str;

    /// Whether it works on this host, as far as that can be told at once.
    ///
    /// # Errors
    /// The reason why it does not, for people, and what to do.
    fn probe(&self) -> Result<(), String>;

    /// What it uses on this host, for people. Finding out takes a while.
    ///
    /// # Errors
    /// As [`Hypervisor::probe`].
    fn describe(&self) -> Result<String, String>;

    /// Name under `/dev` in the guest of the disk at `index` of [`VmConfig::disks`].
    fn disk_device(&self, index: usize) -> String;

    /// Boots a VM and returns as soon as it runs.
    ///
    /// # Errors
    /// What could not be started, and why. Nothing is left behind.
    fn start(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError>;
}

/// A running VM. Dropping it kills it.
pub trait Vm {
    /// Becomes readable when the VM is gone.
    fn gone(&self) -> BorrowedFd<'_>;

    /// Whether somebody has stopped it, as `SIGSTOP` does to a process: its guest hears nothing then.
    fn is_stopped(&self) -> bool;

    /// Ends the VM at once. Does nothing if it is gone already.
    fn kill(&mut self);

    /// Waits until the VM is gone and says how it ended: `None` for a clean end or one that
    /// [`Vm::kill`] caused, else what went wrong.
    ///
    /// # Errors
    /// Those of `waitpid(2)`.
    fn wait(&mut self) -> io::Result<Option<Failed>>;
}

/// What went wrong with a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// For people.
    pub what: String,
    /// What to do about it, if that is known.
    pub advice: Option<String>,
}

impl Failed {
    /// A disk of the host is full.
    fn no_room() -> Self {
        Self {
            what: "The machine was stopped: the disk of the host that it writes to is full"
                .to_owned(),
            advice: Some(
                "make room on that disk, or name a directory on another with --root".to_owned(),
            ),
        }
    }
}

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A step on the host failed.
    #[error("Cannot {doing}")]
    Host {
        /// The step, as in "start qemu-system-x86_64".
        doing: String,
        /// Why.
        source: io::Error,
    },
}

/// What confines a machine that is a process, for people: the layers that this host does not permit are named.
///
/// # Errors
/// It cannot be confined, and what to do.
fn confined_process() -> Result<String, String> {
    let missing = sandbox::probe().map_err(|error| Report::of(&error).causes.join(": "))?;
    let least = missing.iter().find(|missing| missing.layer.is_minimum());
    if let Some(missing) = least {
        return Err(format!(
            "its process cannot be confined; {}, or choose --sandbox weak",
            missing.remedy()
        ));
    }
    let names: Vec<String> = missing
        .iter()
        .map(|missing| missing.layer.to_string())
        .collect();
    Ok(match names.is_empty() {
        true => "a confined process".to_owned(),
        false => format!(
            "a confined process, without what this host does not permit: {}",
            names.join(", ")
        ),
    })
}

/// Name under `/dev` of the virtio block device at `index`: `vda`, `vdb`, …
fn virtio_disk_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index;
    loop {
        letters.push(char::from(b"abcdefghijklmnopqrstuvwxyz"[rest % 26]));
        match rest / 26 {
            0 => break,
            more => rest = more - 1,
        }
    }
    letters.push('d');
    letters.push('v');
    letters.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_numbered_as_linux_does() {
        let names = [0, 1, 25, 26, 27, 701, 702].map(virtio_disk_name);
        assert_eq!(
            names,
            ["vda", "vdb", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"]
        );
    }
}
