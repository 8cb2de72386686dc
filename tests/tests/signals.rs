//! What is sent to the command reaches the container, and whoever is killed takes the container along.

use std::time::Duration;

use end_to_end::{DEADLINE, Input, Root, Running, Signal, wait_until};

/// How long what belongs to a container may be there after it lost its command. It takes far less; the rest is for a
/// machine that has better to do.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn signals_reach_a_process_that_handles_them() {
    let root = Root::new();
    let names = [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::TERM, "TERM"),
    ];
    let script = "for name in HUP INT QUIT USR1 USR2; do trap \"echo got $name\" $name; done; \
                  trap 'echo got TERM; exit 9' TERM; \
                  echo ready; while :; do sleep 0.1; done";
    let mut run = root.sh(script).start();
    run.expect("ready\n");
    for (signal, name) in names {
        run.signal(signal);
        run.expect(&format!("got {name}\n"));
    }
    run.finish().code(9).stderr("");
}

#[test]
fn a_process_that_does_not_care_ends_as_any_other() {
    let root = Root::new();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        // It says something once it runs. A shell that is about to execute another program would handle SIGINT.
        let mut run = root
            .run(["--rm", "busybox", "tail", "-f", "/etc/passwd"])
            .start();
        run.expect("root:x:0:0:");
        run.signal(signal);
        run.finish().code(code).stderr("");
    }
}

#[test]
fn a_signal_before_the_program_runs_is_not_lost() {
    let root = Root::new();
    for delay in [0, 50, 200, 400] {
        let run = root.run(["--rm", "busybox", "sleep", "1000"]).start();
        std::thread::sleep(Duration::from_millis(delay));
        run.signal(Signal::TERM);
        let run = run.finish();
        run.check(!run.succeeded(), "an end by the signal");
    }
    root.expect_nothing_left();
}

#[test]
fn the_container_ends_with_its_command() {
    let root = Root::alone();
    let run = started(&root);
    assert!(!run.helpers().is_empty(), "a VM is a process");
    run.signal(Signal::KILL);
    drop(run);
    assert_eq!(root.processes_after(SOON), []);
    // What the dead command could not remove the next one does.
    assert!(root.containers().is_empty());
    root.expect_nothing_left();
}

#[test]
fn a_container_that_is_kept_is_listed_after_its_command_was_killed() {
    let root = Root::alone();
    let run = root.run([
        "--name",
        "victim",
        "busybox",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]);
    let mut run = run.start();
    run.expect("ready\n");
    run.signal(Signal::KILL);
    drop(run);
    assert_eq!(root.processes_after(SOON), []);
    let containers = root.containers();
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!(containers[0]["Names"], "victim");
    assert_eq!(containers[0]["State"], "exited");
}

#[test]
fn a_supervisor_that_is_killed_is_reported() {
    let root = Root::alone();
    let run = started(&root);
    let supervisor = run.helpers().into_iter().find(|process| process.is_vmm());
    supervisor
        .expect("a process of vmm for the container")
        .kill();
    let run = run.finish();
    run.fails("");
    assert_eq!(root.processes_after(SOON), []);
}

#[test]
fn a_vm_that_is_killed_is_reported() {
    let root = Root::alone();
    let run = started(&root);
    let machine = run.helpers().into_iter().find(|process| !process.is_vmm());
    let Some(machine) = machine else {
        end_to_end::need!(Err::<(), _>(
            "this accelerator's VM is no process of its own"
        ));
        return;
    };
    machine.kill();
    let run = run.finish();
    run.fails("");
    assert_eq!(root.processes_after(SOON), []);
}

#[test]
fn a_vm_that_is_stopped_goes_on_later() {
    let root = Root::alone();
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c"]);
    let run = run.arg("echo ready; read word; echo got $word; exit 7");
    let mut run = run.input(Input::Later).start();
    run.expect("ready\n");
    let machine = run.helpers().into_iter().find(|process| !process.is_vmm());
    let Some(machine) = machine else {
        end_to_end::need!(Err::<(), _>(
            "this accelerator's VM is no process of its own"
        ));
        return;
    };
    machine.signal(Signal::STOP);
    assert!(wait_until(DEADLINE, || machine.is_stopped().then_some(())).is_some());
    machine.signal(Signal::CONT);
    run.send("word\n");
    run.finish().code(7).stdout("ready\ngot word\n");
}

/// A container that runs until somebody ends it.
fn started(root: &Root) -> Running {
    let mut run = root.sh("echo ready; exec sleep 1000").start();
    run.expect("ready\n");
    run
}
