//! A machine on KVM: what its process is confined to, and what comes of a process that does what it may not.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use end_to_end::{Finished, Process, Root, Running, Signal, accelerator, need, wait_until};

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
    let words = ["--rm", "--cpus", "2", "-m", "256m", "busybox"];
    let mut run = root
        .run(words)
        .args(["sh", "-c", "echo up; exec sleep 1000"])
        .start();
    run.expect("up\n");
    let machine = machine(&run);
    let threads = fs::read_dir(format!("/proc/{}/task", machine.pid.as_raw_nonzero()));
    let mut count = 0;
    for thread in threads.expect("threads") {
        let id = thread.expect("a thread").file_name();
        let status = written(&machine, &format!("task/{}/status", id.display()));
        for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(&status, name), "0000000000000000", "{name}");
        }
        assert_eq!(
            [field(&status, "NoNewPrivs:"), field(&status, "Seccomp:")],
            ["1", "2"]
        );
        // The process's filter, and the thread's own on top of that.
        assert_eq!(field(&status, "Seccomp_filters:"), "2", "{status}");
        for ids in ["Uid:", "Gid:"] {
            let ids: Vec<&str> = field(&status, ids).split_whitespace().collect();
            assert!(!ids.contains(&"0"), "{ids:?}");
        }
        // The host's kernel has one of its own in there.
        count += i32::from(!field(&status, "Name:").starts_with("kvm-"));
    }
    assert_eq!(count, 3, "two processors' threads, and that of the devices");
    // Who may look into a process, or dump it, is its user; into this one root alone.
    let owner = fs::metadata(format!("/proc/{}/mem", machine.pid.as_raw_nonzero()));
    assert_eq!(owner.expect("a process").uid(), 0);
    assert!(written(&machine, "environ").is_empty());
    let mounts = written(&machine, "mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).ok();
        let (ours, its) = (of("self"), of(&machine.pid.to_string()));
        assert!(its.is_some() && ours != its, "{namespace}: {its:?}");
    }
    expect_limits(&machine);
    expect_descriptors(&machine);
    expect_mappings(&machine);
    run.signal(Signal::TERM);
    run.finish().code(143);
}

fn expect_limits(machine: &Process) {
    let limits = written(machine, "limits");
    // They count together with all others of the user where there are no namespaces of users. That a machine makes none is its
    // threads' filters' work.
    let ids = fs::read_to_string("/proc/sys/kernel/pid_max").expect("how many ids there are");
    let ids: u64 = ids.trim().parse().expect("a number");
    for (limit, most) in [
        ("Max core file size", 0),
        ("Max processes", ids / 4),
        ("Max open files", 1024),
        ("Max locked memory", 0),
        ("Max msgqueue size", 0),
        ("Max data size", (256 + 64) << 20),
    ] {
        let line = limits.lines().find(|line| line.starts_with(limit));
        let hard = line.and_then(|line| line[limit.len()..].split_whitespace().nth(1));
        let hard: Option<u64> = hard.and_then(|hard| hard.parse().ok());
        assert!(hard.is_some_and(|hard| hard <= most), "{limit}: {line:?}");
    }
}

/// None of the host's but its own disks: not KVM's device, nor what it has booted from.
fn expect_descriptors(machine: &Process) {
    let mut disks = 0;
    let entries = fs::read_dir(format!("/proc/{}/fd", machine.pid.as_raw_nonzero()))
        .expect("its descriptors");
    for entry in entries.flatten() {
        let file = fs::read_link(entry.path()).expect("a descriptor");
        let name = file.to_string_lossy().into_owned();
        let kind = name.split(':').next().unwrap_or_default();
        let flags = written(machine, &format!("fdinfo/{}", entry.file_name().display()));
        let writable = !field(&flags, "flags:").ends_with('0');
        match name.as_str() {
            "/dev/null"
            | "anon_inode:kvm-vm"
            | "anon_inode:[eventfd]"
            | "anon_inode:[eventpoll]" => {}
            _ if ["pipe", "socket"].contains(&kind) => {}
            _ if name.starts_with("anon_inode:kvm-vcpu:") => {}
            _ => {
                disks += 1;
                let own = name.contains("/containers/");
                let image = name.contains("/images/");
                assert!(own || (image && !writable), "{name}, writable: {writable}");
            }
        }
    }
    assert!(disks <= 2, "{disks} disks");
}

