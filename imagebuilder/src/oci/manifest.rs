//! From the index of a layout to the images in it that are for this machine.

use std::collections::HashMap;

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, OciLayout, Os, Platform,
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::write::Documents;
use super::{Digest, Error, Package};

/// How deep an index may lie in another one.
const MAX_DEPTH: u32 = 3;

/// How many indexes and manifests are looked at.
const MAX_DOCUMENTS: usize = 1000;

/// As many layers as an overlay of them could have.
const MAX_LAYERS: usize = 500;

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Where programs are looked for in a root file system that comes without a configuration.
const ROOT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Annotations of an index that name an image: containerd's and Docker's completely, the specification's perhaps by a
/// tag alone.
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image as its manifest and configuration describe it.
#[derive(Debug, Clone)]
pub struct Description {
    /// What the index calls it.
    pub names: Vec<String>,
    /// The digest of its manifest, by which it is known.
    pub digest: Digest,
    /// Its configuration, as it was written.
    pub raw_config: Vec<u8>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// A layer as the manifest and the configuration describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob, in bytes.
    pub size: u64,
    /// The digest of its uncompressed content.
    pub diff_id: Digest,
}

impl Package {
    /// The images in it for linux/amd64, each once, in the order of the index.
    ///
    /// # Errors
    /// The package is neither an OCI layout nor a root file system, a document is missing, damaged or contradictory, or none of its images fits.
    pub fn images(&self) -> Result<Vec<Description>, Error> {
        if let Some(layer) = self.root_file_system() {
            return Ok(vec![describe_root(layer)?]);
        }
        self.check_layout()?;
        let index = self.document("index.json")?;
        let index = index.ok_or(Error::NotAnImage {
            reason: "it has no index.json: it is incomplete; save or copy it again",
        })?;
        let index: ImageIndex = parse("index.json", &index)?;
        let mut search = Search {
            package: self,
            images: Vec::new(),
            positions: HashMap::new(),
            others: Vec::new(),
            documents: 0,
        };
        for descriptor in index.manifests() {
            search.visit(descriptor, &names(descriptor), MAX_DEPTH)?;
        }
        if !search.images.is_empty() {
            return Ok(search.images);
        }
        search.others.sort();
        search.others.dedup();
        search.others.truncate(20);
        match search.others.is_empty() {
            true => Err(Error::NotAnImage {
                reason: "its index names no image; save one into it",
            }),
            false => Err(Error::Platform {
                found: search.others,
            }),
        }
    }

    fn check_layout(&self) -> Result<(), Error> {
        let Some(layout) = self.document("oci-layout")? else {
            let reason = match self.is_old_docker_archive() {
                true => {
                    "it is in the format of Docker before version 25; save it with a newer one, or copy it with `skopeo copy docker-archive:FILE oci-archive:FILE`"
                }
                false => {
                    "it has no oci-layout file; give what docker save made, or an archive of a root file system"
                }
            };
            return Err(Error::NotAnImage { reason });
        };
        let layout: OciLayout = parse("oci-layout", &layout)?;
        match layout.image_layout_version().starts_with("1.") {
            true => Ok(()),
            false => Err(Error::Unusable {
                what: "oci-layout",
                reason: "it is of another version than 1",
            }),
        }
    }
}

struct Search<'a> {
    package: &'a Package,
    images: Vec<Description>,
    /// Where in `images` each manifest is.
    positions: HashMap<Digest, usize>,
    /// Platforms that were met and are not ours.
    others: Vec<String>,
    documents: usize,
}

