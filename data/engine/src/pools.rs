//! The pools of this node, and the ports of their replicas.
//!
//! 1. A device is formatted only while it is locked, and only if it is blank and may be (`Expected`). One whose pool
//!    was open before is never formatted: what is there instead is somebody's.
//! 2. A pool that names another node is opened only where the operator has named the device, and not while the store
//!    knows it as open on a node that is ready.
//! 3. While a disk that was named cannot be opened, no pool is said to be gone from it: what nobody can look into may be
//!    there.

use crate::{Config, Control, Error, Expected, PoolConfig};
use device::AnyDevice;
use model::{DiskClass, Node, NodeState, PoolSpec, PoolState, Volume};
use nexus::leg::Port;
use pool::{ErrorKind, FormatOptions, Opening, Pool, PoolInfo, PoolLabel, ReplicaConfig};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use uuid::Uuid;

/// What a pool's name may have at most: a DNS label.
const NAME_LEN_MAX: usize = 63;

/// The pools of a node.
pub(crate) struct Pools {
    disks: RefCell<Vec<Rc<Disk>>>,
    /// Those that were named and could not be opened yet.
    closed: RefCell<Vec<Closed>>,
    /// Where disks were that were given back: this engine does not take them again, whatever selects them.
    released: RefCell<BTreeSet<String>>,
    ports: Ports,
    planted: nexus::Planted,
}

/// A disk that was named and cannot be opened, and why.
struct Closed {
    config: PoolConfig,
    cause: String,
}

/// One disk and its pool.
struct Disk {
    /// Unique on this node.
    name: String,
    /// Where it was seen last.
    uri: RefCell<String>,
    /// What kind of medium it is.
    class: Option<DiskClass>,
    uuid: Uuid,
    /// None while it cannot be opened.
    pool: RefCell<Option<Pool<AnyDevice>>>,
    /// As it was when it was last open.
    last: RefCell<PoolInfo>,
    /// Why it is not open.
    message: RefCell<Option<String>>,
}

impl Disk {
    fn is_open(&self) -> bool {
        self.pool.borrow().is_some()
    }

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
    fn none(config: &Config) -> Self {
        Self {
            disks: RefCell::default(),
            closed: RefCell::default(),
            released: RefCell::default(),
            ports: Ports::default(),
            planted: config.nexus.planted,
        }
    }

    /// Opens every pool that it can. One bad disk does not take the others away; but if disks were named, one has to be
    /// there.
    pub(crate) async fn open(config: &Config, control: &dyn Control) -> Result<Self, Error> {
        let pools = Self::none(config);
        for pool in &config.pools {
            let Err(cause) = pools.claim(config, control, pool).await else { continue };
            tracing::warn!(node = config.node, uri = pool.uri, cause, "disk is not used");
            if pool.expected == Expected::Named {
                pools.closed.borrow_mut().push(Closed { config: pool.clone(), cause });
            }
        }
        let first =
            pools.closed.borrow().first().map(|closed| (closed.config.uri.clone(), closed.cause.clone()));
        match first {
            Some((uri, cause)) if pools.disks.borrow().is_empty() => Err(Error::Pool { uri, cause }),
            _ => Ok(pools),
        }
    }

    /// Tries those again that were named and could not be opened; whether one of them is there now, or is not for another
    /// reason.
    pub(crate) async fn open_named(&self, config: &Config, control: &dyn Control) -> bool {
        let tried: Vec<PoolConfig> =
            self.closed.borrow().iter().map(|closed| closed.config.clone()).collect();
        let mut changed = false;
        for pool in tried {
            // It stays among the closed ones until it is open (invariant 3).
            let claimed = self.claim(config, control, &pool).await;
            changed |= self.tried_again(&config.node, &pool.uri, claimed);
        }
        changed
    }

    /// Keeps how it went with a disk that was named; whether that is not as before.
    fn tried_again(&self, node: &str, uri: &str, claimed: Result<(), String>) -> bool {
        let mut closed = self.closed.borrow_mut();
        let Err(cause) = claimed else {
            tracing::info!(node, uri, "disk is used now");
            closed.retain(|closed| closed.config.uri != uri);
            return true;
        };
        let mut changed = false;
        for closed in closed.iter_mut().filter(|closed| closed.config.uri == uri && closed.cause != cause) {
            tracing::warn!(node, uri, cause, "disk is not used");
            closed.cause.clone_from(&cause);
            changed = true;
        }
        changed
    }

