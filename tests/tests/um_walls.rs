//! A kernel as a process: what stands between a guest and its host, tried from both sides of each wall.
//!
//! The first keeps the programs of the guest from the host's kernel; the second keeps whoever owns the guest's kernel from
//! all but a confined process; the third keeps whoever speaks to our devices to their rules.

use std::{
    fs,
    path::{Path, PathBuf},
    slice,
    time::Duration,
};

use end_to_end::{Finished, Process, Root, Running, Signal, Vmm, accelerator, wait_until};

/// Only this kind of machine has these walls.
fn is_um() -> Result<(), String> {
    match accelerator().as_str() {
        "um" => Ok(()),
        other => Err(format!("{other} has other walls")),
    }
}

/// Where the attempts of `escape` would be seen on the host.
const ESCAPED: [&str; 3] = [
    "/tmp/vmm-escaped",
    "/tmp/vmm-escaped-32",
    "/tmp/vmm-escaped-far",
];

/// Attempts of `escape`: if they become fewer, somebody has to know.
const ATTEMPTS: usize = 197;

/// Guest processes in a machine whose kernel is killed.
fn swarm() -> usize {
    asked("VMM_TEST_SWARM").unwrap_or(125)
}

/// Rounds of each kind of death.
fn rounds() -> usize {
    asked("VMM_TEST_ROUNDS").unwrap_or(5)
}

/// More than there is time for with every change.
fn asked(name: &str) -> Option<usize> {
    let asked = std::env::var(name).ok()?;
    Some(asked.parse().expect("a number"))
}

/// `vmm run` with the evil kernel, which tries `attempt`.
fn evil(root: &Root, attempt: &str) -> Vmm {
    let kernel = end_to_end::artifact("test/guest-tools/evil-kernel", "make build");
    root.run(["--rm", "-m", "128m", "--cmdline-append"])
        .arg(format!("evil={attempt}"))
        .arg("--kernel")
        .arg(kernel)
        .args(["busybox", "true"])
}

/// The kernel's process of a run, once it is there.
fn kernel(run: &Running) -> Process {
    let found = wait_until(end_to_end::DEADLINE, || {
        let helpers = run.helpers();
        helpers
            .into_iter()
            .find(|helper| helper.arguments.starts_with("linux ") && !helper.is_vmm())
    });
    found.expect("a kernel that is a process")
}

/// Whoever holds the machine of a run.
fn supervisors(run: &Running) -> Vec<Process> {
    let mut helpers = run.helpers();
    helpers.retain(Process::is_vmm);
    helpers
}

/// Ends a run that would go on.
fn end(run: Running) {
    run.signal(Signal::TERM);
    run.finish_within(Duration::from_secs(20)).code(143);
}

/// The processes that run guest code, and whatever else descends from the kernel's; but none that is at its end.
fn stubs(kernel: &Process) -> Vec<i32> {
    let children = format!("/proc/{0}/task/{0}/children", kernel.pid.as_raw_pid());
    let children = fs::read_to_string(children).unwrap_or_default();
    children
        .split(' ')
        .filter_map(|id| id.parse().ok())
        .filter(|id| !is_exiting(*id))
        .collect()
}

/// Whether a process has ended or is about to (`PF_EXITING` in the ninth field of its `stat`).
fn is_exiting(pid: i32) -> bool {
    let stat = proc_file(pid, "stat");
    // The second field is a name, in which there may be anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let flags = fields.split_whitespace().nth(6);
    let flags: Option<u32> = flags.and_then(|flags| flags.parse().ok());
    flags.is_none_or(|flags| flags & 4 != 0)
}

fn proc_file(pid: i32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A field of `/proc/PID/status`.
fn status(pid: i32, field: &str) -> String {
    let text = proc_file(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|line| line.strip_prefix(':'));
    value.unwrap_or("?").trim().to_owned()
}

/// What the descriptors of a process are.
fn descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = entries.into_iter().flatten().flatten();
    let mut all: Vec<_> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect();
    all.sort();
    all
}

// The first wall.

#[test]
fn no_instruction_of_a_guest_reaches_the_host() {
    end_to_end::need!(is_um());
    let root = Root::new();
    let image = root.load_tools();
    let script = "escape; echo code $?; dmesg | grep -c 'stub is gone'; uname -s";
    let run = root.run(["--rm", image, "sh", "-c", script]).finish();
    // A stub that is gone made a call on the host, and was killed for it.
    run.code(0)
        .stdout_has(&format!("tried {ATTEMPTS}\ncode 0\n0\nLinux"))
        .stdout_has("stub-jump-mkdir: exited 0")
        .stdout_lacks("exited 1\n")
        .stdout_lacks("lost");
    for path in ESCAPED {
        assert!(!Path::new(path).exists(), "{path} on the host");
    }
}

