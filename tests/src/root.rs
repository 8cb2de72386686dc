//! A test's own place on the machine.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;

use crate::{
    Failpoint, Vmm, accelerator, artifacts,
    boot_logs::BootLogs,
    leftovers::{self, Process},
    slots::Slots,
    tools_image, wait_until,
};

/// How long what belongs to a container may be there after the command that ran it. A VM is torn down behind its
/// command, and the machine is busy with other tests.
const TEAR_DOWN: Duration = Duration::from_secs(5);

/// Where nothing may be when a test is over: containers, what they boot from and need while they run, and temporary files.
const FOLDERS: [&str; 6] = [
    "state/containers",
    "state/kernels",
    "state/initfs",
    "state/run",
    "run",
    "tmp",
];

/// A state root, with everything else that `vmm` may write to beside it.
///
/// Dropping it removes the containers that have ended, checks that nothing else is left, and removes the root. If
/// the test has failed it prints what there is to know and leaves the root for people to look at.
pub struct Root {
    path: PathBuf,
    logs: BootLogs,
    _slots: Slots,
}

impl Root {
    /// For a test that runs a container or two.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Slots::one())
    }

    /// For a test that wants no other beside it: one that starts many VMs, or looks at how long something takes.
    #[must_use]
    pub fn alone() -> Self {
        Self::with(Slots::all())
    }

    fn with(slots: Slots) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // All names have the same length, so that none is the beginning of another's, and they are short:
        // there are sockets below.
        let next = || {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = PathBuf::from(format!("/tmp/vt{:07}{number:03}", std::process::id()));
            (path.clone(), std::fs::create_dir(path))
        };
        // A test that failed has left its folder, and the process had the number that is this one's now.
        let is_new = |created: &io::Result<()>| !matches!(created, Err(error) if error.kind() == io::ErrorKind::AlreadyExists);
        let (path, created) = std::iter::repeat_with(next)
            .take(1000)
            .find(|(_, created)| is_new(created))
            .expect("a name that nobody has");
        created.expect("a folder for the test");
        for folder in ["home", "run", "tmp", "files"] {
            std::fs::create_dir(path.join(folder)).expect("a folder for the test");
        }
        Self {
            logs: BootLogs::watch(path.join("state/containers")),
            path,
            _slots: slots,
        }
    }

    /// A folder for the test's own files.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    /// The folder that `--root` names.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// `vmm ARGUMENTS…`
    #[must_use]
    pub fn vmm(&self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Vmm {
        Vmm::new(&artifacts::vmm(), &self.path).args(arguments)
    }

    /// `vmm ARGUMENTS…` of the installation in `prefix`.
    #[must_use]
    pub fn vmm_of(&self, prefix: &Path, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Vmm {
        Vmm::new(&prefix.join("bin/vmm"), &self.path).args(arguments)
    }

    /// Installs what was built among the test's files, as `make install` does, and gives the prefix.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn install(&self) -> PathBuf {
        let prefix = self.files().join("prefix");
        let output = Command::new(artifacts::script("install"))
            .arg(&prefix)
            .stdin(Stdio::null())
            .output()
            .expect("the script runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        prefix
    }

    /// Another program, in an environment in which `vmm` uses this root.
    #[must_use]
    pub fn program(&self, name: &str) -> Vmm {
        let program = Vmm::program(&self.path, name, Command::new(name));
        program.env("VMM_ROOT", self.state())
    }

    /// `vmm run ARGUMENTS…` under the accelerator under test.
    #[must_use]
    pub fn run(&self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Vmm {
        self.vmm(["run", "--accel", &accelerator()]).args(arguments)
    }

    /// The same, by a program with failpoints: it stops at those that [`Root::hold`] says.
    #[must_use]
    pub fn run_to_failpoints(&self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Vmm {
        Vmm::with_failpoints(
            &artifacts::vmm_with_failpoints(),
            &self.path,
            &self.failpoints(),
        )
        .args(["run", "--accel", &accelerator()])
        .args(arguments)
    }

    /// Holds whoever of [`Root::run_to_failpoints`] is the next to reach this phase of a run.
    #[must_use]
    pub fn hold(&self, phase: &str) -> Failpoint {
        Failpoint::hold(&self.failpoints(), phase)
    }

    fn failpoints(&self) -> PathBuf {
        self.files().join("failpoints")
    }

    /// `vmm run --rm busybox sh -c SCRIPT`
    #[must_use]
    pub fn sh(&self, script: &str) -> Vmm {
        self.run(["--rm", "busybox", "sh", "-c", script])
    }

    /// What `vmm ps -a` lists.
    #[must_use]
    pub fn containers(&self) -> Vec<Value> {
        let list = self.vmm(["ps", "-a", "--no-trunc", "--format", "json"]);
        let list = list.finish();
        list.code(0).json()
    }

    /// The state on disk of the one container that there is.
    ///
    /// # Panics
    /// If there is none or more than one, or its state cannot be read.
    #[must_use]
    pub fn only_state(&self) -> Value {
        let containers = self.state().join("containers");
        let folders: Vec<PathBuf> = std::fs::read_dir(containers)
            .expect("a folder of containers")
            .flatten()
            .map(|entry| entry.path().join("state.json"))
            .filter(|path| path.exists())
            .collect();
        let [state] = folders.as_slice() else {
            panic!("expected one container, got {folders:?}");
        };
        let text = std::fs::read(state).expect("a container's state");
        serde_json::from_slice(&text).expect("a container's state as JSON")
    }

    /// Loads the image with our own tools, and gives its name.
    #[must_use]
    pub fn load_tools(&self) -> &'static str {
        let layout = tools_image::build(&self.files());
        let load = self.vmm(["image", "load"]).arg(layout).finish();
        load.code(0);
        tools_image::NAME
    }

    /// Makes the image that `recipe` describes as an OCI layout among the test's files, and gives its path.
    #[must_use]
    pub fn layout(&self, recipe: &str) -> PathBuf {
        tools_image::layout(&self.files(), recipe)
    }

    /// Makes an initfs whose PID 1 is one of our own tools, and gives its path.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn initfs_of(&self, tool: &str) -> PathBuf {
        let path = self.files().join("initfs");
        imagebuilder::initfs::build(&artifacts::guest_tool(tool), &path).expect("an initfs");
        path
    }

    /// Every process that has to do with this root.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        leftovers::processes(&self.path)
    }

    /// Waits until no process has to do with this root any more. Gives those that still do when `deadline` has
    /// passed.
    #[must_use]
    pub fn processes_after(&self, deadline: Duration) -> Vec<Process> {
        let mut left = Vec::new();
        let gone = wait_until(deadline, || {
            left = self.processes();
            left.is_empty().then_some(())
        });
        match gone {
            Some(()) => Vec::new(),
            None => left,
        }
    }

    /// Lines about every file, socket and mount of a container.
    #[must_use]
    pub fn files_and_sockets(&self) -> Vec<String> {
        leftovers::things(&self.path, &FOLDERS)
    }

    /// What the kernels of the `count` containers said that were started last.
    #[must_use]
    pub fn newest_boot_logs(&self, count: usize) -> String {
        self.logs.newest(count)
    }

    /// Checks that nothing is left of any container.
    ///
    /// # Panics
    /// If something is.
    #[track_caller]
    pub fn expect_nothing_left(&self) {
        let mut left = Vec::new();
        let gone = wait_until(TEAR_DOWN, || {
            left = leftovers::all(&self.path, &FOLDERS);
            left.is_empty().then_some(())
        });
        if gone.is_none() {
            panic!(
                "expected nothing to be left, got\n{}",
                leftovers::lines(&left)
            );
        }
    }

    /// Removes containers that have ended.
    fn remove_containers(&self) {
        let ids = self.vmm(["ps", "-a", "-q", "--no-trunc"]).finish();
        let ids = ids.code(0).text();
        if !ids.is_empty() {
            self.vmm(["rm"]).args(ids.lines()).finish().code(0);
        }
    }

    /// Prints what there is to know, and ends what is still running.
    fn report(&self) {
        let left = leftovers::all(&self.path, &FOLDERS);
        eprintln!("--- left below {}", self.path.display());
        eprint!("{}{}", leftovers::lines(&left), self.logs.text());
        for process in self.processes() {
            process.kill();
        }
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return self.report();
        }
        let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.remove_containers();
            self.expect_nothing_left();
        }));
        if let Err(panic) = end {
            self.report();
            std::panic::resume_unwind(panic);
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

impl AsRef<Path> for Root {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}
