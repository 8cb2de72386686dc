//! The images on this machine, ready to boot.
//!
//! Below the store's root, `images/<hex of the manifest's digest>/` holds one image: `rootfs.ext4`, which containers
//! boot from, and `image.json`, which describes it. `images/names.json` says which name means which image.
//!
//! An image appears under its name complete or not at all, and `names.json` is replaced as a whole: readers take no
//! lock. Whoever changes something holds `images/lock` while it does, but not while an image is being built; two that
//! build the same image at once end with one. What a crash leaves has a name that begins with a dot, and goes with the
//! next change.

mod build;
mod change;
mod disk;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

pub use change::Removed;

use crate::manifest::Origin;
use crate::oci::{self, Digest};
use crate::reference::{self, Reference, is_digest, is_hex_id};
use crate::{ext4, tree};
use disk::{Names, Record};

/// A directory of images, and others behind it in which images are only looked up.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    writable: bool,
    behind: Vec<Store>,
}

/// An image that can be booted from.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is called, in the form people write.
    pub names: Vec<String>,
    /// The digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Its root file system: an ext4 image, never to be written to, with the root in [`ext4::ROOT_DIRECTORY`].
    pub rootfs: PathBuf,
    /// The SHA-256 that this should have, in hexadecimal digits.
    pub sha256: String,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// The bytes in all its files.
    pub size: u64,
    /// The bytes that it takes on this disk.
    pub size_on_disk: u64,
    /// Whether it can be removed: not if it came with the installation.
    pub removable: bool,
}

/// What is in the place of an image.
#[derive(Debug)]
pub struct Entry {
    /// Where it is.
    pub directory: PathBuf,
    /// The image, or why it cannot be booted.
    pub image: Result<Image, Error>,
}

impl Image {
    /// When it was made, as an RFC 3339 time, if it says so.
    pub fn created(&self) -> Option<&str> {
        self.config.created().as_deref()
    }

    /// What its root file system was made of.
    pub fn origin(&self) -> Origin {
        let digest = self.digest.strip_prefix("sha256:").unwrap_or(&self.digest);
        let writer = ("writer".to_owned(), ext4::WRITER.to_owned());
        Origin {
            name: self.names.first().unwrap_or(&self.digest).clone(),
            sha256: self.sha256.clone(),
            versions: [writer].into(),
            inputs: vec![Origin {
                name: "manifest".to_owned(),
                sha256: digest.to_owned(),
                ..Origin::default()
            }],
        }
    }

    /// The first twelve digits of its digest.
    pub fn short_id(&self) -> &str {
        let hex = self.digest.strip_prefix("sha256:").unwrap_or(&self.digest);
        hex.get(..12).unwrap_or(hex)
    }
}

