//! Layers for tests.

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
