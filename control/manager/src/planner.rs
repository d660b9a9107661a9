//! The same plan without looking at everything: what is told of an object marks the volumes that it touches, and a pass
//! examines those that are marked.
//!
//! 1. A plan is the one that [`plan()`](crate::plan()) makes of the whole view: every volume for which that has a step is marked.
//!    What a step depends on is its volume, record and status; the nodes, pools and replicas that these name, and for
//!    how long they have been absent; where there is no record, or one that is to be confirmed, the replicas that nodes
//!    report of the volume, and what these keep of its record; and, only where a copy needs a place, the room that there
//!    is anywhere.
//! 2. A mark is removed when there is nothing to do for the volume, never because something was tried: a write that was
//!    refused or lost is planned anew.
//! 3. A heartbeat marks nothing.
//! 4. Volumes that wait for room are tried again when there may be more, at most once in [`RETRY_INTERVAL`].

use crate::{
    Action, Config, News, Objects, Observed, View,
    index::Index,
    intent::MAINTENANCE,
    news::Chronicle,
    plan::{ACTIONS_MAX, Planning, expire},
};
use model::{
    Node, NodeReplicas, Object, Pool, ReplicaReport, ReplicaState, Stored, Volume, VolumeRecord, VolumeStatus,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};
use store::Change;
use uuid::Uuid;

/// How often everything is examined although nothing says so: should a mark ever be missing, it is missed for so long.
const FULL_INTERVAL: Duration = Duration::from_secs(300);
/// Invariant 4.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What a watch has told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Of nodes.
    Nodes(Change<Node>),
    /// Of pools.
    Pools(Change<Pool>),
    /// Of volumes.
    Volumes(Change<Volume>),
    /// Of records.
    Records(Change<VolumeRecord>),
    /// Of statuses.
    Statuses(Change<VolumeStatus>),
    /// Of replicas.
    Replicas(Change<NodeReplicas>),
}

/// Objects that have changed since the pass before, as far as their absence is observed.
#[derive(Clone, Debug, Default)]
struct Changed {
    nodes: BTreeSet<String>,
    pools: BTreeSet<Uuid>,
    replicas: BTreeSet<String>,
    volumes: BTreeSet<Uuid>,
}

/// The volumes to be examined, by name.
#[derive(Clone, Debug, Default)]
struct Agenda {
    marked: BTreeSet<String>,
    /// Marked since somebody last looked what has become of them.
    changed: BTreeSet<String>,
    /// Those whose message says what they wait for.
    waiting: BTreeSet<String>,
    /// There may be more room than when those were last tried.
    room_changed: bool,
    retry_at: Duration,
}

/// A view that is kept up to date, and what there is to do for it.
#[derive(Clone, Debug, Default)]
pub struct Planner {
    view: View,
    observed: Observed,
    index: Index,
    changed: Changed,
    agenda: Agenda,
    chronicle: Chronicle,
    /// Everything is to be examined.
    full: bool,
    full_at: Duration,
    examined: u64,
}

impl Planner {
    /// What is known.
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// How many volumes have been examined by all passes.
    pub const fn examined(&self) -> u64 {
        self.examined
    }

    /// Takes in what a watch has told.
    pub fn apply(&mut self, told: Told) {
        match told {
            Told::Nodes(change) => self.each(change, |view| &mut view.nodes, Self::node_changed),
            Told::Pools(change) => self.each(change, |view| &mut view.pools, Self::pool_changed),
            Told::Volumes(change) => self.each(change, |view| &mut view.volumes, Self::volume_changed),
            Told::Records(change) => self.each(change, |view| &mut view.records, Self::record_changed),
            Told::Statuses(change) => self.each(change, |view| &mut view.statuses, Self::status_changed),
            Told::Replicas(change) => self.each(change, |view| &mut view.replicas, Self::replicas_changed),
        }
    }

