//! The writable layer of a container: a sparse ext4 file with the two directories an overlay wants.
//!
//! The file is as large as the container may ever write, and takes on the host what has been written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mkext4::{FsBuilder, Meta, Options, ROOT};

use crate::geometry::{self, MIN_JOURNAL};
use crate::sparse::SparseFile;

/// The size that a container's layer has unless somebody asks for another, in bytes.
///
/// Formatting takes 25 µs for each 128 MiB (the checksums of its bitmaps): 2 ms for this, 14 ms for 64 GiB.
pub const DEFAULT_SIZE: u64 = 10 << 30;

/// The smallest layer, in bytes.
pub const MIN_SIZE: u64 = geometry::MIN_SIZE;

/// The largest layer, in bytes.
pub const MAX_SIZE: u64 = geometry::MAX_SIZE;

/// Where the overlay's upper directory is in the layer.
pub const UPPER: &str = "upper";

/// Where the overlay's work directory is in the layer.
pub const WORK: &str = "work";

/// What a layer that outlives its VM has for a journal, in blocks: 16 MiB. The kernel writes it round and round, so
/// in the end all of it takes space on the host; more would only help a container that makes very many files at once.
const JOURNAL: u32 = 4096;

/// The layer's file system identifies itself by this: nothing looks for it by name, so it need not be unique.
const UUID: [u8; 16] = *b"vmm writable \x80\0\x01";

/// Why there is no writable layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A size that ext4 cannot have here.
    #[error("A writable layer of {size} bytes is not possible: {MIN_SIZE} to {MAX_SIZE} are")]
    Size {
        /// The size that was asked for, in bytes.
        size: u64,
    },
    /// The formatter refused.
    #[error("Cannot format {}", .path.display())]
    Format {
        /// The layer.
        path: PathBuf,
        /// Why not.
        source: mkext4::Error,
    },
    /// The file could not be made.
    #[error("Cannot create {}", .path.display())]
    Create {
        /// The layer.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Creates the file `path`, mode 0600, with an empty layer of `size` bytes, rounded up to what
/// ext4 can be.
///
/// A layer that is `ephemeral` dies with its VM. It has the smallest journal there is, for a guest that mounts it with
/// `noload`, and so without any: nobody will recover it. All others have a journal, since a container may be killed at
/// any moment and started again.
///
/// The file is not synced: until the guest first syncs it, a power cut may lose it, as it may lose the directory it is in.
///
/// # Errors
/// The size is out of bounds, `path` exists or cannot be written; nothing is left then.
pub fn create(path: &Path, size: u64, ephemeral: bool) -> Result<(), Error> {
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(Error::Size { size });
    }
    let size = geometry::round_up(size);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::Create {
            path: path.to_path_buf(),
            source,
        })?;
    format(&file, size, ephemeral).map_err(|error| {
        // The error that is on its way says more than one of the removal would.
        let _ = std::fs::remove_file(path);
        let path = path.to_path_buf();
        match error {
            mkext4::Error::Io(source) => Error::Create { path, source },
            source => Error::Format { path, source },
        }
    })
}

fn format(file: &File, size: u64, ephemeral: bool) -> mkext4::Result<()> {
    let mut options = Options::new(size, UUID, 0);
    options.journal_blocks = Some(match ephemeral || size < 64 << 20 {
        true => MIN_JOURNAL,
        false => JOURNAL,
    });
    // Root in the container may use all of it: it would gain nothing from a reserve of its own.
    options.reserved_percent = 0;
    let mut builder = FsBuilder::new(options)?;
    let meta = Meta::new(0o755, 0, 0, (0, 0));
    builder.mkdir(ROOT, UPPER, meta)?;
    builder.mkdir(ROOT, WORK, meta)?;
    let layout = builder.seal()?;
    let sink = SparseFile::new(file, layout.image_len())?;
    layout.writer(sink)?.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, e2fsck};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_layer_is_sound_sparse_and_holds_two_empty_directories() {
        let folder = Folder::new("writable");
        for (size, ephemeral) in [
            (MIN_SIZE, false),
            (MIN_SIZE, true),
            (100 << 20, false),
            (DEFAULT_SIZE, false),
            (DEFAULT_SIZE, true),
            (64 << 30, false),
        ] {
            let path = folder.path().join(format!("{size}-{ephemeral}"));
            create(&path, size, ephemeral).unwrap();
            let metadata = std::fs::metadata(&path).unwrap();
            assert_eq!(metadata.len(), size);
            assert_eq!(metadata.mode() & 0o777, 0o600);
            let allocated = metadata.blocks() * 512;
            assert!(allocated <= 4 << 20, "{size}: {allocated} bytes allocated");
            e2fsck(&path);

            let image = File::open(&path).unwrap();
            let image = mkext4::reader::Fs::open(image).unwrap();
            for name in [UPPER, WORK] {
                let inode = image.resolve(&format!("/{name}")).unwrap();
                assert_eq!(image.inode(inode).unwrap().mode, 0o040_755);
                assert_eq!(image.read_dir(inode).unwrap().len(), 2);
            }
        }
    }

    #[test]
    fn sizes_out_of_bounds_are_refused_and_leave_nothing() {
        let folder = Folder::new("writable-size");
        let path = folder.path().join("rw.ext4");
        for size in [0, 1, MIN_SIZE - 1, MAX_SIZE + 1, u64::MAX] {
            let error = create(&path, size, false).unwrap_err();
            assert!(matches!(error, Error::Size { .. }), "{error}");
        }
        assert!(folder.names().is_empty());
    }

    #[test]
    fn odd_sizes_are_rounded_up_and_the_largest_is_possible() {
        let folder = Folder::new("writable-odd");
        let path = folder.path().join("rw.ext4");
        // A last block group of every awkward length.
        for size in [
            MIN_SIZE + 1,
            (128 << 20) + 4096,
            (1 << 30) + (3 << 20),
            MAX_SIZE,
        ] {
            create(&path, size, false).unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            assert_eq!(length, geometry::round_up(size));
            if size < MAX_SIZE {
                e2fsck(&path);
            }
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn an_existing_file_is_left_alone() {
        let folder = Folder::new("writable-exists");
        let path = folder.path().join("rw.ext4");
        std::fs::write(&path, b"a container's data").unwrap();
        assert!(create(&path, MIN_SIZE, false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a container's data");
    }
}
