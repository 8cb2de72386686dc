//! Kernels and initfs that users bring: what is booted is a copy, which nobody changes, and which goes when it is not needed.

use std::{
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use end_to_end::{DEADLINE, Root, Signal, accelerator, initfs, second_kernel, skipped, wait_until};

/// A kernel of the test's own, which says `release` at the end of its release. All are of the same length.
fn kernel(root: &Root, release: &str) -> PathBuf {
    let mut bytes = std::fs::read(second_kernel()).expect("a kernel");
    let original = b"-second";
    assert_eq!(release.len(), original.len());
    let mut places = 0;
    for at in 0..bytes.len() - original.len() {
        if bytes[at..].starts_with(original) {
            bytes[at..at + original.len()].copy_from_slice(release.as_bytes());
            places += 1;
        }
    }
    assert!(places > 0, "a kernel that says what it is");
    let path = root.files().join("vmlinux");
    // In its place, as `cp` does it: whoever has it mapped sees that.
    std::fs::write(&path, bytes).expect("a file for the kernel");
    path
}

/// The folders in which files of `kind` are kept, by their hashes.
fn kept(root: &Root, kind: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.state().join(kind));
    let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
    paths.filter(|path| !path.ends_with("lock")).collect()
}

fn sha256(path: &Path) -> String {
    let file = std::fs::File::open(path).expect("a file to hash");
    imagebuilder::sha256::of_reader(file).expect("a hash")
}

/// What the machines of this root were started with, and what they execute.
fn machine_arguments(root: &Root) -> Vec<String> {
    let machines = root.processes().into_iter().filter(|p| !p.is_vmm());
    let arguments = machines.flat_map(|machine| {
        let path = format!("/proc/{}/cmdline", machine.pid.as_raw_nonzero());
        let mut text = std::fs::read(path).unwrap_or_default();
        text.extend_from_slice(machine.program.as_os_str().as_bytes());
        let words = text.split(|&byte| byte == 0);
        words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect::<Vec<_>>()
    });
    arguments.collect()
}

#[test]
fn only_a_copy_is_booted_and_nobody_can_change_it() {
    let root = Root::new();
    let kernel = kernel(&root, "-orange");
    let archive = root.files().join("archive");
    std::fs::copy(initfs(), &archive).expect("a copy of the initfs");
    let run = root.run(["--rm", "--kernel"]).arg(&kernel);
    let run = run.arg("--initfs").arg(&archive);
    let script = "uname -r; exec sleep 1000";
    let mut run = run.args(["busybox", "sh", "-c", script]).start();
    run.expect("-orange");

    let arguments = machine_arguments(&root).join(" ");
    for (kind, name, source) in [
        ("kernels", "vmlinux", &kernel),
        ("initfs", "initfs.cpio", &archive),
    ] {
        let copy = root.state().join(kind).join(sha256(source)).join(name);
        // Some have them as descriptors, and close them when they have been read.
        let is_told = match accelerator().as_str() {
            "kvm" => false,
            "um" => kind == "kernels",
            _ => true,
        };
        assert!(
            !is_told || arguments.contains(&copy.display().to_string()),
            "{arguments}"
        );
        assert!(
            !arguments.contains(&source.display().to_string()),
            "{arguments}"
        );
        let metadata = copy.metadata().expect("a copy");
        assert_eq!(metadata.permissions().mode() & 0o222, 0);
        assert_eq!(metadata.nlink(), 1);
        assert_eq!(source.metadata().expect("the original").nlink(), 1);
        // The machine does not notice that its user goes on working.
        std::fs::write(source, "").expect("a change");
    }
    let id = root.containers()[0]["ID"]
        .as_str()
        .expect("an ID")
        .to_owned();
    let config = root.state().join("containers").join(id).join("config.json");
    let config = std::fs::read_to_string(config).expect("a configuration");
    for kind in ["kernels", "initfs"] {
        let [copy] = kept(&root, kind).try_into().expect("one copy");
        let hash = copy.file_name().expect("a hash").to_string_lossy();
        assert!(
            config.contains(&format!("\"sha256\":\"{hash}\"")),
            "{config}"
        );
    }
    run.signal(Signal::TERM);
    run.finish().code(143);
}

