//! OCI images in a layout directory, or in an archive of one (OCI image-spec 1.1, `image-layout.md`).
//!
//! Nothing in a package is believed: every blob is read once, into the spool or into memory, checked against its digest
//! and size, and only then looked at. Nothing is unpacked onto the host's file system.

mod blob;
mod compression;
mod manifest;
mod package;
mod write;

pub use blob::{BadDigest, Digest};
pub use manifest::{Description, Layer};
pub use package::Package;
pub use write::{Content, Layout, write};

use std::io;
use std::path::PathBuf;

use crate::tarball;

/// The largest index, manifest or configuration that is read, in bytes. Registries accept 4 MiB.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package cannot be opened or read.
    #[error("Cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it holds cannot be put aside to work on.
    #[error("Cannot put what is in it aside, to work on it")]
    Spool(#[source] io::Error),
    /// It cannot be decompressed.
    #[error("The archive cannot be decompressed: it is cut off or damaged; copy or make it again")]
    Unpack(#[source] io::Error),
    /// It is no archive.
    #[error(
        "It is neither an OCI layout directory nor a tar archive; give one that docker save made, or one of a root file \
         system"
    )]
    NotAnArchive(#[source] tarball::Error),
    /// It is compressed in a way that we do not know.
    #[error(
        "The archive is compressed with {with}, which is not read here: unpack it first, with {with} -d"
    )]
    Compression {
        /// By which program.
        with: &'static str,
    },
    /// It was an archive.
    #[error("The archive is cut off or damaged; copy or make it again")]
    Archive(#[source] tarball::Error),
    /// It is something else.
    #[error("It is no image: {reason}")]
    NotAnImage {
        /// What is missing, and what to give instead.
        reason: &'static str,
    },
    /// One of its documents is malformed.
    #[error("The image's {what} is malformed; save or copy the image again")]
    Document {
        /// Which one.
        what: &'static str,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// One of its documents contradicts itself or another one.
    #[error("The image's {what} is not usable: {reason}")]
    Unusable {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A blob that is referred to.
    #[error("Cannot use blob {digest}")]
    Blob {
        /// Its digest.
        digest: String,
        /// What is wrong with it.
        source: BlobError,
    },
    /// None of the images is for this machine.
    #[error(
        "There is no image for linux/amd64 in it, only for {}; pull the image with --platform linux/amd64 and save it again",
        .found.join(", ")
    )]
    Platform {
        /// What there is instead.
        found: Vec<String>,
    },
}

/// Why a blob is not usable.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is none of this digest.
    #[error("It is missing: the image is incomplete; save or copy it again")]
    Missing,
    /// It cannot be read.
    #[error("Cannot read it")]
    Read(#[source] io::Error),
    /// It is shorter or longer than it should be.
    #[error(
        "It has {found} bytes instead of {expected}: it is cut off or damaged; save or copy the image again"
    )]
    Size {
        /// What was announced.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Its content is not what was announced.
    #[error("Its content does not have this digest: it is damaged; save or copy the image again")]
    Digest,
    /// Its content, unpacked, is not what was announced.
    #[error(
        "Unpacked, its content does not have the digest {expected} of the image's configuration: whoever made the image \
         made it wrong"
    )]
    DiffId {
        /// What was announced.
        expected: String,
    },
    /// It cannot be put aside to work on.
    #[error("Cannot put it aside, to work on it")]
    Spool(#[source] io::Error),
    /// It cannot be decompressed.
    #[error("Cannot decompress it: whoever made the image made it wrong")]
    Unpack(#[source] io::Error),
    /// It is a document too large to be one.
    #[error("It is a document of {size} bytes; at most {MAX_DOCUMENT} are read")]
    TooLarge {
        /// Its size.
        size: u64,
    },
}

#[cfg(test)]
mod tests;
