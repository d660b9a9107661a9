//! The simulated store: objects with revisions, answers that take time or are lost, outages. One process that never
//! loses what it answered, unless it is set back on purpose, reached by each node over a link that can be cut.
//!
//! It also watches every change of a record and notes what the nexuses did, for the totals, and what they never may do.

use crate::totals::Totals;
use engine::{Control, ControlError, ControlFuture, Known};
use model::{MemberState, Node, NodeReplicas, Stored, Volume, VolumeRecord, VolumeStatus};
use nexus::{RecordError, RecordFuture, Records, Versioned};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How often an engine is told what has changed, if its watch is not behind.
const TOLD: Duration = Duration::from_millis(100);
/// Of as many times, one begins a time in which a watch is behind.
const BEHIND_ONE_IN: u64 = 50;
/// For so many times of telling at most.
const BEHIND_MAX: u64 = 60;
/// How long a client waits for a store that is away.
const AWAY: Duration = Duration::from_millis(500);

/// The store of a simulated cluster; a cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Store(Rc<Inner>);

#[derive(Default)]
struct Inner {
    nodes: RefCell<BTreeMap<String, Node>>,
    volumes: RefCell<BTreeMap<Uuid, Volume>>,
    records: RefCell<BTreeMap<Uuid, Versioned>>,
    /// What the records were before, in order: backups.
    past: RefCell<Vec<VolumeRecord>>,
    replicas: RefCell<BTreeMap<String, NodeReplicas>>,
    /// Replicas that a record named and does not name any more.
    forgotten: RefCell<BTreeSet<Uuid>>,
    away: Cell<bool>,
    /// Nodes that cannot reach it, while others can.
    cut_off: RefCell<BTreeSet<String>>,
    /// Nodes whose watches tell nothing, while they reach it.
    deaf: RefCell<BTreeSet<String>>,
    outages: Cell<u64>,
    totals: RefCell<Totals>,
    violation: RefCell<Option<String>>,
}

impl Store {
    /// Names a volume that is to exist.
    pub(crate) fn create(&self, volume: Volume, record: VolumeRecord) {
        self.0.records.borrow_mut().insert(volume.uuid, Versioned { record, revision: 1 });
        self.0.volumes.borrow_mut().insert(volume.uuid, volume);
    }

    /// The volume's wishes, to be changed.
    pub(crate) fn wish(&self, volume: Uuid, edit: impl FnOnce(&mut Volume)) {
        edit(self.0.volumes.borrow_mut().get_mut(&volume).expect("the simulation names volumes that exist"));
    }

    /// The volume as it is wished.
    #[cfg(test)]
    pub(crate) fn volume(&self, volume: Uuid) -> Volume {
        self.0.volumes.borrow()[&volume].clone()
    }

    /// The node on which the volume's nexus is wished to be.
    pub(crate) fn wished_owner(&self, volume: Uuid) -> Option<String> {
        self.0.volumes.borrow()[&volume].intent.owner.clone()
    }

    /// The size that the volume is wished to have.
    pub(crate) fn wished_bytes(&self, volume: Uuid) -> u64 {
        self.0.volumes.borrow()[&volume].spec.size_bytes
    }

    /// What a node has said of its replicas.
    #[cfg(test)]
    pub(crate) fn replicas(&self, node: &str) -> Option<NodeReplicas> {
        self.0.replicas.borrow().get(node).cloned()
    }

    /// The record as it is.
    pub(crate) fn record(&self, volume: Uuid) -> VolumeRecord {
        self.0.records.borrow()[&volume].record.clone()
    }

    /// Puts a record from before in the place of the volume's: the store was restored from a backup.
    pub(crate) fn set_back(&self, volume: Uuid) {
        let past = self.0.past.borrow();
        let which = rt::random_u64() % past.len().max(1) as u64;
        let backup = usize::try_from(which).ok().and_then(|which| past.get(which));
        let mut records = self.0.records.borrow_mut();
        let (Some(backup), Some(current)) = (backup, records.get_mut(&volume)) else { return };
        *current = Versioned { record: backup.clone(), revision: current.revision + 1 };
        self.0.totals.borrow_mut().store_set_back += 1;
    }

    /// Makes the store unreachable, or reachable again.
    pub(crate) fn set_away(&self, away: bool) {
        if away && !self.0.away.replace(away) {
            self.0.outages.set(self.0.outages.get() + 1);
        }
        self.0.away.set(away);
    }

