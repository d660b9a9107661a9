//! The engine: one per node. It owns the node's pools, nexuses, target and front-ends, applies the wanted state that it
//! reads from the store, and writes what it sees there.
//!
//! ```text
//! watches of the store --> converge -+-> replicas: made while the record says New, destroyed when it says Removed
//!                                    +-> volumes: one task each while the intent names this node as the owner
//!                                    |      open nexus -> serve on the target -> attach as a device -> report
//!                                    +-> readers: one task each while the intent names this node as one
//!                                           read-only device -> wherever the nexus is
//! ```
//!
//! # Invariants
//! 1. A replica is made only for a member in state `New`, and destroyed only when the record, read from the store itself,
//!    says `Removed`. Absence is never an order: a volume ends when the store itself says that it is not there.
//! 2. At most one nexus of a volume runs in an engine.
//! 3. Nothing here is needed for safety across nodes: epochs, the record and the ports of replicas see to that.
//! 4. What watches have told may be old. It says where to look; every act is decided by one object read from the store
//!    itself. An engine whose watches are behind takes no volume from the node to which it has moved.

mod config;
mod control;
mod device_node;
mod dial;
mod follower;
mod keys;
mod meter;
mod metrics;
mod pools;
mod reader;
mod replicas;
mod target;
mod volume;

pub use config::{Config, Expected, Frontend, FuseConfig, PoolConfig};
pub use control::{Control, ControlError, ControlFuture, Known};
pub use follower::Follower;
pub use keys::volume_key;
pub use meter::IoMetrics;
pub use metrics::{EngineMetrics, VolumeMetrics};
pub use volume::VolumeHandle;

use crate::pools::Pools;
use crate::reader::ReaderTask;
use crate::replicas::Replicas;
use crate::target::Exports;
use crate::volume::VolumeTask;
use device::Status;
use frontend::fuse::Holder;
use futures_util::future::{FutureExt, LocalBoxFuture};
use model::{Node, NodeSpec, NodeState, PoolState, ReaderReport, Volume};
use rt::Task;
use rt::sync::Event;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How often the engine looks at its replicas although the store has told nothing, and tries again what has failed.
const LOOK: Duration = Duration::from_secs(2);
/// How often it says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After so many heartbeats it reports its pools although they are as before: somebody may have deleted the objects.
const POOLS_AGAIN: u64 = 8;
/// The same of its replicas: that they are there says that their volumes have had a record (docs/decisions/0031).
const REPLICAS_AGAIN: u64 = 32;

/// How long an orderly end waits for volumes: one whose copies are away cannot be closed in order.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How long it then serves its replicas to nexuses elsewhere that may be ending as well.
const PARTING: Duration = Duration::from_secs(3);
const PARTING_LOOK: Duration = Duration::from_millis(20);

/// Why an engine could not start.
#[derive(Debug)]
pub enum Error {
    /// A pool could not be opened or formatted.
    Pool {
        /// The device's URI.
        uri: String,
        /// What is wrong.
        cause: String,
    },
    /// The target's address could not be used.
    Listen {
        /// The address.
        address: SocketAddr,
        /// What is wrong.
        source: std::io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { uri, cause } => write!(f, "pool {uri}: {cause}"),
            Self::Listen { address, source } => {
                write!(f, "target {address}: {source}; choose another address or end who uses it")
            }
        }
    }
}

impl std::error::Error for Error {}

/// A running engine; a cheap handle, on its reactor.
#[derive(Clone)]
pub struct Engine(Rc<State>);

pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) control: Rc<dyn Control>,
    pub(crate) pools: Pools,
    pub(crate) address: SocketAddr,
    pub(crate) exports: Exports,
    replicas: Replicas,
    volumes: RefCell<BTreeMap<Uuid, VolumeTask>>,
    readers: RefCell<BTreeMap<Uuid, ReaderTask>>,
    /// Something of this node has changed that the store is to be told of.
    pub(crate) changed_here: Event,
    tasks: RefCell<Vec<Task<()>>>,
    /// No volume is begun any more: one that is just being closed would be opened a second time (invariant 2).
    ending: Cell<bool>,
    /// Keeps devices alive while this process is restarted.
    pub(crate) holder: Option<Holder>,
    /// When a device by NVMe/TCP could not be made although the kernel has what it needs.
    pub(crate) nvme_failed: Cell<Option<rt::Instant>>,
    /// Where nodes listened when the store was last read.
    addresses: RefCell<BTreeMap<String, SocketAddr>>,
    /// The store knows which of this node's pools this engine runs without: one that is claimed later reports itself.
    absent_told: Cell<bool>,
}

