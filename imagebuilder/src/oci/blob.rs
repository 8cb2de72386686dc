//! Digests, and reading what has one.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::BlobError;
use crate::reference::is_digest;

/// A sha256 digest, the only kind that images are addressed by in practice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

/// Something that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A digest must be sha256: and 64 hexadecimal digits")]
pub struct BadDigest;

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::new_with_prefix(bytes))
    }

    /// The digest of all that went into `hash`.
    pub(crate) fn from_hash(hash: Sha256) -> Self {
        let hash = hash.finalize();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("sha256:{hex}"))
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        match is_digest(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(BadDigest),
        }
    }
}

/// Reads a blob and takes its digest on the way.
pub(super) struct Verifier<R> {
    source: R,
    hash: Sha256,
}

impl<R: Read> Verifier<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            hash: Sha256::new(),
        }
    }

    /// The digest of what has been read.
    pub(super) fn digest(self) -> Digest {
        Digest::from_hash(self.hash)
    }

    /// Reads what is left, and compares.
    pub(super) fn finish(mut self, expected: &Digest) -> Result<(), BlobError> {
        io::copy(&mut self, &mut io::sink()).map_err(BlobError::Read)?;
        match self.digest() == *expected {
            true => Ok(()),
            false => Err(BlobError::Digest),
        }
    }
}

impl<R: Read> Read for Verifier<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
