//! Messages of the front end: bytes in, checked values out.

/// Bytes before the body of every message.
pub const HEADER_LEN: usize = 12;
/// Largest number of memory regions that we accept.
pub const MAX_REGIONS: usize = 32;
/// Largest body of any request that we accept, in bytes: a full memory table.
pub const MAX_BODY: usize = TABLE_HEAD + MAX_REGIONS * REGION_LEN;
/// Most descriptors that one message may carry.
pub const MAX_FDS: usize = MAX_REGIONS;
/// Largest piece of configuration space in one message, in bytes.
pub const MAX_CONFIG: u32 = 256;

const TABLE_HEAD: usize = 8;
const REGION_LEN: usize = 32;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0b11;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// A request of ours, without a body: the configuration space has changed. Number 2, this version of the protocol, no reply.
pub const CONFIG_CHANGED: [u8; HEADER_LEN] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// Index and "no descriptor" flag of the messages that carry a ring's event descriptor.
const RING_INDEX_MASK: u64 = 0xff;
const RING_NO_FD: u64 = 1 << 8;

/// What precedes the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request number.
    pub request: u32,
    /// The front end wants to be told that the request was done.
    pub need_reply: bool,
    /// Length of the body in bytes, at most [`MAX_BODY`].
    pub size: usize,
}

/// A piece of guest memory as the front end announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address in the front end's own address space, by which it names rings.
    pub user: u64,
    /// Offset in the memory file in bytes.
    pub offset: u64,
}

/// Where a ring's parts lie, in the front end's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub available: u64,
}

/// A request that we understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which features there are.
    GetFeatures,
    /// Which of them the driver accepted.
    SetFeatures(u64),
    /// Which parts of the protocol we speak.
    GetProtocolFeatures,
    /// Which of them the front end will use.
    SetProtocolFeatures(u64),
    /// The session begins.
    SetOwner,
    /// Obsolete: stops every ring.
    ResetOwner,
    /// Guest memory.
    SetMemTable(Vec<Region>),
    /// Size of a ring.
    SetRingSize {
        /// Ring.
        index: usize,
        /// Descriptors.
        size: u32,
    },
    /// Place of a ring.
    SetRingAddresses {
        /// Ring.
        index: usize,
        /// Where its parts are.
        addresses: RingAddresses,
    },
    /// Where in the available ring to go on.
    SetRingBase {
        /// Ring.
        index: usize,
        /// Index of the next entry.
        base: u32,
    },
    /// Stops a ring and asks where it stopped.
    GetRingBase {
        /// Ring.
        index: usize,
    },
    /// Descriptor by which the driver kicks.
    SetRingKick(RingFd),
    /// Descriptor by which the driver is interrupted.
    SetRingCall(RingFd),
    /// Descriptor by which errors are reported.
    SetRingErr(RingFd),
    /// Whether a ring may be used.
    SetRingEnable {
        /// Ring.
        index: usize,
        /// Whether.
        enable: bool,
    },
    /// How many rings there are.
    GetQueueNum,
    /// Socket for requests of ours.
    SetBackendFd,
    /// Reads the configuration space.
    GetConfig {
        /// First byte.
        offset: u32,
        /// Bytes.
        size: u32,
    },
    /// Writes the configuration space.
    SetConfig {
        /// First byte.
        offset: u32,
        /// What to write there.
        data: Vec<u8>,
    },
}

/// A ring's event descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFd {
    /// Ring.
    pub index: usize,
    /// Whether the message carries a descriptor.
    pub has_fd: bool,
}

/// Why a message was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not this version of the protocol, or a reply where a request belongs.
    #[error("vhost-user message has unusable flags {flags:#x}")]
    Flags {
        /// As received.
        flags: u32,
    },
    /// Longer than any message that we accept.
    #[error("vhost-user message of {size} bytes is too long")]
    TooLong {
        /// As announced.
        size: u32,
    },
    /// A request that we did not offer.
    #[error("vhost-user request {request} is not supported")]
    Unsupported {
        /// Its number.
        request: u32,
    },
    /// The body does not have the length that its content needs.
    #[error("vhost-user request {request} has a body of {size} bytes")]
    BodyLength {
        /// Its number.
        request: u32,
        /// Bytes received.
        size: usize,
    },
    /// A value that makes no sense.
    #[error("vhost-user request {request} has an invalid value: {what}")]
    Value {
        /// Its number.
        request: u32,
        /// Which.
        what: &'static str,
    },
}

