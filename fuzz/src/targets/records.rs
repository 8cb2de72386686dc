//! What lies on the disk, and somebody else may have written: records of containers, images and installations.

use std::{fs, path::PathBuf};

use host_vmm::container::{
    spec::ContainerSpec,
    state::{self, State},
};
use imagebuilder::{
    manifest::{Manifest, Origin},
    store::Store,
};

use crate::input::{Input, MemoryFile};

/// An image that the store below has a record of.
const IMAGE: &str = "7777777777777777777777777777777777777777777777777777777777777777";

/// A right record of it.
const RECORD: &str = concat!(
    r#"{"layout":1,"writer":"","digest":"sha256:7777777777777777777777777777777777777777777777777777777777777777","#,
    r#""sha256":"7777777777777777777777777777777777777777777777777777777777777777","size":3,"#,
    r#""config":{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}}"#
);

/// The first byte says what the rest is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let content = input.rest();
    let file = MemoryFile::new(content);
    let path = file.path();
    match kind % 6 {
        0 => drop(state::read::<State>(&path)),
        1 => {
            if let Ok(Some(spec)) = state::read::<ContainerSpec>(&path) {
                let _ = (spec.short_id(), spec.machine.cpus());
                let _ = spec.machine.cpu_limit_milli();
            }
        }
        2 => drop(Manifest::read(&path)),
        3 => drop(Origin::read(&path)),
        4 => with_store("names.json", content),
        _ => with_store(&format!("{IMAGE}/image.json"), content),
    }
}

/// Reads a store one of whose files has this content.
fn with_store(name: &str, content: &[u8]) {
    let root = std::env::temp_dir().join(format!("vmm-fuzz-{}", std::process::id()));
    let images = root.join("images");
    let image = images.join(IMAGE);
    let put = |path: PathBuf, content: &[u8]| fs::write(path, content).expect("a store");
    fs::create_dir_all(&image).expect("a store");
    put(image.join("rootfs.ext4"), b"");
    put(image.join("image.json"), RECORD.as_bytes());
    put(images.join(name), content);
    let store = Store::open_read_only(&root);
    let _ = store.list();
    let _ = store.entries();
    let _ = store.resolve("busybox");
    fs::remove_dir_all(root).expect("a store");
}
