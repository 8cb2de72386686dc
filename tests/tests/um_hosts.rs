//! A kernel as a process on hosts that permit less: to ordinary users, in containers of other kinds, without namespaces and
//! without filters.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    time::Duration,
};

use end_to_end::{Process, Root, Running, Signal, Vmm, accelerator, can_mount, wait_until};

/// A user who has nothing.
const USER: u32 = 12_345;

/// What Debian's container tools put around every container: package golang-github-containers-common.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// Only this kind of machine depends on what a host permits.
fn is_um() -> Result<(), String> {
    match accelerator().as_str() {
        "um" => Ok(()),
        other => Err(format!("{other} needs none of it")),
    }
}

/// The profile, if it is there.
fn profile() -> Result<(), String> {
    match fs::exists(PROFILE) {
        Ok(true) => Ok(()),
        _ => Err(format!("{PROFILE} is not there")),
    }
}

/// A place of a user's own on a host of some kind.
struct Place {
    root: Root,
    /// What `vmm` is started by.
    host: Vec<String>,
}

impl Place {
    /// On a host with these rules (`src/bin/under.rs`), for whoever runs the tests.
    fn under(rules: &[&str]) -> Self {
        let root = Root::new();
        let mut host = vec![env!("CARGO_BIN_EXE_under").to_owned()];
        host.extend(rules.iter().map(|rule| (*rule).to_owned()));
        host.push("--".to_owned());
        let place = Self { root, host };
        let home = place.home();
        fs::create_dir(&home).expect("a folder");
        // Whatever the umask.
        let open = || PermissionsExt::from_mode(0o755);
        for folder in [place.root.as_ref(), &place.root.files()] {
            fs::set_permissions(folder, open()).expect("a folder that all may enter");
        }
        place
    }

    /// The same for an ordinary user. It takes root to become one.
    fn of_user(rules: &[&str]) -> Self {
        let mut place = Self::under(rules);
        chown(place.home(), Some(USER), Some(USER)).expect("a folder of the user's");
        let user = USER.to_string();
        let words = [
            "setpriv",
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
        ];
        place.prepend(&words);
        place
    }

    /// The same in a container without privileges: with namespaces, this filter, nothing of the host that can be written to,
    /// and shared memory that is small and takes no programs.
    fn in_container(rules: &[&str]) -> Self {
        let mut place = Self::under(rules);
        chown(place.home(), Some(USER), Some(USER)).expect("a folder of the user's");
        let shm = place.root.files().join("shm");
        fs::create_dir(&shm).expect("a folder");
        let (user, home) = (USER.to_string(), place.home());
        let (shm, home) = (shm.display().to_string(), home.display().to_string());
        let script =
            format!("mount -t tmpfs -o noexec,size=64k,mode=1777 none {shm} && exec \"$@\"");
        place.prepend(&[
            "unshare",
            "--mount",
            "sh",
            "-c",
            &script,
            "sh", //
            "setpriv",
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups", //
            "bwrap",
            "--unshare-all",
            "--die-with-parent",
            "--cap-drop",
            "ALL", //
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev", //
            "--bind",
            &shm,
            "/dev/shm",
            "--bind",
            &home,
            &home,
            "--",
        ]);
        place
    }

    fn prepend(&mut self, words: &[&str]) {
        let words = words.iter().map(|word| (*word).to_owned());
        self.host.splice(0..0, words);
    }

    fn home(&self) -> PathBuf {
        self.root.files().join("home")
    }

    /// `vmm ARGUMENTS…` there.
    fn vmm(&self, arguments: &[&str]) -> Vmm {
        let (first, more) = self.host.split_first().expect("a program");
        let vmm = self.root.program(first).args(more);
        let home = self.home();
        vmm.arg("env")
            .arg(format!("HOME={}", home.display()))
            .arg(format!("TMPDIR={}", home.display()))
            .arg("XDG_RUNTIME_DIR=")
            .arg(format!("VMM_ROOT={}", home.join("state").display()))
            .arg(end_to_end::vmm())
            .args(arguments)
    }

    /// `vmm run --rm MORE busybox sh -c SCRIPT` there.
    fn sh(&self, more: &[&str], script: &str) -> Vmm {
        self.vmm(&["run", "--rm", "--accel", "um"])
            .args(more)
            .args(["busybox", "sh", "-c", script])
    }

    /// What `vmm system info` says of a layer: whether it is there, and what about it.
    fn layer(&self, name: &str) -> (bool, String) {
        let info = self.vmm(&["system", "info", "--format", "json"]).finish();
        let info = info.code(0).json().remove(0);
        let layers = info["Sandbox"].as_array().expect("layers");
        let layer = layers.iter().find(|layer| layer["Layer"] == name);
        let layer = layer.expect("a layer of this name");
        let remark = layer["Remark"].as_str().expect("a remark");
        (layer["Permitted"] == true, remark.to_owned())
    }