#[test]
fn the_same_instructions_do_reach_a_kernel_that_is_there() {
    end_to_end::need!(is_um());
    let tool = end_to_end::artifact("test/guest-tools/escape", "make build");
    let output = std::process::Command::new(tool)
        .arg("far-int80-39")
        .output();
    let output = output.expect("the tool runs");
    // Without 32-bit programs the host has no such call.
    let place = Path::new(ESCAPED[2]);
    if let Err(error) = fs::remove_dir(place) {
        end_to_end::skipped(
            "the_same_instructions_do_reach_a_kernel_that_is_there::here",
            &format!("this host has no 32-bit calls: {error} {output:?}"),
        );
    }
}

#[test]
fn nothing_happens_on_the_host_when_the_kernel_dies() {
    end_to_end::need!(is_um());
    let root = Root::alone();
    let image = root.load_tools();
    // The same path here and there.
    let place = root.files().join("place");
    fs::create_dir(&place).expect("a folder");
    // Whoever the processes are, they may write to it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&place, open).expect("an open folder");
    let swarm = swarm();
    let script = format!("mkdir -p {0}; escape --loop {swarm} {0}", place.display());
    for round in 0..rounds() {
        for death in [Death::Killed, Death::Panics, Death::Supervisor] {
            let words = ["--rm", "-m", "512m", image, "sh", "-c", &script];
            let mut run = root.run(words).start();
            run.expect("at work");
            let kernel = kernel(&run);
            let there = stubs(&kernel).len();
            assert!(there >= swarm, "round {round}: {there} guest processes");
            match death {
                Death::Killed => kernel.kill(),
                // A fault in the kernel, which is a panic of its own.
                Death::Panics => kernel.signal(Signal::SEGV),
                Death::Supervisor => supervisors(&run).iter().for_each(Process::kill),
            }
            drop(run);
            let gone = || {
                (!Path::new(&format!("/proc/{}", kernel.pid.as_raw_pid())).exists()).then_some(())
            };
            assert!(
                wait_until(end_to_end::DEADLINE, gone).is_some(),
                "{death:?}: {kernel}"
            );
            let left: Vec<_> = fs::read_dir(&place)
                .expect("the folder")
                .flatten()
                .collect();
            assert!(left.is_empty(), "round {round}, {death:?}: {left:?}");
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Death {
    Killed,
    Panics,
    Supervisor,
}

// The second wall.

#[test]
fn the_kernel_is_a_confined_process() {
    end_to_end::need!(is_um());
    let root = Root::new();
    let mut run = root.sh("echo up; sleep 1000").start();
    run.expect("up");
    let kernel = kernel(&run).pid.as_raw_pid();
    for (field, expected) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Seccomp_filters", "1"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(status(kernel, field), expected, "{field}");
    }
    assert_eq!(proc_file(kernel, "environ"), "", "its environment");
    let limits = proc_file(kernel, "limits");
    for (limit, most) in [
        ("Max core file size", 0),
        ("Max processes", 32_768 / 4),
        ("Max open files", 1024),
        ("Max locked memory", 0),
        ("Max msgqueue size", 0),
        ("Max data size", 64 << 20),
        ("Max file size", 16 << 20),
    ] {
        let line = limits.lines().find(|line| line.starts_with(limit));
        let hard = line.and_then(|line| line[limit.len()..].split_whitespace().nth(1));
        let hard: Option<u64> = hard.and_then(|hard| hard.parse().ok());
        let id_max = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
        let most = match limit {
            "Max processes" => id_max.trim().parse().unwrap_or(most * 4) / 4,
            _ => most,
        };
        assert!(hard.is_some_and(|hard| hard <= most), "{limit}: {line:?}");
    }
    for (number, file) in descriptors(kernel) {
        let name = file.to_string_lossy();
        let expected = ["pipe:", "socket:", "anon_inode:", "/memfd:"];
        let expected = expected.iter().any(|kind| name.starts_with(kind))
            || name == "/dev/null"
            || name.contains("initfs");
        assert!(expected, "descriptor {number} is {name}");
    }
    end(run);
}

#[test]
fn the_kernel_has_namespaces_of_its_own_and_an_empty_root() {
    end_to_end::need!(is_um());
    let root = Root::new();
    let mut run = root.sh("echo up; sleep 1000").start();
    run.expect("up");
    let kernel = kernel(&run).pid.as_raw_pid();
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).ok();
        let (ours, its) = (of("self"), of(&kernel.to_string()));
        assert!(
            its.is_some() && ours != its,
            "{namespace}: {ours:?}, {its:?}"
        );
    }
    let mounts = proc_file(kernel, "mountinfo");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    let inside = fs::read_dir(format!("/proc/{kernel}/root")).expect("its root");
    assert_eq!(inside.count(), 0);
    let map = proc_file(kernel, "uid_map");
    let inside = map.split_whitespace().next();
    assert!(inside.is_some_and(|id| id != "0"), "root inside: {map}");
    let user = status(kernel, "Uid");
    assert!(!user.split('\t').any(|id| id == "0"), "{user}");
    end(run);
}

