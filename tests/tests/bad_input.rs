//! A command line that cannot be done what it says gets one error that says what to do, and leaves nothing behind.
//!
//! Nothing here boots a machine but where it says so.

use std::path::Path;

use end_to_end::{Root, Vmm};

/// Longer than the kernel's command line.
const LONG: usize = 3000;

/// A row of a table: a command, its exit code, and what its error has in it.
type Row<'a> = (Vmm, i32, &'a [&'a str]);

/// Runs each row's command, and checks that nothing is left of it.
#[track_caller]
fn check<const N: usize>(root: &Root, rows: [Row<'static>; N]) {
    for (vmm, code, parts) in rows {
        vmm.finish().is_refused(code, parts);
        root.expect_nothing_left();
    }
}

/// `vmm run FLAGS busybox true`
fn run(root: &Root, flags: &[&str]) -> Vmm {
    root.run(flags).args(["busybox", "true"])
}

#[test]
fn a_word_that_is_none_is_named_with_what_may_be_meant() {
    let root = Root::new();
    check(
        &root,
        [
            (root.vmm(["rnu"]), 125, &["'rnu'", "'run'", "--help"]),
            (root.vmm(["nonsense"]), 125, &["'nonsense'", "--help"]),
            (root.vmm(["image", "lod"]), 125, &["'lod'", "'load'"]),
            (
                run(&root, &["--memroy", "1g"]),
                125,
                &["'--memroy'", "'--memory'", "--help"],
            ),
            (run(&root, &["--bogus"]), 125, &["'--bogus'", "--help"]),
            (root.vmm(["run"]), 125, &["<IMAGE>", "--help"]),
            (
                root.vmm(["ps", "--format", "xml"]),
                125,
                &["'xml'", "table, json"],
            ),
            (root.vmm(["rm"]), 125, &["<CONTAINER>", "--help"]),
            (
                root.run(["busyboks", "true"]),
                125,
                &["no image busyboks", "did you mean busybox?", "vmm image ls"],
            ),
            (
                root.run(["busybox:lates", "true"]),
                125,
                &["no image busybox:lates", "vmm image ls"],
            ),
            (
                root.run(["no-such-image", "true"]),
                125,
                &["no image no-such-image", "vmm image load"],
            ),
            (
                root.run(["no/Such", "true"]),
                125,
                &["\"no/Such\"", "lower case"],
            ),
            (
                root.vmm(["rm", "nobody"]),
                1,
                &["no container nobody", "vmm ps -a"],
            ),
            (
                root.vmm(["image", "rm", "nothing"]),
                1,
                &["no image nothing", "vmm image ls"],
            ),
            (
                root.vmm(["image", "rm", "busybox"]),
                1,
                &["busybox belongs to the installation"],
            ),
        ],
    );
}

#[test]
fn without_a_command_there_is_help() {
    let root = Root::new();
    let run = root.vmm([""; 0]).finish();
    run.code(125).stdout("");
    run.check(run.error_text().contains("vmm run --rm"), "examples");
}

#[test]
fn a_value_that_is_none_is_named_with_what_would_be_one() {
    let root = Root::new();
    check(
        &root,
        [
            (run(&root, &["-m", "plenty"]), 125, &["'plenty'", "512m"]),
            (run(&root, &["-m", "0"]), 125, &["'0'", "32 MiB"]),
            (run(&root, &["-m", "31m"]), 125, &["'31m'", "32 MiB"]),
            (run(&root, &["-m", "2000t"]), 125, &["'2000t'", "1 TiB"]),
            (
                run(&root, &["-m", "1000g"]),
                125,
                &["1024000 MiB", "this machine has", "--memory"],
            ),
            (run(&root, &["--cpus", "many"]), 125, &["'many'", "0.5"]),
            (run(&root, &["--cpus", "0"]), 125, &["'0'", "0.01"]),
            (
                run(&root, &["--tmpfs", "not/absolute"]),
                125,
                &["'not/absolute'", "/tmp:size=64m"],
            ),
            (run(&root, &["--tmpfs", "/a:bind"]), 125, &["bind", "size="]),
            (
                root.vmm(["run", "--accel", "abacus", "busybox", "true"]),
                125,
                &["'abacus'", "auto, kvm, um or tcg"],
            ),
            (
                run(&root, &["--isolation", "soft"]),
                125,
                &["'soft'", "any or hardware"],
            ),
            (
                run(&root, &["--isolation", "hardware"]),
                125,
                &["--isolation hardware"],
            ),
            (
                run(&root, &["--mitigations", "some"]),
                125,
                &["'some'", "auto or off"],
            ),
            (
                run(&root, &["--start-timeout", "0"]),
                125,
                &["'0'", "number of seconds"],
            ),
            (
                run(&root, &["-w", "relative"]),
                125,
                &["\"relative\"", "begin it with /"],
            ),
            (run(&root, &["-e", "=x"]), 125, &["\"=x\"", "NAME=VALUE"]),
            (
                run(&root, &["--env-file", "/no/such/file"]),
                125,
                &["/no/such/file", "No such file"],
            ),
            (
                run(&root, &["--name", "-"]),
                125,
                &["\"-\"", "letters, digits"],
            ),
            (
                run(&root, &["--hostname", "a b"]),
                125,
                &["\"a b\"", "letters, digits"],
            ),
            (
                run(&root, &["--hostname", &"x".repeat(65)]),
                125,
                &["host name has 65 bytes", "64 at most"],
            ),
            (
                run(&root, &["--cmdline-append", &"x".repeat(LONG)]),
                125,
                &["has 3000 bytes", "1024 at most", "2047"],
            ),
            (
                run(&root, &["-it"]),
                125,
                &["standard input is none", "leave -t out"],
            ),
            (
                root.vmm(["--root", "", "ps"]),
                125,
                &["--root <DIR>", "--help"],
            ),
            (
                root.run(["busybox", ""]),
                125,
                &["empty word", "after the image's name"],
            ),
        ],
    );
}

#[test]
fn an_image_without_a_command_needs_one() {
    let root = Root::new();
    let layout = root.layout("name mute\ndirectory /bin 755\n");
    root.vmm(["image", "load"]).arg(layout).finish().code(0);
    let row: Row = (root.run(["mute"]), 125, &["names no command", "say what"]);
    check(&root, [row]);
}

#[test]
fn what_linux_would_not_take_is_told_before_there_is_a_machine() {
    let root = Root::new();
    let file = |name: &str, lines: usize, len: usize| {
        let path = root.files().join(name);
        let line = |number| format!("V{number}={}\n", "x".repeat(len));
        std::fs::write(&path, (0..lines).map(line).collect::<String>()).expect("a file");
        let path = path.to_string_lossy().into_owned();
        run(&root, &["--env-file", &path])
    };
    check(
        &root,
        [
            (
                file("word", 1, 200_000),
                125,
                &["variable V0 has 200003 bytes", "131071 at most", "a file"],
            ),
            (
                file("words", 21, 100_000),
                125,
                &["Arguments and environment take", "2088960 at most"],
            ),
            // Beyond the largest frame, too.
            (
                file("frame", 50, 100_000),
                125,
                &["Arguments and environment take", "2088960 at most"],
            ),
        ],
    );
}

/// Boots a machine.
#[test]
fn as_much_as_linux_takes_arrives() {
    let root = Root::new();
    let path = root.files().join("variables");
    let line = |number| format!("V{number:02}={}\n", "x".repeat(104_400));
    std::fs::write(&path, (0..20).map(line).collect::<String>()).expect("a file");
    let run = root.run(["--rm", "--env-file"]).arg(&path);
    let script = "env | grep -c '^V..=xxx'";
    let run = run.args(["busybox", "sh", "-c", script]).finish();
    run.code(0).stdout("20\n");
}

/// Boots a machine.
#[test]
fn a_name_is_given_once() {
    let root = Root::new();
    root.run(["--name", "only", "busybox", "true"])
        .finish()
        .code(0);
    let id = root.containers()[0]["ID"].as_str().map(str::to_owned);
    let again = run(&root, &["--name", "only"]).finish();
    again.is_refused(125, &["only is in use", "vmm rm only", "another name"]);
    let containers = root.containers();
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!(containers[0]["ID"].as_str().map(str::to_owned), id);
}

/// Boots a machine.
#[test]
fn a_program_that_is_none_gives_126_and_one_that_is_missing_127() {
    let root = Root::new();
    std::fs::write(root.files().join("nonsense"), b"\x7fELF nonsense").expect("a file");
    let recipe = "name odd\ndirectory /bin 755\nfile /bin/busybox 755 /bin/busybox\n\
                  file /nonsense 755 nonsense\nfile /plain 644 nonsense\nsymlink /loop loop\n";
    let layout = root.layout(recipe);
    root.vmm(["image", "load"]).arg(layout).finish().code(0);
    let run = |command: &str| root.run(["--rm", "odd", command]);
    check(
        &root,
        [
            (run("/bin"), 126, &["/bin", "a directory"]),
            (run("/bin/"), 126, &["/bin/", "a directory"]),
            (run("/plain"), 126, &["/plain", "no permission"]),
            (run("/nonsense"), 126, &["/nonsense", "for x86-64"]),
            (run("/loop"), 126, &["/loop"]),
            (run("no-such"), 127, &["no-such", "PATH"]),
            (run("/no/such"), 127, &["/no/such", "no such file"]),
        ],
    );
}

/// Boots machines.
#[test]
fn streams_that_are_closed_are_no_reason_to_fail() {
    let root = Root::new();
    let script = "cat; echo out; echo err >&2; exit 3";
    for (stream, stdout, stderr) in [(0, "out\n", "err\n"), (1, "", "err\n"), (2, "out\n", "")] {
        let run = root.run(["--rm", "-i", "busybox", "sh", "-c", script]);
        let run = run.without(stream).finish();
        run.code(3).stdout(stdout).stderr(stderr);
    }
    root.expect_nothing_left();
    let usage = root.vmm(["nonsense"]).without(2).finish();
    usage.code(125).stdout("").stderr("");
}

/// Boots a machine.
#[test]
fn output_that_cannot_be_written_is_told() {
    let root = Root::new();
    for (vmm, what) in [
        (root.sh("echo hello"), "the container's output"),
        (root.vmm(["ps"]), "standard output"),
        (root.vmm(["--help"]), "standard output"),
    ] {
        let run = vmm.output_to("/dev/full").finish();
        run.is_refused(125, &[what, "No space left", "make room"]);
    }
    root.expect_nothing_left();
}

const RECIPE: &str = "name example\ndirectory /bin 755\nfile /bin/busybox 755 /bin/busybox\n";

#[test]
fn an_archive_that_is_none_or_damaged_is_told_apart() {
    let root = Root::new();
    let whole = root.files().join("whole.tar");
    pack(&root.layout(RECIPE), &whole);
    let whole = std::fs::read(whole).expect("an archive");
    let packed = gzip(&whole);
    let mut damaged = packed.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 8].copy_from_slice(b"XXXXXXXX");
    let load = |name: &str, bytes: &[u8]| {
        let path = root.files().join(name);
        std::fs::write(&path, bytes).expect("a file");
        root.vmm(["image", "load", "-i"]).arg(path)
    };
    let again = &["cut off or damaged", "again"];
    check(
        &root,
        [
            (load("cut.tar", &whole[..whole.len() / 2]), 125, again),
            (load("cut.tar.gz", &packed[..packed.len() / 2]), 125, again),
            (load("damaged.tar.gz", &damaged), 125, again),
            (
                load("text", &b"nonsense\n".repeat(100)),
                125,
                &["text", "neither", "docker save"],
            ),
            (load("empty", b""), 125, &["it is empty", "docker save"]),
            (load("xz", b"\xfd7zXZ\0..."), 125, &["xz", "xz -d"]),
            (
                root.vmm(["image", "load", "-i", "/no/such/file"]),
                125,
                &["/no/such/file", "No such file"],
            ),
            (
                root.vmm(["image", "load"])
                    .input(end_to_end::Input::Bytes(packed[..1000].to_vec())),
                125,
                &["standard input", "cut off or damaged"],
            ),
        ],
    );
}

#[test]
fn a_layout_that_is_damaged_is_told_with_the_blob() {
    let root = Root::new();
    let layout = root.layout(RECIPE);
    let load = || root.vmm(["image", "load"]).arg(&layout);
    let blob = largest_blob(&layout);
    let whole = std::fs::read(&blob).expect("a blob");
    let mut damaged = whole.clone();
    damaged[20_000] ^= 1;

    std::fs::write(&blob, damaged).expect("a damaged blob");
    check(
        &root,
        [(load(), 125, &["not have this digest", "again"][..])],
    );
    std::fs::write(&blob, &whole[..1000]).expect("a short blob");
    check(
        &root,
        [(load(), 125, &["1000 bytes instead of", "again"][..])],
    );
    std::fs::remove_file(&blob).expect("a missing blob");
    check(&root, [(load(), 125, &["missing", "again"][..])]);

    std::fs::write(layout.join("index.json"), "{").expect("a damaged index");
    check(&root, [(load(), 125, &["index.json is malformed"][..])]);
    std::fs::remove_file(layout.join("index.json")).expect("a missing index");
    check(&root, [(load(), 125, &["no index.json"][..])]);
    std::fs::remove_file(layout.join("oci-layout")).expect("no layout");
    check(
        &root,
        [(load(), 125, &["no oci-layout", "docker save"][..])],
    );
}

#[test]
fn an_image_for_another_machine_is_told() {
    let root = Root::new();
    let layout = root.layout(RECIPE);
    let index = layout.join("index.json");
    let text = std::fs::read_to_string(&index).expect("an index");
    std::fs::write(&index, text.replace("amd64", "arm64")).expect("another index");
    let load = root.vmm(["image", "load"]).arg(&layout);
    let parts: &[&str] = &["linux/arm64", "--platform linux/amd64"];
    check(&root, [(load, 125, parts)]);
}

/// The file of a layout that has the layer.
fn largest_blob(layout: &Path) -> std::path::PathBuf {
    let blobs = std::fs::read_dir(layout.join("blobs/sha256")).expect("blobs");
    let size = |path: &std::path::PathBuf| path.metadata().map_or(0, |metadata| metadata.len());
    let largest = blobs.flatten().map(|entry| entry.path()).max_by_key(size);
    largest.expect("a blob")
}

/// Makes a tar archive of what is in `folder`.
fn pack(folder: &Path, archive: &Path) {
    let mut tar = std::process::Command::new("tar");
    let tar = tar.arg("-cf").arg(archive).arg("-C").arg(folder).arg(".");
    assert!(tar.status().expect("tar runs").success());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::{io::Write, process::Stdio};

    let mut gzip = std::process::Command::new("gzip")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip runs");
    let mut input = gzip.stdin.take().expect("its input");
    let bytes = bytes.to_vec();
    let feed = std::thread::spawn(move || input.write_all(&bytes));
    let output = gzip.wait_with_output().expect("its output");
    feed.join().expect("a thread").expect("all of the input");
    output.stdout
}
