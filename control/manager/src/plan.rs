//! From all that is known to what to write next: one step for each node and volume, the same again after any crash.
//!
//! Which writes are safe at any time, and why (docs/decisions/0005-what-the-manager-may-write.md):
//! 1. `NotReady` and everything in `Volume.intent` are wishes: wrong ones cost time, never data.
//! 2. A record is made once: only if there is none, and never again for a volume that is known to have had one.
//! 3. A record is changed only for a volume that is being deleted, and with a new epoch and no owner, so that a nexus
//!    that still runs is fenced: it can no longer change the record.
//! 4. A record goes only after every node has reported each of its replicas `Destroyed`; the volume goes only after its
//!    record.

use crate::{Observed, Promised, View, intent};
use model::{
    MemberRecord, MemberState, NexusState, Node, NodeState, ReplicaState, Stored, Volume, VolumeRecord,
    VolumeStatus,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use uuid::Uuid;

/// How patient and how generous the manager is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A node whose heartbeat has not changed for longer is `NotReady`.
    pub lease: Duration,
    /// A copy whose node, pool or replica has been away for so long gets a replacement.
    pub replace_after: Duration,
    /// How much more may be promised of a pool than it has.
    pub overcommit: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(5),
            replace_after: Duration::from_secs(60),
            overcommit: crate::OVERCOMMIT_DEFAULT,
        }
    }
}

/// One write to the store, at the revision that was seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A node's lease has ended.
    Node(Stored<Node>),
    /// A volume's intent or message.
    Volume(Stored<Volume>),
    /// A new volume's record, if there is none.
    CreateRecord(VolumeRecord),
    /// The record of a volume that is being deleted: fenced, and all its members `Removed`.
    EmptyRecord(Stored<VolumeRecord>),
    /// The record of a volume all of whose replicas are destroyed.
    DeleteRecord(Stored<VolumeRecord>),
    /// The status and then the volume, which has no record any more.
    DeleteVolume(Stored<Volume>),
}

/// How many writes one pass plans: they take time, and the view is fresher for those after that.
pub(crate) const ACTIONS_MAX: usize = 128;

/// What to write next, at most a batch of it.
pub fn plan(
    view: &View,
    observed: &Observed,
    config: &Config,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Vec<Action> {
    let mut actions: Vec<Action> = Vec::new();
    for node in view.nodes.values().filter(|node| observed.has_expired(&node.value, config.lease)) {
        let value = Node { state: NodeState::NotReady, ..node.value.clone() };
        actions.push(Action::Node(Stored { revision: node.revision, value }));
    }
    let mut planning = Planning {
        view,
        observed,
        config,
        promised: Promised::of(view),
        load: load_of(view),
        destroyed: destroyed_in(view),
        new_uuid,
    };
    let steps = view.volumes.values().filter_map(|volume| planning.step(volume));
    actions.extend(steps.take(ACTIONS_MAX));
    actions
}

/// What the steps of one pass share.
pub(crate) struct Planning<'a> {
    pub(crate) view: &'a View,
    pub(crate) observed: &'a Observed,
    pub(crate) config: &'a Config,
    pub(crate) promised: Promised,
    /// How many volumes each node should run the nexus of.
    pub(crate) load: BTreeMap<&'a str, usize>,
    /// (node, replica) as reported.
    destroyed: BTreeSet<(&'a str, Uuid)>,
    pub(crate) new_uuid: &'a mut dyn FnMut() -> Uuid,
}

impl Planning<'_> {
    fn step(&mut self, volume: &Stored<Volume>) -> Option<Action> {
        if volume.value.intent.deleting {
            return self.delete(volume);
        }
        let wished = intent::wish(self, &volume.value);
        if wished != volume.value {
            return Some(Action::Volume(Stored { revision: volume.revision, value: wished }));
        }
        self.create_record(&volume.value)
    }

    fn create_record(&self, volume: &Volume) -> Option<Action> {
        let placed = u32::try_from(volume.intent.members.len()) == Ok(volume.spec.copies);
        // Invariant 2.
        if self.view.record(volume.uuid).is_some() || volume.intent.recorded || !placed {
            return None;
        }
        let members = volume
            .intent
            .members
            .iter()
            .map(|member| MemberRecord::new(member.replica, member.pool, member.node.clone()));
        let spec = &volume.spec;
        let record = VolumeRecord::new(volume.uuid, spec.size_bytes, spec.block_size, members.collect());
        Some(Action::CreateRecord(record))
    }

    fn delete(&self, volume: &Stored<Volume>) -> Option<Action> {
        let Some(record) = self.view.record(volume.value.uuid) else {
            return Some(Action::DeleteVolume(volume.clone()));
        };
        // A nexus that can end in order does so by itself: nothing wishes for it any more.
        if self.live_status(&record.value).is_some() {
            return None;
        }
        let removed = |member: &MemberRecord| member.state == MemberState::Removed;
        if record.value.owner.is_some() || !record.value.members.iter().all(removed) {
            return Some(Action::EmptyRecord(emptied(record)));
        }
        let destroyed =
            |member: &MemberRecord| self.destroyed.contains(&(member.node.as_str(), member.replica));
        // Invariant 4.
        record.value.members.iter().all(destroyed).then(|| Action::DeleteRecord(record.clone()))
    }

    /// The status of the nexus that the record names, if that nexus is running as far as anybody knows.
    pub(crate) fn live_status(&self, record: &VolumeRecord) -> Option<&VolumeStatus> {
        let owner = record.owner.as_ref()?;
        let status = &self.view.status(record.volume)?.value;
        let ended = matches!(status.state, NexusState::Closed | NexusState::Failed);
        let same = status.nexus == owner.nexus && status.epoch == record.epoch;
        let overdue = self.observed.is_overdue(record.volume, record.epoch);
        (same && !ended && !overdue && self.view.is_ready(&owner.node)).then_some(status)
    }
}

/// Invariant 3.
fn emptied(record: &Stored<VolumeRecord>) -> Stored<VolumeRecord> {
    let Stored { revision, value } = record.clone();
    let remove = |member: MemberRecord| MemberRecord { state: MemberState::Removed, ..member };
    let value = VolumeRecord {
        version: value.version + 1,
        epoch: value.epoch + 1,
        owner: None,
        members: value.members.into_iter().map(remove).collect(),
        ..value
    };
    Stored { revision, value }
}

fn load_of(view: &View) -> BTreeMap<&str, usize> {
    let mut load = BTreeMap::new();
    for owner in view.volumes.values().filter_map(|volume| volume.value.intent.owner.as_deref()) {
        *load.entry(owner).or_default() += 1;
    }
    load
}

fn destroyed_in(view: &View) -> BTreeSet<(&str, Uuid)> {
    let reports = view.replicas.values().flat_map(|node| {
        node.value.replicas.iter().map(|report| (node.value.node.as_str(), report.replica, report.state))
    });
    let destroyed = reports.filter(|(_, _, state)| *state == ReplicaState::Destroyed);
    destroyed.map(|(node, replica, _)| (node, replica)).collect()
}

#[cfg(test)]
mod tests;
