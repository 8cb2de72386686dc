use super::*;
use crate::progress::Progress;
use crate::testing::{Folder, Layer, Random, debugfs, e2fsck};
use crate::tree::Limits;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Writes the root image of `layer` to `folder/name`.
fn image(folder: &Folder, name: &str, layer: &Layer) -> Result<PathBuf, Error> {
    let mut spool = Spool::new(folder.path(), 1 << 30).unwrap();
    let range = spool.append(layer.bytes().as_slice(), |_| ()).unwrap();
    let mut tree = Tree::new(Limits::default());
    tree.apply(spool.file(), range).unwrap();
    let path = folder.path().join(name);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let step = Progress::silent().step("");
    write(&tree, &spool, "sha256:0", &file, &step).map(|()| path)
}

/// An image for `ext4_rs`, an implementation of ext4 that is not the one that wrote it.
struct Disk(File);

impl ext4_rs::BlockDevice for Disk {
    fn read_offset(&self, offset: usize) -> Vec<u8> {
        // More than the block that is asked for: the last name in a block is read with all that it might be.
        let mut block = vec![0; 8192];
        self.0.read_at(&mut block, offset as u64).unwrap();
        if offset == 1024 {
            // Of the superblock, the size of a group descriptor: 0 means 32, which the crate does not know.
            block[0xfe] = 32;
        }
        block
    }

    fn write_offset(&self, _: usize, _: &[u8]) {
        panic!("images are only read");
    }
}

struct Reader(ext4_rs::Ext4);

impl Reader {
    fn open(image: &Path) -> Self {
        let disk = Disk(File::open(image).unwrap());
        Self(ext4_rs::Ext4::open(Arc::new(disk)))
    }

    fn names(&self, directory: u32) -> Vec<(String, u32)> {
        let entries = self.0.dir_get_entries(directory);
        let entries = entries
            .iter()
            .map(|entry| (entry.get_name(), entry.inode))
            .filter(|(name, _)| name != "." && name != "..");
        entries.collect()
    }

    /// The inode that `path`, below the image's root, leads to.
    fn find(&self, path: &str) -> u32 {
        let full = format!("{ROOT_DIRECTORY}/{path}");
        let names = full.split('/').filter(|name| !name.is_empty());
        names.fold(2, |directory, name| {
            let found = self.names(directory).into_iter().find(|(n, _)| n == name);
            found.unwrap_or_else(|| panic!("no {name} in {path}")).1
        })
    }

    fn content(&self, path: &str) -> Vec<u8> {
        let inode = self.find(path);
        let size = self.0.get_inode_ref(inode).inode.size();
        let mut content = vec![0; usize::try_from(size).unwrap()];
        let read = self.0.read_at(inode, 0, &mut content).unwrap();
        assert_eq!(read, content.len());
        content
    }
}

#[test]
fn what_goes_in_is_read_back_by_another_implementation() {
    let folder = Folder::new("ext4");
    let large: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|i| [u8::try_from(i % 251).unwrap(), 0])
        .collect();
    let layer = Layer::new()
        .directory("./", 0o1755)
        .file_with_mode("bin/su", b"setuid", 0o4755)
        .hardlink("bin/also", "bin/su")
        .symlink("short", "bin/su")
        .symlink("long", &"x/".repeat(100))
        .file("large", &large)
        .file("empty", b"")
        .file(&format!("ä/{}", "n".repeat(255)), b"long name")
        .device("null", 'c', 1, 3)
        .device("disk", 'b', 259, 70_000)
        .device("pipe", 'p', 0, 0);
    let path = image(&folder, "image", &layer).unwrap();
    e2fsck(&path);

    let reader = Reader::open(&path);
    assert_eq!(reader.content("bin/su"), b"setuid");
    assert_eq!(reader.content("large"), large);
    assert_eq!(
        reader.content(&format!("ä/{}", "n".repeat(255))),
        b"long name"
    );
    assert_eq!(reader.find("bin/su"), reader.find("bin/also"));
    let su = reader.0.get_inode_ref(reader.find("bin/su")).inode;
    assert_eq!((su.mode(), su.uid(), su.gid()), (0o104_755, 7, 8));
    assert_eq!((su.mtime(), su.links_count()), (1_600_000_000, 2));
    let root = reader.0.get_inode_ref(reader.find("")).inode;
    assert_eq!(root.mode(), 0o041_755);
    assert_eq!(reader.0.get_inode_ref(reader.find("empty")).inode.size(), 0);
    // The file system's own directory stays out of the image's root.
    let names = |inode| -> Vec<String> {
        let mut names: Vec<_> = reader.names(inode).into_iter().map(|(n, _)| n).collect();
        names.sort();
        names
    };
    assert_eq!(names(2), ["lost+found", ROOT_DIRECTORY]);
    assert_eq!(
        names(reader.find("")),
        [
            "bin", "disk", "empty", "large", "long", "null", "pipe", "short", "ä"
        ]
    );
}

