//! One file for each kind of bytes.

pub mod agent;
pub mod balloon;
pub mod block;
pub mod boot;
pub mod bus;
pub mod config;
pub mod image;
pub mod kernel;
pub mod layers;
pub mod link;
pub mod mmio;
pub mod net;
pub mod records;
pub mod reference;
pub mod rng;
pub mod vhost_user;
pub mod vsock;
