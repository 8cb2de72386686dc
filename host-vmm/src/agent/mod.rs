//! The host's end of the agent protocol: one control connection, and streams that tokens open.

mod control;
mod ports;
mod streams;

pub use control::{Control, ControlError};
pub use ports::{Dialed, Listener};
pub use streams::{Streams, Which};

use crate::devices::vsock::HostPorts;

/// The host's ports for one guest: the device's side, and where the connections arrive.
///
/// # Errors
/// The host is out of descriptors.
pub fn listen() -> std::io::Result<(Box<dyn HostPorts>, Listener)> {
    ports::listen()
}