impl Engine {
    /// Opens the pools, listens, and begins to converge.
    ///
    /// # Errors
    /// When a pool or the address cannot be used; nothing runs then.
    pub fn start(config: Config, control: Rc<dyn Control>) -> LocalBoxFuture<'static, Result<Self, Error>> {
        // Boxed here: an `async fn` is compiled again, with the data path under it, in each crate that awaits it.
        Self::begin(config, control).boxed_local()
    }

    async fn begin(config: Config, control: Rc<dyn Control>) -> Result<Self, Error> {
        // At once: what comes next may take longer than devices wait.
        for volume in device_node::lost(&config).await {
            device_node::keep(&config, rt::now(), volume, true).await;
        }
        device_node::say_what_is_made(&config).await;
        let pools = Pools::open(&config, &*control).await?;
        let exports = Exports::default();
        let (address, target) = target::serve(&config, exports.clone(), &pools).await?;
        let holder = config.fuse.as_ref().and_then(device_node::holder);
        let state = Rc::new(State {
            holder,
            config,
            control,
            pools,
            address,
            exports,
            replicas: Replicas::default(),
            volumes: RefCell::default(),
            readers: RefCell::default(),
            changed_here: Event::new(),
            tasks: RefCell::new(vec![target]),
            ending: Cell::new(false),
            nvme_failed: Cell::new(None),
            addresses: RefCell::default(),
            absent_told: Cell::new(false),
        });
        let heart = rt::spawn(Rc::clone(&state).beat());
        let converging = rt::spawn(Rc::clone(&state).converge_for_ever());
        let opening = rt::spawn(Rc::clone(&state).open_named());
        state.tasks.borrow_mut().extend([heart, converging, opening]);
        if state.config.fuse.is_some() {
            state.tasks.borrow_mut().push(rt::spawn(Rc::clone(&state).keep_devices()));
        }
        tracing::info!(node = state.config.node, %address, "engine runs");
        Ok(Self(state))
    }

    /// Where its target listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The open nexus of a volume on this node, for in-process use and reports.
    pub fn volume(&self, volume: Uuid) -> Option<VolumeHandle> {
        self.0.volumes.borrow().get(&volume).and_then(VolumeTask::handle)
    }

    /// A volume that this node is wished to read, for in-process use, once it is open somewhere.
    ///
    /// # Errors
    /// `Gone` while there is no way to it.
    pub fn read(&self, volume: &Volume) -> LocalBoxFuture<'static, Result<Follower, Status>> {
        let (state, volume) = (Rc::clone(&self.0), volume.clone());
        async move { Follower::open(&state, &volume).await }.boxed_local()
    }

    /// Takes one more disk for a pool; does nothing if it is one of this node's already.
    ///
    /// # Errors
    /// Why the disk is refused, or could not be used.
    pub fn claim(&self, pool: PoolConfig) -> LocalBoxFuture<'static, Result<(), String>> {
        let state = Rc::clone(&self.0);
        async move { state.pools.claim(&state.config, &*state.control, &pool).await }.boxed_local()
    }

    /// What it has counted.
    pub fn metrics(&self) -> EngineMetrics {
        EngineMetrics::gather(&self.0)
    }

    /// Ends in order: closes every volume, says so, and closes the pools.
    ///
    /// # Errors
    /// Why some volumes cannot end: their device is in use (mounted). They go on; the others are closed.
    pub fn stop(&self) -> LocalBoxFuture<'static, Result<(), Vec<String>>> {
        Rc::clone(&self.0).end().boxed_local()
    }
}

impl State {
    async fn end(self: Rc<Self>) -> Result<(), Vec<String>> {
        let state = &self;
        state.ending.set(true);
        let deadline = rt::now() + CLOSE_LIMIT;
        let mut in_use = state.end_readers(deadline).await;
        let tasks = state.volumes.take();
        for (uuid, task) in tasks {
            let name = task.name();
            match rt::timeout(deadline - rt::now(), task.close()).await {
                Ok(Ok(())) => {}
                Ok(Err((task, reason))) => {
                    in_use.push(format!("volume {name}: {reason}"));
                    state.volumes.borrow_mut().insert(uuid, task);
                }
                Err(_) => {
                    tracing::warn!(
                        volume = name,
                        "not closed in order in time; its next owner takes it over"
                    );
                }
            }
        }
        if !in_use.is_empty() {
            state.ending.set(false);
            return Err(in_use);
        }
        state.part().await;
        state.tasks.take();
        if let Err(error) = state.control.report_node(state.node(NodeState::NotReady, 0)).await {
            tracing::info!(node = state.config.node, %error, "the store was not told of the end");
        }
        state.pools.close().await;
        Ok(())
    }