impl Header {
    /// Parses and checks a header.
    ///
    /// # Errors
    /// Flags that are not a request's, or a body that is too long.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, MessageError> {
        let [request, flags, size] = [0, 4, 8]
            .map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        if flags & !FLAG_NEED_REPLY != VERSION & VERSION_MASK {
            return Err(MessageError::Flags { flags });
        }
        match usize::try_from(size) {
            Ok(body) if body <= MAX_BODY => Ok(Self {
                request,
                need_reply: flags & FLAG_NEED_REPLY != 0,
                size: body,
            }),
            _ => Err(MessageError::TooLong { size }),
        }
    }

    /// The bytes of a reply to this request.
    #[must_use]
    pub fn reply(&self, body: &[u8]) -> Vec<u8> {
        // Our bodies are shorter than MAX_BODY.
        let size = u32::try_from(body.len()).unwrap_or(0);
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        for word in [self.request, VERSION | FLAG_REPLY, size] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(body);
        bytes
    }
}

impl Request {
    /// Parses the body that belongs to `header`.
    ///
    /// # Errors
    /// A request that we did not offer, a body of the wrong length, or a value that makes no sense.
    pub fn parse(header: &Header, body: &[u8]) -> Result<Self, MessageError> {
        let mut fields = Fields {
            request: header.request,
            size: body.len(),
            rest: body,
        };
        let request = Self::parse_fields(header.request, &mut fields)?;
        if fields.rest.is_empty() {
            Ok(request)
        } else {
            Err(fields.wrong_length())
        }
    }

    fn parse_fields(request: u32, fields: &mut Fields<'_>) -> Result<Self, MessageError> {
        Ok(match request {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures(fields.u64()?),
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => Self::SetMemTable(fields.regions()?),
            8 => Self::SetRingSize {
                index: fields.index()?,
                size: fields.u32()?,
            },
            9 => {
                let index = fields.index()?;
                if fields.u32()? != 0 {
                    return Err(fields.invalid("logging was not offered"));
                }
                let addresses = RingAddresses {
                    descriptors: fields.u64()?,
                    used: fields.u64()?,
                    available: fields.u64()?,
                };
                let _log = fields.u64()?;
                Self::SetRingAddresses { index, addresses }
            }
            10 => Self::SetRingBase {
                index: fields.index()?,
                base: fields.u32()?,
            },
            11 => {
                let index = fields.index()?;
                let _unused = fields.u32()?;
                Self::GetRingBase { index }
            }
            12 => Self::SetRingKick(fields.ring_fd()?),
            13 => Self::SetRingCall(fields.ring_fd()?),
            14 => Self::SetRingErr(fields.ring_fd()?),
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures(fields.u64()?),
            17 => Self::GetQueueNum,
            18 => {
                let index = fields.index()?;
                let enable = match fields.u32()? {
                    0 => false,
                    1 => true,
                    _ => return Err(fields.invalid("ring is neither enabled nor disabled")),
                };
                Self::SetRingEnable { index, enable }
            }
            21 => Self::SetBackendFd,
            24 => {
                let (offset, size) = fields.config()?;
                // The front end sends as many bytes as it wants back; they mean nothing.
                let _room = fields.take(size as usize)?;
                Self::GetConfig { offset, size }
            }
            25 => {
                let (offset, size) = fields.config()?;
                let data = fields.take(size as usize)?.to_vec();
                Self::SetConfig { offset, data }
            }
            request => return Err(MessageError::Unsupported { request }),
        })
    }

    /// Fewest and most descriptors that this request carries.
    #[must_use]
    pub fn descriptors(&self) -> (usize, usize) {
        match self {
            Self::SetMemTable(regions) => (0, regions.len()),
            Self::SetRingKick(ring) | Self::SetRingCall(ring) | Self::SetRingErr(ring) => {
                let count = usize::from(ring.has_fd);
                (count, count)
            }
            Self::SetBackendFd => (1, 1),
            _ => (0, 0),
        }
    }
}

