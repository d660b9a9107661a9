//! What an engine needs of the control plane. `bin` implements it over the store's client, the simulator over its own.

use model::{Node, NodeReplicas, Pool, PoolSpec, Stored, Volume, VolumeRecord, VolumeStatus};
use nexus::Records;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

/// A future of the control plane.
pub type ControlFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ControlError>> + 'a>>;

/// The store could not be asked, or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlError(pub String);

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ControlError {}

/// What watches of the store have told, of what concerns one node. It may be old, and it lacks objects that this version
/// does not understand: whoever acts on it reads the object from the store itself first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Volumes whose owner the node is wished to be, of which it is wished to hold a copy, or that are to be read there, by
    /// name.
    pub volumes: BTreeMap<String, Stored<Volume>>,
    /// Records that name a copy on the node, by the volume's UUID.
    pub records: BTreeMap<String, Stored<VolumeRecord>>,
}

impl Known {
    /// Whether a volume concerns `node`.
    pub fn has_volume(node: &str, volume: &Volume) -> bool {
        let Volume { intent, .. } = volume;
        intent.owner.as_deref() == Some(node)
            || intent.members.iter().any(|member| member.node == node)
            || intent.readers.iter().any(|reader| reader == node)
    }

    /// Whether a record concerns `node`.
    pub fn has_record(node: &str, record: &VolumeRecord) -> bool {
        record.members.iter().any(|member| member.node == node)
    }
}

/// The engine's view of the control plane.
pub trait Control {
    /// The records of volumes, for nexuses.
    fn records(&self) -> Rc<dyn Records>;

    /// One node: where its replicas can be reached.
    fn node<'a>(&'a self, name: &'a str) -> ControlFuture<'a, Option<Node>>;

    /// All pools that were ever reported.
    fn pools(&self) -> ControlFuture<'_, Vec<Pool>>;

    /// One volume, read from the store itself.
    fn volume<'a>(&'a self, name: &'a str) -> ControlFuture<'a, Option<Volume>>;

    /// What concerns this node, as far as it was told; none before everything was told once.
    fn known(&self) -> Option<Arc<Known>>;

    /// Writes this node's report, all but its `spec` and `topology`: what is wished of the node stays as it is in the store,
    /// and who writes the report knows the labels.
    fn report_node(&self, node: Node) -> ControlFuture<'_, ()>;

    /// Writes a pool's report, all but its `spec`, and answers what is wished of the pool.
    fn report_pool(&self, pool: Pool) -> ControlFuture<'_, PoolSpec>;

    /// Writes what this node knows of its replicas.
    fn report_replicas(&self, replicas: NodeReplicas) -> ControlFuture<'_, ()>;

    /// Writes a volume's status, unless one of a higher epoch is there.
    fn report_volume(&self, status: VolumeStatus) -> ControlFuture<'_, ()>;

    /// Waits until what is known has changed since the last call returned.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + '_>>;
}
