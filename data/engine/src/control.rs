//! What an engine needs of the control plane. `bin` implements it over the store's client, the simulator over its own.

use model::{Node, NodeReplicas, Pool, Volume, VolumeRecord, VolumeStatus};
use nexus::Records;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

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

/// The engine's view of the control plane.
pub trait Control {
    /// The records of volumes, for nexuses.
    fn records(&self) -> Rc<dyn Records>;

    /// All nodes: where replicas can be reached.
    fn nodes(&self) -> ControlFuture<'_, Vec<Node>>;

    /// All pools that were ever reported.
    fn pools(&self) -> ControlFuture<'_, Vec<Pool>>;

    /// All volumes with their intent.
    fn volumes(&self) -> ControlFuture<'_, Vec<Volume>>;

    /// The records of all volumes, read from the store itself.
    fn records_of_all(&self) -> ControlFuture<'_, Vec<VolumeRecord>>;

    /// Writes this node's report, all but its `spec`: what is wished of the node stays as it is in the store.
    fn report_node(&self, node: Node) -> ControlFuture<'_, ()>;

    /// Writes a pool's report.
    fn report_pool(&self, pool: Pool) -> ControlFuture<'_, ()>;

    /// Writes what this node knows of its replicas.
    fn report_replicas(&self, replicas: NodeReplicas) -> ControlFuture<'_, ()>;

    /// Writes a volume's status, unless one of a higher epoch is there.
    fn report_volume(&self, status: VolumeStatus) -> ControlFuture<'_, ()>;

    /// Waits until volumes or records may have changed since the last call returned.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + '_>>;
}
