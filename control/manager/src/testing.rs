//! Clusters for tests: node `nI` has the pool with the UUID 20 + I, of 4 GiB.

use crate::View;
use model::{
    Generation, MemberIntent, MemberRecord, MemberState, NexusState, Node, NodeReplicas, NodeSpec, NodeState,
    Object, Owner, Pool, PoolState, ReplicaReport, ReplicaState, Stored, Volume, VolumeIntent, VolumeRecord,
    VolumeSpec, VolumeStatus,
};
use std::collections::BTreeMap;
use uuid::Uuid;

pub(crate) const GIB: u64 = 1 << 30;

#[derive(Clone, Debug, Default)]
pub(crate) struct Scene {
    pub(crate) view: View,
    uuids: u128,
}

impl Scene {
    pub(crate) fn with_nodes(count: u128) -> Self {
        let mut scene = Self { uuids: 10_000, ..Self::default() };
        for index in 1..=count {
            let node = Node {
                name: format!("n{index}"),
                spec: NodeSpec::default(),
                state: NodeState::Ready,
                address: "127.0.0.1:4420".into(),
                metrics_address: None,
                pid: 1,
                boot_id: Uuid::from_u128(1),
                version: "0.1.0".into(),
                heartbeat: 1,
                topology: BTreeMap::new(),
            };
            scene.view.nodes.insert(node.key(), Stored { revision: 1, value: node });
            scene.add_pool(Pool {
                name: "disk0".into(),
                uuid: Uuid::from_u128(20 + index),
                node: format!("n{index}"),
                spec: model::PoolSpec::default(),
                uri: "mem://".into(),
                class: None,
                state: PoolState::Online,
                capacity_bytes: 4 * GIB,
                used_bytes: 0,
                free_bytes: 4 * GIB,
                incarnation: Uuid::from_u128(30 + index),
                boot_id: Uuid::from_u128(1),
                message: None,
            });
        }
        scene
    }

    pub(crate) fn new_uuid(&mut self) -> Uuid {
        self.uuids += 1;
        Uuid::from_u128(self.uuids)
    }

    /// The UUIDs that `new_uuid` would give.
    pub(crate) fn next_uuids(&self) -> impl FnMut() -> Uuid + use<> {
        let mut uuids = self.uuids;
        move || {
            uuids += 1;
            Uuid::from_u128(uuids)
        }
    }

    pub(crate) fn add_pool(&mut self, pool: Pool) {
        self.view.pools.insert(pool.key(), Stored { revision: 1, value: pool });
    }

    /// A volume of 1 GiB that has members on these nodes, and no record.
    pub(crate) fn volume(&mut self, name: &str, copies: u32, nodes: &[u128]) -> &mut Volume {
        let members = nodes.iter().map(|node| MemberIntent {
            replica: self.new_uuid(),
            pool: Uuid::from_u128(20 + node),
            node: format!("n{node}"),
        });
        let members = members.collect();
        let volume = Volume {
            name: name.into(),
            uuid: self.new_uuid(),
            spec: VolumeSpec {
                size_bytes: GIB,
                copies,
                stripes: 1,
                block_size: 4096,
                class: None,
                spread: None,
            },
            intent: VolumeIntent { members, ..VolumeIntent::default() },
            message: None,
        };
        self.view.volumes.insert(name.into(), Stored { revision: 1, value: volume });
        self.volume_mut(name)
    }

    /// A volume of 1 GiB that has a record with members in this state on these nodes, closed in order.
    pub(crate) fn recorded(&mut self, name: &str, copies: u32, nodes: &[u128], state: MemberState) {
        let volume = self.volume(name, copies, nodes);
        volume.intent.recorded = true;
        let members = volume.intent.members.iter().map(|member| MemberRecord {
            state,
            ..MemberRecord::new(member.replica, member.pool, member.node.clone())
        });
        let record = VolumeRecord::new(volume.uuid, GIB, 4096, members.collect());
        self.view.records.insert(record.key(), Stored { revision: 1, value: record });
    }

    pub(crate) fn volume_mut(&mut self, name: &str) -> &mut Volume {
        &mut self.view.volumes.get_mut(name).unwrap().value
    }

    pub(crate) fn record_mut(&mut self, name: &str) -> &mut VolumeRecord {
        let key = self.volume_mut(name).uuid.to_string();
        &mut self.view.records.get_mut(&key).unwrap().value
    }

    pub(crate) fn node_mut(&mut self, index: u128) -> &mut Node {
        &mut self.view.nodes.get_mut(&format!("n{index}")).unwrap().value
    }

    pub(crate) fn pool_mut(&mut self, index: u128) -> &mut Pool {
        &mut self.view.pools.get_mut(&Uuid::from_u128(20 + index).to_string()).unwrap().value
    }

    /// What node `nI` says of a replica in its pool.
    pub(crate) fn report(&mut self, index: u128, replica: Uuid, state: ReplicaState) {
        let (pool, volume) = (Uuid::from_u128(20 + index), Uuid::from_u128(1));
        self.say(
            index,
            ReplicaReport { replica, volume, pool, state, used_bytes: 0, message: None, record: None },
        );
    }

    /// What node `nI` says of a replica.
    pub(crate) fn say(&mut self, index: u128, report: ReplicaReport) {
        let node = format!("n{index}");
        let empty = || Stored {
            revision: 1,
            value: NodeReplicas { node: node.clone(), replicas: Vec::new(), readers: Vec::new() },
        };
        let known = &mut self.view.replicas.entry(node.clone()).or_insert_with(empty).value.replicas;
        known.retain(|known| known.replica != report.replica);
        known.push(report);
    }

    /// A nexus on this node owns the volume, and its engine says that it is in this state.
    pub(crate) fn nexus(&mut self, name: &str, node: &str, state: NexusState) {
        let record = self.record_mut(name);
        let nexus = Uuid::from_u128(50);
        record.epoch += 1;
        record.owner = Some(Owner { nexus, node: node.into() });
        record.clean = false;
        let status = VolumeStatus {
            volume: record.volume,
            node: node.into(),
            nexus,
            epoch: record.epoch,
            state,
            device: None,
            target: None,
            attachment: 1,
            attach_serial: 0,
            size_bytes: record.size_bytes,
            stable: Generation::ZERO,
            members: Vec::new(),
            write_stall_max_ms: 0,
            message: None,
        };
        self.view.statuses.insert(status.key(), Stored { revision: 1, value: status });
    }

    /// A member that is in the intent and in the record.
    pub(crate) fn add_member(&mut self, name: &str, member: &MemberRecord) {
        self.record_mut(name).members.push(member.clone());
        let MemberRecord { replica, pool, node, .. } = member.clone();
        self.volume_mut(name).intent.members.push(MemberIntent { replica, pool, node });
    }

    pub(crate) fn status_mut(&mut self, name: &str) -> &mut VolumeStatus {
        let key = self.volume_mut(name).uuid.to_string();
        &mut self.view.statuses.get_mut(&key).unwrap().value
    }
}
