//! The programs that build a kernel: started without our environment, logged, and gone when we are.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write, pipe};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::Error;

/// How many lines of its output a program that failed is quoted with.
const QUOTED: usize = 30;

/// A command that runs `program` with an environment that holds what every program needs. What else is in ours (flags
/// of a make that runs us, `CROSS_COMPILE`, `KCFLAGS`) must not become part of a kernel that others find in the cache.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("LC_ALL", "C");
    command
}

/// Runs a command that does `what` to its end. Its output goes to the file `log`, and line by line to `follow`.
/// It holds `lock` as its standard input, an empty file: should we be killed, the lock is held until the last of
/// its processes has ended.
pub(super) fn run(
    program: &'static str,
    mut command: Command,
    what: &str,
    log: &Path,
    lock: &File,
    mut follow: impl FnMut(&str),
) -> Result<(), Error> {
    let failed = |source| Error::Run { program, source };
    let log_file = File::options().create(true).append(true).open(log);
    let mut log_file = log_file.map_err(|source| Error::write(log, source))?;
    let mut tail = VecDeque::new();
    let status = run_lines(&mut command, lock, |line| {
        log_file.write_all(line)?;
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if tail.len() == QUOTED {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
        follow(line);
        Ok(())
    });
    if status.map_err(failed)?.success() {
        return Ok(());
    }
    let lines: Vec<String> = tail.into();
    Err(Error::Failed {
        what: what.to_owned(),
        log: log.to_path_buf(),
        tail: lines.join("\n"),
    })
}

fn run_lines(
    command: &mut Command,
    lock: &File,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<ExitStatus> {
    let (reader, writer) = pipe()?;
    command
        .stdin(lock.try_clone()?)
        .stdout(writer.try_clone()?)
        .stderr(writer);
    // make ends its compilers when it is terminated, and would go on for minutes if it were not.
    // SAFETY: between fork and exec the closure makes one system call, and nothing else.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
    let mut child = command.spawn()?;
    // It holds the pipe's other end, too, as long as it could be started once more; and then the pipe has no end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let followed = loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        if let Err(error) = take(&line) {
            break Err(error);
        }
    };
    if followed.is_err() {
        // The error that is on its way says more than one of the kill would.
        let _ = child.kill();
    }
    drop(reader);
    let status = child.wait()?;
    followed.map(|()| status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use rustix::fs::{FlockOperation, flock};
    use rustix::io::Errno;

    fn shell(folder: &Folder, script: &str) -> (Result<(), Error>, Vec<String>) {
        let lock = File::create(folder.path().join("lock")).unwrap();
        let mut command = command("sh");
        command.args(["-c", script]);
        let mut lines = Vec::new();
        let follow = |line: &str| lines.push(line.to_owned());
        let log = folder.path().join("log");
        let result = run("sh", command, "Building", &log, &lock, follow);
        (result, lines)
    }

    #[test]
    fn output_is_logged_and_followed() {
        let folder = Folder::new("child");
        let (result, lines) = shell(&folder, "echo out; echo err >&2; read x || echo no input");
        result.unwrap();
        assert_eq!(lines, ["out", "err", "no input"]);
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert_eq!(log, "out\nerr\nno input\n");
    }

    #[test]
    fn a_failure_quotes_the_end_and_names_the_log() {
        let folder = Folder::new("child-failure");
        let (result, _) = shell(&folder, "seq 100; exit 2");
        let error = result.unwrap_err().to_string();
        let path = folder.path().join("log");
        assert!(error.starts_with("Building failed"), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(
            error.contains("\n71\n") && !error.contains("\n70\n"),
            "{error}"
        );
        assert!(error.ends_with("\n100"), "{error}");
    }

    #[test]
    fn our_environment_stays_ours() {
        let folder = Folder::new("child-environment");
        let (result, lines) = shell(
            &folder,
            "env | cut -d= -f1 | grep -v -e ^_ -e ^PWD -e SHLVL",
        );
        result.unwrap();
        for name in &lines {
            let known = ["PATH", "HOME", "TMPDIR", "LC_ALL"].contains(&name.as_str());
            assert!(known, "{name}");
        }
    }

    #[test]
    fn the_lock_is_held_by_what_outlives_the_command() {
        let folder = Folder::new("child-lock");
        let path = folder.path().join("lock");
        let lock = File::create(&path).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let mut command = command("sh");
        let script = "mkfifo fifo; exec 3<&0; (exec >log 2>&1; read x <fifo) &";
        command.args(["-c", script]).current_dir(folder.path());
        run("sh", command, "", &folder.path().join("log"), &lock, |_| ()).unwrap();
        drop(lock);

        let other = File::open(&path).unwrap();
        let taken = flock(&other, FlockOperation::NonBlockingLockExclusive);
        std::fs::write(folder.path().join("fifo"), "x\n").unwrap();
        assert_eq!(taken, Err(Errno::WOULDBLOCK));
        flock(&other, FlockOperation::LockExclusive).unwrap();
    }
}
