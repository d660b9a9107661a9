//! The pools of this node, and the ports of their replicas.

use crate::{Config, Error, PoolConfig};
use device::AnyDevice;
use model::{PoolState, Volume};
use nexus::leg::Port;
use pool::{ErrorKind, FormatOptions, Pool, PoolInfo, ReplicaConfig};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

/// The pools of a node.
pub(crate) struct Pools {
    disks: Vec<Disk>,
    ports: Ports,
    planted: nexus::Planted,
}

/// One disk and its pool.
struct Disk {
    config: PoolConfig,
    uuid: Uuid,
    /// None while it cannot be opened.
    pool: RefCell<Option<Pool<AnyDevice>>>,
    /// As it was when it was last open.
    last: RefCell<PoolInfo>,
    /// Why it is not open.
    message: RefCell<Option<String>>,
}

impl Disk {
    fn info(&self) -> PoolInfo {
        if let Some(pool) = self.pool.borrow().as_ref() {
            *self.last.borrow_mut() = pool.info();
        }
        self.last.borrow().clone()
    }
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

impl Pools {
    /// Opens every pool, formats blank devices.
    pub(crate) async fn open(config: &Config) -> Result<Self, Error> {
        let mut disks = Vec::new();
        for pool_config in &config.pools {
            let pool = open_or_format(config, pool_config, false)
                .await
                .map_err(|cause| Error::Pool { uri: pool_config.uri.clone(), cause })?;
            let info = pool.info();
            disks.push(Disk {
                config: pool_config.clone(),
                uuid: info.label.pool,
                pool: RefCell::new(Some(pool)),
                last: RefCell::new(info),
                message: RefCell::default(),
            });
        }
        let pools = Self { disks, ports: Ports::default(), planted: config.nexus.planted };
        for disk in &pools.disks {
            pools.add_ports(disk);
        }
        Ok(pools)
    }

    /// Lets the target and the nexuses of this node reach the replicas of an open pool.
    fn add_ports(&self, disk: &Disk) {
        let Some(pool) = disk.pool.borrow().clone() else { return };
        for replica in pool.replicas() {
            self.add_port(disk, &pool, replica.config.replica);
        }
    }

    fn add_port(&self, disk: &Disk, pool: &Pool<AnyDevice>, replica: Uuid) {
        let label = pool.info().label;
        if let Some(found) = pool.replica(replica) {
            let port = Port::new(found, label.incarnation, label.boot_id, self.planted);
            self.ports.0.borrow_mut().insert(replica, (disk.uuid, port));
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

    /// An open pool of this node.
    fn find(&self, pool: Uuid) -> Result<(&Disk, Pool<AnyDevice>), String> {
        let disk = self.disks.iter().find(|disk| disk.uuid == pool);
        let disk = disk.ok_or_else(|| format!("pool {pool} is not on this node"))?;
        let open =
            disk.pool.borrow().clone().ok_or_else(|| format!("pool {} is not open", disk.config.name))?;
        Ok((disk, open))
    }

    /// Whether the pool is one of this node's, open or not.
    pub(crate) fn knows(&self, pool: Uuid) -> bool {
        self.disks.iter().any(|disk| disk.uuid == pool)
    }

    /// Whether the pool is open on this node.
    pub(crate) fn has(&self, pool: Uuid) -> bool {
        self.find(pool).is_ok()
    }

    /// Makes a replica, durably.
    pub(crate) async fn create(
        &self,
        pool: Uuid,
        replica: Uuid,
        volume: &Volume,
        size_bytes: u64,
    ) -> Result<(), String> {
        let (disk, open) = self.find(pool)?;
        let config = ReplicaConfig {
            replica,
            volume: volume.uuid,
            volume_name: volume.name.clone(),
            size_bytes,
            block_size: volume.spec.block_size,
            copies: volume.spec.copies,
        };
        open.create_replica(&config).await.map_err(|error| error.to_string())?;
        self.add_port(disk, &open, replica);
        Ok(())
    }

    /// Destroys a replica, durably.
    pub(crate) async fn destroy(&self, replica: Uuid) -> Result<(), String> {
        let Some((pool, port)) = self.ports.0.borrow_mut().remove(&replica) else { return Ok(()) };
        port.shut().await;
        let (disk, open) = self.find(pool)?;
        let deleted = open.delete_replica(replica).await.map_err(|error| error.to_string());
        if deleted.is_err() {
            self.add_port(disk, &open, replica);
        }
        deleted
    }

    /// Opens pools again that have failed. Their ports go first; the lock on the disk says when nothing of the old
    /// opening can write any more. The new opening has a new incarnation, so that nobody takes it for the old one, and
    /// a boot id of its own: a disk that failed a flush has lost what was completed, as a power cut does (I5).
    pub(crate) async fn revive(&self, config: &Config) {
        for disk in &self.disks {
            let failed = disk.pool.borrow().as_ref().is_some_and(|pool| pool.info().failed);
            if failed {
                for (_, _, port) in self.ports().into_iter().filter(|(_, pool, _)| *pool == disk.uuid) {
                    self.ports.0.borrow_mut().remove(&port.replica().config().replica);
                    port.shut().await;
                }
                disk.info();
                disk.pool.take();
            }
            if disk.pool.borrow().is_none() {
                match open_or_format(config, &disk.config, true).await {
                    Ok(pool) if pool.info().label.pool == disk.uuid => {
                        tracing::info!(node = config.node, uri = disk.config.uri, "pool is open again");
                        *disk.pool.borrow_mut() = Some(pool);
                        *disk.message.borrow_mut() = None;
                        self.add_ports(disk);
                    }
                    Ok(pool) => {
                        let found = pool.info().label.pool;
                        *disk.message.borrow_mut() = Some(format!(
                            "the disk now holds pool {found}; start this node again to use that one"
                        ));
                    }
                    Err(cause) => *disk.message.borrow_mut() = Some(cause),
                }
            }
        }
    }

    /// What the pools are like now.
    pub(crate) fn reports(&self, config: &Config) -> Vec<model::Pool> {
        let report = |disk: &Disk| {
            let info = disk.info();
            let open = disk.pool.borrow().is_some() && !info.failed;
            model::Pool {
                name: disk.config.name.clone(),
                uuid: disk.uuid,
                node: config.node.clone(),
                uri: disk.config.uri.clone(),
                state: if open { PoolState::Online } else { PoolState::Failed },
                capacity_bytes: info.capacity_bytes,
                used_bytes: info.used_bytes,
                free_bytes: info.free_bytes,
                incarnation: info.label.incarnation,
                boot_id: info.label.boot_id,
                message: disk.message.borrow().clone(),
            }
        };
        self.disks.iter().map(report).collect()
    }

    /// Ends all sessions and closes the pools in order.
    pub(crate) async fn close(&self) {
        for (_, _, port) in self.ports() {
            port.shut().await;
        }
        self.ports.0.borrow_mut().clear();
        for disk in &self.disks {
            let pool = disk.pool.take();
            if let Some(pool) = pool
                && let Err(error) = pool.close().await
            {
                tracing::warn!(uri = disk.config.uri, %error, "pool was not closed in order; it will recover");
            }
        }
    }
}

/// Opens a pool of this cluster (`again`: after it failed or was away), or formats a blank device as one.
async fn open_or_format(config: &Config, pool: &PoolConfig, again: bool) -> Result<Pool<AnyDevice>, String> {
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
    let opened = if again {
        Pool::reopen(device, config.boot_id).await
    } else {
        Pool::open(device, config.boot_id).await
    };
    opened.map_err(|error| text(&error))
}
