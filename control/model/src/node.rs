//! The cluster, its nodes, their pools, and the replicas that each node really holds.
//!
//! A node has a `spec`: what its operator wishes. All the rest is the report of its engine, which keeps the wish that it
//! finds. Nobody wishes anything of a pool.

use crate::{
    DiskClass,
    invalid::{Invalid, check_name, check_node_name, check_uuid},
    object::{Kind, Object},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;
use uuid::Uuid;

/// The cluster: one object, made once by the first controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInfo {
    /// Pools carry it, so that a pool of another cluster is never used by mistake.
    pub uuid: Uuid,
}

impl ClusterInfo {
    /// The key of the one object.
    pub const KEY: &str = "cluster";
}

/// Whether a node's engine is there.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum NodeState {
    /// The engine renews its heartbeat. Only the engine itself writes this.
    Ready,
    /// The manager has not seen the heartbeat change for the lease time, or the engine has ended in order.
    NotReady,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "Ready",
            Self::NotReady => "NotReady",
        })
    }
}

/// What may be on a node, each next one less than the one before.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    ToSchema,
)]
pub enum Scheduling {
    /// New copies and nexuses are placed on it.
    #[default]
    Enabled,
    /// Nothing new is placed on it; what is there stays.
    Cordoned,
    /// It is to be away for a while: nexuses leave it, and what it holds has to be elsewhere too. Its copies stay.
    Drained,
    /// It is to be away for good: its copies are made elsewhere and then leave it, too.
    Evacuated,
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enabled => "Enabled",
            Self::Cordoned => "Cordoned",
            Self::Drained => "Drained",
            Self::Evacuated => "Evacuated",
        })
    }
}

/// What its operator wishes of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSpec {
    /// What may be on it.
    #[serde(default)]
    pub scheduling: Scheduling,
}

/// One node: an engine process and where it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Unique in the cluster; a DNS label.
    pub name: String,
    /// What its operator wishes; engines write it as they find it.
    #[serde(default)]
    pub spec: NodeSpec,
    /// Liveness only: what keeps data safe are epochs, never this.
    pub state: NodeState,
    /// `host:port` of its NVMe/TCP target.
    pub address: String,
    /// `host:port` of its `/metrics`.
    pub metrics_address: Option<String>,
    /// The engine's process on its machine.
    pub pid: u32,
    /// The machine's boot: the same id means that the page cache and disk caches have not been lost.
    pub boot_id: Uuid,
    /// The engine's version.
    pub version: String,
    /// Changes at each renewal; judged by the observer's clock, hence no time in it.
    pub heartbeat: u64,
}

/// Whether a pool can be used.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum PoolState {
    /// Open.
    Online,
    /// Reads and overwrites go on, with errors; nothing new is placed on it.
    Degraded,
    /// Cannot be opened now; its node tries again and again.
    Failed,
    /// Its node runs without it: the disk was taken away, replaced or blanked. It may come back with its disk.
    Gone,
}

impl fmt::Display for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "Online",
            Self::Degraded => "Degraded",
            Self::Failed => "Failed",
            Self::Gone => "Gone",
        })
    }
}

/// One pool: a disk that Orlop has formatted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// For people; unique on its node.
    pub name: String,
    /// Never used twice.
    pub uuid: Uuid,
    /// The node whose engine has it open.
    pub node: String,
    /// The device under it, such as `file:///path`.
    pub uri: String,
    /// What kind of medium its disk is; none: a file, or nobody has said.
    // Absent rather than null: definitions from before there were classes refuse the word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<DiskClass>,
    /// Whether it can be used.
    pub state: PoolState,
    /// Room for data, without the pool's own metadata.
    pub capacity_bytes: u64,
    /// Given out to replicas.
    pub used_bytes: u64,
    /// Can still be given out.
    pub free_bytes: u64,
    /// Drawn at each opening (I5).
    pub incarnation: Uuid,
    /// The machine's boot when it was opened.
    pub boot_id: Uuid,
    /// Why it is not `Online`, in one line.
    pub message: Option<String>,
}

/// What an engine knows of one replica that a record names for its node.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum ReplicaState {
    /// It is there.
    Present,
    /// The record names it in a state other than `New`, and the pool does not hold it. Reported, never made.
    Missing,
    /// It is there and cannot be used.
    Failed,
    /// The record, read from the store, says `Removed`; it is not in the pool, durably, and will not be made again. Or
    /// the pool is not on the node any more, which `message` says.
    Destroyed,
}

