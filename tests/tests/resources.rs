//! `--memory` and `--cpus`.

use std::{os::unix::fs::MetadataExt, path::PathBuf};

use end_to_end::{DEADLINE, Input, Root, Running, accelerator, wait_until};

const MEMORY: &str = "grep MemTotal /proc/meminfo | tr -dc 0-9";

/// Memory in KiB that the container's kernel has to give, in a VM with these flags.
fn memory_with(root: &Root, flags: &[&str]) -> u64 {
    let run = root
        .run(["--rm"])
        .args(flags)
        .args(["busybox", "sh", "-c", MEMORY]);
    let run = run.finish();
    let text = run.code(0).text();
    text.parse()
        .unwrap_or_else(|_| panic!("{}", run.description()))
}

#[test]
fn memory_is_what_was_asked_for() {
    let root = Root::new();
    // The kernel keeps some for itself.
    for (flags, mib) in [
        (&[][..], 1024),
        (&["-m", "256m"], 256),
        (&["--memory=2g"], 2048),
    ] {
        let kib = memory_with(&root, flags);
        let asked = mib * 1024;
        assert!(kib <= asked && kib > asked * 7 / 8, "{flags:?}: {kib} KiB");
    }
}

/// KiB that a VM has of the host's memory, or has had at most, by the name of that in `/proc/PID/status`. Shared memory counts
/// where it is mapped, so the largest process stands for the VM.
fn largest(run: &Running, name: &str) -> u64 {
    let of_processes = run.helpers().into_iter().filter_map(|process| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).ok()?;
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    of_processes.max().unwrap_or(u64::MAX)
}

#[test]
fn memory_that_is_not_used_is_not_taken() {
    let root = Root::new();
    let script = "echo ready; exec sleep 1000";
    let mut run = root
        .run(["--rm", "-m", "4g", "busybox", "sh", "-c", script])
        .start();
    run.expect("ready\n");
    let resident = largest(&run, "VmRSS:");
    assert!(resident < 1 << 20, "{resident} KiB of 4 GiB are resident");
    run.signal(end_to_end::Signal::TERM);
    run.finish().code(143);
}

#[test]
fn memory_that_was_freed_goes_back_to_the_host() {
    let root = Root::new();
    // What tail keeps goes with it.
    let script = "head -c 200m /dev/zero | tail -c 200m >/dev/null; echo freed; exec sleep 1000";
    let mut run = root
        .run(["--rm", "-m", "1g", "busybox", "sh", "-c", script])
        .start();
    run.expect("freed\n");
    let most = largest(&run, "VmHWM:");
    assert!(most > 200 << 10, "there were only {most} KiB");
    let back = wait_until(DEADLINE, || {
        (largest(&run, "VmRSS:") < most - (150 << 10)).then_some(())
    });
    assert!(back.is_some(), "{} of {most} KiB", largest(&run, "VmRSS:"));
    run.signal(end_to_end::Signal::TERM);
    run.finish().code(143);
}

#[test]
fn what_is_deleted_in_a_container_is_no_longer_on_the_hosts_disk() {
    let root = Root::new();
    let script = "head -c 64m /dev/urandom >/file; sync; echo written; read; rm /file; sync; echo deleted; read";
    let run = root.run(["-i", "busybox", "sh", "-c", script]);
    let mut run = run.input(Input::Later).start();
    run.expect("written\n");
    let containers = std::fs::read_dir(root.state().join("containers")).expect("containers");
    let layer = containers
        .map(|entry| entry.expect("a container").path().join("rw.ext4"))
        .find(|path: &PathBuf| path.is_file());
    let layer = layer.expect("a writable layer");
    let mib = || layer.metadata().expect("the layer").blocks() >> 11;
    let (written, deleted) = (64, 16);
    assert!(mib() >= written, "{} MiB", mib());
    run.send("\n");
    run.expect("deleted\n");
    // The guest discards in the background.
    let shrunk = wait_until(DEADLINE, || (mib() < deleted).then_some(()));
    assert!(shrunk.is_some(), "{} MiB", mib());
    run.send("\n");
    run.finish().code(0);
}

#[test]
fn a_main_process_that_takes_all_memory_is_killed_and_that_is_known() {
    let root = Root::new();
    let run = root
        .run(["-m", "64m", "busybox", "tail", "/dev/zero"])
        .finish();
    run.code(137).stdout("");
    let state = root.only_state();
    assert_eq!(state["oom_killed"], true, "{state}");
    assert_eq!(state["exit_code"], 137, "{state}");
    let status = root.containers()[0]["Status"].to_string();
    assert!(status.contains("Exited (137)"), "{status}");
}

#[test]
fn a_container_outlives_a_child_that_takes_all_memory() {
    let root = Root::new();
    let script = "tail /dev/zero; echo code $?";
    let run = root
        .run(["-m", "64m", "busybox", "sh", "-c", script])
        .finish();
    run.code(0).stdout("code 137\n");
    let state = root.only_state();
    assert_eq!(state["exit_code"], 0, "{state}");
}

#[test]
fn an_end_without_want_of_memory_is_none_for_want_of_it() {
    let root = Root::new();
    root.run(["busybox", "sh", "-c", "exit 137"])
        .finish()
        .code(137);
    let state = root.only_state();
    assert_eq!(state["oom_killed"], false, "{state}");
}

#[test]
fn cpus_are_what_was_asked_for() {
    let root = Root::new();
    for (flags, expected) in [
        (&[][..], "1\nmax 100000\n"),
        (&["--cpus", "2"], "2\nmax 100000\n"),
        (&["--cpus=0.5"], "1\n50000 100000\n"),
        (&["--cpus", "1.25"], "2\n125000 100000\n"),
    ] {
        // A kernel that is a process has one CPU, whatever the ceiling.
        let expected = match accelerator().as_str() {
            "um" => expected.replacen('2', "1", usize::from(expected.starts_with('2'))),
            _ => expected.to_owned(),
        };
        let script = "nproc; cat /sys/fs/cgroup/cpu.max";
        let run = root
            .run(["--rm"])
            .args(flags)
            .args(["busybox", "sh", "-c", script]);
        run.finish().code(0).stdout(expected);
    }
}
