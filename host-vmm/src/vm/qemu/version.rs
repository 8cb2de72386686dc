//! Which QEMU it is. Asking takes 20 to 50 ms, so it is asked only when something is wrong, and by who wants to know.

use std::{
    fmt,
    io::Read,
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::process::{Bond, is_readable_within, spawn};

/// The oldest that has what we ask for: `microvm` without ACPI. Ours is tested with 7.2.
pub const OLDEST: Version = Version { major: 5, minor: 2 };

/// How long it may take to say so.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most that is read of what it says, in bytes.
const MAX_OUTPUT: usize = 4096;

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What `program` says of itself; `None` if it says nothing that we understand.
pub fn of(program: &Path) -> Option<Version> {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = spawn(&mut command, &[], Bond::DiesWithUs).ok()?;
    let mut said = vec![0; MAX_OUTPUT];
    // It says it in one go.
    let len = child.stdout.as_mut().and_then(|output| {
        is_readable_within(output.as_fd(), PATIENCE).then(|| output.read(&mut said).unwrap_or(0))
    });
    // It may be one that goes on for ever.
    let _ = child.kill();
    let _ = child.wait();
    said.truncate(len?);
    parse(&String::from_utf8_lossy(&said))
}

/// `QEMU emulator version 7.2.22 (…)`
fn parse(text: &str) -> Option<Version> {
    let rest = text.split_once("version ")?.1;
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().ok());
    Some(Version {
        major: numbers.next()??,
        minor: numbers.next()??,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_qemu_says() {
        let version = |major, minor| Some(Version { major, minor });
        for (text, expected) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright",
                version(7, 2),
            ),
            ("QEMU emulator version 10.0\n", version(10, 0)),
            ("QEMU emulator version 4.2.1", version(4, 2)),
            ("QEMU emulator version x", None),
            ("QEMU emulator version 4", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert!(version(4, 2) < Some(OLDEST) && version(10, 0) > Some(OLDEST));
    }

    #[test]
    fn what_does_not_answer_has_no_version() {
        assert_eq!(of(Path::new("/nonexistent")), None);
        assert_eq!(of(Path::new("/bin/true")), None);
    }
}
