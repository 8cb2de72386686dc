//! The file system of an image, in memory: layers applied one over the other (OCI image-spec, `layer.md`).
//!
//! Names, metadata and links are held here; the content of files stays in the spool, and is referred to by offset.
//! Everything in a layer was written by whoever made the image. It is bounded by [`Limits`], and names lead nowhere but
//! into this tree.

mod layer;

use std::collections::{BTreeMap, btree_map};
use std::ops::Range;

pub use layer::Error;

/// What an image may hold at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries in all layers together.
    pub entries: u32,
    /// Bytes of names, link targets and extended attributes in all layers together.
    pub metadata: u64,
    /// Path components looked at for all entries together: bounds what chains of symbolic links cost.
    pub steps: u64,
}

/// Several times what the largest images hold. An entry takes 1 KiB of memory until its image is written.
impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            metadata: 512 << 20,
            steps: 500_000_000,
        }
    }
}

/// Which inode of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(u32);

/// A file system: inodes, and the names that lead to them.
#[derive(Debug)]
pub struct Tree {
    /// Those that no name leads to any more stay until the tree goes.
    inodes: Vec<Node>,
    limits: Limits,
    /// What of the limits is used up.
    metadata: u64,
    steps: u64,
}

/// What an inode is, and who may do what with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permissions, owners, time.
    pub meta: Meta,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory and what its names lead to.
    Directory(BTreeMap<Box<[u8]>, Inode>),
    /// A regular file, whose content lies at these bytes of the spool.
    File(Range<u64>),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Permissions, owners, time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
}

impl Tree {
    /// The root directory.
    pub const ROOT: Inode = Inode(0);

    /// An empty file system: a root directory, mode 0755.
    pub fn new(limits: Limits) -> Self {
        let root = Node::directory(Meta {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
        });
        Self {
            inodes: vec![root],
            limits,
            metadata: 0,
            steps: 0,
        }
    }

    /// The inode itself.
    pub fn node(&self, inode: Inode) -> &Node {
        &self.inodes[inode.0 as usize]
    }

    /// What the name leads to in the directory.
    pub fn child(&self, directory: Inode, name: &[u8]) -> Option<Inode> {
        match &self.node(directory).kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// All names, each after the directory that it is in, and in the same order for the same tree.
    pub fn walk(&self) -> Walk<'_> {
        let mut walk = Walk {
            tree: self,
            path: Vec::new(),
            open: Vec::new(),
        };
        walk.enter(Self::ROOT);
        walk
    }

    fn node_mut(&mut self, inode: Inode) -> &mut Node {
        &mut self.inodes[inode.0 as usize]
    }
}

impl Node {
    fn directory(meta: Meta) -> Self {
        Self {
            kind: Kind::Directory(BTreeMap::new()),
            meta,
            xattrs: BTreeMap::new(),
        }
    }
}

/// Goes over a tree without recursion: its depth was chosen by whoever made the image.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    /// The path of the last name given.
    path: Vec<u8>,
    /// The directories on the way to it.
    open: Vec<Open<'a>>,
}

/// A name in a tree.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    /// The directory it is in.
    pub directory: Inode,
    /// The name.
    pub name: &'a [u8],
    /// What it leads to.
    pub inode: Inode,
}

#[derive(Debug)]
struct Open<'a> {
    inode: Inode,
    children: btree_map::Iter<'a, Box<[u8]>, Inode>,
    /// How long the path of the directory is.
    path: usize,
}

impl<'a> Walk<'a> {
    /// The whole path of the name last given, without a leading `/`.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    fn enter(&mut self, inode: Inode) {
        if let Kind::Directory(children) = &self.tree.node(inode).kind {
            self.open.push(Open {
                inode,
                children: children.iter(),
                path: self.path.len(),
            });
        }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Name<'a>;

    fn next(&mut self) -> Option<Name<'a>> {
        loop {
            let directory = self.open.last_mut()?;
            self.path.truncate(directory.path);
            let Some((name, &inode)) = directory.children.next() else {
                self.open.pop();
                continue;
            };
            let found = Name {
                directory: directory.inode,
                name,
                inode,
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            self.enter(inode);
            return Some(found);
        }
    }
}

#[cfg(test)]
mod tests;
