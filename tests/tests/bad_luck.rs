//! Bad luck: processes that are killed or stopped at any phase of a run, too many runs at once, a clock that is set back,
//! a process id that is another's, a root of a later version. `make soak` has all cases of the first; these are the
//! telling ones.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use end_to_end::{
    DEADLINE, Finished, Input, Root, Signal, Terminal,
    matrix::{Blow, Case, Matrix, Phase, Victim},
    wait_until,
};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

/// One of each kind that has gone wrong, or would if something were left out.
const CORE: [(Phase, Victim, Blow); 13] = [
    (Phase::Prepare, Victim::Command, Blow::Kill),
    (Phase::Publish, Victim::Command, Blow::Interrupt),
    (Phase::Supervise, Victim::Supervisor, Blow::Kill),
    (Phase::Spawn, Victim::Both, Blow::Kill),
    (Phase::Spawn, Victim::Machine, Blow::Kill),
    (Phase::Connect, Victim::Machine, Blow::StopAndInterrupt),
    (Phase::Boot, Victim::Supervisor, Blow::StopAndInterrupt),
    (Phase::Start, Victim::Command, Blow::Term),
    (Phase::Running, Victim::Supervisor, Blow::Pause),
    (Phase::Running, Victim::Machine, Blow::Term),
    (Phase::Exit, Victim::Supervisor, Blow::Kill),
    (Phase::Exit, Victim::Machine, Blow::Kill),
    (Phase::Teardown, Victim::Supervisor, Blow::Kill),
];

#[test]
fn whoever_is_hit_whenever_it_ends_well() {
    let mut matrix = Matrix::new();
    let machine_is_a_process = matrix.machine_is_a_process();
    let mut number = 0;
    for (phase, victim, blow) in CORE {
        if victim != Victim::Machine || machine_is_a_process {
            let case = Case {
                phase,
                victim,
                blow,
            };
            matrix.round(case, number);
            number += 1;
        }
    }
    matrix.finish();
}

#[test]
fn a_release_cannot_be_held() {
    let root = Root::new();
    let has_failpoints = |program: &Path| {
        let bytes = fs::read(program).expect("a program");
        let name = b"VMM_FAILPOINTS";
        bytes.windows(name.len()).any(|window| window == name)
    };
    assert!(!has_failpoints(&end_to_end::vmm()));
    assert!(has_failpoints(&end_to_end::vmm_with_failpoints()));
    let failpoint = root.hold("resolve");
    let sockets = root.files().join("failpoints");
    let run = root.sh("true").env("VMM_FAILPOINTS", sockets);
    run.finish().code(0);
    assert!(!failpoint.is_reached());
}

#[test]
fn two_and_then_fifty_start_at_once() {
    let root = Root::alone();
    for count in [2, 50] {
        let started: Vec<_> = (0..count)
            .map(|number| {
                let script = format!("read word; echo {number} $word; exit {number}");
                let arguments = ["--rm", "-i", "-m", "128m", "busybox", "sh", "-c", &script];
                let word = format!("word-{number}\n");
                root.run(arguments)
                    .input(Input::Bytes(word.into_bytes()))
                    .start()
            })
            .collect();
        let finished: Vec<Finished> = started
            .into_iter()
            // Each has the whole machine to itself for a fiftieth of the time.
            .map(|run| run.finish_within(4 * DEADLINE))
            .collect();
        for (number, run) in finished.iter().enumerate() {
            run.code(i32::try_from(number).unwrap_or(-1)).stderr("");
            run.stdout(format!("{number} word-{number}\n"));
        }
        root.expect_nothing_left();
        assert!(root.containers().is_empty());
    }
}

#[test]
fn a_command_that_is_stopped_while_it_makes_a_container_is_in_nobodys_way() {
    let root = Root::new();
    let failpoint = root.hold("prepare");
    let stopped = root.run_to_failpoints(["--rm", "busybox", "echo", "late"]);
    let stopped = stopped.start();
    let held = stopped.reach(failpoint);
    stopped.signal(Signal::STOP);
    root.sh("echo other").finish().code(0).stdout("other\n");
    assert!(root.containers().is_empty());
    drop(held);
    stopped.signal(Signal::CONT);
    stopped.finish().code(0).stdout("late\n").stderr("");
}

