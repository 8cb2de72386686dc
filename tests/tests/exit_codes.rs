//! The exit code says how the container ended, or whose fault it was that it did not start.

use end_to_end::Root;

#[test]
fn both_streams_and_the_exit_code_are_the_containers() {
    let root = Root::new();
    let run = root.sh("echo out; echo err >&2; exit 42").finish();
    run.code(42).stdout("out\n").stderr("err\n");
    root.expect_nothing_left();
}

#[test]
fn a_quiet_success_prints_nothing() {
    let root = Root::new();
    let run = root.run(["--rm", "busybox", "true"]).finish();
    run.code(0).stdout("").stderr("");
}

#[test]
fn a_code_of_vmms_own_range_passes_if_it_is_the_containers() {
    let root = Root::new();
    root.sh("exit 125").finish().code(125).stderr("");
    root.sh("exit 255").finish().code(255).stderr("");
}

#[test]
fn a_command_that_is_missing_gives_127() {
    let root = Root::new();
    for command in ["no-such-command", "/bin/no-such-command"] {
        let run = root.run(["--rm", "busybox", command]).finish();
        run.code(127).stdout("").complains(command);
    }
    root.expect_nothing_left();
}

#[test]
fn a_command_that_cannot_be_executed_gives_126() {
    let root = Root::new();
    for command in ["/etc", "/etc/passwd", "/bin/"] {
        let run = root.run(["--rm", "busybox", command]).finish();
        run.code(126).stdout("").complains(command);
    }
}

#[test]
fn an_executable_that_no_kernel_knows_gives_126() {
    let root = Root::new();
    std::fs::write(root.files().join("nonsense"), b"\x7fELF nonsense").expect("a file");
    let layout = root.layout("name nonsense\nfile /nonsense 755 nonsense\n");
    root.vmm(["image", "load"]).arg(layout).finish().code(0);
    let run = root.run(["--rm", "nonsense", "/nonsense"]).finish();
    run.code(126).complains("/nonsense");
}

#[test]
fn an_image_that_is_missing_gives_125_and_leaves_nothing() {
    let root = Root::new();
    let run = root.run(["no-such-image", "true"]).finish();
    run.fails("no-such-image").stdout("");
    assert!(root.containers().is_empty());
    root.expect_nothing_left();
}

#[test]
fn mistakes_on_the_command_line_give_125() {
    let root = Root::new();
    let mistakes: [&[&str]; 5] = [
        &["--no-such-flag", "busybox", "true"],
        &["-m", "plenty", "busybox", "true"],
        &["--cpus", "-1", "busybox", "true"],
        &["--tmpfs", "not/absolute", "busybox", "true"],
        &[],
    ];
    for arguments in mistakes {
        let run = root.run(arguments).finish();
        run.code(125).stdout("");
        run.check(!run.error_text().is_empty(), "a word about the mistake");
    }
    assert!(root.containers().is_empty());
}

#[test]
fn an_image_without_a_command_needs_one() {
    let root = Root::new();
    let layout = root.layout("name mute\ndirectory /bin 755\n");
    root.vmm(["image", "load"]).arg(layout).finish().code(0);
    root.run(["--rm", "mute"]).finish().fails("command");
}
