//! A large cluster: 1,000 nodes, 100,000 volumes with three copies. A rack of 20 nodes is down, and a hundredth of the
//! volumes has a copy that is stale. The same each time.

use manager::{Planner, Told};
use model::{
    Attach, Generation, MemberIntent, MemberRecord, MemberState, NexusState, Node, NodeReplicas, NodeSpec,
    NodeState, Owner, Pool, PoolState, ReplicaReport, ReplicaState, Stored, Volume, VolumeIntent,
    VolumeRecord, VolumeSpec, VolumeStatus,
};
use std::collections::BTreeMap;
use std::ops::Range;
use store::Change;
use uuid::Uuid;

pub(crate) const NODES: u32 = 1000;
pub(crate) const VOLUMES: u32 = 100_000;
pub(crate) const COPIES: u32 = 3;
/// The nodes that are down.
pub(crate) const RACK: Range<u32> = 500..520;
pub(crate) const VOLUME_BYTES: u64 = 10 << 30;
const POOL_BYTES: u64 = 4 << 40;

/// A planner that has just been told all of it.
pub(crate) fn planner() -> Planner {
    let mut planner = Planner::default();
    planner.apply(Told::Nodes(Change::Relist((0..NODES).map(|index| stored(node(index, 1))).collect())));
    planner.apply(Told::Pools(Change::Relist((0..NODES).map(|index| stored(pool(index))).collect())));
    planner.apply(Told::Volumes(Change::Relist((0..VOLUMES).map(|index| stored(volume(index))).collect())));
    planner.apply(Told::Records(Change::Relist((0..VOLUMES).map(|index| stored(record(index))).collect())));
    planner.apply(Told::Statuses(Change::Relist((0..VOLUMES).map(|index| stored(status(index))).collect())));
    let mut reports: Vec<NodeReplicas> = (0..NODES)
        .map(|index| NodeReplicas { node: node_name(index), replicas: Vec::new(), readers: Vec::new() })
        .collect();
    for index in 0..VOLUMES {
        for (node, copy) in homes(index).into_iter().zip(0..) {
            reports[usize::try_from(node).expect("a node's number")].replicas.push(report(index, node, copy));
        }
    }
    planner.apply(Told::Replicas(Change::Relist(reports.into_iter().map(stored).collect())));
    planner
}

/// As it is in the store.
pub(crate) fn stored<T>(value: T) -> Stored<T> {
    Stored { revision: 1, value }
}

pub(crate) fn node_name(node: u32) -> String {
    format!("node-{node:04}")
}

pub(crate) fn volume_name(volume: u32) -> String {
    format!("volume-{volume:06}")
}

/// The nodes of its copies: each node gets as many, no two are close, and none shares all its volumes with another.
pub(crate) fn homes(volume: u32) -> [u32; 3] {
    let (first, stride) = (volume % NODES, 101 + volume / NODES);
    [first, (first + stride) % NODES, (first + 2 * stride) % NODES]
}

/// The copy that is in the rack.
pub(crate) fn lost_copy(volume: u32) -> Option<usize> {
    homes(volume).iter().position(|node| RACK.contains(node))
}

/// The copy that is stale; the one in the rack if there is one.
pub(crate) fn stale_copy(volume: u32) -> Option<usize> {
    let other = usize::try_from(volume / 100 % COPIES).expect("a copy's number");
    (volume % 100 == 42).then(|| lost_copy(volume).unwrap_or(other))
}

/// Those that are not are closed.
pub(crate) fn is_attached(volume: u32) -> bool {
    volume.is_multiple_of(3)
}

pub(crate) fn node(index: u32, heartbeat: u64) -> Node {
    Node {
        name: node_name(index),
        spec: NodeSpec::default(),
        state: if RACK.contains(&index) { NodeState::NotReady } else { NodeState::Ready },
        address: format!("10.0.{}.{}:4420", index / 256, index % 256),
        metrics_address: None,
        pid: 1,
        boot_id: id(1, index),
        version: "0.1.0".into(),
        heartbeat,
        topology: BTreeMap::new(),
    }
}

