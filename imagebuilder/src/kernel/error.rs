//! Why there is no kernel.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variant cannot be called that.
    #[error("{name:?} cannot be the name of a variant: letters, digits, - and _ make one")]
    Name {
        /// What it is called.
        name: String,
    },
    /// A local version cannot be part of a kernel's release.
    #[error(
        "{suffix:?} cannot be a local version: at most {max} letters, digits, -, _, + and . make one"
    )]
    LocalVersion {
        /// What was asked for.
        suffix: String,
        /// Bytes at most.
        max: usize,
    },
    /// A line of a variant or fragment means nothing.
    #[error("{}, line {line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// A file cannot be read.
    #[error("Cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or directory cannot be written.
    #[error("Cannot write {}", .path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nobody has the source.
    #[error(
        "The source of Linux {series} is missing: there is no {}. Install the package linux-source-{series} (make setup \
         does), or name a tarball by --source (KERNEL_SOURCE= for make)", .path.display()
    )]
    NoSource {
        /// Which Linux.
        series: String,
        /// Where the distribution's package has it.
        path: PathBuf,
    },
    /// There is no archive to look into.
    #[error(
        "The source is in the package {package} of Debian's {suite}, and apt knows no archive of Debian here: run apt-get \
         update if this is one, or name a tarball by --source (UM_KERNEL_SOURCE= for make)"
    )]
    NoArchive {
        /// The package.
        package: String,
        /// Of which suite.
        suite: String,
    },
    /// The archive does not give the package.
    #[error(
        "{package} of Debian's {suite} cannot be downloaded from {archive}: {reason} ({}). Try again, or name a tarball by \
         --source (UM_KERNEL_SOURCE= for make)", .log.display()
    )]
    Download {
        /// The package.
        package: String,
        /// Of which suite.
        suite: String,
        /// The archive that was asked.
        archive: String,
        /// What apt says, in a line.
        reason: String,
        /// The file with all that apt says.
        log: PathBuf,
    },
    /// The package has another release by now, for which our changes were not made.
    #[error(
        "Our patches were made for Linux {tried}, and do not fit {found} in {}: name a tarball of {tried} by --source \
         (UM_KERNEL_SOURCE= for make)", .tarball.display()
    )]
    Unfit {
        /// The release that the variant was made with.
        tried: String,
        /// The release that the tarball has.
        found: String,
        /// The tarball.
        tarball: PathBuf,
        /// Which patch does not fit, and where.
        source: Box<Error>,
    },
    /// What was downloaded is not what the variant names.
    #[error("{url} has the SHA-256 {found}, not {expected}: it was removed")]
    Damaged {
        /// From where.
        url: String,
        /// What the variant says.
        expected: String,
        /// What it has.
        found: String,
    },
    /// A kernel in the cache is not what was built.
    #[error("The kernel in {} was changed since it was built: remove that directory, and it is built again", .path.display())]
    Changed {
        /// Its directory.
        path: PathBuf,
    },
    /// A tarball holds another Linux than the variant wants.
    #[error(
        "{} holds Linux {found}, and the variant is for {series}: name another tarball, or change the variant's series",
        .tarball.display()
    )]
    Series {
        /// The tarball.
        tarball: PathBuf,
        /// What the variant wants.
        series: String,
        /// What the tarball is.
        found: String,
    },
    /// What a build needs is not installed.
    #[error(
        "Building a kernel needs {}: make setup installs it, or apt-get install {}",
        .missing.join(", "), .packages.join(" ")
    )]
    Tools {
        /// The tools and headers.
        missing: Vec<&'static str>,
        /// The packages of Debian that have them.
        packages: Vec<&'static str>,
    },
    /// A program cannot be started or followed.
    #[error("Cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program failed.
    #[error("{what} failed. The end of {}:\n{tail}", .log.display())]
    Failed {
        /// What was being done.
        what: String,
        /// The file with all of its output.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// Kconfig does not give what the fragments ask for.
    #[error(
        "The kernel {variant} would not be what its fragments ask for:\n  {}\nEach lacks something it depends on, or \
         something else selects it", .lost.join("\n  ")
    )]
    Lost {
        /// Which kernel.
        variant: String,
        /// The options, a line each.
        lost: Vec<String>,
    },
}

impl Error {
    /// Whether all that is missing is a source that can be built: nothing that was asked for is wrong, but nobody has one
    /// here and now.
    pub fn is_without_source(&self) -> bool {
        matches!(
            self,
            Self::NoSource { .. }
                | Self::NoArchive { .. }
                | Self::Download { .. }
                | Self::Unfit { .. }
        )
    }

    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        Self::Read { path, source }
    }

    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        Self::Write { path, source }
    }
}
