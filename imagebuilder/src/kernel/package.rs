//! Sources from an archive of Debian that this system does not use: backports, which it would install from otherwise.
//!
//! The archive is where the system's own packages come from, so it is reached the same way, and its signature is checked
//! by the keys that are here. Lists and packages go to a directory of ours: nothing of the system's is changed, and
//! nothing needs root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::source::remove;
use super::{Error, child, lock};
use crate::progress::Progress;

/// Where Debian's own package of its keys has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The tarball of Linux's `series` in `directory`, from the archive's `suite`, downloaded unless it is there.
///
/// # Errors
/// This system has no apt, or none of Debian's; the suite does not have the series, or cannot be reached.
pub(super) fn source(
    series: &str,
    suite: &str,
    directory: &Path,
    progress: &Progress,
) -> Result<PathBuf, Error> {
    let tarball = directory.join(format!("linux-source-{series}.tar.xz"));
    if tarball.exists() {
        return Ok(tarball);
    }
    let lock = lock::lock(directory, progress)?;
    // Somebody may have done it while we waited.
    if tarball.exists() {
        return Ok(tarball);
    }
    let package = format!("linux-source-{series}");
    let archive = archive().ok_or_else(|| Error::NoArchive {
        package: package.clone(),
        suite: suite.to_owned(),
    })?;
    let step = progress.step(format!("Downloading {package} of {suite} from {archive}"));
    let apt = Apt {
        directory: directory.join("apt"),
        lock: &lock,
    };
    let source = apt.fetch(&package, &archive, suite)?;
    let failed = |source| Error::write(&tarball, source);
    File::open(&source)
        .and_then(|file| file.sync_all())
        .and_then(|()| std::fs::rename(&source, &tarball))
        .map_err(failed)?;
    remove(&apt.directory).map_err(failed)?;
    step.finish();
    Ok(tarball)
}

/// Where this system's packages come from, if it is a Debian whose lists of packages are there.
fn archive() -> Option<String> {
    let mut apt = child::command("apt-get");
    apt.args(["indextargets", "--format", "$(REPO_URI)"]);
    apt.args(["Created-By: Packages", "Label: Debian", "Component: main"]);
    let output = apt.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let uri = text.lines().next()?.trim();
    (!uri.is_empty()).then(|| uri.to_owned())
}

/// What apt calls a source of packages, signed with Debian's keys: those of `keyring`, or where that is not, those that
/// apt trusts for everything.
fn sources(archive: &str, suite: &str, keyring: &Path) -> String {
    let mut text = format!("Types: deb\nURIs: {archive}\nSuites: {suite}\nComponents: main\n");
    if keyring.exists() {
        text += &format!("Signed-By: {}\n", keyring.display());
    }
    text
}

/// An apt whose files are all below one directory, which is new.
struct Apt<'a> {
    directory: PathBuf,
    lock: &'a File,
}

impl Apt<'_> {
    /// Downloads `package` and unpacks it; gives the tarball in it.
    fn fetch(&self, package: &str, archive: &str, suite: &str) -> Result<PathBuf, Error> {
        let failed = |source| Error::write(&self.directory, source);
        remove(&self.directory).map_err(failed)?;
        for name in ["parts", "lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(self.directory.join(name)).map_err(failed)?;
        }
        let parts = self.directory.join("parts/package.sources");
        std::fs::write(&parts, sources(archive, suite, Path::new(KEYRING))).map_err(failed)?;

        let mut download = self.get("download");
        download.arg(package);
        for command in [self.get("update"), download] {
            let what = format!("Downloading {package}");
            self.run("apt-get", command, &what)
                .map_err(|error| unreachable(error, package, archive, suite))?;
        }

        let mut extract = child::command("dpkg-deb");
        extract.arg("--extract").arg(self.downloaded(package)?);
        extract.arg(self.directory.join("unpacked"));
        self.run("dpkg-deb", extract, &format!("Unpacking {package}"))?;
        let name = format!("unpacked/usr/src/{package}.tar.xz");
        Ok(self.directory.join(name))
    }

    fn get(&self, action: &str) -> Command {
        let mut apt = child::command("apt-get");
        apt.current_dir(&self.directory);
        for (option, name) in [
            ("Dir::Etc::SourceParts", "parts"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            let mut setting = std::ffi::OsString::from(format!("{option}="));
            setting.push(self.directory.join(name));
            apt.arg("--option").arg(setting);
        }
        for setting in [
            "Dir::Etc::SourceList=/dev/null",
            // What the system thinks of this suite is not asked.
            "Dir::Etc::Preferences=/dev/null",
            "Dir::Etc::PreferencesParts=/dev/null",
            // The user that apt becomes for downloads could not write here.
            "APT::Sandbox::User=",
            // A list that cannot be read is an error, not something for later.
            "APT::Update::Error-Mode=any",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            // Seconds. Whoever has no network should not wait for long to be told.
            "Acquire::http::Timeout=10",
            "Acquire::https::Timeout=10",
        ] {
            apt.args(["--option", setting]);
        }
        apt.args(["--quiet=2", action]);
        apt
    }

    fn run(&self, program: &'static str, command: Command, what: &str) -> Result<(), Error> {
        let log = self.directory.join("log");
        child::run(program, command, what, &log, self.lock, |_| ())
    }

    /// What was downloaded: apt names it by its version.
    fn downloaded(&self, package: &str) -> Result<PathBuf, Error> {
        let failed = |source| Error::read(&self.directory, source);
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                return Ok(path);
            }
        }
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        Err(Error::read(&self.directory.join(package), missing))
    }
}

