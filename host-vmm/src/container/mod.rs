//! Containers: what one is, what lies on the disk, the process that runs it, and the command that waits for it.

mod attach;
mod boot;
mod channel;
pub mod directory;
mod failure;
mod limits;
mod names;
pub mod request;
pub mod spec;
pub mod state;
pub mod store;
pub mod supervisor;
mod sweep;
mod text;
pub mod timeline;

pub use attach::{Attached, Foreground, Logging, start};
pub use channel::{Channel, Ending};
pub use failure::FAILED;
pub use store::{Containers, StoreError};
pub use text::Text;