    /// Removes the read-only devices; answers which are in use and go on.
    async fn end_readers(&self, deadline: rt::Instant) -> Vec<String> {
        let mut in_use = Vec::new();
        for (uuid, task) in self.readers.take() {
            let name = task.name().to_owned();
            match rt::timeout(deadline - rt::now(), task.close()).await {
                Ok(Ok(())) => {}
                Ok(Err((task, reason))) => {
                    in_use.push(format!("volume {name}: {reason}"));
                    self.readers.borrow_mut().insert(uuid, task);
                }
                Err(_) => tracing::warn!(volume = name, "its read-only device did not go in time"),
            }
        }
        in_use
    }

    /// Lets nexuses elsewhere finish: when all nodes end together, the copies here are what they flush and close.
    async fn part(&self) {
        let deadline = rt::now() + PARTING;
        while rt::now() < deadline && self.pools.ports().iter().any(|(_, _, port)| port.is_in_use()) {
            rt::sleep(PARTING_LOOK).await;
        }
    }

    /// Notes where a node listens.
    pub(crate) fn learn_address(&self, node: &Node) {
        match node.address.parse() {
            Ok(address) => drop(self.addresses.borrow_mut().insert(node.name.clone(), address)),
            Err(_) => {
                tracing::warn!(node = node.name, address = node.address, "node has no usable address");
            }
        }
    }

    /// Where a node listened when it was last read from the store.
    pub(crate) fn known_address(&self, node: &str) -> Option<SocketAddr> {
        self.addresses.borrow().get(node).copied()
    }

    fn node(&self, state: NodeState, heartbeat: u64) -> Node {
        Node {
            name: self.config.node.clone(),
            // The wish that is there stays.
            spec: NodeSpec::default(),
            state,
            address: self.address.to_string(),
            metrics_address: self.config.metrics_address.clone(),
            pid: self.config.pid,
            boot_id: self.config.boot_id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            heartbeat,
            // Whoever writes it knows the labels.
            topology: BTreeMap::new(),
        }
    }

    /// Says that this node is alive, again and again, and what its pools are like.
    async fn beat(self: Rc<Self>) {
        let mut heartbeat = rt::random_u64() >> 1;
        let mut told = Vec::new();
        loop {
            // Before this node is there for new copies.
            // What changes meanwhile is told next time.
            if !self.absent_told.replace(true)
                && let Err(error) = self.tell_absent_pools().await
            {
                self.absent_told.set(false);
                tracing::debug!(node = self.config.node, %error, "pools not looked for");
            }
            heartbeat += 1;
            if let Err(error) = self.control.report_node(self.node(NodeState::Ready, heartbeat)).await {
                tracing::debug!(node = self.config.node, %error, "heartbeat not written");
            }
            self.pools.revive(&self.config).await;
            if heartbeat.is_multiple_of(POOLS_AGAIN) {
                told.clear();
            }
            if heartbeat.is_multiple_of(REPLICAS_AGAIN) {
                self.replicas.tell_again();
            }
            self.tell_pools(&mut told).await;
            rt::sleep(HEARTBEAT).await;
        }
    }

