//! Writes a tree as an ext4 file system, for a guest to mount read-only.
//!
//! The tree lies in the directory [`ROOT_DIRECTORY`] of the file system, since the file system's own root also holds
//! `lost+found`, which is no part of any image. Every byte follows from the tree and the seed.

mod acl;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;

use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Options, SpecialKind};
use sha2::{Digest, Sha256};

use crate::geometry::{self, BLOCK, MIN_JOURNAL};
use crate::progress::Step;
use crate::sparse::SparseFile;
use crate::spool::Spool;
use crate::text::printable;
use crate::tree::{Inode, Kind, Meta, Tree};

/// The directory of the file system that is the image's root.
pub const ROOT_DIRECTORY: &str = "rootfs";

/// The number of what a guest must know to mount a root image: where in it the root is.
pub const LAYOUT: u32 = 1;

/// What decides on the bytes of a root image: the formatter, and what is done with it.
pub const WRITER: &str = "mkext4 0.0.3, 1";

/// Extended attributes of one inode fit into one block and what is left of the inode; this many bytes always do.
const MAX_XATTRS: usize = 3900;

/// The formatter keeps every block of names, attributes and long link targets in memory: 1 GiB of them at most.
const MAX_RENDERED: u64 = (1 << 30) / BLOCK;

/// How often the file system is made larger when its estimated size proves too small.
const ATTEMPTS: u32 = 6;

/// ext4's `EXT4_LINK_MAX`.
const MAX_LINKS: usize = 65_000;

/// The seconds that an ext4 inode can hold: 34 bits from 1901 on.
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

