//! What reads bytes that others made, each as a function of bytes: a fuzzer looks for those that make it panic, hang or
//! touch memory that is not its own.
//!
//! A target drives the code that runs in the product, with real descriptors, files and guest memory. Where bytes alone would
//! not get far (a checksum, a digest, the order of messages), its input is a list of steps, and it completes them.
//!
//! `make fuzz` runs them. Their seeds in `seeds/` are run by the tests, too.

mod devices;
mod driver;
mod guest;
mod input;
mod targets;

/// Something to be given bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called, and its folder in `seeds/`.
    pub name: &'static str,
    /// Takes any bytes. A panic is a finding.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 18] = [
    target("agent-guest", targets::agent::from_guest),
    target("agent-host", targets::agent::from_host),
    target("balloon", targets::balloon::run),
    target("block", targets::block::run),
    target("boot", targets::boot::run),
    target("bus", targets::bus::run),
    target("config", targets::config::run),
    target("image", targets::image::run),
    target("kernel", targets::kernel::run),
    target("layers", targets::layers::run),
    target("link", targets::link::run),
    target("mmio", targets::mmio::run),
    target("net", targets::net::run),
    target("records", targets::records::run),
    target("reference", targets::reference::run),
    target("rng", targets::rng::run),
    target("vhost-user", targets::vhost_user::run),
    target("vsock", targets::vsock::run),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
