use super::*;
use crate::progress::Progress;
use crate::store::Store;
use crate::testing::{Folder, e2fsck};

/// Builds `recipe` in a folder with a file called `source` beside it.
fn build_text(folder: &Folder, recipe: &str) -> Result<Origin, Error> {
    let path = folder.path().join("recipe");
    std::fs::write(&path, recipe).unwrap();
    std::fs::write(folder.path().join("source"), b"content").unwrap();
    build(&path, &folder.path().join("out"))
}

#[test]
fn the_same_recipe_gives_the_same_image_in_another_folder() {
    let recipe = "
        name me/tool:1            # what it is called
        directory /bin 755
        file /bin/tool 4755 source
        symlink /bin/alias tool
        env A=b
        cmd tool --flag
    ";
    let images = ["one", "two"].map(|name| {
        let folder = Folder::new(name);
        let layout = build_text(&folder, recipe).unwrap();
        let store = Store::open(folder.path());
        let out = folder.path().join("out");
        let image = store
            .load(&out, None, &Progress::silent())
            .unwrap()
            .remove(0);
        assert_eq!(image.digest, format!("sha256:{}", layout.sha256));
        let inputs = layout.inputs.iter().map(|input| input.name.as_str());
        assert_eq!(inputs.collect::<Vec<_>>(), ["recipe", "source"]);
        assert_eq!(image.names, ["me/tool:1"]);
        let config = image.config.config().clone().unwrap();
        assert_eq!(config.cmd().clone().unwrap(), ["tool", "--flag"]);
        assert_eq!(config.env().clone().unwrap(), ["A=b"]);
        e2fsck(&image.rootfs);
        (layout, std::fs::read(image.rootfs).unwrap())
    });
    assert!(images[0] == images[1]);
}

#[test]
fn mistakes_are_told_by_their_line() {
    let rows = [
        ("name a\nfly /tmp", "line 2: There is no such instruction"),
        (
            "name a\ndirectory /tmp",
            "line 2: There is no such instruction",
        ),
        (
            "directory tmp 755",
            "line 1: The path in the image must begin with /",
        ),
        ("directory / 755", "must begin with /"),
        ("directory /tmp 999", "octal"),
        ("directory /tmp 17777", "octal"),
        ("file /bin/x 755 source", "must be made first"),
        (
            "symlink /x y\ndirectory /x 755",
            "something of this name already",
        ),
        ("symlink /x y\nsymlink /x/z y", "must be made first"),
        ("file /x 755 missing", "missing"),
        ("env A", "no such instruction"),
        ("name A b", "no such instruction"),
        ("name A", "lower case"),
        ("cmd sh", "does not name the image"),
        (
            "directory /bin 755\napplets /bin /bin/false",
            "applets of /bin/false",
        ),
    ];
    for (recipe, reason) in rows {
        let folder = Folder::new("recipe-mistake");
        let error = build_text(&folder, recipe).unwrap_err().to_string();
        assert!(error.contains(reason), "{recipe:?}: {error}");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn the_default_image_has_a_shell_and_the_usual_tools() {
    if !Path::new("/bin/busybox").exists() {
        eprintln!("skipped: the_default_image_has_a_shell_and_the_usual_tools: no /bin/busybox");
        return;
    }
    let folder = Folder::new("recipe-busybox");
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rootfs/busybox/recipe");
    let out = folder.path().join("out");
    build(&recipe, &out).unwrap();
    let store = Store::open(folder.path());
    let image = store
        .load(&out, None, &Progress::silent())
        .unwrap()
        .remove(0);
    assert_eq!(image.names, ["busybox:latest"]);
    e2fsck(&image.rootfs);
    let disk = std::fs::File::open(&image.rootfs).unwrap();
    let disk = mkext4::reader::Fs::open(disk).unwrap();
    let find = |path: &str| disk.resolve(&format!("/{}{path}", crate::ext4::ROOT_DIRECTORY));
    for applet in ["sh", "ls", "[", "cat", "uname"] {
        let inode = find(&format!("/bin/{applet}")).unwrap();
        assert_eq!(disk.symlink_target(inode).unwrap(), b"busybox", "{applet}");
    }
    let program = disk.read_file(find("/bin/busybox").unwrap()).unwrap();
    assert!(program == std::fs::read("/bin/busybox").unwrap());
    let mode = |path| disk.inode(find(path).unwrap()).unwrap().mode;
    assert_eq!((mode("/tmp"), mode("/root")), (0o041_777, 0o040_700));
}
