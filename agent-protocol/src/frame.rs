//! Length-prefixed frames with a bounded size.

use serde::{Serialize, de::DeserializeOwned};

/// Largest body of a frame, in bytes. The largest legitimate frame is a `Boot` that carries 2 MiB of
/// arguments and environment, which is what Linux lets a process have.
pub const MAX_BODY: usize = 4 << 20;

/// Bytes in front of each body: its length as a little-endian `u32`.
pub const HEADER_LEN: usize = 4;

/// Why bytes were refused, or a message could not become a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer announced, or the caller asked for, a body over [`MAX_BODY`].
    #[error("Frame of {len} bytes is over the limit of {MAX_BODY}")]
    TooLong {
        /// Length of the body in bytes.
        len: usize,
    },
    /// The body is no frame of this protocol version.
    #[error("Frame of {len} bytes cannot be decoded: {why}")]
    Malformed {
        /// Length of the body in bytes.
        len: usize,
        /// What the decoder found.
        why: postcard::Error,
    },
    /// The body holds a frame and then something else.
    #[error("Frame has {extra} bytes behind its end")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
}

/// Encodes one message as a frame, header included.
///
/// # Errors
/// [`FrameError::TooLong`] if the body would exceed [`MAX_BODY`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let frame = postcard::to_extend(message, vec![0; HEADER_LEN])
        .map_err(|why| FrameError::Malformed { len: 0, why })?;
    let len = frame.len() - HEADER_LEN;
    let header = u32::try_from(len).ok().filter(|_| len <= MAX_BODY);
    let Some(header) = header else {
        return Err(FrameError::TooLong { len });
    };
    let mut frame = frame;
    frame[..HEADER_LEN].copy_from_slice(&header.to_le_bytes());
    Ok(frame)
}

/// Decodes the body of a frame; every byte of it must be used.
///
/// # Errors
/// [`FrameError::Malformed`] and [`FrameError::TrailingBytes`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(|why| FrameError::Malformed {
        len: body.len(),
        why,
    })?;
    match rest.len() {
        0 => Ok(message),
        extra => Err(FrameError::TrailingBytes { extra }),
    }
}

/// Cuts a stream of bytes, fed in any portions, into the bodies of frames.
///
/// Holds at most one frame plus what the last portion brought beyond it, so its memory is bounded
/// by [`MAX_BODY`] and the caller's portion.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were already handed out.
    consumed: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds received bytes. Call [`Decoder::next_body`] until it gives `None` before the next call.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The body of the next complete frame, if there is one.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as a header announces too much. The stream has no way to
    /// recover from it: end the connection.
    pub fn next_body(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let pending = &self.buffer[self.consumed..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        // A u32 always fits the usize of the 64-bit machines we run on.
        let len = u32::from_le_bytes(*header) as usize;
        if len > MAX_BODY {
            return Err(FrameError::TooLong { len });
        }
        if rest.len() < len {
            return Ok(None);
        }
        let start = self.consumed + HEADER_LEN;
        self.consumed = start + len;
        Ok(Some(&self.buffer[start..start + len]))
    }

    /// Decodes the next complete frame, if there is one.
    ///
    /// # Errors
    /// Those of [`Decoder::next_body`] and [`decode`].
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        self.next_body()?.map(decode).transpose()
    }
}
