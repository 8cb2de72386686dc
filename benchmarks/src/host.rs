//! What the processes of a container take on the host.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// What the guest's memory is called among a process's files and mappings.
const MEMORY: &str = "/memfd:guest-memory";

/// A process's proportional share of memory (PSS), in bytes.
///
/// # Errors
/// It has ended.
pub fn share(process: Pid) -> Result<f64> {
    let text = read(process, "smaps_rollup")?;
    value(&text, "Pss").context("There is no Pss in smaps_rollup")
}

/// The same without the guest's memory.
///
/// # Errors
/// It has ended.
pub fn share_of_its_own(process: Pid) -> Result<f64> {
    let text = read(process, "smaps")?;
    let (mut guests, mut sum) = (false, 0.0);
    for line in text.lines() {
        match field(line, "Pss") {
            Some(bytes) if !guests => sum += bytes,
            // A mapping's first line ends with what is mapped.
            None if line.contains('-') => guests = line.contains(MEMORY),
            _ => {}
        }
    }
    Ok(sum)
}

/// How much there is of the guest's memory file, in bytes, mapped by somebody or not, if the process has it open.
///
/// # Errors
/// It has ended.
#[allow(clippy::cast_precision_loss)]
pub fn memory_file(process: Pid) -> Result<f64> {
    for entry in fs::read_dir(path(process, "fd"))?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with(MEMORY) {
            return Ok(entry.path().metadata()?.blocks() as f64 * 512.0);
        }
    }
    Ok(0.0)
}

/// CPU time of a process: in ticks, of which there are 100 in a second, and in nanoseconds.
///
/// # Errors
/// It has ended.
pub fn cpu_time(process: Pid) -> Result<(u64, u64)> {
    let stat = read(process, "stat")?;
    // The name in parentheses may have any character in it. Behind it: user and system mode are the 12th and 13th.
    let (_, fields) = stat.rsplit_once(')').context("stat has no name")?;
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks = ticks.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    let mut nanoseconds = 0;
    for thread in fs::read_dir(path(process, "task"))?.flatten() {
        let text = fs::read_to_string(thread.path().join("schedstat"))?;
        let ran = text.split(' ').next().context("schedstat is empty")?;
        nanoseconds += ran.parse::<u64>()?;
    }
    Ok((ticks, nanoseconds))
}

/// A field of a text such as `/proc/meminfo`, which counts in KiB, in bytes.
pub fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| field(line, name))
}

fn field(line: &str, name: &str) -> Option<f64> {
    let rest = line.strip_prefix(name)?.strip_prefix(':')?;
    let kib: f64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

fn read(process: Pid, name: &str) -> Result<String> {
    let path = path(process, name);
    fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))
}

fn path(process: Pid, name: &str) -> PathBuf {
    format!("/proc/{process}/{name}").into()
}
