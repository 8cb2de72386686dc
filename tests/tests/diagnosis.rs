//! What there is to look at when something does not work: the story of a run, the guest's console, and what a machine that
//! failed leaves of it.

use std::path::{Path, PathBuf};

use end_to_end::{Finished, Root, Terminal, Vmm, accelerator};

/// How many logs of machines that failed stay.
const KEPT: usize = 16;

/// What is told of a run, in this order.
const STORY: [&str; 11] = [
    "Resolved the image busybox to sha256:",
    "Prepared the container ",
    "Spawning its supervisor",
    "The supervisor is up, process ",
    "Made the writable layer",
    "Spawned the machine by ",
    "Hello from the guest's init, on Linux ",
    "Boot: told the guest what to run",
    "The container's mounts were made ",
    "The process exited after ",
    "Took the machine down",
];

/// `vmm --debug run FLAGS busybox true`
fn debug(root: &Root, flags: &[&str]) -> Finished {
    let words = ["--debug", "run", "--accel", &accelerator()];
    let run = root.vmm(words).args(flags).args(["busybox", "true"]);
    run.finish()
}

/// Places of the parts in the text, in the order in which they have to be there.
#[track_caller]
fn expect_in_order(run: &Finished, parts: &[&str]) {
    let text = run.error_text();
    let mut rest = text.as_str();
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at..],
            None => {
                run.check(false, &format!("{part:?} in its place"));
            }
        }
    }
}

#[test]
fn the_story_of_a_run_is_told_with_times() {
    let root = Root::new();
    let run = debug(&root, &["--rm"]);
    run.code(0).stdout("");
    expect_in_order(&run, &STORY);
    expect_in_order(&run, &["Took the machine down", "Removed the container"]);
    run.check(run.error_text().contains("exit code 0"), "the end");
    // Since the command began, and since the line before of the same process.
    let text = run.error_text();
    let since = |line: &str| {
        let mut words = line.split_whitespace();
        let since: f64 = words.next()?.parse().ok()?;
        let unit = words.next()?;
        let step: f64 = words.next()?.parse().ok()?;
        (unit == "ms" && words.next() == Some("DEBUG")).then_some((since, step))
    };
    let times: Option<Vec<(f64, f64)>> = text.lines().map(since).collect();
    let times = times.unwrap_or_default();
    run.check(times.len() >= STORY.len(), "times in every line");
    run.check(
        times.iter().all(|(since, step)| step <= since),
        "steps of a whole",
    );
}

#[test]
fn the_story_of_a_start_that_fails_ends_where_it_does() {
    let root = Root::new();
    let run = debug(&root, &["--rm", "--cmdline-append", "rdinit=/no-such-init"]);
    run.code(125);
    expect_in_order(
        &run,
        &[STORY[0], STORY[1], STORY[5], "Took the machine down"],
    );
    run.check(!run.error_text().contains("Hello"), "no hello");
    // The error itself is there once, whatever is logged.
    run.complains("Kernel panic");
}

#[test]
fn the_story_does_not_run_down_the_stairs_of_a_raw_terminal() {
    let root = Root::new();
    let terminal = Terminal::new(24, 200);
    let words = ["--debug", "run", "--rm", "-it", "--accel", &accelerator()];
    let run = root.vmm(words).args(["busybox", "true"]);
    let run = run.start_in(&terminal).finish();
    run.code(0).stdout_has("Hello from the guest's init");
    // By then the terminal is raw.
    let screen = run.text();
    let hello = screen.find("Hello").unwrap_or_default();
    let stairs = screen[hello..].replace("\r\n", "");
    run.check(!stairs.contains('\n'), "a carriage return in every line");
}

/// `vmm run --rm FLAGS busybox true`, whose kernel finds no init.
fn panics(root: &Root, flags: &[&str]) -> Vmm {
    root.run(flags)
        .args(["--cmdline-append", "rdinit=/no-such-init"])
        .args(["busybox", "true"])
}

/// The log that the error names.
#[track_caller]
fn log_of(run: &Finished) -> PathBuf {
    let text = run.error_text();
    let mut lines = text.lines();
    let path = lines.find_map(|line| line.trim().strip_prefix("all of it: "));
    run.check(path.is_some(), "the path of a log");
    path.unwrap_or_default().into()
}

