//! Containers as things with a name, a state and an end.

use end_to_end::{Finished, Input, Root};
use serde_json::Value;

#[test]
fn a_container_that_has_ended_is_listed_until_it_is_removed() {
    let root = Root::new();
    let run = root.run(["--name", "ended", "busybox", "sh", "-c", "exit 3"]);
    run.finish().code(3);

    let containers = root.containers();
    assert_eq!(containers.len(), 1, "{containers:?}");
    let container = &containers[0];
    let text = |field: &str| container[field].as_str().unwrap_or_default().to_owned();
    let id = text("ID");
    assert_eq!(id.len(), 64, "{container}");
    assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(text("Names"), "ended");
    assert!(text("Image").starts_with("busybox"), "{container}");
    assert!(text("Command").contains("sh -c"), "{container}");
    assert_eq!(text("State"), "exited");
    assert!(text("Status").starts_with("Exited (3) "), "{container}");
    assert!(text("CreatedAt").starts_with("20"), "{container}");
    assert!(text("RunningFor").ends_with(" ago"), "{container}");
    assert!(
        root.state()
            .join("containers")
            .join(&id)
            .join("console.log")
            .is_file()
    );

    // Not running, so only `-a` shows it.
    root.vmm(["ps", "-q"]).finish().code(0).stdout("");
    let short = root.vmm(["ps", "-a", "-q"]).finish();
    short.code(0).stdout(format!("{}\n", &id[..12]));
    let table = root.vmm(["ps", "-a"]).finish();
    for part in ["CONTAINER ID", &id[..12], "busybox", "Exited (3)", "ended"] {
        table.code(0).stdout_has(part);
    }
    table.stdout_lacks(&id);

    root.vmm(["rm", "ended"]).finish().code(0).stdout("ended\n");
    assert!(root.containers().is_empty());
    root.expect_nothing_left();
}

#[test]
fn a_running_container_is_listed_and_removed_only_by_force() {
    let root = Root::new();
    let script = "echo ready; exec sleep 1000";
    let run = root.run(["--name", "busy", "busybox", "sh", "-c", script]);
    let mut run = run.start();
    run.expect("ready\n");
    let list = root.vmm(["ps", "--format", "json"]).finish();
    let list = list.code(0).json();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0]["State"], "running");
    let status = list[0]["Status"].as_str().unwrap_or_default();
    assert!(status.starts_with("Up "), "{status}");

    let refused = root.vmm(["rm", "busy"]).finish();
    refused
        .complains("busy")
        .check(!refused.succeeded(), "a refusal");
    root.vmm(["rm", "-f", "busy"]).finish().code(0);
    let run = run.finish();
    run.check(!run.succeeded(), "an end by force");
    assert!(root.containers().is_empty());
}

#[test]
fn an_identifier_may_be_shortened() {
    let root = Root::new();
    root.run(["busybox", "true"]).finish().code(0);
    root.run(["busybox", "true"]).finish().code(0);
    let ids = root.vmm(["ps", "-a", "-q", "--no-trunc"]).finish();
    let ids = ids.code(0).text();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len(), 2);
    root.vmm(["rm", &ids[0][..12], ids[1]]).finish().code(0);
    assert!(root.containers().is_empty());
}

#[test]
fn what_is_not_there_cannot_be_removed() {
    let root = Root::new();
    let rm = root.vmm(["rm", "nobody"]).finish();
    rm.complains("nobody").check(!rm.succeeded(), "a failure");
}

#[test]
fn a_name_belongs_to_one_container() {
    let root = Root::new();
    let run = || root.run(["--name", "mine", "busybox", "echo", "hello"]);
    run().finish().code(0).stdout("hello\n");
    run().finish().fails("mine").stdout("");
    assert_eq!(root.containers().len(), 1);
    root.vmm(["rm", "mine"]).finish().code(0);
    run().finish().code(0).stdout("hello\n");
}

#[test]
fn a_name_that_is_none_is_refused() {
    let root = Root::new();
    for name in ["a/b", "../x", "-", "", "a b"] {
        let argument = format!("--name={name}");
        root.run([&argument, "busybox", "true"]).finish().code(125);
    }
    assert!(root.containers().is_empty());
}

#[test]
fn names_are_given_and_differ() {
    let root = Root::new();
    root.run(["busybox", "true"]).finish().code(0);
    root.run(["busybox", "true"]).finish().code(0);
    let containers = root.containers();
    let names: Vec<&Value> = containers
        .iter()
        .map(|container| &container["Names"])
        .collect();
    assert_eq!(names.len(), 2);
    assert_ne!(names[0], names[1]);
    assert!(
        names
            .iter()
            .all(|name| name.as_str().is_some_and(|name| !name.is_empty()))
    );
}

#[test]
fn what_a_container_writes_is_its_own() {
    let root = Root::new();
    let write = "echo mine > /file; rm /bin/cat; echo root:x:0:0::/:/bin/sh > /etc/passwd";
    root.run(["busybox", "sh", "-c", write]).finish().code(0);
    let look = "[ ! -e /file ] && cat /etc/passwd | head -1";
    let second = root.run(["busybox", "sh", "-c", look]).finish();
    second.code(0).stdout("root:x:0:0:root:/root:/bin/sh\n");
}

#[test]
fn removing_is_complete_without_a_second_command() {
    let root = Root::new();
    root.sh("head -c 5000000 /dev/urandom > /file")
        .finish()
        .code(0);
    root.expect_nothing_left();
    assert!(root.containers().is_empty());
}

#[test]
fn many_at_once_answer_for_themselves() {
    const COUNT: usize = 12;
    let root = Root::alone();
    let started: Vec<_> = (0..COUNT)
        .map(|number| {
            let script = format!("read word; echo {number} $word; exit {number}");
            let run = root.run(["--rm", "-i", "busybox", "sh", "-c", &script]);
            let word = format!("word-{number}\n");
            run.input(Input::Bytes(word.into_bytes())).start()
        })
        .collect();
    let finished: Vec<Finished> = started.into_iter().map(|run| run.finish()).collect();
    for (number, run) in finished.iter().enumerate() {
        let code = i32::try_from(number).unwrap_or(-1);
        run.code(code).stderr("");
        run.stdout(format!("{number} word-{number}\n"));
    }
    root.expect_nothing_left();
    assert!(root.containers().is_empty());
}
