//! Who may dial which port of the host.
//!
//! Any process of the guest can dial any port. Only two are served, and each no longer than its purpose lasts: the
//! control port takes the first connection, which comes before the container exists; the port for streams takes as
//! many as there are tokens still to be shown.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, Sender},
    },
};

use agent_protocol::{CONTROL_PORT, STREAM_PORT};
use rustix::event::{EventfdFlags, eventfd};

use crate::devices::vsock::HostPorts;

/// A connection that the guest opened. It does not block.
#[derive(Debug)]
pub enum Dialed {
    /// To the control port.
    Control(UnixStream),
    /// To the port for streams: its token is still to come.
    Stream(UnixStream),
}

/// Where the guest's connections arrive.
#[derive(Debug)]
pub struct Listener {
    dialed: Receiver<Dialed>,
    wake: Arc<OwnedFd>,
    streams: Arc<AtomicU32>,
}

struct Ports {
    dialed: Sender<Dialed>,
    wake: Arc<OwnedFd>,
    control: bool,
    /// Connections to the port for streams that are still taken.
    streams: Arc<AtomicU32>,
}

pub fn listen() -> io::Result<(Box<dyn HostPorts>, Listener)> {
    let (sender, dialed) = mpsc::channel();
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let wake = Arc::new(eventfd(0, flags)?);
    let streams = Arc::new(AtomicU32::new(0));
    let ports = Ports {
        dialed: sender,
        wake: Arc::clone(&wake),
        control: true,
        streams: Arc::clone(&streams),
    };
    let listener = Listener {
        dialed,
        wake,
        streams,
    };
    Ok((Box::new(ports), listener))
}

impl Listener {
    /// Takes so many more connections for streams.
    pub fn expect_streams(&self, count: u32) {
        self.streams.fetch_add(count, Ordering::Relaxed);
    }

    /// The next connection, if there is one.
    pub fn next(&self) -> Option<Dialed> {
        // What comes after this is announced again.
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
        self.dialed.try_recv().ok()
    }
}

impl AsFd for Listener {
    /// Readable when there may be a connection.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Ports {
    /// Whether a connection to `port` is still wanted. One fewer is from then on.
    fn admit(&mut self, port: u32) -> bool {
        match port {
            CONTROL_PORT => std::mem::take(&mut self.control),
            STREAM_PORT => self
                .streams
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok(),
            _ => false,
        }
    }
}

impl HostPorts for Ports {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if !self.admit(port) {
            tracing::debug!(port, "Refused a connection of the guest");
            return None;
        }
        let (device, host) = UnixStream::pair().ok()?;
        host.set_nonblocking(true).ok()?;
        let dialed = match port {
            CONTROL_PORT => Dialed::Control(host),
            _ => Dialed::Stream(host),
        };
        self.dialed.send(dialed).ok()?;
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).ok()?;
        Some(device)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_served_as_often_as_it_is_wanted() {
        let (mut ports, listener) = listen().unwrap();
        assert!(ports.connect(CONTROL_PORT).is_some());
        assert!(ports.connect(CONTROL_PORT).is_none());
        assert!(ports.connect(STREAM_PORT).is_none());
        listener.expect_streams(2);
        assert!(ports.connect(STREAM_PORT).is_some());
        assert!(ports.connect(STREAM_PORT).is_some());
        assert!(ports.connect(STREAM_PORT).is_none());
        for port in (0..3000).filter(|port| *port != CONTROL_PORT && *port != STREAM_PORT) {
            assert!(ports.connect(port).is_none());
        }
        assert!(matches!(listener.next(), Some(Dialed::Control(_))));
        assert!(matches!(listener.next(), Some(Dialed::Stream(_))));
        assert!(matches!(listener.next(), Some(Dialed::Stream(_))));
        assert!(listener.next().is_none());
    }
}
