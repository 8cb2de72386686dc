//! One stream between a guest's socket and a host's.

use std::{
    collections::VecDeque,
    io,
    net::Shutdown,
    num::Wrapping,
    os::{fd::AsFd, unix::net::UnixStream},
};

use rustix::net::SendFlags;

use super::{
    credit,
    packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op, shutdown},
};
use crate::{
    devices::{
        event_loop::{Interest, Registry},
        guest_io,
        virtqueue::{Chain, Range, total},
    },
    vm::memory::GuestMemory,
};

/// What we hold for one connection whose reader on the host does not keep up, in bytes.
pub const BUF_ALLOC: u32 = 256 * 1024;

/// Once this much was passed on that the guest does not know of, it is told.
const CREDIT_STEP: u32 = BUF_ALLOC / 4;

/// Most data in one packet to the guest, in bytes.
const MAX_DATA: usize = 64 * 1024;

/// A connection's name: the guest's port and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port on the guest's side.
    pub guest: u32,
    /// Port on the host's side.
    pub host: u32,
}

/// One stream.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    token: u32,
    registry: Registry,
    /// Gone when both directions are closed on the host's side.
    socket: Option<UnixStream>,

    // From the guest to the host.
    buffer: VecDeque<u8>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    advertised: Wrapping<u32>,
    /// The guest's own `SHUTDOWN` flags.
    guest_closed: u32,
    /// The socket takes no more: we shut it down, or nobody reads.
    write_closed: bool,
    /// The socket is full: wait for room.
    blocked: bool,

    // From the host to the guest.
    sent: Wrapping<u32>,
    guest_buf_alloc: u32,
    guest_fwd_cnt: Wrapping<u32>,
    readable: bool,
    /// Nothing more is read from the socket.
    read_closed: bool,

    // What the guest is to be told.
    respond: bool,
    tell_credit: bool,
    shutdown_wanted: u32,
    shutdown_sent: u32,

    /// Waits for a turn to send to the guest.
    pub queued: bool,
    /// The guest knows it no more; it only delivers its last bytes.
    pub orphan: bool,
}

/// The guest broke the rules of the connection: it gets `RST`.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation;

impl Connection {
    /// A connection that the guest asked for with `request`, to be accepted. `socket` is watched from now on.
    ///
    /// # Errors
    /// The host cannot watch another descriptor.
    pub fn accept(
        key: Key,
        token: u32,
        request: &Header,
        socket: UnixStream,
        registry: &Registry,
    ) -> io::Result<Self> {
        registry.add(&socket, token, Interest::Read)?;
        Ok(Self {
            key,
            token,
            registry: registry.clone(),
            socket: Some(socket),
            buffer: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            advertised: Wrapping(0),
            guest_closed: 0,
            write_closed: false,
            blocked: false,
            sent: Wrapping(0),
            guest_buf_alloc: request.buf_alloc,
            guest_fwd_cnt: Wrapping(request.fwd_cnt),
            readable: true,
            read_closed: false,
            respond: true,
            tell_credit: false,
            shutdown_wanted: 0,
            shutdown_sent: 0,
            queued: false,
            orphan: false,
        })
    }

