//! Writes an image as an OCI layout directory.

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::Digest;
use crate::atomic;

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
    let store = |media_type: &str, bytes: &[u8]| -> io::Result<Value> {
        let digest = Digest::of(bytes);
        atomic::write(&blobs.join(digest.hex()), bytes)?;
        Ok(json!({
            "mediaType": media_type,
            "digest": digest.to_string(),
            "size": bytes.len(),
        }))
    };
    let layer = store("application/vnd.oci.image.layer.v1.tar", &content.layer)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": content.config,
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&content.layer).to_string()] },
    });
    let config = store(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    )?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config,
        "layers": [layer],
    });
    let manifest = manifest.to_string();
    let digest = Digest::of(manifest.as_bytes());
    let mut descriptor = store(manifest_type, manifest.as_bytes())?;
    descriptor["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    descriptor["annotations"] = json!({ "io.containerd.image.name": content.name });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    });
    atomic::write(
        &directory.join("oci-layout"),
        json!({ "imageLayoutVersion": "1.0.0" })
            .to_string()
            .as_bytes(),
    )?;
    atomic::write(&directory.join("index.json"), index.to_string().as_bytes())?;
    Ok(Layout { digest })
}