    /// Applies a change object by object, and tells `changed` of each what it was and what it is.
    fn each<T: Object>(
        &mut self,
        change: Change<T>,
        objects: fn(&mut View) -> &mut Objects<T>,
        changed: fn(&mut Self, Option<&T>, Option<&T>),
    ) {
        match change {
            Change::Put(item) => self.put(item, objects, changed),
            Change::Delete(key) => self.delete(&key, objects, changed),
            Change::Relist(items) => {
                self.full = true;
                let mut gone: BTreeSet<String> = objects(&mut self.view).keys().cloned().collect();
                for item in items {
                    gone.remove(&item.value.key());
                    self.put(item, objects, changed);
                }
                for key in gone {
                    self.delete(&key, objects, changed);
                }
            }
        }
    }

    fn put<T: Object>(
        &mut self,
        item: Stored<T>,
        objects: fn(&mut View) -> &mut Objects<T>,
        changed: fn(&mut Self, Option<&T>, Option<&T>),
    ) {
        let key = item.value.key();
        let old = objects(&mut self.view).remove(&key);
        changed(self, old.as_ref().map(|old| &old.value), Some(&item.value));
        objects(&mut self.view).insert(key, item);
    }

    fn delete<T: Object>(
        &mut self,
        key: &str,
        objects: fn(&mut View) -> &mut Objects<T>,
        changed: fn(&mut Self, Option<&T>, Option<&T>),
    ) {
        let Some(old) = objects(&mut self.view).remove(key) else { return };
        changed(self, Some(&old.value), None);
    }

    // What each kind of object touches. The object itself is in the view neither as it was nor as it is.

    fn node_changed(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let Some(node) = new.or(old) else { return };
        self.changed.nodes.insert(node.name.clone());
        // Invariant 3.
        let beats = |old: &Node, new: &Node| *new == Node { heartbeat: new.heartbeat, ..old.clone() };
        if !old.zip(new).is_some_and(|(old, new)| beats(old, new)) {
            self.agenda.mark(self.index.on_node(&node.name));
            self.agenda.room_changed = true;
        }
    }

    fn pool_changed(&mut self, old: Option<&Pool>, new: Option<&Pool>) {
        let Some(pool) = new.or(old) else { return };
        self.changed.pools.insert(pool.uuid);
        self.agenda.room_changed |= old != new;
        if old.map(|pool| pool.state) != new.map(|pool| pool.state) {
            self.agenda.mark(self.index.in_pool(pool.uuid));
        }
    }

    fn volume_changed(&mut self, old: Option<&Volume>, new: Option<&Volume>) {
        if let Some(old) = old {
            let record = self.view.record(old.uuid).map(|record| &record.value);
            self.index.remove_volume(old, record);
            self.changed.volumes.insert(old.uuid);
            self.agenda.forget(&old.name);
            if new.is_none() {
                self.chronicle.forget(old.uuid);
            }
        }
        if let Some(new) = new {
            let record = self.view.record(new.uuid).map(|record| &record.value);
            self.index.add_volume(new, record);
            self.changed.volumes.insert(new.uuid);
            self.agenda.mark([&new.name]);
        }
        let promises = |volume: &Volume| (volume.spec.size_bytes, volume.intent.members.clone());
        self.agenda.room_changed |= old.map(promises) != new.map(promises);
    }

    fn record_changed(&mut self, old: Option<&VolumeRecord>, new: Option<&VolumeRecord>) {
        let Some(volume) = new.or(old).map(|record| record.volume) else { return };
        if let Some(old) = old {
            let volume = volume_of(&self.view, &self.index, volume);
            self.index.remove_record(old, volume);
        }
        if let Some(new) = new {
            self.index.add_record(new);
        }
        self.changed.volumes.insert(volume);
        self.agenda.mark(self.index.name(volume));
    }

    fn status_changed(&mut self, old: Option<&VolumeStatus>, new: Option<&VolumeStatus>) {
        let Some(status) = new.or(old) else { return };
        self.agenda.mark(self.index.name(status.volume));
    }

