//! The source of a kernel: where its tarball is, what identifies it, and where it is unpacked and patched.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{Error, Patches, Tree, Variant, child, download, lock, package};
use crate::hashes::Hashes;
use crate::manifest::Origin;
use crate::progress::Progress;

/// Where the packages of Debian and its descendants put the source of a series.
const DISTRIBUTION: &str = "/usr/src";

/// A tarball with the source of Linux, and what we change in it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    tarball: PathBuf,
    /// The SHA-256 of the tarball, in hexadecimal digits.
    sha256: String,
    patches: Patches,
    /// A SHA-256 that stands for the tarball and the patches, in hexadecimal digits.
    pub(super) identity: String,
}

impl Source {
    /// What a kernel of this source is made of.
    pub(super) fn origins(&self) -> Vec<Origin> {
        let tarball = Origin::of_known(&self.tarball, self.sha256.clone());
        std::iter::once(tarball)
            .chain(self.patches.origins())
            .collect()
    }

    /// Finds the source of `variant`: the tarball that the user named, else the one of the distribution's package,
    /// else the release or the package that the variant names, downloaded. This is the one place that knows where sources come from.
    pub(super) fn find(
        named: Option<&Path>,
        variant: &Variant,
        cache: &Path,
        progress: &Progress,
    ) -> Result<Self, Error> {
        let series = &variant.series;
        let packaged = Path::new(DISTRIBUTION).join(format!("linux-source-{series}.tar.xz"));
        let downloads = cache.join("download");
        let tarball = if let Some(tarball) = named {
            tarball.to_path_buf()
        } else if packaged.exists() {
            packaged
        } else if let Some(release) = &variant.release {
            download::release(release, &downloads, progress)?
        } else if let Some(package) = &variant.package {
            package::source(series, &package.suite, &downloads, progress)?
        } else {
            return Err(Error::NoSource {
                series: series.clone(),
                path: packaged,
            });
        };
        let sha256 = identify(&tarball, &Hashes::new(cache.join("hashes")), progress)?;
        let patches = variant.patches.clone();
        Ok(Self {
            identity: patches.identify(&sha256),
            tarball,
            sha256,
            patches,
        })
    }

    /// Unpacks the source of `variant` below `cache` and patches it, unless that is done.
    pub(super) fn unpack(
        &self,
        variant: &Variant,
        cache: &Path,
        progress: &Progress,
    ) -> Result<Tree, Error> {
        let sources = cache.join("source");
        let directory = sources.join(&self.identity[..16]);
        let open = || Tree::open(&directory).map_err(|source| Error::write(&directory, source));
        let tree = match open()? {
            Some(tree) => tree,
            None => {
                let lock = lock::lock(&sources, progress)?;
                // Somebody may have done it while we waited.
                match open()? {
                    Some(tree) => tree,
                    None => self.unpack_to(&directory, variant, &lock, progress)?,
                }
            }
        };
        let release = self.check(&directory, &variant.series)?;
        if let Some(package) = variant.package.as_ref().filter(|it| it.tried != release) {
            let (name, tried) = (&variant.name, &package.tried);
            progress.warn(&format!(
                "the kernel {name} was made with Linux {tried}; going on with {release}"
            ));
        }
        Ok(tree)
    }

    /// Unpacks to `directory`, which appears whole or not at all. The `lock` on what it lies in is held.
    fn unpack_to(
        &self,
        directory: &Path,
        variant: &Variant,
        lock: &File,
        progress: &Progress,
    ) -> Result<Tree, Error> {
        let step = progress.step(format!("Unpacking {}, once", self.tarball.display()));
        let failed = |source| Error::write(directory, source);
        let beside = directory.with_file_name("unpacking");
        // An unpacking that was killed has left it.
        remove(&beside).map_err(failed)?;
        std::fs::create_dir(&beside).map_err(failed)?;
        let mut tar = child::command("tar");
        // The archive has one directory, named after the version, with everything in it.
        tar.args(["--extract", "--no-same-owner", "--strip-components=1"]);
        tar.arg("--file").arg(&self.tarball);
        tar.arg("--directory").arg(&beside);
        let what = format!("Unpacking {}", self.tarball.display());
        let log = directory.with_file_name("unpack.log");
        remove(&log).map_err(failed)?;
        child::run("tar", tar, &what, &log, lock, |_| ())?;
        // That a patch does not fit another series would say less.
        let found = self.check(&beside, &variant.series)?;
        let applied = self.patches.apply(&beside, &log, lock);
        applied.map_err(|error| match &variant.package {
            Some(package) if package.tried != found => Error::Unfit {
                tried: package.tried.clone(),
                found,
                tarball: self.tarball.clone(),
                source: Box::new(error),
            },
            _ => error,
        })?;
        std::fs::rename(&beside, directory).map_err(failed)?;
        let tree = Tree::open(directory).map_err(failed)?;
        let tree = tree.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        tree.remove_others(&beside).map_err(failed)?;
        step.finish();
        Ok(tree)
    }