#[test]
fn a_panic_is_told_by_its_line_and_its_log_stays() {
    let root = Root::new();
    // What is in the last lines of one, and what is at its end.
    let backtrace = match accelerator().as_str() {
        "um" => ["kernel_init", "new_thread_handler"],
        _ => ["Call Trace:", "</TASK>"],
    };
    let run = panics(&root, &["--rm"]).finish();
    run.is_refused(
        125,
        &[
            "The guest's kernel died: Kernel panic - not syncing: VFS: Unable to mount root fs",
            "the guest's console, its last lines:",
            backtrace[0],
            "all of it: ",
        ],
    );
    root.expect_nothing_left();
    let log = log_of(&run);
    assert!(log.starts_with(root.state().join("failed")), "{log:?}");
    let text = std::fs::read_to_string(&log).expect("a log");
    for part in ["Kernel panic", "Call Trace:", "kernel_init", backtrace[1]] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn a_panic_under_a_container_leaves_its_log_too() {
    let root = Root::new();
    let words = ["--rm", "-m", "64m", "--cmdline-append"];
    let run = root
        .run(words)
        .args(["sysctl.vm.panic_on_oom=2", "busybox"]);
    let run = run.args(["sh", "-c", "echo before; tail /dev/zero"]);
    let run = run.finish();
    run.fails("Kernel panic - not syncing: Out of memory")
        .stdout("before\n");
    let text = std::fs::read_to_string(log_of(&run)).expect("a log");
    // Who took the memory is in it, which is too long for the message.
    assert!(text.contains("Comm: tail"), "{text}");
    run.check(!run.error_text().contains("Comm: tail"), "only the end");
}

#[test]
fn the_log_of_a_container_that_stays_is_in_its_directory() {
    let root = Root::new();
    let run = panics(&root, &["--name", "dead"]).finish();
    run.code(125);
    let containers = root.containers();
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!(containers[0]["State"], "exited");
    let id = containers[0]["ID"].as_str().unwrap_or_default();
    let log = log_of(&run);
    let directory = root.state().join("containers").join(id);
    assert_eq!(log, directory.join("console.log"));
    let text = std::fs::read_to_string(&log).expect("a log");
    assert!(text.contains("Kernel panic"), "{text}");
    assert!(!root.state().join("failed").exists());
}

#[test]
fn a_log_that_is_long_is_kept_in_two_parts() {
    let root = Root::new();
    let run = root.run(["--rm", "-m", "128m", "--start-timeout", "600"]);
    let run = run.args(["--cmdline-append", "hostile=console-then-panic", "--initfs"]);
    let run = run.arg(root.initfs_of("hostile-init"));
    let run = run.args(["busybox", "true"]).finish();
    run.fails("Attempted to kill init!");
    let log = log_of(&run);
    let older = log.with_extension("log.old");
    let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    assert!(size(&older) > 0, "{older:?}");
    assert!(size(&log) + size(&older) <= 1 << 20);
    let text = std::fs::read(&log).expect("a log");
    assert!(String::from_utf8_lossy(&text).contains("Kernel panic"));
}

#[test]
fn only_the_newest_logs_stay() {
    let root = Root::new();
    let failed = root.state().join("failed");
    std::fs::create_dir_all(&failed).expect("a directory");
    for number in 0..40 {
        let name = format!("{number:012}.log");
        std::fs::write(failed.join(name), "old").expect("a log");
    }
    let log = log_of(&panics(&root, &["--rm"]).finish());
    let logs = std::fs::read_dir(&failed).expect("logs").count();
    assert_eq!(logs, KEPT);
    assert!(log.exists());
}

#[test]
fn the_console_is_shown_as_it_comes() {
    let root = Root::new();
    let flags = ["--rm", "--debug-console", "-i", "busybox", "sh", "-c"];
    let run = root
        .run(flags)
        .arg("read word; echo got $word; echo err >&2");
    let mut run = run.input(end_to_end::Input::Later).start();
    // The container is not over yet, and what is typed is its own.
    run.expect_error("Linux version ");
    run.expect_error("as init process");
    run.send("word\n");
    let run = run.finish();
    run.code(0).stdout("got word\n");
    let text = run.error_text();
    run.check(text.lines().any(|line| line == "err"), "its own error");
    run.check(!text.contains('\r'), "no carriage returns");
    // The kernel says it all, and so is not told to be quiet.
    let line = text.lines().find(|line| line.contains("ommand line: "));
    run.check(!line.unwrap_or("quiet").contains("quiet"), "no quiet");
}

#[test]
fn the_console_of_a_machine_that_hangs_shows_how_far_it_came() {
    let root = Root::new();
    // By then its kernel has told that it starts its init.
    let seconds = match accelerator().as_str() {
        "kvm" => "30",
        _ => "4",
    };
    let run = root.run(["--rm", "--debug-console", "-m", "128m"]);
    let run = run.args(["--start-timeout", seconds]);
    let run = run.args(["--cmdline-append", "hostile=no-dial", "--initfs"]);
    let run = run.arg(root.initfs_of("hostile-init"));
    let run = run.args(["busybox", "true"]).finish();
    run.is_refused(
        125,
        &[
            "as init process",
            &format!("within {seconds} s"),
            "all of it: ",
        ],
    );
}

#[test]
fn what_was_found_is_told_to_programs() {
    let root = Root::new();
    let info = root.vmm(["system", "info", "--format", "json"]).finish();
    let info = info.code(0).json();
    let [info] = info.as_slice() else {
        panic!("{info:?}");
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let state = root.state().display().to_string();
    assert_eq!(text(&info["Root"]), state);
    assert_eq!(text(&info["FailedLogs"]), format!("{state}/failed"));
    assert!(text(&info["Kernel"]["Path"]).ends_with("vmlinux"), "{info}");
    assert!(info["Initfs"]["Size"].as_u64() > Some(0), "{info}");
    assert_eq!(text(&info["Host"]["Architecture"]), "x86_64");
    assert!(info["Host"]["Cpus"].as_u64() > Some(0), "{info}");
    assert!(info["Host"]["Memory"].as_u64() > Some(1 << 20), "{info}");
    let accelerators = info["Accelerators"].as_array().expect("accelerators");
    let names: Vec<String> = accelerators.iter().map(|one| text(&one["name"])).collect();
    assert_eq!(names, ["kvm", "um", "tcg"]);
    for one in accelerators {
        assert!(one["usable"].is_boolean(), "{one}");
        assert!(!text(&one["reason"]).is_empty(), "{one}");
    }
}
