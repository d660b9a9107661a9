//! Clusters for tests: node `nI` has the pool with the UUID 20 + I, of 4 GiB.

use crate::View;
use model::{
    MemberIntent, Node, NodeState, Object, Pool, PoolState, Stored, Volume, VolumeIntent, VolumeSpec,
};
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
                state: NodeState::Ready,
                address: "127.0.0.1:4420".into(),
                metrics_address: None,
                pid: 1,
                boot_id: Uuid::from_u128(1),
                version: "0.1.0".into(),
                heartbeat: 1,
            };
            scene.view.nodes.insert(node.key(), Stored { revision: 1, value: node });
            scene.add_pool(Pool {
                name: "disk0".into(),
                uuid: Uuid::from_u128(20 + index),
                node: format!("n{index}"),
                uri: "mem://".into(),
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
            spec: VolumeSpec { size_bytes: GIB, copies, stripes: 1, block_size: 4096 },
            intent: VolumeIntent { members, ..VolumeIntent::default() },
            message: None,
        };
        self.view.volumes.insert(name.into(), Stored { revision: 1, value: volume });
        self.volume_mut(name)
    }

    pub(crate) fn volume_mut(&mut self, name: &str) -> &mut Volume {
        &mut self.view.volumes.get_mut(name).unwrap().value
    }

    pub(crate) fn node_mut(&mut self, index: u128) -> &mut Node {
        &mut self.view.nodes.get_mut(&format!("n{index}")).unwrap().value
    }

    pub(crate) fn pool_mut(&mut self, index: u128) -> &mut Pool {
        &mut self.view.pools.get_mut(&Uuid::from_u128(20 + index).to_string()).unwrap().value
    }
}
