//! The seam between the stages: a [`Device`] is anything with blocks, and every stage is one over another.
//!
//! On the path of a byte this is the lowest stage above [`rt`]: a pool lies on a device, a nexus is one over others, a
//! target or a front-end serves one.
//!
//! # Invariants
//! 1. Every device checks range and shape of what it is asked before it starts ([`Geometry::check`]).
//! 2. A completed write survives the crash of every process. Only a power cut may take it, and only until a flush that
//!    began after its completion, or its own FUA, has completed.
//! 3. Dropping the future of an operation cancels nothing that may already be under way: the caller must assume that it
//!    happens, at any later time until the device is closed.

mod any;
pub mod disk;
mod error;
pub mod fault;
pub mod file;
mod mem;
mod null;
mod status;
mod types;
pub mod uri;

pub use any::{AnyDevice, open, open_with};
pub use error::{Error, ErrorKind};
pub use fault::Fault;
pub use file::File;
pub use mem::Mem;
pub use null::Null;
pub use status::Status;
pub use types::{BlockCount, ByteCount, Geometry, Lba};
pub use uri::DeviceUri;

use rt::{DmaBuf, DmaBytes, Durability};
use std::future::Future;

/// Something with blocks.
///
/// Written as plain `async fn` in implementations; the futures stay on the reactor that polls them.
pub trait Device {
    /// Block size and count. May grow, never shrinks, while the device is open.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from block `lba` on and hands it back.
    ///
    /// # Shape
    /// `buf.len()` is a non-zero multiple of the block size; `buf` is aligned to [`rt::BLOCK_ALIGN`] where the caller can.
    fn read(&self, lba: Lba, buf: DmaBuf) -> impl Future<Output = Result<DmaBuf, Status>>;

    /// Writes `data` to the blocks from `lba` on; atomic per block, not across blocks.
    fn write(
        &self,
        lba: Lba,
        data: DmaBytes,
        durability: Durability,
    ) -> impl Future<Output = Result<(), Status>>;

    /// Makes `count` blocks read as zeroes; may give their space back.
    fn write_zeroes(
        &self,
        lba: Lba,
        count: BlockCount,
        durability: Durability,
    ) -> impl Future<Output = Result<(), Status>>;

    /// Gives the space of `count` blocks back; afterwards they read as zeroes on every device of Orlop.
    fn unmap(&self, lba: Lba, count: BlockCount) -> impl Future<Output = Result<(), Status>>;

    /// Makes every write that completed before this call durable.
    fn flush(&self) -> impl Future<Output = Result<(), Status>>;
}
