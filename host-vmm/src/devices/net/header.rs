//! What is left to do on a packet (virtio 1.2 §5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of a header, as any driver of virtio 1 has it.
pub const HEADER_LEN: usize = 12;

/// Where in a header the number of buffers is, 16 bits, that a packet to the guest takes.
pub const NUM_BUFFERS: usize = 10;

/// Makes the header of a packet that the guest sends one that a link may have: what the specification has a device ignore is
/// gone from it. The frame has `frame` bytes.
///
/// # Errors
/// It asks for what was not accepted, or for something that is not in the frame.
pub fn check(
    header: &mut [u8; HEADER_LEN],
    frame: usize,
    accepted: u64,
) -> Result<(), &'static str> {
    let has = |feature: u32| accepted & 1 << feature != 0;
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let needs_checksum = header[0] & NEEDS_CSUM != 0;
    let [header_len, segment, start, offset] = [2, 4, 6, 8].map(half);
    let mut clean = [0; HEADER_LEN];
    if needs_checksum {
        if !has(VIRTIO_NET_F_CSUM) {
            return Err("asks for a checksum, which was not offered");
        }
        let end = usize::from(start) + usize::from(offset) + 2;
        if end > frame {
            return Err("asks for a checksum outside of its packet");
        }
        clean[0] = NEEDS_CSUM;
        clean[6..8].copy_from_slice(&start.to_le_bytes());
        clean[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    let offered = match u32::from(header[1]) {
        VIRTIO_NET_HDR_GSO_NONE => {
            *header = clean;
            return Ok(());
        }
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    if !offered {
        return Err("asks for segments, which were not offered");
    }
    // §5.1.6.2.1.
    if !needs_checksum || segment == 0 {
        return Err("asks for segments without a size or a checksum");
    }
    let header_len = header_len.min(u16::try_from(frame).unwrap_or(u16::MAX));
    clean[1] = header[1];
    clean[2..4].copy_from_slice(&header_len.to_le_bytes());
    clean[4..6].copy_from_slice(&segment.to_le_bytes());
    *header = clean;
    Ok(())
}

/// As the byte that it is.
const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM.to_le_bytes()[0];

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;

    fn header(flags: u8, gso: u8, fields: [u16; 5]) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..2].copy_from_slice(&[flags, gso]);
        for (at, field) in fields.into_iter().enumerate() {
            bytes[2 + 2 * at..][..2].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn checked(header: [u8; HEADER_LEN], frame: usize, accepted: u64) -> Option<[u8; HEADER_LEN]> {
        let mut header = header;
        check(&mut header, frame, accepted).ok().map(|()| header)
    }

    #[test]
    fn what_was_accepted_goes_through_and_nothing_else_in_its_header() {
        // Flags of the other direction, and fields that mean nothing without others.
        let noise = header(0xfe, 0, [9, 9, 9, 9, 9]);
        assert_eq!(checked(noise, 60, 0), Some([0; HEADER_LEN]));
        let sum = header(0xff, 0, [9, 9, 34, 16, 9]);
        let clean = header(1, 0, [0, 0, 34, 16, 0]);
        assert_eq!(checked(sum, 60, ALL), Some(clean));
        let segments = header(1, 1, [u16::MAX, 1448, 34, 16, 7]);
        let clean = header(1, 1, [3000, 1448, 34, 16, 0]);
        assert_eq!(checked(segments, 3000, ALL), Some(clean));
    }

    #[test]
    fn what_was_not_accepted_or_cannot_be_is_refused() {
        let sum = header(1, 0, [0, 0, 34, 16, 0]);
        assert_eq!(checked(sum, 60, 0), None);
        assert_eq!(checked(sum, 52, ALL), Some(sum));
        assert_eq!(checked(sum, 51, ALL), None);
        let far = header(1, 0, [0, 0, u16::MAX, u16::MAX, 0]);
        assert_eq!(checked(far, 65_550, ALL), None);
        for gso in [2, 3, 4, 5, 0x80, 0x81, 0xff] {
            let segments = header(1, gso, [54, 1448, 34, 16, 0]);
            assert_eq!(checked(segments, 3000, ALL), None, "{gso}");
        }
        for (flags, size) in [(0, 1448), (1, 0)] {
            let segments = header(flags, 1, [54, size, 34, 16, 0]);
            assert_eq!(checked(segments, 3000, ALL), None);
        }
    }
}
