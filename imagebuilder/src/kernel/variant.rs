//! Variants: which kernels there are.
//!
//! A variant is a text of one instruction a line, its words separated by blanks; `#` begins a comment.
//!
//! ```text
//! series 6.12              # of which the source is
//! release 6.12.94 e998…    # of that series, and the SHA-256 of its tarball: what is downloaded where no source is
//! package trixie-backports 7.2.12 # or instead: a suite of Debian that has it, and the release that was tried
//! arch x86_64              # make's ARCH
//! fragments base x86 net   # merged in this order over tinyconfig
//! ```

use std::path::Path;

use super::{Error, Options, Patches};
use crate::sha256::is_hash;

/// An architecture that kernels are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// A machine, virtual as it may be.
    X86_64,
    /// A process of Linux: user-mode Linux.
    Um,
}

impl Arch {
    /// What make calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Um => "um",
        }
    }

    /// Its directory below `arch/` in the source.
    pub fn directory(self) -> &'static str {
        match self {
            Self::X86_64 => "x86",
            Self::Um => "um",
        }
    }
}

/// A release of Linux, as kernel.org has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its version.
    pub version: String,
    /// The SHA-256 of `linux-VERSION.tar.xz`, in hexadecimal digits.
    pub sha256: String,
}

/// A package of Debian with the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The suite that has it, such as `trixie-backports`. It has one release at a time, so it may have another.
    pub suite: String,
    /// The version of Linux that the variant was made with.
    pub tried: String,
}

/// What a kernel is built of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// What it is called.
    pub name: String,
    /// The first two numbers of the version of its source.
    pub series: String,
    /// What is downloaded where the source is missing.
    pub release: Option<Release>,
    /// What is downloaded instead.
    pub package: Option<Package>,
    /// What it runs on.
    pub arch: Arch,
    /// What its fragments ask for.
    pub options: Options,
    /// What is changed in its source.
    pub patches: Patches,
}

impl Variant {
    /// Reads the variant called `name` of `directory`, in which fragments and the directories `variants` and `patches` are.
    ///
    /// # Errors
    /// It or a fragment cannot be read, or is malformed.
    pub fn read(directory: &Path, name: &str) -> Result<Self, Error> {
        if !is_plain(name) {
            let name = name.to_owned();
            return Err(Error::Name { name });
        }
        let path = directory.join("variants").join(name);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::read(&path, source))?;
        let failed = |(line, reason)| Error::Line {
            path: path.clone(),
            line,
            reason,
        };
        let parsed = parse(&text).map_err(failed)?;
        let options = Options::read(directory, &parsed.fragments)?;
        let patches = Patches::read(directory, parsed.arch)?;
        Ok(Self {
            name: name.to_owned(),
            series: parsed.series,
            release: parsed.release,
            package: parsed.package,
            arch: parsed.arch,
            options,
            patches,
        })
    }
}

struct Parsed {
    series: String,
    release: Option<Release>,
    package: Option<Package>,
    arch: Arch,
    fragments: Vec<String>,
}

fn parse(text: &str) -> Result<Parsed, (usize, &'static str)> {
    let (mut series, mut release, mut package, mut arch) = (None, None, None, None);
    let mut fragments = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let failed = |reason| (index + 1, reason);
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["series", name] if is_series(name) => series = Some((*name).to_owned()),
            ["series", ..] => return Err(failed("A series is two numbers, such as 6.12")),
            ["release", version, sha256] if is_version(version) && is_hash(sha256) => {
                let (version, sha256) = ((*version).to_owned(), (*sha256).to_owned());
                release = Some(Release { version, sha256 });
            }
            ["release", ..] => {
                return Err(failed(
                    "A release is a version and the SHA-256 of its tarball",
                ));
            }
            ["package", suite, tried] if is_plain(suite) && is_version(tried) => {
                let (suite, tried) = ((*suite).to_owned(), (*tried).to_owned());
                package = Some(Package { suite, tried });
            }
            ["package", ..] => {
                return Err(failed(
                    "A package is a suite of Debian and a version of Linux",
                ));
            }
            ["arch", "x86_64"] => arch = Some(Arch::X86_64),
            ["arch", "um"] => arch = Some(Arch::Um),
            ["arch", ..] => return Err(failed("The architecture is x86_64 or um")),
            ["fragments", names @ ..] if names.iter().all(|name| is_plain(name)) => {
                fragments.extend(names.iter().map(|name| (*name).to_owned()));
            }
            ["fragments", ..] => return Err(failed("Fragments are named without directory")),
            _ => {
                return Err(failed(
                    "Expected series, release, package, arch or fragments",
                ));
            }
        }
    }
    // What is missing, is missing at the end.
    let end = text.lines().count();
    Ok(Parsed {
        series: series.ok_or((end, "The series is missing"))?,
        release,
        package,
        arch: arch.ok_or((end, "The architecture is missing"))?,
        fragments,
    })
}

