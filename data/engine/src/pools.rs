//! The pools of this node, and the ports of their replicas.

use crate::{Config, Error, PoolConfig};
use device::AnyDevice;
use model::{PoolState, Volume};
use nexus::leg::Port;
use pool::{ErrorKind, FormatOptions, Pool, ReplicaConfig};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

/// The open pools of a node.
pub(crate) struct Pools {
    pools: Vec<Open>,
    ports: Ports,
    planted: nexus::Planted,
}

/// The only ways to the replicas of this node, each with its pool; a cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Ports(Rc<RefCell<BTreeMap<Uuid, (Uuid, Port)>>>);

impl Ports {
    /// The way to a replica of this node.
    pub(crate) fn get(&self, replica: Uuid) -> Option<Port> {
        self.0.borrow().get(&replica).map(|(_, port)| port.clone())
    }
}

struct Open {
    config: PoolConfig,
    pool: Pool<AnyDevice>,
}

impl Pools {
    /// Opens every pool, formats blank devices.
    pub(crate) async fn open(config: &Config) -> Result<Self, Error> {
        let mut pools = Vec::new();
        for pool_config in &config.pools {
            let pool = open_or_format(config, pool_config)
                .await
                .map_err(|cause| Error::Pool { uri: pool_config.uri.clone(), cause })?;
            pools.push(Open { config: pool_config.clone(), pool });
        }
        let pools = Self { pools, ports: Ports::default(), planted: config.nexus.planted };
        for open in &pools.pools {
            for replica in open.pool.replicas() {
                pools.add_port(open, replica.config.replica);
            }
        }
        Ok(pools)
    }

    fn add_port(&self, open: &Open, replica: Uuid) {
        let info = open.pool.info();
        if let Some(found) = open.pool.replica(replica) {
            let port = Port::new(found, info.label.incarnation, info.label.boot_id, self.planted);
            self.ports.0.borrow_mut().insert(replica, (info.label.pool, port));
        }
    }

    /// The way to a replica of this node.
    pub(crate) fn port(&self, replica: Uuid) -> Option<Port> {
        self.ports.get(replica)
    }

    /// The same, for the target.
    pub(crate) fn shared_ports(&self) -> Ports {
        self.ports.clone()
    }

    /// Every replica with its pool.
    pub(crate) fn ports(&self) -> Vec<(Uuid, Uuid, Port)> {
        self.ports.0.borrow().iter().map(|(replica, (pool, port))| (*replica, *pool, port.clone())).collect()
    }

    fn find(&self, pool: Uuid) -> Option<&Open> {
        self.pools.iter().find(|open| open.pool.info().label.pool == pool)
    }

    /// Whether this node has the pool.
    pub(crate) fn has(&self, pool: Uuid) -> bool {
        self.find(pool).is_some()
    }

    /// Makes a replica, durably.
    pub(crate) async fn create(
        &self,
        pool: Uuid,
        replica: Uuid,
        volume: &Volume,
        size_bytes: u64,
    ) -> Result<(), String> {
        let open = self.find(pool).ok_or_else(|| format!("pool {pool} is not on this node"))?;
        let config = ReplicaConfig {
            replica,
            volume: volume.uuid,
            volume_name: volume.name.clone(),
            size_bytes,
            block_size: volume.spec.block_size,
            copies: volume.spec.copies,
        };
        open.pool.create_replica(&config).await.map_err(|error| error.to_string())?;
        self.add_port(open, replica);
        Ok(())
    }

    /// Destroys a replica, durably.
    pub(crate) async fn destroy(&self, replica: Uuid) -> Result<(), String> {
        let Some((pool, port)) = self.ports.0.borrow_mut().remove(&replica) else { return Ok(()) };
        port.shut().await;
        let open = self.find(pool).expect("ports are of pools of this node");
        let deleted = open.pool.delete_replica(replica).await.map_err(|error| error.to_string());
        if deleted.is_err() {
            self.add_port(open, replica);
        }
        deleted
    }

    /// What the pools are like now.
    pub(crate) fn reports(&self, config: &Config) -> Vec<model::Pool> {
        let report = |open: &Open| {
            let info = open.pool.info();
            model::Pool {
                name: open.config.name.clone(),
                uuid: info.label.pool,
                node: config.node.clone(),
                uri: open.config.uri.clone(),
                state: PoolState::Online,
                capacity_bytes: info.capacity_bytes,
                used_bytes: info.used_bytes,
                free_bytes: info.free_bytes,
                incarnation: info.label.incarnation,
                boot_id: info.label.boot_id,
                message: None,
            }
        };
        self.pools.iter().map(report).collect()
    }

    /// Ends all sessions and closes the pools in order.
    pub(crate) async fn close(&self) {
        for (_, _, port) in self.ports() {
            port.shut().await;
        }
        for open in &self.pools {
            if let Err(error) = open.pool.close().await {
                tracing::warn!(uri = open.config.uri, %error, "pool was not closed in order; it will recover");
            }
        }
    }
}

/// Opens a pool of this cluster, or formats a blank device as one.
async fn open_or_format(config: &Config, pool: &PoolConfig) -> Result<Pool<AnyDevice>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let uri = pool.uri.parse::<device::uri::DeviceUri>().map_err(|error| text(&error))?;
    let device = device::open(&uri).await.map_err(|error| text(&error))?;
    match Pool::<AnyDevice>::probe(&device).await {
        Ok(label) if label.cluster != config.cluster => {
            return Err(format!(
                "belongs to cluster {}, not to {}; give this node another disk, or start it in that cluster",
                label.cluster, config.cluster
            ));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotAPool => {
            let options = FormatOptions {
                cluster: config.cluster,
                pool: rt::random_uuid(),
                name: pool.name.clone(),
                force: false,
            };
            Pool::format(&device, &options).await.map_err(|error| text(&error))?;
        }
        Err(error) => return Err(text(&error)),
    }
    Pool::open(device, config.boot_id).await.map_err(|error| text(&error))
}