    /// Whether every disk that was named is open.
    pub(crate) fn has_all_named(&self) -> bool {
        self.closed.borrow().is_empty()
    }

    /// Why the disk that was named so is not open, if it is not.
    pub(crate) fn why_closed(&self, uri: &str) -> Option<String> {
        let closed = self.closed.borrow();
        closed.iter().find(|closed| closed.config.uri == uri).map(|closed| closed.cause.clone())
    }

    /// Opens a pool, or makes it, and has it from then on; does nothing if it is one of this node's already.
    pub(crate) async fn claim(
        &self,
        config: &Config,
        control: &dyn Control,
        pool: &PoolConfig,
    ) -> Result<(), String> {
        if let Expected::Pool(uuid) = pool.expected
            && let Some(disk) = self.disk(uuid)
        {
            // Its disk may have come back under another name; the next revival looks there.
            if !disk.is_open() {
                disk.uri.borrow_mut().clone_from(&pool.uri);
            }
            return Ok(());
        }
        if pool.expected == Expected::Blank && self.released.borrow().contains(&pool.uri) {
            let why = "it was given back by `orlop pool delete`; start this node again to have it used";
            return Err(why.to_owned());
        }
        let open = open_or_format(config, control, pool).await?;
        let info = open.info();
        let uuid = info.label.pool;
        // The name that a pool was made with stays where it was not named here.
        let named = pool.expected == Expected::Named;
        let wished = if named { pool.name.clone() } else { info.label.name.clone() };
        let disk = Rc::new(Disk {
            name: self.unique_name(wished, uuid),
            uri: RefCell::new(pool.uri.clone()),
            class: pool.class,
            uuid,
            pool: RefCell::new(Some(open)),
            last: RefCell::new(info),
            message: RefCell::default(),
        });
        self.add_ports(&disk);
        self.disks.borrow_mut().push(disk);
        Ok(())
    }

    fn unique_name(&self, wished: String, uuid: Uuid) -> String {
        if self.disks.borrow().iter().all(|disk| disk.name != wished) {
            return wished;
        }
        // Disks that say nothing of themselves are called after places, which change.
        let short: String = uuid.simple().to_string().chars().take(8).collect();
        let kept: String = wished.chars().take(NAME_LEN_MAX - 1 - short.len()).collect();
        format!("{kept}-{short}")
    }

    fn all(&self) -> Vec<Rc<Disk>> {
        self.disks.borrow().clone()
    }

