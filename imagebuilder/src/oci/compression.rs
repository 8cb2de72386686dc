//! How a layer is compressed, told by its first bytes: media types are often wrong about it.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// The largest window a zstd frame may ask for, in bytes: what the `zstd` tool accepts unless told otherwise.
const MAX_WINDOW: u64 = 128 << 20;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads `source` uncompressed: gzip with any number of members, zstd with any number of frames, or as it is.
pub(super) fn decompress<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    let mut start = Vec::new();
    source.by_ref().take(4).read_to_end(&mut start)?;
    let whole = Cursor::new(start.clone()).chain(source);
    Ok(match start.as_slice() {
        start if start.starts_with(GZIP) => Box::new(MultiGzDecoder::new(whole)),
        start if is_compressed(start) => Box::new(Frames {
            state: State::Between(whole),
        }),
        _ => Box::new(whole),
    })
}

/// Whether what begins with these four bytes is compressed.
pub(super) fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(GZIP) || start == ZSTD || is_skippable(start)
}

/// A magic number from 0x184D2A50 to 0x184D2A5F, little-endian.
fn is_skippable(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// A sequence of zstd frames (RFC 8878 §3), some of which hold no content.
struct Frames<R: BufRead> {
    state: State<R>,
}

type Frame<R> = StreamingDecoder<Chain<Cursor<[u8; 4]>, R>, FrameDecoder>;

enum State<R: BufRead> {
    Between(R),
    Inside(Box<Frame<R>>),
    /// At the end, or after an error.
    Done,
}

impl<R: BufRead> Frames<R> {
    /// Goes into the next frame that holds content.
    fn next_frame(mut source: R) -> io::Result<State<R>> {
        loop {
            if source.fill_buf()?.is_empty() {
                return Ok(State::Done);
            }
            let mut magic = [0; 4];
            source.read_exact(&mut magic)?;
            if is_skippable(&magic) {
                let mut size = [0; 4];
                source.read_exact(&mut size)?;
                let size = u64::from(u32::from_le_bytes(size));
                io::copy(&mut source.by_ref().take(size), &mut io::sink())?;
                continue;
            }
            let source = Cursor::new(magic).chain(source);
            let frame = StreamingDecoder::new_with_max_window_size(source, MAX_WINDOW);
            let frame = frame.map_err(|error| invalid(&error))?;
            return Ok(State::Inside(Box::new(frame)));
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Ok(0),
                State::Between(source) => Self::next_frame(source)?,
                State::Inside(mut frame) => match frame.read(buffer)? {
                    0 if !buffer.is_empty() => State::Between(frame.into_inner().into_inner().1),
                    count => {
                        self.state = State::Inside(frame);
                        return Ok(count);
                    }
                },
            };
        }
    }
}

fn invalid(error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        decompress(bytes)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn every_form_gives_the_same_bytes() {
        let (first, second) = (vec![b'a'; 100_000], vec![b'b'; 70_000]);
        let both = [first.clone(), second.clone()].concat();
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
        let forms = [
            both.clone(),
            gzip(&both),
            zstd(&both),
            [gzip(&first), gzip(&second)].concat(),
            [zstd(&first), skippable.clone(), zstd(&second)].concat(),
            [skippable.clone(), zstd(&both), skippable].concat(),
        ];
        for (number, form) in forms.iter().enumerate() {
            assert!(plain(form).unwrap() == both, "form {number}");
        }
        for short in [&b""[..], b"a", b"abc"] {
            assert_eq!(plain(short).unwrap(), short);
        }
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let bytes: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        for form in [gzip(&bytes), zstd(&bytes)] {
            for cut in [5, 20, form.len() / 2, form.len() - 1] {
                assert!(plain(&form[..cut]).is_err(), "{cut} of {}", form.len());
            }
        }
    }
}