    /// Cuts one node off from the store, or lets it reach the store again.
    pub(crate) fn set_cut_off(&self, node: &str, cut_off: bool) {
        if cut_off {
            self.0.cut_off.borrow_mut().insert(node.to_owned());
            self.0.outages.set(self.0.outages.get() + 1);
        } else {
            self.0.cut_off.borrow_mut().remove(node);
        }
    }

    /// Lets a node's watch tell nothing, or go on.
    #[cfg(test)]
    pub(crate) fn set_deaf(&self, node: &str, deaf: bool) {
        if deaf {
            self.0.deaf.borrow_mut().insert(node.to_owned());
        } else {
            self.0.deaf.borrow_mut().remove(node);
        }
    }

    /// What was seen in the records.
    pub(crate) fn totals(&self) -> Totals {
        Totals { store_outages: self.0.outages.get(), ..self.0.totals.borrow().clone() }
    }

    /// The first change that no nexus may ever make.
    pub(crate) fn violation(&self) -> Option<String> {
        self.0.violation.borrow().clone()
    }

    /// The way there: takes time; while the store is away the question may still arrive, but no answer comes.
    async fn travel(&self, node: &str) -> Result<(), RecordError> {
        rt::sleep(Duration::from_micros(200 + rt::random_u64() % 2000)).await;
        if self.0.away.get() || self.0.cut_off.borrow().contains(node) {
            rt::sleep(AWAY).await;
            return Err(RecordError::Unreachable);
        }
        Ok(())
    }

    fn replace_now(&self, revision: u64, record: VolumeRecord) -> Result<u64, RecordError> {
        let mut records = self.0.records.borrow_mut();
        let current = records.get_mut(&record.volume).ok_or(RecordError::NotFound)?;
        if current.revision != revision {
            return Err(RecordError::Conflict);
        }
        self.watch(&current.record, &record);
        self.0.past.borrow_mut().push(current.record.clone());
        *current = Versioned { record, revision: revision + 1 };
        Ok(revision + 1)
    }

    /// Notes what a change of a record means.
    fn watch(&self, old: &VolumeRecord, new: &VolumeRecord) {
        let mut totals = self.0.totals.borrow_mut();
        let forbidden = |cause: String| {
            self.0.violation.borrow_mut().get_or_insert(cause);
        };
        if let (Some(before), Some(after)) = (&old.owner, &new.owner) {
            totals.owners_moved += u64::from(before.node != after.node);
        }
        if new.epoch < old.epoch || new.version <= old.version {
            forbidden(format!("record went back from epoch {} to {}", old.epoch, new.epoch));
        }
        if new.size_bytes < old.size_bytes {
            forbidden(format!("record shrank from {} to {} bytes", old.size_bytes, new.size_bytes));
        }
        totals.growths += u64::from(new.size_bytes > old.size_bytes);
        totals.records_recovered += u64::from(new.unconfirmed && !old.unconfirmed);
        totals.gaps += u64::from(new.gap_through > old.gap_through);
        let in_sync = |record: &VolumeRecord| record.members.iter().any(|m| m.state == MemberState::InSync);
        if in_sync(old) && !in_sync(new) {
            forbidden("I4: the last member in sync was given up".to_owned());
        }
        let mut nodes = BTreeSet::new();
        let in_sync = new.members.iter().filter(|m| m.state == MemberState::InSync);
        if !in_sync.map(|m| &m.node).all(|node| nodes.insert(node)) {
            forbidden("two members of one node are in sync".to_owned());
        }
        for gone in old.members.iter().filter(|m| new.members.iter().all(|after| after.replica != m.replica))
        {
            if gone.state != MemberState::Removed {
                forbidden(format!("a member is forgotten that was not removed: {gone:?}"));
            }
            self.0.forgotten.borrow_mut().insert(gone.replica);
        }
        for after in &new.members {
            if self.0.forgotten.borrow().contains(&after.replica) {
                forbidden(format!("a replica that was forgotten is to be made again: {after:?}"));
            }
            let before = old.members.iter().find(|m| m.replica == after.replica).map(|m| m.state);
            match (before, after.state) {
                (Some(MemberState::InSync), MemberState::Stale { .. }) => totals.members_made_stale += 1,
                (Some(MemberState::Rebuilding { .. }), MemberState::InSync) => totals.rebuilds_finished += 1,
                _ => {}
            }
        }
    }
}

/// One node's way to the store.
#[derive(Clone)]
pub(crate) struct NodeControl {
    store: Store,
    node: String,
    known: Rc<RefCell<Option<Arc<Known>>>>,
    /// For how many more times its watch tells nothing.
    behind: Rc<Cell<u64>>,
}

