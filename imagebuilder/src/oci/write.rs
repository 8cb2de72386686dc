//! Writes an image as an OCI layout directory.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::Digest;
use crate::atomic;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What is in an image of one layer.
#[derive(Debug, Clone)]
pub struct Content {
    /// What it is called, completely.
    pub name: String,
    /// The layer's archive, uncompressed.
    pub layer: Vec<u8>,
    /// The `config` object of the image configuration: `Env`, `Cmd` and so on.
    pub config: Value,
}

/// A written layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The digest of the image's manifest.
    pub digest: Digest,
}

/// Writes an image for linux/amd64 to `directory`, which is created. The same content gives the same bytes.
///
/// # Errors
/// Those of creating directories and files.
pub fn write(directory: &Path, content: &Content) -> io::Result<Layout> {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let documents = Documents::new(
        &content.config,
        &Digest::of(&content.layer),
        content.layer.len() as u64,
    );
    let (config, manifest) = (documents.config.as_bytes(), documents.manifest.as_bytes());
    for blob in [&content.layer, config, manifest] {
        atomic::update(&blobs.join(Digest::of(blob).hex()), blob)?;
    }
    let digest = Digest::of(manifest);
    let mut descriptor = descriptor(MANIFEST, &digest, manifest.len() as u64);
    descriptor["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    descriptor["annotations"] = json!({ "io.containerd.image.name": content.name });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor] });
    let layout = json!({ "imageLayoutVersion": "1.0.0" });
    for (name, document) in [("oci-layout", layout), ("index.json", index)] {
        atomic::update(&directory.join(name), document.to_string().as_bytes())?;
    }
    Ok(Layout { digest })
}

/// The documents of an image for linux/amd64 with one layer that is not compressed.
pub(super) struct Documents {
    pub(super) config: String,
    pub(super) manifest: String,
}

impl Documents {
    /// For the layer with this digest and size, and what the `config` object says.
    pub(super) fn new(config: &Value, layer: &Digest, size: u64) -> Self {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [layer.to_string()] },
        });
        let config = config.to_string();
        let config_digest = Digest::of(config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config_digest, config.len() as u64),
            "layers": [descriptor(LAYER, layer, size)],
        });
        Self {
            config,
            manifest: manifest.to_string(),
        }
    }
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}
