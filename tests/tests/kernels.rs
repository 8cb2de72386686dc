//! Every container has a kernel of its own, which may be another one, and may die.

use end_to_end::{Root, initfs, second_kernel};

#[test]
fn containers_with_different_kernels_run_at_once() {
    let root = Root::new();
    let second = second_kernel();
    let script = "uname -r; exec sleep 1000";
    let mut first = root.run(["--rm", "busybox", "sh", "-c", script]).start();
    first.expect("\n");

    let run = root.run(["--rm", "--kernel"]).arg(second);
    let run = run.args(["busybox", "uname", "-r"]).finish();
    let release = run.code(0).text();
    run.check(release.ends_with("-second"), "the second kernel's release");

    first.signal(end_to_end::Signal::TERM);
    let first = first.finish();
    first.code(143).stdout_lacks("-second");
    first.check(!first.text().is_empty(), "the default kernel's release");
}

#[test]
fn a_word_on_the_kernels_command_line_arrives() {
    let root = Root::new();
    let words = ["--cmdline-append", "vmm_test=1 loglevel=3"];
    let run = root
        .run(["--rm"])
        .args(words)
        .args(["busybox", "cat", "/proc/cmdline"]);
    run.finish().code(0).stdout_has(" vmm_test=1 loglevel=3");
}

#[test]
fn the_command_line_says_nothing_about_the_container() {
    let root = Root::new();
    let run = root.run([
        "--rm",
        "-e",
        "KEY=sesame",
        "--name",
        "lamp",
        "--hostname",
        "cave",
    ]);
    let run = run.args(["busybox", "cat", "/proc/cmdline"]).finish();
    for word in ["sesame", "lamp", "cave", "busybox"] {
        run.code(0).stdout_lacks(word);
    }
}

#[test]
fn an_initfs_can_be_given() {
    let root = Root::new();
    let copy = root.files().join("initfs");
    std::fs::copy(initfs(), &copy).expect("a copy of the initfs");
    let run = root
        .run(["--rm", "--initfs"])
        .arg(copy)
        .args(["busybox", "echo", "hello"]);
    run.finish().code(0).stdout("hello\n");
}

#[test]
fn a_kernel_that_dies_at_boot_is_quoted() {
    let root = Root::new();
    let words = ["--rm", "--cmdline-append", "rdinit=/no-such-init"];
    let run = root.run(words).args(["busybox", "true"]).finish();
    run.fails("Kernel panic - not syncing: VFS: Unable to mount root fs")
        .stdout("");
}

#[test]
fn a_kernel_that_dies_later_is_quoted() {
    let root = Root::new();
    let words = [
        "--rm",
        "-m",
        "64m",
        "--cmdline-append",
        "sysctl.vm.panic_on_oom=2",
    ];
    let script = "echo before; tail /dev/zero";
    let run = root
        .run(words)
        .args(["busybox", "sh", "-c", script])
        .finish();
    run.fails("Kernel panic - not syncing: Out of memory")
        .stdout("before\n");
}

#[test]
fn a_kernel_that_dies_leaves_its_log() {
    let root = Root::new();
    let words = ["--name", "dead", "--cmdline-append", "rdinit=/no-such-init"];
    root.run(words).args(["busybox", "true"]).finish().code(125);
    let containers = root.containers();
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!(containers[0]["State"], "exited");
    let id = containers[0]["ID"].as_str().unwrap_or_default();
    let log = root.state().join("containers").join(id).join("console.log");
    let log = std::fs::read_to_string(log).expect("a boot log");
    assert!(log.contains("Kernel panic"), "{log}");
}
