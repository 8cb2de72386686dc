//! Where everything is.

use std::{
    env, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The configuration file for all users of this machine.
pub const SYSTEM_CONFIG: &str = "/etc/vmm/config.toml";

/// The places this program reads and writes.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    run: PathBuf,
    share: Option<PathBuf>,
}

/// Somebody else could change what is run.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} belongs to another user (uid {owner}), who could change what runs there; use a --root of your own",
    .path.display()
)]
pub struct NotOurs {
    /// The directory.
    path: PathBuf,
    /// Who owns it.
    owner: u32,
}

/// There is no place for the program's data.
#[derive(Debug, thiserror::Error)]
pub enum NoPlace {
    /// Neither of the variables is set.
    #[error(
        "Cannot tell where to keep containers and images; set HOME, or name a directory with --root"
    )]
    NoHome,
    /// The directory's name is not absolute, and there is no current directory to begin with.
    #[error("Cannot tell where the directory {:?} is; name an absolute one with --root", .path)]
    Relative {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Paths {
    /// By the `--root` option, if there is one, the environment, and what is configured.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn find(root: Option<&Path>, configured: Option<&Path>) -> Result<Self, NoPlace> {
        let is_root = rustix::process::geteuid().is_root();
        let given = root.map(Path::to_owned).or_else(|| directory("VMM_ROOT"));
        let given = given.or_else(|| configured.map(Path::to_owned));
        let (root, run) = match given {
            Some(root) => {
                let root = std::path::absolute(&root)
                    .map_err(|source| NoPlace::Relative { path: root, source })?;
                let run = root.join("run");
                (root, run)
            }
            None if is_root => (PathBuf::from("/var/lib/vmm"), PathBuf::from("/run/vmm")),
            None => {
                let root = user("XDG_DATA_HOME", "vmm")
                    .or_else(|| user("HOME", ".local/share/vmm"))
                    .ok_or(NoPlace::NoHome)?;
                let run = user("XDG_RUNTIME_DIR", "vmm").unwrap_or_else(|| root.join("run"));
                (root, run)
            }
        };
        Ok(Self {
            root,
            run,
            share: share(),
        })
    }

    /// Checks that what is there belongs to us, or to root: nobody else may choose what we run.
    ///
    /// # Errors
    /// [`NotOurs`].
    pub fn check_owners(&self) -> Result<(), NotOurs> {
        let own = rustix::process::geteuid().as_raw();
        let below = ["containers", "images", "kernels", "initfs", "hashes"];
        let below = below.map(|name| self.root.join(name));
        for path in below.iter().chain([&self.root, &self.run]) {
            // A link is somebody's, too.
            for metadata in [path.symlink_metadata(), path.metadata()] {
                // There may be nothing yet.
                let owner = metadata.map_or(own, |metadata| metadata.uid());
                if owner != own && owner != 0 {
                    let path = path.clone();
                    return Err(NotOurs { path, owner });
                }
            }
        }
        Ok(())
    }

    /// The directory of images and containers.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of containers.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The directory of what is known of files that are large and seldom change.
    #[must_use]
    pub fn hashes(&self) -> PathBuf {
        self.root.join("hashes")
    }

    /// What the kernel of a machine that failed has said, if its container did not stay.
    #[must_use]
    pub fn failed_log(&self, short_id: &str) -> PathBuf {
        self.failed_logs().join(format!("{short_id}.log"))
    }

    /// The directory of those.
    #[must_use]
    pub fn failed_logs(&self) -> PathBuf {
        self.root.join("failed")
    }

    /// The directory of sockets.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// What came with the installation: kernels, initfs and images. `None` if this program lies about alone.
    #[must_use]
    pub fn share(&self) -> Option<&Path> {
        self.share.as_deref()
    }

    /// The kernel of the installation that is built from this variant, whether or not it is there.
    #[must_use]
    pub fn installed_kernel(&self, variant: &str) -> Option<PathBuf> {
        let share = self.share()?;
        Some(share.join("kernels").join(variant).join("vmlinux"))
    }

    /// The initfs of the installation.
    #[must_use]
    pub fn default_initfs(&self) -> Option<PathBuf> {
        self.share().map(|share| share.join("initfs.cpio"))
    }
}

/// The user's configuration file, whether or not it is there. `None` if nothing says where it would be.
#[must_use]
pub fn user_config() -> Option<PathBuf> {
    user("XDG_CONFIG_HOME", "vmm/config.toml").or_else(|| user("HOME", ".config/vmm/config.toml"))
}

/// What is `below` the directory that an environment variable names.
fn user(variable: &str, below: &str) -> Option<PathBuf> {
    directory(variable).map(|base| base.join(below))
}

/// An environment variable that names a directory. An empty or relative one counts as unset, as the XDG base directory
/// specification has it.
fn directory(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute() || variable == "VMM_ROOT" && !path.as_os_str().is_empty())
}

/// `share/vmm` beside the `bin` that this program is in.
fn share() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let share = program.parent()?.parent()?.join("share/vmm");
    // Its manifest says where things are from what is above it, whatever link leads here.
    share.canonicalize().ok().filter(|share| share.is_dir())
}
