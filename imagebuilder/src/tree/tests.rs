use super::*;
use crate::spool::Spool;
use crate::testing::{Folder, Layer, Random};

/// The tree of these layers as text: a line for each name, with what leads to the same inode numbered alike.
fn build(layers: &[Layer]) -> Result<Vec<String>, String> {
    tree(layers, Limits::default()).map(|tree| listing(&tree))
}

fn tree(layers: &[Layer], limits: Limits) -> Result<Tree, String> {
    let folder = Folder::new("tree");
    let mut spool = Spool::new(folder.path(), 1 << 30).unwrap();
    let mut tree = Tree::new(limits);
    for layer in layers {
        let range = spool.append(layer.bytes().as_slice(), |_| ()).unwrap();
        tree.apply(spool.file(), range)
            .map_err(|error| error.to_string())?;
    }
    Ok(tree)
}

fn listing(tree: &Tree) -> Vec<String> {
    let mut numbers = BTreeMap::new();
    let mut lines = Vec::new();
    let mut walk = tree.walk();
    while let Some(name) = walk.next() {
        let node = tree.node(name.inode);
        let path = String::from_utf8_lossy(walk.path()).into_owned();
        let next = numbers.len();
        let number = *numbers.entry(name.inode).or_insert(next);
        lines.push(match &node.kind {
            Kind::Directory(_) => format!("{path}/ {:o}", node.meta.mode),
            Kind::File(content) => format!("{path} #{number} {}", content.end - content.start),
            Kind::Symlink(target) => format!("{path} -> {}", String::from_utf8_lossy(target)),
            Kind::Character(major, minor) => format!("{path} c{major}:{minor}"),
            Kind::Block(major, minor) => format!("{path} b{major}:{minor}"),
            Kind::Fifo => format!("{path} |"),
        });
    }
    lines
}

#[test]
fn layers_lie_one_over_the_other() {
    let lower = Layer::new()
        .directory("etc", 0o755)
        .file("etc/a", b"1")
        .file("etc/b", b"22");
    let upper = Layer::new().directory("etc", 0o700).file("etc/a", b"333");
    assert_eq!(
        build(&[lower, upper]).unwrap(),
        ["etc/ 700", "etc/a #1 3", "etc/b #2 2"]
    );
}

#[test]
fn whiteouts_hide_what_is_below_and_spare_their_own_layer() {
    let lower = || {
        Layer::new()
            .directory("d", 0o755)
            .file("d/old", b"1")
            .file("f", b"1")
            .file("kept", b"1")
    };
    // The whiteout comes behind what its own layer brings under the same name.
    let upper = Layer::new()
        .file("f", b"22")
        .file(".wh.f", b"")
        .file("d/new", b"22")
        .file(".wh.d", b"");
    let expected = ["d/ 755", "d/new #1 2", "f #2 2", "kept #3 1"];
    assert_eq!(build(&[lower(), upper]).unwrap(), expected);

    let opaque = Layer::new()
        .file("d/new", b"22")
        .file("d/.wh..wh..opq", b"");
    let expected = ["d/ 755", "d/new #1 2", "f #2 1", "kept #3 1"];
    assert_eq!(build(&[lower(), opaque]).unwrap(), expected);

    let gone = Layer::new()
        .file(".wh.d", b"")
        .file("./.wh.f", b"")
        .file("/.wh.kept", b"")
        .file("missing/.wh.x", b"")
        .file(".wh..wh.plnk", b"");
    assert!(build(&[lower(), gone]).unwrap().is_empty());
}

#[test]
fn hardlinks_reach_across_layers_and_come_apart_when_one_name_is_replaced() {
    let lower = Layer::new().file("a", b"1").hardlink("b", "a");
    let upper = Layer::new().hardlink("c", "/b").file("a", b"22");
    assert_eq!(
        build(&[lower, upper]).unwrap(),
        ["a #0 2", "b #1 1", "c #1 1"]
    );
    let itself = Layer::new().file("a", b"1").hardlink("a", "a");
    assert_eq!(build(&[itself]).unwrap(), ["a #0 1"]);
    let symlink = Layer::new().symlink("s", "x").hardlink("t", "s");
    assert_eq!(build(&[symlink]).unwrap(), ["s -> x", "t -> x"]);
}