#[test]
fn a_stub_has_nothing_of_the_kernel() {
    end_to_end::need!(is_um());
    let root = Root::new();
    let mut run = root.sh("sleep 1000 & sleep 1000 & echo up; wait").start();
    run.expect("up");
    let kernel = kernel(&run);
    // Those that have started the others are ending meanwhile.
    let mut before = Vec::new();
    let stubs = wait_until(end_to_end::DEADLINE, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = stubs(&kernel);
        let settled = now == before;
        before = now;
        settled.then(|| before.clone())
    });
    let stubs = stubs.expect("stubs that stay");
    assert!(stubs.len() >= 3, "{stubs:?}");
    let id = kernel.pid.as_raw_pid();
    let memory = descriptors(id)
        .into_iter()
        .find(|(_, file)| file.to_string_lossy().starts_with("/memfd:guest-memory"))
        .expect("guest memory");
    for stub in stubs {
        assert_eq!(status(stub, "TracerPid"), id.to_string(), "{stub}");
        assert_eq!(status(stub, "NoNewPrivs"), "1");
        assert_eq!(
            status(stub, "Seccomp_filters"),
            "2",
            "its own on top of the kernel's"
        );
        assert_eq!(status(stub, "CapEff"), "0000000000000000");
        assert_eq!(status(stub, "CapBnd"), "0000000000000000");
        assert_eq!(proc_file(stub, "environ"), "");
        assert_eq!(descriptors(stub), slice::from_ref(&memory), "{stub}");
        // Guest memory, by pages; and nothing else but what every process of the host has.
        for line in proc_file(stub, "maps").lines() {
            let name = line.split_whitespace().nth(5).unwrap_or("");
            let known = name.starts_with("/memfd:guest-memory") || name == "[vsyscall]";
            assert!(known, "{stub}: {line}");
        }
    }
    end(run);
}

#[test]
fn nothing_of_the_host_shows_inside() {
    end_to_end::need!(is_um());
    let root = Root::new();
    let host = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    };
    let (name, release) = (
        host("/proc/sys/kernel/hostname"),
        host("/proc/sys/kernel/osrelease"),
    );
    let version = host("/proc/sys/kernel/version");
    let script = "cat /proc/cpuinfo /proc/cmdline /proc/version /proc/1/environ /proc/self/environ \
                  /proc/mounts /proc/filesystems; uname -a; env; dmesg; ls /proc/sys/kernel";
    let run = root
        .run(["--rm", "busybox", "sh", "-c", script])
        .env("VMM_CANARY", "canary-of-the-host")
        .finish();
    run.stdout_has("UML");
    let files = root.files();
    for canary in [
        release.as_str(),
        version.as_str(),
        "canary-of-the-host",
        files.to_str().unwrap_or("/tmp/vt"),
        "hostfs",
    ] {
        assert!(!canary.is_empty());
        run.stdout_lacks(canary);
    }
    // A name of three letters may be part of a word.
    if name.len() > 4 {
        run.stdout_lacks(&name);
    }
}

