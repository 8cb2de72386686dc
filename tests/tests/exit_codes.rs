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
fn a_program_that_is_not_there_is_told_however_long_its_name_is() {
    let root = Root::new();
    for length in [10, 70_000, 100_000] {
        let run = root.run(["--rm", "busybox", &"a".repeat(length)]).finish();
        run.code(127).complains("no such program").stdout("");
        run.check(run.error_text().len() < 8 << 10, "a bounded error");
    }
    root.expect_nothing_left();
}