impl NodeControl {
    /// The way of a node that was told nothing yet.
    pub(crate) fn new(store: Store, node: String) -> Self {
        Self { store, node, known: Rc::default(), behind: Rc::default() }
    }

    async fn travel(&self) -> Result<(), RecordError> {
        self.store.travel(&self.node).await
    }

    /// What a watch that is not behind tells now.
    fn look(&self) -> Known {
        let volumes = self.store.0.volumes.borrow();
        let volumes = volumes.values().filter(|volume| Known::has_volume(&self.node, volume));
        let records = self.store.0.records.borrow();
        let records = records.values().filter(|found| Known::has_record(&self.node, &found.record));
        Known {
            volumes: volumes
                .map(|value| (value.name.clone(), Stored { revision: 1, value: value.clone() }))
                .collect(),
            records: records
                .map(|Versioned { record, revision }| {
                    (record.volume.to_string(), Stored { revision: *revision, value: record.clone() })
                })
                .collect(),
        }
    }
}

fn away(_: RecordError) -> ControlError {
    ControlError("the store cannot be reached".to_owned())
}

impl Records for NodeControl {
    fn read(&self, volume: Uuid) -> RecordFuture<'_, Versioned> {
        Box::pin(async move {
            self.travel().await?;
            self.store.0.records.borrow().get(&volume).cloned().ok_or(RecordError::NotFound)
        })
    }

    fn replace(&self, revision: u64, record: VolumeRecord) -> RecordFuture<'_, u64> {
        Box::pin(async move {
            match self.travel().await {
                Ok(()) => {
                    let answer = self.store.replace_now(revision, record);
                    self.travel().await?; // The answer may be lost too.
                    answer
                }
                Err(lost) => {
                    if rt::random_u64().is_multiple_of(4) {
                        let _lost = self.store.replace_now(revision, record);
                    }
                    Err(lost)
                }
            }
        })
    }
}

impl Control for NodeControl {
    fn records(&self) -> Rc<dyn Records> {
        Rc::new(self.clone())
    }

    fn node<'a>(&'a self, name: &'a str) -> ControlFuture<'a, Option<Node>> {
        Box::pin(async move {
            self.travel().await.map_err(away)?;
            Ok(self.store.0.nodes.borrow().get(name).cloned())
        })
    }

    /// Reports of pools are not kept here: no simulated node loses one.
    fn pools(&self) -> ControlFuture<'_, Vec<model::Pool>> {
        Box::pin(async move { self.travel().await.map_err(away).map(|()| Vec::new()) })
    }

    fn volume<'a>(&'a self, name: &'a str) -> ControlFuture<'a, Option<Volume>> {
        Box::pin(async move {
            self.travel().await.map_err(away)?;
            Ok(self.store.0.volumes.borrow().values().find(|volume| volume.name == name).cloned())
        })
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.known.borrow().clone()
    }

    fn report_node(&self, node: Node) -> ControlFuture<'_, ()> {
        Box::pin(async move {
            self.travel().await.map_err(away)?;
            let mut nodes = self.store.0.nodes.borrow_mut();
            let spec = nodes.get(&node.name).map_or(node.spec, |there| there.spec);
            nodes.insert(node.name.clone(), Node { spec, ..node });
            Ok(())
        })
    }

    fn report_pool(&self, pool: model::Pool) -> ControlFuture<'_, model::PoolSpec> {
        Box::pin(async move { self.travel().await.map_err(away).map(|()| pool.spec) })
    }

    fn report_replicas(&self, replicas: NodeReplicas) -> ControlFuture<'_, ()> {
        Box::pin(async move {
            self.travel().await.map_err(away)?;
            self.store.0.replicas.borrow_mut().insert(replicas.node.clone(), replicas);
            Ok(())
        })
    }

    fn report_volume(&self, _status: VolumeStatus) -> ControlFuture<'_, ()> {
        Box::pin(async move { self.travel().await.map_err(away) })
    }

    /// A watch tells late, and nothing while its node does not reach the store; what it tells is never undone.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(async move {
            loop {
                rt::sleep(TOLD).await;
                if self.store.0.deaf.borrow().contains(&self.node) {
                    continue;
                }
                if self.behind.get() > 0 {
                    self.behind.set(self.behind.get() - 1);
                } else if rt::random_u64().is_multiple_of(BEHIND_ONE_IN) {
                    self.behind.set(rt::random_u64() % BEHIND_MAX);
                } else if self.travel().await.is_ok() {
                    let known = Some(Arc::new(self.look()));
                    if self.known.replace(known.clone()) != known {
                        return;
                    }
                }
            }
        })
    }
}
