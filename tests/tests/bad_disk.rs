//! A root that cannot be written to, or has no room: whatever write it is that fails, one true error says so, and nothing
//! is left behind.

use std::path::Path;

use end_to_end::{DEADLINE, Finished, Root, SmallDisk, Vmm, can_mount, need};

/// A user who owns nothing.
const NOBODY: u32 = 65534;

/// Units of room up to which each is tried.
const FINE: u64 = 24;

/// What a root has that nothing but its removal takes away, if there is no image of its own in it.
const OWN_FILES: [&str; 9] = [
    "containers",
    "containers/lock",
    "containers/names",
    "format",
    "hashes",
    "images",
    "images/lock",
    "images/names.json",
    "run",
];

#[test]
fn a_root_that_is_not_writable_is_told_with_another() {
    let root = Root::new();
    need!(can_mount());
    let closed = root.files().join("closed");
    std::fs::create_dir(&closed).expect("a directory");
    let parts = &["closed", "Permission denied", "--root", "VMM_ROOT"];
    let layout = root.layout("name a\ndirectory /bin 755\n");
    let vmm = nobodys(&root);
    for command in [
        vmm().args(["run", "busybox", "true"]),
        vmm().args(["image", "load"]).arg(layout),
    ] {
        let command = command.env("VMM_ROOT", closed.join("root"));
        command.finish().is_refused(125, parts);
    }
    assert!(names(&closed).is_empty());
}

#[test]
fn a_home_that_is_read_only_is_told_with_another_root() {
    let root = Root::new();
    need!(can_mount());
    let home = root.files().join("home");
    let disk = SmallDisk::mount(&home, "mode=777");
    disk.make_read_only();
    let vmm = nobodys(&root);
    let run = vmm()
        .args(["run", "busybox", "true"])
        .env("HOME", &home)
        .env("VMM_ROOT", "");
    let run = run.finish();
    run.is_refused(125, &["home/.local", "Read-only file system", "--root"]);
    // What only looks needs nothing to write to.
    for words in [&["ps", "-a"][..], &["image", "ls"], &["system", "info"]] {
        let look = vmm().args(words).env("HOME", &home);
        look.env("VMM_ROOT", "").finish().code(0);
    }
}

/// `vmm` as somebody else has it, who need not be able to see where it was built.
fn nobodys(root: &Root) -> impl Fn() -> Vmm {
    let program = root.install().join("bin/vmm");
    let program = program.to_string_lossy().into_owned();
    move || root.program(&program).as_user(NOBODY)
}

#[test]
fn whatever_write_of_a_run_finds_no_room_is_told() {
    let root = Root::new();
    need!(can_mount());
    sweep(&root, "size=%4096", 64, || {
        root.run(["--rm", "busybox", "true"])
    });
}

#[test]
fn whatever_file_of_a_run_finds_no_room_is_told() {
    let root = Root::new();
    need!(can_mount());
    sweep(&root, "nr_inodes=%1", 64, || {
        root.run(["--rm", "busybox", "true"])
    });
}

#[test]
fn whatever_write_of_a_container_that_stays_finds_no_room_is_told() {
    let root = Root::new();
    need!(can_mount());
    sweep(&root, "size=%4096", 64, || {
        root.run(["--name", "stays", "busybox", "touch", "/file"])
    });
}

#[test]
fn whatever_write_of_a_load_finds_no_room_is_told() {
    let root = Root::new();
    need!(can_mount());
    std::fs::write(root.files().join("noise"), end_to_end::noise(1, 40_000)).expect("a file");
    let layout = root.layout("name a\ndirectory /bin 755\nfile /bin/noise 755 noise\n");
    let load = || root.vmm(["image", "load", "--quiet"]).arg(&layout);
    sweep(&root, "size=%4096", 100, load);
    sweep(&root, "nr_inodes=%1", 100, load);
}

#[test]
fn a_disk_that_fills_up_ends_the_container_that_fills_it() {
    let root = Root::new();
    need!(can_mount());
    let _disk = SmallDisk::mount(&root.state(), "size=8m");
    let run = root.sh("dd if=/dev/zero of=/large bs=1M count=32 2>/dev/null; sync; sleep 1000");
    let run = run
        .start()
        .finish_within(std::time::Duration::from_secs(30));
    run.is_refused(125, &["is full", "was stopped", "make room"]);
    root.expect_nothing_left();
}

/// Runs a command in a root on a disk of so many units of room, more of them each time until it succeeds. `option` is
/// that of the disk, with the size of a unit behind the `%`.
#[track_caller]
fn sweep(root: &Root, option: &str, most: u64, command: impl Fn() -> Vmm) {
    let (name, unit) = option.split_once('%').expect("an option with its unit");
    let unit: u64 = unit.parse().expect("a unit");
    // From some size on it is the guest that finds no room, here or there.
    let rooms = (1..FINE).chain((FINE..=most).step_by(4));
    for (refused, room) in rooms.enumerate() {
        let disk = SmallDisk::mount(&root.state(), &format!("{name}{}", room * unit));
        let run = command().finish();
        if run.succeeded() {
            assert!(root.processes_after(DEADLINE).is_empty());
            drop(disk);
            println!("{option}: {refused} refusals");
            // What needs no room has not been tried.
            assert!(refused > 2, "{refused}");
            return;
        }
        check(root, &run, &format!("{name}{}", room * unit));
    }
    panic!("{most} units of {option} were not enough");
}

/// Checks that a command has said what was wrong, and left nothing.
#[track_caller]
fn check(root: &Root, run: &Finished, option: &str) {
    run.check(!run.error_text().is_empty(), option);
    run.is_refused(125, &[]);
    // The machine is taken down behind its command.
    assert!(root.processes_after(DEADLINE).is_empty());
    let error = run.error_text();
    let says_why = error.contains("No space left on device") || error.contains("is full");
    run.check(says_why, &format!("that there is no room, with {option}"));
    run.check(
        error.matches("No space left on device").count() <= 1,
        "each cause once",
    );
    run.check(error.contains("make room"), "what to do");
    // A container that has run, and was not to be removed, is still there: it can be seen, and removed.
    for container in root.containers() {
        let name = container["Names"].as_str().expect("a name").to_owned();
        run.check(name == "stays", "no other container");
        root.vmm(["rm", &name]).finish().code(0);
    }
    let names = names(&root.state());
    let left: Vec<&String> = names
        .iter()
        // What is known of the installation's files is worth keeping.
        .filter(|name| !OWN_FILES.contains(&name.as_str()) && !name.starts_with("hashes/"))
        .collect();
    run.check(left.is_empty(), &format!("nothing left, but got {left:?}"));
}

/// The paths of everything below `folder`, as seen from there.
fn names(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            let name = path.strip_prefix(folder).expect("a path below the folder");
            found.push(name.to_string_lossy().into_owned());
        }
    }
    found
}
