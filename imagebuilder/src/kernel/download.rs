//! Releases of Linux from kernel.org, for machines whose distribution has no source of the series.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::source::remove;
use super::variant::Release;
use super::{Error, child, lock};
use crate::progress::Progress;
use crate::sha256;

/// Where the directories of all major versions are.
const UPSTREAM: &str = "https://cdn.kernel.org/pub/linux/kernel";

/// The tarball of `release` in `directory`, downloaded unless it is there.
///
/// # Errors
/// The download fails, or gives something else than the release.
pub(super) fn release(
    release: &Release,
    directory: &Path,
    progress: &Progress,
) -> Result<PathBuf, Error> {
    let major = release.version.split('.').next().unwrap_or_default();
    let url = format!("{UPSTREAM}/v{major}.x/linux-{}.tar.xz", release.version);
    fetch(&url, &release.sha256, directory, progress)
}

fn fetch(url: &str, sha256: &str, directory: &Path, progress: &Progress) -> Result<PathBuf, Error> {
    // By its hash, so that what is there is what is wanted.
    let tarball = directory.join(format!("{sha256}.tar.xz"));
    if tarball.exists() {
        return Ok(tarball);
    }
    let lock = lock::lock(directory, progress)?;
    // Somebody may have done it while we waited.
    if tarball.exists() {
        return Ok(tarball);
    }
    let step = progress.step(format!("Downloading {url}"));
    let part = directory.join("part");
    let log = directory.join("download.log");
    for leftover in [&part, &log] {
        remove(leftover).map_err(|source| Error::write(leftover, source))?;
    }
    let mut curl = child::command("curl");
    curl.args([
        "--fail",
        "--location",
        "--silent",
        "--show-error",
        "--retry",
        "3",
    ]);
    curl.arg("--output").arg(&part).arg(url);
    let what = format!("Downloading {url}");
    child::run("curl", curl, &what, &log, &lock, |_| ())?;

    let found = File::open(&part).and_then(|file| {
        file.sync_all()?;
        sha256::of_reader(file)
    });
    let found = found.map_err(|source| Error::read(&part, source))?;
    if found != sha256 {
        remove(&part).map_err(|source| Error::write(&part, source))?;
        return Err(Error::Damaged {
            url: url.to_owned(),
            expected: sha256.to_owned(),
            found,
        });
    }
    std::fs::rename(&part, &tarball).map_err(|source| Error::write(&tarball, source))?;
    step.finish();
    Ok(tarball)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, tool_output};

    #[test]
    fn a_download_is_kept_if_it_is_what_was_named() {
        if tool_output("curl", &["--version"]).is_none() {
            return;
        }
        let folder = Folder::new("kernel-download");
        let upstream = folder.path().join("linux.tar.xz");
        std::fs::write(&upstream, "source").unwrap();
        let url = format!("file://{}", upstream.display());
        let directory = folder.path().join("download");
        let fetch = |sha256: &str| fetch(&url, sha256, &directory, &Progress::silent());

        let other = "0".repeat(64);
        let error = fetch(&other).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(!directory.join("part").exists());

        let sha256 = sha256::of("source");
        let tarball = fetch(&sha256).unwrap();
        assert_eq!(std::fs::read(&tarball).unwrap(), b"source");
        // It is there, so nobody asks upstream again.
        std::fs::remove_file(&upstream).unwrap();
        assert_eq!(fetch(&sha256).unwrap(), tarball);

        let error = fetch(&other).unwrap_err().to_string();
        assert!(error.contains("curl:"), "{error}");
    }
}