/// Attempts of the evil kernel, and the call that it is killed for.
const FORBIDDEN: &[(&str, &str)] = &[
    ("open", "open"),
    ("openat", "openat"),
    ("openat2", "openat2"),
    ("creat", "creat"),
    ("mkdir", "mkdir"),
    ("unlink", "unlink"),
    ("rename", "rename"),
    ("chmod", "chmod"),
    ("mknod", "mknod"),
    ("chdir", "chdir"),
    ("chroot", "chroot"),
    ("mount", "mount"),
    ("umount2", "umount2"),
    ("pivot_root", "pivot_root"),
    ("open_tree", "open_tree"),
    ("fsopen", "fsopen"),
    ("inotify_init1", "inotify_init1"),
    ("open_by_handle_at", "open_by_handle_at"),
    ("statx", "statx"),
    ("socket", "socket"),
    ("socket-unix", "socket"),
    ("socket-vsock", "socket"),
    ("socket-netlink", "socket"),
    ("socket-packet", "socket"),
    ("socketpair-inet", "socketpair"),
    ("socketpair-datagram", "socketpair"),
    ("connect", "connect"),
    ("bind", "bind"),
    ("listen", "listen"),
    ("accept4", "accept4"),
    ("execve", "execve"),
    ("execveat-path", "execveat"),
    ("fork", "fork"),
    ("vfork", "vfork"),
    ("clone3", "clone3"),
    ("clone-namespace", "clone"),
    ("clone-parent", "clone"),
    ("unshare", "unshare"),
    ("setns", "setns"),
    ("kill-all", "kill"),
    ("kill-group", "kill"),
    ("ptrace-attach", "ptrace"),
    ("ptrace-seize", "ptrace"),
    ("process_vm_readv", "process_vm_readv"),
    ("pidfd_open", "pidfd_open"),
    ("pidfd_getfd", "pidfd_getfd"),
    ("setuid", "setuid"),
    ("capset", "capset"),
    ("prctl-outlive", "prctl"),
    ("prctl-seccomp", "prctl"),
    ("fcntl-signal", "fcntl"),
    ("setpriority", "setpriority"),
    ("sched_setaffinity", "sched_setaffinity"),
    ("io_uring_setup", "io_uring_setup"),
    ("bpf", "bpf"),
    ("perf_event_open", "perf_event_open"),
    ("userfaultfd", "userfaultfd"),
    ("keyctl", "keyctl"),
    ("add_key", "add_key"),
    ("modify_ldt", "modify_ldt"),
    ("iopl", "iopl"),
    ("ioperm", "ioperm"),
    ("shmget", "shmget"),
    ("msgget", "msgget"),
    ("mq_open", "mq_open"),
    ("splice", "splice"),
    ("vmsplice", "vmsplice"),
    ("mmap-shared", "mmap"),
    ("mremap", "mremap"),
    ("madvise", "madvise"),
    ("mlockall", "mlockall"),
    ("personality", "personality"),
    ("uname", "uname"),
    ("sysinfo", "sysinfo"),
    ("syslog", "syslog"),
    ("reboot", "reboot"),
    ("sethostname", "sethostname"),
    ("settimeofday", "settimeofday"),
    ("init_module", "init_module"),
    ("kexec_load", "kexec_load"),
    ("swapon", "swapon"),
    ("ioctl-terminal", "ioctl"),
    ("x32", "1073741863"),
    ("x32-openat", "1073742081"),
    ("no-such-call", "9999"),
];

#[test]
fn a_forbidden_call_is_named_and_the_end() {
    end_to_end::need!(is_um());
    let root = Root::new();
    for (attempt, call) in FORBIDDEN {
        let run = evil(&root, attempt).finish();
        run.fails(&format!(
            "killed for the system call {call}, which is none of its business"
        ));
        run.stdout("");
    }
    // What 32-bit programs would call is not even looked at.
    for attempt in ["int80-open", "int80-socket", "int80-allowed"] {
        evil(&root, attempt)
            .finish()
            .fails("a system call that is none of its business");
    }
    root.expect_nothing_left();
}

#[test]
fn what_is_no_forbidden_call_fails_or_leads_nowhere() {
    end_to_end::need!(is_um());
    let root = Root::new();
    for (attempt, value) in [
        ("nothing", 0),
        // No path leads anywhere.
        ("newfstatat", -2),
        ("readlink", -2),
        ("execveat-shell", -2),
        // No file of the host is a program for it, and its own memory is none.
        ("execveat-initfs", -13),
        ("execveat-memory", -8),
        // Nobody else is in sight.
        ("kill-others", 0),
        ("environment", 0),
        ("stop", 0),
        // What a process may have at most.
        ("descriptors", 1015),
        ("memory", 0),
        ("memory-files", 16),
        ("memory-shrink", -1),
        ("memory-grow", -27),
    ] {
        let run = evil(&root, attempt).finish();
        run.fails(&format!("{attempt}: {value}\n"));
    }
    root.expect_nothing_left();
}

#[test]
fn however_the_kernel_ends_there_is_one_message() {
    end_to_end::need!(is_um());
    let root = Root::new();
    for (attempt, message) in [
        ("segfault", "killed by signal 11"),
        ("exit-0", "ended before the guest's init came up"),
        ("exit-1", "failed with exit code 1"),
        ("exit-2", "ended before the guest's init came up"),
        ("exit-3", "kernel panicked"),
        ("exit-255", "failed with exit code 255"),
    ] {
        evil(&root, attempt).finish().fails(message);
    }
    root.expect_nothing_left();
}

