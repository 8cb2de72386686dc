//! The layers of a confined process that a host may not permit, and how to have them there.

use std::{fmt, fs, io};

use rustix::io::Errno;

/// A layer that is not there on every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// No privileges, and none to be had.
    Privileges,
    /// A filter of system calls.
    Filter,
    /// A user that is not root.
    User,
    /// Limits on what it may use up.
    Limits,
    /// Landlock.
    Landlock,
    /// Namespaces of its own.
    Namespaces,
    /// An empty root directory.
    Root,
}

impl Layer {
    /// All, beginning with those that most hosts permit.
    pub const ALL: [Self; 7] = [
        Self::Privileges,
        Self::Filter,
        Self::User,
        Self::Limits,
        Self::Landlock,
        Self::Namespaces,
        Self::Root,
    ];

    /// Whether nothing runs without it, unless somebody asks for that.
    #[must_use]
    pub const fn is_minimum(self) -> bool {
        matches!(self, Self::Privileges | Self::Filter)
    }

    /// What it does for the host.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Privileges => "no capabilities, and no way to get any",
            Self::Filter => "the system calls that it needs, and no others",
            Self::User => "it is not root, nor anybody else",
            Self::Limits => "how much it can use up",
            Self::Landlock => "no file can be opened, no port be reached",
            Self::Namespaces => "nobody else in sight, no network, one end for all",
            Self::Root => "no file of the host is there",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileges => "privileges",
            Self::Filter => "filter",
            Self::User => "user",
            Self::Limits => "limits",
            Self::Landlock => "Landlock",
            Self::Namespaces => "namespaces",
            Self::Root => "empty root",
        })
    }
}

/// A layer that this host does not permit.
#[derive(Debug)]
pub struct Missing {
    /// Which.
    pub layer: Layer,
    /// What the host said.
    pub error: io::Error,
}

impl Missing {
    pub(super) fn new(layer: Layer, errno: i32) -> Self {
        let error = io::Error::from_raw_os_error(errno);
        Self { layer, error }
    }

    /// What to do to have it, in a line.
    #[must_use]
    pub fn remedy(&self) -> String {
        let errno = Errno::from_io_error(&self.error);
        let error = &self.error;
        let filtered = || is_filtered() && matches!(errno, Some(Errno::PERM | Errno::NOSYS));
        match self.layer {
            Layer::Namespaces if number("/proc/sys/user/max_user_namespaces") == Some(0) => {
                "sysctl user.max_user_namespaces=10000 permits them".to_owned()
            }
            Layer::Namespaces
                if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) =>
            {
                "sysctl kernel.unprivileged_userns_clone=1 permits them".to_owned()
            }
            Layer::Namespaces if is_in_chroot() => {
                "who is in a chroot may have none; start vmm outside of it".to_owned()
            }
            Layer::Namespaces if filtered() => format!(
                "{AROUND} clone(2) with namespaces; podman's does, as does Docker's with --cap-add SYS_ADMIN"
            ),
            Layer::Namespaces => format!("build the host's kernel with CONFIG_USER_NS and the others ({error})"),
            Layer::Root
                if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) =>
            {
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for vmm that has `userns,`".to_owned()
            }
            Layer::Root if filtered() => format!("{AROUND} mount(2) and pivot_root(2)"),
            Layer::Root => format!("it takes mount(2) and pivot_root(2) in namespaces of its own ({error})"),
            Layer::Landlock if errno == Some(Errno::OPNOTSUPP) => {
                "add landlock to lsm= on the command line of the host's kernel".to_owned()
            }
            Layer::Landlock if filtered() => {
                format!("{AROUND} landlock_restrict_self(2), on a kernel from 5.13 on")
            }
            Layer::Landlock => format!("it takes Linux 5.13 with CONFIG_SECURITY_LANDLOCK ({error})"),
            Layer::Filter if filtered() => format!("{AROUND} seccomp(2)"),
            Layer::Filter => format!("build the host's kernel with CONFIG_SECCOMP_FILTER ({error})"),
            Layer::User => format!("run vmm as an ordinary user, or where root may become another ({error})"),
            Layer::Limits => format!("{AROUND} prlimit64(2) ({error})"),
            Layer::Privileges => format!("{AROUND} prctl(2) and capset(2) ({error})"),
        }
    }
}

/// How a remedy begins where this program is in a container of another kind.
const AROUND: &str = "start the container around vmm with a seccomp profile that allows";

/// Whether an error is a host's way to say that it does not permit something, and not that it cannot just now.
pub fn is_forbidden(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::PERM
                | Errno::ACCESS
                | Errno::NOSYS
                | Errno::INVAL
                | Errno::OPNOTSUPP
                // Landlock's and user namespaces' most layers.
                | Errno::TOOBIG
                | Errno::NOSPC
                | Errno::USERS
                // What a kernel was built without.
                | Errno::NODEV
        )
    )
}

/// Whether a filter of somebody else is around this process.
fn is_filtered() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

/// Whether the root directory of this process is not that of its mount namespace.
fn is_in_chroot() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_root = |line: &str| line.split(' ').nth(4) == Some("/");
    !mounts.is_empty() && !mounts.lines().any(is_root)
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
