//! The target's side of a remote leg: one NVMe association to a replica, its commands run on a [`Session`].

use crate::leg::wire::{self, Request};
use crate::leg::{Port, Session};
use device::{BlockCount, Device, Geometry, Lba, Status};
use model::Generation;
use nvmf::{NamespaceIdentity, VendorCommand, VendorReply};
use rt::{DmaBuf, DmaBytes, Durability};
use std::cell::Cell;
use uuid::Uuid;

/// One association of another engine with a replica of this node.
pub struct ReplicaSession {
    session: Session,
    /// The epoch that this association has accepted: its writes carry only the counter.
    epoch: Cell<u64>,
}

/// The replica as namespace 1: reads and flushes. Changes come as vendor commands, because they carry a generation.
#[derive(Clone)]
pub struct ReplicaNamespace(Session);

impl ReplicaSession {
    /// A new association with the replica behind `port`.
    pub fn new(port: &Port) -> Self {
        Self { session: port.open(), epoch: Cell::new(0) }
    }

    /// Waits until a newer association or owner has ended this one.
    pub async fn dead(&self) {
        self.session.dead().await;
    }

    /// The replica as a device.
    pub fn namespace(&self) -> ReplicaNamespace {
        ReplicaNamespace(self.session.clone())
    }

    /// Who it is.
    pub fn identity(&self) -> NamespaceIdentity {
        NamespaceIdentity { uuid: self.session.port().replica().config().replica }
    }

    /// Runs a command between engines.
    ///
    /// # Spec
    /// docs/protocols/replica.md.
    pub async fn vendor(&self, command: &VendorCommand) -> Result<VendorReply, Status> {
        let session = &self.session;
        let done = VendorReply::default();
        match Request::decode(command)? {
            Request::Beat => session.beat().await.map(|()| done),
            Request::AcceptEpoch { epoch, nexus } => {
                let hello = self.accept_epoch(epoch, nexus).await?;
                Ok(wire::encode_hello(&hello))
            }
            Request::Change { counter, lba, change, durability } => {
                let generation = Generation::new(self.epoch.get(), counter);
                session.change(generation, lba, change, durability).await.map(|()| done)
            }
            Request::ChangedSince { since, first_extent, max_extents } => session
                .changed_since(since, first_extent, max_extents)
                .await
                .map(|c| wire::encode_changed(&c)),
            Request::HashExtent { extent, seed } => {
                session.hash_extent(extent, seed).await.map(|hashes| wire::encode_hashes(&hashes))
            }
            Request::SetProgress(progress) => session.set_progress(progress).await.map(|()| done),
            Request::SetRecord(record) => session.set_record(&record).await.map(|()| done),
            Request::GetKept => session.kept().await.map(|kept| wire::encode_kept(&kept)),
            Request::Resize { size_bytes } => session.resize(size_bytes).await.map(|()| done),
        }
    }

    async fn accept_epoch(&self, epoch: u64, nexus: Uuid) -> Result<crate::leg::Hello, Status> {
        let hello = self.session.accept_epoch(epoch, nexus).await?;
        self.epoch.set(epoch);
        Ok(hello)
    }

    /// The association is over.
    pub async fn closed(&self) {
        self.session.close().await;
    }
}

impl Device for ReplicaNamespace {
    fn geometry(&self) -> Geometry {
        let config = self.0.port().replica().config();
        let blocks = BlockCount(config.size_bytes / u64::from(config.block_size));
        Geometry { block_size: config.block_size, blocks }
    }

    async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.0.read(lba, buf).await
    }

    /// A write without a generation is nobody's.
    async fn write(&self, _: Lba, _: DmaBytes, _: Durability) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn write_zeroes(&self, _: Lba, _: BlockCount, _: Durability) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn unmap(&self, _: Lba, _: BlockCount) -> Result<(), Status> {
        Err(Status::Invalid)
    }

    async fn flush(&self) -> Result<(), Status> {
        self.0.flush().await
    }
}
