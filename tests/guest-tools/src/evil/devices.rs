//! The front end of vhost-user as an attacker: everything that it says is made up.

use nix::libc;

use super::{call, descriptor};

/// Requests of the vhost-user protocol.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;

/// `VHOST_USER_F_PROTOCOL_FEATURES` and `VIRTIO_F_VERSION_1`.
const FEATURES: u64 = 1 << 30 | 1 << 32;

/// Does `name`, if it is one of these.
pub fn run(name: &str, words: &[&str]) -> Option<i64> {
    let (name, device) = match name.strip_prefix("block-") {
        Some(name) => (name, ":2"),
        None => (name, ":19"),
    };
    let memory = descriptor(words, "mem=")?;
    let word = words
        .iter()
        .find(|word| word.starts_with("virtio_uml.device=") && word.ends_with(device))?;
    let peer = Peer(descriptor(&[word], "virtio_uml.device=")?);
    match name {
        "memory-shrink" => return Some(resize(memory, 0)),
        "memory-grow" => return Some(resize(memory, 1 << 40)),
        "hang-up" => {
            close_all();
            hold();
        }
        "hang-up-end" => close_all(),
        "garbage" => peer.send(&noise(4096), &[]),
        "huge-size" => peer.send(&header(SET_FEATURES, u32::MAX), &[]),
        "no-such-request" => peer.request(9999, &[], &[]),
        "wrong-version" => peer.send(&[SET_OWNER, 7, 0].map(u32::to_le_bytes).concat(), &[]),
        "region-outside" => peer.memory(&[[0, 1 << 50, 0, 0]], &[memory]),
        "region-past-end" => peer.memory(&[[0, 1 << 20, 0, 1 << 50]], &[memory]),
        "region-wraps" => peer.memory(&[[u64::MAX - 4095, 8192, 0, 0]], &[memory]),
        "region-odd" => peer.memory(&[[1, 4096, 0, 3]], &[memory]),
        "region-empty" => peer.memory(&[[0, 0, 0, 0]], &[memory]),
        "regions-many" => peer.memory(&[[0, 4096, 0, 0]; 100], &[memory]),
        "regions-overlap" => peer.memory(&[[0, 8192, 0, 0], [4096, 8192, 0, 0]], &[memory; 2]),
        "region-no-descriptor" => peer.memory(&[[0, 4096, 0, 0]], &[]),
        "region-own-descriptor" => {
            // A file that shrinks under whoever maps it.
            let own = own_file();
            peer.memory(&[[0, 1 << 20, 0, 0]], &[own]);
            resize(own, 0);
            peer.rings([0, 4096, 8192]);
        }
        "descriptors-many" => peer.request(SET_OWNER, &[], &[memory; 100]),
        "ring-outside" => {
            peer.memory(&[[0, 1 << 20, 0, 0]], &[memory]);
            peer.rings([1 << 40, 1 << 41, 1 << 42]);
        }
        "ring-at-end" => {
            peer.memory(&[[0, 1 << 20, 0, 0]], &[memory]);
            peer.rings([(1 << 20) - 16, (1 << 20) - 16, (1 << 20) - 16]);
        }
        "ring-odd" => {
            peer.memory(&[[0, 1 << 20, 0, 0]], &[memory]);
            peer.rings([1, 1, 1]);
        }
        "ring-index" => peer.request(SET_VRING_NUM, &pair(4_000_000, 64), &[]),
        "ring-size-0" => peer.request(SET_VRING_NUM, &pair(0, 0), &[]),
        "ring-size-odd" => peer.request(SET_VRING_NUM, &pair(0, 7), &[]),
        "ring-size-huge" => peer.request(SET_VRING_NUM, &pair(0, u32::MAX), &[]),
        "kick-file" => {
            // Something that is always readable, and never becomes anything else.
            peer.memory(&[[0, 1 << 20, 0, 0]], &[memory]);
            let file = descriptor(words, "initrd=")?;
            peer.request(SET_VRING_KICK, &0_u64.to_le_bytes(), &[file]);
            peer.rings([0, 4096, 8192]);
        }
        "kick-flood" => {
            let [kick, _] = peer.start(memory);
            let one = 1_u64.to_ne_bytes();
            loop {
                let kick = usize::try_from(kick).unwrap_or(0);
                call(libc::SYS_write, [kick, one.as_ptr().addr(), 8, 0, 0, 0]);
            }
        }
        "messages-flood" => loop {
            peer.request(GET_FEATURES, &[], &[]);
        },
        "half-message" => {
            peer.send(&header(SET_FEATURES, 8)[..7], &[]);
            hold();
        }
        "silence" => hold(),
        _ => return None,
    }
    // Until the other side has seen it.
    hold()
}