    fn disk(&self, pool: Uuid) -> Option<Rc<Disk>> {
        self.disks.borrow().iter().find(|disk| disk.uuid == pool).cloned()
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
    fn find(&self, pool: Uuid) -> Result<(Rc<Disk>, Pool<AnyDevice>), String> {
        let disk = self.disk(pool).ok_or_else(|| format!("pool {pool} is not on this node"))?;
        let open = disk.pool.borrow().clone().ok_or_else(|| format!("pool {} is not open", disk.name))?;
        Ok((disk, open))
    }

    /// Whether the pool is one of this node's, open or not.
    pub(crate) fn knows(&self, pool: Uuid) -> bool {
        self.disk(pool).is_some()
    }

    /// Whether the pool is on none of this node's disks (invariant 3).
    pub(crate) fn is_gone(&self, pool: Uuid) -> bool {
        self.has_all_named() && !self.knows(pool)
    }

    /// Whether the pool is open on this node.
    pub(crate) fn has(&self, pool: Uuid) -> bool {
        self.find(pool).is_ok()
    }

    /// Whether an open pool of this node says that it does not hold the replica. One that has failed says nothing: what it
    /// was about to forget may be on its disk.
    pub(crate) fn has_destroyed(&self, pool: Uuid, replica: Uuid) -> bool {
        self.find(pool).is_ok_and(|(_, open)| !open.info().failed && open.replica(replica).is_none())
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
        self.add_port(&disk, &open, replica);
        Ok(())
    }

    /// Destroys a replica, durably.
    pub(crate) async fn destroy(&self, replica: Uuid) -> Result<(), String> {
        let Some((pool, port)) = self.ports.0.borrow_mut().remove(&replica) else { return Ok(()) };
        port.shut().await;
        let (disk, open) = self.find(pool)?;
        let deleted = open.delete_replica(replica).await.map_err(|error| error.to_string());
        if deleted.is_err() {
            self.add_port(&disk, &open, replica);
        }
        deleted
    }

    /// Opens pools again that have failed. Their ports go first; the lock on the disk says when nothing of the old
    /// opening can write any more. The new opening has a new incarnation, so that nobody takes it for the old one, and
    /// a boot id of its own: a disk that failed a flush has lost what was completed, as a power cut does (I5).
    pub(crate) async fn revive(&self, config: &Config) {
        for disk in self.all() {
            let failed = disk.pool.borrow().as_ref().is_some_and(|pool| pool.info().failed);
            if failed {
                for (_, _, port) in self.ports().into_iter().filter(|(_, pool, _)| *pool == disk.uuid) {
                    self.ports.0.borrow_mut().remove(&port.replica().config().replica);
                    port.shut().await;
                }
                disk.info();
                disk.pool.take();
            }
            if !disk.is_open() {
                let uri = disk.uri.borrow().clone();
                if self.all().iter().any(|other| other.is_open() && *other.uri.borrow() == uri) {
                    let message = "its disk is gone, and another one is in its place";
                    *disk.message.borrow_mut() = Some(message.to_owned());
                    continue;
                }
                match open_again(config, &uri, disk.uuid).await {
                    Ok(pool) => {
                        tracing::info!(node = config.node, uri, "pool is open again");
                        *disk.pool.borrow_mut() = Some(pool);
                        *disk.message.borrow_mut() = None;
                        self.add_ports(&disk);
                    }
                    Err(cause) => *disk.message.borrow_mut() = Some(cause),
                }
            }
        }
    }

    /// Gives back the disk of a pool that holds no copy: it is blank then, and none of this node's.
    ///
    /// # Errors
    /// Why it cannot be given back; a pool that holds a copy is as before.
    pub(crate) async fn release(&self, pool: Uuid) -> Result<(), String> {
        let (disk, open) = self.find(pool)?;
        let retired = open.retire().await;
        if let Err(error) = &retired
            && error.kind() == ErrorKind::Occupied
        {
            *disk.message.borrow_mut() = Some(format!("it is given back later: {error}"));
            return retired.map_err(|error| text(&error));
        }
        // Closed, whatever else has failed: what is left of it is looked at by the next revival.
        disk.pool.take();
        retired.map_err(|error| text(&error))?;
        self.disks.borrow_mut().retain(|other| other.uuid != pool);
        self.released.borrow_mut().insert(disk.uri.borrow().clone());
        Ok(())
    }

    /// What the pools are like now.
    pub(crate) fn reports(&self, config: &Config) -> Vec<model::Pool> {
        let report = |disk: &Rc<Disk>| {
            let info = disk.info();
            let open = disk.is_open() && !info.failed;
            model::Pool {
                name: disk.name.clone(),
                uuid: disk.uuid,
                node: config.node.clone(),
                // The wish that is there stays.
                spec: PoolSpec::default(),
                uri: disk.uri.borrow().clone(),
                class: disk.class,
                state: if open { PoolState::Online } else { PoolState::Failed },
                capacity_bytes: info.capacity_bytes,
                used_bytes: info.used_bytes,
                free_bytes: info.free_bytes,
                incarnation: info.label.incarnation,
                boot_id: info.label.boot_id,
                message: disk.message.borrow().clone(),
            }
        };
        self.disks.borrow().iter().map(report).collect()
    }

    /// Ends all sessions and closes the pools in order.
    pub(crate) async fn close(&self) {
        for (_, _, port) in self.ports() {
            port.shut().await;
        }
        self.ports.0.borrow_mut().clear();
        for disk in self.all() {
            let pool = disk.pool.take();
            if let Some(pool) = pool
                && let Err(error) = pool.close().await
            {
                tracing::warn!(uri = *disk.uri.borrow(), %error, "pool was not closed in order; it will recover");
            }
        }
    }
}

/// Opens the device, makes a pool on it if it is blank and may become one, and opens that.
async fn open_or_format(
    config: &Config,
    control: &dyn Control,
    pool: &PoolConfig,
) -> Result<Pool<AnyDevice>, String> {
    let device = open_device(&pool.uri).await?;
    match (Pool::<AnyDevice>::probe(&device).await, pool.expected) {
        (Ok(label), expected) => may_open(config, control, &label, expected).await?,
        (Err(error), Expected::Named | Expected::Blank) if error.kind() == ErrorKind::NotAPool => {
            let options = FormatOptions {
                cluster: config.cluster,
                pool: rt::random_uuid(),
                name: pool.name.clone(),
                node: Some(config.node.clone()),
                force: false,
            };
            Pool::format(&device, &options).await.map_err(|error| text(&error))?;
        }
        (Err(error), _) => return Err(text(&error)),
    }
    let opening = Opening { node: Some(&config.node), boot_id: config.boot_id, may_have_lost: false };
    Pool::open_as(device, opening).await.map_err(|error| text(&error))
}

/// Opens a pool again that has failed or was away.
async fn open_again(config: &Config, uri: &str, uuid: Uuid) -> Result<Pool<AnyDevice>, String> {
    let device = open_device(uri).await?;
    let label = Pool::<AnyDevice>::probe(&device).await.map_err(|error| match error.kind() {
        ErrorKind::NotAPool => {
            "the disk now holds no pool; start this node again to use it as a new one".into()
        }
        _ => text(&error),
    })?;
    if label.pool != uuid {
        return Err(format!("the disk now holds pool {}; start this node again to use that one", label.pool));
    }
    let opening = Opening { node: Some(&config.node), boot_id: config.boot_id, may_have_lost: true };
    Pool::open_as(device, opening).await.map_err(|error| text(&error))
}

/// Locks the device: nobody else on this machine has it open for writing from here on.
async fn open_device(uri: &str) -> Result<AnyDevice, String> {
    let uri = uri.parse::<device::uri::DeviceUri>().map_err(|error| text(&error))?;
    device::open(&uri).await.map_err(|error| text(&error))
}

fn text(error: &dyn std::fmt::Display) -> String {
    error.to_string()
}

/// Whether a pool that was found may be opened here.
async fn may_open(
    config: &Config,
    control: &dyn Control,
    label: &PoolLabel,
    expected: Expected,
) -> Result<(), String> {
    if judge(config, label, expected)? == Origin::Here {
        return Ok(());
    }
    let (pool, from) = (label.pool, label.node.as_deref());
    let unknown = |error: crate::ControlError| format!("cannot ask which node has pool {pool} open: {error}");
    let pools = control.pools().await.map_err(unknown)?;
    let elsewhere = pools.iter().find(|known| known.uuid == pool && known.node != config.node);
    let node = match elsewhere {
        Some(known) => control.node(&known.node).await.map_err(unknown)?,
        None => None,
    };
    if let Some(other) = elsewhere.filter(|known| is_open(known, node.as_ref())).map(|known| &known.node) {
        return Err(format!(
            "pool {pool} is open on node {other}, which is ready, and one disk is never used by two nodes: take it out \
             of that node and end that node, then start this one again"
        ));
    }
    tracing::warn!(node = config.node, from, %pool, "a pool that this node did not have is opened on it");
    Ok(())
}

/// Where a pool was opened last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// On this node.
    Here,
    /// On another one, or it does not say.
    Elsewhere,
}

