//! A confined shell, and what it cannot do. Each wall is tried with the others down where that can be.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    io::{Read, Seek},
    os::fd::AsFd,
    path::Path,
};

use rustix::process::WaitStatus;

use super::*;

/// A shell that needs no other file.
const SHELL: &str = "/bin/busybox";

fn all_but(calls: &[libc::c_long]) -> filter::Program {
    filter::all_but(calls).unwrap()
}

impl Confined {
    fn has(&self, layer: Layer) -> bool {
        !self.missing.iter().any(|missing| missing.layer == layer)
    }
}

/// Runs `script` confined; gives how it ended and what it said. Nothing, with a word about it, where there is no shell.
fn run(script: &str, filter: filter::Program) -> Option<(WaitStatus, String, Confined)> {
    if !Path::new(SHELL).exists() {
        let test = std::thread::current();
        eprintln!(
            "skipped: {}: {SHELL} is not installed",
            test.name().unwrap_or("?")
        );
        return None;
    }
    let program = File::open(SHELL).unwrap();
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut output: File = rustix::fs::memfd_create("output", flags).unwrap().into();
    let plan = Plan {
        program: program.as_fd(),
        arguments: ["busybox", "sh", "-c", script]
            .map(|text| CString::new(text).unwrap())
            .into(),
        inherited: Vec::new(),
        output: output.as_fd(),
        filter,
        needs: Needs {
            processes: 50,
            private: 64 << 20,
            file: 16 << 20,
        },
        sandbox: Sandbox::Minimum,
    };
    let confined = spawn(&plan).unwrap();
    let status = loop {
        match waitpid(Some(confined.pid), WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            other => break other.unwrap().unwrap().1,
        }
    };
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    Some((status, text, confined))
}

#[test]
fn it_sees_no_file_no_process_and_no_environment() {
    let script = "echo /*; echo $$; echo ${HOME-none}; read x </etc/passwd";
    let Some((status, text, confined)) = run(script, all_but(&[])) else {
        return;
    };
    if !confined.has(Layer::Root) {
        eprintln!("skipped: it_sees_no_file: this host permits no namespaces");
        return;
    }
    assert_eq!(status.exit_status(), Some(1), "{text}");
    assert!(text.starts_with("/*\n1\nnone\n"), "{text}");
}

#[test]
fn a_forbidden_call_kills_it() {
    let call = [libc::SYS_getppid];
    let script = "echo $PPID";
    let Some((status, _, confined)) = run(script, all_but(&call)) else {
        return;
    };
    match confined.forbidden.call() {
        Some(name) => {
            assert_eq!(name, "getppid");
            assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
        }
        None => assert_eq!(status.terminating_signal(), Some(libc::SIGSYS)),
    }
}

#[test]
fn landlock_alone_keeps_it_from_files_and_sockets() {
    let Ok(landlock) = landlock::Ruleset::create(None) else {
        eprintln!("skipped: landlock_alone: this host has no Landlock");
        return;
    };
    let status = in_child(|| {
        landlock::enter(landlock.as_raw_fd()).unwrap();
        let opened = ["/", "/dev/null", "/etc/passwd", "/proc/self/mem"].map(|path| {
            rustix::fs::open(path, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).is_ok()
        });
        i32::from(opened.contains(&true))
    });
    assert_eq!(status, Some(0));
}

#[test]
fn without_privileges_it_stays() {
    let Some((status, text, confined)) = run("> /x", all_but(&[])) else {
        return;
    };
    if confined.has(Layer::Root) {
        assert_ne!(status.exit_status(), Some(0), "{text}");
    }
}

#[test]
fn it_dies_with_the_first_of_its_processes() {
    let Some((_, _, confined)) = run("sleep 1000 & exit 0", all_but(&[])) else {
        return;
    };
    // Its namespace of processes has ended with it, or waiting for it would not have returned.
    if confined.has(Layer::Namespaces) {
        let missing = probe().unwrap();
        assert!(
            missing
                .iter()
                .all(|missing| missing.layer != Layer::Namespaces)
        );
    }
}

#[test]
fn where_no_namespaces_are_landlock_keeps_it_from_files() {
    if landlock::Ruleset::create(None).is_err() {
        eprintln!("skipped: where_no_namespaces_are: this host has no Landlock");
        return;
    }
    let place = std::env::temp_dir().join(format!("vmm-sandbox-{}", std::process::id()));
    std::fs::create_dir(&place).unwrap();
    let script = "(read x </etc/passwd; echo \"$x\"); (echo x >/dev/null) && echo written; echo /*";
    let ran = in_chroot(&place, || run(script, all_but(&[])));
    let _ = std::fs::remove_dir(&place);
    let Some((_, text, confined)) = ran else {
        return;
    };
    assert!(!confined.has(Layer::Namespaces) && confined.has(Layer::Landlock));
    assert!(
        !text.contains("root:") && !text.contains("written"),
        "{text}"
    );
    assert!(!text.contains("/etc /"), "{text}");
}

#[test]
fn under_a_guard_nothing_that_it_has_started_outlives_it() {
    let (pipe, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let session = filter::session().unwrap();
    let (pid, _, guard) = guard::fork(|| {
        rustix::thread::set_no_new_privs(true).unwrap();
        filter::enter_plain(&session).unwrap();
        // It tries to leave, and so does who has it as parent; all of them hold the pipe.
        for _ in 0..3 {
            assert!(rustix::process::setsid().is_err());
            if namespaces::clone(0).unwrap().is_none() {
                assert!(rustix::process::setsid().is_err());
                loop {
                    std::thread::sleep(std::time::Duration::from_secs(1000));
                }
            }
        }
        0
    })
    .unwrap();
    drop(held);
    reap(pid);
    let is_open = || !crate::process::is_readable_within(pipe.as_fd(), std::time::Duration::ZERO);
    assert!(is_open());
    drop(guard);
    let minute = std::time::Duration::from_secs(60);
    assert!(crate::process::is_readable_within(pipe.as_fd(), minute));
}

/// Runs `test` where no namespaces are to be had: whose root is not that of its mount namespace may make none of users.
/// Nothing, with a word about it, for who may not go there.
fn in_chroot<T: Send>(place: &Path, test: impl FnOnce() -> Option<T> + Send) -> Option<T> {
    use rustix::{
        mount::{MountPropagationFlags, mount_bind_recursive, mount_change},
        process::{chdir, chroot},
        thread::{UnshareFlags, unshare_unsafe},
    };
    let enter = || -> rustix::io::Result<()> {
        // SAFETY: what this thread shares no more are mounts, root, and working directory.
        unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        mount_bind_recursive("/", place)?;
        chroot(place)?;
        chdir("/")
    };
    // A thread of its own, as there is no way back.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| match enter() {
            Ok(()) => test(),
            Err(errno) => {
                eprintln!("skipped: where_no_namespaces_are: no chroot: {errno}");
                None
            }
        });
        thread.join().unwrap()
    })
}

/// Runs `test` in a process of its own, for what cannot be undone; gives its exit status.
fn in_child(test: impl Fn() -> i32) -> Option<i32> {
    let forked = namespaces::fork(|_| test()).unwrap();
    waitpid(Some(forked.pid), WaitOptions::empty())
        .unwrap()
        .unwrap()
        .1
        .exit_status()
}