/// Why the store cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// A file or directory of the store.
    #[error("Cannot {action} {}", .path.display())]
    Disk {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the store does not hold what the store writes.
    #[error("{} is damaged; remove it, and load the images again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An image was made by a version that laid it out in another way.
    #[error("Image {digest} was made by another version of this program; load it again")]
    Outdated {
        /// Its digest.
        digest: String,
    },
    /// The start of a digest fits several images.
    #[error("{prefix} is the start of several image IDs; give more of it (vmm image ls lists all)")]
    Ambiguous {
        /// What was given.
        prefix: String,
    },
    /// What is to be loaded is no image.
    #[error("Cannot load {}", .path.display())]
    Package {
        /// The archive or directory.
        path: PathBuf,
        /// Why not.
        source: oci::Error,
    },
    /// One name was given for several images.
    #[error("Cannot give {} one name: there are {count} images in it; leave --name out", .path.display())]
    SeveralImages {
        /// The archive or directory.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// A layer of an image is not usable, or there is no room for it.
    #[error("Cannot unpack layer {number} of {count} of image {image}")]
    Layer {
        /// The image.
        image: String,
        /// Which layer, from 1, the lowest first.
        number: usize,
        /// How many it has.
        count: usize,
        /// What is wrong with it.
        source: LayerError,
    },
    /// The root image cannot be made.
    #[error("Cannot make the root image of {image}")]
    RootImage {
        /// The image.
        image: String,
        /// Why not.
        source: ext4::Error,
    },
    /// There is no such image.
    #[error("There is no image {name} (vmm image ls lists all)")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// Somebody else removed the image.
    #[error("Image {digest} was removed while it was being loaded; load it again")]
    Vanished {
        /// Its digest.
        digest: String,
    },
    /// The image came with the installation.
    #[error(
        "Image {name} belongs to the installation, with which alone it goes; load another of this name to hide it"
    )]
    ReadOnly {
        /// What was asked for.
        name: String,
    },
    /// An ID was given for an image with several names.
    #[error("Image {id} has several names; remove them one by one: {}", .names.join(", "))]
    SeveralNames {
        /// What was asked for.
        id: String,
        /// What it is called.
        names: Vec<String>,
    },
    /// Somebody else has held the lock for too long.
    #[error("Another command has been changing {} for {seconds} s; try again when it is done", .path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// What can be wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// With its blob.
    #[error(transparent)]
    Blob(#[from] oci::Error),
    /// With its entries.
    #[error(transparent)]
    Entries(#[from] tree::Error),
}

impl Store {
    /// The store below `root`, for its owner. Nothing is read or created yet.
    pub fn open(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            writable: true,
            behind: Vec::new(),
        }
    }

    /// The store below `root`, to which nothing is ever written, and in which nothing is locked.
    pub fn open_read_only(root: &Path) -> Self {
        Self {
            writable: false,
            ..Self::open(root)
        }
    }

    /// This store, with `other` looked into for what is not found here.
    #[must_use]
    pub fn with_behind(mut self, other: Self) -> Self {
        self.behind.push(other);
        self
    }

    /// The image that `reference` means: a name, a digest, or at least four digits of one. `None` if there is none.
    ///
    /// # Errors
    /// The text is no name, several images fit, or the store cannot be read.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>, Error> {
        let wanted = Wanted::parse(reference)?;
        for store in self.all() {
            if let Some(image) = store.find(&wanted)? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// All images, this store's first, each by its names. A name that an earlier store has is not repeated.
    ///
    /// # Errors
    /// The store cannot be read. Images that were made by another version are left out.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let mut images: Vec<Image> = Vec::new();
        for store in self.all() {
            for mut image in store.own()? {
                let taken = |name: &String| images.iter().any(|other| other.names.contains(name));
                let shadowed = !image.names.is_empty() && image.names.iter().all(taken);
                image.names.retain(|name| !taken(name));
                let known = images.iter().any(|other| other.digest == image.digest);
                let repeated = known && image.names.is_empty();
                if !(shadowed || repeated) {
                    images.push(image);
                }
            }
        }
        Ok(images)
    }

    /// Every image, this store's first, those included that cannot be booted.
    ///
    /// # Errors
    /// The names cannot be read, or not which images there are.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for store in self.all() {
            let names = Names::read(&store.names_path())?;
            for digest in store.digests()? {
                let directory = store.image_path(&digest);
                let image = store.image(&digest, &names).transpose();
                entries.extend(image.map(|image| Entry { directory, image }));
            }
        }
        Ok(entries)
    }

    fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.behind)
    }

    fn find(&self, wanted: &Wanted) -> Result<Option<Image>, Error> {
        let names = Names::read(&self.names_path())?;
        let digest = match wanted {
            Wanted::Name(reference) => match reference.digest() {
                Some(digest) => digest.parse().ok(),
                None => names.get(&reference.to_string()),
            },
            Wanted::Id(prefix, reference) => match reference.as_ref().map(ToString::to_string) {
                // Something may be called by what looks like an ID.
                Some(name) if names.get(&name).is_some() => names.get(&name),
                _ => self.complete(prefix)?,
            },
        };
        match digest {
            Some(digest) => self.image(&digest, &names),
            None => Ok(None),
        }
    }

    /// The digest of the image here whose digest begins with `prefix`.
    fn complete(&self, prefix: &str) -> Result<Option<Digest>, Error> {
        let mut found = self.digests()?;
        found.retain(|digest| digest.hex().starts_with(prefix));
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(Error::Ambiguous {
                prefix: prefix.to_owned(),
            }),
        }
    }

    fn own(&self) -> Result<Vec<Image>, Error> {
        let names = Names::read(&self.names_path())?;
        let mut images = Vec::new();
        for digest in self.digests()? {
            match self.image(&digest, &names) {
                Ok(image) => images.extend(image),
                Err(Error::Outdated { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_by(|a, b| (&a.names, &a.digest).cmp(&(&b.names, &b.digest)));
        Ok(images)
    }

    /// The image with this digest, unless it is not here, or being removed just now.
    fn image(&self, digest: &Digest, names: &Names) -> Result<Option<Image>, Error> {
        let directory = self.image_path(digest);
        let Some(record) = Record::read(&directory)? else {
            return Ok(None);
        };
        if !record.is_readable() {
            return Err(Error::Outdated {
                digest: digest.to_string(),
            });
        }
        let rootfs = directory.join(disk::ROOTFS);
        let Some(size_on_disk) = disk::allocated(&rootfs)? else {
            return Ok(None);
        };
        Ok(Some(Image {
            names: names.of(digest),
            digest: digest.to_string(),
            sha256: record.sha256.clone(),
            size: record.size,
            config: record.config(&directory)?,
            rootfs,
            size_on_disk,
            removable: self.writable,
        }))
    }

    fn digests(&self) -> Result<Vec<Digest>, Error> {
        disk::digests(&self.images_path())
    }

    fn images_path(&self) -> PathBuf {
        self.root.join("images")
    }

    fn names_path(&self) -> PathBuf {
        self.images_path().join("names.json")
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.images_path().join(digest.hex())
    }
}

/// What somebody asks for.
enum Wanted {
    Name(Reference),
    /// The start of a digest's digits, which may be a name too.
    Id(String, Option<Reference>),
}

impl Wanted {
    fn parse(text: &str) -> Result<Self, Error> {
        if is_digest(text) {
            let hex = text.strip_prefix("sha256:").unwrap_or(text);
            return Ok(Self::Id(hex.to_owned(), None));
        }
        match is_hex_id(text) {
            true => Ok(Self::Id(text.to_owned(), text.parse().ok())),
            false => Ok(Self::Name(text.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests;