#[test]
fn a_lock_that_is_never_let_go_of_is_reported_and_holds_no_container_up() {
    let root = Root::new();
    let script = "echo ready; read word; exit 4";
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", script]);
    let mut run = run.input(Input::Later).start();
    run.expect("ready\n");
    // As somebody who was stopped in the one moment in which that matters.
    let lock = fs::File::open(root.state().join("containers/lock")).expect("a lock");
    flock(lock.as_fd(), FlockOperation::LockExclusive).expect("the lock");
    root.sh("true").finish().fails("Another vmm has held");
    run.send("go\n");
    run.finish().code(4).stderr("");
    root.expect_nothing_left();
}

#[test]
fn output_that_nobody_reads_does_not_keep_a_command_from_being_ended() {
    let root = Root::new();
    let script = "cat /dev/zero";
    let mut run = root.sh(script).keep_output().start();
    let machine = wait_until(DEADLINE, || {
        let helpers = run.helpers();
        helpers.into_iter().find(|process| !process.is_vmm())
    });
    let Some(machine) = machine else {
        end_to_end::need!(Err::<(), _>(
            "this accelerator's VM is no process of its own"
        ));
        return;
    };
    let output = run.take_output().expect("output");
    // Nothing is read of it, so that the command cannot go on writing.
    let is_writing = |task: fs::DirEntry| {
        let call = fs::read_to_string(task.path().join("syscall"));
        call.is_ok_and(|call| call.starts_with("1 "))
    };
    let tasks = format!("/proc/{}/task", run.pid().as_raw_nonzero());
    let stuck = wait_until(DEADLINE, || {
        let full = rustix::io::ioctl_fionread(&output).expect("a pipe") >= 64 << 10;
        let mut tasks = fs::read_dir(&tasks).expect("a process").flatten();
        (full && tasks.any(is_writing)).then_some(())
    });
    assert!(stuck.is_some(), "expected a pipe to become full");
    machine.kill();
    let gone = wait_until(DEADLINE, || run.helpers().is_empty().then_some(()));
    assert!(gone.is_some(), "expected nobody to be left but the command");
    run.signal(Signal::TERM);
    run.finish().code(143).complains("signal 9");
}

#[test]
fn three_interrupts_end_a_container_that_ignores_them() {
    let root = Root::new();
    let terminal = Terminal::new(24, 80);
    let script = "trap '' INT; echo ready; while :; do sleep 1; done";
    let mut run = root.sh(script).start_in(&terminal);
    run.expect("ready");
    for _ in 0..3 {
        terminal.type_keys("\x03");
        std::thread::sleep(Duration::from_millis(200));
    }
    run.finish()
        .code(130)
        .stdout_has("killed after 3 interrupts");
    root.expect_nothing_left();
}

#[test]
fn a_process_id_that_is_anothers_by_now_is_left_alone() {
    let root = Root::new();
    let run = root.run(["--name", "old", "busybox", "true"]);
    run.finish().code(0);
    assert!(root.processes_after(DEADLINE).is_empty());
    let mut innocent = Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn()
        .expect("a process");
    // As a power cut leaves it.
    change(&root, "state.json", |state| {
        state["status"] = "running".into();
        state["supervisor_pid"] = innocent.id().into();
        state["exit_code"] = Value::Null;
    });
    let list = root.containers();
    assert_eq!(list[0]["State"], "exited", "{list:?}");
    root.sh("true").finish().code(0);
    root.vmm(["rm", "-f", "old"])
        .finish()
        .code(0)
        .stdout("old\n");
    let lives = innocent.try_wait().expect("a child").is_none();
    innocent.kill().expect("a child");
    innocent.wait().expect("a child");
    assert!(lives, "the process was ended");
}

#[test]
fn a_clock_that_was_set_back_since_is_no_trouble() {
    let root = Root::new();
    let run = root.run(["--name", "future", "busybox", "true"]);
    run.finish().code(0);
    assert!(root.processes_after(DEADLINE).is_empty());
    let later = |object: &mut Value, field: &str| {
        let ns = object[field].as_u64().expect("a time");
        object[field] = (ns + 3_600_000_000_000).into();
    };
    change(&root, "config.json", |config| later(config, "created_ns"));
    change(&root, "state.json", |state| {
        later(state, "started_ns");
        later(state, "finished_ns");
    });
    let list = root.containers();
    assert_eq!(list[0]["RunningFor"], "Less than a second ago", "{list:?}");
    root.vmm(["ps", "-a"]).finish().code(0).stdout_has("future");
    root.run(["--name", "present", "busybox", "true"])
        .finish()
        .code(0);
    root.vmm(["rm", "future", "present"]).finish().code(0);
}