fn hold() -> ! {
    loop {
        call(libc::SYS_poll, [0, 0, 1000, 0, 0, 0]);
    }
}

fn close_all() {
    call(libc::SYS_close_range, [3, usize::MAX, 0, 0, 0, 0]);
}

fn resize(fd: i32, size: usize) -> i64 {
    let fd = usize::try_from(fd).unwrap_or(0);
    call(libc::SYS_ftruncate, [fd, size, 0, 0, 0, 0])
}

fn own_file() -> i32 {
    let name = c"evil".as_ptr().addr();
    let fd = call(libc::SYS_memfd_create, [name, 0, 0, 0, 0, 0]);
    let fd = i32::try_from(fd).unwrap_or(-1);
    resize(fd, 1 << 20);
    fd
}

/// The device at the other end of a socket.
struct Peer(i32);

impl Peer {
    fn request(&self, request: u32, body: &[u8], fds: &[i32]) {
        let len = u32::try_from(body.len()).unwrap_or(0);
        self.send(&[&header(request, len), body].concat(), fds);
    }

    /// Announces regions of memory: guest address, length, user address, offset.
    fn memory(&self, regions: &[[u64; 4]], fds: &[i32]) {
        self.request(SET_OWNER, &[], &[]);
        self.request(SET_FEATURES, &FEATURES.to_le_bytes(), &[]);
        let count = u32::try_from(regions.len()).unwrap_or(0);
        let regions = regions.iter().flatten().map(|word| word.to_le_bytes());
        let body = [pair(count, 0), regions.collect::<Vec<_>>().concat()].concat();
        self.request(SET_MEM_TABLE, &body, fds);
    }

    /// Starts ring 0 with its three parts at these addresses.
    fn rings(&self, [descriptors, used, available]: [u64; 3]) {
        self.request(SET_VRING_NUM, &pair(0, 64), &[]);
        let addresses = [descriptors, used, available, 0].map(u64::to_le_bytes);
        let body = [pair(0, 0), addresses.concat()].concat();
        self.request(SET_VRING_ADDR, &body, &[]);
        let ring = 0_u64.to_le_bytes();
        self.request(SET_VRING_CALL, &ring, &[event()]);
        self.request(SET_VRING_KICK, &ring, &[event()]);
        self.request(SET_VRING_ENABLE, &pair(0, 1), &[]);
    }

    /// Starts ring 0 as it should be; gives its kick and call.
    fn start(&self, memory: i32) -> [i32; 2] {
        self.memory(&[[0, 1 << 20, 0, 0]], &[memory]);
        let events = [event(), event()];
        self.request(SET_VRING_NUM, &pair(0, 64), &[]);
        let body = [
            pair(0, 0),
            [0_u64, 8192, 4096, 0].map(u64::to_le_bytes).concat(),
        ]
        .concat();
        self.request(SET_VRING_ADDR, &body, &[]);
        let ring = 0_u64.to_le_bytes();
        self.request(SET_VRING_CALL, &ring, &[events[1]]);
        self.request(SET_VRING_KICK, &ring, &[events[0]]);
        self.request(SET_VRING_ENABLE, &pair(0, 1), &[]);
        events
    }

    fn send(&self, bytes: &[u8], fds: &[i32]) {
        let mut part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // A header of 16 bytes: length, level, type.
        let len = 16 + size_of_val(fds);
        let mut control = vec![0_u64; len.div_ceil(8)];
        control[0] = len.try_into().unwrap_or(0);
        if let Some(kind) = control.get_mut(1) {
            *kind = 1 | 1 << 32;
        }
        let numbers = fds.iter().flat_map(|fd| fd.to_ne_bytes());
        let mut bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
        for (at, byte) in numbers.enumerate() {
            bytes[16 + at] = byte;
        }
        // SAFETY: all fields are numbers and pointers, which may be null.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            message.msg_control = bytes.as_mut_ptr().cast();
            // Of another type in each C library.
            #[allow(clippy::useless_conversion)]
            let len = bytes.len().try_into().unwrap_or(0);
            message.msg_controllen = len;
        }
        // SAFETY: everything that the message points to is there; nobody listening is no reason to die.
        unsafe {
            libc::sendmsg(self.0, &raw const message, libc::MSG_NOSIGNAL);
        }
    }
}

fn event() -> i32 {
    i32::try_from(call(libc::SYS_eventfd2, [0; 6])).unwrap_or(-1)
}

fn header(request: u32, len: u32) -> Vec<u8> {
    [request, 1, len].map(u32::to_le_bytes).concat()
}

fn pair(a: u32, b: u32) -> Vec<u8> {
    [a, b].map(u32::to_le_bytes).concat()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        })
        .collect()
}
