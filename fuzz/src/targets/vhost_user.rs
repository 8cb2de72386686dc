//! What a front end says over vhost-user: messages with descriptors, and what it writes to guest memory between them.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use host_vmm::devices::{
    Progress, VirtioDevice,
    balloon::Balloon,
    block::{Block, Disk},
    event_loop::EventLoop,
    net::{Net, Stream},
    transport::vhost_user::{
        backend::Backend,
        channel::{Channel, Received},
        message::Request,
    },
    vsock::{HostPorts, Vsock},
};
use rustix::{
    event::{EventfdFlags, eventfd},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};

use crate::{
    guest::{memory, scribble},
    input::{Input, MemoryFile},
};

/// Whose events these are.
const KICK: u32 = 0;
const DEVICE: u32 = 1;

const STEPS: usize = 256;

/// Refuses every port.
struct NoPorts;

impl HostPorts for NoPorts {
    fn connect(&mut self, _port: u32) -> Option<UnixStream> {
        None
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let disk = MemoryFile::new(&[0; 4096]);
    let (peer, link) = UnixStream::pair().expect("a socket");
    let mut device: Box<dyn VirtioDevice> = match input.u8() % 4 {
        0 => Box::new(Vsock::new(3, Box::new(NoPorts))),
        2 => Box::new(Balloon::new(0)),
        // Its peer is gone, which is told sooner or later.
        3 => {
            drop(peer);
            Box::new(Net::new([2; 6], None, Box::new(Stream::new(link))))
        }
        _ => {
            let file = disk.file().try_clone().expect("a descriptor");
            Box::new(Block::new(Disk::new(file, false, true).expect("a disk")))
        }
    };
    let events = EventLoop::new().expect("an event loop");
    device
        .attach(events.registry(DEVICE))
        .expect("a device and its events");
    let (shared, memory) = memory();
    let (front_end, ours) = UnixStream::pair().expect("a socket");
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an event descriptor");
    let mut session = Session {
        backend: Backend::new(device, shared, events.registry(KICK)),
        events,
        channel: Channel::new(ours),
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0 => scribble(&memory, &mut input),
            1 => session.backend.kick_all(),
            // Bytes as they come.
            2 => {
                let count = usize::from(input.u8());
                send(&front_end, input.bytes(count), &event, input.u8() % 4);
            }
            _ => {
                let (request, how) = (u32::from(input.u8()), input.u8());
                let flags = if how & 1 != 0 { 9 } else { 1 };
                let body = usize::from(input.u8());
                let body = input.bytes(body);
                let mut bytes = Vec::with_capacity(12 + body.len());
                for word in [request, flags, u32::try_from(body.len()).unwrap_or(0)] {
                    bytes.extend_from_slice(&word.to_le_bytes());
                }
                bytes.extend_from_slice(body);
                send(&front_end, &bytes, &event, how >> 1 & 3);
            }
        }
        if !session.goes_on() {
            break;
        }
        // Replies are not waited for, but must not pile up.
        let mut replies = [0; 4096];
        let _ = rustix::net::recv(&front_end, &mut replies, rustix::net::RecvFlags::DONTWAIT);
    }
    session.backend.kick_all();
    let _ = session.rests();
    session.backend.stop_all();
}

/// The back end, without the thread that it has in the product.
struct Session {
    backend: Backend,
    events: EventLoop,
    channel: Channel,
}

impl Session {
    /// Takes the messages that have come; whether there may be more.
    fn goes_on(&mut self) -> bool {
        loop {
            let message = match self.channel.receive() {
                Ok(Received::Message(message)) => message,
                Ok(Received::Nothing) => break,
                Ok(Received::End) => return false,
                Err(error) => return refused(&error),
            };
            let header = message.header;
            let request = match Request::parse(&header, &message.body) {
                Ok(request) => request,
                Err(error) => return refused(&error),
            };
            let reply = self
                .backend
                .handle(request, header.need_reply, message.descriptors);
            match reply {
                Ok(Some(reply)) => {
                    if let Err(error) = self.channel.reply(&header.reply(&reply)) {
                        return refused(&error);
                    }
                }
                Ok(None) => {}
                Err(error) => return refused(&error),
            }
        }
        self.rests()
    }

    /// Lets the device work until it rests. A driver that breaks the rules ends nothing but its queues.
    fn rests(&mut self) -> bool {
        let mut events = Vec::new();
        for _ in 0..=65536 / 32 + 1 {
            events.clear();
            self.events.wait(true, &mut events).expect("an event loop");
            for event in &events {
                match event.owner {
                    KICK => self.backend.kick(event.token as usize),
                    _ => self.backend.device().ready(event.token, event.readiness),
                }
            }
            match self.backend.run() {
                (Progress::Idle, _) if events.is_empty() => return true,
                (_, Some(error)) => assert!(!error.to_string().is_empty()),
                _ => {}
            }
        }
        panic!("the device never rests");
    }
}

fn refused(error: &dyn std::error::Error) -> bool {
    assert!(!error.to_string().is_empty());
    false
}

/// Sends bytes with so many descriptors.
fn send(socket: &UnixStream, bytes: &[u8], event: &OwnedFd, descriptors: u8) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = vec![event.as_fd(); usize::from(descriptors)];
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags);
}
