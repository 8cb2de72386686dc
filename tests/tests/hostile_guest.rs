//! A VM whose PID 1 means its host ill gets nothing from it but its own end: one clear error, and nothing left behind.

use std::{path::Path, time::Duration};

use end_to_end::{Input, Root, Running, Signal, Vmm, wait_until};

/// What the command and the supervisor of one container may take together, in KiB: a few times what they do take.
const MEMORY: u64 = 16 << 10;

/// How long the host is watched while a guest floods it, or takes nothing from it.
const WATCHED: Duration = Duration::from_secs(2);

/// `vmm run FLAGS busybox true` in a VM whose PID 1 does what `word` says.
fn hostile(root: &Root, word: &str, flags: &[&str]) -> Vmm {
    root.run(flags)
        .args(["-m", "128m", "--cmdline-append", &format!("hostile={word}")])
        .arg("--initfs")
        .arg(root.initfs_of("hostile-init"))
        .args(["busybox", "true"])
}

#[test]
fn whoever_breaks_the_protocol_is_told_so() {
    let root = Root::new();
    for (word, error) in [
        ("4-gib-frame", "Frame of 4294967295 bytes is over the limit"),
        ("noise", "The guest's init broke the agent protocol"),
        ("noise-later", "The guest's init broke the agent protocol"),
        ("other-version", "speaks version 77 of the agent protocol"),
        ("no-hello", "sent a frame out of turn"),
        ("two-hellos", "sent a frame out of turn"),
    ] {
        let run = hostile(&root, word, &["--rm"]).finish();
        run.fails(error).stdout("");
    }
    root.expect_nothing_left();
}

#[test]
fn an_init_that_goes_takes_its_machine_along() {
    let root = Root::new();
    for (word, error) in [
        (
            "exit",
            "Kernel panic - not syncing: Attempted to kill init!",
        ),
        (
            "reboot",
            "The machine ended before the guest's init came up",
        ),
    ] {
        let run = hostile(&root, word, &["--rm"]).finish();
        run.fails(error).stdout("");
    }
    root.expect_nothing_left();
}

#[test]
fn an_init_that_says_nothing_can_be_interrupted() {
    let root = Root::new();
    for word in ["no-word", "half-frame"] {
        let run = hostile(&root, word, &["--rm"]).start();
        let supervised = wait_until(end_to_end::DEADLINE, || {
            run.helpers()
                .iter()
                .any(|helper| !helper.is_vmm())
                .then_some(())
        });
        assert!(supervised.is_some(), "a machine");
        run.signal(Signal::TERM);
        run.finish_within(Duration::from_secs(10)).code(143);
    }
    root.expect_nothing_left();
}

#[test]
fn frames_that_lie_or_are_many_do_no_harm() {
    let root = Root::new();
    for (word, code) in [
        ("exited-not-started", 42),
        ("exited-signal-255", 255),
        ("odd-clock", 42),
        ("logs", 42),
    ] {
        let run = hostile(&root, word, &["--rm"]).finish();
        run.code(code).stdout("").stderr("");
    }
    root.expect_nothing_left();
}

#[test]
fn a_start_that_is_told_of_twice_ends_the_machine() {
    let root = Root::new();
    for word in ["started-often", "started-for-ever"] {
        let run = hostile(&root, word, &["--rm"]).finish();
        run.fails("out of turn").stdout("");
    }
    root.expect_nothing_left();
}

#[test]
fn a_guest_that_never_stops_talking_can_be_ended() {
    let root = Root::new();
    let run = hostile(&root, "logs-for-ever", &["--rm", "--name", "chatty"]).start();
    let machine = wait_until(end_to_end::DEADLINE, || {
        let helpers = run.helpers();
        helpers.iter().any(|helper| !helper.is_vmm()).then_some(())
    });
    assert!(machine.is_some(), "a machine");
    // Until it talks.
    std::thread::sleep(WATCHED);
    let removal = root.vmm(["rm", "-f", "chatty"]).start();
    removal.finish_within(Duration::from_secs(5)).code(0);
    run.finish_within(Duration::from_secs(5)).code(137);
    root.expect_nothing_left();
}

