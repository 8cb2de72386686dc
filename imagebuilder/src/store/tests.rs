use super::*;
use crate::progress::Progress;
use crate::sha256;
use crate::testing::{Files, Folder, Layer, Layout, e2fsck, gzip, tool_output};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Barrier;

fn layer(content: &[u8]) -> Layer {
    Layer::new()
        .directory("bin", 0o755)
        .file_with_mode("bin/sh", content, 0o4755)
        .symlink("sh", "bin/sh")
}

/// A layout of one image in the folder.
fn package(folder: &Folder, directory: &str, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join(directory);
    let layout = Layout::new().image(name, &[layer(content)], gzip);
    layout.files().write(&path);
    path
}

fn load(store: &Store, package: &Path, name: Option<&str>) -> Result<Vec<Image>, Error> {
    store.load(package, name, &Progress::silent())
}

/// All messages of an error, as the user sees them.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// What is in the store's directory, but for the lock and the names.
fn leftovers(store: &Store) -> Vec<String> {
    let images = store.images_path();
    let entries = std::fs::read_dir(images).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name != "lock" && name != "names.json")
        .collect()
}

#[test]
fn a_loaded_image_is_found_by_every_name_it_has() {
    let folder = Folder::new("store");
    let store = Store::open(&folder.path().join("root"));
    assert!(store.resolve("a").unwrap().is_none());
    assert!(store.list().unwrap().is_empty());
    assert!(
        !folder.path().join("root").exists(),
        "looking creates nothing"
    );

    let package = package(&folder, "p", "a:1", b"shell");
    let image = load(&store, &package, None).unwrap().remove(0);
    assert_eq!(image.names, ["a:1"]);
    assert_eq!(image.created(), Some("2024-02-29T12:00:00Z"));
    assert_eq!(image.size, 5);
    assert!(image.removable && image.size_on_disk > 0);
    let command = image.config.config().as_ref().unwrap().cmd().clone();
    assert_eq!(command.unwrap(), ["sh"]);
    e2fsck(&image.rootfs);
    let mode = std::fs::metadata(&image.rootfs)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o444);

    let hex = image.digest.strip_prefix("sha256:").unwrap();
    for reference in [
        "a:1",
        "docker.io/library/a:1",
        &image.digest,
        &hex[..12],
        &hex[..4],
        hex,
        image.short_id(),
        &format!("whatever@{}", image.digest),
    ] {
        let found = store.resolve(reference).unwrap();
        assert_eq!(found.unwrap().digest, image.digest, "{reference}");
    }
    for reference in ["a", "a:2", "b:1", "0000", &"0".repeat(64)] {
        assert!(store.resolve(reference).unwrap().is_none(), "{reference}");
    }
    assert!(matches!(store.resolve("A b"), Err(Error::Reference(_))));
}

#[test]
fn loading_again_changes_names_and_not_images() {
    let folder = Folder::new("store-again");
    let store = Store::open(folder.path());
    let package = package(&folder, "p", "a:1", b"shell");
    let first = load(&store, &package, None).unwrap().remove(0);
    let inode = |image: &Image| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&image.rootfs).unwrap().ino()
    };
    let before = inode(&first);
    let second = load(&store, &package, Some("b")).unwrap().remove(0);
    assert_eq!(second.names, ["a:1", "b:latest"]);
    assert_eq!(inode(&second), before);
    assert_eq!(leftovers(&store).len(), 1);

    // A name follows the image that was last loaded under it.
    let other = self::package(&folder, "q", "b", b"other");
    let third = load(&store, &other, Some("b")).unwrap().remove(0);
    assert_ne!(third.digest, first.digest);
    assert_eq!(store.resolve("b").unwrap().unwrap().digest, third.digest);
    assert_eq!(store.resolve("a:1").unwrap().unwrap().names, ["a:1"]);
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn an_image_goes_with_its_last_name() {
    let folder = Folder::new("store-remove");
    let store = Store::open(folder.path());
    let package = package(&folder, "p", "a:1", b"shell");
    load(&store, &package, None).unwrap();
    let image = load(&store, &package, Some("b")).unwrap().remove(0);
    let open = std::fs::File::open(&image.rootfs).unwrap();

    let error = store.remove(image.short_id()).unwrap_err();
    assert!(matches!(&error, Error::SeveralNames { names, .. } if names.len() == 2));
    let removed = store.remove("a:1").unwrap();
    assert_eq!(removed.untagged, ["a:1"]);
    assert_eq!(removed.deleted, None);
    let removed = store.remove(image.short_id()).unwrap();
    assert_eq!(removed.untagged, ["b:latest"]);
    assert_eq!(removed.deleted, Some(image.digest.clone()));
    assert!(leftovers(&store).is_empty());
    assert!(store.list().unwrap().is_empty());
    let error = store.remove("b").unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    // Whoever has it open goes on reading.
    assert!(open.metadata().unwrap().len() > 0);

    // An image without a name is removed by its ID.
    let unnamed = self::package(&folder, "q", "", b"unnamed");
    let image = load(&store, &unnamed, None).unwrap().remove(0);
    assert!(image.names.is_empty());
    let removed = store.remove(image.short_id()).unwrap();
    assert_eq!(removed.deleted, Some(image.digest));
}