pub(crate) fn pool(node: u32) -> Pool {
    let used_bytes = 300 * VOLUME_BYTES / 4;
    Pool {
        name: "disk0".into(),
        uuid: pool_id(node),
        node: node_name(node),
        spec: model::PoolSpec::default(),
        uri: "file:///dev/nvme0n1".into(),
        class: None,
        state: PoolState::Online,
        capacity_bytes: POOL_BYTES,
        used_bytes,
        free_bytes: POOL_BYTES - used_bytes,
        incarnation: id(3, node),
        boot_id: id(1, node),
        message: None,
    }
}

fn volume(index: u32) -> Volume {
    let [first, ..] = homes(index).map(node_name);
    let members = homes(index).into_iter().zip(0..).map(|(node, copy)| MemberIntent {
        replica: replica_id(index, copy),
        pool: pool_id(node),
        node: node_name(node),
    });
    let attach = is_attached(index).then(|| Attach { node: first.clone() });
    Volume {
        name: volume_name(index),
        uuid: id(4, index),
        spec: VolumeSpec {
            size_bytes: VOLUME_BYTES,
            copies: COPIES,
            stripes: 1,
            block_size: 4096,
            class: None,
            spread: None,
        },
        intent: VolumeIntent {
            members: members.collect(),
            owner: attach.as_ref().map(|attach| attach.node.clone()),
            forget: Vec::new(),
            readers: Vec::new(),
            attach_serial: u64::from(attach.is_some()),
            attach,
            recorded: true,
            deleting: false,
        },
        message: None,
    }
}

pub(crate) fn record(index: u32) -> VolumeRecord {
    let members = homes(index).into_iter().zip(0..).map(|(node, copy)| {
        let is_stale = stale_copy(index).is_some_and(|stale| usize::try_from(copy) == Ok(stale));
        let state =
            if is_stale { MemberState::Stale { since: Generation::ZERO } } else { MemberState::InSync };
        let new = MemberRecord::new(replica_id(index, copy), pool_id(node), node_name(node));
        MemberRecord { incarnation: Some(id(3, node)), boot_id: Some(id(1, node)), state, ..new }
    });
    let owner = Owner { nexus: id(5, index), node: node_name(homes(index)[0]) };
    let record = VolumeRecord::new(id(4, index), VOLUME_BYTES, 4096, members.collect());
    let owner = is_attached(index).then_some(owner);
    VolumeRecord { version: 2, epoch: 1, clean: owner.is_none(), owner, ..record }
}

fn status(index: u32) -> VolumeStatus {
    VolumeStatus {
        volume: id(4, index),
        node: node_name(homes(index)[0]),
        nexus: id(5, index),
        epoch: 1,
        state: if is_attached(index) { NexusState::Serving } else { NexusState::Closed },
        device: is_attached(index).then(|| format!("/dev/orlop/{}", volume_name(index))),
        target: None,
        attachment: 1,
        attach_serial: 1,
        size_bytes: VOLUME_BYTES,
        stable: Generation::ZERO,
        members: Vec::new(),
        write_stall_max_ms: 0,
        message: None,
    }
}

fn report(volume: u32, node: u32, copy: u32) -> ReplicaReport {
    ReplicaReport {
        replica: replica_id(volume, copy),
        volume: id(4, volume),
        pool: pool_id(node),
        state: ReplicaState::Present,
        used_bytes: VOLUME_BYTES / 4,
        message: None,
        record: None,
    }
}

pub(crate) fn pool_id(node: u32) -> Uuid {
    id(2, node)
}

fn replica_id(volume: u32, copy: u32) -> Uuid {
    id(6, volume * 8 + copy)
}

/// Looks like a random one, so that order in maps says nothing.
pub(crate) fn id(kind: u128, index: u32) -> Uuid {
    let scattered = index.wrapping_mul(0x9E37_79B1);
    Uuid::from_u128(u128::from(scattered) << 96 | kind << 32 | u128::from(index))
}