#[test]
fn links_devices_and_attributes_are_as_the_real_tool_reads_them() {
    let folder = Folder::new("ext4-debugfs");
    let capability = b"\x01\0\0\x02\0\x04\n\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let acl = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 6, 0, 232, 3, 0, 0],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 5, 0, 255, 255, 255, 255],
    ]
    .concat();
    let layer = Layer::new()
        .xattr("security.capability", capability)
        .xattr("user.large", &[b'v'; 2000])
        .file("ping", b"x")
        .xattr("system.posix_acl_access", &acl)
        .file("shared", b"x")
        .symlink("long", &"x/".repeat(100))
        .symlink("short", "bin/su")
        .device("disk", 'b', 259, 70_000);
    let path = image(&folder, "image", &layer).unwrap();
    e2fsck(&path);
    let ask = |request: &str| debugfs(&path, request);
    let Some(text) = ask("ea_list /rootfs/ping") else {
        return;
    };
    assert!(
        text.contains("security.capability (20) = 01 00 00 02 00 04 0a"),
        "{text}"
    );
    assert!(text.contains("user.large (2000)"), "{text}");
    let text = ask("ea_list /rootfs/shared").unwrap();
    // In the form of the disk: version 1, and only the named user has an ID.
    let disk = "(28) = 01 00 00 00 01 00 07 00 02 00 06 00 e8 03 00 00 04 00";
    assert!(text.contains(disk), "{text}");
    let text = ask("stat /rootfs/disk").unwrap();
    assert!(text.contains("Type: block special"), "{text}");
    assert!(text.contains("259:70000"), "{text}");
    let text = ask("stat /rootfs/short").unwrap();
    assert!(text.contains("Fast link dest: \"bin/su\""), "{text}");
    let text = ask("cat /rootfs/long").unwrap();
    assert_eq!(text, "x/".repeat(100));
}

#[test]
fn large_directories_and_many_files_fit_into_the_size_that_was_estimated() {
    let folder = Folder::new("ext4-many");
    let flat = (0..4000).fold(Layer::new(), |layer, i| {
        layer.file(&format!("flat/{i}-{}", "n".repeat(i % 200)), &[1; 10])
    });
    let deep = (0..300).fold(Layer::new(), |layer, i| {
        layer.directory(&"d/".repeat(i + 1), 0o755)
    });
    let attributes = (0..500).fold(Layer::new(), |layer, i| {
        let layer = layer.xattr("user.a", &[b'a'; 3000]);
        layer.symlink(&format!("s{i}"), &"t".repeat(100))
    });
    for (name, layer) in [("flat", flat), ("deep", deep), ("attributes", attributes)] {
        let path = image(&folder, name, &layer).unwrap();
        e2fsck(&path);
        let fs = mkext4::reader::Fs::open(File::open(&path).unwrap()).unwrap();
        assert!(fs.verify().unwrap().is_empty());
        // Room to spare would only be a hole, but not much of it is wanted.
        let metadata = std::fs::metadata(&path).unwrap();
        let used = metadata.blocks() * 512;
        let journal = u64::from(MIN_JOURNAL) * BLOCK;
        assert!(
            metadata.len() <= geometry::MIN_SIZE.max((used + journal) * 2),
            "{name}: {} of {used}",
            metadata.len()
        );
    }
}