#[test]
fn stores_behind_this_one_are_looked_into_and_never_changed() {
    let folder = Folder::new("store-behind");
    let shipped_root = folder.path().join("share");
    let a = package(&folder, "a", "a", b"shipped");
    let b = package(&folder, "b", "b", b"shipped too");
    for package in [&a, &b] {
        load(
            &Store::open(&shipped_root),
            package,
            Some(package.file_name().unwrap().to_str().unwrap()),
        )
        .unwrap();
    }
    let shipped = Store::open_read_only(&shipped_root);
    assert!(matches!(shipped.remove("a"), Err(Error::ReadOnly { .. })));
    let error = chain(&load(&shipped, &a, None).unwrap_err());
    assert!(error.contains("Cannot write to"), "{error}");
    let store = Store::open(&folder.path().join("root")).with_behind(shipped);

    let image = store.resolve("a").unwrap().unwrap();
    assert!(!image.removable);
    assert!(matches!(store.remove("a"), Err(Error::ReadOnly { .. })));
    assert!(store.resolve("a").unwrap().is_some());
    assert!(!folder.path().join("root").exists());

    let own = package(&folder, "own", "a", b"own");
    let own = load(&store, &own, Some("a")).unwrap().remove(0);
    assert_eq!(store.resolve("a").unwrap().unwrap().digest, own.digest);
    let names: Vec<Vec<String>> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|image| image.names)
        .collect();
    assert_eq!(names, [["a:latest"], ["b:latest"]]);
    store.remove("a").unwrap();
    assert_eq!(store.resolve("a").unwrap().unwrap().digest, image.digest);
}

#[test]
fn what_cannot_be_loaded_is_one_error_and_leaves_nothing() {
    let sound = || Layout::new().image("a", &[layer(b"1")], gzip);
    let with = |upper: Layer| {
        Layout::new()
            .image("a:1", &[layer(b"1"), upper], gzip)
            .files()
    };
    let cut = |bytes: Vec<u8>| Some(bytes[..bytes.len() / 2].to_vec());
    let empty = || Layout::new().image("a:1", &[], gzip);
    let rows: Vec<(Files, &str)> = vec![
        (
            sound().changed("#0", cut),
            "Cannot unpack layer 1 of 1 of image sha256:",
        ),
        (
            with(Layer::new().file("a/../../etc/passwd", b"")),
            "Cannot unpack layer 2 of 2 of image a:1: Entry a/../../etc/passwd is not acceptable: Its path leads upwards",
        ),
        (
            with(Layer::new().hardlink("a", "missing")),
            "hard link to something that does not exist",
        ),
        (
            with(Layer::new().device("dev/odd", 'c', 70_000, 1)),
            "Cannot make the root image of a:1: Entry dev/odd cannot be stored",
        ),
        (
            Layout::new()
                .image_for("linux", "arm64", "a", &[], gzip)
                .files(),
            "only for linux/arm64",
        ),
        (
            empty().changed("index.json", |_| Some(b"[]".to_vec())),
            "malformed",
        ),
    ];
    for (number, (files, reason)) in rows.into_iter().enumerate() {
        let folder = Folder::new("store-bad");
        let store = Store::open(&folder.path().join("root"));
        let path = folder.path().join("package.tar");
        std::fs::write(&path, files.archive()).unwrap();
        let error = chain(&load(&store, &path, None).unwrap_err());
        assert!(error.contains(reason), "row {number}: {error}");
        assert_eq!(leftovers(&store), Vec::<String>::new(), "row {number}");
        assert!(store.list().unwrap().is_empty());
    }
}

