//! What a program has written so far.

use std::{
    fmt::Write as _,
    io::Read,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Most bytes of one stream that are shown when a test fails.
const SHOWN: usize = 4096;

/// The bytes that a thread reads from a stream.
#[derive(Clone, Default)]
pub struct Transcript(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Transcript {
    /// Reads `stream` to its end in a thread of its own.
    pub fn of(mut stream: impl Read + Send + 'static) -> Self {
        let transcript = Self::default();
        let writer = transcript.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => writer.add(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    // A terminal that nobody has open any more gives an error at its end.
                    Ok(_) | Err(_) => return writer.end(),
                }
            }
        });
        transcript
    }

    /// Of nothing.
    pub fn empty() -> Self {
        let transcript = Self::default();
        transcript.end();
        transcript
    }

    fn add(&self, bytes: &[u8]) {
        self.state().bytes.extend_from_slice(bytes);
        self.0.changed.notify_all();
    }

    fn end(&self) {
        self.state().ended = true;
        self.0.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// Waits until `needle` comes at `start` or later, and gives the position behind it. `None` if the stream ends
    /// without it or `deadline` passes.
    pub fn find(&self, needle: &str, start: usize, deadline: Duration) -> Option<usize> {
        let needle = needle.as_bytes();
        self.wait(deadline, |state| {
            let rest = state.bytes.get(start..).unwrap_or_default();
            let position = rest
                .windows(needle.len())
                .position(|bytes| bytes == needle)?;
            Some(start + position + needle.len())
        })
    }

    /// Waits for the end of the stream and says whether it came before `deadline` had passed.
    pub fn ended(&self, deadline: Duration) -> bool {
        self.wait(deadline, |state| state.ended.then_some(()))
            .is_some()
    }

    fn wait<T>(&self, deadline: Duration, found: impl Fn(&State) -> Option<T>) -> Option<T> {
        let end = crate::end_of(deadline);
        let mut state = self.state();
        loop {
            let value = found(&state);
            let left = end.saturating_duration_since(Instant::now());
            if value.is_some() || state.ended || left.is_zero() {
                return value;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Bytes for people: text if they are, and not too much of it.
pub fn shown(bytes: &[u8]) -> String {
    let (head, rest) = bytes.split_at(bytes.len().min(SHOWN));
    let mut text = match std::str::from_utf8(head) {
        Ok(text) => text.to_owned(),
        Err(_) => head.escape_ascii().to_string(),
    };
    if !rest.is_empty() {
        let _ = write!(text, "… and {} bytes more", rest.len());
    }
    text
}
