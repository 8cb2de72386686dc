//! POSIX access control lists: from the form in archives and system calls to the one on an ext4 disk.

/// `POSIX_ACL_XATTR_VERSION`: a 32-bit version, then entries of tag, permissions (16 bits each) and ID (32 bits).
const XATTR_VERSION: u32 = 2;

/// `EXT4_ACL_VERSION`: the same, but only entries of named users and groups have an ID.
const DISK_VERSION: u32 = 1;

/// As many entries as one block holds.
const MAX_ENTRIES: usize = 500;

const MALFORMED: &str = "its access control list is malformed";

/// `value`, the value of a `system.posix_acl_*` attribute, as ext4 stores it (Linux `fs/ext4/acl.h`).
pub(super) fn to_disk(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (version, entries) = value.split_first_chunk::<4>().ok_or(MALFORMED)?;
    if u32::from_le_bytes(*version) != XATTR_VERSION || entries.len() > MAX_ENTRIES * 8 {
        return Err(MALFORMED);
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    for entry in entries {
        match u16::from_le_bytes([entry[0], entry[1]]) {
            // The owner, the owning group, the mask, all others.
            0x01 | 0x04 | 0x10 | 0x20 => disk.extend(&entry[..4]),
            // A user, a group.
            0x02 | 0x08 => disk.extend(entry),
            _ => return Err(MALFORMED),
        }
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_entries_keep_their_id() {
        let value = [
            &[2, 0, 0, 0][..],
            &[1, 0, 7, 0, 255, 255, 255, 255],
            &[2, 0, 6, 0, 232, 3, 0, 0],
            &[0x10, 0, 7, 0, 255, 255, 255, 255],
        ];
        let disk = [
            &[1, 0, 0, 0][..],
            &[1, 0, 7, 0],
            &[2, 0, 6, 0, 232, 3, 0, 0],
            &[0x10, 0, 7, 0],
        ];
        assert_eq!(to_disk(&value.concat()).unwrap(), disk.concat());
    }

    #[test]
    fn malformed_lists_are_refused() {
        for value in [
            &[][..],
            &[2, 0, 0],
            &[1, 0, 0, 0],
            &[2, 0, 0, 0, 1, 0, 7, 0],
            &[2, 0, 0, 0, 3, 0, 7, 0, 0, 0, 0, 0],
        ] {
            assert!(to_disk(value).is_err(), "{value:?}");
        }
    }
}