    fn replicas_changed(&mut self, old: Option<&NodeReplicas>, new: Option<&NodeReplicas>) {
        let Some(report) = new.or(old) else { return };
        self.changed.replicas.insert(report.node.clone());
        let mut volumes = self.index.report(old, new);
        let (before, now) = (kept(old), kept(new));
        let other = before.keys().chain(now.keys()).filter(|copy| before.get(*copy) != now.get(*copy));
        volumes.extend(other.map(|(volume, _)| *volume));
        for volume in volumes {
            // Where there is a record it says what there is, if it is no copy itself.
            if self.view.record(volume).is_none_or(|record| record.value.unconfirmed) {
                self.agenda.mark(self.index.name(volume));
            }
        }
        for (replica, ..) in unusual(old).symmetric_difference(&unusual(new)) {
            self.agenda.mark(self.index.of_replica(*replica));
        }
    }

    // A pass.

    /// What to write next, at most a batch of it, by what is known at `now`.
    pub fn plan(
        &mut self,
        config: &Config,
        now: Duration,
        new_uuid: &mut dyn FnMut() -> Uuid,
    ) -> Vec<Action> {
        self.observe(config, now);
        let Self { view, observed, index, agenda, .. } = self;
        let mut actions = expired(view, observed, config);
        let may_retry = now >= agenda.retry_at;
        agenda.retry(may_retry, now);
        if agenda.marked.is_empty() {
            return actions;
        }
        let (promised, load) = (index.promised.clone(), index.load.clone());
        let reported = &index.reported;
        let mut planning = Planning { view, observed, config, promised, load, reported, new_uuid };
        let batch = actions.len() + ACTIONS_MAX;
        let mut position = Bound::Unbounded;
        while actions.len() < batch
            && let Some(name) = agenda.next(&position)
        {
            let volume = &view.volumes[&name];
            let action = planning.step(volume);
            self.examined += 1;
            agenda.examined(&volume.value, action.as_ref());
            agenda.retry(may_retry, now);
            actions.extend(action);
            position = Bound::Excluded(name);
        }
        actions
    }

    /// What people should hear of, of what has changed since they heard of something last.
    pub fn news(&mut self, now: Duration) -> Vec<News> {
        let Self { view, index, agenda, chronicle, .. } = self;
        chronicle.look(view, index, &mut agenda.changed, now)
    }

    /// Looks at what has changed, and marks what time alone has changed.
    fn observe(&mut self, config: &Config, now: Duration) {
        let Self { view, observed, index, agenda, .. } = self;
        let changed = std::mem::take(&mut self.changed);
        let is_gap = observed.begin(now, config.lease);
        if is_gap {
            observed.forget();
        }
        if is_gap || self.full || now >= self.full_at {
            (self.full, self.full_at) = (false, now + FULL_INTERVAL);
            observed.observe_all(view);
            agenda.marked.extend(view.volumes.keys().cloned());
            return;
        }
        changed.nodes.iter().for_each(|node| observed.observe_node(node, view));
        changed.pools.iter().for_each(|pool| observed.observe_pool(*pool, view));
        changed.replicas.iter().for_each(|node| observed.observe_replicas(node, view));
        let due: Vec<Uuid> = observed.overdue_volumes().copied().collect();
        for uuid in changed.volumes.iter().chain(&due) {
            observed.observe_closing(*uuid, volume_of(view, index, *uuid), view);
        }
        agenda.mark(due.iter().filter_map(|uuid| index.name(*uuid)));
        // How long a copy is awaited depends on its node.
        for lost in [config.replace_after, config.replace_after.max(MAINTENANCE)] {
            agenda.mark(observed.lost_nodes(lost).flat_map(|node| index.on_node(node)));
            agenda.mark(observed.lost_pools(lost).flat_map(|pool| index.in_pool(*pool)));
            agenda.mark(observed.lost_replicas(lost).filter_map(|replica| index.of_replica(*replica)));
        }
    }
}

#[cfg(test)]
impl Planner {
    /// Whether all that is kept up to date is what a look at everything gives.
    pub(crate) fn check(&self, view: &View, observed: &Observed) {
        assert_eq!(self.index, Index::of(view));
        assert_eq!(self.observed, *observed);
    }
}

