//! SHA-256, as 64 hexadecimal digits: by that everything here is known that is kept.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// How much is read at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// Of `bytes`.
pub fn of(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// Of what is left to read.
///
/// # Errors
/// Those of reading.
pub fn of_reader(source: impl Read) -> io::Result<String> {
    copy(source, io::sink())
}

/// Of what it writes to `to`, which is all that is left in `from`.
///
/// # Errors
/// Those of reading and writing.
pub fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
}

/// Whether `text` is what the functions here give.
pub fn is_hash(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_what_is_copied_is_that_of_the_bytes() {
        let bytes = vec![7; CHUNK + 1];
        let mut copied = Vec::new();
        let hash = copy(bytes.as_slice(), &mut copied).unwrap();
        assert_eq!(copied, bytes);
        assert_eq!(hash, of(&bytes));
        assert_eq!(hash, of_reader(bytes.as_slice()).unwrap());
        assert!(is_hash(&hash));
        // FIPS 180-2, B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of("abc"), abc);
        assert!(!is_hash(&abc.to_uppercase()));
        assert!(!is_hash(&abc[1..]));
    }
}
