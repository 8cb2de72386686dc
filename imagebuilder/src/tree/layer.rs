//! Applies one layer to the tree of those below it.
//!
//! A layer is read twice: first its whiteouts are carried out, then all else is added. So a whiteout hides what lies
//! below and never what its own layer brings, in whichever order the archive has them (`layer.md`, "Whiteouts").

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;

use super::{Inode, Kind, Meta, Node, Tree};
use crate::tarball::{self, Entry, Reader};
use crate::text::printable;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that AUFS, where the format comes from, kept for itself.
const RESERVED: &[u8] = b".wh..wh.";

/// As in Linux: the longest name, path and target, in bytes, and how many symbolic links are followed for one path.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4095;
const MAX_LINKS: u32 = 40;

/// What a directory is like that an archive does not mention, but puts something into.
const IMPLIED_MODE: u16 = 0o755;

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layer is no archive that can be read.
    #[error("It is not a readable tar archive")]
    Archive(#[from] tarball::Error),
    /// An entry means nothing, or nothing good.
    #[error("Entry {} is not acceptable: {reason}", printable(.path))]
    Entry {
        /// Its path.
        path: Vec<u8>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The image is larger than anything that is not meant to do harm.
    #[error("The image has more {what} than are accepted ({limit})")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is accepted.
        limit: u64,
    },
}

