//! Bytes that somebody else chose, made fit for a message.

/// How much of a name a message shows, in bytes.
const SHOWN: usize = 200;

/// `bytes` as text without control characters, shortened where it is long.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let mut text = String::new();
    for character in String::from_utf8_lossy(shown).chars() {
        match character.is_control() {
            true => text.extend(character.escape_default()),
            false => text.push(character),
        }
    }
    if bytes.len() > SHOWN {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn messages_hold_no_control_characters_and_end() {
        assert_eq!(printable("usr/bin/ä".as_bytes()), "usr/bin/ä");
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable(b"\xff"), "\u{fffd}");
        assert!(printable(&[b'x'; 5000]).len() < 250);
    }
}
