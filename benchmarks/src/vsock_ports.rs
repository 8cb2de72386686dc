//! What a guest and its host do on which port, for both of them.

/// The guest sends [`BLOCKS`] blocks, and waits until the host hangs up.
pub const TO_HOST: u32 = 5001;

/// The host sends as many, and the guest a byte when it has had them.
pub const FROM_HOST: u32 = 5002;

/// The guest sends each byte back that the host sends.
pub const ROUND_TRIPS: u32 = 5003;

/// Bytes of a block.
pub const BLOCK: usize = 64 << 10;

/// 256 MiB of them.
pub const BLOCKS: usize = 4096;
