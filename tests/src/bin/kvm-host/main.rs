//! Runs a command on an emulated host that has KVM: `kvm-host [OPTION]… COMMAND [ARGUMENT]…`
//!
//! QEMU emulates a processor with AMD's SVM, so that `/dev/kvm` of the host is its kernel's own `kvm_amd`, wherever this
//! runs. The host has the files of this machine, which it cannot change; what is written is lost with it. The command finds
//! the environment and the working directory that it would have here, root's rights, and nothing on its standard input. Both
//! its outputs are the standard output of this, and its exit code is the one of this.
//!
//! - `--cpus N` and `--memory MIB`: how large the host is
//! - `--timeout SECONDS`: how long it may take altogether; 124 is the exit code then, and the log says where it was
//! - `--log FILE`: what the host's kernel says, from its first line

mod clock;
mod machine;

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use machine::{End, Machine};

/// The exit code where there is none of the command: `timeout`'s.
const NO_CODE: u8 = 124;

/// How much of the log is shown where there is no exit code, in lines.
const SHOWN: usize = 60;

const USAGE: &str = "usage: kvm-host [--cpus N] [--memory MIB] [--timeout SECONDS] [--log FILE] COMMAND [ARGUMENT]...";

struct Options {
    cpus: u32,
    memory_mib: u32,
    timeout: Duration,
    log: Option<PathBuf>,
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let Some(options) = options(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("kvm-host: {error}");
            ExitCode::from(NO_CODE)
        }
    }
}

fn options(mut words: impl Iterator<Item = OsString>) -> Option<Options> {
    let mut options = Options {
        // QEMU 7.2's emulation of SVM is not safe between CPUs: with two the host's kernel, or a machine's, breaks down now and then.
        cpus: 1,
        memory_mib: 6144,
        timeout: Duration::from_secs(600),
        log: None,
        command: Vec::new(),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next();
        let number = |value: Option<OsString>| value?.to_str()?.parse::<u32>().ok();
        match word.to_str() {
            Some("--cpus") => options.cpus = number(value())?,
            Some("--memory") => options.memory_mib = number(value())?,
            Some("--timeout") => options.timeout = Duration::from_secs(number(value())?.into()),
            Some("--log") => options.log = Some(value()?.into()),
            Some(word) if word.starts_with("--") => return None,
            _ => {
                options.command.push(word);
                options.command.extend(words.by_ref());
            }
        }
    }
    (!options.command.is_empty()).then_some(options)
}

/// Gives the exit code.
fn run(options: &Options) -> io::Result<u8> {
    let work = Work::new()?;
    let job = work.0.join("job");
    fs::create_dir(&job)?;
    fs::write(job.join("arguments"), words(options.command.iter()))?;
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    fs::write(job.join("environment"), words(environment))?;
    let directory = std::env::current_dir()?;
    fs::write(job.join("directory"), directory.as_os_str().as_bytes())?;

    let log = match &options.log {
        Some(path) => path.clone(),
        None => work.0.join("log"),
    };
    let machine = Machine {
        cpus: options.cpus,
        memory_mib: options.memory_mib,
        job: &job,
        initfs: &work.0.join("initfs"),
        log: &log,
    };
    let end = machine.run(options.timeout)?;
    let status = fs::read_to_string(job.join("status")).unwrap_or_default();
    match (end, status.parse::<u8>()) {
        (End::ByItself(_), Ok(code)) => Ok(code),
        (End::ByItself(status), _) => {
            eprintln!("kvm-host: the host ended before the command did ({status})");
            show(&log)
        }
        (End::Cut, _) => {
            let seconds = options.timeout.as_secs();
            eprintln!("kvm-host: cut off after {seconds} s");
            show(&log)
        }
    }
}

/// Shows the last lines of the log.
fn show(log: &Path) -> io::Result<u8> {
    let text = fs::read(log)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("what its kernel said at last:");
    for line in &lines[lines.len().saturating_sub(SHOWN)..] {
        eprintln!("  {line}");
    }
    Ok(NO_CODE)
}

/// Words as the host's init takes them, each with a zero behind it.
fn words(words: impl Iterator<Item: AsRef<OsStr>>) -> Vec<u8> {
    words.fold(Vec::new(), |mut bytes, word| {
        bytes.extend_from_slice(word.as_ref().as_bytes());
        bytes.push(0);
        bytes
    })
}

/// The beginning of a folder's name, with a process's id behind it.
const PREFIX: &str = "kvm-host-";

/// A folder for this one host.
struct Work(PathBuf);

impl Work {
    fn new() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        // Those of processes that were killed.
        for entry in fs::read_dir(&parent)?.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            let id = id.and_then(|id| id.parse::<u32>().ok());
            if id.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
                // It may be somebody else's.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // It is a folder for temporary files, and nobody is left who could do something about it.
        let _ = fs::remove_dir_all(&self.0);
    }
}