/// Whether the label is one that is expected, and where its pool comes from.
fn judge(config: &Config, label: &PoolLabel, expected: Expected) -> Result<Origin, String> {
    let PoolLabel { cluster, pool, node, .. } = label;
    if *cluster != config.cluster {
        return Err(format!(
            "belongs to cluster {cluster}, not to {}; give this node another disk, or start it in that cluster",
            config.cluster
        ));
    }
    let other = node.as_deref().filter(|node| *node != config.node);
    match (expected, other) {
        (Expected::Pool(wanted), _) if wanted != *pool => {
            Err(format!("the disk holds pool {pool}, and held {wanted} a moment ago"))
        }
        (Expected::Blank, _) => Err(format!("the disk holds pool {pool}, and was blank a moment ago")),
        (Expected::Pool(_), Some(other)) => Err(format!("pool {pool} is of the node {other}")),
        (Expected::Pool(_) | Expected::Named, None) if node.is_some() => Ok(Origin::Here),
        (Expected::Pool(_) | Expected::Named, _) => Ok(Origin::Elsewhere),
    }
}

/// Whether a pool is open on its node, as far as the store knows.
fn is_open(pool: &model::Pool, node: Option<&Node>) -> bool {
    pool.state == PoolState::Online && node.is_some_and(|node| node.state == NodeState::Ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::NodeSpec;

    const CLUSTER: Uuid = Uuid::from_u128(1);
    const POOL: Uuid = Uuid::from_u128(2);

    fn config() -> Config {
        Config {
            node: "n1".into(),
            cluster: CLUSTER,
            boot_id: Uuid::nil(),
            pid: 1,
            pools: Vec::new(),
            listen: ([127, 0, 0, 1], 0).into(),
            secret: None,
            metrics_address: None,
            nexus: nexus::Config::default(),
            fuse: None,
        }
    }

    fn label(cluster: Uuid, node: Option<&str>) -> PoolLabel {
        let (incarnation, boot_id) = (Uuid::nil(), Uuid::nil());
        PoolLabel {
            cluster,
            pool: POOL,
            name: "a".into(),
            incarnation,
            boot_id,
            node: node.map(str::to_owned),
        }
    }

    #[test]
    fn only_what_was_expected_is_opened() {
        let (named, blank, found) = (Expected::Named, Expected::Blank, Expected::Pool(POOL));
        let judged = |node, expected| judge(&config(), &label(CLUSTER, node), expected);
        assert_eq!(judged(Some("n1"), named), Ok(Origin::Here));
        assert_eq!(judged(Some("n1"), found), Ok(Origin::Here));
        assert_eq!(judged(None, named), Ok(Origin::Elsewhere), "an older version did not say");
        assert_eq!(judged(None, found), Ok(Origin::Elsewhere));
        assert_eq!(judged(Some("n2"), named), Ok(Origin::Elsewhere), "moved on purpose");
        for (node, expected, why) in [
            (Some("n2"), found, "is of the node n2"),
            (Some("n1"), blank, "was blank a moment ago"),
            (None, blank, "was blank a moment ago"),
            (Some("n1"), Expected::Pool(Uuid::from_u128(3)), "a moment ago"),
        ] {
            let error = judged(node, expected).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let foreign = label(Uuid::from_u128(9), Some("n1"));
        for expected in [named, blank, found] {
            assert!(judge(&config(), &foreign, expected).unwrap_err().contains("belongs to cluster"));
        }
    }

    #[test]
    fn a_disk_that_is_closed_for_another_reason_is_news() {
        let (pools, uri) = (Pools::none(&config()), "disk:///dev/sda");
        let named = PoolConfig { name: "a".into(), uri: uri.into(), class: None, expected: Expected::Named };
        pools.closed.borrow_mut().push(Closed { config: named, cause: "it is locked".into() });
        let tried = |claimed: Result<(), &str>| pools.tried_again("n1", uri, claimed.map_err(str::to_owned));
        assert!(!tried(Err("it is locked")), "nothing new");
        assert!(tried(Err("it does not exist")));
        assert_eq!(pools.why_closed(uri).as_deref(), Some("it does not exist"));
        assert!(!tried(Err("it does not exist")));
        assert!(tried(Ok(())));
        assert!(pools.has_all_named());
    }

    #[test]
    fn a_pool_that_is_open_on_a_node_that_is_ready_stays_there() {
        use NodeState::{NotReady, Ready};
        use PoolState::{Failed, Gone, Online};
        let pool = |node: &str, state| model::Pool {
            name: "a".into(),
            uuid: POOL,
            node: node.into(),
            spec: PoolSpec::default(),
            uri: "disk:///dev/sda".into(),
            class: None,
            state,
            capacity_bytes: 0,
            used_bytes: 0,
            free_bytes: 0,
            incarnation: Uuid::nil(),
            boot_id: Uuid::nil(),
            message: None,
        };
        let node = |state| Node {
            name: "n2".into(),
            spec: NodeSpec::default(),
            state,
            address: String::new(),
            metrics_address: None,
            pid: 1,
            boot_id: Uuid::nil(),
            version: String::new(),
            heartbeat: 0,
            topology: BTreeMap::new(),
        };
        for (state, ready, open) in
            [(Online, Ready, true), (Online, NotReady, false), (Gone, Ready, false), (Failed, Ready, false)]
        {
            assert_eq!(is_open(&pool("n2", state), Some(&node(ready))), open, "{state:?} {ready:?}");
        }
        assert!(!is_open(&pool("n2", Online), None), "its node is not known any more");
    }
}
