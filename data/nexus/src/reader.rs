//! A way to read a volume that is no attachment: a [`Device`] that refuses every change.
//!
//! An attachment has a number because its host may have writes that were completed and not flushed, which can get lost
//! (I10). Who only reads has none: a reader takes no number, changes nothing in the record, and raises no epoch. What it is
//! given is what every host is given: the nexus answers within its lease (I9) and in the order of operations (I11).

use crate::state::{Nexus, State};
use device::{BlockCount, Device, Geometry, Lba, Status};
use rt::{DmaBuf, DmaBytes, Durability};
use std::rc::Rc;

/// A volume that can be read; a cheap handle.
#[derive(Clone)]
pub struct Reader(Rc<State>);

impl Nexus {
    /// A way to read the volume.
    pub fn reader(&self) -> Reader {
        Reader(Rc::clone(&self.0))
    }
}

impl Device for Reader {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.0.read(lba, buf).await
    }

    async fn write(&self, _: Lba, _: DmaBytes, _: Durability) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn write_zeroes(&self, _: Lba, _: BlockCount, _: Durability) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn unmap(&self, _: Lba, _: BlockCount) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    /// It has written nothing.
    async fn flush(&self) -> Result<(), Status> {
        Ok(())
    }
}