    /// The evil kernel there, at `attempt`.
    fn evil(&self, attempt: &str) -> Vmm {
        let kernel = end_to_end::artifact("test/guest-tools/evil-kernel", "make build");
        self.vmm(&["run", "--rm", "--accel", "um", "-m", "128m"])
            .arg("--kernel")
            .arg(kernel)
            .arg("--cmdline-append")
            .arg(format!("evil={attempt}"))
            .args(["busybox", "true"])
    }
}

/// The kernel's process of a run, once it is there.
fn kernel(run: &Running) -> Process {
    let found = wait_until(end_to_end::DEADLINE, || {
        let helpers = run.helpers();
        helpers
            .into_iter()
            .find(|helper| helper.arguments.starts_with("linux ") && !helper.is_vmm())
    });
    found.expect("a kernel that is a process")
}

/// A field of `/proc/PID/status`.
fn status(process: &Process, field: &str) -> String {
    let path = format!("/proc/{}/status", process.pid.as_raw_pid());
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.strip_prefix(':'));
    value.unwrap_or("?").trim().to_owned()
}

/// The parent of a kernel's process, which is its supervisor.
fn supervisor(kernel: &Process, run: &Running) -> Process {
    let parent = status(kernel, "PPid");
    let mut helpers = run.helpers();
    helpers.retain(|helper| helper.pid.as_raw_pid().to_string() == parent);
    helpers.pop().expect("a supervisor")
}

/// Expects of a kernel's process the least that confines one: what does not depend on the host.
fn expect_the_least(kernel: &Process) {
    for (field, expected) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(status(kernel, field), expected, "{field}");
    }
    let pid = kernel.pid.as_raw_pid();
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("its environment");
    assert!(environment.is_empty(), "{environment:?}");
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors") {
        let file = fs::read_link(entry.expect("a descriptor").path()).unwrap_or_default();
        let name = file.to_string_lossy();
        let is_expected = ["pipe:", "socket:", "anon_inode:", "/memfd:", "/dev/null"]
            .iter()
            .any(|kind| name.starts_with(kind))
            || name.contains("initfs");
        assert!(is_expected, "{name}");
    }
}

/// Expects containers to be what they are anywhere.
fn expect_containers(place: &Place) {
    let run = place
        .sh(&[], "echo hello; echo there >&2; exit 42")
        .finish();
    run.code(42).stdout("hello\n").stderr("there\n");
    let noise = end_to_end::noise(3, 3_000_000);
    let cat = place.vmm(&["run", "--rm", "-i", "--accel", "um", "busybox", "cat"]);
    let cat = cat.input(end_to_end::Input::Bytes(noise.clone())).finish();
    cat.code(0).stdout(noise);
    // As many programs at a time as ever, and nothing of the host's shared memory.
    let script = "for i in $(seq 50); do sleep 0.1 & done; wait; \
                  dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; ls -s /dev/shm/x";
    let run = place.sh(&[], script).finish();
    run.code(0).stdout("  8192 /dev/shm/x\n");
    let image = place.home().join("mine.tar");
    fs::write(&image, "").expect("a file");
    let tar = place.sh(&[], "tar c bin etc").output_to(&image).finish();
    tar.code(0);
    fs::set_permissions(&image, PermissionsExt::from_mode(0o644)).expect("an archive for all");
    let load = place.vmm(&["image", "load", "--name", "mine"]).arg(image);
    load.finish().code(0);
    let run = place.vmm(&[
        "run",
        "--accel",
        "um",
        "--name",
        "kept",
        "mine",
        "/bin/true",
    ]);
    run.finish().code(0);
    place.vmm(&["rm", "kept"]).finish().code(0);
}

#[test]
fn an_ordinary_user_needs_nothing_more() {
    end_to_end::need!(is_um());
    end_to_end::need!(can_mount());
    let place = Place::of_user(&[]);
    expect_containers(&place);
    for layer in [
        "privileges",
        "filter",
        "user",
        "limits",
        "namespaces",
        "root",
    ] {
        let (is_there, remark) = place.layer(layer);
        assert!(is_there, "{layer}: {remark}");
    }
    let mut run = place.sh(&[], "echo up; sleep 1000").start();
    run.expect("up");
    let kernel = kernel(&run);
    expect_the_least(&kernel);
    let user = status(&kernel, "Uid");
    assert!(user.split('\t').all(|id| id == USER.to_string()), "{user}");
    end(run);
}

#[test]
fn in_a_container_of_another_kind_a_kernel_has_what_that_permits() {
    end_to_end::need!(is_um());
    end_to_end::need!(can_mount());
    end_to_end::need!(end_to_end::installed("bwrap"));
    end_to_end::need!(profile());
    // Podman's own lets everybody have namespaces, Docker's does not.
    for (rules, permitted) in [(&[PROFILE][..], true), (&[PROFILE, "no-namespaces"], false)] {
        let place = Place::in_container(rules);
        expect_containers(&place);
        for layer in ["privileges", "filter", "user", "limits"] {
            let (is_there, remark) = place.layer(layer);
            assert!(is_there, "{layer}: {remark}");
        }
        for layer in ["namespaces", "root"] {
            let (is_there, remark) = place.layer(layer);
            assert_eq!(is_there, permitted, "{layer}: {remark}");
            assert!(
                permitted || remark.contains("with a seccomp profile that allows"),
                "{remark}"
            );
        }
        let mut run = place.sh(&[], "echo up; sleep 1000").start();
        run.expect("up");
        expect_the_least(&kernel(&run));
        end(run);
    }
}