impl Agenda {
    fn mark<'a>(&mut self, names: impl IntoIterator<Item = &'a String>) {
        for name in names {
            self.marked.insert(name.clone());
            self.changed.insert(name.clone());
        }
    }

    fn forget(&mut self, name: &str) {
        self.marked.remove(name);
        self.waiting.remove(name);
    }

    /// The next one after that.
    fn next(&self, position: &Bound<String>) -> Option<String> {
        let after = (position.as_ref().map(String::as_str), Bound::Unbounded);
        self.marked.range::<str, _>(after).next().cloned()
    }

    /// What has come of a volume.
    fn examined(&mut self, volume: &Volume, action: Option<&Action>) {
        let wished = match action {
            Some(Action::Volume(wished) | Action::RestoreIntent(wished, _)) => &wished.value,
            _ => volume,
        };
        if wished.message.is_some() {
            self.waiting.insert(volume.name.clone());
        } else {
            self.waiting.remove(&volume.name);
        }
        // The next ones find less room.
        self.room_changed |= wished.intent.members != volume.intent.members;
        // Invariant 2.
        if action.is_none() {
            self.marked.remove(&volume.name);
        }
    }

    /// Invariant 4.
    fn retry(&mut self, may_retry: bool, now: Duration) {
        if self.room_changed && may_retry && !self.waiting.is_empty() {
            self.marked.append(&mut self.waiting);
            self.room_changed = false;
            self.retry_at = now + RETRY_INTERVAL;
        }
    }
}

fn volume_of<'a>(view: &'a View, index: &Index, uuid: Uuid) -> Option<&'a Volume> {
    view.volumes.get(index.name(uuid)?).map(|volume| &volume.value)
}

/// The writes for the nodes whose lease has ended, in the order of their names.
fn expired(view: &View, observed: &Observed, config: &Config) -> Vec<Action> {
    let silent: BTreeSet<&String> = observed.silent_nodes(config.lease).collect();
    silent.iter().filter_map(|node| expire(view.nodes.get(*node)?, observed, config)).collect()
}

/// The copies of records that are reported, by volume and replica.
fn kept(report: Option<&NodeReplicas>) -> BTreeMap<(Uuid, Uuid), &VolumeRecord> {
    let reports = report.into_iter().flat_map(|report| &report.replicas);
    let kept = reports.filter_map(|report| {
        let ReplicaReport { volume, replica, record, .. } = report;
        Some(((*volume, *replica), record.as_deref()?))
    });
    kept.collect()
}

