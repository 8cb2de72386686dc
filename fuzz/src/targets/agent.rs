//! The frames between `vmm` and `vminitd`, as they arrive on either side.

use std::io::Write;
use std::os::unix::net::UnixStream;

use agent_protocol::{Decoder, GuestFrame, Hello, HostFrame, VERSION, encode};
use host_vmm::agent::Control;

use crate::input::Input;

/// What the supervisor receives from a guest, over its socket, in portions. The first bit of the input says whether a
/// right `Hello` has come before.
pub fn from_guest(data: &[u8]) {
    let (ours, mut guest) = UnixStream::pair().expect("a socket");
    ours.set_nonblocking(true).expect("a socket");
    guest.set_nonblocking(true).expect("a socket");
    let mut control = Control::new(ours);
    let mut input = Input::new(data);
    if input.u8() & 1 == 0 {
        let hello = GuestFrame::Hello(Hello {
            version: VERSION,
            kernel_release: "6".into(),
            now_ns: 2,
            init_ns: 1,
        });
        let hello = encode(&hello).expect("a frame");
        guest.write_all(&hello).expect("room in a socket");
        assert!(matches!(control.receive(), Ok(Some(GuestFrame::Hello(_)))));
    }
    while !input.is_empty() {
        let portion = usize::from(input.u8());
        let portion = input.bytes(portion);
        guest.write_all(portion).expect("room in a socket");
        loop {
            match control.receive() {
                Ok(Some(frame)) => same_again(&frame),
                Ok(None) => break,
                Err(error) => return assert!(!error.to_string().is_empty()),
            }
        }
    }
}

/// What `vminitd` receives from its host: the host is trusted, and yet PID 1 must not panic.
pub fn from_host(data: &[u8]) {
    let mut decoder = Decoder::new();
    let mut input = Input::new(data);
    while !input.is_empty() {
        let portion = usize::from(input.u8());
        decoder.feed(input.bytes(portion));
        loop {
            match decoder.next_message::<HostFrame>() {
                Ok(Some(frame)) => same_again(&frame),
                Ok(None) => break,
                Err(error) => return assert!(!error.to_string().is_empty()),
            }
        }
    }
}

/// What was understood means the same when it is said.
fn same_again<T>(frame: &T)
where
    T: PartialEq + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let bytes = encode(frame).expect("what was a frame is one");
    let mut decoder = Decoder::new();
    decoder.feed(&bytes);
    let again = decoder
        .next_message::<T>()
        .expect("what was a frame is one");
    assert_eq!(again.as_ref(), Some(frame));
}
