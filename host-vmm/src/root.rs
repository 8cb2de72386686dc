//! The directory below which everything is, and how it is laid out.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Version of the layout of everything below the root.
const FORMAT: &str = "1\n";

/// Why the root is left alone.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file or directory.
    #[error("Cannot {action} {}", .path.display())]
    Disk {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another version wrote the directory.
    #[error(
        "{} was written by another version of this program (format {found}, this one reads 1); use that version, or another --root",
        .path.display()
    )]
    Format {
        /// The root.
        path: PathBuf,
        /// Its format.
        found: String,
    },
}

/// Looks whether this program may use what is below `root`, which need not be there yet. Nothing is changed.
///
/// # Errors
/// Another version wrote it.
pub fn check(root: &Path) -> Result<(), RootError> {
    let format = root.join("format");
    match fs::read_to_string(&format) {
        Ok(found) if found == FORMAT => Ok(()),
        Ok(found) => Err(RootError::Format {
            path: root.to_owned(),
            found: found.trim().chars().take(20).collect(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(disk("read", &format)(error)),
    }
}

/// Makes the directory, and says in it how what will be below it is laid out. [`check`] comes before.
///
/// # Errors
/// The disk refuses.
pub fn claim(root: &Path) -> Result<(), RootError> {
    let format = root.join("format");
    if format.exists() {
        return Ok(());
    }
    // Whatever the umask: who can write here chooses what others run.
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(root)
        .map_err(disk("create", root))?;
    imagebuilder::atomic::write(&format, FORMAT.as_bytes()).map_err(disk("write", &format))
}

fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Disk {
        action,
        path,
        source,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_wrote_is_not_for_us() {
        let root = std::env::temp_dir().join(format!("vmm-root-{}", std::process::id()));
        check(&root).unwrap();
        claim(&root).unwrap();
        check(&root).unwrap();
        fs::write(root.join("format"), "2\n").unwrap();
        assert!(matches!(
            check(&root),
            Err(RootError::Format { found, .. }) if found == "2"
        ));
        fs::remove_dir_all(root).unwrap();
    }
}
