//! A device that forgets: writes vanish, reads are zeroes. It measures the cost of everything above it.

use crate::{BlockCount, Device, Geometry, Lba, Status};
use rt::{DmaBuf, DmaBytes, Durability};

/// A device without contents.
#[derive(Clone, Debug)]
pub struct Null {
    geometry: Geometry,
}

impl Null {
    /// A device of this shape.
    pub const fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl Device for Null {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, lba: Lba, mut buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.geometry.check(lba, buf.len())?;
        // A reused buffer holds older data of this process, which must not leave it.
        buf.fill(0);
        Ok(buf)
    }

    async fn write(&self, lba: Lba, data: DmaBytes, _durability: Durability) -> Result<(), Status> {
        self.geometry.check(lba, data.len()).map(|_| ())
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, _durability: Durability) -> Result<(), Status> {
        self.geometry.check_blocks(lba, count).map(|_| ())
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.geometry.check_blocks(lba, count).map(|_| ())
    }

    async fn flush(&self) -> Result<(), Status> {
        Ok(())
    }
}