/// Guest memory, its own, and no file but its program and the kernel, as it is.
fn expect_mappings(machine: &Process) {
    for line in written(machine, "maps").lines() {
        let mut words = line.split_whitespace();
        let access = words.nth(1).unwrap_or_default();
        let name = words.nth(3).unwrap_or_default();
        let known = match Path::new(name).file_name().and_then(|name| name.to_str()) {
            None => !access.contains('x') && !access.ends_with('s'),
            Some("vmm") => !access.ends_with('s') && !access.contains("wx"),
            Some("vmlinux") => access.ends_with('p') && !access.contains('x'),
            Some("[heap]" | "[stack]" | "[vvar]" | "[vvar_vclock]") => !access.contains('x'),
            Some("[vdso]" | "[vsyscall]") => !access.contains('w'),
            Some(name) => name.starts_with("anon_inode:kvm-vcpu:") || name == "0",
        };
        assert!(known, "{line}");
    }
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

/// A thread of the machine, what it is made to call with which arguments, and what it is then killed for. Calls have
/// their numbers on x86-64.
const FORBIDDEN: &[(&str, u32, &str, &str)] = &[
    ("processor", 2, "", "open"),
    ("processor", 41, "1,1,0", "socket"),
    ("processor", 59, "", "execve"),
    ("processor", 56, "17", "clone"),
    ("processor", 157, "4,1", "prctl"),
    ("processor", 47, "0", "recvmsg"),
    ("processor", 296, "0", "pwritev"),
    ("processor", 10, "0,4096,5", "mprotect"),
    // Memory to execute, and memory that is not counted.
    ("processor", 9, "0,4096,7,34,-1,0", "mmap"),
    ("processor", 9, "0,4096,3,33,-1,0", "mmap"),
    // A machine of its own; memory of the host's for the guest.
    ("processor", 16, "3,44545,0", "ioctl"),
    ("processor", 16, "3,1075883590,0", "ioctl"),
    ("devices", 257, "-100,0,0", "openat"),
    ("devices", 41, "1,1,0", "socket"),
    ("devices", 56, "17", "clone"),
    ("devices", 101, "", "ptrace"),
    ("devices", 62, "-1,9", "kill"),
    ("devices", 200, "1,9", "tkill"),
    ("devices", 16, "3,44672,0", "ioctl"),
    ("devices", 9, "0,4096,3,33,-1,0", "mmap"),
    ("devices", 321, "", "bpf"),
    ("devices", 425, "", "io_uring_setup"),
];

fn taken_over(root: &Root, thread: &str, call: u32, arguments: &str) -> Finished {
    let kernel = end_to_end::artifact("test/guest-tools/evil-machine", "make build");
    let words = format!("evil={thread} call={call} args={arguments}");
    let run = root.run_to_failpoints(["--rm", "-m", "128m", "--cmdline-append", &words]);
    let run = run
        .arg("--kernel")
        .arg(kernel)
        .args(["busybox", "true"])
        .start();
    run.finish_within(end_to_end::DEADLINE)
}

#[test]
fn a_thread_that_is_taken_over_does_not_get_far() {
    need!(is_kvm());
    let root = Root::new();
    for (thread, call, arguments, name) in FORBIDDEN {
        let run = taken_over(&root, thread, *call, arguments);
        run.fails(&format!(
            "was ended for the system call {name}, which is none of its business"
        ));
        run.stdout("");
    }
    root.expect_nothing_left();
}

#[test]
fn what_a_thread_may_do_leads_nowhere() {
    need!(is_kvm());
    let root = Root::new();
    for (thread, call, arguments, result) in [
        // All of what a process may have at most, beside the guest's memory.
        ("processor", 9, "0,268435456,3,34,-1,0", -12),
        ("devices", 9, "0,268435456,3,34,-1,0", -12),
    ] {
        let run = taken_over(&root, thread, call, arguments);
        run.fails(&format!("call {call}: {result}\n"));
    }
    root.expect_nothing_left();
}
