//! The device: one queue, and the disk behind it.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::{
    disk::{Disk, SECTOR},
    request::{HEADER_LEN, ID_LEN, Operation, RANGE_LEN, SectorRange, Status},
};
use crate::{
    devices::{
        DeviceError, Progress, VirtioDevice,
        event_loop::{Readiness, Registry},
        guest_io,
        virtqueue::{Chain, QueueError, Virtqueue, total},
    },
    vm::memory::GuestMemory,
};

/// Device ID (virtio 1.2 §5.2.1).
const DEVICE_TYPE: u32 = 2;

const QUEUE_SIZES: [u16; 1] = [256];

/// Pieces of data in one request: a chain has a header and a status beside them.
const SEG_MAX: u32 = 254;

/// Bytes of each of them. As many as [`SEG_MAX`] are less than [`MAX_DATA`], whatever a guest's administrator allows its
/// disks.
const SIZE_MAX: u32 = 128 << 10;

/// Most data of one request in bytes. Drivers ask for a few MiB at most; more would hold up whoever wants this device
/// to stop.
const MAX_DATA: usize = 32 << 20;
const _: () = assert!(SEG_MAX as usize * SIZE_MAX as usize <= MAX_DATA);

/// Most sectors, and ranges, to discard in one request. Where the host's file system can do it at all, how many does not
/// matter.
const DISCARD: Limits = Limits {
    sectors: 1 << 22,
    ranges: 16,
};

/// The same to fill with zeroes, which may have to be written like any other data.
const WRITE_ZEROES: Limits = Limits {
    sectors: 1 << 16,
    ranges: 1,
};
const _: () = assert!(WRITE_ZEROES.sectors as u64 * SECTOR <= MAX_DATA as u64);

/// What a request about ranges may name.
#[derive(Clone, Copy)]
struct Limits {
    /// Of each range.
    sectors: u32,
    ranges: u32,
}

/// Requests handled before other events are looked at again.
const BUDGET: usize = 32;

/// The block device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    queue: Option<Virtqueue>,
    /// The driver may have asked for something.
    pending: bool,
    chain: Chain,
}