impl Search<'_> {
    fn visit(
        &mut self,
        descriptor: &Descriptor,
        names: &[String],
        depth: u32,
    ) -> Result<(), Error> {
        let media_type = descriptor.media_type().to_string();
        let is_index = INDEXES.contains(&media_type.as_str());
        if !is_index && !MANIFESTS.contains(&media_type.as_str()) {
            return Ok(());
        }
        if let Some(platform) = descriptor.platform()
            && !is_ours(platform.os(), platform.architecture())
        {
            self.others.extend(describe(platform));
            return Ok(());
        }
        let digest = digest_of("index", descriptor)?;
        if let Some(&position) = self.positions.get(&digest) {
            let known = &mut self.images[position].names;
            known.extend(
                names
                    .iter()
                    .filter(|name| !known.contains(name))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
            return Ok(());
        }
        self.documents += 1;
        if self.documents > MAX_DOCUMENTS || (is_index && depth == 0) {
            return Err(Error::Unusable {
                what: "index",
                reason: "it names too many others",
            });
        }
        let bytes = self.package.blob_document(&digest, descriptor.size())?;
        if is_index {
            let index: ImageIndex = parse("index", &bytes)?;
            for descriptor in index.manifests() {
                self.visit(descriptor, names, depth - 1)?;
            }
            return Ok(());
        }
        let manifest: ImageManifest = parse("manifest", &bytes)?;
        let config_type = manifest.config().media_type().to_string();
        if !CONFIGS.contains(&config_type.as_str()) {
            // A signature, an attestation, a chart: something that is stored like an image.
            return Ok(());
        }
        if let Some(image) = self.image(digest.clone(), &manifest, names)? {
            self.positions.insert(digest, self.images.len());
            self.images.push(image);
        }
        Ok(())
    }

    fn image(
        &mut self,
        digest: Digest,
        manifest: &ImageManifest,
        names: &[String],
    ) -> Result<Option<Description>, Error> {
        let config_digest = digest_of("manifest", manifest.config())?;
        let raw_config = self
            .package
            .blob_document(&config_digest, manifest.config().size())?;
        let config: ImageConfiguration = parse("configuration", &raw_config)?;
        if !is_ours(config.os(), config.architecture()) {
            let (os, architecture) = (config.os(), config.architecture());
            self.others.push(format!("{os}/{architecture}"));
            return Ok(None);
        }
        let diff_ids = config.rootfs().diff_ids();
        let layers = manifest.layers();
        if layers.len() != diff_ids.len() {
            return Err(Error::Unusable {
                what: "configuration",
                reason: "it lists another number of layers than the manifest",
            });
        }
        if layers.len() > MAX_LAYERS {
            return Err(Error::Unusable {
                what: "manifest",
                reason: "it lists more than 500 layers",
            });
        }
        let layers: Result<Vec<Layer>, Error> = layers
            .iter()
            .zip(diff_ids)
            .map(|(descriptor, diff_id)| {
                Ok(Layer {
                    digest: digest_of("manifest", descriptor)?,
                    size: descriptor.size(),
                    diff_id: diff_id.parse().map_err(|_| bad_digest("configuration"))?,
                })
            })
            .collect();
        Ok(Some(Description {
            names: names.to_vec(),
            digest,
            layers: layers?,
            config,
            raw_config,
        }))
    }
}

/// An image of nothing but a root file system: it has no name, and runs a shell unless it is told something else.
fn describe_root(layer: Layer) -> Result<Description, Error> {
    let config = json!({ "Env": [ROOT_PATH], "Cmd": ["/bin/sh"] });
    let documents = Documents::new(&config, &layer.diff_id, layer.size);
    Ok(Description {
        names: Vec::new(),
        digest: Digest::of(documents.manifest.as_bytes()),
        config: parse("configuration", documents.config.as_bytes())?,
        raw_config: documents.config.into_bytes(),
        layers: vec![layer],
    })
}

fn is_ours(os: &Os, architecture: &Arch) -> bool {
    *os == Os::Linux && *architecture == Arch::Amd64
}

/// The platform for a message; attestations have one that is unknown.
fn describe(platform: &Platform) -> Option<String> {
    let (os, architecture) = (platform.os(), platform.architecture());
    (os.to_string() != "unknown").then(|| format!("{os}/{architecture}"))
}

fn names(descriptor: &Descriptor) -> Vec<String> {
    let Some(annotations) = descriptor.annotations() else {
        return Vec::new();
    };
    match (annotations.get(NAME), annotations.get(REF_NAME)) {
        (Some(name), _) => vec![name.clone()],
        // A tag alone does not say of what.
        (None, Some(name)) if name.contains([':', '/']) => vec![name.clone()],
        _ => Vec::new(),
    }
}

fn digest_of(what: &'static str, descriptor: &Descriptor) -> Result<Digest, Error> {
    let digest = descriptor.digest().to_string().parse();
    digest.map_err(|_| bad_digest(what))
}

fn bad_digest(what: &'static str) -> Error {
    Error::Unusable {
        what,
        reason: "a digest in it is not sha256: and 64 hexadecimal digits",
    }
}

fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Document { what, source })
}
