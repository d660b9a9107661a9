//! Every noun once, as plain data: what the store keeps, what the API shows, what engines and the manager agree on.
//!
//! This crate depends on nothing of Orlop and does nothing: no clock, no I/O. `control/` and the data crates that share
//! nouns with it (`pool`, `nexus`, `engine`) use these definitions.
//!
//! # Who writes what
//! Each kind of object has one kind of writer, so that a compare-and-swap rarely conflicts:
//!
//! | kind | key | written by | holds |
//! |---|---|---|---|
//! | `ClusterInfo` | `cluster` | the controller, once | the cluster's UUID |
//! | `Node` | name | its engine; the manager only turns `Ready` into `NotReady`; the API only `spec` | where the engine is, its heartbeat; what its operator wishes |
//! | `Pool` | UUID | the engine of its node | space and state |
//! | `Volume` | name | API and manager | `spec` (what the user wants) and `intent` (where it should live) |
//! | `VolumeRecord` | volume UUID | the nexus; the manager makes it, and empties it while no nexus owns it | who may write |
//! | `VolumeStatus` | volume UUID | the engine that runs the nexus | what is |
//! | `Disk` | a name from the disk itself | the node that has it | what it is, and whether it can become a pool |
//! | `NodeReplicas` | node name | the engine of the node | which replicas it holds, and what it reads |

mod disk;
mod drain;
mod explain;
mod invalid;
mod node;
mod object;
mod record;
pub mod topology;
mod volume;

pub use disk::{Disk, DiskClass, DiskPartition, DiskState};
pub use drain::{Held, NodeView, NodeWait, VolumeFacts, node_view};
pub use explain::{
    Explanation, Health, MemberView, RECORD_MISSING, ReaderView, Surroundings, VolumeState, VolumeView,
    VolumeViewStatus, explain, health, view,
};
pub use invalid::{Invalid, SizeText};
pub use node::{
    ClusterInfo, Node, NodeReplicas, NodeSpec, NodeState, Pool, PoolSpec, PoolState, ReaderReport,
    ReplicaReport, ReplicaState, Scheduling,
};
pub use object::{Kind, Object, Stored, UnknownKind};
pub use record::{Generation, HostRecord, MemberRecord, MemberState, Owner, Settled, VolumeRecord};
pub use volume::{
    Attach, MemberIntent, MemberPhase, MemberStatus, NexusState, Rebuild, Volume, VolumeIntent, VolumeSpec,
    VolumeStatus, limits,
};
