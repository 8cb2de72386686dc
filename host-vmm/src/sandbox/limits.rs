//! What a confined process may use up (`setrlimit(2)`).

use std::{fs, io};

use rustix::process::{Resource, Rlimit, setrlimit};

/// Most descriptors.
const FILES: u64 = 1024;

/// Which part of all the process ids of the host one machine may have.
const SHARE: u64 = 4;

/// Process ids of a host that does not say.
const IDS: u64 = 32_768;

/// A resource and how much of it.
pub type Limit = (Resource, u64);

/// How many there are of them.
pub const COUNT: usize = 7;

/// What a process needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Processes and threads at a time.
    pub processes: u64,
    /// Private memory of each process in bytes.
    pub private: u64,
    /// The longest file that it may write, in bytes, be that in memory.
    pub file: u64,
}

/// The limits of a process that needs so much, and never so many processes that the host has none left for others.
pub fn of(needs: Needs) -> [Limit; COUNT] {
    [
        // A core would hold the guest's memory, in a place that nobody expects it in.
        (Resource::Core, 0),
        (Resource::Nofile, FILES),
        (Resource::Nproc, needs.processes.min(share_of_ids())),
        (Resource::Msgqueue, 0),
        (Resource::Memlock, 0),
        (Resource::Data, needs.private),
        (Resource::Fsize, needs.file),
    ]
}

fn share_of_ids() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let ids = text.and_then(|text| text.trim().parse::<u64>().ok());
    ids.unwrap_or(IDS) / SHARE
}

/// Takes them for good. Allocates nothing.
///
/// # Errors
/// A limit that is above the one there is.
pub fn enter(limits: &[Limit]) -> io::Result<()> {
    for &(resource, amount) in limits {
        let maximum = rustix::process::getrlimit(resource).maximum;
        // Never more than there was.
        let amount = Some(maximum.map_or(amount, |maximum| maximum.min(amount)));
        let limit = Rlimit {
            current: amount,
            maximum: amount,
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}
