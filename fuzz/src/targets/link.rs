//! The socket between a machine and its supervisor, from either end: a machine that is its guest's, and, for what it is
//! worth, a supervisor that lies.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use host_vmm::{
    devices::vsock::HostPorts,
    vm::kvm::link::{self, Answering, Link},
};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown,
};

use crate::input::Input;

const STEPS: usize = 64;

/// Longest message, and more.
const MOST: usize = 2048;

/// Takes four connections at most, as who counts tokens does.
struct Few(Arc<AtomicUsize>);

impl HostPorts for Few {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if port == 0 || self.0.fetch_add(1, Ordering::Relaxed) >= 4 {
            return None;
        }
        UnixStream::pair().ok().map(|(device, _)| device)
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (machine, supervisor) = link::pair().expect("a socket");
    match input.u8() & 1 {
        0 => to_supervisor(&mut input, machine, supervisor),
        _ => to_machine(&mut input, machine, &supervisor),
    }
}

/// How many threads there are.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn to_supervisor(input: &mut Input<'_>, machine: OwnedFd, supervisor: OwnedFd) {
    let before = threads();
    let asked = Arc::new(AtomicUsize::new(0));
    let ports = Box::new(Few(Arc::clone(&asked)));
    let answering = Answering::spawn(supervisor, ports).expect("a thread");
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        say(&machine, input);
        if input.u8() & 1 == 0 {
            let mut answer = [0; MOST];
            let _ = rustix::net::recv(&machine, &mut answer, RecvFlags::DONTWAIT);
        }
    }
    drop(machine);
    let words = answering.last_words();
    // Until its thread is gone, too, what that has looks lost.
    let mut left = 1000;
    while threads() > before && left > 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
        left -= 1;
    }
    for text in [words.failed, words.forbidden].into_iter().flatten() {
        assert!(text.len() <= 4 * MOST);
        assert!(
            !text.chars().any(|c| c.is_control() && c != '\n'),
            "{text:?}"
        );
    }
}

fn to_machine(input: &mut Input<'_>, machine: OwnedFd, supervisor: &OwnedFd) {
    let mut link = Link::new(machine);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        say(supervisor, input);
    }
    // It is not waited for what does not come.
    let _ = shutdown(supervisor, Shutdown::Write);
    for port in 0..8 {
        let _ = link.connect(port);
    }
    link.failed(&String::from_utf8_lossy(input.rest()));
}

/// A message, most often one of those that there are, with descriptors.
fn say(socket: &OwnedFd, input: &mut Input<'_>) {
    let how = input.u8();
    let mut message = Vec::new();
    match how & 7 {
        0 => {
            let len = usize::from(input.u16()) % MOST;
            message.extend(input.bytes(len.min(64)));
            message.resize(len, how);
        }
        1 => {
            message.push(2);
            let len = usize::from(input.u8());
            message.extend(input.bytes(len));
        }
        2 => message.extend([&[3][..], &input.array::<4>()].concat()),
        // Answers as a machine expects them, counted from 1.
        3 => message.extend(u32::from(input.u8() % 4).to_le_bytes()),
        _ => message.extend(
            [
                &[1][..],
                &input.array::<4>(),
                &u32::from(input.u8()).to_le_bytes(),
            ]
            .concat(),
        ),
    }
    let (ours, _) = UnixStream::pair().expect("a socket");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = vec![ours.as_fd(); usize::from(how >> 6)];
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = sendmsg(socket, &[IoSlice::new(&message)], &mut ancillary, flags);
}
