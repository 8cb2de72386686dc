//! What there is on the machine that belongs to one state root.

use std::{
    ffi::OsStr,
    fmt::{self, Write as _},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

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
        // It may be gone since it was found.
        let _ = kill_process(self.pid, Signal::KILL);
    }

    /// Whether it runs the `vmm` command.
    #[must_use]
    pub fn is_vmm(&self) -> bool {
        self.program.file_name() == Some(OsStr::new("vmm"))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: {}", self.pid, self.arguments)
    }
}

/// Every process but this one that has the path `root` in its arguments or environment, or something below it open.
pub fn processes(root: &Path) -> Vec<Process> {
    let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|&id| id != std::process::id().cast_signed())
        .filter_map(Pid::from_raw)
        .filter(|&pid| concerns(pid, root.as_os_str().as_bytes()))
        .map(|pid| {
            let arguments = std::fs::read(file_of(pid, "cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            Process {
                pid,
                program: std::fs::read_link(file_of(pid, "exe")).unwrap_or_default(),
                arguments,
            }
        })
        .collect()
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

/// Lines about everything that runs, is mounted or waits for connections below `root`, and every file in `folders`,
/// which are below it.
pub fn all(root: &Path, folders: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = processes(root).iter().map(Process::to_string).collect();
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
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            _ => found.push(format!("file: {}", entry.path().display())),
        }
    }
}

/// A line for each thing.
pub fn lines(things: &[String]) -> String {
    things.iter().fold(String::new(), |mut text, thing| {
        let _ = writeln!(text, "  {thing}");
        text
    })
}
