//! The container's standard streams: which token opens which, and the connections that have not shown theirs.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use agent_protocol::{Stdio, Token, WindowSize};

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Which {
    /// Standard input, host to guest.
    Stdin,
    /// Standard output, or what a terminal shows.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Tokens that have not been shown, and connections that have not shown one.
#[derive(Debug, Default)]
pub struct Streams {
    expected: Vec<(Which, Token)>,
    unknown: Vec<Unknown>,
}

/// A connection whose token is not complete.
#[derive(Debug)]
struct Unknown {
    stream: UnixStream,
    token: [u8; Token::LEN],
    len: usize,
}

impl Streams {
    /// Makes the tokens for a process's standard streams: a terminal of this size, or three pipes.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn for_process(&mut self, stdin: bool, terminal: Option<WindowSize>) -> io::Result<Stdio> {
        let mut expect = |which| {
            let mut bytes = [0; Token::LEN];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
            let token = Token::from_random(bytes);
            self.expected.push((which, token.clone()));
            io::Result::Ok(token)
        };
        let stdin = stdin.then(|| expect(Which::Stdin)).transpose()?;
        let stdout = expect(Which::Stdout)?;
        Ok(match terminal {
            Some(size) => Stdio::Terminal {
                stdin,
                stdout,
                size,
            },
            None => Stdio::Pipes {
                stdin,
                stdout,
                stderr: expect(Which::Stderr)?,
            },
        })
    }

    /// Streams that are still to be opened.
    #[must_use]
    pub fn expected(&self) -> usize {
        self.expected.len()
    }

    /// Takes a connection of the guest. There are never more than tokens: the port refuses them.
    pub fn add(&mut self, stream: UnixStream) {
        self.unknown.push(Unknown {
            stream,
            token: [0; Token::LEN],
            len: 0,
        });
    }

    /// The connections that have not shown a token yet.
    pub fn pending(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.unknown.iter().map(|unknown| unknown.stream.as_fd())
    }

    /// The streams whose tokens have arrived. A connection that shows anything else is closed.
    pub fn opened(&mut self) -> Vec<(Which, UnixStream)> {
        let mut opened = Vec::new();
        for mut unknown in std::mem::take(&mut self.unknown) {
            match unknown.read() {
                Some(true) => {
                    let shown = self
                        .expected
                        .iter()
                        .position(|(_, token)| token.matches(&unknown.token));
                    match shown {
                        Some(index) => {
                            let (which, _) = self.expected.swap_remove(index);
                            opened.push((which, unknown.stream));
                        }
                        None => tracing::warn!("The guest opened a stream with a wrong token"),
                    }
                }
                Some(false) => self.unknown.push(unknown),
                None => tracing::warn!("The guest closed a stream before it showed a token"),
            }
        }
        opened
    }
}

impl Unknown {
    /// Reads as much of the token as is there; says whether it is complete, and `None` if it never will be.
    fn read(&mut self) -> Option<bool> {
        while self.len < Token::LEN {
            match self.stream.read(&mut self.token[self.len..]) {
                Ok(0) => return None,
                Ok(count) => self.len += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn dial(streams: &mut Streams) -> UnixStream {
        let (host, guest) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        streams.add(host);
        guest
    }

    fn tokens(stdio: &Stdio) -> (Token, Token) {
        match stdio {
            Stdio::Pipes { stdout, stderr, .. } => (stdout.clone(), stderr.clone()),
            Stdio::Terminal { .. } => unreachable!(),
        }
    }

    #[test]
    fn a_token_opens_its_stream_once() {
        let mut streams = Streams::default();
        let (stdout, stderr) = tokens(&streams.for_process(false, None).unwrap());
        let mut first = dial(&mut streams);
        first.write_all(&stderr.as_bytes()[..7]).unwrap();
        assert!(streams.opened().is_empty());
        first.write_all(&stderr.as_bytes()[7..]).unwrap();
        first.write_all(b"more").unwrap();
        let mut opened = streams.opened();
        assert_eq!(opened.len(), 1);
        assert_eq!(opened[0].0, Which::Stderr);
        let mut rest = [0; 4];
        opened[0].1.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"more");

        let mut again = dial(&mut streams);
        again.write_all(stderr.as_bytes()).unwrap();
        assert!(streams.opened().is_empty());
        assert_eq!(streams.pending().count(), 0);
        let mut right = dial(&mut streams);
        right.write_all(stdout.as_bytes()).unwrap();
        assert_eq!(streams.opened()[0].0, Which::Stdout);
        assert_eq!(streams.expected(), 0);
    }

    #[test]
    fn a_stream_that_closes_early_is_forgotten() {
        let mut streams = Streams::default();
        streams.for_process(true, None).unwrap();
        drop(dial(&mut streams));
        assert!(streams.opened().is_empty());
        assert_eq!(streams.pending().count(), 0);
        assert_eq!(streams.expected(), 3);
    }
}
