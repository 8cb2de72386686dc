//! Ways to reach the kernel below.

mod entries;
mod frames;
mod stub;
mod swarm;

use std::process::ExitCode;

use nix::libc;

pub use swarm::swarm;

/// A way: its name, and the attempt, which gives an exit code if it comes back.
type Way = (String, Box<dyn Fn() -> i32>);

/// An attempt that had an answer of the guest's kernel.
const HERE: i32 = 0;

/// An attempt that had an answer of another kernel.
const ELSEWHERE: i32 = 1;

/// Seconds that an attempt may take.
const PATIENCE: u32 = 10;

/// Tries all ways, or the one of this name.
pub fn run(only: Option<&str>) -> ExitCode {
    let ways: Vec<Way> = entries::ways()
        .into_iter()
        .chain(stub::ways())
        .chain(frames::ways())
        .filter(|(name, _)| only.is_none_or(|only| only == name))
        .collect();
    let mut elsewhere = false;
    for (name, attempt) in &ways {
        let end = try_one(attempt);
        elsewhere |= end == format!("exited {ELSEWHERE}");
        println!("{name}: {end}");
    }
    println!("tried {}", ways.len());
    match elsewhere {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// How a process ends that makes the attempt.
fn try_one(attempt: &dyn Fn() -> i32) -> String {
    // SAFETY: we have one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: the calls take no pointer but of a limit that is there.
        unsafe {
            let no_core = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
            libc::alarm(PATIENCE);
            libc::_exit(attempt());
        }
    }
    let mut status = 0;
    // SAFETY: the status is ours.
    if unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {
        return "lost".to_owned();
    }
    match libc::WIFEXITED(status) {
        true => format!("exited {}", libc::WEXITSTATUS(status)),
        false => format!("signal {}", libc::WTERMSIG(status)),
    }
}

/// Whether `id`, an answer to `getpid`, is our own id here.
fn own(id: i64) -> i32 {
    // SAFETY: it has no arguments.
    let here = i64::from(unsafe { libc::getpid() });
    match id == here {
        true => HERE,
        false => ELSEWHERE,
    }
}
