//! Packet headers (virtio 1.2 §5.10.6).

/// Bytes before the data of every packet.
pub const HEADER_LEN: usize = 44;

/// The host's context identifier.
pub const HOST_CID: u64 = 2;

/// `type` of stream packets, the only ones that we speak.
pub const TYPE_STREAM: u16 = 1;

/// What a packet is for.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Ends or refuses one.
    pub const RST: u16 = 3;
    /// Closes one or both directions.
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Says how much room there is.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks how much room there is.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`].
pub mod shutdown {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender.
    pub src_cid: u64,
    /// Receiver.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Type of socket.
    pub kind: u16,
    /// Purpose, see [`op`].
    pub op: u16,
    /// Depends on `op`.
    pub flags: u32,
    /// Bytes that the sender can hold for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has passed on so far, modulo 2³².
    pub fwd_cnt: u32,
}

impl Header {
    /// Parses a header; any bytes are one.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let mut bytes = [0; HEADER_LEN];
        for (value, byte) in (0_u8..).zip(&mut bytes) {
            *byte = value;
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!(header.kind, 0x1d1c);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(header.buf_alloc, 0x2726_2524);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.to_bytes(), bytes);
    }
}