/// The report on one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaReport {
    /// The replica.
    pub replica: Uuid,
    /// Its volume.
    pub volume: Uuid,
    /// The pool that should hold it.
    pub pool: Uuid,
    /// Whether it does.
    pub state: ReplicaState,
    /// Space that it takes.
    pub used_bytes: u64,
    /// Why it is `Missing` or `Failed`, in one line.
    pub message: Option<String>,
}

/// What an engine says of the read-only device of a volume on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReaderReport {
    /// The volume.
    pub volume: Uuid,
    /// The `intent.attachSerial` that the device answers.
    pub attach_serial: u64,
    /// The path of the block device.
    pub device: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// Why it is not as wished, in one line.
    pub message: Option<String>,
}

/// The replicas of one node: those that its pools hold and those that records want there; and what it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeReplicas {
    /// The node, also the key.
    pub node: String,
    /// Ordered by replica. A `Destroyed` one stays until no record names it.
    pub replicas: Vec<ReplicaReport>,
    /// The read-only devices, ordered by volume: those that are wished there, and those that are still there.
    // Absent rather than empty: definitions from before there were readers do not have the word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<ReaderReport>,
}

impl Object for ClusterInfo {
    const KIND: Kind = Kind::Cluster;

    fn key(&self) -> String {
        Self::KEY.into()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_uuid("cluster", "uuid", self.uuid)
    }
}

impl Object for Node {
    const KIND: Kind = Kind::Node;

    fn key(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_node_name(&self.name)
    }
}

impl Object for Pool {
    const KIND: Kind = Kind::Pool;

    fn key(&self) -> String {
        self.uuid.to_string()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_name("pool", &self.name)?;
        check_node_name(&self.node)?;
        let object = format!("pool \"{}\" of node \"{}\"", self.name, self.node);
        check_uuid(&object, "uuid", self.uuid)?;
        let known = self.used_bytes.checked_add(self.free_bytes);
        if known.is_none_or(|bytes| bytes > self.capacity_bytes) {
            return Err(Invalid::new(
                object,
                "used and free space together exceed its capacity",
                "report this as a bug of the engine",
            ));
        }
        Ok(())
    }
}

impl Object for NodeReplicas {
    const KIND: Kind = Kind::NodeReplicas;

    fn key(&self) -> String {
        self.node.clone()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_node_name(&self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_from_before_there_were_wishes_is_read() {
        let old = r#"{"name": "n1", "state": "Ready", "address": "127.0.0.1:4420", "metricsAddress": null, "pid": 7,
            "bootId": "00000000-0000-0000-0000-000000000001", "version": "0.1.0", "heartbeat": 9}"#;
        let mut node: Node = serde_json::from_str(old).unwrap();
        assert_eq!(node.spec.scheduling, Scheduling::Enabled);
        node.spec.scheduling = Scheduling::Evacuated;
        let json = serde_json::to_value(&node).unwrap();
        assert_eq!(json["spec"], serde_json::json!({ "scheduling": "Evacuated" }));
        assert_eq!(serde_json::from_value::<Node>(json).unwrap(), node);
    }

    #[test]
    fn a_pool_from_before_there_were_classes_is_read() {
        let old = r#"{"name": "a", "uuid": "00000000-0000-0000-0000-000000000001", "node": "n1", "uri": "disk:///dev/sda",
            "state": "Online", "capacityBytes": 2, "usedBytes": 1, "freeBytes": 1, "message": null,
            "incarnation": "00000000-0000-0000-0000-000000000002",
            "bootId": "00000000-0000-0000-0000-000000000003"}"#;
        let pool: Pool = serde_json::from_str(old).unwrap();
        assert_eq!(pool.class, None);
        let with_class = Pool { class: Some(DiskClass::Hdd), ..pool };
        let json = serde_json::to_value(&with_class).unwrap();
        assert_eq!(json["class"], "HDD");
        assert_eq!(serde_json::from_value::<Pool>(json).unwrap(), with_class);
    }

    #[test]
    fn each_wish_leaves_less_on_a_node_than_the_one_before() {
        use Scheduling::{Cordoned, Drained, Enabled, Evacuated};
        assert!(Enabled < Cordoned && Cordoned < Drained && Drained < Evacuated);
    }
}
