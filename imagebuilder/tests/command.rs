//! The `imagebuilder` command, as a Makefile runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of one test, removed when it is done.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("imagebuilder-command-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a folder for the test");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn imagebuilder(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imagebuilder"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("the command runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is text")
}

#[test]
fn from_a_recipe_to_an_image_that_boots() {
    let folder = Folder::new("recipe");
    let recipe = "name tool:1\ndirectory /bin 755\nfile /bin/tool 755 recipe\ncmd tool\n";
    std::fs::write(folder.0.join("recipe"), recipe).unwrap();

    let made = imagebuilder(&folder.0, &["recipe", "recipe", "--out", "layout"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let digest = text(&made.stdout).trim().to_owned();

    let loaded = imagebuilder(&folder.0, &["load", "--store", "store", "layout"]);
    assert!(loaded.status.success(), "{}", text(&loaded.stderr));
    assert_eq!(text(&loaded.stdout), format!("{digest} tool:1\n"));
    // Not a terminal: a line for each step, and no bars.
    let progress = text(&loaded.stderr);
    let steps: Vec<&str> = progress.lines().collect();
    assert_eq!(
        steps,
        [
            "Unpacking layer 1 of 1 of tool:1…",
            "Writing the root image of tool:1…"
        ]
    );
    let hex = digest.strip_prefix("sha256:").unwrap();
    let image = folder.0.join("store/images").join(hex);
    assert!(image.join("rootfs.ext4").is_file());

    // The second time there is nothing to do, and nothing to say about it.
    let again = imagebuilder(&folder.0, &["load", "--store", "store", "layout"]);
    assert_eq!(again.stdout, loaded.stdout);
    assert_eq!(text(&again.stderr), "");
}

#[test]
fn quiet_means_quiet() {
    let folder = Folder::new("quiet");
    std::fs::write(folder.0.join("recipe"), "name a\n").unwrap();
    imagebuilder(&folder.0, &["recipe", "recipe", "--out", "layout"]);
    let loaded = imagebuilder(&folder.0, &["load", "-q", "--store", "store", "layout"]);
    assert!(loaded.status.success());
    assert_eq!(text(&loaded.stderr), "");
}

#[test]
fn an_error_is_printed_once_with_its_causes() {
    let folder = Folder::new("error");
    let failed = imagebuilder(&folder.0, &["load", "--store", "store", "missing.tar"]);
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(text(&failed.stdout), "");
    assert_eq!(
        text(&failed.stderr),
        "imagebuilder: Cannot load missing.tar\n  \
         because: Cannot read missing.tar\n  \
         because: No such file or directory (os error 2)\n"
    );
    assert!(!folder.0.join("store").exists());

    let unfit = imagebuilder(
        &folder.0,
        &["initfs", "--vminitd", "/bin/sh", "--out", "initfs"],
    );
    assert_eq!(unfit.status.code(), Some(1));
    assert!(text(&unfit.stderr).contains("link it statically"));
    assert!(!folder.0.join("initfs").exists());
}

#[test]
fn a_kernel_that_is_optional_is_done_without_where_nobody_has_its_source() {
    let folder = Folder::new("optional");
    let path = |name: &str| folder.0.join(name);
    std::fs::create_dir_all(path("config/variants")).unwrap();
    std::fs::write(
        path("config/variants/it"),
        "series 0.0\narch x86_64\nfragments a\n",
    )
    .unwrap();
    std::fs::write(path("config/a.config"), "CONFIG_A=y # a\n").unwrap();
    // What an earlier build has left.
    let written = ["vmlinux", "config", "it.json"];
    let leave = || {
        std::fs::create_dir_all(path("out")).unwrap();
        for name in written {
            std::fs::write(path("out").join(name), "old").unwrap();
        }
    };
    let build = |arguments: &[&str]| {
        let common = "kernel --config-dir config --variant it --cache cache --out out/vmlinux --origin out/it.json";
        let common: Vec<&str> = common.split(' ').collect();
        imagebuilder(&folder.0, &[&common, arguments].concat())
    };

    leave();
    let failed = build(&[]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(path("out/vmlinux").exists());

    for _ in 0..2 {
        let warned = build(&["--optional"]);
        let said = text(&warned.stderr);
        assert!(warned.status.success(), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let expected =
            "warning: going on without the kernel it: The source of Linux 0.0 is missing";
        assert!(said.starts_with(expected), "{said}");
        for name in written {
            assert!(!path("out").join(name).exists(), "{name}");
        }
    }

    // What is wrong with what was asked for is an error still.
    std::fs::write(path("config/a.config"), "CONFIG_A=y\n").unwrap();
    leave();
    let failed = build(&["--optional"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    assert!(path("out/vmlinux").exists());
}