#[test]
fn mistakes_in_the_command_are_found_before_anything_is_created() {
    let folder = Folder::new("store-mistakes");
    let store = Store::open(&folder.path().join("root"));
    let missing = folder.path().join("missing.tar");
    let error = chain(&load(&store, &missing, None).unwrap_err());
    assert!(
        error.contains("missing.tar") && error.contains("No such file"),
        "{error}"
    );
    let package = package(&folder, "p", "a", b"");
    assert!(matches!(
        load(&store, &package, Some("A b")),
        Err(Error::Reference(_))
    ));
    assert!(!folder.path().join("root").exists());

    let two = folder.path().join("two");
    let layout =
        Layout::new()
            .image("a:1", &[layer(b"1")], gzip)
            .image("a:2", &[layer(b"2")], gzip);
    layout.files().write(&two);
    let error = load(&store, &two, Some("b")).unwrap_err();
    assert!(matches!(error, Error::SeveralImages { count: 2, .. }));
    assert_eq!(load(&store, &two, None).unwrap().len(), 2);
}

#[test]
fn what_a_crash_left_goes_with_the_next_change_and_the_living_are_spared() {
    let folder = Folder::new("store-crash");
    let store = Store::open(folder.path());
    let images = store.images_path();
    let half = images.join(".work-1-0/0123");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("rootfs.ext4"), b"half").unwrap();
    std::fs::write(images.join(".tmp-1-0"), b"half").unwrap();
    let alive = store.work().unwrap();
    assert!(!half.exists());
    let package = package(&folder, "p", "a", b"1");
    load(&store, &package, Some("a")).unwrap();
    assert!(alive.path.is_dir());
    let kept: Vec<String> = leftovers(&store);
    assert_eq!(kept.len(), 2, "{kept:?}");
    drop(alive);
    assert_eq!(leftovers(&store).len(), 1);
}

#[test]
fn an_image_of_another_version_is_not_booted_and_replaced_by_loading_it_again() {
    let folder = Folder::new("store-version");
    let store = Store::open(folder.path());
    let package = package(&folder, "p", "a", b"1");
    let image = load(&store, &package, Some("a")).unwrap().remove(0);
    let record = image.rootfs.with_file_name("image.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"layout\": 1", "\"layout\": 0")).unwrap();
    assert!(matches!(store.resolve("a"), Err(Error::Outdated { .. })));
    assert!(store.list().unwrap().is_empty());
    load(&store, &package, None).unwrap();
    assert!(store.resolve("a").unwrap().is_some());
    assert_eq!(leftovers(&store).len(), 1);

    std::fs::write(&record, "{").unwrap();
    let error = store.resolve("a").unwrap_err();
    assert!(matches!(&error, Error::Damaged { path, .. } if *path == record));
    let [entry] = store.entries().unwrap().try_into().unwrap();
    assert_eq!(entry.directory, record.parent().unwrap());
    assert!(matches!(entry.image, Err(Error::Damaged { .. })));
    load(&store, &package, None).unwrap();
    assert!(store.resolve("a").unwrap().is_some());
}

#[test]
fn a_root_image_that_was_damaged_is_replaced_by_loading_it_again() {
    let folder = Folder::new("store-damage");
    let store = Store::open(folder.path());
    let package = package(&folder, "p", "a", b"1");
    let image = load(&store, &package, Some("a")).unwrap().remove(0);
    let sound = std::fs::read(&image.rootfs).unwrap();
    assert_eq!(image.sha256, sha256::of(&sound));
    for damage in [b"".as_slice(), &[sound.as_slice(), b"x"].concat()] {
        std::fs::remove_file(&image.rootfs).unwrap();
        std::fs::write(&image.rootfs, damage).unwrap();
        load(&store, &package, None).unwrap();
        assert_eq!(std::fs::read(&image.rootfs).unwrap(), sound);
    }
    // Of a version that did not know yet what it was.
    let record = image.rootfs.with_file_name("image.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace(&image.sha256, "")).unwrap();
    assert!(matches!(store.resolve("a"), Err(Error::Outdated { .. })));
    load(&store, &package, None).unwrap();
    assert_eq!(store.resolve("a").unwrap().unwrap().sha256, image.sha256);
}

#[test]
fn the_same_image_has_the_same_bytes_in_every_store() {
    let folder = Folder::new("store-same");
    let package = package(&folder, "p", "a:1", b"shell");
    let bytes = ["one", "two"].map(|root| {
        let store = Store::open(&folder.path().join(root));
        let image = load(&store, &package, None).unwrap().remove(0);
        let record = image.rootfs.with_file_name("image.json");
        [image.rootfs, record].map(|path| std::fs::read(path).unwrap())
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn loads_of_one_image_at_once_end_with_one_image() {
    let folder = Folder::new("store-threads");
    let store = Store::open(&folder.path().join("root"));
    let package = package(&folder, "p", "a:1", &vec![7; 300_000]);
    let barrier = Barrier::new(6);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (store, package, barrier) = (&store, &package, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let name = format!("name{number}");
                load(store, package, Some(&name)).unwrap();
            });
        }
    });
    let images = store.list().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].names.len(), 6);
    e2fsck(&images[0].rootfs);
    assert_eq!(leftovers(&store).len(), 1);
}

