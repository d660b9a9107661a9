//! From all that is known to what to write next: one step for each node and volume, the same again after any crash.
//!
//! Which writes are safe at any time, and why (docs/decisions/0005-what-the-manager-may-write.md):
//! 1. `NotReady` and everything in `Volume.intent` are wishes: wrong ones cost time, never data.
//! 2. A record is made from nothing once: only if there is none, and never again for a volume that is known to have had one.
//!    A replica that any node reports says that there was one. It is made again only from a copy that a replica keeps, the
//!    latest that is reported, and marked: whoever opens the volume confirms it with all members. In the place of such a
//!    record comes another one only while it has the mark, and only from a later copy (docs/decisions/0031).
//! 3. A record is changed only for a volume that is being deleted, and with a new epoch and no owner, so that a nexus
//!    that still runs is fenced: it can no longer change the record.
//! 4. An intent that was lost is taken from a record that is the store's latest: one from before may name a replica that was
//!    destroyed and forgotten since, and that must not be made again (docs/decisions/0028).
//! 5. A record goes only after every node that was not deleted has reported each of its replicas `Destroyed`; the volume
//!    goes only after its record.

use crate::{
    Observed, Promised, Recovery, View,
    index::{Load, Reported, load_of, reported_of},
    intent,
    recovery::recovery,
};
use model::{
    MemberRecord, MemberState, NexusState, Node, NodeState, Stored, Volume, VolumeRecord, VolumeStatus,
};
use std::time::Duration;
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
    /// An intent that was lost, from the record of this revision, if that is the latest.
    RestoreIntent(Stored<Volume>, u64),
    /// A new volume's record, if there is none.
    CreateRecord(VolumeRecord),
    /// A record that was lost, from a copy of it.
    RecoverRecord(Recovery),
    /// The record of a volume that is being deleted: fenced, and all its members `Removed`.
    EmptyRecord(Stored<VolumeRecord>),
    /// The record of a volume all of whose replicas are destroyed.
    DeleteRecord(Stored<VolumeRecord>),
    /// The status and then the volume, which has no record any more.
    DeleteVolume(Stored<Volume>),
}

/// How many writes one pass plans: they take time, and the view is fresher for those after that.
pub(crate) const ACTIONS_MAX: usize = 128;

/// What to write next, at most a batch of it, by a look at everything. [`crate::Planner`] plans the same from what has
/// changed.
pub fn plan(
    view: &View,
    observed: &Observed,
    config: &Config,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Vec<Action> {
    let mut actions: Vec<Action> =
        view.nodes.values().filter_map(|node| expire(node, observed, config)).collect();
    let (promised, load) = (Promised::of(view), load_of(view));
    let reported = &reported_of(view);
    let mut planning = Planning { view, observed, config, promised, load, reported, new_uuid };
    let steps = view.volumes.values().filter_map(|volume| planning.step(volume));
    actions.extend(steps.take(ACTIONS_MAX));
    actions
}

/// The write for a node whose lease has ended.
pub(crate) fn expire(node: &Stored<Node>, observed: &Observed, config: &Config) -> Option<Action> {
    let value = Node { state: NodeState::NotReady, ..node.value.clone() };
    let expired = observed.has_expired(&node.value, config.lease);
    expired.then_some(Action::Node(Stored { revision: node.revision, value }))
}

/// What the steps of one pass share.
pub(crate) struct Planning<'a> {
    pub(crate) view: &'a View,
    pub(crate) observed: &'a Observed,
    pub(crate) config: &'a Config,
    pub(crate) promised: Promised,
    /// How many volumes each node should run the nexus of.
    pub(crate) load: Load,
    /// What nodes say of replicas.
    pub(crate) reported: &'a Reported,
    pub(crate) new_uuid: &'a mut dyn FnMut() -> Uuid,
}

impl Planning<'_> {
    pub(crate) fn step(&mut self, volume: &Stored<Volume>) -> Option<Action> {
        if volume.value.intent.deleting {
            return self.delete(volume);
        }
        let wished = intent::wish(self, &volume.value);
        if wished != volume.value {
            let is_lost = volume.value.intent.members.is_empty();
            let record = self.view.record(volume.value.uuid);
            let record = record.filter(|record| is_lost || record.value.unconfirmed);
            let wished = Stored { revision: volume.revision, value: wished };
            // Invariant 4.
            return Some(match record {
                Some(record) => Action::RestoreIntent(wished, record.revision),
                None => Action::Volume(wished),
            });
        }
        let recovery = recovery(self.view, self.reported, &volume.value).map(Action::RecoverRecord);
        recovery.or_else(|| self.create_record(&volume.value))
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
        let destroyed = |member: &MemberRecord| self.view.is_destroyed(&member.node, member.replica);
        // Invariant 5.
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

/// Invariant 3. Nobody has to confirm any more what it was.
fn emptied(record: &Stored<VolumeRecord>) -> Stored<VolumeRecord> {
    let Stored { revision, value } = record.clone();
    let remove = |member: MemberRecord| MemberRecord { state: MemberState::Removed, ..member };
    let value = VolumeRecord {
        version: value.version + 1,
        epoch: value.epoch + 1,
        owner: None,
        members: value.members.into_iter().map(remove).collect(),
        unconfirmed: false,
        ..value
    };
    Stored { revision, value }
}

#[cfg(test)]
mod tests;