    /// Checks that the source in `directory` is of `series`, and gives its release.
    fn check(&self, directory: &Path, series: &str) -> Result<String, Error> {
        let [version, patch_level, sublevel] = release_of(directory)?;
        let found = format!("{version}.{patch_level}");
        if found != series {
            return Err(Error::Series {
                tarball: self.tarball.clone(),
                series: series.to_owned(),
                found,
            });
        }
        Ok(format!("{found}.{sublevel}"))
    }
}

/// The SHA-256 of `tarball`. It takes a second to compute, so `hashes` remembers it.
fn identify(tarball: &Path, hashes: &Hashes, progress: &Progress) -> Result<String, Error> {
    let failed = |source| Error::read(tarball, source);
    let path = std::fs::canonicalize(tarball).map_err(failed)?;
    if let Some(sha256) = hashes.remembered(&path).map_err(failed)? {
        return Ok(sha256);
    }
    let step = progress.step(format!(
        "Reading {}, to tell it from others",
        path.display()
    ));
    let sha256 = hashes.compute(&path).map_err(failed)?;
    step.finish();
    Ok(sha256)
}

/// The three numbers of the version, by the `Makefile` in `directory`.
fn release_of(directory: &Path) -> Result<[String; 3], Error> {
    let path = directory.join("Makefile");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::read(&path, source))?;
    let number = |name: &str| {
        let mut lines = text
            .lines()
            .take(20)
            .filter_map(|line| line.split_once('='));
        let (_, value) = lines.find(|(left, _)| left.trim() == name)?;
        Some(value.trim())
    };
    let number = |name: &str| number(name).unwrap_or("?").to_owned();
    Ok(["VERSION", "PATCHLEVEL", "SUBLEVEL"].map(number))
}

