//! The cluster, its nodes, their pools, and the replicas that each node really holds.
//!
//! A node and a pool have a `spec`: what an operator wishes. All the rest is the report of the engine, which keeps the
//! wish that it finds.

use crate::{
    DiskClass, VolumeRecord,
    invalid::{Invalid, check_name, check_node_name, check_uuid},
    object::{Kind, Object},
    topology::check_labels,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};
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
    /// Labels that name what may fail with it as a whole, such as its zone.
    // Absent rather than empty: definitions from before there were such labels refuse the word.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topology: BTreeMap<String, String>,
}

impl Node {
    /// In which failure domain it is, of those that the label `spread` tells apart, or itself without one; none: nobody
    /// has said.
    pub fn domain(&self, spread: Option<&str>) -> Option<&str> {
        spread.map_or(Some(&self.name), |key| self.topology.get(key).map(String::as_str))
    }
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

/// What an operator wishes of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSpec {
    /// Its disk is to be given back: nothing new is placed on it, and its node makes it blank once no copy is on it.
    #[serde(default)]
    pub release: bool,
}

impl PoolSpec {
    /// Whether nothing is wished.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_default(&self) -> bool {
        *self == Self::default()
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
    /// What an operator wishes; engines write it as they find it.
    // Absent where nothing is wished: definitions from before there were such wishes refuse the word.
    #[serde(default, skip_serializing_if = "PoolSpec::is_default")]
    pub spec: PoolSpec,
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

impl Pool {
    /// Whether it is on a disk of this class; none: any disk.
    pub fn is_of(&self, class: Option<DiskClass>) -> bool {
        class.is_none_or(|class| self.class == Some(class))
    }
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
    /// Why it is `Missing` or `Failed`, or `Destroyed` without being destroyed, in one line.
    pub message: Option<String>,
    /// The copy of the volume's record that the replica keeps, while no record names the replica (I12). Not all of them at
    /// once where there are many.
    // Absent rather than null: definitions from before do not have the word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Box<VolumeRecord>>,
}

impl ReplicaReport {
    /// Whether the replica was destroyed in a pool that was open, and so is nowhere for ever. One that is not there because
    /// its disk is not is back with the disk: of that one `message` speaks.
    pub fn is_destroyed_for_good(&self) -> bool {
        self.state == ReplicaState::Destroyed && self.message.is_none()
    }
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

impl Pool {
    /// Whether new copies may be placed on it, as far as it is up to the pool.
    pub fn takes_copies(&self) -> bool {
        self.state == PoolState::Online && !self.spec.release
    }
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
        check_node_name(&self.name)?;
        check_labels(&format!("node \"{}\"", self.name), &self.topology)
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
        assert_eq!((node.spec.scheduling, node.topology.len()), (Scheduling::Enabled, 0));
        assert_eq!(
            serde_json::to_value(&node).unwrap().get("topology"),
            None,
            "as older definitions know it"
        );
        node.spec.scheduling = Scheduling::Evacuated;
        let json = serde_json::to_value(&node).unwrap();
        assert_eq!(json["spec"], serde_json::json!({ "scheduling": "Evacuated" }));
        assert_eq!(serde_json::from_value::<Node>(json).unwrap(), node);
    }

    #[test]
    fn a_node_is_in_the_domain_that_its_label_names() {
        let node = r#"{"name": "n1", "state": "Ready", "address": "127.0.0.1:4420", "metricsAddress": null, "pid": 7,
            "bootId": "00000000-0000-0000-0000-000000000001", "version": "0.1.0", "heartbeat": 9,
            "topology": {"rack": "r7"}}"#;
        let mut node: Node = serde_json::from_str(node).unwrap();
        assert_eq!(node.domain(None), Some("n1"));
        assert_eq!((node.domain(Some("rack")), node.domain(Some("zone"))), (Some("r7"), None));
        assert_eq!(serde_json::to_value(&node).unwrap()["topology"], serde_json::json!({ "rack": "r7" }));
        assert_eq!(node.validate(), Ok(()));
        node.topology.insert("rack".into(), "r 7".into());
        assert!(node.validate().unwrap_err().to_string().starts_with("node \"n1\": \"r 7\" is no value"));
    }

    #[test]
    fn a_pool_from_before_there_were_classes_is_read() {
        let old = r#"{"name": "a", "uuid": "00000000-0000-0000-0000-000000000001", "node": "n1", "uri": "disk:///dev/sda",
            "state": "Online", "capacityBytes": 2, "usedBytes": 1, "freeBytes": 1, "message": null,
            "incarnation": "00000000-0000-0000-0000-000000000002",
            "bootId": "00000000-0000-0000-0000-000000000003"}"#;
        let pool: Pool = serde_json::from_str(old).unwrap();
        assert!(pool.class.is_none() && pool.is_of(None) && !pool.is_of(Some(DiskClass::Hdd)));
        assert_eq!(pool.spec, PoolSpec::default());
        assert_eq!(serde_json::to_value(&pool).unwrap().get("spec"), None, "as older programs know it");
        let with_class = Pool { class: Some(DiskClass::Hdd), ..pool };
        let json = serde_json::to_value(&with_class).unwrap();
        assert_eq!(json["class"], "HDD");
        assert!(with_class.is_of(None) && with_class.is_of(with_class.class));
        assert!(!with_class.is_of(Some(DiskClass::Nvme)));
        assert_eq!(serde_json::from_value::<Pool>(json).unwrap(), with_class);
    }

    #[test]
    fn each_wish_leaves_less_on_a_node_than_the_one_before() {
        use Scheduling::{Cordoned, Drained, Enabled, Evacuated};
        assert!(Enabled < Cordoned && Cordoned < Drained && Drained < Evacuated);
    }
}
