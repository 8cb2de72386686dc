//! What a confined process may use up (`setrlimit(2)`).

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Most descriptors.
const FILES: u64 = 1024;

/// A resource and how much of it.
pub type Limit = (Resource, u64);

/// The limits of a process that may have so many `processes`.
pub fn of(processes: u64) -> [Limit; 5] {
    [
        // A core would hold the guest's memory, in a place that nobody expects it in.
        (Resource::Core, 0),
        (Resource::Nofile, FILES),
        (Resource::Nproc, processes),
        (Resource::Msgqueue, 0),
        (Resource::Memlock, 0),
    ]
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
