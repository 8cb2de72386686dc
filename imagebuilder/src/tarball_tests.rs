use super::*;
use crate::spool::Spool;
use crate::testing::{Folder, Random};
use tar::{Builder, EntryType, Header as TarHeader};

/// Reads all entries of `bytes`.
fn read(bytes: &[u8]) -> Result<Vec<Entry>, Error> {
    let folder = Folder::new("tarball");
    let mut spool = Spool::new(folder.path(), 1 << 30).unwrap();
    // Not at the start of the file: offsets are those of the file.
    spool.append(&[7; 100][..], |_| ()).unwrap();
    let range = spool.append(bytes, |_| ()).unwrap();
    let mut reader = Reader::new(spool.file(), range);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        let mut window = spool.read(entry.content.clone());
        window.read_to_end(&mut content).unwrap();
        assert_eq!(
            content.len() as u64,
            entry.content.end - entry.content.start
        );
        entries.push(entry);
    }
    Ok(entries)
}

fn header(kind: EntryType, size: u64) -> TarHeader {
    let mut header = TarHeader::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o104_755);
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_700_000_000);
    header
}

fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().unwrap()
}

#[test]
fn plain_entries_are_read_with_all_that_their_headers_say() {
    let bytes = archive(|builder| {
        builder
            .append_data(&mut header(EntryType::Directory, 0), "d/", &[][..])
            .unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, 3), "d/f", &b"abc"[..])
            .unwrap();
        let mut node = header(EntryType::Char, 0);
        node.set_device_major(5).unwrap();
        node.set_device_minor(1).unwrap();
        builder.append_data(&mut node, "console", &[][..]).unwrap();
        let mut link = header(EntryType::Symlink, 0);
        builder.append_link(&mut link, "s", "d/f").unwrap();
    });
    let entries = read(&bytes).unwrap();
    let kinds: Vec<Kind> = entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(
        kinds,
        [Kind::Directory, Kind::File, Kind::Character, Kind::Symlink]
    );
    let file = &entries[1];
    assert_eq!(file.path, b"d/f");
    assert_eq!((file.mode, file.uid, file.gid), (0o4755, 1000, 100));
    assert_eq!(file.mtime, (1_700_000_000, 0));
    assert_eq!(file.content, 100 + 1024..100 + 1027);
    assert_eq!(entries[2].device, (5, 1));
    assert_eq!(entries[3].link, b"d/f");
}

#[test]
fn long_names_are_read_in_both_formats() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(150));
    let gnu = archive(|builder| {
        builder
            .append_data(&mut header(EntryType::Regular, 0), &long, &[][..])
            .unwrap();
        let mut link = header(EntryType::Symlink, 0);
        builder.append_link(&mut link, "s", &long).unwrap();
    });
    let pax = archive(|builder| {
        let records = [("path", long.as_bytes())];
        builder.append_pax_extensions(records).unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, 0), "short", &[][..])
            .unwrap();
        let records = [("linkpath", long.as_bytes())];
        builder.append_pax_extensions(records).unwrap();
        let mut link = header(EntryType::Symlink, 0);
        builder.append_link(&mut link, "s", "short").unwrap();
    });
    for bytes in [gnu, pax] {
        let entries = read(&bytes).unwrap();
        assert_eq!(entries[0].path, long.as_bytes());
        assert_eq!(entries[1].link, long.as_bytes());
        assert_eq!(entries[1].path, b"s");
    }
    let ustar = archive(|builder| {
        let mut header = TarHeader::new_ustar();
        header
            .set_path(format!("{}/{}", "a".repeat(90), "b".repeat(90)))
            .unwrap();
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &[][..]).unwrap();
    });
    assert_eq!(read(&ustar).unwrap()[0].path.len(), 181);
}

