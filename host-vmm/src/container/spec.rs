//! What a container is: everything that was decided when it was created. Plain data, as it lies on the disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::text::Text;
use crate::{
    boot_files::BootFile,
    sandbox::Sandbox,
    vm::{Accelerator, Mitigations},
};

/// A container as it was asked for, with every default resolved. It does not change after its creation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it was created, in ns since the Unix epoch.
    pub created_ns: u64,
    /// It is removed when it ends.
    pub auto_remove: bool,
    /// What it runs.
    pub process: ProcessSpec,
    /// What it sees around itself.
    pub surroundings: Surroundings,
    /// The machine it runs in.
    pub machine: Machine,
}

/// The container's main process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments, at least one.
    pub args: Vec<Text>,
    /// Environment, as `NAME=value`.
    pub env: Vec<Text>,
    /// Working directory.
    pub cwd: Text,
    /// User, as `--user` takes it.
    pub user: String,
    /// It gets a standard input.
    pub stdin: bool,
    /// It gets a terminal.
    pub terminal: bool,
}

/// What the container sees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Surroundings {
    /// The image as it was asked for.
    pub image: String,
    /// The digest of its manifest.
    pub image_digest: String,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// Host name.
    pub hostname: String,
    /// The root file system cannot be written to.
    pub read_only: bool,
    /// `tmpfs` mounts in order.
    pub tmpfs: Vec<Tmpfs>,
}

/// A `tmpfs` mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where, an absolute path.
    pub target: Text,
    /// `MS_*` of `mount(2)`.
    pub flags: u64,
    /// Further options, as `mount(2)` takes them.
    pub data: String,
}

/// The virtual machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// What runs it.
    pub accelerator: Accelerator,
    /// Kernel.
    pub kernel: BootFile,
    /// Initfs.
    pub initfs: BootFile,
    /// What the kernel does against what its CPU leaks; `None` for what is of use on the accelerator.
    #[serde(default)]
    pub mitigations: Option<Mitigations>,
    /// What confines it, if it is a process.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// What follows on the kernel's command line.
    pub cmdline: String,
    /// Memory in bytes.
    pub memory: u64,
    /// What it may take until the container's process is executed, in s.
    pub start_timeout_s: u32,
    /// Its kernel says all it does, and whoever starts it sees that.
    pub debug_console: bool,
    /// Ceiling on CPU time in thousandths of a CPU. There are as many virtual CPUs as it takes to use it up.
    pub cpu_milli: u32,
}

impl ContainerSpec {
    /// The first twelve digits of the ID, by which it is shown.
    #[must_use]
    pub fn short_id(&self) -> &str {
        short_id(&self.id)
    }
}

impl Machine {
    /// How many virtual CPUs.
    #[must_use]
    pub const fn cpus(&self) -> u32 {
        match self.cpu_milli.div_ceil(1000) {
            0 => 1,
            cpus => cpus,
        }
    }

    /// The ceiling that the guest enforces, in thousandths of a CPU, if its CPUs do not.
    #[must_use]
    pub fn cpu_limit_milli(&self) -> Option<u32> {
        let limited = !self.cpu_milli.is_multiple_of(1000);
        limited.then_some(self.cpu_milli)
    }
}

/// The first twelve digits of an ID.
#[must_use]
pub fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
