//! `make setup`, by somebody who is not root: nothing is installed, and one command is said that would.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use end_to_end::{Root, need};

/// Runs the script behind `make setup` as nobody, on this machine without the sources that packages have installed. A
/// home directory that cannot be written to is no reason to say less.
const AS_NOBODY: &str = "mount --bind \"$1\" /usr/src && cd \"$2\" && \
    exec setpriv --reuid=65534 --regid=65534 --clear-groups \
    env -i HOME=/nonexistent PATH=/usr/bin:/bin scripts/setup";

#[test]
fn whoever_is_not_root_is_told_one_command() {
    need!(can_hide_folders());
    let root = Root::new();
    let (empty, copy) = (root.files().join("empty"), root.files().join("copy"));
    for folder in [
        &empty,
        &copy.join("scripts"),
        &copy.join("kernel-config/variants"),
    ] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    // Where this is cloned, nobody may be allowed to look.
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let variant = "kernel-config/variants/default";
    for file in ["scripts/setup", "scripts/common.sh", variant] {
        std::fs::copy(project.join(file), copy.join(file)).expect("a copy of a file");
    }
    let variant = std::fs::read_to_string(project.join(variant)).expect("the kernel's variant");
    let mut lines = variant.lines();
    let series = lines.find_map(|line| line.strip_prefix("series "));
    let package = format!("linux-source-{}", series.expect("a series of Linux").trim());

    let setup = root
        .program("unshare")
        .args(["--mount", "sh", "-c", AS_NOBODY, "sh"]);
    let setup = setup.arg(empty).arg(copy).finish();
    let setup = setup.code(1);
    setup.stdout_has(&format!("{package}  the kernel's source"));
    let text = setup.error_text();
    let mut commands = text.lines().filter(|line| line.starts_with("  "));
    let command = commands.next().unwrap_or_default();
    setup.check(
        command.contains("apt-get install --no-install-recommends ")
            && command.contains(&package)
            && command.ends_with('\'')
            && commands.next().is_none(),
        "one command that installs what is missing",
    );
}

/// Whether a folder can be hidden from one program.
fn can_hide_folders() -> Result<(), String> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "true"]).stderr(Stdio::null());
    match unshare.status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err("only root may hide a folder of the system".to_owned()),
    }
}
