//! Kernels: from the fragments of `kernel-config/` to a `vmlinux`, and a cache that has it the second time.
//!
//! The cache is shared by all working trees of a user:
//!
//! ```text
//! kernel/download/           tarballs that no installed package has
//! kernel/hashes/             the SHA-256 of each tarball that was seen
//! kernel/source/<sha256>/    an unpacked tarball, patched; the last few
//! kernel/build/<variant>/    object files, by which a changed option costs less than everything
//! kernel/built/<sha256>/     vmlinux and config, by everything that they depend on, and their hashes
//! ```
//!
//! What was built is found without make, so asking for it again takes milliseconds.

mod build;
mod child;
mod download;
mod error;
mod fragment;
mod lock;
mod package;
mod patches;
mod source;
mod toolchain;
mod tree;
mod variant;

pub use error::Error;
pub use fragment::{Options, Wanted};
pub use patches::Patches;
pub use variant::{Arch, Package, Release, Variant};

use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use crate::atomic;
use crate::hashes::Hashes;
use crate::manifest::Origin;
use crate::progress::Progress;
use crate::sha256;
use build::Build;
use source::Source;
use tree::Tree;

/// Changes whenever this module makes other kernels of the same input.
const RECIPE: u32 = 1;

/// The longest local version, in bytes: a release has at most 64, and the number takes some.
const MAX_LOCAL_VERSION: usize = 32;

/// The file with the hashes of the others.
const HASHES: &str = "sha256sums";

/// The longest release, in bytes: that of `uname`.
const MAX_RELEASE: usize = 65;

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

/// Builds a kernel, unless the cache has it, and writes it to where it is wanted, unless it is there. Gives what it was
/// made of.
///
/// # Errors
/// The variant is malformed, its source or a tool is missing, an option does not survive, or the build fails.
pub fn build(request: &Request, progress: &Progress) -> Result<Origin, Error> {
    check_local_version(&request.local_version)?;
    let variant = Variant::read(&request.config_directory, &request.variant)?;
    // make runs elsewhere.
    let cache = std::path::absolute(&request.cache)
        .map_err(|source| Error::write(&request.cache, source))?
        .join("kernel");
    let source = Source::find(request.source.as_deref(), &variant, &cache, progress)?;
    let mut toolchain = toolchain::identify()?;
    if variant.arch == Arch::Um {
        toolchain += &toolchain::identify_library(&Hashes::new(cache.join("hashes")))?;
    }
    let key = key(&variant, &source, &request.local_version, &toolchain);
    let built = cache.join("built").join(key);
    if !built.exists() {
        toolchain::check()?;
        let tree = source.unpack(&variant, &cache, progress)?;
        let builds = cache.join("build");
        let build = Build::open(&builds, &variant, tree.path(), &source.identity, progress)?;
        // Somebody may have built it while we waited.
        if !built.exists() {
            let kernel = build.run(&request.local_version, request.jobs, progress)?;
            Files::read(&kernel.directory)?.seal(&kernel.directory)?;
            keep(&kernel.directory, &built).map_err(|source| Error::write(&built, source))?;
        }
    }
    let files = Files::read(&built)?;
    files.check(&built)?;
    let config = request.out.with_file_name("config");
    // One that is a program is executed as it is.
    let write_kernel = match variant.arch {
        Arch::X86_64 => atomic::update,
        Arch::Um => atomic::update_program,
    };
    publish(&files.kernel, &request.out, write_kernel)?;
    publish(&files.config, &config, atomic::update)?;
    Ok(origin(&variant, &source, &toolchain, &files))
}

/// What is kept of a kernel.
struct Files {
    kernel: Vec<u8>,
    config: Vec<u8>,
}

impl Files {
    fn read(directory: &Path) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(|source| Error::read(&path, source))
        };
        Ok(Self {
            kernel: read("vmlinux")?,
            config: read("config")?,
        })
    }

    /// Writes down what they are.
    fn seal(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(HASHES);
        atomic::write(&path, self.hashes().as_bytes()).map_err(|source| Error::write(&path, source))
    }

    /// Whether they are what was built.
    fn check(&self, directory: &Path) -> Result<(), Error> {
        match std::fs::read_to_string(directory.join(HASHES)) {
            Ok(hashes) if hashes != self.hashes() => Err(Error::Changed {
                path: directory.to_path_buf(),
            }),
            // It was built before there were any hashes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.seal(directory),
            Err(source) => Err(Error::read(&directory.join(HASHES), source)),
            Ok(_) => Ok(()),
        }
    }

    /// As `sha256sum` writes and checks them.
    fn hashes(&self) -> String {
        let (kernel, config) = (sha256::of(&self.kernel), sha256::of(&self.config));
        format!("{kernel}  vmlinux\n{config}  config\n")
    }
}

/// What a kernel and its configuration were made of.
fn origin(variant: &Variant, source: &Source, toolchain: &str, files: &Files) -> Origin {
    let mut origin = Origin {
        name: variant.name.clone(),
        sha256: sha256::of(&files.kernel),
        inputs: source.origins(),
        ..Origin::default()
    };
    let config = Origin::of_known(Path::new("config"), sha256::of(&files.config));
    origin.inputs.push(config);
    let versions = &mut origin.versions;
    versions.extend(release(&files.kernel).map(|release| ("release".to_owned(), release)));
    for (program, version) in ["gcc", "ld"].iter().zip(toolchain.lines()) {
        versions.insert((*program).to_owned(), version.to_owned());
    }
    origin
}

/// What the kernel says its release is, in its `linux_banner`.
fn release(kernel: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"Linux version ";
    let at = kernel
        .windows(BEFORE.len())
        .position(|part| part == BEFORE)?;
    let rest = &kernel[at + BEFORE.len()..];
    let end = rest
        .iter()
        .take(MAX_RELEASE)
        .position(|&byte| byte == b' ')?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

/// What `request` was to write goes away, as there is nothing to write: an older kernel would be taken for a new one.
///
/// # Errors
/// It cannot be removed.
pub fn forget(request: &Request) -> Result<(), Error> {
    let config = request.out.with_file_name("config");
    for path in [&request.out, &config] {
        source::remove(path).map_err(|source| Error::write(path, source))?;
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

/// Writes a file of the cache to where it is wanted, unless it is there. A copy, not a link: whoever changes it would
/// change the cache.
fn publish(
    content: &[u8],
    to: &Path,
    write: fn(&Path, &[u8]) -> io::Result<()>,
) -> Result<(), Error> {
    let parent = to.parent().map_or(Ok(()), std::fs::create_dir_all);
    parent
        .and_then(|()| write(to, content))
        .map_err(|source| Error::write(to, source))
}

#[cfg(test)]
mod tests;