#[test]
fn a_name_may_become_something_else() {
    let lower = Layer::new()
        .directory("d", 0o755)
        .file("d/f", b"1")
        .file("f", b"1")
        .symlink("s", "d");
    let upper = Layer::new()
        .file("d", b"22")
        .directory("f", 0o711)
        .file("f/x", b"1")
        .directory("s", 0o755);
    assert_eq!(
        build(&[lower, upper]).unwrap(),
        ["d #0 2", "f/ 711", "f/x #2 1", "s/ 755"]
    );
}

#[test]
fn missing_parents_are_made_and_links_on_the_way_are_followed_inside_the_tree() {
    let lower = Layer::new()
        .symlink("lib", "usr/lib")
        .symlink("up", "../../../../lib")
        .symlink("abs", "/usr/share/./doc")
        .file("a/b/c", b"1");
    let upper = Layer::new()
        .file("lib/x", b"1")
        .file("up/y", b"1")
        .file("abs/z", b"1")
        .file("lib/.wh.none", b"");
    let expected = [
        "a/ 755",
        "a/b/ 755",
        "a/b/c #2 1",
        "abs -> /usr/share/./doc",
        "lib -> usr/lib",
        "up -> ../../../../lib",
        "usr/ 755",
        "usr/lib/ 755",
        "usr/lib/x #8 1",
        "usr/lib/y #9 1",
        "usr/share/ 755",
        "usr/share/doc/ 755",
        "usr/share/doc/z #12 1",
    ];
    assert_eq!(build(&[lower, upper]).unwrap(), expected);
}

#[test]
fn devices_pipes_modes_owners_and_times_are_kept() {
    let layer = Layer::new()
        .device("c", 'c', 5, 1)
        .device("b", 'b', 259, 70_000)
        .device("p", 'p', 0, 0)
        .directory("./", 0o1777);
    let tree = tree(&[layer], Limits::default()).unwrap();
    assert_eq!(listing(&tree), ["b b259:70000", "c c5:1", "p |"]);
    assert_eq!(tree.node(Tree::ROOT).meta.mode, 0o1777);
    let node = tree.node(tree.child(Tree::ROOT, b"c").unwrap());
    let Meta {
        uid, gid, mtime, ..
    } = node.meta;
    assert_eq!((uid, gid, mtime), (7, 8, (1_600_000_000, 0)));
}

#[test]
fn attributes_are_those_of_the_last_layer_and_only_those_a_guest_understands() {
    let lower = Layer::new()
        .xattr("user.a", b"1")
        .xattr("security.capability", b"\n\0")
        .xattr("trusted.overlay.opaque", b"y")
        .xattr("com.apple.quarantine", b"x")
        .directory("d", 0o755);
    let upper = Layer::new().xattr("user.b", b"2").directory("d", 0o755);
    let names = |layers: &[Layer]| -> Vec<String> {
        let tree = tree(layers, Limits::default()).unwrap();
        let node = tree.node(tree.child(Tree::ROOT, b"d").unwrap());
        node.xattrs.keys().cloned().collect()
    };
    assert_eq!(
        names(std::slice::from_ref(&lower)),
        ["security.capability", "user.a"]
    );
    assert_eq!(names(&[lower, upper]), ["user.b"]);
}