/// What is reported of replicas, other than that they are there; and whether they are destroyed for good.
fn unusual(report: Option<&NodeReplicas>) -> BTreeSet<(Uuid, ReplicaState, bool)> {
    let reports = report.into_iter().flat_map(|report| &report.replicas);
    let unusual = reports.filter(|report| report.state != ReplicaState::Present);
    unusual.map(|report| (report.replica, report.state, report.is_destroyed_for_good())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GIB, Scene};
    use model::MemberState;

    /// Patient enough that nothing but the pass interval matters.
    fn config() -> Config {
        Config { lease: Duration::from_secs(3600), ..Config::default() }
    }

    fn told(scene: &Scene) -> Planner {
        let mut planner = Planner::default();
        let view = scene.view.clone();
        planner.apply(Told::Nodes(Change::Relist(view.nodes.into_values().collect())));
        planner.apply(Told::Pools(Change::Relist(view.pools.into_values().collect())));
        planner.apply(Told::Volumes(Change::Relist(view.volumes.into_values().collect())));
        planner.apply(Told::Records(Change::Relist(view.records.into_values().collect())));
        planner
    }

    fn pass(planner: &mut Planner, milliseconds: u64) -> Vec<Action> {
        planner.plan(&config(), Duration::from_millis(milliseconds), &mut Uuid::nil)
    }

    #[test]
    fn what_was_planned_is_planned_again_until_it_is_seen() {
        let mut scene = Scene::with_nodes(3);
        scene.volume("a", 3, &[1, 2, 3]);
        let mut planner = told(&scene);
        let actions = pass(&mut planner, 0);
        let [Action::CreateRecord(record)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(pass(&mut planner, 10), actions, "it was refused, or is not seen yet");
        planner.apply(Told::Records(Change::Put(Stored { revision: 2, value: record.clone() })));
        let actions = pass(&mut planner, 20);
        let [Action::Volume(volume)] = &actions[..] else { panic!("{actions:?}") };
        assert!(volume.value.intent.recorded);
        planner.apply(Told::Volumes(Change::Put(volume.clone())));
        let examined = planner.examined();
        assert_eq!((pass(&mut planner, 30), planner.examined()), (vec![], examined + 1));
        assert_eq!((pass(&mut planner, 40), planner.examined()), (vec![], examined + 1), "it is seen");
    }

    #[test]
    fn what_is_destroyed_is_to_be_forgotten_as_soon_as_it_is_told() {
        let mut scene = Scene::with_nodes(3);
        scene.recorded("a", 2, &[1, 2, 3], MemberState::InSync);
        scene.record_mut("a").members[2].state = MemberState::Removed;
        let gone = scene.volume_mut("a").intent.members.remove(2);
        let (replica, pool, volume) = (gone.replica, gone.pool, Uuid::from_u128(1));
        let state = ReplicaState::Destroyed;
        let report =
            ReplicaReport { replica, volume, pool, state, used_bytes: 0, message: None, record: None };
        // Its disk was away when it was to be destroyed.
        scene.say(3, ReplicaReport { message: Some("not on this node any more".into()), ..report.clone() });
        let mut planner = told(&scene);
        planner.apply(Told::Replicas(Change::Relist(scene.view.replicas.values().cloned().collect())));
        assert_eq!(pass(&mut planner, 0), []);
        scene.say(3, report);
        planner.apply(Told::Replicas(Change::Put(scene.view.replicas["n3"].clone())));
        let actions = pass(&mut planner, 10);
        let [Action::Volume(volume)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(volume.value.intent.forget, [replica]);
        let owner = &volume.value.intent.owner;
        assert_eq!(*owner, None, "nobody opens a volume for that");
    }

    #[test]
    fn a_copy_that_is_told_of_late_is_seen() {
        let mut scene = Scene::with_nodes(3);
        let volume = scene.volume("a", 3, &[]).uuid;
        (1..=3).for_each(|node| scene.pool_mut(node).free_bytes = 0);
        let mut planner = told(&scene);
        let actions = pass(&mut planner, 0);
        let [Action::Volume(waits)] = &actions[..] else { panic!("{actions:?}") };
        planner.apply(Told::Volumes(Change::Put(waits.clone())));
        assert_eq!(pass(&mut planner, 10), []);
        let (replica, pool, state) = (Uuid::from_u128(99), Uuid::from_u128(22), ReplicaState::Present);
        scene.say(
            2,
            ReplicaReport { replica, volume, pool, state, used_bytes: 0, message: None, record: None },
        );
        planner.apply(Told::Replicas(Change::Put(scene.view.replicas["n2"].clone())));
        let actions = pass(&mut planner, 20);
        let [Action::Volume(held)] = &actions[..] else { panic!("{actions:?}") };
        assert!(held.value.intent.recorded && held.value.intent.members.is_empty());
    }

    #[test]
    fn a_copy_of_the_record_that_is_told_of_late_is_seen() {
        let mut scene = Scene::with_nodes(3);
        scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
        let mut record = std::mem::take(&mut scene.view.records).into_values().next().unwrap().value;
        let (replica, pool, volume) = (record.members[1].replica, Uuid::from_u128(22), record.volume);
        let state = ReplicaState::Present;
        let report =
            ReplicaReport { replica, volume, pool, state, used_bytes: 0, message: None, record: None };
        scene.say(2, report.clone());
        let mut planner = told(&scene);
        planner.apply(Told::Replicas(Change::Put(scene.view.replicas["n2"].clone())));
        let actions = pass(&mut planner, 0);
        let [Action::Volume(held)] = &actions[..] else { panic!("{actions:?}") };
        planner.apply(Told::Volumes(Change::Put(held.clone())));
        assert_eq!(pass(&mut planner, 10), []);

        let mut told_of = |record: &VolumeRecord, planner: &mut Planner, at| {
            scene.say(2, ReplicaReport { record: Some(Box::new(record.clone())), ..report.clone() });
            planner.apply(Told::Replicas(Change::Put(scene.view.replicas["n2"].clone())));
            pass(planner, at)
        };
        let actions = told_of(&record, &mut planner, 20);
        let [Action::Volume(held)] = &actions[..] else { panic!("{actions:?}") };
        planner.apply(Told::Volumes(Change::Put(held.clone())));
        let actions = pass(&mut planner, 30);
        let [Action::RecoverRecord(made)] = &actions[..] else { panic!("{actions:?}") };
        planner.apply(Told::Records(Change::Put(Stored { revision: 5, value: made.record.clone() })));
        let actions = pass(&mut planner, 40);
        let [Action::RestoreIntent(wished, 5)] = &actions[..] else { panic!("{actions:?}") };
        planner.apply(Told::Volumes(Change::Put(wished.clone())));
        assert_eq!(pass(&mut planner, 50), []);
        record.epoch += 2;
        let actions = told_of(&record, &mut planner, 60);
        assert!(matches!(&actions[..], [Action::RecoverRecord(_)]), "a later one: {actions:?}");
    }

    #[test]
    fn everything_is_examined_now_and_then() {
        let mut scene = Scene::with_nodes(3);
        for name in ["a", "b"] {
            scene.recorded(name, 3, &[1, 2, 3], MemberState::InSync);
        }
        let mut planner = told(&scene);
        for (second, examined) in [(0, 2), (1, 2), (299, 2), (300, 4), (301, 4), (600, 6)] {
            assert_eq!(pass(&mut planner, second * 1000), []);
            assert_eq!(planner.examined(), examined, "{second}");
        }
        planner.apply(Told::Nodes(Change::Relist(scene.view.nodes.values().cloned().collect())));
        assert_eq!((pass(&mut planner, 601_000), planner.examined()), (vec![], 8), "a list");
        assert_eq!((pass(&mut planner, 9_000_000), planner.examined()), (vec![], 10), "a gap");
    }

    #[test]
    fn what_waits_for_room_is_tried_once_a_second() {
        let mut scene = Scene::with_nodes(3);
        scene.volume("a", 3, &[]);
        scene.recorded("healthy", 3, &[1, 2, 3], MemberState::InSync);
        scene.pool_mut(1).free_bytes = 0;
        let mut planner = told(&scene);
        let actions = pass(&mut planner, 0);
        let [Action::Volume(volume)] = &actions[..] else { panic!("{actions:?}") };
        assert!(volume.value.message.as_ref().is_some_and(|message| message.contains("no place")));
        planner.apply(Told::Volumes(Change::Put(volume.clone())));
        assert_eq!(pass(&mut planner, 10), []);

        let mut examined = planner.examined();
        let mut free = |planner: &mut Planner, at, bytes: u64, more| {
            scene.pool_mut(1).free_bytes = bytes;
            let pool = scene.pool_mut(1).clone();
            planner.apply(Told::Pools(Change::Put(Stored { revision: 3, value: pool })));
            let actions = pass(planner, at);
            examined += more;
            assert_eq!(planner.examined(), examined, "{at}");
            actions
        };
        assert_eq!(free(&mut planner, 2000, 0, 0), [], "there is no more than there was");
        assert_eq!(free(&mut planner, 2010, 1, 1).len(), 1, "its message says how much");
        planner.apply(Told::Volumes(Change::Put(volume.clone())));
        let actions = free(&mut planner, 3010, 4 * GIB, 1);
        let [Action::Volume(volume)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(volume.value.intent.members.len(), 3);
        planner.apply(Told::Volumes(Change::Put(volume.clone())));
        let actions = free(&mut planner, 3020, 4 * GIB, 1);
        assert!(matches!(&actions[..], [Action::CreateRecord(_)]), "{actions:?}");
    }
}
