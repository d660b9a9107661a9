//! A device that tells when its n-th change is being made: the moment at which the test kills the program.

use device::{BlockCount, Device, Geometry, Lba, Status};
use rt::sync::Event;
use rt::{DmaBuf, DmaBytes, Durability};
use std::cell::Cell;
use std::rc::Rc;

/// Counts writes and flushes and blows at one of them.
#[derive(Default)]
pub(crate) struct Fuse {
    count: Cell<u64>,
    blows_at: Cell<u64>,
    blown: Event,
}

impl Fuse {
    /// Counts from zero again; blows at the `at`-th change (never if zero).
    pub(crate) fn arm(&self, at: u64) {
        self.count.set(0);
        self.blows_at.set(at);
    }

    /// Changes since it was armed.
    pub(crate) fn count(&self) -> u64 {
        self.count.get()
    }

    /// Whether it has blown.
    pub(crate) fn is_blown(&self) -> bool {
        self.blows_at.get() != 0 && self.count.get() >= self.blows_at.get()
    }

    /// Waits until it blows.
    pub(crate) async fn blow(&self) {
        while !self.is_blown() {
            self.blown.wait().await;
        }
    }

    fn change(&self) {
        self.count.set(self.count.get() + 1);
        if self.is_blown() {
            self.blown.notify();
        }
    }
}

/// A device with a fuse.
#[derive(Clone)]
pub(crate) struct Fused<D> {
    pub(crate) device: D,
    pub(crate) fuse: Rc<Fuse>,
}

impl<D: Device> Device for Fused<D> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.device.read(lba, buf).await
    }

    async fn write(&self, lba: Lba, data: DmaBytes, durability: Durability) -> Result<(), Status> {
        self.fuse.change();
        self.device.write(lba, data, durability).await
    }

    async fn write_zeroes(&self, lba: Lba, count: BlockCount, durability: Durability) -> Result<(), Status> {
        self.fuse.change();
        self.device.write_zeroes(lba, count, durability).await
    }

    async fn unmap(&self, lba: Lba, count: BlockCount) -> Result<(), Status> {
        self.fuse.change();
        self.device.unmap(lba, count).await
    }

    async fn flush(&self) -> Result<(), Status> {
        self.fuse.change();
        self.device.flush().await
    }
}