/// Removes a file or directory that need not exist.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Arch, Options, Package};
    use crate::sha256;
    use crate::testing::{Folder, Layer};

    const MAKEFILE: &[u8] = b"# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\n";

    fn tarball(folder: &Folder, makefile: &[u8]) -> PathBuf {
        let path = folder.path().join("linux.tar");
        let layer = Layer::new()
            .directory("linux-6.12", 0o755)
            .file("linux-6.12/Makefile", makefile);
        std::fs::write(&path, layer.bytes()).unwrap();
        path
    }

    fn variant(series: &str) -> Variant {
        Variant {
            name: "it".into(),
            series: series.into(),
            release: None,
            package: None,
            arch: Arch::X86_64,
            options: Options::default(),
            patches: Patches::default(),
        }
    }

    fn find(folder: &Folder, tarball: &Path) -> Result<Source, Error> {
        let (cache, progress) = (folder.path(), Progress::silent());
        Source::find(Some(tarball), &variant("6.12"), cache, &progress)
    }

    #[test]
    fn a_tarball_is_unpacked_once_and_leaves_nothing_beside() {
        let folder = Folder::new("kernel-source");
        let tarball = tarball(&folder, MAKEFILE);
        let source = find(&folder, &tarball).unwrap();
        let variant = variant("6.12");
        let unpack = || source.unpack(&variant, folder.path(), &Progress::silent());
        // What a killed one has left is in nobody's way.
        std::fs::create_dir_all(folder.path().join("source/unpacking/old")).unwrap();
        let directory = unpack().unwrap().path().to_path_buf();
        assert_eq!(std::fs::read(directory.join("Makefile")).unwrap(), MAKEFILE);
        std::fs::write(directory.join("mark"), "").unwrap();
        assert_eq!(unpack().unwrap().path(), directory);
        assert!(directory.join("mark").exists());
        assert!(!folder.path().join("source/unpacking").exists());
    }

    #[test]
    fn another_series_is_refused() {
        let folder = Folder::new("kernel-series");
        let tarball = tarball(&folder, b"VERSION = 7\nPATCHLEVEL = 2\n");
        let source = find(&folder, &tarball).unwrap();
        let error = source.unpack(&variant("6.12"), folder.path(), &Progress::silent());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("holds Linux 7.2"), "{error}");
    }

    #[test]
    fn the_release_is_told_by_the_source() {
        let folder = Folder::new("kernel-release");
        let source = find(&folder, &tarball(&folder, MAKEFILE)).unwrap();
        let tree = source.unpack(&variant("6.12"), folder.path(), &Progress::silent());
        let release = source.check(tree.unwrap().path(), "6.12");
        assert_eq!(release.unwrap(), "6.12.1");
    }

    #[test]
    fn a_source_of_another_series_is_not_patched() {
        let folder = Folder::new("kernel-unpatched");
        let patches = folder.path().join("patches/x86_64");
        std::fs::create_dir_all(&patches).unwrap();
        std::fs::write(
            patches.join("0001.patch"),
            "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
        )
        .unwrap();
        let mut variant = variant("7.2");
        variant.patches = Patches::read(folder.path(), Arch::X86_64).unwrap();
        let tarball = tarball(&folder, MAKEFILE);
        let (cache, progress) = (folder.path(), Progress::silent());
        let source = Source::find(Some(&tarball), &variant, cache, &progress).unwrap();
        let error = source.unpack(&variant, cache, &progress).unwrap_err();
        assert!(matches!(error, Error::Series { .. }), "{error}");
    }

    #[test]
    fn patches_that_do_not_fit_are_a_missing_source_where_another_release_than_was_tried_is_there()
    {
        let folder = Folder::new("kernel-unfit");
        let patches = folder.path().join("patches/x86_64");
        std::fs::create_dir_all(&patches).unwrap();
        let text = "--- a/Makefile\n+++ b/Makefile\n@@ -1 +1 @@\n-# Another\n+b\n";
        std::fs::write(patches.join("0001.patch"), text).unwrap();
        let mut variant = variant("6.12");
        variant.patches = Patches::read(folder.path(), Arch::X86_64).unwrap();
        let tarball = tarball(&folder, MAKEFILE);
        let (cache, progress) = (folder.path(), Progress::silent());
        let source = Source::find(Some(&tarball), &variant, cache, &progress).unwrap();
        let mut unpack = |tried: Option<&str>| {
            variant.package = tried.map(|tried| Package {
                suite: "none".into(),
                tried: tried.into(),
            });
            source.unpack(&variant, cache, &progress).unwrap_err()
        };
        // For the one that was tried they have to fit.
        for tried in [None, Some("6.12.1")] {
            assert!(matches!(unpack(tried), Error::Failed { .. }), "{tried:?}");
        }
        let error = unpack(Some("6.12.0"));
        assert!(error.is_without_source(), "{error:?}");
        let error = error.to_string();
        let expected = "Our patches were made for Linux 6.12.0, and do not fit 6.12.1 in ";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn what_is_no_archive_is_an_error_with_the_words_of_tar() {
        let folder = Folder::new("kernel-no-archive");
        let path = folder.path().join("linux.tar");
        std::fs::write(&path, "no archive").unwrap();
        let source = find(&folder, &path).unwrap();
        let error = source.unpack(&variant("6.12"), folder.path(), &Progress::silent());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("tar:"), "{error}");
        assert!(
            !folder
                .path()
                .join("source")
                .join(&source.identity[..16])
                .exists()
        );
    }

    #[test]
    fn the_identity_follows_the_content() {
        let folder = Folder::new("kernel-identity");
        let path = tarball(&folder, MAKEFILE);
        let first = find(&folder, &path).unwrap().identity;
        assert_eq!(first, sha256::of(std::fs::read(&path).unwrap()));
        assert_eq!(find(&folder, &path).unwrap().identity, first);
        tarball(&folder, b"VERSION = 6\nPATCHLEVEL = 13\nSUBLEVEL = 1\n");
        assert_ne!(find(&folder, &path).unwrap().identity, first);
    }

    #[test]
    fn a_source_that_is_nowhere_is_an_error_that_says_what_to_do() {
        let folder = Folder::new("kernel-no-source");
        let error = Source::find(None, &variant("1.0"), folder.path(), &Progress::silent());
        let error = error.unwrap_err().to_string();
        for word in ["linux-source-1.0", "make setup", "--source"] {
            assert!(error.contains(word), "{error:?} should say {word:?}");
        }
        let error = find(&folder, Path::new("/nonexistent.tar")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.tar"));
    }
}
