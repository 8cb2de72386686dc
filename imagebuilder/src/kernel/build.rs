//! From source and options to `vmlinux`: Linux's own build system, run out of tree.

use std::fs::File;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, Variant, child, lock};
use crate::progress::Progress;

/// Who builds, when and where, as the kernel tells in `/proc/version`: the same everywhere, for the same bytes.
const IDENTITY: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC"),
    ("KBUILD_BUILD_USER", "vmm"),
    ("KBUILD_BUILD_HOST", "vmm"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// The file that says which source the object files are of.
const STAMP: &str = "source-sha256";

/// A directory with the object files of a variant, locked. They stay from build to build: make compiles again what a
/// changed option concerns.
pub(super) struct Build<'a> {
    directory: PathBuf,
    /// The unpacked source.
    source: &'a Path,
    variant: &'a Variant,
    lock: File,
}

/// A kernel, and where it is until it is put into the cache.
pub(super) struct Kernel {
    /// A directory of `vmlinux` and `config`.
    pub(super) directory: PathBuf,
}

impl<'a> Build<'a> {
    /// Waits for the directory of `variant` below `builds`, and empties it if it is of another source than the one
    /// in `source`, which `sha256` identifies.
    pub(super) fn open(
        builds: &Path,
        variant: &'a Variant,
        source: &'a Path,
        sha256: &str,
        progress: &Progress,
    ) -> Result<Self, Error> {
        let directory = builds.join(format!("{}-{}", variant.series, variant.name));
        let lock = lock::lock(&directory, progress)?;
        let stamp = directory.join(STAMP);
        if std::fs::read(&stamp).is_ok_and(|text| text == sha256.as_bytes()) {
            return Ok(Self {
                directory,
                source,
                variant,
                lock,
            });
        }
        let emptied = empty(&directory).and_then(|()| std::fs::write(&stamp, sha256));
        emptied.map_err(|source| Error::write(&directory, source))?;
        Ok(Self {
            directory,
            source,
            variant,
            lock,
        })
    }

    /// Configures and compiles.
    ///
    /// # Errors
    /// An option is lost, or make fails.
    pub(super) fn run(
        &self,
        local_version: &str,
        jobs: NonZero<usize>,
        progress: &Progress,
    ) -> Result<Kernel, Error> {
        let log = self.directory.join("build.log");
        std::fs::write(&log, "").map_err(|source| Error::write(&log, source))?;
        let step = progress.step(format!("Configuring the kernel {}", self.variant.name));
        self.configure(&log)?;
        step.finish();
        self.compile(local_version, jobs, &log, progress)?;
        self.strip(&log)
    }

    fn configure(&self, log: &Path) -> Result<(), Error> {
        // Beside .config, not instead of it: make compares that with what the objects were compiled for.
        let wanted = self.directory.join("wanted.config");
        let text = self.tiny()? + &self.variant.options.to_config();
        std::fs::write(&wanted, text).map_err(|source| Error::write(&wanted, source))?;
        let mut make = self.make();
        // Of what is not wanted, allnoconfig takes as little as there can be, where olddefconfig would take what
        // Kconfig thinks usual.
        let mut all = std::ffi::OsString::from("KCONFIG_ALLCONFIG=");
        all.push(&wanted);
        make.arg(all).arg("allnoconfig");
        child::run(
            "make",
            make,
            "Configuring the kernel",
            log,
            &self.lock,
            |_| (),
        )?;

        let config = self.directory.join(".config");
        let text =
            std::fs::read_to_string(&config).map_err(|source| Error::read(&config, source))?;
        let lost = self.variant.options.lost_in(&text);
        if !lost.is_empty() {
            let variant = self.variant.name.clone();
            return Err(Error::Lost { variant, lost });
        }
        Ok(())
    }

