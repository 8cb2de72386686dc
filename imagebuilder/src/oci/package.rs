//! What an image comes in: a directory, an archive of one, or an archive that is itself the root file system.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::blob::Verifier;
use super::compression::{decompress, is_compressed};
use super::{BlobError, Digest, Error, Layer, MAX_DOCUMENT};
use crate::progress::Step;
use crate::spool::{Spool, Window};
use crate::tarball::{self, Kind, Reader};

/// Where the blobs of a layout are.
const BLOBS: &str = "blobs/sha256/";

/// What else is read of an archive, and what tells a kind of archive that is not read.
const LAYOUT_FILES: [&str; 3] = ["oci-layout", "index.json", "manifest.json"];

/// Names of which a root file system has at least one at its top.
const ROOT_NAMES: [&str; 4] = ["bin", "etc", "sbin", "usr"];

/// The most files that a layout in an archive may have.
const MAX_FILES: usize = 100_000;

/// An opened package.
#[derive(Debug)]
pub struct Package(Form);

#[derive(Debug)]
enum Form {
    Directory(PathBuf),
    Archive(Archive),
}

#[derive(Debug)]
struct Archive {
    file: File,
    /// Where in the file it lies.
    range: Range<u64>,
    /// Where each file of a layout is, by its path.
    files: HashMap<String, Range<u64>>,
    /// Whether it has what a root file system has at its top.
    looks_like_root: bool,
}

/// One file of a package.
struct Blob<'a> {
    size: u64,
    source: Source<'a>,
}

enum Source<'a> {
    File(File),
    Archived(Window<'a>),
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Archived(window) => window.read(buffer),
        }
    }
}

impl Package {
    /// Opens the directory or archive at `path`. An archive that is compressed, or no regular file, is put into the spool.
    ///
    /// # Errors
    /// It cannot be read, or is no archive.
    pub fn open(path: &Path, spool: &mut Spool) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Read {
            path: path.to_path_buf(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            return Ok(Self(Form::Directory(path.to_path_buf())));
        }
        let mut file = File::open(path).map_err(failed)?;
        let mut start = [0; 4];
        if metadata.is_file() {
            let count = Window::new(&file, 0..4).read(&mut start).map_err(failed)?;
            if count == 0 {
                return Err(Error::NotAnImage {
                    reason: "it is empty; give what docker save made",
                });
            }
            if let Some(with) = foreign_compression(&start) {
                return Err(Error::Compression { with });
            }
            if !is_compressed(&start[..count]) {
                return Archive::open(file, 0..metadata.len());
            }
        }
        let unpacked = decompress(&mut file).and_then(|source| spool.append(source, |_| ()));
        let range = unpacked.map_err(|error| match is_systems(&error) {
            true => Error::Spool(error),
            false => Error::Unpack(error),
        })?;
        let file = spool.file().try_clone().map_err(Error::Spool)?;
        Archive::open(file, range)
    }

    /// The layer that the whole archive is, if it is no package of images but a root file system.
    pub(super) fn root_file_system(&self) -> Option<Layer> {
        let Form::Archive(archive) = &self.0 else {
            return None;
        };
        let (path, range) = archive.files.iter().next()?;
        let digest = format!("sha256:{}", path.strip_prefix(BLOBS)?);
        let digest: Digest = digest.parse().ok()?;
        (*range == archive.range).then(|| Layer {
            size: range.end - range.start,
            diff_id: digest.clone(),
            digest,
        })
    }

    /// A document at a fixed place in the layout, if it is there.
    pub(super) fn document(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let failed = |source| Error::Read {
            path: self.place(path),
            source,
        };
        let Some(file) = self.file(path).map_err(failed)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let mut bounded = file.source.take(MAX_DOCUMENT + 1);
        bounded.read_to_end(&mut bytes).map_err(failed)?;
        match bytes.len() as u64 <= MAX_DOCUMENT {
            true => Ok(Some(bytes)),
            false => Err(failed(io::ErrorKind::FileTooLarge.into())),
        }
    }