/// What is left of a body.
struct Fields<'a> {
    request: u32,
    size: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], MessageError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.wrong_length())?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, MessageError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn index(&mut self) -> Result<usize, MessageError> {
        let index = self.u32()?;
        usize::try_from(index).map_err(|_| self.invalid("ring index"))
    }

    fn ring_fd(&mut self) -> Result<RingFd, MessageError> {
        let value = self.u64()?;
        if value & !(RING_INDEX_MASK | RING_NO_FD) != 0 {
            return Err(self.invalid("ring index"));
        }
        let index =
            usize::try_from(value & RING_INDEX_MASK).map_err(|_| self.invalid("ring index"))?;
        Ok(RingFd {
            index,
            has_fd: value & RING_NO_FD == 0,
        })
    }

    fn regions(&mut self) -> Result<Vec<Region>, MessageError> {
        let count = self.u32()?;
        let _padding = self.u32()?;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| (1..=MAX_REGIONS).contains(count))
            .ok_or_else(|| self.invalid("number of memory regions"))?;
        (0..count)
            .map(|_| {
                Ok(Region {
                    guest: self.u64()?,
                    size: self.u64()?,
                    user: self.u64()?,
                    offset: self.u64()?,
                })
            })
            .collect()
    }

    fn config(&mut self) -> Result<(u32, u32), MessageError> {
        let (offset, size) = (self.u32()?, self.u32()?);
        let _flags = self.u32()?;
        if size > MAX_CONFIG || offset > MAX_CONFIG - size {
            return Err(self.invalid("range of the configuration space"));
        }
        Ok((offset, size))
    }

    fn wrong_length(&self) -> MessageError {
        MessageError::BodyLength {
            request: self.request,
            size: self.size,
        }
    }

    fn invalid(&self, what: &'static str) -> MessageError {
        MessageError::Value {
            request: self.request,
            what,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::devices::testing::Random;

    fn header(request: u32, size: usize) -> Header {
        Header {
            request,
            need_reply: false,
            size,
        }
    }

    fn words(values: &[u64]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    fn parse(request: u32, body: &[u8]) -> Result<Request, MessageError> {
        Request::parse(&header(request, body.len()), body)
    }

    #[test]
    fn header_round_trip_and_refusals() {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = 5;
        bytes[4] = 0b1001;
        bytes[8] = 40;
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(
            header,
            Header {
                request: 5,
                need_reply: true,
                size: 40
            }
        );
        assert_eq!(
            header.reply(&[7; 8]),
            [5, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]
        );
        for flags in [0_u8, 2, 3, 0b101, 0b1_0001] {
            bytes[4] = flags;
            assert!(matches!(
                Header::parse(&bytes),
                Err(MessageError::Flags { .. })
            ));
        }
        bytes[4] = 1;
        bytes[8..].copy_from_slice(&1033_u32.to_le_bytes());
        assert_eq!(
            Header::parse(&bytes),
            Err(MessageError::TooLong { size: 1033 })
        );
        bytes[8..].copy_from_slice(&1032_u32.to_le_bytes());
        assert!(Header::parse(&bytes).is_ok());
    }

    #[test]
    fn memory_table() {
        let body = words(&[2, 0, 4096, 1, 0, 8192, 4096, 2, 4096]);
        let Request::SetMemTable(regions) = parse(5, &body).unwrap() else {
            panic!("not a memory table");
        };
        assert_eq!(regions.len(), 2);
        assert_eq!(
            regions[1],
            Region {
                guest: 8192,
                size: 4096,
                user: 2,
                offset: 4096
            }
        );
        // One region announced, two sent; two announced, one sent; none; 33.
        assert!(parse(5, &words(&[1, 0, 0, 0, 0, 0, 0, 0, 0])).is_err());
        assert!(parse(5, &words(&[2, 0, 0, 0, 0])).is_err());
        assert!(parse(5, &words(&[0])).is_err());
        assert!(parse(5, &words(&[33; 133])).is_err());
    }

    #[test]
    fn ring_descriptors_and_flags() {
        let ring = |index, has_fd| RingFd { index, has_fd };
        assert_eq!(
            parse(12, &words(&[2])),
            Ok(Request::SetRingKick(ring(2, true)))
        );
        assert_eq!(
            parse(13, &words(&[0x101])),
            Ok(Request::SetRingCall(ring(1, false)))
        );
        assert!(parse(14, &words(&[0x200])).is_err());
        assert!(parse(18, &words(&[2 << 32])).is_err());
        assert!(parse(9, &words(&[1 << 32, 0, 0, 0, 0])).is_err());
    }

    #[test]
    fn config_space_is_bounded() {
        let mut body = vec![0; 12 + 256];
        body[4..8].copy_from_slice(&256_u32.to_le_bytes());
        assert_eq!(
            parse(24, &body),
            Ok(Request::GetConfig {
                offset: 0,
                size: 256
            })
        );
        body[0] = 1;
        assert!(parse(24, &body).is_err());
        body[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(25, &body).is_err());
    }

    #[test]
    fn every_request_refuses_a_body_one_byte_off() {
        for request in 0..64 {
            for size in 0..=MAX_BODY {
                let body = vec![0; size];
                if parse(request, &body).is_ok() {
                    assert!(parse(request, &vec![0; size + 1]).is_err(), "{request}");
                    assert!(
                        size == 0 || parse(request, &body[1..]).is_err(),
                        "{request}"
                    );
                }
            }
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut random = Random::new(1);
        let mut accepted = 0;
        for _ in 0..200_000 {
            let request = random.below(40);
            let size = [0, 8, 12, 40, random.below(300) as usize][random.below(5) as usize];
            let mut body = vec![0; size];
            random.fill(&mut body);
            // Small numbers get further.
            for byte in &mut body {
                if random.below(3) != 0 {
                    *byte &= 1;
                }
            }
            if let Ok(request) = parse(request, &body) {
                let (least, most) = request.descriptors();
                assert!(least <= most && most <= MAX_FDS);
                accepted += 1;
            }
        }
        assert!(accepted > 1000);
    }
}