/// What it means that apt failed: its first complaint, in a line.
fn unreachable(error: Error, package: &str, archive: &str, suite: &str) -> Error {
    let Error::Failed { log, tail, .. } = error else {
        return error;
    };
    let mut complaints = tail.lines().filter_map(|line| line.strip_prefix("E: "));
    let complaint = complaints.next().or(tail.lines().last());
    Error::Download {
        package: package.to_owned(),
        suite: suite.to_owned(),
        archive: archive.to_owned(),
        reason: complaint
            .unwrap_or("apt-get failed")
            .trim_end_matches(['.', ' '])
            .to_owned(),
        log,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn what_is_there_is_not_asked_for_again() {
        let folder = Folder::new("kernel-package");
        let tarball = folder.path().join("linux-source-0.0.tar.xz");
        std::fs::write(&tarball, "source").unwrap();
        let found = source("0.0", "none", folder.path(), &Progress::silent());
        assert_eq!(found.unwrap(), tarball);
    }

    #[test]
    fn an_archive_that_cannot_be_reached_is_an_error_with_the_words_of_apt() {
        if archive().is_none() {
            eprintln!("skipped: there is no apt with the lists of Debian");
            return;
        }
        let folder = Folder::new("kernel-archive");
        let lock = lock::lock(folder.path(), &Progress::silent()).unwrap();
        let apt = Apt {
            directory: folder.path().join("apt"),
            lock: &lock,
        };
        let nowhere = format!("file:{}/nowhere", folder.path().display());
        let error = apt.fetch("linux-source-0.0", &nowhere, "none").unwrap_err();
        assert!(error.is_without_source(), "{error:?}");
        let error = error.to_string();
        let expected = "linux-source-0.0 of Debian's none cannot be downloaded from file:";
        assert!(error.starts_with(expected), "{error}");
        assert!(error.contains("does not have a Release file ("), "{error}");
        assert!(error.contains("--source"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn keys_are_named_where_they_are() {
        let folder = Folder::new("kernel-keys");
        let keyring = folder.path().join("keys.gpg");
        let signed = format!("Signed-By: {}\n", keyring.display());
        assert!(!sources("a", "s", &keyring).contains("Signed-By"));
        std::fs::write(&keyring, "").unwrap();
        assert!(sources("a", "s", &keyring).ends_with(&signed));
    }

    #[test]
    fn of_what_apt_says_the_first_complaint_is_quoted() {
        let reason = |tail: &str| {
            let error = Error::Failed {
                what: "Downloading".into(),
                log: "log".into(),
                tail: tail.into(),
            };
            match unreachable(error, "p", "a", "s") {
                Error::Download { reason, .. } => reason,
                error => panic!("{error:?}"),
            }
        };
        let two = "Err:1 x\nE: Failed to fetch x\nE: Some index files failed";
        assert_eq!(reason(two), "Failed to fetch x");
        assert_eq!(reason("one\nKilled"), "Killed");
        assert_eq!(reason(""), "apt-get failed");
    }
}
