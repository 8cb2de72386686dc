//! Values of flags.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use anyhow::{Context, Result, bail};

use crate::{
    container::spec::Tmpfs,
    vm::{Accelerator, Isolation},
};

const MIB: u64 = 1 << 20;

/// Memory of a machine that nothing is said about, in bytes.
pub const DEFAULT_MEMORY: u64 = 1 << 30;

/// Least memory with which a guest comes up at all, in bytes.
const MIN_MEMORY: u64 = 32 * MIB;

/// Most memory, in bytes.
const MAX_MEMORY: u64 = 1 << 40;

/// Most virtual CPUs.
const MAX_CPUS: f64 = 64.0;

/// An amount of memory as Docker takes it: a number and `b`, `k`, `m`, `g` or `t`. In bytes, a multiple of 1 MiB.
pub fn memory(text: &str) -> Result<u64, String> {
    let bytes = bytes(text).ok_or("give a number and b, k, m or g, such as 512m")?;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
        let (min, max) = (MIN_MEMORY / MIB, MAX_MEMORY >> 40);
        return Err(format!("give {min} MiB to {max} TiB, such as 512m"));
    }
    Ok(bytes.next_multiple_of(MIB))
}

/// Checks that this machine has so much memory, in bytes.
pub fn within_host(memory: u64) -> Result<()> {
    let host = host_memory();
    if memory > host {
        bail!(
            "Cannot give a container {} MiB of memory: this machine has {} MiB; give less with --memory",
            memory / MIB,
            host / MIB
        );
    }
    Ok(())
}

/// The memory of this machine, in bytes.
pub fn host_memory() -> u64 {
    let host = rustix::system::sysinfo();
    host.totalram.saturating_mul(u64::from(host.mem_unit))
}

fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower
        .strip_suffix("ib")
        .or_else(|| {
            lower
                .strip_suffix('b')
                .filter(|rest| !rest.ends_with(|c: char| c.is_ascii_digit()))
        })
        .unwrap_or(&lower);
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let number: f64 = digits.trim().parse().ok()?;
    let bytes = number * f64::from(1_u32 << 10).powi(shift / 10);
    // Within what a double counts exactly.
    if !(0.0..9e15).contains(&bytes) {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(bytes as u64)
}

/// Longest start that anybody waits for, in s: a day.
const MAX_START_TIMEOUT: u32 = 24 * 60 * 60;

/// A time in s.
pub fn start_timeout(text: &str) -> Result<u32, String> {
    let seconds = text.trim().parse().ok();
    seconds
        .filter(|seconds| (1..=MAX_START_TIMEOUT).contains(seconds))
        .ok_or_else(|| format!("give a number of seconds, 1 to {MAX_START_TIMEOUT}"))
}

/// What is added to the kernel's command line. The kernel takes 2047 bytes, and silently leaves out what comes after;
/// the rest is for what the machine says of itself.
pub fn cmdline(text: &str) -> Result<String, String> {
    match text.len() <= MAX_CMDLINE {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "--cmdline-append has {} bytes, and may have {MAX_CMDLINE} at most: Linux takes a command line of 2047, and \
             the machine needs some of them; leave something out",
            text.len()
        )),
    }
}

const MAX_CMDLINE: usize = 1024;

/// A number of CPUs, in thousandths.
pub fn cpus(text: &str) -> Result<u32, String> {
    let number: f64 = text
        .trim()
        .parse()
        .map_err(|_| "give a number of CPUs, such as 2 or 0.5")?;
    if !(0.01..=MAX_CPUS).contains(&number) {
        return Err(format!("give 0.01 to {MAX_CPUS} CPUs"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok((number * 1000.0).round() as u32)
}

/// The name of an accelerator.
pub fn accelerator(name: &str) -> Result<Accelerator, String> {
    [
        Accelerator::Auto,
        Accelerator::Kvm,
        Accelerator::Um,
        Accelerator::Tcg,
    ]
    .into_iter()
    .find(|accelerator| accelerator.name() == name)
    .ok_or_else(|| "choose auto, kvm, um or tcg".to_owned())
}

/// The name of a kind of isolation.
pub fn isolation(name: &str) -> Result<Isolation, String> {
    [Isolation::Any, Isolation::Hardware]
        .into_iter()
        .find(|isolation| isolation.name() == name)
        .ok_or_else(|| "choose any or hardware".to_owned())
}

/// Variables of `--env`: a name alone takes its value from our environment, and is left out if that has none.
pub fn environment(entries: &[OsString], files: &[std::path::PathBuf]) -> Result<Vec<OsString>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(env_file(file)?);
    }
    for entry in entries {
        if name_of(entry.as_bytes()).is_empty() {
            bail!("The environment variable {entry:?} has no name: give NAME=VALUE, or NAME");
        }
        all.extend(complete(entry));
    }
    Ok(all)
}

fn name_of(entry: &[u8]) -> &[u8] {
    entry.split(|&byte| byte == b'=').next().unwrap_or_default()
}

fn complete(entry: &OsStr) -> Option<OsString> {
    if entry.as_bytes().contains(&b'=') {
        return Some(entry.to_owned());
    }
    let value = std::env::var_os(entry)?;
    let mut whole = entry.to_owned();
    whole.push("=");
    whole.push(value);
    Some(whole)
}

/// A file of variables, a line each, as Docker reads it: no quotes, `#` at the start of a line is a comment.
fn env_file(path: &Path) -> Result<Vec<OsString>> {
    let content = fs::read(path)
        .with_context(|| format!("Cannot read the environment file {}", path.display()))?;
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
    let mut all = Vec::new();
    for (number, line) in (1..).zip(content.split(|&byte| byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let name = name_of(line);
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            bail!(
                "Line {number} of the environment file {} has no variable's name before the =: give NAME=VALUE, or NAME",
                path.display()
            );
        }
        all.extend(complete(&OsString::from_vec(line.to_vec())));
    }
    Ok(all)
}

/// `--tmpfs PATH[:OPTIONS]`.
pub fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') || target.trim_matches('/').is_empty() {
        return Err("give an absolute path below /, such as /tmp:size=64m".into());
    }
    let mut flags = DEFAULT_TMPFS_FLAGS;
    let mut data = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match TMPFS_FLAGS.iter().find(|(name, _, _)| *name == option) {
            Some((_, flag, true)) => flags |= flag,
            Some((_, flag, false)) => flags &= !flag,
            None if is_tmpfs_value(option) => data.push(option),
            None => {
                return Err(format!(
                    "{option} is no option of a tmpfs; there are size=, mode=, uid=, gid=, ro, exec, suid, dev, noatime"
                ));
            }
        }
    }
    Ok(Tmpfs {
        target: target.into(),
        flags,
        data: data.join(","),
    })
}

