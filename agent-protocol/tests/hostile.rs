//! A decoder that is fed anything refuses or accepts; it never panics and never grows without bound.

use agent_protocol::{frame::MAX_BODY, *};

/// xorshift64*: repeatable noise without a dependency.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

#[test]
fn random_bodies_never_panic() {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for _ in 0..200_000 {
        let len = usize::try_from(noise.next() % 96).unwrap();
        let mut body = noise.bytes(len);
        if let Some(first) = body.first_mut() {
            *first %= 6; // Most random bytes are no variant at all: aim at the parsers behind them.
        }
        let _ = frame::decode::<GuestFrame>(&body);
        let _ = frame::decode::<HostFrame>(&body);
        let _ = Hello::peek_version(&body);
    }
}

#[test]
fn random_streams_never_panic() {
    let mut noise = Noise(42);
    for _ in 0..2_000 {
        let mut decoder = Decoder::new();
        for _ in 0..8 {
            let len = usize::try_from(noise.next() % 64).unwrap();
            decoder.feed(&noise.bytes(len));
            while let Ok(Some(_)) = decoder.next_body() {}
        }
    }
}

#[test]
fn truncated_frames_wait_and_extended_bodies_are_refused() {
    let message = GuestFrame::Log {
        level: Level::Debug,
        text: "hello".into(),
    };
    let frame = encode(&message).unwrap();
    for cut in 0..frame.len() {
        let mut decoder = Decoder::new();
        decoder.feed(&frame[..cut]);
        assert_eq!(
            decoder.next_message::<GuestFrame>(),
            Ok(None),
            "cut at {cut}"
        );
        decoder.feed(&frame[cut..]);
        assert_eq!(
            decoder.next_message(),
            Ok(Some(message.clone())),
            "cut at {cut}"
        );
    }
    let mut body = frame[4..].to_vec();
    body.push(0);
    assert_eq!(
        frame::decode::<GuestFrame>(&body),
        Err(FrameError::TrailingBytes { extra: 1 })
    );
}

#[test]
fn an_unknown_frame_is_an_error() {
    assert!(matches!(
        frame::decode::<GuestFrame>(&[200, 0]),
        Err(FrameError::Malformed { .. })
    ));
    assert!(matches!(
        frame::decode::<HostFrame>(&[3]),
        Err(FrameError::Malformed { .. })
    ));
}

#[test]
fn a_frame_over_the_limit_is_refused_on_its_header_alone() {
    let mut decoder = Decoder::new();
    decoder.feed(&u32::MAX.to_le_bytes());
    assert!(matches!(
        decoder.next_body(),
        Err(FrameError::TooLong { .. })
    ));

    let message = GuestFrame::Log {
        level: Level::Warn,
        text: "x".repeat(MAX_BODY),
    };
    assert!(matches!(encode(&message), Err(FrameError::TooLong { .. })));
}

#[test]
fn an_announced_length_does_not_allocate() {
    // A vector that claims 2^32 entries inside a body of six bytes.
    let body = [4, 0, 0xff, 0xff, 0xff, 0xff, 0x0f];
    assert!(frame::decode::<GuestFrame>(&body).is_err());
}
