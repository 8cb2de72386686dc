use super::*;
use crate::progress::Progress;
use crate::spool::Spool;
use crate::testing::{Folder, Layer, Layout, gzip, zstd};
use serde_json::{Value, json};
use std::io::Read;

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn layer() -> Layer {
    let content: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
    Layer::new()
        .directory("bin", 0o755)
        .file("bin/sh", &content)
}

/// Reads everything in the package: what its images are called, and how many bytes they unpack to.
fn read(folder: &Folder, package: &std::path::Path) -> Result<Vec<(Vec<String>, u64)>, String> {
    let chain = |error: Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    };
    let mut spool = Spool::new(folder.path(), 1 << 30).unwrap();
    let package = Package::open(package, &mut spool).map_err(chain)?;
    let step = Progress::silent().step("");
    let mut read = Vec::new();
    for image in package.images().map_err(chain)? {
        let mut size = 0;
        for layer in &image.layers {
            let range = package.layer(layer, &mut spool, &step).map_err(chain)?;
            size += range.end - range.start;
        }
        read.push((image.names, size));
    }
    Ok(read)
}

#[test]
fn directories_and_archives_of_every_compression_are_read() {
    let size = layer().bytes().len() as u64;
    for pack in [plain, gzip, zstd] {
        let folder = Folder::new("oci-forms");
        let layout = Layout::new().image("a:1", &[layer(), layer()], pack);
        let files = layout.files();
        files.write(&folder.path().join("directory"));
        for (name, pack) in [
            ("plain", plain as fn(&[u8]) -> _),
            ("gz", gzip),
            ("zst", zstd),
        ] {
            std::fs::write(folder.path().join(name), pack(&files.archive())).unwrap();
        }
        for name in ["directory", "plain", "gz", "zst"] {
            let read = read(&folder, &folder.path().join(name)).unwrap();
            assert_eq!(read, [(vec!["a:1".to_owned()], 2 * size)], "{name}");
        }
    }
}

#[test]
fn an_archive_may_come_through_a_pipe() {
    let folder = Folder::new("oci-pipe");
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let archive = Layout::new()
        .image("a:1", &[layer()], gzip)
        .files()
        .archive();
    std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&pipe, &archive).unwrap());
        assert_eq!(read(&folder, &pipe).unwrap().len(), 1);
    });
}

#[test]
fn a_pipe_among_the_blobs_is_not_waited_for() {
    let folder = Folder::new("oci-pipe-blob");
    let layout = folder.path().join("layout");
    Layout::new().files().write(&layout);
    std::fs::remove_file(layout.join("index.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        layout.join("index.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let error = read(&folder, &layout).unwrap_err();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn of_several_platforms_ours_is_taken_and_what_is_no_image_is_passed_over() {
    let folder = Folder::new("oci-platforms");
    let mut layout = Layout::new()
        .image_for("linux", "arm64", "a:arm", &[layer()], plain)
        .image("a:amd", &[], plain)
        .nested();
    let signature = json!({
        "schemaVersion": 2,
        "config": layout.document("application/vnd.oci.empty.v1+json", &json!({})),
        "layers": [],
    });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let signature = layout.document(media_type, &signature);
    let mut attestation = layout.document(media_type, &json!({}));
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let other = layout.document("application/json", &json!({}));
    let layout = layout
        .indexed(signature)
        .indexed(attestation)
        .indexed(other);
    let path = folder.path().join("layout");
    layout.files().write(&path);
    // Names come from the outer index; the inner one's are not looked at.
    assert_eq!(read(&folder, &path).unwrap(), [(vec![], 0)]);
}

#[test]
fn an_image_under_several_names_is_one_image() {
    let folder = Folder::new("oci-names");
    let path = folder.path().join("layout");
    let layout = Layout::new()
        .image("a:1", &[layer()], plain)
        .image("b:2", &[layer()], plain)
        .image("latest", &[layer()], plain);
    layout.files().write(&path);
    let read = read(&folder, &path).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].0, ["a:1", "b:2"]);
}

#[test]
fn whatever_is_wrong_is_one_error_that_names_it() {
    type Change = fn(Vec<u8>) -> Option<Vec<u8>>;
    // Blobs: 0 the layer, 1 the configuration, 2 the manifest.
    let layout = Layout::new().image("a:1", &[layer()], gzip);
    let rows: [(&str, Change, &str); 12] = [
        ("oci-layout", |_| None, "no oci-layout file"),
        (
            "oci-layout",
            |_| Some(b"{}".into()),
            "oci-layout is malformed",
        ),
        (
            "oci-layout",
            |_| Some(b"{\"imageLayoutVersion\":\"2\"}".into()),
            "another version",
        ),
        ("index.json", |_| None, "no index.json"),
        (
            "index.json",
            |_| Some(b"{".into()),
            "index.json is malformed",
        ),
        (
            "index.json",
            |_| Some(b"{\"schemaVersion\":2,\"manifests\":[]}".into()),
            "names no image",
        ),
        ("index.json", |_| Some(vec![b' '; 5 << 20]), "too large"),
        ("#0", |_| None, "It is missing"),
        (
            "#0",
            |bytes| Some(bytes[..bytes.len() - 1].to_vec()),
            "cut off or damaged",
        ),
        (
            "#0",
            |mut bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                Some(bytes)
            },
            "does not have this digest",
        ),
        ("#1", |_| None, "It is missing"),
        (
            "#2",
            |mut bytes| {
                bytes[0] = b'[';
                Some(bytes)
            },
            "does not have this digest",
        ),
    ];
    for (number, (file, change, reason)) in rows.into_iter().enumerate() {
        let folder = Folder::new("oci-wrong");
        let files = layout.changed(file, change);
        let directory = folder.path().join("directory");
        files.write(&directory);
        let archive = folder.path().join("archive");
        std::fs::write(&archive, files.archive()).unwrap();
        for package in [directory, archive] {
            let error = read(&folder, &package).unwrap_err();
            assert!(error.contains(reason), "row {number}: {error}");
        }
    }
}

