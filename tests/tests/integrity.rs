//! Nothing is booted that is not what it should be, and everything can be looked at.

use std::{
    fs::File,
    io::ErrorKind,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use end_to_end::{DEADLINE, Root, accelerator, kernel_variant, second_kernel, wait_until};
use serde_json::Value;

/// A run by the installation in `prefix`.
fn run(root: &Root, prefix: &Path) -> end_to_end::Finished {
    let words = ["run", "--rm", "--accel", &accelerator()];
    let run = root.vmm_of(prefix, words);
    run.args(["busybox", "echo", "hello"]).finish()
}

/// What `vmm system verify` finds wrong, by path.
fn wrong(root: &Root, prefix: &Path) -> Vec<PathBuf> {
    let verify = root.vmm_of(prefix, ["system", "verify", "--format", "json"]);
    let verify = verify.finish();
    let findings = verify.json();
    let wrong: Vec<PathBuf> = findings
        .iter()
        .filter(|finding| finding["Result"] != "ok")
        .map(|finding| PathBuf::from(finding["Path"].as_str().unwrap_or_default()))
        .collect();
    verify.code(i32::from(!wrong.is_empty()));
    assert_eq!(verify.error_text().is_empty(), wrong.is_empty());
    wrong
}

/// Changes one bit in the middle of a file, which is as long and as old as before.
fn flip(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("a file of ours");
    // A machine goes behind its command, and until then nobody may write to its kernel.
    let file = wait_until(DEADLINE, || {
        match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
            other => Some(other.expect("a file to change")),
        }
    });
    let file = file.expect("a file that is no longer executed");
    let metadata = file.metadata().expect("a size and a time");
    let mut byte = [0];
    file.read_exact_at(&mut byte, metadata.len() / 2)
        .expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], metadata.len() / 2)
        .expect("another byte");
    file.set_modified(metadata.modified().expect("a time"))
        .expect("the time of before");
}

/// The file `name` that is somewhere below the directory `store`, under a hash.
fn kept(store: &Path, name: &str) -> PathBuf {
    let entries = std::fs::read_dir(store).expect("a directory");
    let mut paths = entries.flatten().map(|entry| entry.path().join(name));
    paths.find(|path| path.exists()).expect("a file")
}

#[test]
fn an_installation_is_whole_wherever_it_is_copied() {
    let root = Root::new();
    let prefix = root.install();
    assert_eq!(wrong(&root, &prefix), Vec::<PathBuf>::new());
    run(&root, &prefix).code(0).stdout("hello\n").stderr("");
    let elsewhere = root.files().join("elsewhere");
    let copy = Command::new("cp")
        .arg("-R")
        .args([&prefix, &elsewhere])
        .status();
    assert!(copy.expect("cp runs").success());
    std::fs::remove_dir_all(&prefix).expect("a folder to remove");
    run(&root, &elsewhere).code(0).stdout("hello\n").stderr("");
    assert_eq!(wrong(&root, &elsewhere), Vec::<PathBuf>::new());
}

#[test]
fn what_was_changed_is_refused_by_name_until_it_is_put_right() {
    let root = Root::new();
    let prefix = root.install();
    run(&root, &prefix).code(0);
    let share = prefix.join("share/vmm");
    for path in [
        share.join("kernels").join(kernel_variant()).join("vmlinux"),
        share.join("initfs.cpio"),
        kept(&share.join("images"), "rootfs.ext4"),
    ] {
        flip(&path);
        let name = path.display().to_string();
        let refused = run(&root, &prefix);
        refused.fails(&name).complains("was changed").stdout("");
        refused.complains("make image");
        assert_eq!(wrong(&root, &prefix), std::slice::from_ref(&path));
        flip(&path);
        run(&root, &prefix).code(0).stdout("hello\n");
        assert_eq!(wrong(&root, &prefix), Vec::<PathBuf>::new());
    }
    assert!(root.containers().is_empty());
}

#[test]
fn a_file_that_was_only_touched_has_not_changed_and_one_that_was_replaced_has() {
    let root = Root::new();
    let prefix = root.install();
    let name = format!("kernels/{}/vmlinux", kernel_variant());
    let kernel = prefix.join(format!("share/vmm/{name}"));
    run(&root, &prefix).code(0);
    let touch = Command::new("touch").arg(&kernel).status();
    assert!(touch.expect("touch runs").success());
    run(&root, &prefix).code(0).stdout("hello\n").stderr("");

    let beside = kernel.with_extension("new");
    std::fs::copy(second_kernel(), &beside).expect("a copy of another kernel");
    std::fs::rename(beside, &kernel).expect("another kernel in its place");
    run(&root, &prefix).fails(&name);
    std::fs::remove_file(&kernel).expect("a file to remove");
    run(&root, &prefix).fails(&name);
    assert_eq!(wrong(&root, &prefix), [kernel]);
}