    /// A document among the blobs.
    pub(super) fn blob_document(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, Error> {
        let read = || {
            if size > MAX_DOCUMENT {
                return Err(BlobError::TooLarge { size });
            }
            let mut verifier = Verifier::new(self.blob(digest, size)?);
            let mut bytes = Vec::new();
            let mut bounded = verifier.by_ref().take(MAX_DOCUMENT);
            bounded.read_to_end(&mut bytes).map_err(BlobError::Read)?;
            verifier.finish(digest)?;
            Ok(bytes)
        };
        read().map_err(|source| Error::Blob {
            digest: digest.to_string(),
            source,
        })
    }

    /// Unpacks the layer into the spool, and checks it before and after.
    ///
    /// # Errors
    /// The layer is missing or damaged, or the spool is full.
    pub fn layer(
        &self,
        layer: &Layer,
        spool: &mut Spool,
        step: &Step,
    ) -> Result<Range<u64>, Error> {
        let Layer {
            digest,
            size,
            diff_id,
        } = layer;
        let mut unpack = || {
            let mut verifier = Verifier::new(self.blob(digest, *size)?);
            let mut hash = Sha256::new();
            let unpacked = decompress(Advancing(&mut verifier, step))
                .and_then(|source| spool.append(source, |piece| hash.update(piece)));
            // Of damaged content, decompression fails before its digest is known: this says better what is wrong.
            verifier.finish(digest)?;
            let range = unpacked.map_err(|error| match is_systems(&error) {
                true => BlobError::Spool(error),
                false => BlobError::Unpack(error),
            })?;
            match Digest::from_hash(hash) == *diff_id {
                true => Ok(range),
                false => Err(BlobError::DiffId {
                    expected: diff_id.to_string(),
                }),
            }
        };
        unpack().map_err(|source| Error::Blob {
            digest: digest.to_string(),
            source,
        })
    }

    fn blob(&self, digest: &Digest, size: u64) -> Result<Source<'_>, BlobError> {
        let path = format!("{BLOBS}{}", digest.hex());
        let blob = self.file(&path).map_err(BlobError::Read)?;
        let blob = blob.ok_or(BlobError::Missing)?;
        match blob.size == size {
            true => Ok(blob.source),
            false => Err(BlobError::Size {
                expected: size,
                found: blob.size,
            }),
        }
    }

    /// The file at `path` in the layout, if there is one.
    fn file(&self, path: &str) -> io::Result<Option<Blob<'_>>> {
        match &self.0 {
            Form::Directory(directory) => {
                // What looks like a directory of files may hold a pipe: do not wait for somebody to write into it.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file: File = match open(directory.join(path), flags, Mode::empty()) {
                    Ok(descriptor) => descriptor.into(),
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                    Err(error) => return Err(error.into()),
                };
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::other("It is not a regular file"));
                }
                Ok(Some(Blob {
                    size: metadata.len(),
                    source: Source::File(file),
                }))
            }
            Form::Archive(Archive { file, files, .. }) => Ok(files.get(path).map(|range| Blob {
                size: range.end - range.start,
                source: Source::Archived(Window::new(file, range.clone())),
            })),
        }
    }

    /// Whether the archive is one as `docker save` wrote them before it knew the layout of OCI.
    pub(super) fn is_old_docker_archive(&self) -> bool {
        matches!(self.file("manifest.json"), Ok(Some(_)))
    }

    fn place(&self, path: &str) -> PathBuf {
        match &self.0 {
            Form::Directory(directory) => directory.join(path),
            Form::Archive(_) => path.into(),
        }
    }
}

/// Whether an error is one of the spool or a system call, and not of a decompressor.
fn is_systems(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || error.kind() == io::ErrorKind::FileTooLarge
}

/// By what an archive is compressed, if we cannot undo that.
fn foreign_compression(start: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 2] = [(b"\xfd7zX", "xz"), (b"BZh", "bzip2")];
    let found = known.iter().find(|(magic, _)| start.starts_with(magic));
    found.map(|(_, name)| *name)
}

/// Tells a step of what is read.
struct Advancing<'a, R>(R, &'a Step);

impl<R: Read> Read for Advancing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.advance(count as u64);
        Ok(count)
    }
}

impl Archive {
    /// Finds out what lies at `range` of `file`.
    fn open(file: File, range: Range<u64>) -> Result<Package, Error> {
        let mut archive = Self {
            file,
            range,
            files: HashMap::new(),
            looks_like_root: false,
        };
        archive.index()?;
        let has = |name: &str| archive.files.contains_key(name);
        if archive.looks_like_root && !has("oci-layout") && !has("manifest.json") {
            // All of it is the only layer of an image, as if it lay in a layout under its digest.
            let mut verifier = Verifier::new(Window::new(&archive.file, archive.range.clone()));
            io::copy(&mut verifier, &mut io::sink()).map_err(Error::Spool)?;
            let path = format!("{BLOBS}{}", verifier.digest().hex());
            archive.files = HashMap::from([(path, archive.range.clone())]);
        }
        Ok(Package(Form::Archive(archive)))
    }

    /// Finds the files of a layout. Of two with the same path, the last counts, as if it had been extracted.
    fn index(&mut self) -> Result<(), Error> {
        let mut reader = Reader::new(&self.file, self.range.clone());
        let not_read = |error| match error {
            tarball::Error::Header { at: 0, .. } | tarball::Error::Truncated { at: 0 } => {
                Error::NotAnArchive(error)
            }
            error => Error::Archive(error),
        };
        while let Some(entry) = reader.next_entry().map_err(not_read)? {
            let path = String::from_utf8_lossy(&entry.path);
            let path = path.trim_start_matches("./").trim_start_matches('/');
            let top = path.split('/').next().unwrap_or_default();
            self.looks_like_root |= ROOT_NAMES.contains(&top);
            if entry.kind == Kind::File && (LAYOUT_FILES.contains(&path) || top == "blobs") {
                self.files.insert(path.to_owned(), entry.content);
            }
            if self.files.len() > MAX_FILES {
                return Err(Error::NotAnImage {
                    reason: "there are more than 100,000 blobs in it",
                });
            }
        }
        Ok(())
    }
}
