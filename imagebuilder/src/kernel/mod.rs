//! Kernels: from the fragments of `kernel-config/` to a `vmlinux`, and a cache that has it the second time.
//!
//! The cache is shared by all working trees of a user:
//!
//! ```text
//! kernel/download/           tarballs that no package has
//! kernel/hashes/             the SHA-256 of each tarball that was seen
//! kernel/source/<sha256>/    an unpacked tarball, patched
//! kernel/build/<variant>/    object files, by which a changed option costs less than everything
//! kernel/built/<sha256>/     vmlinux and config, by everything that they depend on
//! ```
//!
//! What was built is found without make, so asking for it again takes milliseconds.

mod build;
mod child;
mod download;
mod error;
mod fragment;
mod lock;
mod patches;
mod source;
mod toolchain;
mod variant;

pub use error::Error;
pub use fragment::{Options, Wanted};
pub use patches::Patches;
pub use variant::{Arch, Release, Variant};

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use crate::atomic;
use crate::progress::Progress;
use crate::sha256;
use build::Build;
use source::Source;

/// Changes whenever this module makes other kernels of the same input.
const RECIPE: u32 = 1;

/// The longest local version, in bytes: a release has at most 64, and the number takes some.
const MAX_LOCAL_VERSION: usize = 32;

/// A kernel that somebody wants.
#[derive(Debug, Clone)]
pub struct Request {
    /// The directory of fragments and variants.
    pub config_directory: PathBuf,
    /// The name of the variant.
    pub variant: String,
    /// The tarball of the source, instead of the distribution's.
    pub source: Option<PathBuf>,
    /// What is appended to the kernel's release, as in `6.12.1-second`.
    pub local_version: String,
    /// How many compilers run at once.
    pub jobs: NonZero<usize>,
    /// The directory of the cache.
    pub cache: PathBuf,
    /// The file to write; `config`, the complete configuration, is written beside it.
    pub out: PathBuf,
}

/// Builds a kernel, unless the cache has it, and writes it to where it is wanted, unless it is there.
///
/// # Errors
/// The variant is malformed, its source or a tool is missing, an option does not survive, or the build fails.
pub fn build(request: &Request, progress: &Progress) -> Result<(), Error> {
    check_local_version(&request.local_version)?;
    let variant = Variant::read(&request.config_directory, &request.variant)?;
    // make runs elsewhere.
    let cache = std::path::absolute(&request.cache)
        .map_err(|source| Error::write(&request.cache, source))?
        .join("kernel");
    let source = Source::find(request.source.as_deref(), &variant, &cache, progress)?;
    let key = key(
        &variant,
        &source,
        &request.local_version,
        &toolchain::identify()?,
    );
    let built = cache.join("built").join(key);
    if !built.exists() {
        toolchain::check()?;
        let tree = source.unpack(&variant.series, &cache, progress)?;
        let builds = cache.join("build");
        let build = Build::open(&builds, &variant, &tree, &source.identity, progress)?;
        // Somebody may have built it while we waited.
        if !built.exists() {
            let kernel = build.run(&request.local_version, request.jobs, progress)?;
            keep(&kernel.directory, &built).map_err(|source| Error::write(&built, source))?;
        }
    }
    let config = request.out.with_file_name("config");
    for (name, out) in [("vmlinux", &request.out), ("config", &config)] {
        publish(&built.join(name), out).map_err(|source| Error::write(out, source))?;
    }
    Ok(())
}

fn check_local_version(suffix: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_+.".contains(&b);
    if suffix.len() > MAX_LOCAL_VERSION || !suffix.bytes().all(allowed) {
        let (suffix, max) = (suffix.to_owned(), MAX_LOCAL_VERSION);
        return Err(Error::LocalVersion { suffix, max });
    }
    Ok(())
}

/// The name of a kernel in the cache: a hash of everything that its bytes depend on.
fn key(variant: &Variant, source: &Source, local_version: &str, toolchain: &str) -> String {
    let arch = variant.arch.name();
    let options = variant.options.to_config();
    let text = format!(
        "recipe {RECIPE}\nsource {}\narch {arch}\nlocal version {local_version}\n{toolchain}{options}",
        source.identity
    );
    sha256::of(text)
}

/// Moves the directory `from` to `to`, its name in the cache.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    let parent = to.parent().unwrap_or(to);
    std::fs::create_dir_all(parent)?;
    match std::fs::rename(from, to) {
        // Another variant asks for the very same options, and was faster.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) => Err(error),
        Ok(()) => atomic::sync_directory(parent),
    }
}

/// Copies `from` to `to`, unless that has the same content. A copy, not a link: whoever changes it would change the
/// cache.
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    if same(from, to)? {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut writer = atomic::Writer::create(to)?;
    io::copy(&mut File::open(from)?, &mut writer)?;
    writer.flush()?;
    writer.commit()
}

fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let b = match File::open(b) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let a = File::open(a)?;
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let mut contents = [Vec::new(), Vec::new()];
    for (mut file, content) in [a, b].into_iter().zip(&mut contents) {
        file.read_to_end(content)?;
    }
    Ok(contents[0] == contents[1])
}

#[cfg(test)]
mod tests;
