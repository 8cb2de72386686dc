//! The same inputs give the same bytes, whoever builds, where and when.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::Mode;
use rustix::process::umask;

/// Somebody who builds.
struct Builder {
    folder: PathBuf,
    umask: u32,
    environment: [(&'static str, &'static str); 3],
    /// The permission bits of the sources, and their age.
    sources: (u32, Duration),
}

impl Builder {
    /// `imagebuilder ARGUMENTS…` in the builder's folder.
    fn run(&self, arguments: &[&str]) {
        let mask = self.umask;
        let mut command = Command::new(env!("CARGO_BIN_EXE_imagebuilder"));
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.environment);
        // SAFETY: the closure makes one system call and touches no memory of the parent's.
        unsafe {
            command.pre_exec(move || {
                umask(Mode::from_raw_mode(mask));
                Ok(())
            });
        }
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
    }

    fn source(&self, name: &str, content: &[u8]) {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        let (mode, age) = self.sources;
        let file = fs::File::options().write(true).open(&path).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a file's time")]
        file.set_modified(SystemTime::now() - age).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Makes everything that this program makes, but kernels: they take minutes.
    fn build(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fs::create_dir_all(self.folder.join("share/vmm")).unwrap();
        self.source("vminitd", &static_program());
        self.source("recipe", RECIPE.as_bytes());
        self.source("tool", b"#!/bin/sh\nexec true\n");
        self.run(&[
            "origin",
            "--name=vminitd",
            "--version=rustc=1",
            "--origin=vminitd.json",
            "vminitd",
        ]);
        self.run(&[
            "initfs",
            "--vminitd=vminitd",
            "--out=share/vmm/initfs.cpio",
            "--origin=initfs.json",
            "--knowing=vminitd.json",
        ]);
        self.run(&["recipe", "recipe", "--out=layout", "--origin=layout.json"]);
        let load = ["load", "--store=share/vmm", "--origin=image.json"];
        self.run(&[&load[..], &["layout", "--knowing=layout.json"]].concat());
        self.run(&[
            "manifest",
            "--prefix=.",
            "--initfs=initfs.json",
            "--image=image.json",
        ]);
        let mut files = BTreeMap::new();
        for folder in ["share", "layout"] {
            read(&self.folder, Path::new(folder), &mut files);
        }
        files
    }
}

/// A folder of the test, removed when it is done.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const RECIPE: &str = "name tool:1\ndirectory /etc 755\ndirectory /bin 755\nfile /bin/tool 4755 tool\n\
                      symlink /bin/b tool\nsymlink /bin/a tool\nenv B=1\nenv A=2\ncmd tool\n";

/// The smallest static program by its headers.
fn static_program() -> Vec<u8> {
    let mut elf = vec![0; 64 + 56 + 100];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2), (18, 62), (32, 64), (54, 56), (56, 1), (64, 1)] {
        elf[at] = value;
    }
    elf
}

fn read(root: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => read(root, &path, files),
            false => drop(files.insert(path.clone(), fs::read(root.join(path)).unwrap())),
        }
    }
}

#[test]
fn two_builders_make_the_same_files() {
    let name = format!("imagebuilder-reproducible-{}", std::process::id());
    let folder = Folder(std::env::temp_dir().join(name));
    let day = Duration::from_secs(86_400);
    let builders = [
        Builder {
            folder: folder.0.join("one"),
            umask: 0o022,
            environment: [("HOME", "/root"), ("TZ", "UTC"), ("LC_ALL", "C")],
            sources: (0o755, day),
        },
        Builder {
            folder: folder.0.join("two/in/a folder of another name"),
            umask: 0o077,
            environment: [
                ("HOME", "/nonexistent"),
                ("TZ", "XYZ-14"),
                ("LC_ALL", "de_DE.UTF-8"),
            ],
            sources: (0o400, 7000 * day),
        },
    ];
    let [one, two] = builders.each_ref().map(Builder::build);
    let names: Vec<&PathBuf> = one.keys().collect();
    assert_eq!(names, two.keys().collect::<Vec<_>>());
    for wanted in ["initfs.cpio", "rootfs.ext4", "manifest.json", "index.json"] {
        assert!(names.iter().any(|name| name.ends_with(wanted)), "{wanted}");
    }
    for (name, content) in &one {
        assert!(*content == two[name], "{} differs", name.display());
    }
}
