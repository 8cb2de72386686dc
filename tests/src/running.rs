//! A command under way.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    DEADLINE, Failpoint, Finished, Held, Process, leftovers,
    transcript::{Transcript, shown},
    wait_until,
};

/// How long output may take to end once the command has.
const END_OF_OUTPUT: Duration = Duration::from_secs(10);

/// What nobody shows.
const LAST: &str = "\0";

/// The standard input of a command.
pub enum Feed {
    /// A thread writes it.
    Thread,
    /// The test writes it.
    Open(ChildStdin),
}

impl Feed {
    /// Writes `bytes` into `pipe` in a thread of its own, as long as somebody reads, and closes it.
    pub fn all(mut pipe: ChildStdin, bytes: Vec<u8>) -> Self {
        std::thread::spawn(move || {
            // A command need not read what it is given.
            let _ = pipe.write_all(&bytes);
        });
        Self::Thread
    }
}

/// A `vmm` that was started. It is killed if it still runs when this is dropped.
pub struct Running {
    root: PathBuf,
    command: String,
    child: Child,
    feed: Option<Feed>,
    stdout: Transcript,
    unread: Option<ChildStdout>,
    stderr: Transcript,
    /// Its streams are a terminal, which stays open when it has ended. This is the side of programs.
    terminal: Option<File>,
    /// Where the next [`Running::expect`] begins to look.
    position: usize,
}

impl Running {
    pub(crate) fn new(root: PathBuf, command: String, child: Child) -> Self {
        Self {
            root,
            command,
            child,
            feed: None,
            stdout: Transcript::empty(),
            unread: None,
            stderr: Transcript::empty(),
            terminal: None,
            position: 0,
        }
    }

    pub(crate) fn with_feed(mut self, feed: Option<Feed>) -> Self {
        self.feed = feed;
        self
    }

    pub(crate) fn with_streams(
        mut self,
        stdout: Transcript,
        unread: Option<ChildStdout>,
        stderr: Transcript,
    ) -> Self {
        (self.stdout, self.unread, self.stderr) = (stdout, unread, stderr);
        self
    }

    pub(crate) fn with_screen(mut self, screen: Transcript, terminal: File) -> Self {
        (self.stdout, self.terminal) = (screen, Some(terminal));
        self
    }

    /// Id of the command's process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The other processes that belong to the root of this command's test.
    #[must_use]
    pub fn helpers(&self) -> Vec<Process> {
        let mut processes = leftovers::processes(&self.root);
        processes.retain(|process| process.pid != self.pid());
        processes
    }

    /// Sends a signal to the command's process, and to no other.
    ///
    /// # Panics
    /// If it has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a process to send a signal to");
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// If it takes no more of it.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let Some(Feed::Open(pipe)) = &mut self.feed else {
            panic!("the standard input of {} is not ours", self.command);
        };
        if let Err(error) = pipe.write_all(bytes.as_ref()) {
            panic!("writing to standard input: {error}\n{}", self.description());
        }
    }

    /// Ends its standard input.
    pub fn end_input(&mut self) {
        self.feed = None;
    }

    /// The pipe from its standard output, if it was to be left unread.
    pub fn take_output(&mut self) -> Option<ChildStdout> {
        self.unread.take()
    }

    /// Waits until `text` comes on its standard output, behind what was waited for before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let _ = self.read_until(text);
    }

    /// The same, and gives what came before `text`.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) -> String {
        let Some(end) = self.stdout.find(text, self.position, DEADLINE) else {
            self.surprise(&format!("{text:?} on standard output"));
        };
        let begin = std::mem::replace(&mut self.position, end);
        let bytes = &self.stdout.bytes()[begin..end - text.len()];
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Waits until it or another process of its run has reached a phase, and holds that there.
    #[track_caller]
    pub fn reach(&self, failpoint: Failpoint) -> Held {
        match failpoint.wait() {
            Some(held) => held,
            None => self.surprise("a process at a failpoint"),
        }
    }

    /// Waits until `text` is somewhere on its standard error.
    #[track_caller]
    pub fn expect_error(&self, text: &str) {
        if self.stderr.find(text, 0, DEADLINE).is_none() {
            self.surprise(&format!("{text:?} on standard error"));
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(DEADLINE)
    }

    /// Waits for its end, which must come before `deadline` has passed.
    #[track_caller]
    pub fn finish_within(mut self, deadline: Duration) -> Finished {
        let status = wait_until(deadline, || self.try_wait());
        let Some(status) = status else {
            self.surprise(&format!("an end within {deadline:?}"));
        };
        let stdout = match self.terminal.take() {
            Some(terminal) => {
                self.see_all(terminal);
                without_last(self.stdout.bytes())
            }
            None => {
                for (name, stream) in [("output", &self.stdout), ("error", &self.stderr)] {
                    if !stream.ended(END_OF_OUTPUT) {
                        self.surprise(&format!("nobody to have standard {name} open any more"));
                    }
                }
                self.stdout.bytes()
            }
        };
        Finished {
            command: self.command.clone(),
            status,
            stdout,
            stderr: self.stderr.bytes(),
        }
    }

    /// Waits until everything has been seen that it has shown: a terminal has no end.
    #[track_caller]
    fn see_all(&self, mut terminal: File) {
        let shown = self.stdout.bytes().len();
        let last = terminal.write_all(LAST.as_bytes());
        if last.is_err() || self.stdout.find(LAST, shown, END_OF_OUTPUT).is_none() {
            self.surprise("to see what is shown on the terminal");
        }
    }

    /// How it ended, if it has.
    fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child to wait for")
    }

    #[track_caller]
    fn surprise(&self, expected: &str) -> ! {
        panic!("expected {expected}\n{}", self.description());
    }

    fn description(&self) -> String {
        format!(
            "--- command, still under way or just ended\n{}\n--- standard output\n{}\n--- standard error\n{}\n\
             --- around it\n{}",
            self.command,
            shown(&self.stdout.bytes()),
            shown(&self.stderr.bytes()),
            around(&self.root)
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn without_last(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.ends_with(LAST.as_bytes()) {
        bytes.truncate(bytes.len() - LAST.len());
    }
    bytes
}

fn around(root: &Path) -> String {
    leftovers::lines(&leftovers::all(root, &["state/run", "run"]))
}
