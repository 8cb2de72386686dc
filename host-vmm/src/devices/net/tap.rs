//! A tap interface of the host's: its kernel at the other end of the cable.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
};

use super::{header::HEADER_LEN, link::Link};

/// [`HEADER_LEN`], as the host's kernel takes it.
const HEADER_BYTES: libc::c_int = 12;
const _: () = assert!(HEADER_BYTES as usize == HEADER_LEN);

/// A link that is a tap interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
}

/// Why a descriptor is no link.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is something else, or was opened in another way.
    #[error("Cannot use as a tap interface what is none with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Kind,
    /// The host's kernel refuses.
    #[error("Cannot {doing} of a tap interface")]
    Host {
        /// What, as in "set the length of headers".
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Tap {
    /// A link through `file`: `/dev/net/tun`, attached to an interface by `TUNSETIFF` with `IFF_TAP`, `IFF_NO_PI` and
    /// `IFF_VNET_HDR`, and with no other but perhaps `IFF_ONE_QUEUE`.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn new(file: File) -> Result<Self, TapError> {
        let host = |doing| move |source| TapError::Host { doing, source };
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let others = libc::IFF_TUN | libc::IFF_MULTI_QUEUE;
        if flags(&file)? & (wanted | others) != wanted {
            return Err(TapError::Kind);
        }
        let nonblocking =
            fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags | OFlags::NONBLOCK));
        nonblocking.map_err(|errno| host("change the descriptor")(errno.into()))?;
        let len: libc::c_int = HEADER_BYTES;
        // SAFETY: the request reads one `int`, which outlives the call.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
        done(set).map_err(host("set the length of headers"))?;
        let tap = Self { file };
        tap.leave(0).map_err(host("set the offloads"))?;
        Ok(tap)
    }

    /// Says what the host's kernel may leave to be done on its packets.
    fn leave(&self, undone: libc::c_uint) -> io::Result<()> {
        // SAFETY: the request takes a number, and touches no memory.
        done(unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(undone),
            )
        })
    }
}

/// What kind of interface the descriptor is attached to.
fn flags(file: &File) -> Result<libc::c_int, TapError> {
    // SAFETY: an `ifreq` of zeroes is one with an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one `ifreq`, which outlives the call.
    let got = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    done(got).map_err(|_| TapError::Kind)?;
    // SAFETY: of the union, the request has written the flags; any bits of it are some.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags.cast_unsigned()))
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Link for Tap {
    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
    }

    fn accept(&mut self, features: u64) {
        let mut undone = 0;
        for (feature, offload) in [
            (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        ] {
            if features & 1 << feature != 0 {
                undone |= offload;
            }
        }
        // Segments without checksums there are not (§5.1.3.1).
        if undone & libc::TUN_F_CSUM == 0 {
            undone = 0;
        }
        if let Err(error) = self.leave(undone) {
            // As before, which is less: the guest's packets are only shorter than they could be.
            tracing::warn!("Cannot set the offloads of a tap interface: {error}");
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn has_room(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self.file.write(packet) {
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Err(error),
            // Taken, or lost: an interface that is down or full, or a frame that the host's kernel thinks is none.
            _ => Ok(()),
        }
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.file.read(packet) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => return Ok(Some(count)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    // It was removed; one that is only down has nothing to read.
                    _ => return Err(error),
                },
            }
        }
    }
}