#[test]
fn a_kernel_that_changes_is_another_kernel() {
    let root = Root::new();
    for release in ["-orange", "-lemons"] {
        let kernel = kernel(&root, release);
        let run = root.run(["--name", release.trim_start_matches('-')]);
        let run = run.arg("--kernel").arg(&kernel);
        run.args(["busybox", "uname", "-r"])
            .finish()
            .code(0)
            .stdout_has(release);
    }
    // Both have a container that may want its kernel again.
    assert_eq!(kept(&root, "kernels").len(), 2);
}

#[test]
fn a_kernel_stays_while_a_container_refers_to_it_and_goes_with_the_last() {
    let root = Root::new();
    let kernel = kernel(&root, "-orange");
    for name in ["first", "second"] {
        let run = root.run(["--name", name, "--kernel"]).arg(&kernel);
        run.args(["busybox", "true"]).finish().code(0);
    }
    std::fs::remove_file(&kernel).expect("a file to remove");
    root.sh("true").finish().code(0);
    assert_eq!(kept(&root, "kernels").len(), 1);
    root.vmm(["rm", "first"]).finish().code(0);
    assert_eq!(kept(&root, "kernels").len(), 1);
    root.vmm(["rm", "second"]).finish().code(0);
    assert_eq!(kept(&root, "kernels"), Vec::<PathBuf>::new());
}

#[test]
fn two_may_bring_the_same_kernel_at_once() {
    let root = Root::alone();
    let kernel = kernel(&root, "-orange");
    let start = || {
        let run = root.run(["--rm", "--kernel"]).arg(&kernel);
        run.args(["busybox", "uname", "-r"]).start()
    };
    let runs = [start(), start(), start()];
    for run in runs {
        run.finish().code(0).stdout_has("-orange");
    }
    assert!(kept(&root, "kernels").len() <= 1);
}

#[test]
fn a_copy_that_was_cut_short_by_a_kill_is_removed() {
    let root = Root::new();
    // It has the headers of a kernel, and takes a while to copy.
    let kernel = kernel(&root, "-orange");
    let file = std::fs::File::options().write(true).open(&kernel);
    file.expect("a file")
        .set_len(1 << 30)
        .expect("a large file");
    let run = root.run(["--rm", "--kernel"]).arg(&kernel);
    let run = run.args(["busybox", "true"]).start();
    let copying = wait_until(DEADLINE, || {
        let kept = kept(&root, "kernels");
        (!kept.is_empty()).then_some(kept)
    });
    run.signal(Signal::KILL);
    drop(run);
    let copying = copying.expect("a copy under way");
    let name = copying[0].file_name().expect("a name").to_string_lossy();
    assert!(name.starts_with('.'), "{copying:?}");
    root.vmm(["ps"]).finish().code(0);
    assert_eq!(kept(&root, "kernels"), Vec::<PathBuf>::new());
}

#[test]
fn a_full_disk_leaves_nothing_of_a_kernel() {
    let root = Root::new();
    let kernel = kernel(&root, "-orange");
    let state = root.state();
    std::fs::create_dir(&state).expect("a folder");
    let line = root.run(["--rm", "--kernel"]).arg(&kernel);
    let line = line.args(["busybox", "true"]).shell_line();
    let list = root.vmm(["ps"]).shell_line();
    let state = state.display();
    let half = kernel.metadata().expect("a kernel").len() / 2;
    let script = format!(
        "mount -t tmpfs -o size={half} none '{state}' || exit 99\n\
         {line}; echo code $?\n{list}\nls -A '{state}/kernels'"
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs");
    let (text, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if !text.contains("code ") {
        return skipped(
            "a_full_disk_leaves_nothing_of_a_kernel",
            "mounting takes root",
        );
    }
    assert!(text.contains("code 125\n"), "{text}{error}");
    assert!(text.ends_with("\nlock\n"), "{text}{error}");
    assert!(error.contains("Cannot copy the kernel"), "{error}");
    assert!(error.contains("No space left on device"), "{error}");
}

#[test]
fn what_is_no_kernel_is_not_copied() {
    let root = Root::new();
    let nonsense = root.files().join("nonsense");
    std::fs::write(&nonsense, [0x90; 100_000]).expect("a file");
    for flag in ["--kernel", "--initfs"] {
        let run = root.run(["--rm", flag]).arg(&nonsense);
        run.args(["busybox", "true"]).finish().fails("nonsense");
    }
    for kind in ["kernels", "initfs"] {
        assert_eq!(kept(&root, kind), Vec::<PathBuf>::new());
    }
}