/// Why an entry is not taken.
enum Refusal {
    Entry(&'static str),
    Limit { what: &'static str, limit: u64 },
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Self {
        Self::Entry(reason)
    }
}

impl Refusal {
    fn of(self, path: &[u8]) -> Error {
        match self {
            Self::Entry(reason) => Error::Entry {
                path: path.to_vec(),
                reason,
            },
            Self::Limit { what, limit } => Error::Limit { what, limit },
        }
    }
}

impl Tree {
    /// Applies the layer whose uncompressed archive lies at `range` of `file`.
    ///
    /// # Errors
    /// The archive is damaged, an entry is malformed, or a limit is reached. The tree is of no use then.
    pub fn apply(&mut self, file: &File, range: Range<u64>) -> Result<(), Error> {
        let mut whiteouts = Reader::new(file, range.clone());
        while let Some(entry) = whiteouts.next_entry()? {
            let path = &entry.path;
            self.hide(path).map_err(|refusal| refusal.of(path))?;
        }
        let mut entries = Reader::new(file, range);
        while let Some(entry) = entries.next_entry()? {
            let path = entry.path.clone();
            self.add(entry).map_err(|refusal| refusal.of(&path))?;
        }
        Ok(())
    }

    /// Carries out the whiteout that `path` is, if it is one.
    fn hide(&mut self, path: &[u8]) -> Result<(), Refusal> {
        let Some(name) = whiteout(path) else {
            return Ok(());
        };
        let components = components(path)?;
        let Some(directory) = self.directory(&components[..components.len() - 1], None)? else {
            return Ok(());
        };
        let Kind::Directory(children) = &mut self.node_mut(directory).kind else {
            return Ok(());
        };
        if name == OPAQUE {
            children.clear();
        } else if !name.starts_with(RESERVED) {
            let hidden = &name[WHITEOUT.len()..];
            if matches!(hidden, b"" | b"." | b"..") {
                return Err("It is a whiteout of no name".into());
            }
            children.remove(hidden);
        }
        Ok(())
    }

    /// Adds what the entry describes, unless it is a whiteout.
    fn add(&mut self, entry: Entry) -> Result<(), Refusal> {
        self.charge(&entry)?;
        if whiteout(&entry.path).is_some() {
            return Ok(());
        }
        let components = components(&entry.path)?;
        let meta = Meta {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
        };
        let Some((&name, parents)) = components.split_last() else {
            return match entry.kind {
                tarball::Kind::Directory => self.describe(Self::ROOT, meta, entry.xattrs),
                _ => Err("It would replace the root directory".into()),
            };
        };
        let Some(directory) = self.directory(parents, Some(meta.mtime))? else {
            return Err("Its directory cannot be made".into());
        };
        let kind = match entry.kind {
            tarball::Kind::Directory => {
                if let Some(existing) = self.child(directory, name)
                    && matches!(self.node(existing).kind, Kind::Directory(_))
                {
                    return self.describe(existing, meta, entry.xattrs);
                }
                Kind::Directory(BTreeMap::new())
            }
            tarball::Kind::Hardlink => {
                let target = self.link_target(&entry.link)?;
                return self.name(directory, name, target);
            }
            tarball::Kind::File => Kind::File(entry.content),
            tarball::Kind::Symlink => match entry.link.len() {
                0 => return Err("It is a symbolic link to nothing".into()),
                1..=MAX_PATH => Kind::Symlink(entry.link.into()),
                _ => return Err("It is a symbolic link to a path that is too long".into()),
            },
            tarball::Kind::Character => Kind::Character(entry.device.0, entry.device.1),
            tarball::Kind::Block => Kind::Block(entry.device.0, entry.device.1),
            tarball::Kind::Fifo => Kind::Fifo,
        };
        let inode = self.create(Node {
            kind,
            meta,
            xattrs: BTreeMap::new(),
        })?;
        self.describe(inode, meta, entry.xattrs)?;
        self.name(directory, name, inode)
    }

    /// The directory that `components` lead to. Symbolic links on the way are followed, inside this tree: layers rely
    /// on it (`lib/x` over a `lib` that points to `usr/lib`). What is missing is made if `implied` gives it a time.
    fn directory(
        &mut self,
        components: &[&[u8]],
        implied: Option<(i64, u32)>,
    ) -> Result<Option<Inode>, Refusal> {
        let mut way = vec![Self::ROOT];
        let mut left: VecDeque<Box<[u8]>> = components.iter().map(|&name| name.into()).collect();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            self.step()?;
            let here = way.last().copied().unwrap_or(Self::ROOT);
            if &*name == b".." {
                // Only a link's target can say so. The root is its own parent.
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let Some(inode) = self.child(here, &name) else {
                let Some(mtime) = implied else {
                    return Ok(None);
                };
                let inode = self.create(Node::directory(Meta {
                    mode: IMPLIED_MODE,
                    uid: 0,
                    gid: 0,
                    mtime,
                }))?;
                self.name(here, &name, inode)?;
                way.push(inode);
                continue;
            };
            match &self.node(inode).kind {
                Kind::Directory(_) => way.push(inode),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err("Its path leads through too many symbolic links".into());
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    let target: Vec<Box<[u8]>> = names(target).map(Box::from).collect();
                    for name in target.into_iter().rev() {
                        if name.len() > MAX_NAME {
                            return Err("Its path leads through a name that is too long".into());
                        }
                        left.push_front(name);
                    }
                }
                _ if implied.is_none() => return Ok(None),
                _ => return Err("Its path leads through something that is no directory".into()),
            }
        }
        Ok(way.last().copied())
    }

    fn link_target(&mut self, path: &[u8]) -> Result<Inode, Refusal> {
        const MISSING: &str = "It is a hard link to something that does not exist";
        let components = components(path)?;
        let (&name, parents) = components.split_last().ok_or(MISSING)?;
        let directory = self.directory(parents, None)?.ok_or(MISSING)?;
        let target = self.child(directory, name).ok_or(MISSING)?;
        match self.node(target).kind {
            Kind::Directory(_) => Err("It is a hard link to a directory".into()),
            _ => Ok(target),
        }
    }

    fn create(&mut self, node: Node) -> Result<Inode, Refusal> {
        // Each entry makes one inode and at most as many directories as its path has names; all of them count.
        let limit = self.limits.entries;
        match u32::try_from(self.inodes.len()) {
            Ok(number) if number < limit => {
                self.inodes.push(node);
                Ok(Inode(number))
            }
            _ => Err(Refusal::Limit {
                what: "entries",
                limit: limit.into(),
            }),
        }
    }

    fn name(&mut self, directory: Inode, name: &[u8], inode: Inode) -> Result<(), Refusal> {
        match &mut self.node_mut(directory).kind {
            Kind::Directory(children) => {
                children.insert(name.into(), inode);
                Ok(())
            }
            _ => Err("Its path leads through something that is no directory".into()),
        }
    }

    fn describe(
        &mut self,
        inode: Inode,
        meta: Meta,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), Refusal> {
        let mut kept = BTreeMap::new();
        for (name, value) in xattrs {
            let name = String::from_utf8(name)
                .map_err(|_| "It has an extended attribute whose name is not UTF-8")?;
            if name.contains('\0') || name.len() > MAX_NAME {
                return Err("It has an extended attribute whose name is malformed".into());
            }
            if is_kept(&name) {
                kept.insert(name, value);
            }
        }
        let node = self.node_mut(inode);
        node.meta = meta;
        node.xattrs = kept;
        Ok(())
    }

    fn charge(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let xattrs = entry.xattrs.iter();
        let xattrs: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
        let bytes = (entry.path.len() + entry.link.len() + xattrs) as u64;
        let limit = self.limits.metadata;
        self.metadata += bytes;
        match self.metadata <= limit {
            true => Ok(()),
            false => Err(Refusal::Limit {
                what: "bytes of names and attributes",
                limit,
            }),
        }
    }

    fn step(&mut self) -> Result<(), Refusal> {
        let limit = self.limits.steps;
        self.steps += 1;
        match self.steps <= limit {
            true => Ok(()),
            false => Err(Refusal::Limit {
                what: "path components",
                limit,
            }),
        }
    }
}

/// The last name of `path`, if it marks a whiteout.
fn whiteout(path: &[u8]) -> Option<&[u8]> {
    names(path).last().filter(|name| name.starts_with(WHITEOUT))
}

/// The names that `path` is made of, which lead from the root downwards.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.len() > MAX_PATH {
        return Err("Its path is longer than 4095 bytes");
    }
    let components: Vec<&[u8]> = names(path).collect();
    for name in &components {
        if *name == b".." {
            return Err("Its path leads upwards");
        }
        if name.len() > MAX_NAME {
            return Err("A name in its path is longer than 255 bytes");
        }
        if name.contains(&0) {
            return Err("A name in its path holds a zero byte");
        }
    }
    Ok(components)
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
}

/// Whether an extended attribute means something to a Linux guest. What overlayfs notes on a directory of its own
/// (`trusted.overlay.`) would be taken for an instruction there.
fn is_kept(name: &str) -> bool {
    let named = ["user.", "trusted.", "security."]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .any(|rest| !rest.is_empty());
    let acl = matches!(name, "system.posix_acl_access" | "system.posix_acl_default");
    (named && !name.starts_with("trusted.overlay.")) || acl
}