#[test]
fn a_fork_bomb_leaves_ids_for_others_and_dies_with_its_machine() {
    end_to_end::need!(is_um());
    let root = Root::alone();
    let ids = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let ids: usize = ids.trim().parse().unwrap_or(32_768);
    let run = evil(&root, "forks").start();
    let kernel = kernel(&run);
    // Until it makes no more.
    let mut before = 0;
    let most = wait_until(end_to_end::DEADLINE, || {
        std::thread::sleep(Duration::from_millis(500));
        let now = stubs(&kernel).len();
        let settled = now > 0 && now == before;
        before = now;
        settled.then_some(now)
    });
    let most = most.expect("an end to it");
    assert!(most < (ids / 4).max(1), "{most} processes of {ids}");
    let sibling = root.sh("echo alive").finish();
    sibling.code(0).stdout("alive\n");
    end(run);
    root.expect_nothing_left();
}

#[test]
fn a_kernel_that_does_nothing_or_too_much_can_be_ended() {
    end_to_end::need!(is_um());
    let root = Root::new();
    for attempt in [
        "hang",
        "sleep",
        "deaf",
        "console",
        "console-line",
        "kick-flood",
        "kick-file",
    ] {
        let run = evil(&root, attempt).start();
        kernel(&run);
        std::thread::sleep(Duration::from_millis(500));
        end(run);
    }
    root.expect_nothing_left();
}

#[test]
fn an_evil_kernel_does_not_outlive_its_supervisor() {
    end_to_end::need!(is_um());
    let root = Root::new();
    for attempt in ["hang", "deaf", "forks-few"] {
        let run = evil(&root, attempt).start();
        let kernel = kernel(&run);
        supervisors(&run).iter().for_each(Process::kill);
        let path = PathBuf::from(format!("/proc/{}", kernel.pid.as_raw_pid()));
        let gone = wait_until(Duration::from_secs(10), || (!path.exists()).then_some(()));
        kernel.kill();
        assert!(gone.is_some(), "{attempt}: {kernel}");
        drop(run);
    }
}

// The third wall.

#[test]
fn a_front_end_that_breaks_the_rules_ends_its_machine() {
    end_to_end::need!(is_um());
    let root = Root::new();
    for device in ["", "block-"] {
        for (attempt, message) in [
            ("garbage", "unusable flags"),
            ("wrong-version", "unusable flags"),
            ("huge-size", "4294967295 bytes is too long"),
            ("no-such-request", "request 9999 is not supported"),
            ("region-outside", "announces unusable memory"),
            ("region-past-end", "announces unusable memory"),
            ("region-wraps", "announces unusable memory"),
            ("region-odd", "announces unusable memory"),
            ("region-empty", "announces unusable memory"),
            ("regions-overlap", "announces unusable memory"),
            ("regions-many", "is too long"),
            ("descriptors-many", "more than 32 descriptors"),
            ("ring-outside", "impossible address"),
            ("ring-at-end", "unusable ring"),
            ("ring-odd", "unusable ring"),
            ("ring-index", "names ring 4000000"),
            ("ring-size-0", "impossible size"),
            ("ring-size-odd", "impossible size"),
            ("ring-size-huge", "impossible size"),
            ("messages-flood", "Cannot reply to the vhost-user front end"),
        ] {
            let run = evil(&root, &format!("{device}{attempt}")).finish();
            run.fails("The guest broke the rules of a device")
                .complains(message);
        }
    }
    root.expect_nothing_left();
}

#[test]
fn a_front_end_that_hangs_up_ends_its_machine() {
    end_to_end::need!(is_um());
    let root = Root::new();
    let run: Finished = evil(&root, "hang-up").finish();
    run.fails("hung up a device and did not end");
    root.expect_nothing_left();
}

#[test]
fn a_file_of_the_guests_choice_is_never_mapped() {
    end_to_end::need!(is_um());
    let root = Root::new();
    let run = evil(&root, "region-own-descriptor").start();
    let kernel = kernel(&run);
    std::thread::sleep(Duration::from_secs(1));
    // It has shrunk the file, on which whoever had mapped it would die.
    let vmm = supervisors(&run);
    assert!(!vmm.is_empty(), "a supervisor beside {kernel}");
    for vmm in vmm {
        let maps = proc_file(vmm.pid.as_raw_pid(), "maps");
        assert!(!maps.contains("memfd:evil"), "{maps}");
    }
    end(run);
    root.expect_nothing_left();
}