    /// Its name.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Notes what the guest says about its room, as every packet of it does.
    pub fn update_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = Wrapping(header.fwd_cnt);
    }

    /// The guest wants to know our room.
    pub fn request_credit(&mut self) {
        self.tell_credit = true;
    }

    /// The guest sent `len` bytes, which lie in `ranges` after the header: what the socket takes goes there straight
    /// from guest memory, the rest is kept.
    ///
    /// # Errors
    /// [`Violation`] if the guest sends more than it may, or after it said that it would not.
    pub fn forward(
        &mut self,
        memory: &GuestMemory,
        ranges: &[Range],
        len: u32,
    ) -> Result<(), Violation> {
        let room = credit::room(BUF_ALLOC, self.received, self.forwarded);
        if self.guest_closed & shutdown::SEND != 0 || len > room {
            return Err(Violation);
        }
        self.received += len;
        let len = len as usize;
        let mut done = 0;
        if let Some(socket) = self.socket.as_ref().filter(|_| self.buffer.is_empty()) {
            while done < len && !self.write_closed {
                let skip = HEADER_LEN + done;
                match guest_io::send(socket, memory, ranges, skip, len - done) {
                    Ok(count) => done += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => self.write_closed = true,
                }
            }
        }
        self.count_forwarded(done);
        if done < len {
            if self.write_closed || self.socket.is_none() {
                self.host_stopped_reading();
                self.count_forwarded(len - done);
            } else {
                self.keep(memory, ranges, HEADER_LEN + done, len - done);
                self.wait_for_room();
            }
        }
        Ok(())
    }

    /// Passes on what was kept. Called when there is room, and harmless otherwise.
    pub fn flush(&mut self) {
        while let Some(socket) = self.socket.as_ref().filter(|_| !self.buffer.is_empty()) {
            let (front, _) = self.buffer.as_slices();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(socket, front, flags) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.count_forwarded(count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.wait_for_room();
                    return;
                }
                Err(_) => {
                    self.host_stopped_reading();
                    return;
                }
            }
        }
        // Little is kept as a rule: give the room back.
        self.buffer = VecDeque::new();
        if self.blocked {
            self.blocked = false;
            self.watch(Interest::Read);
        }
        self.close_write_if_done();
    }

    /// The guest closes one or both directions (flags of [`shutdown`]).
    pub fn guest_shutdown(&mut self, flags: u32) {
        self.guest_closed |= flags & shutdown::BOTH;
        if self.guest_closed & shutdown::RECEIVE != 0 && !self.read_closed {
            self.read_closed = true;
            self.readable = false;
            if let Some(socket) = &self.socket {
                // Whoever writes on the host learns of it; if nobody does any more, it does not matter.
                let _ = socket.shutdown(Shutdown::Read);
            }
        }
        self.close_write_if_done();
    }

    /// There is something to read from the socket.
    pub fn set_readable(&mut self) {
        self.readable = !self.read_closed;
    }

    /// The other end of the socket is closed for both directions.
    pub fn set_hung_up(&mut self) {
        if !self.write_closed {
            self.host_stopped_reading();
        }
    }

    /// Whether the guest is done with the connection and everything it sent has been passed on: time for `RST`.
    pub fn finished(&self) -> bool {
        self.guest_closed == shutdown::BOTH && self.buffer.is_empty()
    }

    /// Whether bytes of the guest wait for a slow reader.
    pub fn undelivered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether there may be something to send to the guest.
    pub fn has_packet(&self) -> bool {
        !self.orphan
            && (self.respond
                || self.tell_credit
                || self.shutdown_wanted != self.shutdown_sent
                || (self.readable && self.credit() > 0))
    }

    /// Writes the next packet to the guest with identifier `cid` into `chain`, whose writable part holds a header and more; returns its
    /// length, or `None` if there is nothing to send after all.
    ///
    /// # Errors
    /// Guest memory cannot be reached.
    pub fn fill(
        &mut self,
        cid: u64,
        memory: &GuestMemory,
        chain: &Chain,
    ) -> io::Result<Option<u32>> {
        let mut header = Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.key.host,
            dst_port: self.key.guest,
            kind: TYPE_STREAM,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.forwarded.0,
            ..Header::default()
        };
        if self.respond {
            self.respond = false;
            header.op = op::RESPONSE;
        } else if let Some(count) = self.read(memory, &chain.writable)? {
            header.op = op::RW;
            header.len = count;
            self.sent += count;
        } else if self.shutdown_wanted != self.shutdown_sent {
            self.shutdown_sent = self.shutdown_wanted;
            header.op = op::SHUTDOWN;
            header.flags = self.shutdown_sent;
            if self.shutdown_sent == shutdown::BOTH {
                self.close_socket();
            }
        } else if self.tell_credit {
            header.op = op::CREDIT_UPDATE;
        } else {
            return Ok(None);
        }
        self.tell_credit = false;
        self.advertised = self.forwarded;
        Ok(Some(header_to(&header, memory, chain)?))
    }

    /// Reads from the socket into what follows the header; `None` if there is nothing now. Notices the end.
    fn read(&mut self, memory: &GuestMemory, ranges: &[Range]) -> io::Result<Option<u32>> {
        let credit = self.credit() as usize;
        let Some(socket) = self.socket.as_ref().filter(|_| self.readable && credit > 0) else {
            return Ok(None);
        };
        let room = total(ranges).saturating_sub(HEADER_LEN);
        let len = room.min(credit).min(MAX_DATA);
        loop {
            match guest_io::receive(socket, memory, ranges, HEADER_LEN, len) {
                Ok(0) => break,
                Ok(count) => return Ok(u32::try_from(count).ok()),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => {
                        self.readable = false;
                        return Ok(None);
                    }
                    io::ErrorKind::InvalidInput => return Err(error),
                    // The other end was closed with data of ours unread.
                    _ => break,
                },
            }
        }
        self.readable = false;
        self.read_closed = true;
        self.shutdown_wanted |= shutdown::SEND;
        Ok(None)
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        credit::room(self.guest_buf_alloc, self.sent, self.guest_fwd_cnt)
    }

    fn count_forwarded(&mut self, count: usize) {
        // Never more than BUF_ALLOC at once.
        self.forwarded += u32::try_from(count).unwrap_or(0);
        if (self.forwarded - self.advertised).0 >= CREDIT_STEP {
            self.tell_credit = true;
        }
    }

    fn keep(&mut self, memory: &GuestMemory, ranges: &[Range], skip: usize, len: usize) {
        let mut bytes = vec![0; len];
        // The device made sure that the chain holds that much; were it not there, zeroes of the guest's own making.
        let _ = guest_io::copy_from(memory, ranges, skip, &mut bytes);
        self.buffer.extend(bytes);
    }

    fn wait_for_room(&mut self) {
        if !self.blocked {
            self.blocked = true;
            self.watch(Interest::ReadWrite);
        }
    }

    fn watch(&mut self, interest: Interest) {
        if let Some(socket) = &self.socket
            && self.registry.modify(socket, self.token, interest).is_err()
        {
            self.host_stopped_reading();
        }
    }

    /// Nobody on the host takes what the guest sends: it learns of it.
    fn host_stopped_reading(&mut self) {
        self.write_closed = true;
        let lost = self.buffer.len();
        self.buffer = VecDeque::new();
        self.count_forwarded(lost);
        self.shutdown_wanted |= shutdown::RECEIVE;
    }

    /// Passes the guest's end of data on, after the last byte.
    fn close_write_if_done(&mut self) {
        if self.guest_closed & shutdown::SEND != 0 && self.buffer.is_empty() && !self.write_closed {
            self.write_closed = true;
            if let Some(socket) = &self.socket {
                let _ = socket.shutdown(Shutdown::Write);
            }
        }
    }

    fn close_socket(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.registry.remove(socket.as_fd());
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close_socket();
    }
}

/// Puts `header` at the start of the chain's writable part; returns the length of header and data.
fn header_to(header: &Header, memory: &GuestMemory, chain: &Chain) -> io::Result<u32> {
    let written = guest_io::copy_to(memory, &chain.writable, &header.to_bytes());
    let head = u32::try_from(HEADER_LEN).ok().filter(|_| written);
    head.and_then(|head| head.checked_add(header.len))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
