//! OCI layouts for tests, right in all but what a test changes.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use super::Layer;
use crate::oci::Digest;

/// `bytes` as gzip has them.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `bytes` as zstd has them.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// The files of a layout.
#[derive(Debug, Clone)]
pub struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
}

impl Layout {
    /// A layout without images.
    pub fn new() -> Self {
        let layout = json!({ "imageLayoutVersion": "1.0.0" });
        Self {
            files: vec![("oci-layout".into(), layout.to_string().into_bytes())],
            manifests: Vec::new(),
        }
    }

    /// Adds an image for linux/amd64 whose layers are packed by `pack`. It is called `name`, unless that is empty.
    pub fn image(self, name: &str, layers: &[Layer], pack: fn(&[u8]) -> Vec<u8>) -> Self {
        self.image_for("linux", "amd64", name, layers, pack)
    }

    /// Adds an image for any platform.
    pub fn image_for(
        mut self,
        os: &str,
        architecture: &str,
        name: &str,
        layers: &[Layer],
        pack: fn(&[u8]) -> Vec<u8>,
    ) -> Self {
        let bytes: Vec<Vec<u8>> = layers.iter().map(Layer::bytes).collect();
        let diff_ids = bytes.iter().map(|bytes| Digest::of(bytes).to_string());
        let config = json!({
            "os": os,
            "architecture": architecture,
            "created": "2024-02-29T12:00:00Z",
            "config": { "Cmd": ["sh"], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>() },
        });
        let layers: Vec<Value> = bytes
            .iter()
            .map(|bytes| self.blob("application/vnd.oci.image.layer.v1.tar", &pack(bytes)))
            .collect();
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut manifest = self.document("application/vnd.oci.image.manifest.v1+json", &manifest);
        if !name.is_empty() {
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        self.manifests.push(manifest);
        self
    }

    /// Puts all images so far into an index inside the index.
    pub fn nested(mut self) -> Self {
        let manifests = std::mem::take(&mut self.manifests);
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        let index = self.document("application/vnd.oci.image.index.v1+json", &index);
        self.manifests.push(index);
        self
    }

    /// Adds a document as a blob, and gives its descriptor.
    pub fn document(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    /// Adds a blob, and gives its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let path = format!("blobs/sha256/{}", digest.hex());
        self.files.push((path, bytes.to_vec()));
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    /// Adds an entry to the index.
    pub fn indexed(mut self, descriptor: Value) -> Self {
        self.manifests.push(descriptor);
        self
    }

    /// Changes a file, or removes it by giving `None`. The index is `index.json`, and the `number`th blob is `#number`.
    pub fn changed(&self, file: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> Files {
        let mut files = self.files();
        let position = match file.strip_prefix('#') {
            Some(number) => 1 + number.parse::<usize>().unwrap(),
            None => files.0.iter().position(|(path, _)| path == file).unwrap(),
        };
        let (path, bytes) = files.0.remove(position);
        if let Some(bytes) = change(bytes) {
            files.0.insert(position, (path, bytes));
        }
        files
    }

    /// The files as they are.
    pub fn files(&self) -> Files {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let index = ("index.json".to_owned(), index.to_string().into_bytes());
        Files([self.files.as_slice(), &[index]].concat())
    }
}

/// Files by their paths in a layout.
#[derive(Debug, Clone)]
pub struct Files(Vec<(String, Vec<u8>)>);

impl Files {
    /// Writes them to a directory, which is created.
    pub fn write(&self, directory: &Path) {
        for (path, bytes) in &self.0 {
            let path = directory.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// An archive of them.
    pub fn archive(&self) -> Vec<u8> {
        let files = self.0.iter();
        let layer = files.fold(Layer::new(), |layer, (path, bytes)| layer.file(path, bytes));
        layer.bytes()
    }
}
