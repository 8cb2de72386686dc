//! Who the container's process is: `--user` looked up in the container's own files.
//!
//! The files come from the image, so they may hold anything: lines that are no entries are passed over,
//! as C libraries do, and ids that Linux does not have are no ids.

use std::io::Read;

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Most supplementary groups that Linux lets a process have.
const MAX_GROUPS: usize = 65_536;

/// Where a user without entry is at home.
const NO_HOME: &[u8] = b"/";

/// Ids and home of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: Vec<u8>,
}

/// Why a user could not be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The name is not in the file.
    #[error("{kind} {name:?} is not in the container's {file}; give one that is, or a number")]
    Unknown {
        /// "user" or "group".
        kind: &'static str,
        /// As it was asked for.
        name: String,
        /// Where it should be.
        file: &'static str,
    },
    /// The number is no id.
    #[error("{kind} {name:?} is not between 0 and 2147483647; give another number")]
    Range {
        /// "user" or "group".
        kind: &'static str,
        /// As it was asked for.
        name: String,
    },
}

impl Identity {
    /// Looks `wanted` (`user`, `user:group`, by name or number; empty for root) up in the contents of
    /// `/etc/passwd` and `/etc/group`, as Docker does: a number without an entry is an id like any other,
    /// and a group that is asked for takes the place of all that the user would be in.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn find(wanted: &str, passwd: &[u8], group: &[u8]) -> Result<Self, UserError> {
        let (user, wanted_group) = match wanted.split_once(':') {
            Some((user, group)) => (user, group),
            None => (wanted, ""),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = passwd_entries(passwd)
            .find(|entry| entry.name == user.as_bytes() || entry.uid.to_string() == user);
        let mut identity = match &entry {
            Some(entry) => Self {
                uid: entry.uid,
                gid: entry.gid,
                groups: Vec::new(),
                home: entry.home.to_vec(),
            },
            None => Self {
                uid: number("user", user, "/etc/passwd")?,
                gid: 0,
                groups: Vec::new(),
                home: NO_HOME.to_vec(),
            },
        };
        if !wanted_group.is_empty() {
            let found = group_entries(group).find(|entry| {
                entry.name == wanted_group.as_bytes() || entry.gid.to_string() == wanted_group
            });
            identity.gid = match found {
                Some(entry) => entry.gid,
                None => number("group", wanted_group, "/etc/group")?,
            };
        } else if let Some(entry) = entry {
            identity.groups = group_entries(group)
                .filter(|group| group.has_member(entry.name))
                .map(|group| group.gid)
                .take(MAX_GROUPS)
                .collect();
        }
        Ok(identity)
    }
}

/// Reads a file of the image; one that is missing is empty.
///
/// # Errors
/// Those of `open(2)` and `read(2)`, `EINVAL` if it is no regular file, `EFBIG` if it is too large.
pub fn read_file(path: &str) -> Result<Vec<u8>, Errno> {
    // A FIFO or a terminal in its place must not stop us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let status = fstat(&file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut content = Vec::new();
    std::fs::File::from(file)
        .take(MAX_FILE + 1)
        .read_to_end(&mut content)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    match u64::try_from(content.len()) {
        Ok(len) if len <= MAX_FILE => Ok(content),
        _ => Err(Errno::FBIG),
    }
}

/// A line of `passwd(5)`.
struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

fn passwd_entries(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let uid = id(fields.next()?)?;
        let gid = id(fields.next()?)?;
        let _comment = fields.next();
        let home = fields.next().filter(|home| !home.is_empty());
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home: home.unwrap_or(NO_HOME),
        })
    })
}

/// A line of `group(5)`.
struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn has_member(&self, name: &[u8]) -> bool {
        self.members
            .split(|&byte| byte == b',')
            .any(|member| member == name)
    }
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        let members = fields.next().unwrap_or_default();
        Some(GroupEntry { name, gid, members })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii)
}

/// A number that Linux takes as an id and that is not −1, which would mean "leave it as it is".
fn id(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    i32::try_from(value).is_ok().then_some(value)
}

