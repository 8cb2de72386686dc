//! Images: from where they come, and how they go.

use std::{path::Path, process::Command};

use end_to_end::{Input, Root};

const RECIPE: &str = "name example:2\n\
                      directory /bin 755\n\
                      file /bin/busybox 755 /bin/busybox\n\
                      symlink /bin/greet busybox\n\
                      symlink /bin/echo busybox\n\
                      env GREETING=hello\n\
                      cmd echo from the image\n";

#[test]
fn the_default_image_is_there() {
    let root = Root::new();
    let list = root.vmm(["image", "ls", "--format", "json"]).finish();
    let list = list.code(0).json();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0]["Names"][0], "busybox:latest");
    root.vmm(["image", "ls"])
        .finish()
        .code(0)
        .stdout_has("busybox");
}

#[test]
fn a_layout_is_loaded_run_and_removed() {
    let root = Root::new();
    let layout = root.layout(RECIPE);
    let load = root.vmm(["image", "load"]).arg(layout).finish();
    load.code(0).stdout_has("example:2");
    root.vmm(["image", "ls"])
        .finish()
        .code(0)
        .stdout_has("example");

    let run = root.run(["--rm", "example:2"]).finish();
    run.code(0).stdout("from the image\n");
    let run = root
        .run(["--rm", "example:2", "/bin/busybox", "env"])
        .finish();
    run.code(0).stdout_has("GREETING=hello");
    // A tag is part of the name.
    root.run(["--rm", "example"]).finish().fails("example");

    root.vmm(["image", "rm", "example:2"]).finish().code(0);
    root.vmm(["image", "ls"])
        .finish()
        .code(0)
        .stdout_lacks("example");
    root.run(["--rm", "example:2"]).finish().fails("example:2");
}

#[test]
fn an_archive_is_loaded_from_a_file_and_from_standard_input() {
    let root = Root::new();
    let archive = root.files().join("image.tar");
    pack(&root.layout(RECIPE), &archive);
    let load = root
        .vmm(["image", "load", "--name", "first", "-i"])
        .arg(&archive);
    load.finish().code(0);
    let load = root.vmm(["image", "load", "--name", "second"]);
    load.input(Input::File(archive)).finish().code(0);
    for name in ["first", "second"] {
        root.run(["--rm", name])
            .finish()
            .code(0)
            .stdout("from the image\n");
    }
}

#[test]
fn an_archive_of_a_root_file_system_is_an_image_too() {
    let root = Root::new();
    let tree = root.files().join("tree");
    std::fs::create_dir_all(tree.join("bin")).expect("a folder");
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("a copy of busybox");
    let archive = root.files().join("tree.tar");
    pack(&tree, &archive);
    let load = root
        .vmm(["image", "load", "--name", "tree", "-i"])
        .arg(archive);
    load.finish().code(0);
    let run = root.run(["--rm", "tree", "/bin/busybox", "echo", "hello"]);
    run.finish().code(0).stdout("hello\n");
}

#[test]
fn identifiers_are_listed_and_name_images() {
    let root = Root::new();
    let ids = root.vmm(["image", "ls", "-q"]).finish();
    let ids = ids.code(0).text();
    let id = ids.lines().next().unwrap_or_default();
    assert_eq!(id.len(), 12, "{ids}");
    root.run(["--rm", id, "echo", "hello"])
        .finish()
        .code(0)
        .stdout("hello\n");
}

/// Makes a tar archive of what is in `folder`.
fn pack(folder: &Path, archive: &Path) {
    let mut tar = Command::new("tar");
    let tar = tar.arg("-cf").arg(archive).arg("-C").arg(folder).arg(".");
    assert!(tar.status().expect("tar runs").success());
}
