//! Hardware virtualization, as far as it is there: whether this user may have `/dev/kvm` and it is of use, and what to do if
//! not.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::io::Errno;

use super::{probe::Refused, verdict::verdict};

/// KVM itself.
pub(super) const DEVICE: &str = "/dev/kvm";

/// Why machines are not run on KVM.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKvm {
    /// The host has none.
    #[error(
        "there is no /dev/kvm; switch virtualization on in the firmware, or have the hypervisor below allow nesting, and load \
         the module kvm_intel or kvm_amd"
    )]
    Missing,
    /// It is for the members of a group, and this user is none.
    #[error(
        "/dev/kvm is there, but only for the group {group}; as root: usermod -aG {group} {user}; then log in again"
    )]
    OtherGroup {
        /// Its name, or its number if it has none.
        group: String,
        /// Who has to become a member.
        user: String,
    },
    /// It is for root.
    #[error(
        "/dev/kvm is there, but only for root; ask root for a group that may open it, such as kvm: \
         groupadd -f kvm; chgrp kvm /dev/kvm; chmod g+rw /dev/kvm; usermod -aG kvm {user}; then log in again"
    )]
    OnlyRoot {
        /// Who has to become a member.
        user: String,
    },
    /// Something around this program keeps it from devices.
    #[error(
        "/dev/kvm is there, but a sandbox or container around this program forbids it; start that with the device, as by \
         docker run --device /dev/kvm"
    )]
    Sandboxed,
    /// Anything else.
    #[error("/dev/kvm cannot be opened: {0}")]
    Other(Errno),
    /// It is of no use to Linux.
    #[error(transparent)]
    Unable(#[from] Refused),
}

impl NoKvm {
    /// Whether there is a device, and this user could get at it by what the text says.
    #[must_use]
    pub fn can_be_granted(&self) -> bool {
        matches!(
            self,
            Self::OtherGroup { .. } | Self::OnlyRoot { .. } | Self::Sandboxed
        )
    }
}

/// Looks whether this user may use KVM, by opening its device.
///
/// # Errors
/// [`NoKvm`].
pub fn access() -> Result<(), NoKvm> {
    access_to(Path::new(DEVICE))
}

/// Looks whether machines run on this host's KVM, which takes some milliseconds unless the directory `run` knows it already.
///
/// # Errors
/// [`NoKvm`].
pub fn usable(run: &Path) -> Result<(), NoKvm> {
    access()?;
    Ok(verdict(run)?)
}

fn access_to(device: &Path) -> Result<(), NoKvm> {
    let opened = File::options().read(true).write(true).open(device);
    let errno = match opened.map_err(|error| Errno::from_io_error(&error)) {
        Ok(_) => return Ok(()),
        Err(errno) => errno.unwrap_or(Errno::IO),
    };
    match errno {
        Errno::NOENT => Err(NoKvm::Missing),
        // Access modes give the one, control groups of devices the other.
        Errno::PERM => Err(NoKvm::Sandboxed),
        Errno::ACCESS => Err(match fs::metadata(device) {
            Ok(metadata) => forbidden(&metadata, &Names::of_host()),
            Err(_) => NoKvm::Other(errno),
        }),
        errno => Err(NoKvm::Other(errno)),
    }
}

/// Who could open what this user cannot.
fn forbidden(device: &Metadata, names: &Names) -> NoKvm {
    const GROUP_MAY: u32 = 0o060;
    let user = names.user.clone();
    let (group, mode) = (device.gid(), device.mode());
    if group == 0 || mode & GROUP_MAY != GROUP_MAY {
        return NoKvm::OnlyRoot { user };
    }
    let group = names.group(group);
    NoKvm::OtherGroup { group, user }
}

/// What users and groups are called here.
struct Names {
    user: String,
    groups: String,
}

impl Names {
    /// By the host's files; there is no other directory of names in a static program.
    fn of_host() -> Self {
        let read = |path| read(path).unwrap_or_default();
        let uid = rustix::process::getuid().as_raw();
        Self {
            user: name_of(&read("/etc/passwd"), uid),
            groups: read("/etc/group"),
        }
    }

    fn group(&self, gid: u32) -> String {
        name_of(&self.groups, gid)
    }
}

/// The name that a number has in a file of `name:password:number:…`, or else the number.
fn name_of(file: &str, number: u32) -> String {
    let number = number.to_string();
    let mut fields = file.lines().map(|line| line.split(':'));
    let name = fields.find_map(|mut line| {
        let name = line.next()?;
        (line.nth(1)? == number).then(|| name.to_owned())
    });
    name.unwrap_or(number)
}

fn read(path: &str) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    /// What is said of a device with this group and mode.
    fn said(gid: u32, mode: u32) -> Option<String> {
        let name = format!("vmm-kvm-{}-{gid}-{mode:o}", std::process::id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        // Groups can be chosen by root alone.
        let chosen = chown(&path, None, Some(gid)).is_ok();
        let names = Names {
            user: "ada".to_owned(),
            groups: "root:x:0:\nkvm:x:106:bob\n".to_owned(),
        };
        let error = forbidden(&path.metadata().unwrap(), &names);
        fs::remove_file(path).unwrap();
        assert!(error.can_be_granted());
        chosen.then(|| error.to_string())
    }

    #[test]
    fn a_forbidden_device_comes_with_whom_to_ask() {
        for (gid, mode, part) in [
            (
                106,
                0o660,
                "only for the group kvm; as root: usermod -aG kvm ada",
            ),
            (107, 0o660, "only for the group 107;"),
            (0, 0o660, "only for root; ask root"),
            (106, 0o600, "only for root; ask root"),
            (106, 0o640, "only for root; ask root"),
        ] {
            if let Some(said) = said(gid, mode) {
                assert!(said.contains(part), "{gid} {mode:o}: {said}");
            }
        }
    }

    #[test]
    fn what_is_not_there_cannot_be_granted() {
        let missing = access_to(Path::new("/dev/no-such-device")).unwrap_err();
        assert_eq!(missing, NoKvm::Missing);
        assert!(!missing.can_be_granted());
        assert_eq!(access_to(Path::new("/dev/null")), Ok(()));
    }
}