fn number(kind: &'static str, wanted: &str, file: &'static str) -> Result<u32, UserError> {
    let name = || wanted.to_owned();
    if !wanted.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UserError::Unknown {
            kind,
            name: name(),
            file,
        });
    }
    id(wanted.as_bytes()).ok_or_else(|| UserError::Range { kind, name: name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken\n\
        huge:x:4294967295:0::/:\n\
        minus:x:-1:0::/:\n\
        :x:7:7::/nameless:\n\
        alice:x:1000:1001:Alice:/home/alice:/bin/sh\n\
        alice:x:0:0:second of the name:/root:\n\
        bob:x:1002:1002\n\
        1000:x:1003:1003::/number:\n";
    const GROUP: &[u8] = b"root:x:0:\n\
        wheel:x:10:root,alice\n\
        bad:x:nope:alice\n\
        huge:x:4294967295:alice\n\
        users:x:100:alice,bob\n\
        prefix:x:101:alic,alicea\n\
        last:x:102:alice";

    fn find(wanted: &str) -> Result<Identity, UserError> {
        Identity::find(wanted, PASSWD, GROUP)
    }

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>) {
        let identity = find(wanted).unwrap();
        (identity.uid, identity.gid, identity.groups)
    }

    #[test]
    fn nobody_asked_for_is_root() {
        assert_eq!(ids(""), (0, 0, vec![10]));
        assert_eq!(find("").unwrap().home, b"/root");
        let bare = Identity::find("", b"", b"").unwrap();
        assert_eq!((bare.uid, bare.gid, bare.home), (0, 0, b"/".to_vec()));
    }

    #[test]
    fn a_name_has_its_groups_and_home() {
        assert_eq!(ids("alice"), (1000, 1001, vec![10, 100, 102]));
        assert_eq!(find("alice").unwrap().home, b"/home/alice");
        assert_eq!(find("bob").unwrap().home, b"/");
    }

    #[test]
    fn a_number_finds_its_entry_or_is_taken_as_it_is() {
        assert_eq!(ids("1000"), (1000, 1001, vec![10, 100, 102]));
        assert_eq!(ids("4242"), (4242, 0, vec![]));
        assert_eq!(ids("2147483647"), (2_147_483_647, 0, vec![]));
    }

    #[test]
    fn a_group_asked_for_is_the_only_one() {
        assert_eq!(ids("alice:users"), (1000, 100, vec![]));
        assert_eq!(ids("alice:4243"), (1000, 4243, vec![]));
        assert_eq!(ids(":users"), (0, 100, vec![]));
    }

    #[test]
    fn unknown_names_are_errors() {
        for (wanted, message) in [
            (
                "eve",
                "user \"eve\" is not in the container's /etc/passwd; give one that is, or a number",
            ),
            (
                "broken",
                "user \"broken\" is not in the container's /etc/passwd; give one that is, or a number",
            ),
            (
                "minus",
                "user \"minus\" is not in the container's /etc/passwd; give one that is, or a number",
            ),
            (
                "-1",
                "user \"-1\" is not in the container's /etc/passwd; give one that is, or a number",
            ),
            (
                "+5",
                "user \"+5\" is not in the container's /etc/passwd; give one that is, or a number",
            ),
            (
                "alice:nobody",
                "group \"nobody\" is not in the container's /etc/group; give one that is, or a number",
            ),
        ] {
            assert_eq!(find(wanted).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn minus_one_is_never_an_id() {
        for wanted in [
            "4294967295",
            "2147483648",
            "99999999999999999999",
            "0:4294967295",
        ] {
            let error = find(wanted).unwrap_err();
            assert!(
                matches!(error, UserError::Range { .. }),
                "{wanted}: {error}"
            );
        }
        assert_eq!(
            find("huge").unwrap_err().to_string(),
            "user \"huge\" is not in the container's /etc/passwd; give one that is, or a number"
        );
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut noise = Vec::new();
        let mut state = 1_u32;
        for _ in 0..100_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.push(b":\n0,a\xff1\0"[state as usize >> 29]);
        }
        let _ = Identity::find("a", &noise, &noise);
        let _ = Identity::find("0:0", &noise, &noise);
        assert_eq!(
            Identity::find("77:78", b"\xff\xfe", &noise).unwrap().uid,
            77
        );
    }

    #[test]
    fn files_that_are_no_files_are_refused() {
        assert_eq!(read_file("/proc/self/no-such-file"), Ok(Vec::new()));
        assert_eq!(read_file("/dev/zero"), Err(Errno::INVAL));
        assert_eq!(read_file("/proc"), Err(Errno::INVAL));
    }
}
