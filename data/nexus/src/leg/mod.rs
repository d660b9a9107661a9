//! Legs: the connections of a nexus to the replicas of its volume.
//!
//! ```text
//! nexus -- Leg::Local  -----------------------------> Session -> pool::Replica     same node: plain calls
//!      +-- Leg::Remote - wire - nvmf =TCP= nvmf - wire -> Session -> pool::Replica     another node
//! ```
//!
//! Both kinds end at a [`Session`] of the replica's [`Port`], where epochs fence (I3).

mod port;
mod remote;
mod serve;
mod wire;

pub use port::{Hello, Kept, Port, Replica, Session};
pub use remote::RemoteLeg;
pub use serve::{ReplicaNamespace, ReplicaSession};
pub use wire::{replica_nqn, replica_of_nqn};

use device::{BlockCount, Lba, Status};
use model::Generation;
use pool::{Changed, Progress};
use rt::{DmaBuf, DmaBytes, Durability};
use uuid::Uuid;

/// A change of blocks, the same for every member of a volume.
#[derive(Clone, Debug)]
pub enum Change {
    /// New contents.
    Write(DmaBytes),
    /// Zeroes.
    Zeroes(BlockCount),
    /// Zeroes whose space is given back.
    Unmap(BlockCount),
    /// Contents that no member has any more: they are recorded as lost.
    Bad(BlockCount),
}

/// One association with a replica, which has accepted the epoch of this nexus.
pub enum Leg {
    /// The replica is in a pool of this process.
    Local(Session),
    /// The replica is behind NVMe/TCP.
    Remote(RemoteLeg),
}

/// Calls the method of either kind.
macro_rules! each {
    ($leg:expr, $inner:ident => $call:expr) => {
        match $leg {
            Leg::Local($inner) => $call,
            Leg::Remote($inner) => $call,
        }
    };
}

impl Leg {
    /// Whether reads from here leave the node.
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Local(_))
    }

    /// Makes the member accept `epoch` of `nexus`, durably (I3), and returns what it says of itself.
    pub async fn accept_epoch(&self, epoch: u64, nexus: Uuid) -> Result<Hello, Status> {
        each!(self, leg => leg.accept_epoch(epoch, nexus).await)
    }

    /// Fills `buf`.
    pub async fn read(&self, lba: Lba, buf: DmaBuf) -> Result<DmaBuf, Status> {
        each!(self, leg => leg.read(lba, buf).await)
    }

    /// Applies `change`, stamped with `generation`.
    pub async fn change(
        &self,
        generation: Generation,
        lba: Lba,
        change: Change,
        durability: Durability,
    ) -> Result<(), Status> {
        each!(self, leg => leg.change(generation, lba, change, durability).await)
    }

    /// Makes completed changes durable.
    pub async fn flush(&self) -> Result<(), Status> {
        each!(self, leg => leg.flush().await)
    }

    /// Asks whether the member still obeys; its answer renews the lease (I9).
    pub async fn beat(&self) -> Result<(), Status> {
        each!(self, leg => leg.beat().await)
    }

    /// The extents changed since `since`, from `first_extent` on, at most `max_extents` at once.
    pub async fn changed_since(
        &self,
        since: Generation,
        first_extent: u64,
        max_extents: usize,
    ) -> Result<Changed, Status> {
        each!(self, leg => leg.changed_since(since, first_extent, max_extents).await)
    }

    /// One keyed hash per 4 KiB block of `extent`.
    pub async fn hash_extent(&self, extent: u64, seed: u64) -> Result<Vec<[u8; 16]>, Status> {
        each!(self, leg => leg.hash_extent(extent, seed).await)
    }

    /// Makes the member remember, durably, how far its rebuild is.
    pub async fn set_progress(&self, progress: Option<Progress>) -> Result<(), Status> {
        each!(self, leg => leg.set_progress(progress).await)
    }

    /// Makes the member keep a copy of the volume's record, durably.
    pub async fn set_record(&self, record: &[u8]) -> Result<(), Status> {
        each!(self, leg => leg.set_record(record).await)
    }

    /// What the member keeps of the volume, also if it has not accepted our epoch.
    pub async fn kept(&self) -> Result<Kept, Status> {
        each!(self, leg => leg.kept().await)
    }

    /// Grows the replica.
    pub async fn resize(&self, size_bytes: u64) -> Result<(), Status> {
        each!(self, leg => leg.resize(size_bytes).await)
    }

    /// Waits until the association is over.
    pub async fn dead(&self) {
        each!(self, leg => leg.dead().await);
    }

    /// Ends the association; commands under way fail with `Gone`.
    pub async fn close(&self) {
        each!(self, leg => leg.close().await);
    }
}