#[test]
fn a_guest_that_never_stops_talking_ends_with_its_command() {
    let root = Root::new();
    let run = hostile(&root, "logs-for-ever", &["--rm"]).start();
    let machine = wait_until(end_to_end::DEADLINE, || {
        let helpers = run.helpers();
        helpers.iter().any(|helper| !helper.is_vmm()).then_some(())
    });
    assert!(machine.is_some(), "a machine");
    std::thread::sleep(WATCHED);
    drop(run);
    let left = root.processes_after(Duration::from_secs(5));
    for process in &left {
        process.kill();
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_init_that_hangs_up_is_found_out_at_once() {
    let root = Root::new();
    for word in ["hang-up", "hang-up-started"] {
        let run = hostile(&root, word, &["--rm"]).start();
        let run = run.finish_within(Duration::from_secs(20));
        run.fails("").stdout("");
    }
}

#[test]
fn what_a_guest_says_to_the_log_is_cut() {
    let root = Root::new();
    let words = ["--log-level", "warn", "run", "--rm", "--accel"];
    let logged = root
        .vmm(words)
        .arg(end_to_end::accelerator())
        .args(["-m", "128m", "--cmdline-append", "hostile=long-logs"])
        .arg("--initfs")
        .arg(root.initfs_of("hostile-init"))
        .args(["busybox", "true"])
        .finish();
    let run = hostile(&root, "long-logs", &["--rm"]).finish();
    for run in [logged, run] {
        run.code(42);
        let error = run.error_text();
        run.check(error.contains("The guest warns: "), "a warning");
        run.check(error.len() < 64 << 10, "less than 64 KiB of them");
        run.check(is_harmless(&error), "no control characters");
    }
}

#[test]
fn an_error_of_the_guest_is_cut_and_cannot_touch_the_terminal() {
    let root = Root::new();
    let run = hostile(&root, "long-error", &["--rm"]).finish();
    run.code(126).complains("Cannot execute").stdout("");
    let error = run.error_text();
    run.check(is_harmless(&error), "no control characters");
    run.check(error.len() < 2000, "less than 2000 bytes of error");
}

#[test]
fn there_are_as_many_streams_as_tokens() {
    let root = Root::new();
    // It exits with the number of those of its 10,000 connections that were taken.
    for (flags, streams) in [(&["--rm"][..], 2), (&["--rm", "-i"], 3)] {
        let run = hostile(&root, "connections", flags).finish();
        let warning = format!("vmm: The guest warns: {streams} connections\n");
        run.code(streams).stdout("").stderr(warning);
    }
    hostile(&root, "no-token", &["--rm"]).finish().code(42);
    let run = hostile(&root, "tokens-twice", &["--rm"]).finish();
    run.code(42).stdout("first\n").stderr("");
    let run = hostile(&root, "tokens-swapped", &["--rm"]).finish();
    run.code(42).stdout("to stdout\n").stderr("to stderr\n");
    let run = hostile(&root, "exited-early", &["--rm"]).finish();
    run.code(42).stderr("");
    run.check(
        run.text().bytes().all(|byte| byte == b'x'),
        "its own output",
    );
    root.expect_nothing_left();
}

#[test]
fn a_guest_that_reads_nothing_fills_no_memory() {
    let root = Root::new();
    let input = Input::Bytes(vec![b'y'; 64 << 20]);
    let mut run = hostile(&root, "deaf", &["--rm", "-i"]).input(input).start();
    run.expect("deaf\n");
    expect_bounded(&run);
    // It does not hear signals, either.
    interrupt(run);
    // What such a command leaves is the next one's to remove.
    assert!(root.processes_after(end_to_end::DEADLINE).is_empty());
    root.vmm(["ps"]).finish().code(0);
    root.expect_nothing_left();
}

#[test]
fn output_that_nobody_reads_fills_no_memory() {
    let root = Root::new();
    let mut run = hostile(&root, "flood", &["--rm"]).keep_output().start();
    let mut output = run.take_output().expect("its output");
    std::io::Read::read_exact(&mut output, &mut [0; 1000]).expect("some of its output");
    expect_bounded(&run);
    drop(output);
    interrupt(run);
    // What such a command leaves is the next one's to remove.
    assert!(root.processes_after(end_to_end::DEADLINE).is_empty());
    root.vmm(["ps"]).finish().code(0);
    root.expect_nothing_left();
}

#[test]
fn the_consoles_log_is_bounded() {
    let root = Root::new();
    let run = hostile(&root, "console", &["--name", "loud"]).finish();
    run.code(42).stdout("").stderr("");
    let containers = root.containers();
    let id = containers[0]["ID"].as_str().expect("an ID");
    let kept = size_of_logs(&root.state().join("containers").join(id));
    assert!((1..=1 << 20).contains(&kept), "{kept} bytes of log");
}

/// Whether nothing in the text touches a terminal, or turns the direction of writing: what is shown is to be what is there.
fn is_harmless(text: &str) -> bool {
    let turns = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .all(|c| c == '\n' || !(c.is_control() || turns(c)))
}

/// Checks that the host's part of a container takes a bounded amount of memory.
#[track_caller]
fn expect_bounded(run: &Running) {
    std::thread::sleep(WATCHED);
    let helpers = run.helpers();
    let helpers = helpers.iter().filter(|helper| helper.is_vmm());
    let pids: Vec<i32> = helpers
        .map(|helper| helper.pid)
        .chain([run.pid()])
        .map(|pid| pid.as_raw_nonzero().get())
        .collect();
    assert_eq!(pids.len(), 2, "the command and a supervisor");
    let all: u64 = pids.iter().map(|pid| proportional_size(*pid)).sum();
    assert!((1..MEMORY).contains(&all), "{all} KiB of memory");
}

/// Memory of a process, with its share of what it shares, in KiB.
fn proportional_size(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let rollup = rollup.expect("a process's memory");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number of KiB")
}

/// Interrupts a command so often that it does not wait for its container.
#[track_caller]
fn interrupt(run: Running) {
    for _ in 0..3 {
        run.signal(Signal::INT);
        // Signals that come together count as one.
        std::thread::sleep(Duration::from_millis(100));
    }
    run.finish_within(Duration::from_secs(10)).code(130);
}

fn size_of_logs(container: &Path) -> u64 {
    let files = std::fs::read_dir(container).expect("the container's files");
    files
        .flatten()
        .filter(|file| {
            file.file_name()
                .to_string_lossy()
                .starts_with("console.log")
        })
        .map(|file| file.metadata().expect("a file's size").len())
        .sum()
}