/// Whether `name` is safe as the name of a file and of a directory.
fn is_plain(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    !name.is_empty() && name.bytes().all(allowed)
}

fn is_series(name: &str) -> bool {
    name.split('.').count() == 2 && is_version(name)
}

fn is_version(name: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    name.split('.').all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    fn read(text: &str) -> Result<Variant, Error> {
        let folder = Folder::new("variant");
        std::fs::create_dir(folder.path().join("variants")).unwrap();
        std::fs::write(folder.path().join("variants/it"), text).unwrap();
        std::fs::write(folder.path().join("a.config"), "CONFIG_A=y # a\n").unwrap();
        Variant::read(folder.path(), "it")
    }

    #[test]
    fn a_variant_names_its_source_and_fragments() {
        let variant = read("# Head\nseries 7.2\narch um # a process\nfragments a\n").unwrap();
        assert_eq!(
            (variant.name.as_str(), variant.series.as_str()),
            ("it", "7.2")
        );
        assert_eq!(variant.arch, Arch::Um);
        assert_eq!(variant.options.to_config(), "CONFIG_A=y\n");
    }

    #[test]
    fn a_variant_may_name_a_release_to_download() {
        let sha256 = "0123456789abcdef".repeat(4);
        let text = format!("series 6.12\nrelease 6.12.94 {sha256}\narch x86_64\n");
        let release = read(&text).unwrap().release.unwrap();
        assert_eq!(
            (release.version, release.sha256),
            ("6.12.94".into(), sha256)
        );
    }

    #[test]
    fn a_variant_may_name_a_package_to_download() {
        let text = "series 7.2\npackage trixie-backports 7.2.12\narch um\n";
        let package = read(text).unwrap().package.unwrap();
        assert_eq!(
            (package.suite.as_str(), package.tried.as_str()),
            ("trixie-backports", "7.2.12")
        );
    }

    #[test]
    fn malformed_variants_are_refused() {
        let rows = [
            ("arch um\n", "series is missing"),
            ("series 6.12\n", "architecture is missing"),
            ("series 6\n", "two numbers"),
            ("series ../x.1\n", "two numbers"),
            ("release 6.12.1\n", "SHA-256"),
            ("release 6.12.1 e99\n", "SHA-256"),
            ("package sid\n", "suite"),
            ("package ../sid 7.2\n", "suite"),
            ("package sid 7.2~rc1\n", "suite"),
            ("arch arm64\n", "x86_64 or um"),
            ("fragments ../a\n", "without directory"),
            ("fragment a\n", "Expected"),
        ];
        for (text, reason) in rows {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} should say {reason:?}");
        }
    }

    #[test]
    fn a_variant_outside_its_directory_has_no_name() {
        for name in ["", ".", "../default", "a/b"] {
            let error = Variant::read(Path::new("/nonexistent"), name).unwrap_err();
            assert!(matches!(error, Error::Name { .. }), "{error}");
        }
    }

    #[test]
    fn the_variants_of_this_tree_are_sound() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-config");
        for entry in std::fs::read_dir(directory.join("variants")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            Variant::read(&directory, &name).unwrap();
        }
    }
}