#[test]
fn without_namespaces_roots_kernel_is_nobody() {
    end_to_end::need!(is_um());
    end_to_end::need!(can_mount());
    let place = Place::under(&["no-namespaces"]);
    let mut runs: Vec<Running> = (0..2)
        .map(|_| place.sh(&[], "echo up; sleep 1000").start())
        .collect();
    let mut users = Vec::new();
    for run in &mut runs {
        run.expect("up");
        let kernel = kernel(run);
        expect_the_least(&kernel);
        assert_eq!(status(&kernel, "CapBnd"), "0000000000000000");
        assert_eq!(status(&kernel, "Groups"), "");
        let user = status(&kernel, "Uid");
        let ids: Vec<&str> = user.split('\t').collect();
        assert!(ids.len() == 4 && !ids.contains(&"0"), "{user}");
        assert_eq!(user, status(&kernel, "Gid"));
        users.push(kernel);
    }
    runs.into_iter().for_each(end);
}

#[test]
fn without_namespaces_nothing_outlives_its_machine() {
    end_to_end::need!(is_um());
    let mut places = vec![Place::under(&["no-namespaces"])];
    if can_mount().is_ok() {
        places.push(Place::of_user(&["no-namespaces"]));
    }
    for place in places {
        assert!(!place.layer("namespaces").0);
        for death in ["kernel", "supervisor"] {
            // A kernel with processes of its guest, and one whose processes go their own ways and hear no signal.
            let script = "for i in $(seq 20); do sleep 1000 & done; echo up; wait";
            for vmm in [place.sh(&[], script), place.evil("forks-away")] {
                let run = vmm.start();
                let kernel = kernel(&run);
                let all = wait_until(end_to_end::DEADLINE, || {
                    let helpers = run.helpers();
                    let of_guest = |helper: &&Process| !helper.is_vmm() && helper.pid != kernel.pid;
                    let count = helpers.iter().filter(of_guest).count();
                    (count >= 20).then_some(helpers)
                });
                let all = all.expect("processes of the guest");
                match death {
                    "kernel" => kernel.kill(),
                    _ => supervisor(&kernel, &run).kill(),
                }
                let gone = || {
                    let path = |process: &&Process| {
                        fs::exists(format!("/proc/{}", process.pid.as_raw_pid())).unwrap_or(true)
                    };
                    let left: Vec<_> = all
                        .iter()
                        .filter(path)
                        .filter(|left| left.pid != run.pid())
                        .collect();
                    left.is_empty().then_some(())
                };
                let gone = wait_until(Duration::from_secs(20), gone);
                let left: Vec<_> = place.root.processes();
                assert!(gone.is_some(), "{death} was killed: {left:#?}");
                run.finish().code(125);
            }
        }
        place.root.expect_nothing_left();
    }
}

#[test]
fn without_filters_only_who_asks_for_it_gets_a_kernel() {
    end_to_end::need!(is_um());
    let place = Place::under(&["no-filters"]);
    let (is_there, remark) = place.layer("filter");
    assert!(
        !is_there && remark.contains("allows seccomp(2)"),
        "{remark}"
    );
    let run = place.sh(&[], "echo hello").finish();
    run.fails("Cannot enter the filter of system calls")
        .complains("--sandbox weak");
    let mut run = place
        .sh(&["--sandbox", "weak"], "echo hello; sleep 1000")
        .start();
    run.expect("hello");
    let kernel = kernel(&run);
    // The one around everything.
    assert_eq!(status(&kernel, "Seccomp_filters"), "1");
    assert_eq!(status(&kernel, "CapEff"), "0000000000000000");
    assert_eq!(status(&kernel, "NoNewPrivs"), "1");
    end(run);
    // Where there are some it changes nothing.
    let place = Place::under(&[]);
    let mut run = place
        .sh(&["--sandbox", "weak"], "echo up; sleep 1000")
        .start();
    run.expect("up");
    expect_the_least(&self::kernel(&run));
    end(run);
    let run = place.sh(&["--sandbox", "strong"], "true").finish();
    run.complains("choose minimum or weak");
}

/// Ends a run that would go on.
fn end(run: Running) {
    let program = fs::read_link(format!("/proc/{}/exe", run.pid().as_raw_pid()));
    if program.is_ok_and(|program| program.ends_with("vmm")) {
        run.signal(Signal::TERM);
    } else {
        // Whoever stands between us and the command passes no signal on.
        let mut helpers = run.helpers();
        helpers.retain(|helper| helper.is_vmm() && helper.arguments.contains(" run "));
        helpers.iter().for_each(|vmm| vmm.signal(Signal::TERM));
    }
    run.finish_within(Duration::from_secs(30)).code(143);
}
