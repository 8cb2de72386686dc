//! System calls that move bytes between descriptors and guest memory without a copy of our own.
//!
//! Guest memory changes while we look at it, so no Rust reference to it may exist: the kernel is handed
//! addresses. This is the only place that does.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::virtqueue::Range;
use crate::vm::memory::GuestMemory;

/// Pieces handed to the kernel in one call. A 64 KiB packet in scattered pages has 17.
const PIECES: usize = 64;

/// Sends up to `len` bytes of `ranges`, after the first `skip`, to a stream socket; returns how many it took.
///
/// Never blocks, and a peer that is gone is an error, not a signal.
///
/// # Errors
/// What `sendmsg` says; [`io::ErrorKind::WouldBlock`] if the socket is full.
pub fn send(
    socket: impl AsFd,
    memory: &GuestMemory,
    ranges: &[Range],
    skip: usize,
    len: usize,
) -> io::Result<usize> {
    let pieces = Pieces::collect(memory, ranges, skip, len, Permissions::Read)?;
    let message = pieces.message();
    // SAFETY: `message` names `pieces.count` elements of `pieces.iovecs`, which live until the call returns; each
    // was taken from a volatile slice of `memory`, which is borrowed for as long. The kernel only reads there.
    let sent = unsafe {
        libc::sendmsg(
            socket.as_fd().as_raw_fd(),
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives up to `len` bytes from a stream socket into `ranges`, after their first `skip` bytes; returns how many
/// came, 0 at the end of the stream. Never blocks.
///
/// # Errors
/// What `recvmsg` says; [`io::ErrorKind::WouldBlock`] if there is nothing now.
pub fn receive(
    socket: impl AsFd,
    memory: &GuestMemory,
    ranges: &[Range],
    skip: usize,
    len: usize,
) -> io::Result<usize> {
    let pieces = Pieces::collect(memory, ranges, skip, len, Permissions::Write)?;
    let mut message = pieces.message();
    // SAFETY: as in `send`; the kernel writes only into the guest memory that the pieces name, which nothing in this
    // process holds a reference to.
    let received = unsafe {
        libc::recvmsg(
            socket.as_fd().as_raw_fd(),
            &raw mut message,
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Reads up to `len` bytes of `file` from `offset` on into `ranges`, after their first `skip` bytes; returns how many
/// there were.
///
/// # Errors
/// Those of `preadv(2)`.
pub fn read_at(
    file: impl AsFd,
    memory: &GuestMemory,
    ranges: &[Range],
    skip: usize,
    len: usize,
    offset: u64,
) -> io::Result<usize> {
    let pieces = Pieces::collect(memory, ranges, skip, len, Permissions::Write)?;
    let offset = libc::off_t::try_from(offset).map_err(outside)?;
    // SAFETY: as in `receive`.
    let read = unsafe {
        libc::preadv(
            file.as_fd().as_raw_fd(),
            pieces.iovecs.as_ptr(),
            pieces.count(),
            offset,
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes up to `len` bytes of `ranges`, after their first `skip`, to `file` from `offset` on; returns how many it took.
///
/// # Errors
/// Those of `pwritev(2)`.
pub fn write_at(
    file: impl AsFd,
    memory: &GuestMemory,
    ranges: &[Range],
    skip: usize,
    len: usize,
    offset: u64,
) -> io::Result<usize> {
    let pieces = Pieces::collect(memory, ranges, skip, len, Permissions::Read)?;
    let offset = libc::off_t::try_from(offset).map_err(outside)?;
    // SAFETY: as in `send`.
    let written = unsafe {
        libc::pwritev(
            file.as_fd().as_raw_fd(),
            pieces.iovecs.as_ptr(),
            pieces.count(),
            offset,
        )
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Copies from `ranges`, after their first `skip` bytes, into `buffer`; returns whether all of it was there.
#[must_use]
pub fn copy_from(memory: &GuestMemory, ranges: &[Range], skip: usize, buffer: &mut [u8]) -> bool {
    let mut done = 0;
    for (address, len) in after(ranges, skip) {
        let count = len.min(buffer.len() - done);
        if memory
            .read_slice(&mut buffer[done..done + count], address)
            .is_err()
        {
            return false;
        }
        done += count;
        if done == buffer.len() {
            break;
        }
    }
    done == buffer.len()
}

/// Copies `data` to the start of `ranges`; returns whether there was room for all of it.
#[must_use]
pub fn copy_to(memory: &GuestMemory, ranges: &[Range], data: &[u8]) -> bool {
    copy_to_at(memory, ranges, 0, data)
}

/// Copies `data` into `ranges` after their first `skip` bytes; returns whether there was room for all of it.
#[must_use]
pub fn copy_to_at(memory: &GuestMemory, ranges: &[Range], skip: usize, data: &[u8]) -> bool {
    let mut done = 0;
    for (address, len) in after(ranges, skip) {
        let count = len.min(data.len() - done);
        if memory
            .write_slice(&data[done..done + count], address)
            .is_err()
        {
            return false;
        }
        done += count;
        if done == data.len() {
            break;
        }
    }
    done == data.len()
}

/// What is left of `ranges` after their first `skip` bytes.
fn after(ranges: &[Range], skip: usize) -> impl Iterator<Item = (GuestAddress, usize)> {
    let mut skip = skip;
    ranges.iter().filter_map(move |range| {
        let len = range.len as usize;
        let cut = skip.min(len);
        skip -= cut;
        // The chain was checked: address + length does not overflow.
        (cut < len).then(|| {
            (
                GuestAddress(range.address.0.saturating_add(cut as u64)),
                len - cut,
            )
        })
    })
}

/// Addresses for the kernel.
struct Pieces {
    iovecs: [libc::iovec; PIECES],
    count: usize,
}

impl Pieces {
    fn collect(
        memory: &GuestMemory,
        ranges: &[Range],
        skip: usize,
        len: usize,
        access: Permissions,
    ) -> io::Result<Self> {
        let mut pieces = Self {
            iovecs: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; PIECES],
            count: 0,
        };
        let mut left = len;
        'ranges: for (address, available) in after(ranges, skip) {
            let slices = memory
                .get_slices(address, available.min(left), access)
                .map_err(outside)?;
            for slice in slices {
                let slice = slice.map_err(outside)?;
                if slice.is_empty() {
                    continue;
                }
                if left == 0 || pieces.count == PIECES {
                    break 'ranges;
                }
                pieces.iovecs[pieces.count] = libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                };
                pieces.count += 1;
                left -= slice.len();
            }
        }
        Ok(pieces)
    }

    /// How many there are, [`PIECES`] at most.
    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.count).unwrap_or(0)
    }

    fn message(&self) -> libc::msghdr {
        // SAFETY: a `msghdr` of zeroes is the empty message: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.iovecs.as_ptr().cast_mut();
        message.msg_iovlen = self.count as _;
        message
    }
}

fn outside<E: std::error::Error + Send + Sync + 'static>(error: E) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