#[test]
fn a_container_cannot_set_its_clock() {
    let root = Root::new();
    let script = "date -s '2001-01-01 00:00:00' 2>&1; sleep 1; date +now:%Y; exit 5";
    let run = root.sh(script).finish();
    run.code(5).stdout_has("not permitted").stdout_has("now:");
    run.stdout_lacks("now:2001");
}

#[test]
fn a_root_of_a_later_version_is_left_as_it_is() {
    const SUPERVISE: [&str; 8] = [
        "supervise",
        "0",
        "--lock",
        "0",
        "--channel",
        "0",
        "--began",
        "0",
    ];
    let root = Root::new();
    let state = root.state();
    root.run(["--name", "kept", "busybox", "true"])
        .finish()
        .code(0);
    let layout = root.layout("name a:1\ndirectory /bin 755\ncmd sh\n");
    root.vmm(["image", "load"]).arg(&layout).finish().code(0);
    // What this version would clear up.
    fs::create_dir(state.join("containers/.removed-later")).expect("a folder");
    fs::write(state.join("format"), "2\n").expect("a format");
    let before = tree(&state);
    let layout = layout.to_str().expect("a path");
    let commands: [&[&str]; 9] = [
        &["run", "--rm", "busybox", "true"],
        &["ps", "-a"],
        &["rm", "-f", "kept"],
        &["image", "ls"],
        &["image", "load", layout],
        &["image", "rm", "a:1"],
        &["system", "info"],
        &SUPERVISE,
        &["ps", "-q"],
    ];
    for command in commands {
        let refused = root.vmm(command).finish();
        refused.fails("format 2").stdout("");
        assert_eq!(tree(&state), before, "{command:?}");
    }
    root.vmm(["version"]).finish().code(0);
    fs::write(state.join("format"), "1\n").expect("a format");
    root.vmm(["rm", "kept"]).finish().code(0);
}

#[test]
fn a_supervisor_takes_nothing_for_what_it_is_not() {
    let root = Root::new();
    let script = "echo ready; read word; echo $word";
    let run = root.run(["--rm", "-i", "busybox", "sh", "-c", script]);
    let mut run = run.input(Input::Later).start();
    run.expect("ready\n");
    let id = root.containers()[0]["ID"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let lock = root.state().join("containers").join(&id).join("lock");
    let other = root.files().join("other");
    fs::File::create(&other)
        .and_then(|mut file| file.write_all(b"x"))
        .expect("a file");
    let supervise = |id: &str, lock: &Path| {
        let line = root.vmm(["supervise", id, "--lock", "8", "--channel", "9"]);
        let line = line.args(["--began", "0"]);
        let script = format!(
            "exec 8<'{}' 9<'{}'; exec {}",
            lock.display(),
            other.display(),
            line.shell_line()
        );
        let output = Command::new("sh").args(["-c", &script]).output();
        let output = output.expect("a shell");
        assert_eq!(output.status.code(), Some(125));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Somebody runs it.
    assert!(supervise(&id, &lock).contains("8 is not the container's lock"));
    assert!(supervise(&id, &other).contains("8 is not the container's lock"));
    assert!(supervise("../..", &lock).contains("no container's ID"));
    run.send("still here\n");
    run.finish().code(0).stdout("ready\nstill here\n");

    root.run(["--name", "idle", "busybox", "true"])
        .finish()
        .code(0);
    assert!(root.processes_after(DEADLINE).is_empty());
    let id = root.containers()[0]["ID"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let lock = root.state().join("containers").join(&id).join("lock");
    assert!(supervise(&id, &lock).contains("9 is no channel"));
}

/// Changes what is written of the only container.
fn change(root: &Root, file: &str, change: impl FnOnce(&mut Value)) {
    let id = root.containers()[0]["ID"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let path = root.state().join("containers").join(id).join(file);
    let text = fs::read(&path).expect("a record");
    let mut value = serde_json::from_slice(&text).expect("a record as JSON");
    change(&mut value);
    fs::write(&path, value.to_string()).expect("a record");
}

/// Every file and folder below, with its time of change and length.
fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let metadata = entry.metadata().expect("a file");
        let modified = metadata.modified().expect("a time");
        let path = entry.path();
        found.insert(
            path.display().to_string(),
            format!("{modified:?} {}", metadata.len()),
        );
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
    }
    found
}