    /// Says what the pools are like that are not as they were `told`.
    async fn tell_pools(&self, told: &mut Vec<model::Pool>) {
        let pools = self.pools.reports(&self.config);
        for pool in pools.iter().filter(|pool| !told.contains(pool)) {
            match self.control.report_pool(pool.clone()).await {
                Ok(wish) if wish.release => self.release(pool).await,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(node = self.config.node, %error, "pool report not written");
                    return told.clear();
                }
            }
        }
        *told = pools;
    }

    /// Gives the disk of a pool back, as an operator wishes, unless a copy is on it: then it is asked again later.
    async fn release(&self, pool: &model::Pool) {
        match self.pools.release(pool.uuid).await {
            Ok(()) => {
                tracing::info!(node = self.config.node, pool = %pool.uuid, uri = pool.uri, "its disk was given back");
                self.absent_told.set(false);
            }
            Err(cause) => {
                tracing::debug!(node = self.config.node, pool = %pool.uuid, cause, "it is not given back yet");
            }
        }
    }

    /// Lets devices wait for volumes that are not open here yet, and those of volumes that have moved away fail.
    async fn keep_devices(self: Rc<Self>) {
        let begun = rt::now();
        loop {
            rt::sleep(device_node::KEEP).await;
            for volume in device_node::lost(&self.config).await {
                if self.volumes.borrow().contains_key(&volume) {
                    device_node::keep(&self.config, begun, volume, true).await;
                } else if self.has_moved(volume).await {
                    device_node::keep(&self.config, begun, volume, false).await;
                }
                // Else it waits as long as this engine has said at its start: that nothing is known is no order.
            }
        }
    }

    /// Whether the store itself says that another node has the volume.
    async fn has_moved(&self, volume: Uuid) -> bool {
        let known = self.control.records().read(volume).await;
        known.is_ok_and(|known| known.record.owner.is_some_and(|owner| owner.node != self.config.node))
    }

    /// Opens the disks that were named and could not be opened at the start, once they can be. One that hangs holds up
    /// nothing but this.
    async fn open_named(self: Rc<Self>) {
        while !self.pools.has_all_named() {
            rt::sleep(HEARTBEAT).await;
            if self.pools.open_named(&self.config, &*self.control).await {
                // Why one is away, and which of the others are on none of the disks, is told anew.
                self.absent_told.set(false);
            }
        }
    }

    /// Says which pools of this node this engine was started without: nobody else can know (docs/decisions/0009).
    async fn tell_absent_pools(&self) -> Result<(), ControlError> {
        let known = self.control.pools().await?;
        let absent = |pool: &model::Pool| pool.node == self.config.node && !self.pools.knows(pool.uuid);
        for pool in known.into_iter().filter(absent) {
            let (state, message) = match self.pools.why_closed(&pool.uri) {
                Some(cause) => (PoolState::Failed, cause),
                None if pool.spec.release && self.pools.is_gone(pool.uuid) => {
                    (PoolState::Gone, "its disk was given back".to_owned())
                }
                None if self.pools.is_gone(pool.uuid) => {
                    let message =
                        "its disk was taken away, replaced or blanked; what is on that disk stays there";
                    (PoolState::Gone, message.to_owned())
                }
                None => (PoolState::Failed, "it may be on a disk that cannot be opened".to_owned()),
            };
            tracing::warn!(node = self.config.node, pool = %pool.uuid, uri = pool.uri, message, "pool is not open");
            self.control.report_pool(model::Pool { state, message: Some(message), ..pool }).await?;
        }
        Ok(())
    }

    async fn converge_for_ever(self: Rc<Self>) {
        loop {
            let here = self.changed_here.wait();
            if let Some(known) = self.control.known() {
                self.converge(&known).await;
            }
            rt::race(self.control.changed(), rt::race(here, rt::sleep(LOOK))).await;
        }
    }

    /// Makes this node what the store wants it to be, as far as that needs no waiting.
    async fn converge(self: &Rc<Self>, known: &Known) {
        self.replicas.converge(self, known).await;
        if self.ending.get() {
            return;
        }
        for volume in known.volumes.values().map(|item| &item.value) {
            self.read(volume);
            if let Some(task) = self.volumes.borrow().get(&volume.uuid) {
                task.wish(volume, self.owns(volume));
                continue;
            }
            if self.owns(volume) {
                let task = VolumeTask::start(self, volume.clone());
                self.volumes.borrow_mut().insert(volume.uuid, task);
            }
        }
        self.look_for_gone(known).await;
        self.volumes.borrow_mut().retain(|_, task| !task.is_over());
        self.readers.borrow_mut().retain(|_, task| !task.is_over());
    }

    /// Begins to read a volume that is to be read here; who reads it already looks again.
    fn read(self: &Rc<Self>, volume: &Volume) {
        let mut readers = self.readers.borrow_mut();
        match readers.get(&volume.uuid) {
            Some(task) => task.look(),
            None if self.reads(volume) => {
                readers.insert(volume.uuid, ReaderTask::start(self, volume));
            }
            None => {}
        }
    }

    /// Whether a volume is wished to be read here.
    pub(crate) fn reads(&self, volume: &Volume) -> bool {
        volume.intent.readers.contains(&self.config.node)
    }

    /// What is to be said of the read-only devices of this node.
    pub(crate) fn reader_reports(&self) -> Vec<ReaderReport> {
        self.readers.borrow().values().map(ReaderTask::report).collect()
    }

    /// Whether a volume's nexus is wished to be here.
    pub(crate) fn owns(&self, volume: &Volume) -> bool {
        volume.intent.owner.as_deref() == Some(self.config.node.as_str())
    }

    /// Ends the volumes that concern this node no more, or are not there any more, if the store itself says so.
    async fn look_for_gone(&self, known: &Known) {
        let uuids: BTreeSet<Uuid> = known.volumes.values().map(|item| item.value.uuid).collect();
        let gone = |(uuid, _): &(&Uuid, &VolumeTask)| !uuids.contains(uuid);
        let gone: Vec<(Uuid, String)> =
            self.volumes.borrow().iter().filter(gone).map(|(uuid, task)| (*uuid, task.name())).collect();
        for (uuid, name) in gone {
            let found = self.control.volume(&name).await;
            let tasks = self.volumes.borrow();
            let Some(task) = tasks.get(&uuid) else { continue };
            match found {
                Ok(Some(volume)) if volume.uuid == uuid => task.wish(&volume, self.owns(&volume)),
                // Another one may have its name by now.
                Ok(_) => task.unwish(),
                Err(error) => tracing::debug!(volume = name, %error, "it is not known whether it is gone"),
            }
        }
    }
}
