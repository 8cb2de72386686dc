//! What lies about on the host of somebody who runs a container: descriptors, damaged files, a directory of another's.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Command, Stdio},
    time::Duration,
};

use end_to_end::{Root, wait_until};

#[test]
fn a_descriptor_that_the_shell_has_open_goes_no_further_than_the_command() {
    let root = Root::new();
    let secret = root.files().join("secret");
    std::fs::write(&secret, "sesame").expect("a file");
    let line = root.run(["--rm", "busybox", "sleep", "1000"]).shell_line();
    let script = format!("exec 9<'{}'; exec {line}", secret.display());
    let mut shell = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("a shell");
    let own = shell.id().cast_signed();
    let machine = wait_until(end_to_end::DEADLINE, || {
        let processes = root.processes();
        processes
            .iter()
            .any(|process| !process.is_vmm())
            .then_some(processes)
    });
    let leaked: Vec<String> = machine
        .iter()
        .flatten()
        .map(|process| (process, process.pid.as_raw_nonzero().get()))
        .filter(|(_, pid)| *pid != own)
        .filter(|(_, pid)| {
            std::fs::read_link(format!("/proc/{pid}/fd/9")).is_ok_and(|path| path == secret)
        })
        .map(|(process, _)| process.to_string())
        .collect();
    shell.kill().expect("a shell to end");
    shell.wait().expect("an end");
    assert!(root.processes_after(Duration::from_secs(5)).is_empty());
    assert!(machine.is_some(), "a machine");
    assert!(leaked.is_empty(), "{leaked:?}");
    root.vmm(["ps", "-a"]).finish().code(0);
}

#[test]
fn a_container_whose_record_is_damaged_keeps_its_data() {
    let root = Root::new();
    root.run(["--name", "kept", "busybox", "touch", "/data"])
        .finish()
        .code(0);
    let id = root.containers()[0]["ID"]
        .as_str()
        .expect("an ID")
        .to_owned();
    let container = root.state().join("containers").join(id);
    std::fs::write(container.join("config.json"), "{").expect("a damaged file");
    // Whatever these say of it.
    let _ = root.vmm(["ps", "-a"]).finish();
    root.sh("true").finish().code(0);
    assert!(container.join("rw.ext4").exists(), "its data");
    std::fs::remove_dir_all(container).expect("a directory");
    // The name is free then.
    root.vmm(["ps", "-a"]).finish().code(0);
}

#[test]
fn one_damaged_record_hides_no_other_container() {
    let root = Root::new();
    for name in ["whole", "damaged"] {
        let run = root.run(["--name", name, "busybox", "true"]).finish();
        run.code(0);
    }
    let containers = root.containers();
    let damaged = containers.iter().find(|found| found["Names"] == "damaged");
    let id = damaged.expect("a container")["ID"].as_str().expect("an ID");
    let state = root.state().join("containers").join(id).join("state.json");
    std::fs::write(&state, "{").expect("a damaged file");
    let list = root.vmm(["ps", "-a"]).finish();
    let removal = root.vmm(["rm", "-f", "damaged"]).finish();
    std::fs::write(&state, "{}").ok();
    list.stdout_has("whole");
    removal.code(0);
}

#[test]
fn nobody_else_may_write_to_the_root_whatever_the_umask() {
    let root = Root::new();
    let layout = root.layout("name a:1\ndirectory /bin 755\ncmd sh\n");
    let load = root.vmm(["image", "load"]).arg(layout).shell_line();
    let status = Command::new("sh")
        .args(["-c", &format!("umask 000; {load}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("a shell").success());
    for directory in [root.state(), root.state().join("images")] {
        let mode = directory
            .metadata()
            .expect("a directory")
            .permissions()
            .mode();
        assert_eq!(mode & 0o022, 0, "{}: {mode:o}", directory.display());
    }
}

#[test]
fn a_root_of_somebody_else_is_refused() {
    let root = Root::new();
    if root.files().metadata().expect("a directory").uid() != 0 {
        return end_to_end::skipped("a_root_of_somebody_else_is_refused", "it takes root");
    }
    let state = root.state();
    let below = ["containers", "images", "kernels", "initfs", "hashes", "run"];
    let below = below.map(|name| state.join(name));
    for directory in std::iter::once(state.clone()).chain(below) {
        std::fs::create_dir_all(&directory).expect("a directory");
        std::os::unix::fs::chown(&directory, Some(65534), None).expect("a directory of nobody's");
        let run = root.sh("true").finish();
        std::os::unix::fs::chown(&directory, Some(0), None).expect("a directory of ours");
        run.fails("another user")
            .complains(&directory.display().to_string());
    }
    // A link of somebody else's leads where that pleases.
    let images = state.join("images");
    std::fs::remove_dir(&images).expect("an empty directory");
    std::os::unix::fs::symlink(root.files(), &images).expect("a link");
    std::os::unix::fs::lchown(&images, Some(65534), None).expect("a link of nobody's");
    let run = root.sh("true").finish();
    std::fs::remove_file(images).expect("a link");
    run.fails("another user");
}
