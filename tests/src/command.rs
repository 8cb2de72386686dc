//! One invocation of `vmm`, or of a program that starts it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::{ioctl_tiocsctty, setsid};

use crate::{
    failpoints,
    finished::Finished,
    running::{Feed, Running},
    terminal::Terminal,
    transcript::Transcript,
};

/// What is on the standard input of a `vmm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing: `/dev/null`.
    Null,
    /// These bytes, and then its end.
    Bytes(Vec<u8>),
    /// What [`Running::send`] gives it, until [`Running::end_input`].
    Later,
    /// A file.
    File(PathBuf),
}

/// An invocation of `vmm` that is being put together.
pub struct Vmm {
    root: PathBuf,
    command: Command,
    words: Vec<OsString>,
    input: Input,
    output: Option<PathBuf>,
    keep_output: bool,
}

impl Vmm {
    /// The `vmm` in `path` with the state root `root`, and of the environment nothing but the `PATH`.
    pub(crate) fn new(path: &Path, root: &Path) -> Self {
        let vmm = Self::program(root, "vmm", Command::new(path));
        vmm.arg("--root").arg(root.join("state"))
    }

    /// The `vmm` in `path`, which stops at failpoints whose sockets are in the folder `sockets`.
    pub(crate) fn with_failpoints(path: &Path, root: &Path, sockets: &Path) -> Self {
        Self::new(path, root).env(failpoints::VARIABLE, sockets)
    }

    /// Another program in that environment, which may start `vmm` in its turn.
    pub(crate) fn program(root: &Path, name: &str, mut command: Command) -> Self {
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TERM", "xterm");
        for (name, folder) in [
            ("HOME", "home"),
            ("XDG_RUNTIME_DIR", "run"),
            ("TMPDIR", "tmp"),
        ] {
            command.env(name, root.join(folder));
        }
        command.current_dir(root);
        Self {
            root: root.to_owned(),
            command,
            words: vec![name.into()],
            input: Input::Null,
            output: None,
            keep_output: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.words.push(argument.as_ref().to_owned());
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable in the environment of `vmm` itself.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets its working directory, which is the test's own otherwise.
    #[must_use]
    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it as the user with this number, and the group.
    #[must_use]
    pub fn as_user(mut self, id: u32) -> Self {
        self.command.uid(id).gid(id);
        self
    }

    /// Starts it without this standard stream, as a shell does for `<&-`.
    #[must_use]
    pub fn without(mut self, stream: i32) -> Self {
        // SAFETY: the closure closes a descriptor that nothing in the child uses any more.
        unsafe {
            self.command.pre_exec(move || {
                rustix::io::close(stream);
                Ok(())
            });
        }
        self
    }

    /// Writes its standard output to the file `path`.
    #[must_use]
    pub fn output_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.output = Some(path.into());
        self
    }

    /// Sets its standard input, which is [`Input::Null`] otherwise.
    #[must_use]
    pub fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Leaves its standard output unread: [`Running::take_output`] gives it.
    #[must_use]
    pub fn keep_output(mut self) -> Self {
        self.keep_output = true;
        self
    }

    /// Starts it and waits for its end.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(mut self) -> Running {
        let stdin = match &self.input {
            Input::Null => Stdio::null(),
            Input::Bytes(_) | Input::Later => Stdio::piped(),
            Input::File(path) => File::open(path).expect("the file with the input").into(),
        };
        let stdout = match &self.output {
            Some(path) => {
                let file = File::options().write(true).open(path);
                file.expect("a file for the output").into()
            }
            None => Stdio::piped(),
        };
        self.command
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("vmm starts");
        let stderr = child.stderr.take().expect("a pipe from standard error");
        let (stdout, unread) = match child.stdout.take() {
            Some(stdout) if self.keep_output => (Transcript::empty(), Some(stdout)),
            Some(stdout) => (Transcript::of(stdout), None),
            None => (Transcript::empty(), None),
        };
        let feed = child.stdin.take().map(|pipe| match self.input {
            Input::Bytes(bytes) => Feed::all(pipe, bytes),
            _ => Feed::Open(pipe),
        });
        Running::new(self.root, describe(&self.words), child)
            .with_feed(feed)
            .with_streams(stdout, unread, Transcript::of(stderr))
    }

    /// Starts it in `terminal`, as a shell does: in the foreground of a session of its own.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start_in(mut self, terminal: &Terminal) -> Running {
        let stream = || OwnedFd::from(terminal.device());
        self.command
            .stdin(stream())
            .stdout(stream())
            .stderr(stream());
        // SAFETY: the closure makes two system calls and touches no memory of the parent's.
        unsafe {
            self.command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = self.command.spawn().expect("vmm starts");
        Running::new(self.root, describe(&self.words), child)
            .with_screen(terminal.transcript().clone(), terminal.device())
    }

    /// The command as it is, for who wants nothing of the harness between it and a clock.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    /// The command line and environment in words that a shell takes, to be run in a terminal that is not ours.
    #[must_use]
    pub fn shell_line(&self) -> String {
        let variables = self.command.get_envs().filter_map(|(name, value)| {
            let value = value?.to_string_lossy();
            Some(format!("{}='{value}'", name.to_string_lossy()))
        });
        let arguments = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let arguments =
            arguments.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")));
        let words: Vec<String> = variables.chain(arguments).collect();
        format!("env -i {}", words.join(" "))
    }
}

/// The command line for people.
fn describe(words: &[OsString]) -> String {
    let words: Vec<String> = words
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .map(|word| match word.contains([' ', ';', '\n']) {
            true => format!("{word:?}"),
            false => word,
        })
        .collect();
    words.join(" ")
}
