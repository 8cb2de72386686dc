//! From an OCI package to images in the store.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::change::{Work, disk};
use super::disk::{Names, ROOTFS, Record};
use super::{Error, Image, LayerError, Store};
use crate::ext4;
use crate::oci::{Description, Digest, Package};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::sha256;
use crate::spool::Spool;
use crate::tree::{Limits, Tree};

/// How much an image may unpack to, with the archive around it if that is compressed, in bytes.
const MAX_UNPACKED: u64 = 256 << 30;

/// Layers that lie unpacked in the spool, by the digest of their content.
type Unpacked = HashMap<Digest, Range<u64>>;

impl Store {
    /// Loads the images for this machine in the OCI layout or archive at `path`. They are called what their index says;
    /// `name` replaces that for the only image. An image that is here already, undamaged, is not made
    /// again.
    ///
    /// # Errors
    /// The package or a layer is not usable, or the store cannot be written; it is as it was then.
    pub fn load(
        &self,
        path: &Path,
        name: Option<&str>,
        progress: &Progress,
    ) -> Result<Vec<Image>, Error> {
        let name: Option<Reference> = name.map(str::parse).transpose()?;
        let package_error = |source| Error::Package {
            path: path.to_path_buf(),
            source,
        };
        // Before anything is created: most mistakes are in the path.
        std::fs::metadata(path).map_err(|source| {
            let path = path.to_path_buf();
            package_error(crate::oci::Error::Read { path, source })
        })?;
        let work = self.work()?;
        let mut spool = Spool::new(&work.path, MAX_UNPACKED)
            .map_err(disk("create a temporary file in", &work.path))?;
        let package = Package::open(path, &mut spool).map_err(package_error)?;
        let descriptions = package.images().map_err(package_error)?;
        if name.is_some() && descriptions.len() > 1 {
            return Err(Error::SeveralImages {
                path: path.to_path_buf(),
                count: descriptions.len(),
            });
        }

        let mut unpacked = Unpacked::new();
        let (mut built, mut named) = (Vec::new(), Vec::new());
        for description in &descriptions {
            let names = match &name {
                Some(name) => vec![name.clone()],
                None => names(description),
            };
            if !self.has(&description.digest) {
                let title = match names.first() {
                    Some(name) => name.familiar(),
                    None => description.digest.to_string(),
                };
                let image = Build {
                    title,
                    description,
                    package: &package,
                    progress,
                };
                image.run(&mut spool, &mut unpacked, &work)?;
                built.push(description.digest.clone());
            }
            let digest = &description.digest;
            named.extend(names.into_iter().map(|name| (name, digest.clone())));
        }
        self.publish(&work, &built, &named)?;

        let names = Names::read(&self.names_path())?;
        let mut images = Vec::new();
        for description in &descriptions {
            images.extend(self.image(&description.digest, &names)?);
        }
        Ok(images)
    }

    /// Whether the image is here, as making it would make it. One that is damaged in any way is not.
    fn has(&self, digest: &Digest) -> bool {
        let directory = self.image_path(digest);
        let Ok(Some(record)) = Record::read(&directory) else {
            return false;
        };
        let rootfs = File::open(directory.join(ROOTFS)).and_then(sha256::of_reader);
        record.is_current() && rootfs.is_ok_and(|found| found == record.sha256)
    }
}

/// One image being built.
struct Build<'a> {
    /// What it is called in messages.
    title: String,
    description: &'a Description,
    package: &'a Package,
    progress: &'a Progress,
}

impl Build<'_> {
    /// Makes the image's directory in `work`.
    fn run(self, spool: &mut Spool, unpacked: &mut Unpacked, work: &Work) -> Result<(), Error> {
        let tree = self.tree(spool, unpacked)?;
        let directory = work.path.join(self.description.digest.hex());
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&directory)
            .map_err(disk("create", &directory))?;

        let rootfs = directory.join(ROOTFS);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&rootfs)
            .map_err(disk("create", &rootfs))?;
        let size = ext4::content_size(&tree);
        let what = format!("Writing the root image of {}", self.title);
        let step = self.progress.bytes(what, size);
        let seed = self.description.digest.to_string();
        ext4::write(&tree, spool, &seed, &file, &step).map_err(|source| Error::RootImage {
            image: self.title.clone(),
            source,
        })?;
        // Containers share the file: nobody may write to it.
        file.set_permissions(PermissionsExt::from_mode(0o444))
            .and_then(|()| file.sync_all())
            .map_err(disk("write", &rootfs))?;
        let sha256 = File::open(&rootfs).and_then(sha256::of_reader);
        let sha256 = sha256.map_err(disk("read", &rootfs))?;
        step.finish();

        let config = serde_json::from_slice(&self.description.raw_config);
        let config = config.map_err(|source| Error::Damaged {
            path: directory.clone(),
            source,
        })?;
        Record::new(&self.description.digest, sha256, size, config).write(&directory)
    }

    /// The image's file system, with the content of its files in the spool.
    fn tree(&self, spool: &mut Spool, unpacked: &mut Unpacked) -> Result<Tree, Error> {
        let mut tree = Tree::new(Limits::default());
        let layers = &self.description.layers;
        let count = layers.len();
        for (index, layer) in layers.iter().enumerate() {
            let number = index + 1;
            let failed = |source: LayerError| Error::Layer {
                image: self.title.clone(),
                number,
                count,
                source,
            };
            let range = match unpacked.get(&layer.diff_id) {
                Some(range) => range.clone(),
                None => {
                    let what = format!("Unpacking layer {number} of {count} of {}", self.title);
                    let step = self.progress.bytes(what, layer.size);
                    let range = self
                        .package
                        .layer(layer, spool, &step)
                        .map_err(|source| failed(source.into()))?;
                    step.finish();
                    unpacked.insert(layer.diff_id.clone(), range.clone());
                    range
                }
            };
            tree.apply(spool.file(), range)
                .map_err(|source| failed(source.into()))?;
        }
        Ok(tree)
    }
}

/// The names that the index gives the image, without those that are none.
fn names(description: &Description) -> Vec<Reference> {
    let names = description.names.iter();
    names.filter_map(|name| name.parse().ok()).collect()
}
