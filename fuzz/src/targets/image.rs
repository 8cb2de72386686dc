//! An archive of images: its index, manifests and configurations, and what its layers are packed with.

use imagebuilder::{
    oci::{Digest, Package},
    progress::Progress,
    spool::Spool,
};

use super::layers::put_checksum;
use crate::input::{Input, MemoryFile};

/// Most that is unpacked, in bytes.
const SPOOL: u64 = 1 << 20;

/// The first byte is even for an archive as it is, perhaps a packed one. Else there follow up to nine blobs, each with
/// its length in two bytes; the last is the index. In one that begins with a brace, `@n` stands for the digest of blob n,
/// and `#n` for its size.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let archive = match input.u8() & 1 {
        0 => input.rest().to_vec(),
        _ => assemble(&mut input),
    };
    let file = MemoryFile::new(&archive);
    let mut spool = Spool::new(&std::env::temp_dir(), SPOOL).expect("a spool");
    let package = match Package::open(&file.path(), &mut spool) {
        Ok(package) => package,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let images = match package.images() {
        Ok(images) => images,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let step = Progress::silent().bytes("fuzz", 0);
    for layer in images.iter().flat_map(|image| &image.layers).take(4) {
        match package.layer(layer, &mut spool, &step) {
            Ok(range) => assert!(range.end <= SPOOL),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn assemble(input: &mut Input<'_>) -> Vec<u8> {
    let mut blobs: Vec<(Digest, Vec<u8>)> = Vec::new();
    let mut archive = Vec::new();
    add(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    while !input.is_empty() && blobs.len() < 9 {
        let len = usize::from(input.u16());
        let blob = input.bytes(len);
        let blob = match blob.first() {
            Some(b'{') => fill_in(blob, &blobs),
            _ => blob.to_vec(),
        };
        let digest = Digest::of(&blob);
        let last = input.is_empty() || blobs.len() == 8;
        let name = match last {
            true => "index.json".to_owned(),
            false => format!("blobs/sha256/{}", digest.hex()),
        };
        add(&mut archive, &name, &blob);
        blobs.push((digest, blob));
    }
    archive
}

/// Puts digests and sizes in the place of what stands for them.
fn fill_in(text: &[u8], blobs: &[(Digest, Vec<u8>)]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        let blob = |digit: &u8| blobs.get(usize::from(digit.wrapping_sub(b'0')));
        match (byte, rest.as_slice().first().and_then(blob)) {
            (b'@', Some((digest, _))) => filled.extend_from_slice(digest.to_string().as_bytes()),
            (b'#', Some((_, blob))) => filled.extend_from_slice(blob.len().to_string().as_bytes()),
            _ => {
                filled.push(byte);
                continue;
            }
        }
        rest.next();
    }
    filled
}

/// Appends a file to an archive.
fn add(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    put_checksum(&mut header);
    archive.extend_from_slice(&header);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}
