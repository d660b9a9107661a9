//! A namespace as a device: splits what is larger than one command may be.
//!
//! # Invariants
//! 1. No command carries more data than the target allows, nor crosses 65536 blocks.
//! 2. A command whose data was damaged on the way, which the target or this end has noticed, has not been executed or is
//!    a read: it is sent again, a few times.

use super::association::Association;
use super::queue::{Answer, Submission};
use crate::wire::command::{DatasetRange, Sqe, io};
use crate::wire::status::StatusCode;
use device::{BlockCount, Device, Geometry, Lba, Status};
use rt::{DmaBuf, DmaBytes, Durability};
use std::cell::Cell;
use std::rc::Rc;
use zerocopy::IntoBytes;

/// Blocks of one command: the field has 16 bits.
const BLOCKS_MAX: u64 = 1 << 16;
/// How often a command with damaged data is sent.
const ATTEMPTS: u32 = 4;

/// What is known of a namespace.
pub(super) struct NamespaceState {
    nsid: u32,
    geometry: Cell<Geometry>,
}

impl NamespaceState {
    pub(super) const fn absent(nsid: u32) -> Self {
        Self { nsid, geometry: Cell::new(Geometry { block_size: 4096, blocks: BlockCount(0) }) }
    }

    pub(super) fn set_geometry(&self, geometry: Geometry) {
        self.geometry.set(geometry);
    }
}

/// A device behind an association; clones are handles to the same one.
#[derive(Clone)]
pub struct Namespace {
    association: Association,
    state: Rc<NamespaceState>,
}

impl Namespace {
    pub(super) const fn new(association: Association, state: Rc<NamespaceState>) -> Self {
        Self { association, state }
    }

    /// The association that it belongs to.
    pub const fn association(&self) -> &Association {
        &self.association
    }

    /// Notes that the namespace has this size by now: whoever made it grow knows that before an event tells.
    ///
    /// # Units
    /// Bytes, of whole blocks.
    pub fn note_size(&self, size_bytes: u64) {
        let Geometry { block_size, .. } = self.geometry();
        self.state
            .set_geometry(Geometry { block_size, blocks: BlockCount(size_bytes / u64::from(block_size)) });
    }

    async fn once(&self, sqe: Sqe, send: Option<DmaBytes>) -> Result<Answer, Status> {
        for _ in 1..ATTEMPTS {
            let submission = Submission { sqe, send: send.clone(), receive: None, patient: false };
            let answer = self.association.submit(submission).await?;
            match answer.outcome {
                Err(StatusCode::TRANSIENT_TRANSPORT_ERROR) => {} // 2
                Err(code) => return Err(code.into()),
                Ok(_) => return Ok(answer),
            }
        }
        Err(Status::Internal)
    }

    /// Reads up to the greatest transfer.
    async fn read_once(&self, lba: Lba, count: u64, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let len = buf.len();
        let mut buf = buf;
        for _ in 1..ATTEMPTS {
            let sqe = Sqe::blocks(io::READ, self.state.nsid, lba.0, count, 0);
            let submission = Submission { sqe, send: None, receive: Some(buf), patient: false };
            let answer = self.association.submit(submission).await?;
            match answer.outcome {
                Err(StatusCode::TRANSIENT_TRANSPORT_ERROR) => {
                    buf = answer.data.filter(|data| data.len() == len).unwrap_or_else(|| DmaBuf::new(len));
                }
                Err(code) => return Err(code.into()),
                // A read that succeeds with less than was asked for is a target's mistake, not data.
                Ok(_) => return answer.data.filter(|data| data.len() == len).ok_or(Status::Internal),
            }
        }
        Err(Status::Internal)
    }

    /// Blocks of data that one command may carry (invariant 1).
    fn blocks_per_command(&self) -> u64 {
        let bytes = self.association.data_bytes_max() as u64;
        (bytes / u64::from(self.geometry().block_size)).clamp(1, BLOCKS_MAX)
    }

    fn block_bytes(&self, count: u64) -> usize {
        let bytes = count * u64::from(self.geometry().block_size);
        usize::try_from(bytes).expect("within a buffer")
    }
}

impl Device for Namespace {
    fn geometry(&self) -> Geometry {
        self.state.geometry.get()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        let count = self.geometry().check(lba, buf.len())?.0;
        let step = self.blocks_per_command();
        if count <= step {
            return self.read_once(lba, count, buf).await;
        }
        // Where an error ends the read the pieces that were read go with it; the caller gets no buffer then anyway.
        let (mut rest, mut done, mut at) = (buf, None::<DmaBuf>, 0);
        while at < count {
            let piece = step.min(count - at);
            let window = rest.split_to(self.block_bytes(piece));
            let read = self.read_once(lba.plus(at), piece, window).await?;
            match &mut done {
                Some(done) => done.unsplit(read),
                None => done = Some(read),
            }
            at += piece;
        }
        Ok(done.expect("at least one piece"))
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        let count = self.geometry().check(lba, data.len())?.0;
        let step = self.blocks_per_command();
        let mut at = 0;
        while at < count {
            let piece = step.min(count - at);
            let sqe = Sqe::blocks(io::WRITE, self.state.nsid, lba.0 + at, piece, fua(durability));
            let bytes = if piece == count {
                data.clone()
            } else {
                data.slice(self.block_bytes(at)..self.block_bytes(at + piece))
            };
            self.once(sqe, Some(bytes)).await?;
            at += piece;
        }
        Ok(())
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        let count = self.geometry().check_blocks(lba, count)?.0;
        let mut at = 0;
        while at < count {
            let piece = BLOCKS_MAX.min(count - at);
            let control = fua(durability) | io::DEALLOCATE;
            let sqe = Sqe::blocks(io::WRITE_ZEROES, self.state.nsid, lba.0 + at, piece, control);
            self.once(sqe, None).await?;
            at += piece;
        }
        Ok(())
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        let count = self.geometry().check_blocks(lba, count)?.0;
        let mut at = 0;
        while at < count {
            let piece = (count - at).min(u64::from(u32::MAX));
            let blocks = u32::try_from(piece).expect("limited above");
            let range =
                DatasetRange { attributes: 0.into(), blocks: blocks.into(), slba: (lba.0 + at).into() };
            let data = Some(DmaBytes::copy_of(range.as_bytes()));
            let deallocate = [0, io::DATASET_DEALLOCATE, 0, 0, 0, 0];
            self.once(Sqe::new(io::DATASET_MANAGEMENT, self.state.nsid, deallocate), data).await?;
            at += piece;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), Status> {
        self.once(Sqe::new(io::FLUSH, self.state.nsid, [0; 6]), None).await.map(|_| ())
    }
}

fn fua(durability: Durability) -> u32 {
    match durability {
        Durability::Durable => io::FUA,
        Durability::Cached => 0,
    }
}
