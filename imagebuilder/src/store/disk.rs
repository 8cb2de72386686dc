//! The files of a store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;
use super::change::disk;
use crate::atomic;
use crate::ext4;
use crate::oci::Digest;
use crate::reference::Reference;
use crate::sha256;

/// The root file system in an image's directory.
pub(super) const ROOTFS: &str = "rootfs.ext4";

const RECORD: &str = "image.json";

/// The largest file of this kind that is read, in bytes.
const MAX_JSON: u64 = 16 << 20;

/// Which name means which image.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    /// Reads the file; there may be none yet.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        Ok(read_json(path)?.unwrap_or_default())
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        write_json(path, self)
    }

    /// Writes the file, which takes its place when it is committed; `None` if it is there already.
    pub(super) fn prepare(&self, path: &Path) -> Result<Option<atomic::Writer>, Error> {
        json(self)
            .and_then(|bytes| atomic::prepare_update(path, &bytes))
            .map_err(disk("write", path))
    }

    pub(super) fn get(&self, name: &str) -> Option<Digest> {
        self.0.get(name)?.parse().ok()
    }

    pub(super) fn set(&mut self, name: &Reference, digest: &Digest) {
        self.0.insert(name.to_string(), digest.to_string());
    }

    /// Whether there was such a name.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// What the image is called, in the form people write.
    pub(super) fn of(&self, digest: &Digest) -> Vec<String> {
        let digest = digest.to_string();
        let names = self.0.iter().filter(|(_, meant)| **meant == digest);
        names
            .filter_map(|(name, _)| name.parse::<Reference>().ok())
            .map(|name| name.familiar())
            .collect()
    }
}

/// What is written about an image.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// How the root image is laid out: another number can not be booted.
    layout: u32,
    /// What made its bytes.
    writer: String,
    /// The digest of its manifest.
    digest: String,
    /// The SHA-256 of the root image, in hexadecimal digits.
    #[serde(default)]
    pub(super) sha256: String,
    /// The bytes in all its files.
    pub(super) size: u64,
    /// The image's configuration, with all that it has.
    config: serde_json::Value,
}

impl Record {
    pub(super) fn new(
        digest: &Digest,
        sha256: String,
        size: u64,
        config: serde_json::Value,
    ) -> Self {
        Self {
            layout: ext4::LAYOUT,
            writer: ext4::WRITER.to_owned(),
            digest: digest.to_string(),
            sha256,
            size,
            config,
        }
    }

    /// Reads the record in the directory of an image; `None` if there is no such image.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, Error> {
        read_json(&directory.join(RECORD))
    }

    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        write_json(&directory.join(RECORD), self)
    }

    /// Whether containers can boot from the image.
    pub(super) fn is_readable(&self) -> bool {
        self.layout == ext4::LAYOUT && sha256::is_hash(&self.sha256)
    }

    /// Whether making the image again would give the same bytes.
    pub(super) fn is_current(&self) -> bool {
        self.is_readable() && self.writer == ext4::WRITER
    }

    pub(super) fn config(&self, directory: &Path) -> Result<ImageConfiguration, Error> {
        ImageConfiguration::deserialize(&self.config).map_err(|source| Error::Damaged {
            path: directory.join(RECORD),
            source,
        })
    }
}

/// The digests of the images in the directory, sorted.
pub(super) fn digests(directory: &Path) -> Result<Vec<Digest>, Error> {
    let failed = |source| Error::Disk {
        action: "read",
        path: directory.to_path_buf(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut digests = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let digest = name.to_str().map(|hex| format!("sha256:{hex}").parse());
        digests.extend(digest.and_then(Result::ok));
    }
    digests.sort();
    Ok(digests)
}

/// How many bytes the file takes on its disk; `None` if there is none.
pub(super) fn allocated(path: &Path) -> Result<Option<u64>, Error> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.blocks() * 512)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Disk {
            action: "read",
            path: path.to_path_buf(),
            source,
        }),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let failed = |source| Error::Disk {
        action: "read",
        path: path.to_path_buf(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_JSON)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| Error::Damaged {
        path: path.to_path_buf(),
        source,
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    json(value)
        .and_then(|bytes| atomic::update(path, &bytes))
        .map_err(disk("write", path))
}

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}