    /// What `tinyconfig` adds to `allnoconfig`.
    fn tiny(&self) -> Result<String, Error> {
        let arch = format!("arch/{}/configs/tiny.config", self.variant.arch.directory());
        let mut text = String::new();
        for name in [
            "kernel/configs/tiny-base.config",
            "kernel/configs/tiny.config",
            &arch,
        ] {
            let path = self.source.join(name);
            match std::fs::read_to_string(&path) {
                Ok(part) => text += &part,
                // Not every architecture has one.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::read(&path, source)),
            }
        }
        Ok(text)
    }

    fn compile(
        &self,
        local_version: &str,
        jobs: NonZero<usize>,
        log: &Path,
        progress: &Progress,
    ) -> Result<(), Error> {
        let what = format!(
            "Compiling the kernel {} (Linux {}; minutes the first time)",
            self.variant.name, self.variant.series
        );
        let step = progress.step(what);
        let mut make = self.make();
        make.arg(format!("--jobs={jobs}"));
        make.arg(format!("LOCALVERSION={local_version}"));
        make.arg("vmlinux");
        let mut compiled = 0_u32;
        child::run(
            "make",
            make,
            "Compiling the kernel",
            log,
            &self.lock,
            |line| {
                if let Some(file) = compiled_file(line) {
                    compiled += 1;
                    step.note(&format!("{compiled} files, {file}"));
                }
            },
        )?;
        step.finish();
        Ok(())
    }

    fn strip(&self, log: &Path) -> Result<Kernel, Error> {
        let failed = |source| Error::write(&self.directory, source);
        let directory = self.directory.join("result");
        if directory.exists() {
            std::fs::remove_dir_all(&directory).map_err(failed)?;
        }
        std::fs::create_dir(&directory).map_err(failed)?;
        let vmlinux = directory.join("vmlinux");
        let mut strip = child::command("strip");
        // The note by which the kernel is entered is in a segment, and stays.
        strip.arg("--strip-all").arg("-o").arg(&vmlinux);
        strip.arg(self.directory.join("vmlinux"));
        child::run(
            "strip",
            strip,
            "Stripping the kernel",
            log,
            &self.lock,
            |_| (),
        )?;
        let config = directory.join("config");
        std::fs::copy(self.directory.join(".config"), &config)
            .and_then(|_| File::open(&config)?.sync_all())
            .and_then(|()| File::open(&vmlinux)?.sync_all())
            .map_err(failed)?;
        Ok(Kernel { directory })
    }

    /// make, without a target.
    fn make(&self) -> Command {
        let mut make = child::command("make");
        make.envs(IDENTITY);
        make.arg("-C").arg(self.source);
        let mut objects = std::ffi::OsString::from("O=");
        objects.push(&self.directory);
        make.arg(objects);
        make.arg(format!("ARCH={}", self.variant.arch.name()));
        // Where the source lies is nobody's business, and would make other bytes.
        for flags in ["KCFLAGS", "KAFLAGS"] {
            let mut argument = std::ffi::OsString::from(format!("{flags}=-ffile-prefix-map="));
            argument.push(self.source);
            argument.push("/=");
            make.arg(argument);
        }
        make
    }
}

/// The file that make says it compiles: `  CC      kernel/fork.o`.
fn compiled_file(line: &str) -> Option<&str> {
    let (tool, file) = line.strip_prefix("  ")?.split_once(' ')?;
    ["AS", "CC", "HOSTCC"]
        .contains(&tool)
        .then(|| file.trim_start())
}

/// Removes everything in `directory` but its lock.
fn empty(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == "lock" {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_files_are_told_from_what_else_make_says() {
        let rows = [
            ("  CC      kernel/fork.o", Some("kernel/fork.o")),
            ("  HOSTCC  scripts/sorttable", Some("scripts/sorttable")),
            (
                "  AS      arch/x86/lib/memcpy_64.o",
                Some("arch/x86/lib/memcpy_64.o"),
            ),
            ("  LD      vmlinux", None),
            ("make[1]: Entering directory '/tmp'", None),
            ("", None),
        ];
        for (line, file) in rows {
            assert_eq!(compiled_file(line), file, "{line:?}");
        }
    }
}
