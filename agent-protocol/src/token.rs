//! One-time stream tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A one-time 128-bit secret that opens one stream.
///
/// Any process in the guest may dial the host's vsock ports, so a stream is worth nothing until it
/// has shown the token that travelled over the control connection.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token([u8; Token::LEN]);

impl Token {
    /// Length of a token on the wire, in bytes.
    pub const LEN: usize = 16;

    /// Wraps bytes that came from the host's random number generator.
    pub const fn from_random(bytes: [u8; Token::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes a stream begins with.
    pub const fn as_bytes(&self) -> &[u8; Token::LEN] {
        &self.0
    }

    /// Compares in a time that does not depend on where the first difference is.
    pub fn matches(&self, presented: &[u8; Token::LEN]) -> bool {
        let difference = self
            .0
            .iter()
            .zip(presented)
            .fold(0, |acc, (a, b)| acc | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_only_itself() {
        let token = Token::from_random([7; 16]);
        assert!(token.matches(&[7; 16]));
        for byte in 0..16 {
            let mut other = [7; 16];
            other[byte] ^= 0x80;
            assert!(!token.matches(&other));
        }
    }

    #[test]
    fn debug_does_not_leak() {
        assert_eq!(format!("{:?}", Token::from_random([0xab; 16])), "Token(..)");
    }
}