impl Block {
    /// A device with this disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            disk,
            queue: None,
            pending: false,
            chain: Chain::default(),
        }
    }

    /// Does what a chain asks, and gives how many of its bytes were written.
    fn answer(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, DeviceError> {
        let unusable = |why| QueueError::Buffer {
            head: chain.head,
            why,
        };
        let mut header = [0; HEADER_LEN];
        if !guest_io::copy_from(memory, &chain.readable, 0, &mut header) {
            return Err(unusable("shorter than a request's header").into());
        }
        // The last byte is the status (§5.2.6).
        let data = total(&chain.writable)
            .checked_sub(1)
            .ok_or_else(|| unusable("no room for a status"))?;
        let operation = Operation::parse(&header);
        let (status, written) = match self.perform(operation, memory, chain, data) {
            Ok(written) => (Status::Ok, written),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => (Status::Unsupported, 0),
            // An error that the guest sees is one that its file system has from then on.
            Err(error) if is_full(&error) => return Err(DeviceError::NoRoom),
            Err(error) => {
                tracing::debug!(?operation, %error, "A disk's request failed");
                (Status::Error, 0)
            }
        };
        if !guest_io::copy_to_at(memory, &chain.writable, data, &[status.to_byte()]) {
            return Err(unusable("outside of guest memory").into());
        }
        // Bytes before the status count as written whatever is in them: the driver looks at the status first.
        let written = if status == Status::Ok { written } else { data };
        Ok(u32::try_from(written.saturating_add(1)).map_err(|_| unusable("too long"))?)
    }

    /// Gives the number of bytes written into the chain. `data` of its writable bytes are for data.
    fn perform(
        &self,
        operation: Operation,
        memory: &GuestMemory,
        chain: &Chain,
        data: usize,
    ) -> io::Result<usize> {
        let given = total(&chain.readable) - HEADER_LEN;
        if data.max(given) > MAX_DATA {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match operation {
            Operation::Read(offset) => {
                self.disk.read(memory, &chain.writable, data, offset)?;
                return Ok(data);
            }
            Operation::Write(offset) => {
                self.disk
                    .write(memory, &chain.readable, HEADER_LEN, given, offset)?;
            }
            Operation::Flush => self.disk.flush()?,
            Operation::Discard | Operation::WriteZeroes => {
                self.clear(operation, memory, chain, given)?;
            }
            Operation::Id => {
                let mut id = [0; ID_LEN];
                id[..3].copy_from_slice(b"vmm");
                let count = data.min(ID_LEN);
                if !guest_io::copy_to(memory, &chain.writable, &id[..count]) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                return Ok(count);
            }
            Operation::Unknown => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(0)
    }

    /// Discards ranges or fills them with zeroes.
    fn clear(
        &self,
        operation: Operation,
        memory: &GuestMemory,
        chain: &Chain,
        given: usize,
    ) -> io::Result<()> {
        let discards = operation == Operation::Discard;
        let limits = if discards { DISCARD } else { WRITE_ZEROES };
        let count = given / RANGE_LEN;
        if given == 0 || !given.is_multiple_of(RANGE_LEN) || count > limits.ranges as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for index in 0..count {
            let mut bytes = [0; RANGE_LEN];
            let at = HEADER_LEN + index * RANGE_LEN;
            if !guest_io::copy_from(memory, &chain.readable, at, &mut bytes) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let range = SectorRange::parse(&bytes);
            // A flag that is none, or one that discarding does not have (§5.2.6.2).
            if range.unknown_flags || (discards && range.unmap) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if range.len > u64::from(limits.sectors) * SECTOR {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            match discards {
                true => self.disk.discard(range.offset, range.len)?,
                false => {
                    self.disk
                        .write_zeroes(range.offset, range.len, range.unmap)?;
                }
            }
        }
        Ok(())
    }

    /// The configuration space (§5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.disk.size() / SECTOR).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(34, &1_u16.to_le_bytes());
        put(36, &DISCARD.sectors.to_le_bytes());
        put(40, &DISCARD.ranges.to_le_bytes());
        // Discarding less than a page frees nothing.
        put(44, &8_u32.to_le_bytes());
        put(48, &WRITE_ZEROES.sectors.to_le_bytes());
        put(52, &WRITE_ZEROES.ranges.to_le_bytes());
        put(56, &[1]);
        config
    }
}

/// Whether a write found no room on the host.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let writable =
            1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        let kind = match self.disk.is_read_only() {
            true => 1 << VIRTIO_BLK_F_RO,
            false => writable,
        };
        1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | kind
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.config();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn attach(&mut self, _registry: Registry) -> io::Result<()> {
        Ok(())
    }

    fn start_queue(&mut self, _index: usize, queue: Virtqueue) {
        self.queue = Some(queue);
    }

    fn stop_queue(&mut self, _index: usize) -> Option<Virtqueue> {
        self.pending = false;
        self.queue.take()
    }

    fn queue(&mut self, _index: usize) -> Option<&mut Virtqueue> {
        self.queue.as_mut()
    }

    fn kick(&mut self, _index: usize) {
        self.pending = true;
    }

    fn ready(&mut self, _token: u32, _readiness: Readiness) {}

    fn run(&mut self) -> Result<Progress, DeviceError> {
        if !self.pending {
            return Ok(Progress::Idle);
        }
        let Some(mut queue) = self.queue.take() else {
            return Ok(Progress::Idle);
        };
        let mut chain = std::mem::take(&mut self.chain);
        let result = queue.serve(&mut chain, BUDGET, |memory, chain| {
            self.answer(memory, chain).map(Some)
        });
        self.pending = result
            .as_ref()
            .is_ok_and(|progress| *progress == Progress::More);
        self.chain = chain;
        self.queue = Some(queue);
        result
    }
}
