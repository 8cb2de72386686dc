//! What the tests of this crate share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A folder of one test, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Creates an empty folder whose name holds `name`.
    pub fn new(name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("imagebuilder-{}-{number}-{name}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Checks the file system in `image` with the real tool; says so and goes on where that is not installed.
pub fn e2fsck(image: &Path) {
    let Some(output) = run("e2fsck", &["-fn"], image) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "e2fsck: {text}");
}

fn run(tool: &str, arguments: &[&str], image: &Path) -> Option<std::process::Output> {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap());
    let mut command = std::process::Command::new(tool);
    match command
        .env("PATH", path)
        .args(arguments)
        .arg(image)
        .output()
    {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that depend on `seed`, which is not 0.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % bound
    }
}

/// A layer's archive in the making. Owners are 7 and 8, the time is 1600000000.
#[derive(Clone)]
pub struct Layer {
    bytes: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Layer {
    /// An archive of nothing.
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    /// A directory.
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(b'5', path, "", mode, (0, 0), &[])
    }

    /// A regular file of mode 0644.
    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.file_with_mode(path, content, 0o644)
    }

    /// A regular file.
    pub fn file_with_mode(self, path: &str, content: &[u8], mode: u32) -> Self {
        self.entry(b'0', path, "", mode, (0, 0), content)
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, 0o777, (0, 0), &[])
    }

    /// Another name for `target`.
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, 0o644, (0, 0), &[])
    }

    /// A device: `c`, `b`, or `p` for a pipe.
    pub fn device(self, path: &str, kind: char, major: u32, minor: u32) -> Self {
        let kind = match kind {
            'c' => b'3',
            'b' => b'4',
            _ => b'6',
        };
        self.entry(kind, path, "", 0o600, (major, minor), &[])
    }

    /// An extended attribute of the next entry.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.to_owned(), value.to_vec()));
        self
    }

    /// The archive.
    pub fn bytes(&self) -> Vec<u8> {
        [self.bytes.as_slice(), &[0; 1024]].concat()
    }

    fn entry(
        mut self,
        kind: u8,
        path: &str,
        link: &str,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> Self {
        // Every name is in the extended header, where it may be of any length.
        let mut records = pax("path", path.as_bytes());
        records.extend(pax("linkpath", link.as_bytes()));
        for (name, value) in self.xattrs.drain(..) {
            records.extend(pax(&format!("SCHILY.xattr.{name}"), &value));
        }
        for (kind, content) in [(b'x', records.as_slice()), (kind, content)] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_size(content.len() as u64);
            header.set_mode(mode);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(1_600_000_000);
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
            header.set_cksum();
            self.bytes.extend(header.as_bytes());
            self.bytes.extend(content);
            self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        }
        self
    }
}

/// A record of an extended header, whose length counts itself.
fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = 3 + key.len() + value.len();
    let length = (rest..)
        .find(|length| *length == rest + length.to_string().len())
        .unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// What the real tool says about the file system in `image`, unless it is not installed.
pub fn debugfs(image: &Path, request: &str) -> Option<String> {
    let output = run("debugfs", &["-R", request], image)?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