#[test]
fn extended_records_override_the_header_and_attributes_may_hold_any_byte() {
    let bytes = archive(|builder| {
        builder
            .append_pax_extensions([
                ("mtime", &b"-1.25"[..]),
                ("uid", b"4000000000"),
                ("SCHILY.xattr.security.capability", b"\x01\n7 a=b\n\0"),
                ("SCHILY.xattr.user.empty", b""),
            ])
            .unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, 0), "f", &[][..])
            .unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, 0), "g", &[][..])
            .unwrap();
    });
    let entries = read(&bytes).unwrap();
    assert_eq!(entries[0].mtime, (-2, 750_000_000));
    assert_eq!(entries[0].uid, 4_000_000_000);
    let expected = [
        (&b"security.capability"[..], &b"\x01\n7 a=b\n\0"[..]),
        (b"user.empty", b""),
    ];
    let expected = expected.map(|(name, value)| (name.to_vec(), value.to_vec()));
    assert_eq!(entries[0].xattrs, expected);
    // They are said of one entry only.
    assert_eq!((entries[1].uid, entries[1].xattrs.len()), (1000, 0));
}

#[test]
fn an_archive_may_end_without_its_end_marker_or_padding() {
    let bytes = archive(|builder| {
        builder
            .append_data(&mut header(EntryType::Regular, 3), "f", &b"abc"[..])
            .unwrap();
    });
    for length in [512 + 3, 1024, 1536, bytes.len()] {
        assert_eq!(read(&bytes[..length]).unwrap().len(), 1, "{length}");
    }
    assert_eq!(read(&[]).unwrap(), []);
}

#[test]
fn damage_is_one_error() {
    let bytes = archive(|builder| {
        builder
            .append_data(&mut header(EntryType::Regular, 600), "f", &[1; 600][..])
            .unwrap();
    });
    assert!(matches!(
        read(&bytes[..511]),
        Err(Error::Truncated { at: 0 })
    ));
    assert!(matches!(
        read(&bytes[..900]),
        Err(Error::Truncated { at: 512 })
    ));
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    let error = read(&flipped).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");

    let huge = archive(|builder| {
        let records = [("size", &b"18446744073709551615"[..])];
        builder.append_pax_extensions(records).unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, 0), "f", &[][..])
            .unwrap();
    });
    assert!(matches!(read(&huge), Err(Error::Truncated { .. })));

    let mut sparse = header(EntryType::GNUSparse, 0);
    sparse.set_path("s").unwrap();
    sparse.set_cksum();
    assert!(matches!(
        read(sparse.as_bytes()),
        Err(Error::Unsupported { .. })
    ));
    let mut large = header(EntryType::XHeader, MAX_EXTENSION + 1);
    large.set_cksum();
    let error = read(large.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("1 MiB"), "{error}");
}

#[test]
fn numbers_are_octal_or_binary() {
    assert_eq!(number(b"0000644\0"), Some(0o644));
    assert_eq!(number(b"   644 \0"), Some(0o644));
    assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
    assert_eq!(number(b"0000648\0"), None);
    assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
    assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff"), Some(-1));
    assert_eq!(number(&[0xbf; 12]), None);
    assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
    assert_eq!(time(b"1.9999999999"), Some((1, 999_999_999)));
    assert_eq!(
        time(b"-9223372036854775807.1"),
        Some((i64::MIN, 900_000_000))
    );
    for bad in [
        &b""[..],
        b"x",
        b"1.x",
        b".5",
        b"--1",
        b"9223372036854775808",
    ] {
        assert_eq!(time(bad), None, "{bad:?}");
    }
}

#[test]
fn random_damage_never_panics_and_content_stays_inside_the_archive() {
    let bytes = archive(|builder| {
        builder
            .append_pax_extensions([("mtime", &b"1.5"[..]), ("SCHILY.xattr.user.a", b"b")])
            .unwrap();
        builder
            .append_data(&mut header(EntryType::Regular, 700), "f", &[1; 700][..])
            .unwrap();
        let long = "l".repeat(300);
        builder
            .append_data(&mut header(EntryType::Directory, 0), long, &[][..])
            .unwrap();
    });
    let mut random = Random::new(11);
    let mut read_through = 0;
    for _ in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(damaged.len());
            damaged[at] = u8::try_from(random.below(256)).unwrap();
        }
        // Make the checksums right again, so that the damage gets past them.
        for block in damaged.chunks_mut(512) {
            if block.len() == 512 && random.below(2) == 0 && block[257..262] == *b"ustar" {
                let mut header = TarHeader::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        damaged.truncate(damaged.len() - random.below(2) * random.below(damaged.len()));
        read_through += usize::from(read(&damaged).is_ok());
    }
    assert!(read_through > 100, "{read_through}");
}
