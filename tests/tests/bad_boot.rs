//! A machine that cannot be started is one error that says what to do, within a time that the user chooses, and leaves
//! nothing behind but the log that the error names.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use end_to_end::{Root, Vmm, kernel_file};

/// A row of a table: a command, and what its error has in it.
type Row<'a> = (Vmm, &'a [&'a str]);

/// Runs each row's command, which fails with `vmm`'s own code, and checks that nothing is left of it.
#[track_caller]
fn check<const N: usize>(root: &Root, rows: [Row<'static>; N]) {
    for (vmm, parts) in rows {
        vmm.finish().is_refused(125, parts);
        root.expect_nothing_left();
    }
}

/// Writes a file of the test's own.
fn file(root: &Root, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = root.files().join(name);
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// `vmm run --FLAG FILE busybox true`: a container that would stay.
fn boot(root: &Root, flag: &str, file: impl AsRef<Path>) -> Vmm {
    root.run([flag])
        .arg(file.as_ref())
        .args(["busybox", "true"])
}

#[test]
fn a_file_that_is_no_kernel_is_told_with_how_to_get_one() {
    let root = Root::new();
    let whole = kernel_file(b"\xeb\xfe");
    let changed = |at: usize, byte: u8| {
        let mut file = whole.clone();
        file[at] = byte;
        file
    };
    let mut packed = vec![0; 0x1000];
    packed[0x202..0x206].copy_from_slice(b"HdrS");
    let kernel = |name: &str, bytes: &[u8]| boot(&root, "--kernel", file(&root, name, bytes));
    check(
        &root,
        [
            (
                kernel("text", b"a kernel\n"),
                &["text", "no ELF file", "uncompressed vmlinux"],
            ),
            (kernel("empty", b""), &["empty", "uncompressed vmlinux"]),
            (
                kernel("bzImage", &packed),
                &["bzImage", "compressed", "scripts/extract-vmlinux"],
            ),
            (
                kernel("cut", &whole[..0x800]),
                &["cut", "incomplete", "copy or build it again"],
            ),
            (
                kernel("no-pvh", &changed(0x208, 17)),
                &["no-pvh", "no PVH entry point", "CONFIG_PVH=y"],
            ),
            (
                kernel("arm", &changed(18, 183)),
                &["arm", "not for x86-64", "ARCH=x86_64"],
            ),
            (
                boot(&root, "--kernel", "/no/such/file"),
                &["/no/such/file", "No such file", "path of a file"],
            ),
            (
                boot(&root, "--kernel", "/etc"),
                &["/etc is no file", "path of one"],
            ),
        ],
    );
}

#[test]
fn a_file_that_is_no_initfs_is_told_with_how_to_get_one() {
    let root = Root::new();
    let whole = std::fs::read(end_to_end::initfs()).expect("an initfs");
    // Twelve numbers, the last of which is the length of the name, and a checksum that is none.
    let trailer = format!(
        "070701{}{:08x}{:08x}TRAILER!!!\0\0\0\0",
        "0".repeat(88),
        11,
        0
    );
    let initfs = |name: &str, bytes: &[u8]| boot(&root, "--initfs", file(&root, name, bytes));
    check(
        &root,
        [
            (
                initfs("text", b"an initfs\n"),
                &["text", "no cpio archive", "imagebuilder initfs"],
            ),
            (initfs("empty", b""), &["empty", "no cpio archive"]),
            (
                initfs("no-init", trailer.as_bytes()),
                &["no-init", "no /init", "imagebuilder initfs"],
            ),
            (initfs("cut", &whole[..300]), &["cut", "cut off"]),
            (
                boot(&root, "--initfs", "/no/such/file"),
                &["/no/such/file", "No such file", "path of a file"],
            ),
        ],
    );
}

/// `vmm run --rm --start-timeout 2 FLAGS busybox true` with a PID 1 that does what `word` says.
fn init(root: &Root, word: &str) -> Vmm {
    root.run(["--rm", "--start-timeout", "3", "-m", "128m"])
        .args(["--cmdline-append", &format!("hostile={word}")])
        .arg("--initfs")
        .arg(root.initfs_of("hostile-init"))
        .args(["busybox", "true"])
}

const TIMED_OUT: &[&str] = &[
    "did not come up within 3 s",
    "--start-timeout",
    "--debug-console",
];

#[test]
fn a_machine_that_does_not_come_up_is_given_up_in_time() {
    let root = Root::new();
    // It has an entry point and nothing behind it but a jump to itself.
    let spins = file(&root, "spins", kernel_file(b"\xeb\xfe"));
    let spins = root
        .run(["--rm", "--start-timeout", "3", "--kernel"])
        .arg(spins)
        .args(["busybox", "true"]);
    check(
        &root,
        [
            (spins, TIMED_OUT),
            (init(&root, "no-dial"), TIMED_OUT),
            (init(&root, "no-word"), TIMED_OUT),
            (init(&root, "half-frame"), TIMED_OUT),
        ],
    );
}

#[test]
fn an_init_that_hangs_after_its_hello_is_given_up_in_time() {
    let root = Root::new();
    // It takes the container's order and does nothing about it.
    let run = init(&root, "no-token").finish();
    run.code(42);
    let row: Row = (
        init(&root, "no-start"),
        &[
            "did not start the container's process within 3 s",
            "--start-timeout",
        ],
    );
    check(&root, [row]);
}

#[test]
fn an_init_that_ends_or_is_another_programs_is_told() {
    let root = Root::new();
    check(
        &root,
        [
            (
                init(&root, "exit"),
                &["Attempted to kill init!", "all of it: ", "/failed/"],
            ),
            (
                init(&root, "other-version"),
                &[
                    "version 77 of the agent protocol",
                    "use the initfs that came",
                ],
            ),
            (
                root.run(["--rm", "--cmdline-append", "rdinit=/no-such-init"])
                    .args(["busybox", "true"]),
                &["Unable to mount root fs", "all of it: ", "/failed/"],
            ),
        ],
    );
}

#[test]
fn a_kernel_boots_in_the_least_memory_that_is_taken() {
    let root = Root::new();
    let run = root.run(["--rm", "-m", "32m", "busybox", "true"]);
    run.finish().code(0).stdout("").stderr("");
}

#[test]
fn without_an_emulator_there_is_no_container() {
    let root = Root::new();
    let empty = root.files();
    let run = || root.vmm(["run", "--accel", "tcg", "busybox", "true"]);
    let parts: &[&str] = &["qemu-system-x86_64 is not in the PATH", "install QEMU"];
    check(&root, [(run().env("PATH", empty), parts)]);
    let info = root.vmm(["system", "info"]).env("PATH", root.files());
    info.finish().code(0).stdout_has("install QEMU");
}

/// A directory with a `qemu-system-x86_64` that is this script.
fn emulator(root: &Root, script: &str) -> PathBuf {
    let folder = root.files().join("bin");
    std::fs::create_dir_all(&folder).expect("a folder");
    let program = folder.join("qemu-system-x86_64");
    std::fs::write(&program, script).expect("a program");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("a program");
    folder
}

/// Refuses what it does not know, and is as old as it says.
const OLD: &str = "#!/bin/sh\n\
    case \"$1\" in --version) echo 'QEMU emulator version 4.2.1 (Debian)' ;;\n\
    *) echo \"qemu: Property 'microvm-machine.acpi' not found\" >&2; exit 1 ;; esac\n";

/// Does nothing, for ever.
const STUCK: &str = "#!/bin/sh\nexec sleep 1000\n";

#[test]
fn an_emulator_that_is_too_old_is_told_from_one_that_fails() {
    let root = Root::new();
    let run = |script: &str| {
        let path = emulator(&root, script);
        let run = root.vmm(["run", "--rm", "--accel", "tcg"]);
        let run = run.args(["--start-timeout", "3", "busybox", "true"]);
        run.env("PATH", path)
    };
    // Each is written when its command runs.
    run(OLD).finish().is_refused(
        125,
        &[
            "'microvm-machine.acpi' not found",
            "version 4.2, and 5.2 is the oldest",
            "newer QEMU",
        ],
    );
    root.expect_nothing_left();
    let info = root
        .vmm(["system", "info"])
        .env("PATH", emulator(&root, OLD));
    info.finish().code(0).stdout_has("version 4.2, and 5.2");
    run("#!/bin/sh\nexit 3\n")
        .finish()
        .is_refused(125, &["QEMU failed with exit code 3", "another QEMU"]);
    root.expect_nothing_left();
    run("no program\n")
        .finish()
        .is_refused(125, &["Cannot start", "Exec format error"]);
    root.expect_nothing_left();
    run(STUCK).finish().is_refused(125, TIMED_OUT);
    root.expect_nothing_left();
}
