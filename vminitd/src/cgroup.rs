//! The container's cgroup.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags, open},
    io,
};

use crate::system::{CGROUPS, make_directory, write};

/// Period of `cpu.max` in µs, the kernel's default.
const PERIOD: u64 = 100_000;

/// Smallest quota of `cpu.max` in µs that the kernel takes.
const MIN_QUOTA: u64 = 1_000;

/// Longest of the files read here, with room.
const MAX_FILE: usize = 4096;

/// The cgroup of everything in the container.
pub struct Cgroup {
    path: String,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes the cgroup, with every controller that the kernel has.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create() -> io::Result<Self> {
        let controllers = read(&format!("{CGROUPS}/cgroup.controllers"))?;
        write(
            &format!("{CGROUPS}/cgroup.subtree_control"),
            &enable(&controllers),
        )?;
        let path = format!("{CGROUPS}/container");
        make_directory(&path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(path.as_str(), flags, Mode::empty())?;
        Ok(Self { path, directory })
    }

    /// Limits the CPU time to so many thousandths of a CPU.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn limit_cpu(&self, milli: u32) -> io::Result<()> {
        let quota = (u64::from(milli) * PERIOD / 1000).max(MIN_QUOTA);
        write(
            &format!("{}/cpu.max", self.path),
            &format!("{quota} {PERIOD}"),
        )
    }

    /// Kills every process in it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn kill(&self) -> io::Result<()> {
        write(&format!("{}/cgroup.kill", self.path), "1")
    }

    /// Whether the kernel killed a process of it because memory had run out.
    pub fn had_oom_kill(&self) -> bool {
        read(&format!("{}/memory.events", self.path))
            .is_ok_and(|events| count(&events, "oom_kill") > 0)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// What enables each of these controllers for the children of a cgroup.
fn enable(controllers: &str) -> String {
    let enabled: Vec<_> = controllers
        .split_ascii_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    enabled.join(" ")
}

/// The value of `key` in a flat-keyed file, 0 if it is not there.
fn count(content: &str, key: &str) -> u64 {
    content
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn read(path: &str) -> io::Result<String> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = [0; MAX_FILE];
    let len = io::read(file, &mut content)?;
    Ok(String::from_utf8_lossy(&content[..len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_enabled() {
        assert_eq!(enable("cpu memory pids\n"), "+cpu +memory +pids");
        assert_eq!(enable("\n"), "");
    }

    #[test]
    fn oom_kills_are_counted_by_their_own_key() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 9\n";
        assert_eq!(count(events, "oom_kill"), 2);
        assert_eq!(count("oom 3\n", "oom_kill"), 0);
        assert_eq!(count("oom_kill nonsense\n", "oom_kill"), 0);
    }
}