/// Why a tree is not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// ext4, or its formatter, cannot hold an entry.
    #[error("Entry {} cannot be stored: {reason}", printable(.path))]
    Entry {
        /// Its path.
        path: Vec<u8>,
        /// What is in the way.
        reason: &'static str,
    },
    /// The tree is larger than any file system that is made.
    #[error(
        "The image unpacks to more than the 1 TiB that its file system can have here; make it smaller"
    )]
    TooLarge,
    /// It would take too much memory to write.
    #[error(
        "The image has more directories, long links and extended attributes than are accepted; put what is in them into archives"
    )]
    TooIntricate,
    /// The formatter refused.
    #[error("Cannot format the root image")]
    Format(#[source] mkext4::Error),
    /// The image's file cannot be written.
    #[error("Cannot write the root image")]
    Write(#[source] io::Error),
}

/// Writes `tree`, whose files' content lies in `spool`, to the empty file `out`. The bytes depend on `seed` too, from
/// which the file system takes its UUID. The caller syncs the file.
///
/// # Errors
/// An entry cannot be stored, or the file cannot be written.
pub fn write(tree: &Tree, spool: &Spool, seed: &str, out: &File, step: &Step) -> Result<(), Error> {
    let (layout, files) = lay_out(tree, seed)?;
    let sink = SparseFile::new(out, layout.image_len()).map_err(Error::Write)?;
    let mut writer = layout.writer(sink).map_err(from_formatter)?;
    for (handle, content) in files {
        let length = content.end - content.start;
        writer
            .fill(handle, &mut spool.read(content))
            .map_err(from_formatter)?;
        step.advance(length);
    }
    writer.finish().map_err(from_formatter)?;
    Ok(())
}

/// How many bytes of file content there are in `tree`: what [`write`] advances its step by, in sum.
pub fn content_size(tree: &Tree) -> u64 {
    let mut seen = HashSet::new();
    tree.walk()
        .filter(|name| seen.insert(name.inode))
        .map(|name| match &tree.node(name.inode).kind {
            Kind::File(content) => content.end - content.start,
            _ => 0,
        })
        .sum()
}

/// Files to fill, in the order of their data, and with which bytes of the spool.
type Files = Vec<(InodeHandle, std::ops::Range<u64>)>;

/// Decides where everything goes, in the smallest file system that has room.
fn lay_out(tree: &Tree, seed: &str) -> Result<(Layout, Files), Error> {
    let mut needs = Needs::of(tree);
    if needs.rendered > MAX_RENDERED {
        return Err(Error::TooIntricate);
    }
    let mut attempt = 0;
    loop {
        let size = needs.size().ok_or(Error::TooLarge)?;
        let (builder, files) = declare(tree, options(seed, size, needs.inodes))?;
        match builder.seal() {
            Ok(layout) => return Ok((layout, files)),
            // The formatter does not tell a lack of room from other errors; more room cures no other.
            Err(mkext4::Error::Invalid(_)) if attempt < ATTEMPTS => {
                attempt += 1;
                needs.blocks += needs.blocks / 4 + 256;
            }
            Err(error) => return Err(Error::Format(error)),
        }
    }
}

fn options(seed: &str, size: u64, inodes: u32) -> Options {
    let hash = Sha256::digest(format!("root image {seed}"));
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    // RFC 9562: version 8 (whatever its maker likes), variant 1.
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    let mut options = Options::new(size, uuid, 0);
    options.inodes = InodeCount::Exact(inodes);
    options.reserved_percent = 0;
    // Nobody writes to it, but the formatter makes a journal always. Guests mount with `noload` and never look at it.
    options.journal_blocks = Some(MIN_JOURNAL);
    options
}

/// What a tree takes, from above.
struct Needs {
    /// Blocks of any kind but inodes and the file system's own.
    blocks: u64,
    /// Those of them that are kept in memory.
    rendered: u64,
    inodes: u32,
}

impl Needs {
    fn of(tree: &Tree) -> Self {
        // The first ten are reserved, then lost+found and the image's root.
        let mut inodes = 12_u32;
        let mut rendered = 64;
        let mut data = u64::from(MIN_JOURNAL);
        let mut entries: HashMap<Inode, u64> = HashMap::new();
        let mut seen = HashSet::new();
        for name in tree.walk() {
            *entries.entry(name.directory).or_default() += 12 + name.name.len() as u64;
            if !seen.insert(name.inode) {
                continue;
            }
            inodes = inodes.saturating_add(1);
            let node = tree.node(name.inode);
            rendered += u64::from(!node.xattrs.is_empty());
            match &node.kind {
                Kind::File(content) => {
                    let blocks = (content.end - content.start).div_ceil(BLOCK);
                    // An extent covers 128 MiB where it can; four of them fit into the inode.
                    data += blocks + blocks / 1024;
                }
                Kind::Directory(_) => rendered += 1,
                Kind::Symlink(target) if target.len() > 59 => rendered += 1,
                _ => {}
            }
        }
        // Blocks of names are at least half full, and a large directory has an index.
        rendered += entries
            .values()
            .map(|bytes| bytes.div_ceil(BLOCK / 2) + bytes / (BLOCK * 100))
            .sum::<u64>();
        Self {
            blocks: data + rendered,
            rendered,
            inodes,
        }
    }

    /// The size of a file system for it, in bytes.
    fn size(&self) -> Option<u64> {
        let table = u64::from(self.inodes).div_ceil(16);
        let content = self.blocks.checked_add(table)?;
        // Each group of 32,768 blocks has two bitmaps and rounds its inodes up to a block; some have a copy of the
        // group descriptors.
        let groups = content / 32_000 + 1;
        let overhead = groups * 4 + groups * groups.div_ceil(128) / 8 + 64;
        let size = content.checked_add(overhead)?.checked_mul(BLOCK)?;
        let size = match self.inodes > 30_000 {
            true => size.max(geometry::room_for_inodes(self.inodes)),
            // One group has room for them, and need not be whole.
            false => size,
        };
        (size <= geometry::MAX_SIZE).then(|| geometry::round_up(size))
    }
}

/// Tells the formatter of every inode and name, and says which files are to be filled with what, in which order.
fn declare(tree: &Tree, options: Options) -> Result<(FsBuilder, Files), Error> {
    let mut builder = FsBuilder::new(options).map_err(Error::Format)?;
    let mut files = Files::new();
    let root = tree.node(Tree::ROOT);
    let handle = builder
        .mkdir(mkext4::ROOT, ROOT_DIRECTORY, meta(&root.meta))
        .map_err(Error::Format)?;
    // What each inode is called there, and how many names it has.
    let mut known: HashMap<Inode, (InodeHandle, usize)> = HashMap::new();
    known.insert(Tree::ROOT, (handle, 1));
    set_xattrs(&mut builder, tree, Tree::ROOT, handle).map_err(|problem| problem.of(b"/"))?;

    let mut walk = tree.walk();
    while let Some(name) = walk.next() {
        let mut add = || -> Result<(), Problem> {
            let text = str::from_utf8(name.name).map_err(|_| "its name is not UTF-8")?;
            let directory = known
                .get(&name.directory)
                .ok_or("its directory is unknown")?
                .0;
            if let Some((handle, links)) = known.get_mut(&name.inode) {
                *links += 1;
                if *links > MAX_LINKS {
                    return Err("it has more than 65,000 names".into());
                }
                return Ok(builder.hardlink(directory, text, *handle)?);
            }
            let node = tree.node(name.inode);
            let meta = meta(&node.meta);
            let handle = match &node.kind {
                Kind::Directory(_) => builder.mkdir(directory, text, meta)?,
                Kind::File(content) => {
                    let length = content.end - content.start;
                    let handle = builder.file(directory, text, meta, length)?;
                    if length > 0 {
                        files.push((handle, content.clone()));
                    }
                    handle
                }
                Kind::Symlink(target) => {
                    let target = str::from_utf8(target).map_err(|_| "its target is not UTF-8")?;
                    builder.symlink(directory, text, target, meta)?
                }
                Kind::Character(major, minor) => {
                    let (major, minor) = device(*major, *minor)?;
                    let kind = SpecialKind::Char { major, minor };
                    builder.mknod(directory, text, meta, kind)?
                }
                Kind::Block(major, minor) => {
                    let (major, minor) = device(*major, *minor)?;
                    let kind = SpecialKind::Block { major, minor };
                    builder.mknod(directory, text, meta, kind)?
                }
                Kind::Fifo => builder.mknod(directory, text, meta, SpecialKind::Fifo)?,
            };
            known.insert(name.inode, (handle, 1));
            set_xattrs(&mut builder, tree, name.inode, handle)
        };
        add().map_err(|problem| problem.of(walk.path()))?;
    }
    Ok((builder, files))
}

/// Why something cannot be declared.
enum Problem {
    Entry(&'static str),
    Formatter(mkext4::Error),
}

impl From<&'static str> for Problem {
    fn from(reason: &'static str) -> Self {
        Self::Entry(reason)
    }
}

impl From<mkext4::Error> for Problem {
    fn from(error: mkext4::Error) -> Self {
        Self::Formatter(error)
    }
}

impl Problem {
    fn of(self, path: &[u8]) -> Error {
        match self {
            Self::Entry(reason) => Error::Entry {
                path: path.to_vec(),
                reason,
            },
            Self::Formatter(error) => from_formatter(error),
        }
    }
}

fn set_xattrs(
    builder: &mut FsBuilder,
    tree: &Tree,
    inode: Inode,
    handle: InodeHandle,
) -> Result<(), Problem> {
    let mut size = 0;
    for (name, value) in &tree.node(inode).xattrs {
        // An entry of 16 bytes, and name and value each rounded up to 4.
        size += 16 + name.len().next_multiple_of(4) + value.len().next_multiple_of(4);
        if size > MAX_XATTRS {
            return Err("its extended attributes are larger than 3,900 bytes".into());
        }
        match name.starts_with("system.posix_acl_") {
            true => builder.set_xattr(handle, name, &acl::to_disk(value)?)?,
            false => builder.set_xattr(handle, name, value)?,
        }
    }
    Ok(())
}

fn meta(meta: &Meta) -> mkext4::Meta {
    let (seconds, nanoseconds) = meta.mtime;
    let mtime = match seconds.clamp(*TIMES.start(), *TIMES.end()) {
        clamped if clamped == seconds => (seconds, nanoseconds.min(999_999_999)),
        clamped => (clamped, 0),
    };
    mkext4::Meta::new(meta.mode, meta.uid, meta.gid, mtime)
}

fn device(major: u32, minor: u32) -> Result<(u32, u32), &'static str> {
    match major < 1 << 12 && minor < 1 << 20 {
        true => Ok((major, minor)),
        false => Err("its device number is larger than Linux has them"),
    }
}

fn from_formatter(error: mkext4::Error) -> Error {
    match error {
        mkext4::Error::Io(error) => Error::Write(error),
        error => Error::Format(error),
    }
}

#[cfg(test)]
mod tests;
