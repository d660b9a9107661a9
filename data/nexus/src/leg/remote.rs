//! The nexus's side of a remote leg: one NVMe/TCP association with a replica on another node.

use crate::leg::wire::{self, Request};
use crate::leg::{Change, Hello, Kept};
use device::{Device, Lba, Status};
use model::Generation;
use nvmf::{Association, VendorReply};
use pool::{Changed, Progress};
use rt::{DmaBuf, Durability};
use uuid::Uuid;

/// The namespace of a replica's subsystem.
const NSID: u32 = 1;

/// An association with a replica on another node.
pub struct RemoteLeg {
    association: Association,
    namespace: nvmf::Namespace,
}

impl RemoteLeg {
    /// Over an association with the subsystem of [`crate::leg::replica_nqn`].
    pub fn new(association: Association) -> Self {
        let namespace = association.namespace(NSID);
        Self { association, namespace }
    }

    async fn ask(&self, request: Request) -> Result<VendorReply, Status> {
        self.association.vendor(NSID, request.encode()).await
    }

    /// See [`crate::leg::Leg::accept_epoch`].
    pub async fn accept_epoch(&self, epoch: u64, nexus: Uuid) -> Result<Hello, Status> {
        let reply = self.ask(Request::AcceptEpoch { epoch, nexus }).await?;
        reply.data.as_deref().and_then(wire::decode_hello).ok_or(Status::Internal)
    }

    /// See [`crate::leg::Leg::read`].
    pub async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        self.namespace.read(lba, buf).await
    }

    /// See [`crate::leg::Leg::change`]. The epoch is the association's.
    pub async fn change(
        &self,
        generation: Generation,
        lba: Lba,
        change: Change,
        durability: Durability,
    ) -> Result<(), Status> {
        self.ask(Request::Change { counter: generation.counter, lba, change, durability }).await.map(drop)
    }

    /// See [`crate::leg::Leg::flush`].
    pub async fn flush(&self) -> Result<(), Status> {
        self.namespace.flush().await
    }

    /// See [`crate::leg::Leg::beat`].
    pub async fn beat(&self) -> Result<(), Status> {
        self.ask(Request::Beat).await.map(drop)
    }

    /// See [`crate::leg::Leg::changed_since`].
    pub async fn changed_since(
        &self,
        since: Generation,
        first_extent: u64,
        max_extents: usize,
    ) -> Result<Changed, Status> {
        let reply = self.ask(Request::ChangedSince { since, first_extent, max_extents }).await?;
        reply.data.as_deref().and_then(wire::decode_changed).ok_or(Status::Internal)
    }

    /// See [`crate::leg::Leg::hash_extent`].
    pub async fn hash_extent(&self, extent: u64, seed: u64) -> Result<Vec<[u8; 16]>, Status> {
        let reply = self.ask(Request::HashExtent { extent, seed }).await?;
        Ok(reply.data.as_deref().map(wire::decode_hashes).unwrap_or_default())
    }

    /// See [`crate::leg::Leg::set_progress`].
    pub async fn set_progress(&self, progress: Option<Progress>) -> Result<(), Status> {
        self.ask(Request::SetProgress(progress)).await.map(drop)
    }

    /// See [`crate::leg::Leg::set_record`].
    pub async fn set_record(&self, record: &[u8]) -> Result<(), Status> {
        self.ask(Request::SetRecord(record.to_vec())).await.map(drop)
    }

    /// See [`crate::leg::Leg::kept`].
    pub async fn kept(&self) -> Result<Kept, Status> {
        let reply = self.ask(Request::GetKept).await?;
        reply.data.as_deref().and_then(wire::decode_kept).ok_or(Status::Internal)
    }

    /// See [`crate::leg::Leg::resize`].
    pub async fn resize(&self, size_bytes: u64) -> Result<(), Status> {
        self.ask(Request::Resize { size_bytes }).await?;
        // Reads are checked against it before they are sent.
        self.namespace.note_size(size_bytes);
        Ok(())
    }

    /// Waits until the association is over.
    pub async fn dead(&self) {
        self.association.dead().await;
    }

    /// Ends the association.
    pub async fn close(&self) {
        self.association.close().await;
    }
}
