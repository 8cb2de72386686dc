//! What there is on the machine that belongs to one state root.

use std::{
    ffi::OsStr,
    fmt::{self, Write as _},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

/// Names of files that stay: locks, and what is known of the host.
const STAYING: [&str; 2] = ["lock", "kvm-verdict"];

/// The first argument of `vmm` where it is a machine.
const KVM_MACHINE: &str = "kvm-machine";

/// Most bytes of a process's arguments that are shown.
const SHOWN: usize = 240;

/// A process that has to do with a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its program.
    pub program: PathBuf,
    /// Its arguments, for people.
    pub arguments: String,
}

impl Process {
    /// Kills it. Does nothing if it has ended already.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends it a signal. Does nothing if it has ended already.
    pub fn signal(&self, signal: Signal) {
        // It may be gone since it was found.
        let _ = kill_process(self.pid, signal);
    }

    /// Whether somebody has stopped it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(file_of(self.pid, "task")).expect("a process");
        // It is when all of its threads are.
        threads.flatten().all(|thread| {
            let text = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let (_, fields) = text.rsplit_once(')').unwrap_or_default();
            fields.trim_start().starts_with('T')
        })
    }

    /// Whether it is the `vmm` command or a supervisor, and not a machine that is the same program.
    #[must_use]
    pub fn is_vmm(&self) -> bool {
        self.program.file_name() == Some(OsStr::new("vmm"))
            && self.arguments.split(' ').nth(1) != Some(KVM_MACHINE)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {}", self.pid, self.arguments)
    }
}

/// Every process but this one that has the path `root` in its arguments or environment or something below it open, all
/// that descend from one, and machines that belong to nobody.
pub fn processes(root: &Path) -> Vec<Process> {
    let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut others: Vec<Pid> = ids
        .filter(|&id| id != std::process::id().cast_signed())
        .filter_map(Pid::from_raw)
        .collect();
    let mut found = take(&mut others, |pid| {
        concerns(pid, root.as_os_str().as_bytes()) || is_stray(pid)
    });
    // Children of those found, and theirs: a confined machine has nothing of the root in sight.
    loop {
        let children = take(&mut others, |pid| {
            parent(pid).is_some_and(|parent| found.contains(&parent))
        });
        if children.is_empty() {
            break;
        }
        found.extend(children);
    }
    found.into_iter().map(describe).collect()
}

/// Takes those out of `pids` that `wanted` wants.
fn take(pids: &mut Vec<Pid>, wanted: impl Fn(Pid) -> bool) -> Vec<Pid> {
    let (taken, left) = std::mem::take(pids)
        .into_iter()
        .partition(|&pid| wanted(pid));
    *pids = left;
    taken
}

fn describe(pid: Pid) -> Process {
    let arguments = std::fs::read(file_of(pid, "cmdline")).unwrap_or_default();
    let mut arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    arguments.truncate(arguments.floor_char_boundary(SHOWN));
    Process {
        pid,
        program: std::fs::read_link(file_of(pid, "exe")).unwrap_or_default(),
        arguments,
    }
}

/// Whether it is of a machine that is a process with nothing of its root in sight, and whoever started that is no more.
fn is_stray(pid: Pid) -> bool {
    const STUB: &[u8] = b"/memfd:uml-userspace";
    let program = std::fs::read_link(file_of(pid, "exe")).unwrap_or_default();
    let arguments = std::fs::read(file_of(pid, "cmdline")).unwrap_or_default();
    let of_a_machine = program.ends_with("um/vmlinux")
        || program.as_os_str().as_bytes().starts_with(STUB)
        || arguments.split(|&byte| byte == 0).nth(1) == Some(KVM_MACHINE.as_bytes());
    of_a_machine && parent(pid).is_some_and(|parent| parent.is_init())
}

/// The parent of a process, unless that has ended and is only waited for.
fn parent(pid: Pid) -> Option<Pid> {
    let text = std::fs::read_to_string(file_of(pid, "stat")).ok()?;
    // The name in parentheses may have any character in it.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| Pid::from_raw(fields.next()?.parse().ok()?))?
}