/// Loads in a process of its own, by running this test again with an instruction in its environment.
#[test]
fn loads_and_removals_in_several_processes_leave_a_sound_store() {
    const INSTRUCTION: &str = "IMAGEBUILDER_TEST_LOAD";
    if let Some(folder) = std::env::var_os(INSTRUCTION) {
        let folder = PathBuf::from(folder);
        let store = Store::open(&folder.join("root"));
        let name = format!("process{}", std::process::id());
        load(&store, &folder.join("p"), Some(&name)).unwrap();
        assert!(store.resolve(&name).unwrap().is_some());
        store.remove(&name).unwrap();
        return;
    }
    let folder = Folder::new("store-processes");
    package(&folder, "p", "a:1", &vec![7; 300_000]);
    let children: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "store::tests::loads_and_removals_in_several_processes_leave_a_sound_store",
                ])
                .env(INSTRUCTION, folder.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }
    let store = Store::open(&folder.path().join("root"));
    assert!(store.list().unwrap().is_empty());
    assert!(leftovers(&store).is_empty());
}

#[test]
fn images_of_real_tools_are_loaded() {
    let folder = Folder::new("store-tools");
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("etc/old")).unwrap();
    std::fs::create_dir_all(tree.join("usr")).unwrap();
    let long = "n".repeat(200);
    std::fs::write(tree.join("etc/old/file"), b"old").unwrap();
    std::fs::write(tree.join("usr").join(&long), b"long").unwrap();
    std::fs::hard_link(tree.join("usr").join(&long), tree.join("usr/link")).unwrap();
    std::fs::write(tree.join("usr/hidden"), b"hidden").unwrap();

    let image = format!("{}:t", place("layout"));
    let (tree, layout) = (place("tree"), place("layout"));
    let steps: [&[&str]; 6] = [
        &["init", "--layout", &layout],
        &["new", "--image", &image],
        &["insert", "--rootless", "--image", &image, &tree, "/"],
        &[
            "insert",
            "--rootless",
            "--image",
            &image,
            "--whiteout",
            "/usr/hidden",
        ],
        &[
            "insert",
            "--rootless",
            "--image",
            &image,
            "--opaque",
            &format!("{tree}/usr"),
            "/etc",
        ],
        &[
            "config",
            "--image",
            &image,
            "--config.cmd",
            "/usr/link",
            "--os",
            "linux",
            "--architecture",
            "amd64",
        ],
    ];
    for step in steps {
        let Some(output) = tool_output("umoci", step) else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "umoci {step:?}: {text}");
    }
    let archive = place("archive.tar");
    let (from, to) = (
        format!("oci:{image}"),
        format!("oci-archive:{archive}:docker.io/library/tools:1"),
    );
    let policy = "--insecure-policy";
    let Some(output) = tool_output("skopeo", &[policy, "copy", "-q", &from, &to]) else {
        return;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let store = Store::open(&folder.path().join("root"));
    let loaded = load(&store, Path::new(&archive), None).unwrap().remove(0);
    assert_eq!(loaded.names, ["tools:1"]);
    let command = loaded.config.config().as_ref().unwrap().cmd().clone();
    assert_eq!(command.unwrap(), ["/usr/link"]);
    e2fsck(&loaded.rootfs);
    let disk = std::fs::File::open(&loaded.rootfs).unwrap();
    let disk = mkext4::reader::Fs::open(disk).unwrap();
    let names = |path: &str| -> Vec<String> {
        let directory = disk
            .resolve(&format!("/{}{path}", ext4::ROOT_DIRECTORY))
            .unwrap();
        let entries = disk.read_dir(directory).unwrap();
        let names = entries
            .iter()
            .map(|entry| String::from_utf8(entry.name.clone()).unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    assert_eq!(names("/usr"), ["link", &long]);
    // Opaque: of /etc, only what the last layer brought is left.
    assert_eq!(names("/etc"), ["hidden", "link", &long]);
    let inode = |name: &str| disk.resolve(&format!("/{}/usr/{name}", ext4::ROOT_DIRECTORY));
    assert_eq!(inode("link").unwrap(), inode(&long).unwrap());
}