#[test]
fn what_means_nothing_good_is_refused_by_name() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(2100);
    let rows = [
        (Layer::new().file("../x", b""), "leads upwards"),
        (Layer::new().file("a/../../x", b""), "leads upwards"),
        (Layer::new().file(&long, b""), "255 bytes"),
        (Layer::new().file(&deep, b""), "4095 bytes"),
        (
            Layer::new().file("./", b""),
            "", /* a directory by its name */
        ),
        (Layer::new().symlink("/", "x"), "root directory"),
        (Layer::new().hardlink("a", "b"), "does not exist"),
        (Layer::new().hardlink("a", "../b"), "leads upwards"),
        (Layer::new().hardlink("a", "/"), "does not exist"),
        (
            Layer::new().directory("d", 0o755).hardlink("a", "d"),
            "to a directory",
        ),
        (Layer::new().file("f", b"").file("f/x", b""), "no directory"),
        (
            Layer::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", b""),
            "too many symbolic links",
        ),
        (Layer::new().symlink("a", ""), "to nothing"),
        (Layer::new().file(".wh.", b""), "whiteout of no name"),
        (Layer::new().file("d/.wh...", b""), ""),
        (
            Layer::new().xattr("user.\u{0}", b"").file("f", b""),
            "malformed",
        ),
    ];
    for (layer, reason) in rows {
        match build(&[layer]) {
            Err(error) => {
                assert!(
                    !reason.is_empty() && error.contains(reason),
                    "{error}: {reason}"
                );
                assert!(error.contains("Entry "), "{error}");
            }
            Ok(lines) => assert_eq!(reason, "", "{lines:?}"),
        }
    }
}

#[test]
fn limits_end_an_image_that_only_means_to_be_large() {
    let many = || (0..20).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), b""));
    let limited = |limits: Limits| tree(&[many()], limits).map(|_| ()).unwrap_err();
    let limits = Limits::default();
    assert!(
        limited(Limits {
            entries: 20,
            ..limits
        })
        .contains("entries")
    );
    assert!(
        limited(Limits {
            metadata: 40,
            ..limits
        })
        .contains("bytes of names")
    );
    let links = (0..40).fold(Layer::new().directory("d", 0o755), |layer, i| {
        let target = if i == 0 {
            "d".into()
        } else {
            format!("l{}", i - 1)
        };
        layer.symlink(&format!("l{i}"), &target)
    });
    let layer = (0..9).fold(links, |layer, i| layer.file(&format!("l39/{i}"), b""));
    assert!(
        tree(
            std::slice::from_ref(&layer),
            Limits {
                steps: 9 * 41,
                ..limits
            }
        )
        .is_ok()
    );
    let error = tree(
        &[layer],
        Limits {
            steps: 300,
            ..limits
        },
    )
    .map(|_| ())
    .unwrap_err();
    assert!(error.contains("path components"), "{error}");
}

#[test]
fn random_layers_never_panic_and_leave_a_tree_without_a_loop() {
    let names = [
        "a",
        "b",
        "a/b",
        "b/a",
        "a/b/a",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        "./",
        "/b",
    ];
    let targets = ["a", "b", "..", "/a/b", "../b", "a/a", "."];
    let mut random = Random::new(3);
    let (mut built, mut files) = (0, 0);
    for _ in 0..3000 {
        let layers: Vec<Layer> = (0..=random.below(3))
            .map(|_| {
                (0..random.below(9)).fold(Layer::new(), |layer, _| {
                    let name = names[random.below(names.len())];
                    let target = targets[random.below(targets.len())];
                    match random.below(4) {
                        0 => layer.directory(name, 0o755),
                        1 => layer.symlink(name, target),
                        2 => layer.hardlink(name, target),
                        _ => layer.file(name, b"x"),
                    }
                })
            })
            .collect();
        if let Ok(tree) = tree(&layers, Limits::default()) {
            // Each directory has one name: the walk ends, and visits none twice.
            let directories: Vec<Inode> = tree
                .walk()
                .filter(|name| matches!(tree.node(name.inode).kind, Kind::Directory(_)))
                .map(|name| name.inode)
                .collect();
            let mut unique = directories.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), directories.len());
            built += 1;
            files += tree.walk().count();
        }
    }
    assert!(
        built > 500 && files > 1000,
        "{built} built with {files} names"
    );
}
