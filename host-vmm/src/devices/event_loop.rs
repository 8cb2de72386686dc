//! The event loop that devices share: one epoll, edge-triggered, one thread.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::Errno,
};

/// Events taken from the kernel in one call.
const BATCH: usize = 64;

/// One epoll instance.
#[derive(Debug)]
pub struct EventLoop {
    epoll: Arc<OwnedFd>,
}

/// The right to add descriptors to an [`EventLoop`] on behalf of one owner.
#[derive(Clone, Debug)]
pub struct Registry {
    epoll: Arc<OwnedFd>,
    owner: u32,
}

/// Which changes of a descriptor are reported. Each is reported once, when it happens: whoever is told
/// goes on until the descriptor would block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Data, end of data, or a hang-up.
    Read,
    /// The same, and room to write.
    ReadWrite,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read, be it the end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer is gone for both directions.
    pub hung_up: bool,
}

/// Something happened to a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who registered it.
    pub owner: u32,
    /// Under which token.
    pub token: u32,
    /// What it is ready for.
    pub readiness: Readiness,
}

impl EventLoop {
    /// Creates an empty loop.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
        })
    }

    /// A registry whose events carry `owner`.
    #[must_use]
    pub fn registry(&self, owner: u32) -> Registry {
        Registry {
            epoll: Arc::clone(&self.epoll),
            owner,
        }
    }

    /// Appends what happened to `events`, waiting for something unless `poll` is set.
    ///
    /// # Errors
    /// A defect: the epoll descriptor is not one.
    pub fn wait(&self, poll: bool, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = poll.then_some(Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        });
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        let (ready, _) = match epoll::wait(&*self.epoll, &mut buffer[..], timeout.as_ref()) {
            Ok(ready) => ready,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        events.extend(ready.iter().map(|event| {
            let data = event.data;
            let flags = event.flags;
            let [owner, token] = split(data.u64());
            let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            Event {
                owner,
                token,
                readiness: Readiness {
                    readable: hung_up || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                    writable: hung_up || flags.contains(EventFlags::OUT),
                    hung_up,
                },
            }
        }));
        Ok(())
    }
}

impl AsFd for EventLoop {
    /// Readable when something has happened.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Registry {
    /// Starts watching `source`. What it is ready for already is reported too.
    ///
    /// # Errors
    /// The host's limit of watched descriptors, or a descriptor that cannot be watched.
    pub fn add(&self, source: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(
            &*self.epoll,
            source,
            join(self.owner, token),
            interest.flags(),
        )?)
    }

    /// Changes what is watched; what `source` is ready for at this moment is reported again.
    ///
    /// # Errors
    /// `source` is not watched.
    pub fn modify(&self, source: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &*self.epoll,
            source,
            join(self.owner, token),
            interest.flags(),
        )?)
    }

    /// Stops watching `source`.
    ///
    /// Needed before closing a descriptor that others hold too: the watch would outlive ours.
    pub fn remove(&self, source: impl AsFd) {
        // The only failure is that it was not watched.
        let _ = epoll::delete(&*self.epoll, source);
    }
}

impl Interest {
    fn flags(self) -> EventFlags {
        let read = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        match self {
            Self::Read => read,
            Self::ReadWrite => read | EventFlags::OUT,
        }
    }
}

fn join(owner: u32, token: u32) -> EventData {
    EventData::new_u64(u64::from(owner) << 32 | u64::from(token))
}

fn split(data: u64) -> [u32; 2] {
    let bytes = data.to_be_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn reports_each_change_once_with_owner_and_token() {
        let events = EventLoop::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        events
            .registry(7)
            .add(&ours, u32::MAX, Interest::Read)
            .unwrap();
        let mut seen = Vec::new();
        events.wait(true, &mut seen).unwrap();
        assert!(seen.is_empty());
        theirs.write_all(b"x").unwrap();
        events.wait(false, &mut seen).unwrap();
        events.wait(true, &mut seen).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].owner, seen[0].token), (7, u32::MAX));
        assert!(seen[0].readiness.readable && !seen[0].readiness.hung_up);
        drop(theirs);
        seen.clear();
        events.wait(false, &mut seen).unwrap();
        assert!(seen[0].readiness.hung_up);
    }
}