/// A layout of one image, with its configuration and manifest changed.
fn contradictory(config: fn(&mut Value), manifest: fn(&mut Value)) -> Layout {
    let mut layout = Layout::new();
    let bytes = layer().bytes();
    let mut document = json!({
        "os": "linux",
        "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&bytes).to_string()] },
    });
    config(&mut document);
    let config = layout.document("application/vnd.oci.image.config.v1+json", &document);
    let blob = layout.blob("application/vnd.oci.image.layer.v1.tar", &bytes);
    let mut document = json!({ "schemaVersion": 2, "config": config, "layers": [blob] });
    manifest(&mut document);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = layout.document(media_type, &document);
    layout.indexed(descriptor)
}

#[test]
fn documents_that_contradict_each_other_are_refused() {
    type Change = fn(&mut Value);
    let unchanged: Change = |_| ();
    let rows: [(Change, Change, &str); 7] = [
        (
            |config| config["rootfs"]["diff_ids"] = json!([]),
            unchanged,
            "another number of layers",
        ),
        (
            |config| config["rootfs"]["diff_ids"][0] = json!(Digest::of(b"").to_string()),
            unchanged,
            "digest sha256:e3b0c442",
        ),
        (
            |config| config["rootfs"]["diff_ids"][0] = json!("md5:abc"),
            unchanged,
            "a digest in it",
        ),
        (
            |config| config["architecture"] = json!("riscv64"),
            unchanged,
            "only for linux/riscv64",
        ),
        (
            unchanged,
            |manifest| manifest["layers"][0]["digest"] = json!("sha512:abc"),
            "malformed",
        ),
        (
            unchanged,
            |manifest| manifest["layers"][0]["size"] = json!(u64::MAX),
            "cut off or damaged",
        ),
        (
            unchanged,
            |manifest| manifest["config"]["size"] = json!(u64::MAX),
            "document of 18446744073709551615 bytes",
        ),
    ];
    for (number, (config, manifest, reason)) in rows.into_iter().enumerate() {
        let folder = Folder::new("oci-contradictory");
        let path = folder.path().join("layout");
        contradictory(config, manifest).files().write(&path);
        let error = read(&folder, &path).unwrap_err();
        assert!(error.contains(reason), "row {number}: {error}");
    }
}

#[test]
fn what_is_no_layout_at_all_is_told_apart() {
    let folder = Folder::new("oci-not");
    let files = Layer::new().file("photos/1", b"").file("photos/2", b"");
    let docker = Layer::new().file("manifest.json", b"[]");
    let rows = [
        (
            "text",
            b"FROM busybox\n".repeat(100),
            "neither an OCI layout",
        ),
        ("files", files.bytes(), "no oci-layout file"),
        ("docker", docker.bytes(), "before version 25"),
        ("empty", Vec::new(), "it is empty"),
        (
            "cut",
            gzip(&files.bytes())[..20].to_vec(),
            "cut off or damaged",
        ),
    ];
    for (name, bytes, reason) in rows {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read(&folder, &path).unwrap_err();
        assert!(error.contains(reason), "{name}: {error}");
    }
    let error = read(&folder, &folder.path().join("missing")).unwrap_err();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_root_file_system_is_an_image_of_one_layer() {
    let folder = Folder::new("oci-root");
    let root = Layer::new()
        .directory("./", 0o755)
        .directory("./bin", 0o755)
        .file("./bin/sh", b"shell")
        .file("./index.json", b"not that of a layout");
    let digests = ["plain", "gz", "zst"].map(|name| {
        let pack = match name {
            "gz" => gzip,
            "zst" => zstd,
            _ => plain,
        };
        let path = folder.path().join(name);
        std::fs::write(&path, pack(&root.bytes())).unwrap();
        let size = root.bytes().len() as u64;
        assert_eq!(read(&folder, &path).unwrap(), [(vec![], size)]);
        let mut spool = Spool::new(folder.path(), 1 << 20).unwrap();
        let package = Package::open(&path, &mut spool).unwrap();
        let image = package.images().unwrap().remove(0);
        let config = image.config.config().clone().unwrap();
        assert_eq!(config.cmd().clone().unwrap(), ["/bin/sh"]);
        image.digest
    });
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
}

#[test]
fn indexes_within_indexes_end() {
    let folder = Folder::new("oci-nested");
    let path = folder.path().join("layout");
    let layout = (0..5).fold(Layout::new().image("", &[], plain), |layout, _| {
        layout.nested()
    });
    layout.files().write(&path);
    let error = read(&folder, &path).unwrap_err();
    assert!(error.contains("too many"), "{error}");
}

#[test]
fn what_is_written_is_read_back_and_always_the_same() {
    let folder = Folder::new("oci-write");
    let content = Content {
        name: "docker.io/library/a:1".into(),
        layer: layer().bytes(),
        config: json!({ "Cmd": ["sh"] }),
    };
    let digests = ["one", "two"].map(|name| {
        let path = folder.path().join(name);
        let digest = write(&path, &content).unwrap().digest;
        let names = read(&folder, &path).unwrap().remove(0).0;
        assert_eq!(names, ["docker.io/library/a:1"]);
        let mut index = String::new();
        let mut file = std::fs::File::open(path.join("index.json")).unwrap();
        file.read_to_string(&mut index).unwrap();
        (digest, index)
    });
    assert_eq!(digests[0], digests[1]);
}
