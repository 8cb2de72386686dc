//! Configuration files: the system's, the user's, the environment and flags, of which each wins over the one before.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use end_to_end::{Finished, Root, Vmm, accelerator, can_mount, need};

/// Writes a configuration file in `folder`, as an editor would with the usual umask.
fn configure(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("vmm/config.toml");
    fs::create_dir_all(folder.join("vmm")).expect("a folder for the configuration");
    fs::write(&path, text).expect("a configuration");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a configuration");
    path
}

/// The user's file.
fn configure_user(root: &Root, text: &str) -> PathBuf {
    let home = root.files().join("../home/.config");
    fs::create_dir_all(&home).expect("a folder in the home directory");
    configure(&home.canonicalize().expect("the home directory"), text)
}

/// `vmm ARGUMENTS…` without a `--root`.
fn vmm(root: &Root, arguments: &[&str]) -> Vmm {
    let program = end_to_end::vmm();
    let program = root.program(program.to_str().expect("a name"));
    program.env("VMM_ROOT", "").args(arguments)
}

/// The memory that a container sees, in kB.
fn memory(run: &Finished) -> u64 {
    run.code(0).stderr("");
    let text = run.text();
    let number = text.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    number.unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn what_is_configured_holds_until_a_flag_says_otherwise() {
    let root = Root::new();
    let accel = accelerator();
    configure_user(&root, &format!("accel = \"{accel}\"\nmemory = \"128m\"\n"));
    let show = ["busybox", "head", "-n", "1", "/proc/meminfo"];
    let run = root.vmm(["run", "--rm"]).args(show).finish();
    let configured = memory(&run);
    assert!((90 << 10..128 << 10).contains(&configured), "{configured}");
    let run = root.vmm(["run", "--rm", "-m", "256m"]).args(show).finish();
    let asked = memory(&run);
    assert!((200 << 10..256 << 10).contains(&asked), "{asked}");
    // It is the accelerator of the flag that is missing here.
    let run = root.vmm(["run", "--rm", "--accel", "tcg", "busybox", "true"]);
    run.env("PATH", root.files()).finish().fails("tcg");
}

#[test]
fn configured_isolation_admits_no_less_and_a_flag_wins() {
    let root = Root::new();
    let file = configure_user(&root, "isolation = \"hardware\"\n");
    // Those that are isolated by less than hardware, and what finds none.
    let refused: &[&str] = match accelerator().as_str() {
        "kvm" => &["um", "tcg"],
        _ => &["auto", "um", "tcg"],
    };
    for accel in refused {
        let run = root.vmm(["run", "--rm", "--accel", accel, "busybox", "true"]);
        let file = file.to_str().expect("a name");
        run.finish()
            .is_refused(125, &["--isolation hardware", "configured in", file]);
    }
    let any = ["--isolation", "any"];
    root.run(["--rm"])
        .args(any)
        .args(["busybox", "true"])
        .finish()
        .code(0);
    root.expect_nothing_left();
}

#[test]
fn the_root_is_a_flags_or_the_environments_or_the_configured() {
    let root = Root::new();
    let configured = root.files().join("configured");
    configure_user(
        &root,
        &format!("root = {:?}\n", configured.display().to_string()),
    );
    let of = |vmm: Vmm| {
        let info = vmm.finish();
        info.code(0).stderr("");
        info.json()[0]["Root"].as_str().map(PathBuf::from)
    };
    let info = ["system", "info", "--format", "json"];
    assert_eq!(of(vmm(&root, &info)), Some(configured));
    let state = root.state();
    assert_eq!(
        of(vmm(&root, &info).env("VMM_ROOT", &state)),
        Some(state.clone())
    );
    assert_eq!(of(root.vmm(info).env("VMM_ROOT", "/nowhere")), Some(state));
}

#[test]
fn a_file_that_is_wrong_is_one_error_and_nothing_is_done() {
    let root = Root::new();
    for (text, parts) in [
        (
            "memory = \"1g\"\nmemroy = \"1g\"\n",
            &[
                "Line 2 of",
                "config.toml",
                "\"memroy\"",
                "accel, cpus, isolation, memory and root",
            ][..],
        ),
        ("accel = \"hvf\"\n", &["Line 1 of", "auto, kvm, um or tcg"]),
        ("accel = um\n", &["Line 1 of", "not right"]),
    ] {
        configure_user(&root, text);
        for command in [&["ps"][..], &["run", "--rm", "busybox", "true"]] {
            root.vmm(command).finish().is_refused(125, parts);
        }
        // Who asks for help gets it, and no more is read.
        for command in [
            &["--help"][..],
            &["run", "--help"],
            &["version"],
            &["completion", "bash"],
        ] {
            root.vmm(command).finish().code(0).stderr("");
        }
    }
    let file = configure_user(&root, "");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("a mode");
    root.vmm(["ps"])
        .finish()
        .is_refused(125, &["can be written by others", "chmod go-w"]);
    fs::remove_file(file).expect("no configuration");
    root.expect_nothing_left();
}

/// Runs a command with another folder in the place of `/etc`.
const WITH_ETC: &str = "mount --bind \"$1\" /etc && shift && exec \"$@\"";

#[test]
fn the_systems_file_comes_before_the_users() {
    need!(can_mount());
    let root = Root::new();
    let etc = root.files().join("etc");
    let (system, users) = (root.files().join("system"), root.files().join("users"));
    configure(
        &etc,
        &format!(
            "root = {:?}\nisolation = \"hardware\"\n",
            system.display().to_string()
        ),
    );
    let with_etc = |arguments: &[&str]| {
        let unshare = root.program("unshare").env("VMM_ROOT", "");
        let unshare = unshare.args(["--mount", "sh", "-c", WITH_ETC, "sh"]);
        unshare
            .arg(&etc)
            .arg(end_to_end::vmm())
            .args(arguments)
            .finish()
    };
    let info = || {
        let info = with_etc(&["system", "info", "--format", "json"]);
        info.code(0);
        info.json()[0].clone()
    };
    assert_eq!(info()["Root"].as_str().map(PathBuf::from), Some(system));
    // By what a host without hardware virtualization would find.
    let words = ["run", "--rm", "--accel", "tcg", "busybox", "true"];
    with_etc(&words).is_refused(
        125,
        &["--isolation hardware", "configured in /etc/vmm/config.toml"],
    );
    let file = configure_user(
        &root,
        &format!("root = {:?}\n", users.display().to_string()),
    );
    let both = info();
    assert_eq!(both["Root"].as_str().map(PathBuf::from), Some(users));
    let files = serde_json::json!(["/etc/vmm/config.toml", file]);
    assert_eq!(both["Config"], files);
    // What the user does not say is still the system's.
    with_etc(&words).fails("--isolation hardware");
    let system = etc.join("vmm/config.toml");
    std::os::unix::fs::chown(&system, Some(12345), None).expect("another owner");
    with_etc(&["ps"]).is_refused(125, &["/etc/vmm/config.toml", "uid 12345"]);
}
