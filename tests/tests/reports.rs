//! What `vmm` says about itself and about a run.

use end_to_end::{Finished, Root, accelerator};
use serde_json::Value;

/// The timeline of a run that prints something, but for the first output: that comes when it does, after the
/// program's start.
const TIMELINE: [&str; 13] = [
    "cli-start",
    "image-resolved",
    "container-prepared",
    "supervisor-started",
    "vm-started",
    "init-started",
    "hello",
    "boot-sent",
    "mounted",
    "executed",
    "exited",
    "synced",
    "exit-received",
];

#[test]
fn the_timeline_is_a_table() {
    let root = Root::new();
    let run = root
        .run(["--rm", "--timings", "busybox", "echo", "hello"])
        .finish();
    run.code(0).stdout("hello\n");
    let text = run.error_text();
    let lines: Vec<&str> = text.lines().collect();
    let mut rest = lines.as_slice();
    for name in TIMELINE {
        let position = rest
            .iter()
            .position(|line| line.split_whitespace().any(|word| word == name));
        let Some(position) = position else {
            panic!("expected {name} in its place\n{}", run.description());
        };
        rest = &rest[position + 1..];
    }
    assert!(text.contains("first-output"), "{text}");
    let run = root
        .run(["--rm", "--timings=text", "busybox", "true"])
        .finish();
    run.code(0).stdout("");
    assert!(
        !run.error_text().contains("first-output"),
        "{}",
        run.description()
    );
}

#[test]
fn the_timeline_is_json() {
    let root = Root::new();
    let run = root.run([
        "--rm",
        "--timings=json",
        "busybox",
        "sh",
        "-c",
        "echo hello; exit 3",
    ]);
    let run = run.finish();
    run.code(3).stdout("hello\n");
    let events = events(&run);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let first_output = names.iter().position(|name| *name == "first-output");
    let executed = names.iter().position(|name| *name == "executed");
    assert!(first_output > executed, "{names:?}");
    let others: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| *name != "first-output")
        .collect();
    assert_eq!(others, TIMELINE);
    assert!(events.is_sorted_by_key(|(_, ms)| *ms), "{events:?}");
    assert!(events[0].1 >= 0.0, "{events:?}");
}

/// Names and times of the events in the JSON on standard error.
fn events(run: &Finished) -> Vec<(String, f64)> {
    let report: Value = serde_json::from_str(&run.error_text())
        .unwrap_or_else(|error| panic!("{error}\n{}", run.description()));
    let events = report["events"].as_array().cloned().unwrap_or_default();
    let event = |event: &Value| Some((event["name"].as_str()?.to_owned(), event["ms"].as_f64()?));
    events
        .iter()
        .map(|value| event(value).unwrap_or_else(|| panic!("{value}")))
        .collect()
}

#[test]
fn the_version_is_told() {
    let root = Root::new();
    root.vmm(["version"])
        .finish()
        .code(0)
        .stdout_has(env!("CARGO_PKG_VERSION"));
    root.vmm(["--version"])
        .finish()
        .code(0)
        .stdout_has(env!("CARGO_PKG_VERSION"));
    let version = root.vmm(["version", "--format", "json"]).finish();
    version.code(0).stdout_has(env!("CARGO_PKG_VERSION"));
    assert_eq!(version.json().len(), 1);
}

#[test]
fn every_accelerator_has_a_verdict() {
    let root = Root::new();
    let accelerator = accelerator();
    let info = root.vmm(["system", "info"]).finish();
    info.code(0).stdout_has(&accelerator);
    let info = root.vmm(["system", "info", "--format", "json"]).finish();
    info.code(0).stdout_has(&format!("{accelerator:?}"));
    assert_eq!(info.json().len(), 1);
}

#[test]
fn a_kvm_that_cannot_run_machines_is_refused_for_a_reason() {
    let root = Root::new();
    let reason = || {
        let info = root.vmm(["system", "info", "--format", "json"]).finish();
        let accelerators = info.code(0).json()[0]["Accelerators"].clone();
        let is_kvm = |verdict: &&Value| verdict["name"] == "kvm";
        let verdicts = accelerators.as_array().expect("verdicts");
        let kvm = verdicts.iter().find(is_kvm).expect("a verdict").clone();
        let usable = kvm["usable"].as_bool().expect("whether");
        (!usable).then(|| kvm["reason"].as_str().expect("why").to_owned())
    };
    let Some(why) = reason() else {
        return;
    };
    // The second time it may be known, and is no other.
    for _ in 0..2 {
        let run = ["run", "--rm", "--accel", "kvm", "busybox", "true"];
        root.vmm(run).finish().is_refused(125, &[&why]);
        assert_eq!(reason().as_deref(), Some(&*why));
    }
    // Nothing of it keeps the others from it.
    let run = ["run", "--rm", "--accel", "auto", "busybox", "true"];
    root.vmm(run).finish().code(0).stderr("");
    assert_eq!(reason().as_deref(), Some(&*why));
}

#[test]
fn the_accelerator_is_found_by_itself() {
    let root = Root::new();
    for words in [&["run", "--rm"][..], &["run", "--rm", "--accel", "auto"]] {
        let run = root.vmm(words).args(["busybox", "echo", "hello"]).finish();
        run.code(0).stdout("hello\n").stderr("");
    }
}

#[test]
fn help_is_for_every_command() {
    let root = Root::new();
    for words in [
        &["--help"][..],
        &["run", "--help"],
        &["ps", "--help"],
        &["rm", "--help"],
        &["image", "load", "--help"],
        &["system", "info", "--help"],
    ] {
        root.vmm(words)
            .finish()
            .code(0)
            .stderr("")
            .stdout_has("Usage:");
    }
}

#[test]
fn the_root_may_be_named_by_the_environment() {
    let root = Root::new();
    let other = root.files().join("other");
    let words = [
        "run",
        "--name",
        "here",
        "--accel",
        &accelerator(),
        "busybox",
        "true",
    ];
    let run = root.vmm(words).finish();
    run.code(0);
    let list = root.vmm(["ps", "-a"]).env("VMM_ROOT", &other).finish();
    // The flag wins.
    list.code(0).stdout_has("here");
}