#[test]
fn without_its_manifest_an_installation_boots_nothing() {
    let root = Root::new();
    let prefix = root.install();
    let manifest = prefix.join("share/vmm/manifest.json");
    for damage in ["", "{", "{\"format\":2,\"version\":\"\",\"artifacts\":[]}"] {
        std::fs::write(&manifest, damage).expect("a damaged manifest");
        run(&root, &prefix).fails("manifest.json");
        assert_eq!(wrong(&root, &prefix), std::slice::from_ref(&manifest));
    }
    std::fs::remove_file(&manifest).expect("a file to remove");
    run(&root, &prefix).fails("manifest.json");
    assert_eq!(wrong(&root, &prefix), [manifest]);
}

#[test]
fn a_run_believes_what_is_remembered_and_verify_does_not() {
    let root = Root::new();
    // Of kernel, initfs and root image, once they were not made just now.
    let remembered = wait_until(DEADLINE, || {
        root.sh("true").finish().code(0);
        let entries = std::fs::read_dir(root.state().join("hashes"));
        let paths: Vec<PathBuf> = entries.ok()?.flatten().map(|entry| entry.path()).collect();
        (paths.len() == 3).then_some(paths)
    });
    for path in remembered.expect("three hashes") {
        let mut text = std::fs::read(&path).expect("a hash");
        let length = text.len();
        text[length - 64..].fill(b'0');
        std::fs::write(&path, text).expect("a hash of nothing");
    }
    // So it has not read the files.
    root.sh("true").finish().fails(&"0".repeat(64));
    root.vmm(["system", "verify"]).finish().code(0);
    root.sh("true").finish().code(0);
}

#[test]
fn a_users_kernels_and_images_are_verified_too() {
    let root = Root::new();
    let layout =
        root.layout("name own:1\ndirectory /bin 755\nfile /bin/busybox 755 /bin/busybox\n");
    let load = || {
        let load = root.vmm(["image", "load", "-q"]).arg(&layout);
        load.finish().code(0);
    };
    load();
    let own = || {
        let words = ["--rm", "own:1", "/bin/busybox", "echo", "hello"];
        root.run(words).finish()
    };
    let run = root
        .run(["--name", "kept", "--kernel"])
        .arg(second_kernel());
    run.args(["busybox", "true"]).finish().code(0);
    own().code(0);
    let verify = || root.vmm(["system", "verify"]).finish();
    verify().code(0).stdout_has("image own:1");
    verify()
        .stdout_has("kernel of a user")
        .stdout_lacks("wrong");

    let kernel = kept(&root.state().join("kernels"), "vmlinux");
    flip(&kernel);
    let image = kept(&root.state().join("images"), "rootfs.ext4");
    flip(&image);
    let found = verify();
    found.code(1).complains("2 of ");
    for path in [&kernel, &image] {
        let path = path.display().to_string();
        let line = found.text();
        let line = line.lines().find(|line| line.contains(&path));
        assert!(
            line.is_some_and(|line| line.starts_with("wrong")),
            "{line:?}"
        );
    }
    own().fails(&image.display().to_string());
    // Both are put right by what brought them.
    load();
    own().code(0).stdout("hello\n");
    let run = root.run(["--rm", "--kernel"]).arg(second_kernel());
    run.args(["busybox", "true"]).finish().code(0);
    verify().code(0);
}

#[test]
fn what_was_installed_is_told_with_what_it_was_made_of() {
    let root = Root::new();
    let version = root.vmm(["version", "--verbose", "--format", "json"]);
    let version = version.finish().code(0).json().remove(0);
    let info = root.vmm(["system", "info", "--format", "json"]).finish();
    let info = info.code(0).json().remove(0);
    let artifacts = version["Artifacts"].as_array().expect("artifacts");
    assert_eq!(info["Artifacts"], version["Artifacts"]);
    let of = |kind: &str| {
        let mut found = artifacts.iter().filter(|artifact| artifact["kind"] == kind);
        found.next().unwrap_or_else(|| panic!("a {kind}")).clone()
    };
    let release = root.sh("uname -r").finish().code(0).text();
    let mut kernels = artifacts.iter().filter(|kernel| kernel["kind"] == "kernel");
    let kernel = kernels.find(|kernel| kernel["name"] == kernel_variant());
    let kernel = kernel.expect("its kernel");
    assert_eq!(kernel["versions"]["release"], Value::from(release));
    let names = |artifact: &Value| -> Vec<String> {
        let inputs = artifact["inputs"].as_array().cloned().unwrap_or_default();
        let names = inputs.iter().map(|input| input["name"].as_str());
        names.flatten().map(str::to_owned).collect()
    };
    assert!(names(kernel).contains(&"config".to_owned()));
    assert_eq!(names(&of("initfs")), ["vminitd"]);
    assert!(names(&of("program")).contains(&"Cargo.lock".to_owned()));
    let image = of("image");
    assert!(names(&image["inputs"][0]).contains(&"/bin/busybox".to_owned()));
    for words in [&["version", "--verbose"][..], &["system", "info"]] {
        let shown = root.vmm(words).finish();
        for artifact in artifacts {
            let hash = artifact["sha256"].as_str().expect("a hash");
            shown.code(0).stdout_has(&hash[..12]);
        }
    }
}