fn concerns(pid: Pid, root: &[u8]) -> bool {
    let in_file = |name| std::fs::read(file_of(pid, name)).is_ok_and(|text| contains(&text, root));
    let is_below = |link: &Path| {
        std::fs::read_link(link).is_ok_and(|target| contains(target.as_os_str().as_bytes(), root))
    };
    let open = std::fs::read_dir(file_of(pid, "fd"));
    in_file("cmdline")
        || in_file("environ")
        || is_below(&file_of(pid, "cwd"))
        || is_below(&file_of(pid, "root"))
        || open
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| is_below(&entry.path()))
}

fn file_of(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", pid.as_raw_nonzero()))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Lines about everything that runs, is mounted or waits for connections below `root`, and about every file and
/// container in `folders`, which are below it, but for those that are to stay.
pub fn all(root: &Path, folders: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = processes(root).iter().map(Process::to_string).collect();
    found.extend(things(root, folders));
    found
}

/// The same without processes.
pub fn things(root: &Path, folders: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (what, table) in [
        ("socket", "/proc/net/unix"),
        ("mount", "/proc/self/mountinfo"),
    ] {
        let table = std::fs::read(table).unwrap_or_default();
        let lines = table.split(|&byte| byte == b'\n');
        let lines = lines.filter(|line| contains(line, root.as_os_str().as_bytes()));
        found.extend(lines.map(|line| format!("{what}: {}", String::from_utf8_lossy(line))));
    }
    for folder in folders {
        files(&root.join(folder), &mut found);
    }
    found
}

fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let counts = if is_folder {
            is_identifier(&name)
        } else {
            !STAYING.iter().any(|staying| name == *staying)
        };
        if counts {
            found.push(format!("file: {}", entry.path().display()));
        }
        if is_folder {
            files(&entry.path(), found);
        }
    }
}

/// Whether a folder of this name is a container's, even if nothing is in it.
fn is_identifier(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.len() >= 12 && name.iter().all(u8::is_ascii_hexdigit)
}

/// A line for each thing.
pub fn lines(things: &[String]) -> String {
    things.iter().fold(String::new(), |mut text, thing| {
        let _ = writeln!(text, "  {thing}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::UnixListener,
        process::{Command, Stdio},
    };

    use super::*;

    /// A folder whose path is the beginning of no other's.
    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("left-{:07}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn processes_are_found_by_what_they_know_and_have_open() {
        let root = folder("processes");
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("1000").stdout(Stdio::null());
            command
        };
        let file = std::fs::File::create(root.join("file")).unwrap();
        let mut children = [
            sleep().env("SOME", root.join("x")).spawn().unwrap(),
            sleep().stdin(file).spawn().unwrap(),
            sleep().current_dir(&root).spawn().unwrap(),
            sleep().spawn().unwrap(),
        ];
        let ids: Vec<Pid> = children.iter().map(Pid::from_child).collect();
        let all_execute = crate::wait_until(crate::DEADLINE, || {
            let arguments = |id: &Pid| std::fs::read(file_of(*id, "cmdline")).unwrap();
            let sleeps = |id| arguments(id).starts_with(b"sleep");
            ids.iter().all(sleeps).then_some(())
        });
        assert!(all_execute.is_some());
        let mut found: Vec<Pid> = processes(&root).iter().map(|process| process.pid).collect();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        found.sort_by_key(|pid| pid.as_raw_pid());
        let mut expected = ids[..3].to_vec();
        expected.sort_by_key(|pid| pid.as_raw_pid());
        assert_eq!(found, expected);
        assert!(processes(&root).is_empty());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn sockets_and_files_are_found() {
        let root = folder("files");
        std::fs::create_dir_all(root.join("run/deep")).unwrap();
        std::fs::create_dir_all(root.join("other")).unwrap();
        std::fs::write(root.join("other/file"), "").unwrap();
        for name in STAYING {
            std::fs::write(root.join("run").join(name), "").unwrap();
        }
        assert!(all(&root, &["run"]).is_empty());
        std::fs::create_dir(root.join("run/0123456789ab")).unwrap();
        assert_eq!(all(&root, &["run"]).len(), 1);
        std::fs::remove_dir(root.join("run/0123456789ab")).unwrap();
        let socket = UnixListener::bind(root.join("run/deep/socket")).unwrap();
        let found = all(&root, &["run"]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("socket: "), "{found:?}");
        assert!(found[1].starts_with("file: "), "{found:?}");
        drop(socket);
        assert_eq!(all(&root, &["run"]).len(), 1);
        std::fs::remove_dir_all(root).unwrap();
    }
}
