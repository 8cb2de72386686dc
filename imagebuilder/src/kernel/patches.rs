//! Our own changes to the source: `patches/<arch>/*.patch` beside the fragments, applied in the order of their names.

use std::path::{Path, PathBuf};

use super::{Arch, Error, child};
use crate::manifest::Origin;
use crate::sha256;

/// The patches of an architecture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patches(Vec<Patch>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Patch {
    path: PathBuf,
    text: Vec<u8>,
}

impl Patches {
    /// Reads those for `arch` of `directory`, in which fragments and the directory `patches` are. There may be none.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn read(directory: &Path, arch: Arch) -> Result<Self, Error> {
        let directory = directory.join("patches").join(arch.name());
        let failed = |source| Error::read(&directory, source);
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            entries => entries.map_err(failed)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "patch")
        });
        paths.sort_unstable();
        let read = |path: PathBuf| {
            let text = std::fs::read(&path).map_err(|source| Error::read(&path, source))?;
            Ok(Patch { path, text })
        };
        paths
            .into_iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What a source with the SHA-256 `source` is once it is patched, in hexadecimal digits: `source` itself where there
    /// are no patches.
    pub(super) fn identify(&self, source: &str) -> String {
        if self.0.is_empty() {
            return source.to_owned();
        }
        let hashes = self.0.iter().map(|patch| sha256::of(&patch.text));
        let parts: Vec<_> = std::iter::once(source.to_owned()).chain(hashes).collect();
        sha256::of(parts.join("\n"))
    }

    /// What a patched source is made of, beside the source.
    pub(super) fn origins(&self) -> impl Iterator<Item = Origin> {
        let patches = self.0.iter();
        patches.map(|patch| Origin::of_known(&patch.path, sha256::of(&patch.text)))
    }

    /// Changes the source in `directory`. What the tool says goes to `log`; `lock` as [`child::run`] takes it.
    ///
    /// # Errors
    /// A patch does not fit, or not exactly.
    pub(super) fn apply(
        &self,
        directory: &Path,
        log: &Path,
        lock: &std::fs::File,
    ) -> Result<(), Error> {
        for patch in &self.0 {
            // It runs elsewhere.
            let path = std::path::absolute(&patch.path)
                .map_err(|source| Error::read(&patch.path, source))?;
            let mut command = child::command("patch");
            // A patch that fits a bit further down, or nearly, is one that nobody has looked at for this source.
            command.args([
                "--strip=1",
                "--batch",
                "--fuzz=0",
                "--no-backup-if-mismatch",
            ]);
            command.arg("--directory").arg(directory);
            command.arg("--input").arg(path);
            let what = format!("Applying {}", patch.path.display());
            child::run("patch", command, &what, log, lock, |_| ())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;
    use std::fs::{self, File};

    fn patch(from: &str, to: &str) -> String {
        format!("Why.\n\n--- a/it.c\n+++ b/it.c\n@@ -1 +1 @@\n-{from}\n+{to}\n")
    }

    fn folder(name: &str, patches: &[(&str, String)]) -> Folder {
        let folder = Folder::new(name);
        let directory = folder.path().join("patches/um");
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in patches {
            fs::write(directory.join(name), text).unwrap();
        }
        fs::create_dir(folder.path().join("source")).unwrap();
        fs::write(folder.path().join("source/it.c"), "one\n").unwrap();
        folder
    }

    fn apply(folder: &Folder) -> Result<String, Error> {
        let lock = File::create(folder.path().join("lock")).unwrap();
        let source = folder.path().join("source");
        Patches::read(folder.path(), Arch::Um).unwrap().apply(
            &source,
            &folder.path().join("log"),
            &lock,
        )?;
        Ok(fs::read_to_string(source.join("it.c")).unwrap())
    }

    #[test]
    fn patches_are_applied_in_the_order_of_their_names() {
        let patches = [
            ("0002-b.patch", patch("two", "three")),
            ("0001-a.patch", patch("one", "two")),
            ("README", "no patch".to_owned()),
        ];
        let folder = folder("patches-order", &patches);
        assert_eq!(apply(&folder).unwrap(), "three\n");
        assert_eq!(
            fs::read_dir(folder.path().join("source")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_patch_that_does_not_fit_is_named() {
        let folder = folder("patches-misfit", &[("0001-a.patch", patch("zero", "two"))]);
        let error = apply(&folder).unwrap_err().to_string();
        assert!(error.contains("0001-a.patch failed"), "{error}");
        assert!(error.contains("FAILED"), "{error}");
    }

    #[test]
    fn a_source_is_another_by_what_its_patches_say() {
        let identity = |text: &str| {
            let folder = folder("patches-identity", &[("a.patch", text.to_owned())]);
            Patches::read(folder.path(), Arch::Um)
                .unwrap()
                .identify("5")
        };
        assert_eq!(identity("a"), identity("a"));
        assert_ne!(identity("a"), identity("b"));
        let none = Patches::read(Path::new("/nonexistent"), Arch::Um).unwrap();
        assert_eq!(none.identify("5"), "5");
    }
}
