//! A machine on KVM: what its process is confined to, and what comes of a process that does what it may not.

use std::{fs, os::unix::fs::MetadataExt};

use end_to_end::{Process, Root, Running, Signal, accelerator, need, wait_until};

/// Only this kind of machine has these walls.
fn is_kvm() -> Result<(), String> {
    match accelerator().as_str() {
        "kvm" => Ok(()),
        other => Err(format!("{other} has other walls")),
    }
}

/// The machine's process of a run, once it is there.
fn machine(run: &Running) -> Process {
    let found = wait_until(end_to_end::DEADLINE, || {
        let mut helpers = run.helpers().into_iter();
        helpers.find(|helper| helper.arguments.starts_with("vmm kvm-machine "))
    });
    found.expect("a machine's process")
}

/// What is written of a process, or of one of its threads, in a file of `/proc`.
fn written(machine: &Process, file: &str) -> String {
    let path = format!("/proc/{}/{file}", machine.pid.as_raw_nonzero());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A field of such a file.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} in {text}")).trim()
}

#[test]
fn a_machine_has_nothing_but_its_machine() {
    need!(is_kvm());
    let root = Root::new();
    let mut run = root
        .run(["--rm", "busybox", "sh", "-c", "echo up; exec sleep 1000"])
        .start();
    run.expect("up\n");
    let machine = machine(&run);
    let status = written(&machine, "status");
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(&status, name), "0000000000000000", "{name}");
    }
    assert_eq!(
        [field(&status, "NoNewPrivs:"), field(&status, "Seccomp:")],
        ["1", "2"]
    );
    let uids: Vec<&str> = field(&status, "Uid:").split_whitespace().collect();
    assert!(!uids.contains(&"0"), "{uids:?}");
    // The devices' thread and a processor's, each with the process's filter and its own.
    let threads = fs::read_dir(format!("/proc/{}/task", machine.pid.as_raw_nonzero()));
    for thread in threads.expect("threads") {
        let id = thread.expect("a thread").file_name();
        let status = written(&machine, &format!("task/{}/status", id.display()));
        assert_eq!(field(&status, "Seccomp_filters:"), "2", "{status}");
    }
    // Who may look into a process, or dump it, is its user; into this one root alone.
    let owner = fs::metadata(format!("/proc/{}/mem", machine.pid.as_raw_nonzero()));
    assert_eq!(owner.expect("a process").uid(), 0);
    let limits = written(&machine, "limits");
    for name in [
        "Max core file size",
        "Max locked memory",
        "Max msgqueue size",
    ] {
        assert!(field(&limits, name).starts_with('0'), "{limits}");
    }
    let mounts = written(&machine, "mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(written(&machine, "environ").is_empty());
    run.signal(Signal::TERM);
    run.finish().code(143);
}

#[test]
fn a_machine_that_is_killed_is_told() {
    need!(is_kvm());
    let root = Root::new();
    let mut run = root
        .run(["--rm", "busybox", "sh", "-c", "echo up; exec sleep 1000"])
        .start();
    run.expect("up\n");
    machine(&run).kill();
    run.finish()
        .code(125)
        .complains("The machine's process was killed by signal 9");
    root.expect_nothing_left();
}

/// Each place has a filter of its own, and each tries a call that it has not.
#[test]
fn a_forbidden_call_ends_the_machine_and_is_named() {
    need!(is_kvm());
    let root = Root::new();
    for (place, call) in [
        ("machine", "socket"),
        ("devices", "ptrace"),
        ("vcpu", "openat"),
    ] {
        root.run_to_failpoints(["--rm", "busybox", "true"])
            .env("VMM_MISBEHAVE", place)
            .finish()
            .code(125)
            .complains(&format!("ended for the system call {call},"));
    }
    root.run_to_failpoints(["--rm", "busybox", "true"])
        .env("VMM_MISBEHAVE", "nowhere")
        .finish()
        .code(0);
    root.expect_nothing_left();
}