const DEFAULT_TMPFS_FLAGS: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Options that are flags: name, flag, and whether the option sets it or clears it.
const TMPFS_FLAGS: [(&str, u64, bool); 14] = [
    ("ro", libc::MS_RDONLY, true),
    ("rw", libc::MS_RDONLY, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("suid", libc::MS_NOSUID, false),
    ("nodev", libc::MS_NODEV, true),
    ("dev", libc::MS_NODEV, false),
    ("noexec", libc::MS_NOEXEC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("noatime", libc::MS_NOATIME, true),
    ("atime", libc::MS_NOATIME, false),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("diratime", libc::MS_NODIRATIME, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("async", libc::MS_SYNCHRONOUS, false),
];

fn is_tmpfs_value(option: &str) -> bool {
    ["size=", "mode=", "uid=", "gid=", "nr_inodes=", "nr_blocks="]
        .iter()
        .any(|name| {
            option
                .strip_prefix(name)
                .is_some_and(|value| !value.is_empty())
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_dockers() {
        for (text, mib) in [
            ("512m", 512),
            ("512M", 512),
            ("512mb", 512),
            ("512MiB", 512),
            ("1g", 1024),
            ("1.5g", 1536),
            ("67108864", 64),
            ("67108864b", 64),
            ("65537k", 65),
        ] {
            assert_eq!(memory(text), Ok(mib * MIB), "{text}");
        }
        for bad in [
            "", "0", "m", "x", "-1g", "31m", "1q", "2000t", "1e30g", "nan", "inf",
        ] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_are_thousandths() {
        assert_eq!(cpus("1"), Ok(1000));
        assert_eq!(cpus("0.5"), Ok(500));
        assert_eq!(cpus("1.25"), Ok(1250));
        for bad in ["0", "-1", "x", "", "65", "nan", "inf"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tmpfs_options_are_flags_and_values() {
        let plain = tmpfs("/tmp").unwrap();
        assert_eq!(
            (plain.flags, plain.data.as_str()),
            (DEFAULT_TMPFS_FLAGS, "")
        );
        let own = tmpfs("/run:rw,exec,size=64m,mode=1777").unwrap();
        assert_eq!(own.flags, libc::MS_NOSUID | libc::MS_NODEV);
        assert_eq!(own.data, "size=64m,mode=1777");
        for bad in ["", "tmp", "/", "//", "/tmp:bind", "/tmp:size="] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_environment_file_is_read_as_docker_does() {
        let path = std::env::temp_dir().join(format!("vmm-env-{}", std::process::id()));
        fs::write(
            &path,
            b"# comment\n\n  A=1\r\nB=x y # z\nPATH\nUNSET_HERE_123\nC=\xff\n",
        )
        .unwrap();
        let read = environment(&["A=2".into()], std::slice::from_ref(&path)).unwrap();
        let read: Vec<_> = read.iter().map(|entry| entry.as_bytes().to_vec()).collect();
        assert_eq!(read[0], b"A=1");
        assert_eq!(read[1], b"B=x y # z");
        assert!(read[2].starts_with(b"PATH=/"));
        assert_eq!(read[3], b"C=\xff");
        assert_eq!(read[4], b"A=2");
        assert_eq!(read.len(), 5);
        fs::write(&path, "=x\n").unwrap();
        assert!(environment(&[], std::slice::from_ref(&path)).is_err());
        fs::remove_file(&path).unwrap();
        assert!(environment(&[], &[path]).is_err());
    }
}
