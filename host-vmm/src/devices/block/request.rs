//! What a driver asks for (virtio 1.2 §5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::SECTOR;

/// Bytes of a request's header.
pub const HEADER_LEN: usize = 16;

/// Bytes of the identifier that a driver may ask for (§5.2.6.1).
pub const ID_LEN: usize = 20;

/// Bytes of one range to discard or to fill with zeroes.
pub const RANGE_LEN: usize = 16;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read from this byte on.
    Read(u64),
    /// Write from this byte on.
    Write(u64),
    /// Make what was written safe.
    Flush,
    /// Forget the content of ranges, which follow.
    Discard,
    /// Fill ranges, which follow, with zeroes.
    WriteZeroes,
    /// Say which disk this is.
    Id,
    /// Something that we did not offer.
    Unknown,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As asked.
    Ok,
    /// Not: the host's file or the request is to blame.
    Error,
    /// The device does not do such things.
    Unsupported,
}

/// A range of sectors (§5.2.6, `virtio_blk_discard_write_zeroes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRange {
    /// The first byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The space may be given back, too.
    pub unmap: bool,
    /// It has flags that do not exist.
    pub unknown_flags: bool,
}

impl Operation {
    /// Takes a header apart. A sector whose byte no file could have is as far beyond the end as any.
    pub fn parse(header: &[u8; HEADER_LEN]) -> Self {
        let [kind, _] = [0, 4].map(|at| u32_at(header, at));
        let offset = u64_at(header, 8).saturating_mul(SECTOR);
        match kind {
            VIRTIO_BLK_T_IN => Self::Read(offset),
            VIRTIO_BLK_T_OUT => Self::Write(offset),
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_DISCARD => Self::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => Self::WriteZeroes,
            VIRTIO_BLK_T_GET_ID => Self::Id,
            _ => Self::Unknown,
        }
    }
}

impl Status {
    /// As the driver reads it.
    pub fn to_byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::Error => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        // 0 to 2.
        value.to_le_bytes()[0]
    }
}

impl SectorRange {
    /// Takes one apart.
    pub fn parse(bytes: &[u8; RANGE_LEN]) -> Self {
        let flags = u32_at(bytes, 12);
        Self {
            offset: u64_at(bytes, 0).saturating_mul(SECTOR),
            len: u64::from(u32_at(bytes, 8)) * SECTOR,
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            unknown_flags: flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        }
    }
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
