//! Every container has a kernel of its own, which may be another one.

use end_to_end::{Root, accelerator, initfs, need, second_kernel};

#[test]
fn containers_with_different_kernels_run_at_once() {
    let root = Root::new();
    let second = second_kernel();
    let script = "uname -r; exec sleep 1000";
    let mut first = root.run(["--rm", "busybox", "sh", "-c", script]).start();
    first.expect("\n");

    let run = root.run(["--rm", "--kernel"]).arg(second);
    let run = run.args(["busybox", "uname", "-r"]).finish();
    let release = run.code(0).text();
    run.check(release.ends_with("-second"), "the second kernel's release");

    first.signal(end_to_end::Signal::TERM);
    let first = first.finish();
    first.code(143).stdout_lacks("-second");
    first.check(!first.text().is_empty(), "the default kernel's release");
}

#[test]
fn a_word_on_the_kernels_command_line_arrives() {
    let root = Root::new();
    let words = ["--cmdline-append", "vmm_test=1 loglevel=3"];
    let run = root
        .run(["--rm"])
        .args(words)
        .args(["busybox", "cat", "/proc/cmdline"]);
    run.finish().code(0).stdout_has(" vmm_test=1 loglevel=3");
}

#[test]
fn the_kernel_guards_against_what_cpus_leak_if_it_is_told_to() {
    let root = Root::new();
    need!(match accelerator().as_str() {
        "um" => Err(
            "programs run on the host's CPUs as under the host's kernel, which guards them"
                .to_owned()
        ),
        _ => Ok(()),
    });
    let script = "cat /proc/cmdline /sys/devices/system/cpu/vulnerabilities/spectre_v1";
    let words = ["busybox", "sh", "-c", script];
    let run = root
        .run(["--rm", "--mitigations=auto"])
        .args(words)
        .finish();
    run.code(0).stdout_has("\nMitigation: ");
    // Where a kernel guards itself unless it is told not to, it need not be told.
    if accelerator() != "kvm" {
        run.stdout_has(" mitigations=auto ");
    }
    let run = root
        .run(["--rm", "--mitigations", "off"])
        .args(words)
        .finish();
    run.code(0)
        .stdout_has(" mitigations=off ")
        .stdout_has("\nVulnerable");
}

#[test]
fn a_kernel_that_boots_prints_nothing() {
    let root = Root::new();
    // It says if its processor needs what it has not, as the emulated host's does.
    let flags: &[&str] = match accelerator().as_str() {
        "kvm" => &["--mitigations", "off"],
        _ => &[],
    };
    let mut run = root
        .run(["--rm"])
        .args(flags)
        .args(["busybox", "sh", "-c", "echo ready; exec sleep 1000"])
        .start();
    run.expect("ready\n");
    let containers = std::fs::read_dir(root.state().join("containers")).expect("containers");
    let logs: Vec<_> = containers
        .flatten()
        .map(|entry| entry.path().join("console.log"))
        .filter(|path| path.exists())
        .collect();
    assert_eq!(logs.len(), 1);
    let printed = std::fs::read_to_string(&logs[0]).expect("a log");
    assert_eq!(printed, "");
    run.signal(end_to_end::Signal::TERM);
    run.finish().code(143);
}

/// QEMU 7.2 leaves garbage in the flags after `cmpxchg16b`.
#[test]
fn an_emulated_kernel_does_not_use_what_is_emulated_wrongly() {
    need!(match accelerator().as_str() {
        "kvm" => Err("a machine that is emulated on an emulated host takes minutes".to_owned()),
        _ => Ok(()),
    });
    let root = Root::new();
    let words = [
        "run",
        "--accel",
        "tcg",
        "--rm",
        "busybox",
        "cat",
        "/proc/cpuinfo",
    ];
    let run = root.vmm(words);
    run.finish().code(0).stdout_has("cx8").stdout_lacks("cx16");
}

#[test]
fn the_command_line_says_nothing_about_the_container() {
    let root = Root::new();
    let run = root.run([
        "--rm",
        "-e",
        "KEY=sesame",
        "--name",
        "lamp",
        "--hostname",
        "cave",
    ]);
    let run = run.args(["busybox", "cat", "/proc/cmdline"]).finish();
    for word in ["sesame", "lamp", "cave", "busybox"] {
        run.code(0).stdout_lacks(word);
    }
}

#[test]
fn an_initfs_can_be_given() {
    let root = Root::new();
    let copy = root.files().join("initfs");
    std::fs::copy(initfs(), &copy).expect("a copy of the initfs");
    let run = root
        .run(["--rm", "--initfs"])
        .arg(copy)
        .args(["busybox", "echo", "hello"]);
    run.finish().code(0).stdout("hello\n");
}
