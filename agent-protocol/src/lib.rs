//! The frames spoken between `vmm` (the host) and `vminitd` (PID 1 of every VM).
//!
//! The guest dials the host on [`CONTROL_PORT`] over vsock, sends [`GuestFrame::Hello`] and receives
//! exactly one [`HostFrame::Boot`]. From then on both sides send frames as events happen. Bytes of
//! the container's standard streams never travel in frames: each descriptor is a vsock stream of
//! its own to [`STREAM_PORT`], which begins with the 16 bytes of its one-time [`Token`].
//!
//! A stream ends in each direction by itself. The guest ends an output stream when the container has closed its
//! side of it, and takes it for delivered once the host has hung up; [`GuestFrame::Exited`] waits for that. So the
//! host never ends its direction of an output stream before it has read everything, and then closes it. An input
//! stream that the guest closes is one that the container does not read any more.
//!
//! A frame is a little-endian `u32` length followed by that many bytes of
//! [postcard](https://postcard.jamesmunns.com/wire-format). [`frame`] encodes and decodes them with
//! bounds; [`message`] defines what they say. The guest is hostile, so a decoder here refuses, and
//! never panics on, any sequence of bytes.

pub mod frame;
pub mod message;
mod token;

pub use frame::{Decoder, FrameError, encode};
pub use message::*;
pub use token::Token;

/// Version of this protocol, carried in [`Hello`]. Any change to the encoding of any frame raises it.
pub const VERSION: u32 = 1;

/// vsock port on the host (CID 2) that takes the one control connection of a container.
pub const CONTROL_PORT: u32 = 1024;

/// vsock port on the host (CID 2) that takes the container's standard streams.
pub const STREAM_PORT: u32 = 1025;
