//! Everything that the manager knows: a copy of what the store holds, with revisions.

use model::{
    MemberRecord, Node, NodeReplicas, NodeState, Object, Pool, PoolState, ReplicaReport, ReplicaState,
    Scheduling, Stored, Surroundings, Volume, VolumeRecord, VolumeStatus,
};
use std::collections::BTreeMap;
use store::{Client, Result};
use uuid::Uuid;

/// Objects of one kind by key.
pub type Objects<T> = BTreeMap<String, Stored<T>>;

/// A copy of what the store holds. Each object is some state that it had, not all of the same instant.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By name.
    pub nodes: Objects<Node>,
    /// By UUID.
    pub pools: Objects<Pool>,
    /// By name.
    pub volumes: Objects<Volume>,
    /// By UUID of the volume.
    pub records: Objects<VolumeRecord>,
    /// By UUID of the volume.
    pub statuses: Objects<VolumeStatus>,
    /// By node.
    pub replicas: Objects<NodeReplicas>,
}

impl View {
    /// Reads all of it from the store.
    pub async fn load(client: &Client) -> Result<Self> {
        Ok(Self {
            nodes: by_key(client.list().await?),
            pools: by_key(client.list().await?),
            volumes: by_key(client.list().await?),
            records: by_key(client.list().await?),
            statuses: by_key(client.list().await?),
            replicas: by_key(client.list().await?),
        })
    }

    /// Whether the node's engine is there, as far as the store knows.
    pub fn is_ready(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| node.value.state == NodeState::Ready)
    }

    /// What its operator wishes of the node.
    pub fn scheduling(&self, node: &str) -> Scheduling {
        self.nodes.get(node).map_or_else(Scheduling::default, |node| node.value.spec.scheduling)
    }

    /// In which failure domain the node is, of those that the label `spread` tells apart, or itself without one; none:
    /// nobody has said.
    pub fn domain<'a>(&'a self, spread: Option<&str>, node: &'a str) -> Option<&'a str> {
        match spread {
            None => Some(node),
            Some(_) => self.nodes.get(node).and_then(|node| node.value.domain(spread)),
        }
    }

    /// What `model::explain` and `model::view` look up.
    pub fn surroundings(&self) -> Surroundings<'_> {
        let nodes = self.nodes.values().map(|node| &node.value);
        let pools = self.pools.values().map(|pool| &pool.value);
        Surroundings::new(nodes, pools, self.replicas.values().map(|replicas| &replicas.value))
    }

    /// Whether the pool's node has said that it runs without it.
    pub fn is_gone(&self, pool: Uuid) -> bool {
        self.pool(pool).is_some_and(|pool| pool.state == PoolState::Gone)
    }

    /// Whether this node has said that it has destroyed the replica. Of a node that its operator has deleted nobody waits
    /// for that: if it comes back, it keeps what no record names.
    pub(crate) fn is_destroyed(&self, node: &str, replica: Uuid) -> bool {
        if !self.nodes.contains_key(node) && !self.replicas.contains_key(node) {
            return true;
        }
        let reports = self.replicas.get(node).into_iter().flat_map(|node| &node.value.replicas);
        reports.filter(|report| report.replica == replica).any(|r| r.state == ReplicaState::Destroyed)
    }

    /// What another copy of the volume has to hold: as much as the largest that it has, or its whole size if nobody says
    /// how much that is.
    pub(crate) fn held_bytes(&self, volume: &Volume) -> u64 {
        let members = &volume.intent.members;
        if members.is_empty() {
            return 0;
        }
        let used = members.iter().filter_map(|member| {
            let reports = &self.replicas.get(&member.node)?.value.replicas;
            let report = reports.iter().find(|report| report.replica == member.replica)?;
            (report.state == ReplicaState::Present).then_some(report.used_bytes)
        });
        used.max().unwrap_or(u64::MAX).min(volume.spec.size_bytes)
    }

    /// Whether this replica is nowhere and never will be: its node is there, has the pool open, and has said that the pool
    /// does not hold it. What is in a pool that is gone, failed or away may come back with it.
    pub(crate) fn is_destroyed_for_good(&self, member: &MemberRecord) -> bool {
        let is_open = |pool: &Pool| matches!(pool.state, PoolState::Online | PoolState::Degraded);
        let reports = self.replicas.get(&member.node).into_iter().flat_map(|node| &node.value.replicas);
        let mut reports = reports.filter(|r| r.replica == member.replica && r.pool == member.pool);
        self.is_ready(&member.node)
            && self.pool(member.pool).is_some_and(is_open)
            && reports.any(ReplicaReport::is_destroyed_for_good)
    }

    /// The pool, if its engine has ever reported it.
    pub fn pool(&self, uuid: Uuid) -> Option<&Pool> {
        self.pools.get(&uuid.to_string()).map(|pool| &pool.value)
    }

    /// The volume's record.
    pub fn record(&self, volume: Uuid) -> Option<&Stored<VolumeRecord>> {
        self.records.get(&volume.to_string())
    }

    /// The volume's status.
    pub fn status(&self, volume: Uuid) -> Option<&Stored<VolumeStatus>> {
        self.statuses.get(&volume.to_string())
    }
}

fn by_key<T: Object>(items: Vec<Stored<T>>) -> Objects<T> {
    items.into_iter().map(|item| (item.value.key(), item)).collect()
}