#[test]
fn files_that_are_many_and_small_have_inodes() {
    // Only names: a group of blocks would have room for several times as many as it has inodes.
    let folder = Folder::new("ext4-inodes");
    let mut layer = Layer::new();
    for i in 0..40_000 {
        layer = layer.file(&i.to_string(), b"");
    }
    e2fsck(&image(&folder, "image", &layer).unwrap());
}

#[test]
fn what_would_take_too_much_memory_is_refused() {
    let folder = Folder::new("ext4-intricate");
    let mut layer = Layer::new();
    // A few bytes of archive make a thousand directories, each estimated at two blocks.
    let deep = ["d"; 1024].join("/");
    for number in 0..MAX_RENDERED / 2 / 1024 + 1 {
        let link = format!("link{number}");
        let target = format!("/{number}/{deep}");
        layer = layer
            .symlink(&link, &target)
            .file(&format!("{link}/f"), b"");
    }
    let error = image(&folder, "image", &layer).unwrap_err();
    assert!(matches!(error, Error::TooIntricate), "{error}");
}

#[test]
fn random_trees_are_sound() {
    let folder = Folder::new("ext4-random");
    let mut random = Random::new(5);
    for round in 0..12 {
        let layer = (0..random.below(400)).fold(Layer::new(), |layer, _| {
            let path = (0..=random.below(4))
                .map(|_| format!("{}", random.below(9)))
                .collect::<Vec<_>>()
                .join("/");
            // Files and directories have different names, so that none is in the other's way.
            match random.below(4) {
                0 => layer.directory(&path, 0o700),
                1 => layer.symlink(&format!("{path}-s"), &"t".repeat(1 + random.below(300))),
                2 => layer
                    .xattr("user.x", &vec![7; random.below(300)])
                    .file(&format!("{path}-x"), b""),
                _ => layer.file(&format!("{path}-f"), &vec![1; random.below(60_000)]),
            }
        });
        let path = image(&folder, &round.to_string(), &layer).unwrap();
        e2fsck(&path);
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes_in_another_folder() {
    let layer = |extra: &[u8]| {
        Layer::new()
            .xattr("user.b", b"2")
            .xattr("user.a", b"1")
            .file("a/b", &[3; 10_000])
            .file("c", extra)
    };
    let bytes = |extra: &[u8]| {
        let folder = Folder::new("ext4-same");
        std::fs::read(image(&folder, "image", &layer(extra)).unwrap()).unwrap()
    };
    assert_eq!(bytes(b"x"), bytes(b"x"));
    assert_ne!(bytes(b"x"), bytes(b"y"));
}

#[test]
fn what_ext4_cannot_hold_is_refused_by_name() {
    let folder = Folder::new("ext4-refused");
    let rows = [
        (Layer::new().device("d/dev", 'c', 5000, 0), "device number"),
        (
            Layer::new().device("d/dev", 'c', 0, 1 << 20),
            "device number",
        ),
        (
            Layer::new().xattr("user.a", &[0; 4000]).file("d/f", b""),
            "extended attributes",
        ),
        (
            Layer::new()
                .xattr("system.posix_acl_access", b"x")
                .file("d/f", b""),
            "access control list",
        ),
    ];
    for (number, (layer, reason)) in rows.into_iter().enumerate() {
        let error = image(&folder, &number.to_string(), &layer).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("Entry d/") && text.contains(reason), "{text}");
    }
}

#[test]
fn times_that_ext4_cannot_hold_become_the_nearest_one() {
    let time = |mtime| {
        let meta = Meta {
            mode: 0,
            uid: 0,
            gid: 0,
            mtime,
        };
        super::meta(&meta).mtime
    };
    assert_eq!(time((1, 2)), (1, 2));
    assert_eq!(time((i64::MIN, 5)), (-(1 << 31), 0));
    assert_eq!(time((i64::MAX, 5)), ((1 << 34) - (1 << 31) - 1, 0));
}
