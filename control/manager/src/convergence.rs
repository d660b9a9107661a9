//! Properties: whatever happens to nodes and whatever users ask for, no write of the manager harms a copy, and once
//! things are quiet every volume becomes what its user wants.
//!
//! The engines here are a model, a few lines each: they follow intent and records as `docs/decisions` says that engines
//! do. The store is the view itself, with revisions; the manager may plan on a view that is old. And whatever it plans
//! from what it was told of changes is what a look at everything would have planned.

mod end;
mod harm;

use crate::{
    Action, Config, Objects, Observed, Planner, Recovery, Told, View, plan,
    testing::{GIB, Scene},
};
use harm::{
    is_of_its_class, keeps_copies_apart, keeps_good_copies, keeps_zones_apart, recovers_the_latest,
    respects_operators,
};
use model::{
    Attach, DiskClass, Generation, MemberIntent, MemberRecord, MemberState, NexusState, NodeState, Object,
    Owner, Pool, PoolState, ReplicaReport, ReplicaState, Scheduling, Settled, Stored, VolumeIntent,
    VolumeRecord, VolumeStatus, topology::ZONE_KEY,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Duration,
};
use store::Change;
use uuid::Uuid;

const ZONES: [&str; 3] = ["a", "b", "c"];
const STALE: MemberState = MemberState::Stale { since: Generation::ZERO };

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Fail(u128),
    Recover(u128),
    /// Engines run and time passes, for so many seconds.
    Run(u64),
    /// A write is missed by every copy on a node that is away.
    Write,
    Attach(usize, u128),
    Detach(usize),
    /// A node reads the volume, unless somebody has it for writing.
    Read(usize, u128),
    Grow(usize),
    Delete(usize),
    /// Its object is deleted by hand and applied again: nobody knows any more what was wished.
    LoseIntent(usize),
    /// Its objects are applied again without their status, or the store is restored: its record is lost.
    LoseRecord(usize),
    /// The records that were lost are back.
    RestoreRecords,
    /// The manager plans on the view of before.
    PlanOnOldView,
    /// The node's disks are taken away; a new one is there.
    ReplaceDisk(u128),
    /// The disks that were taken away from the node are back, beside those that it has.
    RestoreDisks(u128),
    /// Others fill the node's disks, or make room there.
    SetFree(u128, u64),
    /// Its operator wishes this of the node.
    Schedule(u128, Scheduling),
    /// The node is in another zone, or in none.
    Relabel(u128, usize),
    /// The manager starts anew.
    Restart,
    /// The watches begin again.
    Relist,
}

fn steps(nodes: u128) -> impl Strategy<Value = Vec<Step>> {
    let node = 1..=nodes;
    let volume = 0..3_usize;
    let step = prop_oneof![
        3 => node.clone().prop_map(Step::Fail),
        3 => node.clone().prop_map(Step::Recover),
        2 => node.clone().prop_map(Step::ReplaceDisk),
        1 => node.clone().prop_map(Step::RestoreDisks),
        4 => (1..5_u64).prop_map(Step::Run),
        2 => Just(Step::Run(70)),
        3 => Just(Step::Write),
        2 => (volume.clone(), node.clone()).prop_map(|(volume, node)| Step::Attach(volume, node)),
        2 => volume.clone().prop_map(Step::Detach),
        2 => (volume.clone(), node.clone()).prop_map(|(volume, node)| Step::Read(volume, node)),
        1 => volume.clone().prop_map(Step::Grow),
        1 => volume.clone().prop_map(Step::Delete),
        1 => volume.clone().prop_map(Step::LoseIntent),
        1 => volume.prop_map(Step::LoseRecord),
        1 => Just(Step::RestoreRecords),
        3 => (node.clone(), scheduling()).prop_map(|(node, wish)| Step::Schedule(node, wish)),
        1 => Just(Step::PlanOnOldView),
        1 => (node.clone(), 0..=ZONES.len()).prop_map(|(node, zone)| Step::Relabel(node, zone)),
        2 => (node, prop_oneof![Just(0), Just(GIB), Just(4 * GIB)])
            .prop_map(|(node, bytes)| Step::SetFree(node, bytes)),
        1 => Just(Step::Restart),
        1 => Just(Step::Relist),
    ];
    prop::collection::vec(step, 0..40)
}

fn scheduling() -> impl Strategy<Value = Scheduling> {
    prop_oneof![
        2 => Just(Scheduling::Enabled),
        1 => Just(Scheduling::Cordoned),
        1 => Just(Scheduling::Drained),
        2 => Just(Scheduling::Evacuated),
    ]
}

struct World {
    scene: Scene,
    /// The view of before.
    old: View,
    planner: Planner,
    /// What somebody has seen who always looks at everything.
    observed: Observed,
    now: Duration,
    up: BTreeSet<u128>,
    /// Volume -> the nexus that runs: its node, its epoch.
    nexuses: BTreeMap<Uuid, (u128, u64)>,
    /// (node, replica) -> on one of its disks.
    replicas: BTreeSet<(u128, Uuid)>,
    /// Of each replica that was ever made, its volume and its pool.
    homes: BTreeMap<Uuid, (Uuid, Uuid)>,
    /// What each replica keeps of its volume's record.
    copies: BTreeMap<Uuid, VolumeRecord>,
    /// The last record of each volume by which anybody may have written.
    settled: BTreeMap<Uuid, Option<Settled>>,
    lost: Vec<VolumeRecord>,
    /// Pools whose disk is not in its node.
    gone: BTreeSet<Uuid>,
    recorded: BTreeSet<Uuid>,
    placed: BTreeSet<Uuid>,
    /// Replicas that a record named and does not name any more.
    forgotten: BTreeSet<Uuid>,
    revision: u64,
}

impl World {
    fn new(nodes: u128, copies: &[u32]) -> Self {
        let mut scene = Scene::with_nodes(nodes);
        for (index, copies) in copies.iter().enumerate() {
            // One of them is for disks of a class: those that are there from the beginning are, later ones are not.
            let class = (index == 1).then_some(DiskClass::Ssd);
            let spec = &mut scene.volume(&format!("v{index}"), *copies, &[]).spec;
            spec.class = class;
            // Another one is to be in different zones.
            spec.spread = (index == 2).then(|| ZONE_KEY.into());
        }
        scene.view.pools.values_mut().for_each(|pool| pool.value.class = Some(DiskClass::Ssd));
        for (node, zone) in (1..=nodes).zip(ZONES.iter().cycle()) {
            scene.node_mut(node).topology.insert(ZONE_KEY.into(), (*zone).into());
        }
        Self {
            old: scene.view.clone(),
            scene,
            planner: Planner::default(),
            observed: Observed::default(),
            now: Duration::from_secs(100),
            up: (1..=nodes).collect(),
            nexuses: BTreeMap::new(),
            replicas: BTreeSet::new(),
            homes: BTreeMap::new(),
            copies: BTreeMap::new(),
            settled: BTreeMap::new(),
            lost: Vec::new(),
            gone: BTreeSet::new(),
            recorded: BTreeSet::new(),
            placed: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            revision: 1,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Fail(node) => {
                self.up.remove(node);
                self.nexuses.retain(|_, (home, _)| home != node);
            }
            Step::Recover(node) => drop(self.up.insert(*node)),
            Step::Run(seconds) => {
                for _ in 0..*seconds {
                    self.second();
                }
            }
            Step::Write => self.write(),
            Step::Attach(volume, node) => self.request(*volume, |volume| {
                let wish = Attach { node: format!("n{node}") };
                volume.intent.owner = Some(wish.node.clone());
                volume.intent.readers.clear();
                volume.intent.attach = Some(wish);
            }),
            Step::Detach(volume) => self.request(*volume, |volume| {
                volume.intent.readers.clear();
                volume.intent.attach = None;
            }),
            Step::Read(volume, node) => self.request(*volume, |volume| {
                let (readers, node) = (&mut volume.intent.readers, format!("n{node}"));
                if let (None, Err(place)) = (&volume.intent.attach, readers.binary_search(&node)) {
                    readers.insert(place, node);
                }
            }),
            Step::Grow(volume) => self.request(*volume, |volume| volume.spec.size_bytes += GIB / 4),
            Step::Delete(volume) => self.request(*volume, |volume| {
                if volume.intent.attach.is_none() && volume.intent.readers.is_empty() {
                    volume.intent.owner = None;
                    volume.intent.deleting = true;
                }
            }),
            Step::LoseIntent(volume) => self.lose_intent(*volume),
            Step::LoseRecord(volume) => self.lose_record(*volume),
            Step::RestoreRecords => self.restore_records(),
            Step::PlanOnOldView => {
                let old = self.old.clone();
                self.now += Duration::from_secs(1);
                self.manage(&old);
            }
            Step::ReplaceDisk(node) => {
                let mine = |pool: &&Stored<Pool>| pool.value.node == format!("n{node}");
                let mine: Vec<Pool> =
                    self.scene.view.pools.values().filter(mine).map(|pool| pool.value.clone()).collect();
                let fresh = Pool {
                    uuid: self.scene.new_uuid(),
                    class: Some(DiskClass::Hdd),
                    state: PoolState::Online,
                    ..mine[0].clone()
                };
                self.gone.extend(mine.iter().map(|pool| pool.uuid));
                self.scene.add_pool(fresh);
            }
            Step::RestoreDisks(node) => self.restore_disks(*node),
            Step::Schedule(node, scheduling) => {
                self.revision += 1;
                let known = self.scene.view.nodes.get_mut(&format!("n{node}")).unwrap();
                known.revision = self.revision;
                known.value.spec.scheduling = *scheduling;
            }
            Step::Relabel(node, zone) => {
                self.revision += 1;
                let known = self.scene.view.nodes.get_mut(&format!("n{node}")).unwrap();
                known.revision = self.revision;
                let zone = ZONES.get(*zone).map(|zone| (ZONE_KEY.to_owned(), (*zone).to_owned()));
                known.value.topology = zone.into_iter().collect();
            }
            Step::SetFree(node, bytes) => self.set_free(*node, *bytes),
            Step::Restart => {
                self.planner = Planner::default();
                self.observed = Observed::default();
            }
            Step::Relist => {
                let items = self.scene.view.volumes.values().cloned().collect();
                self.planner.apply(Told::Volumes(Change::Relist(items)));
            }
        }
    }

    fn lose_intent(&mut self, volume: usize) {
        let known = self.scene.view.volumes.get(&format!("v{volume}"));
        // Before there is a record its places are all that is known of it.
        if known.is_some_and(|known| self.scene.view.record(known.value.uuid).is_some()) {
            self.request(volume, |volume| volume.intent = VolumeIntent::default());
        }
    }

    fn lose_record(&mut self, volume: usize) {
        let known = self.scene.view.volumes.get(&format!("v{volume}")).map(|known| &known.value);
        let Some(uuid) = known.filter(|known| !known.intent.deleting).map(|known| known.uuid) else { return };
        // One that is younger could be made again by who has not seen it: nothing was written by then.
        if self.old.record(uuid).is_none() {
            return;
        }
        if let Some(record) = self.scene.view.records.remove(&uuid.to_string()) {
            self.lost.push(record.value);
            let intent = VolumeIntent { recorded: true, ..VolumeIntent::default() };
            self.request(volume, |volume| volume.intent = intent);
        }
    }

    fn restore_records(&mut self) {
        // Of two the later one; and none in the place of what was made again.
        for value in std::mem::take(&mut self.lost).into_iter().rev() {
            self.revision += 1;
            let revision = self.revision;
            if self.scene.view.volumes.values().any(|volume| volume.value.uuid == value.volume) {
                self.scene.view.records.entry(value.key()).or_insert(Stored { revision, value });
            }
        }
    }

    fn restore_disks(&mut self, node: u128) {
        let pools = self.scene.view.pools.values().filter(|pool| pool.value.node == format!("n{node}"));
        for pool in pools {
            self.gone.remove(&pool.value.uuid);
        }
    }

    fn set_free(&mut self, node: u128, bytes: u64) {
        for pool in self.scene.view.pools.values_mut() {
            if pool.value.node == format!("n{node}") {
                pool.value.free_bytes = bytes;
            }
        }
    }

    fn request(&mut self, volume: usize, change: impl FnOnce(&mut model::Volume)) {
        self.revision += 1;
        if let Some(stored) = self.scene.view.volumes.get_mut(&format!("v{volume}"))
            && !stored.value.intent.deleting
        {
            change(&mut stored.value);
            stored.revision = self.revision;
        }
    }

    /// A second of everything; whether anything changed but heartbeats.
    fn second(&mut self) -> bool {
        self.old = self.scene.view.clone();
        self.now += Duration::from_secs(1);
        let mut changed = false;
        for node in self.up.clone() {
            changed |= self.engine(node);
        }
        let view = self.scene.view.clone();
        changed | self.manage(&view)
    }

    // The manager.

    fn manage(&mut self, view: &View) -> bool {
        let config = Config::default();
        tell(&mut self.planner, view);
        self.observed.observe(view, self.now, config.lease);
        let whole = plan(view, &self.observed, &config, &mut self.scene.next_uuids());
        let scene = &mut self.scene;
        let actions = self.planner.plan(&config, self.now, &mut || scene.new_uuid());
        assert_eq!(actions, whole, "a look at everything finds something else");
        self.planner.check(view, &self.observed);
        for action in &actions {
            if let Action::RecoverRecord(recovery) = action {
                recovers_the_latest(view, recovery);
            }
            if let Action::Volume(volume) = action {
                keeps_copies_apart(view, &volume.value);
                respects_operators(view, &volume.value);
                is_of_its_class(view, &volume.value);
                keeps_zones_apart(view, &self.observed, &volume.value);
            }
            self.perform(action);
        }
        !actions.is_empty()
    }

    /// What the store does, and what must be true of every write that it accepts.
    fn perform(&mut self, action: &Action) {
        self.revision += 1;
        let revision = self.revision;
        let view = &mut self.scene.view;
        match action {
            Action::Node(node) => {
                let known = view.nodes.get_mut(&node.value.name).unwrap();
                if known.revision == node.revision {
                    *known = Stored { revision, value: node.value.clone() };
                }
            }
            Action::Volume(volume) => {
                let record = view.records.get(&volume.value.uuid.to_string()).map(|record| &record.value);
                let Some(known) = view.volumes.get_mut(&volume.value.name) else { return };
                if known.revision == volume.revision {
                    volume.value.validate().unwrap();
                    keeps_good_copies(record, &known.value, &volume.value);
                    for member in &volume.value.intent.members {
                        let fresh = self.placed.insert(member.replica);
                        assert!(
                            fresh || known.value.intent.members.contains(member),
                            "a replica is used twice"
                        );
                    }
                    *known = Stored { revision, value: volume.value.clone() };
                }
            }
            Action::RestoreIntent(volume, seen) => {
                // As `run` does: the record is looked at in the store.
                let record = view.record(volume.value.uuid);
                if record.is_none_or(|record| record.revision != *seen) {
                    return;
                }
                let known = view.volumes.get_mut(&volume.value.name);
                if let Some(known) = known.filter(|known| known.revision == volume.revision) {
                    volume.value.validate().unwrap();
                    self.placed.extend(volume.value.intent.members.iter().map(|member| member.replica));
                    *known = Stored { revision, value: volume.value.clone() };
                }
            }
            Action::CreateRecord(record) => {
                if let Entry::Vacant(place) = view.records.entry(record.key()) {
                    assert!(self.recorded.insert(record.volume), "a record is made a second time");
                    place.insert(Stored { revision, value: record.clone() });
                }
            }
            Action::RecoverRecord(Recovery { volume, record, replaces }) => {
                // As `run` does: the volume is looked at in the store.
                let known = view.volumes.get(volume).map(|known| &known.value);
                let is_so = known.is_some_and(|known| known.uuid == record.volume && !known.intent.deleting);
                let there = view.record(record.volume);
                if is_so && there.map(|there| there.revision) == *replaces {
                    let is_marked = there.is_none_or(|there| there.value.unconfirmed);
                    assert!(is_marked && record.unconfirmed, "a record is made again as if it were the last");
                    view.records.insert(record.key(), Stored { revision, value: record.clone() });
                }
            }
            Action::EmptyRecord(record) => {
                let Some(known) = view.records.get_mut(&record.value.key()) else { return };
                if known.revision == record.revision {
                    assert_eq!(record.value.epoch, known.value.epoch + 1);
                    let mut volumes = view.volumes.values();
                    let volume = volumes.find(|volume| volume.value.uuid == record.value.volume).unwrap();
                    assert!(volume.value.intent.deleting, "only what is being deleted");
                    *known = Stored { revision, value: record.value.clone() };
                }
            }
            Action::DeleteRecord(record) => {
                // What is on a disk that was taken away stays there, and is nobody's; also when the disk is back and its
                // node has not said so yet.
                let left = |member: &MemberRecord| {
                    !view.is_gone(member.pool)
                        && self.replicas.iter().any(|(_, left)| *left == member.replica)
                };
                let known = view.records.get(&record.value.key());
                if known.is_some_and(|known| known.revision == record.revision) {
                    assert!(!record.value.members.iter().any(left), "a replica is left without a record");
                    view.records.remove(&record.value.key());
                }
            }
            Action::DeleteVolume(volume) => {
                // As `run` does: the record is looked for in the store.
                let known = view.volumes.get(&volume.value.name);
                let same = known.is_some_and(|known| known.revision == volume.revision);
                if same && !view.records.contains_key(&volume.value.uuid.to_string()) {
                    assert!(volume.value.intent.deleting);
                    view.statuses.remove(&volume.value.uuid.to_string());
                    view.volumes.remove(&volume.value.name);
                }
            }
        }
    }

    // The engines.

    fn engine(&mut self, node: u128) -> bool {
        let name = format!("n{node}");
        let known = self.scene.view.nodes.get_mut(&name).unwrap();
        self.revision += 1;
        known.revision = self.revision;
        known.value.heartbeat += 1;
        let mut changed = known.value.state == NodeState::NotReady;
        known.value.state = NodeState::Ready;
        for pool in self.scene.view.pools.values_mut().filter(|pool| pool.value.node == name) {
            let state =
                if self.gone.contains(&pool.value.uuid) { PoolState::Gone } else { PoolState::Online };
            changed |= pool.value.state != state;
            pool.value.state = state;
        }
        changed |= self.keep_replicas(node, &name);
        let volumes: Vec<model::Volume> =
            self.scene.view.volumes.values().map(|volume| volume.value.clone()).collect();
        for volume in volumes {
            let wanted = volume.intent.owner.as_deref() == Some(&name) && !volume.intent.deleting;
            let Some(record) = self.scene.view.record(volume.uuid).map(|record| record.value.clone()) else {
                continue;
            };
            let mine = self.nexuses.get(&volume.uuid).filter(|(home, _)| *home == node).copied();
            let next = match mine {
                Some((_, epoch)) if epoch != record.epoch || record.owner.is_none() => {
                    self.nexuses.remove(&volume.uuid);
                    continue;
                }
                Some(_) if !wanted => Some(self.close(&record)),
                Some(_) => self.work(&volume, &record),
                None if wanted => self.open(node, &name, &record),
                None => None,
            };
            if let Some(next) = next {
                self.revision += 1;
                let stored = Stored { revision: self.revision, value: next };
                self.scene.view.records.insert(stored.value.key(), stored);
                changed = true;
            }
        }
        changed
    }

    /// Makes what is `New`, destroys what is `Removed`, and reports.
    fn keep_replicas(&mut self, node: u128, name: &str) -> bool {
        let records = self.scene.view.records.values().map(|record| &record.value);
        let named = records.flat_map(|record| record.members.iter().map(move |member| (record, member)));
        let named: Vec<(Uuid, bool, MemberRecord)> = named
            .filter(|(_, member)| member.node == name)
            .map(|(record, member)| (record.volume, record.unconfirmed, member.clone()))
            .collect();
        let volume_of: BTreeMap<Uuid, Uuid> =
            named.iter().map(|(volume, _, member)| (member.replica, *volume)).collect();
        let mut changed = false;
        for (_, unconfirmed, member) in &named {
            let gone = self.gone.contains(&member.pool);
            let here = self.replicas.contains(&(node, member.replica)) && !gone;
            let state = match member.state {
                MemberState::Removed if !here => ReplicaState::Destroyed,
                // A record that is to be confirmed is no order.
                MemberState::New if !gone && !unconfirmed => {
                    assert!(!self.forgotten.contains(&member.replica), "a replica is made a second time");
                    self.replicas.insert((node, member.replica));
                    changed |= !here;
                    ReplicaState::Present
                }
                MemberState::Removed if !unconfirmed => {
                    changed |= self.replicas.remove(&(node, member.replica));
                    self.copies.remove(&member.replica);
                    ReplicaState::Destroyed
                }
                _ if here => ReplicaState::Present,
                _ => ReplicaState::Missing,
            };
            let pool = member.pool;
            let message = gone.then(|| "its pool is not on this node any more".to_owned());
            let (replica, volume) = (member.replica, volume_of[&member.replica]);
            self.homes.insert(replica, (volume, pool));
            let report = ReplicaReport { replica, volume, pool, state, used_bytes: 0, message, record: None };
            self.scene.say(node, report);
        }
        if let Some(report) = self.scene.view.replicas.get_mut(name) {
            report.value.replicas.retain(|report| volume_of.contains_key(&report.replica));
        }
        self.say_unnamed(node, |replica| volume_of.contains_key(&replica));
        changed
    }

    /// What no record names is kept, and reported with what it keeps of the record.
    fn say_unnamed(&mut self, node: u128, is_named: impl Fn(Uuid) -> bool) {
        for (_, replica) in
            self.replicas.iter().filter(|(home, replica)| *home == node && !is_named(*replica))
        {
            let (replica, (volume, pool)) = (*replica, self.homes[replica]);
            if !self.gone.contains(&pool) {
                let (state, message) = (ReplicaState::Present, Some("no record names it".to_owned()));
                let record = self.copies.get(&replica).cloned().map(Box::new);
                let report = ReplicaReport { replica, volume, pool, state, used_bytes: 0, message, record };
                self.scene.say(node, report);
            }
        }
    }

    fn is_up(&self, member: &MemberRecord) -> bool {
        member.node[1..].parse().is_ok_and(|node: u128| self.up.contains(&node))
    }

    /// Whether its node is up and has made it.
    fn is_there(&self, member: &MemberRecord) -> bool {
        let made = self.replicas.iter().any(|(_, replica)| *replica == member.replica);
        self.is_up(member) && made && !self.gone.contains(&member.pool)
    }

    fn open(&mut self, node: u128, name: &str, record: &VolumeRecord) -> Option<VolumeRecord> {
        // A member knows better: that is written down before anything else (I12).
        let there = record.members.iter().filter(|member| self.is_there(member));
        let mut copies = there.filter_map(|member| self.copies.get(&member.replica));
        if let Some(later) = copies.find(|copy| copy.is_later_than(record)) {
            return Some(later.clone().recovered(record.epoch, record.version));
        }
        let asked = |member: &&MemberRecord| !matches!(member.state, MemberState::New | MemberState::Removed);
        if record.unconfirmed && !record.members.iter().filter(asked).all(|member| self.is_there(member)) {
            return None;
        }
        let fresh = record.members.iter().all(|member| member.state == MemberState::New);
        let source =
            |member: &MemberRecord| self.is_there(member) && (fresh || member.state == MemberState::InSync);
        if !record.members.iter().any(source) {
            return None;
        }
        let last = self.settled.get(&record.volume).copied().flatten();
        assert!(record.settled >= last, "opened by a record from before {last:?}: {record:?}");
        let mut next = record.clone();
        next.version += 1;
        next.epoch += 1;
        (next.clean, next.unconfirmed) = (false, false);
        let nexus = self.scene.new_uuid();
        next.owner = Some(Owner { nexus, node: name.to_owned() });
        for member in next.members.iter_mut().filter(|_| fresh) {
            if self.is_there(member) {
                member.state = MemberState::InSync;
            }
        }
        self.nexuses.insert(record.volume, (node, next.epoch));
        self.report_nexus(&next, NexusState::Serving);
        Some(self.settle(next))
    }

    /// What a nexus that has opened writes is in the store, and on the members that are in sync, before anybody acts on it.
    fn settle(&mut self, mut next: VolumeRecord) -> VolumeRecord {
        next.settled = Some(Settled { epoch: next.epoch, version: next.version });
        let in_sync = |member: &&MemberRecord| member.state == MemberState::InSync && self.is_there(member);
        let replicas: Vec<Uuid> = next.members.iter().filter(in_sync).map(|member| member.replica).collect();
        // By one that no copy takes part in nothing is acknowledged.
        if !replicas.is_empty() {
            self.settled.insert(next.volume, next.settled);
        }
        self.copies.extend(replicas.into_iter().map(|replica| (replica, next.clone())));
        next
    }

    fn close(&mut self, record: &VolumeRecord) -> VolumeRecord {
        self.nexuses.remove(&record.volume);
        self.report_nexus(record, NexusState::Closed);
        let all_flushed =
            record.members.iter().all(|member| member.state != MemberState::InSync || self.is_there(member));
        self.settle(VolumeRecord {
            version: record.version + 1,
            owner: None,
            clean: all_flushed,
            ..record.clone()
        })
    }

    /// Adopts, forgets, lets go, rebuilds and grows, one second's worth.
    fn work(&mut self, volume: &model::Volume, record: &VolumeRecord) -> Option<VolumeRecord> {
        let mut next = record.clone();
        let wanted = |member: &MemberRecord| {
            volume.intent.members.iter().any(|wanted| wanted.replica == member.replica)
        };
        for member in &volume.intent.members {
            if !next.members.iter().any(|known| known.replica == member.replica) {
                let MemberIntent { replica, pool, node } = member.clone();
                assert!(!self.forgotten.contains(&replica), "a replica is made a second time");
                next.members.push(MemberRecord::new(replica, pool, node));
            }
        }
        let good = next.members.iter().filter(|member| member.state == MemberState::InSync && wanted(member));
        let enough = good.count() >= 1;
        let (forgotten, named): (Vec<_>, Vec<_>) = next.members.into_iter().partition(|member| {
            member.state == MemberState::Removed && volume.intent.forget.contains(&member.replica)
        });
        next.members = named;
        for member in forgotten {
            // On a disk that was taken away, too: it may come back.
            let is_left = self.replicas.iter().any(|(_, left)| *left == member.replica);
            assert!(!is_left, "{member:?} is forgotten and not destroyed");
            self.forgotten.insert(member.replica);
        }
        for index in 0..next.members.len() {
            let member = &next.members[index];
            let up = self.is_there(member);
            let in_sync =
                |other: &&MemberRecord| other.replica != member.replica && other.state == MemberState::InSync;
            let taken = next.members.iter().filter(in_sync).any(|other| other.node == member.node);
            let another = next.members.iter().filter(in_sync).any(|other| self.is_there(other));
            next.members[index].state = match member.state {
                MemberState::Removed => MemberState::Removed,
                _ if !wanted(member) && enough => MemberState::Removed,
                // One that is not reached is retired, but never the last one (I4).
                MemberState::InSync if !up && another => STALE,
                MemberState::New | MemberState::Stale { .. } if up && another && !taken => {
                    MemberState::Rebuilding { since: Generation::ZERO }
                }
                MemberState::Rebuilding { .. } if up && another && !taken => MemberState::InSync,
                MemberState::Rebuilding { .. } => STALE,
                state => state,
            };
        }
        next.size_bytes = volume.spec.size_bytes;
        if next == *record {
            return None;
        }
        next.version += 1;
        Some(self.settle(next))
    }

    /// I2 and I4: every copy that is away misses a write, unless it is the last one.
    fn write(&mut self) {
        for volume in self.nexuses.keys().copied().collect::<Vec<_>>() {
            let Some(stored) = self.scene.view.record(volume).cloned() else { continue };
            let mut next = stored.value;
            let here = |member: &MemberRecord| member.state == MemberState::InSync && self.is_there(member);
            let owns = next.epoch == self.nexuses[&volume].1 && next.owner.is_some();
            if !owns || !next.members.iter().any(here) {
                continue;
            }
            next.version += 1;
            for member in &mut next.members {
                if member.state == MemberState::InSync && !self.is_there(member) {
                    member.state = STALE;
                }
            }
            self.revision += 1;
            let stored = Stored { revision: self.revision, value: self.settle(next) };
            self.scene.view.records.insert(stored.value.key(), stored);
        }
    }

    fn report_nexus(&mut self, record: &VolumeRecord, state: NexusState) {
        let Some(owner) = &record.owner else { return };
        let status = VolumeStatus {
            volume: record.volume,
            node: owner.node.clone(),
            nexus: owner.nexus,
            epoch: record.epoch,
            state,
            device: None,
            target: None,
            attachment: 0,
            attach_serial: 0,
            size_bytes: record.size_bytes,
            stable: Generation::ZERO,
            members: Vec::new(),
            write_stall_max_ms: 0,
            message: None,
        };
        self.scene.view.statuses.insert(status.key(), Stored { revision: self.revision, value: status });
    }
}

/// Tells what differs from what is known.
fn tell(planner: &mut Planner, view: &View) {
    let known = planner.view().clone();
    for change in changes(&known.nodes, &view.nodes) {
        planner.apply(Told::Nodes(change));
    }
    for change in changes(&known.pools, &view.pools) {
        planner.apply(Told::Pools(change));
    }
    for change in changes(&known.volumes, &view.volumes) {
        planner.apply(Told::Volumes(change));
    }
    for change in changes(&known.records, &view.records) {
        planner.apply(Told::Records(change));
    }
    for change in changes(&known.statuses, &view.statuses) {
        planner.apply(Told::Statuses(change));
    }
    for change in changes(&known.replicas, &view.replicas) {
        planner.apply(Told::Replicas(change));
    }
}

fn changes<T: Object + PartialEq>(known: &Objects<T>, now: &Objects<T>) -> Vec<Change<T>> {
    let gone = known.keys().filter(|key| !now.contains_key(*key)).cloned().map(Change::Delete);
    let new = now.iter().filter(|(key, item)| known.get(*key) != Some(*item));
    gone.chain(new.map(|(_, item)| Change::Put(item.clone()))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_manager_harms_nothing_and_converges(
        (nodes, steps) in (1..=5_u128).prop_flat_map(|nodes| (Just(nodes), steps(nodes))),
        copies in prop::collection::vec(1..=4_u32, 3),
    ) {
        let mut world = World::new(nodes, &copies);
        for step in &steps {
            world.step(step);
        }
        world.ends_well(nodes);
    }
}

/// The manager has heard of the volume that was applied again, and not yet that a copy of it was replaced: it must not be
/// made a second time.
#[test]
fn an_intent_is_not_made_again_from_a_record_of_before() {
    let mut world = World::new(3, &[2]);
    world.step(&Step::Attach(0, 1));
    world.step(&Step::Run(10));
    let before = world.scene.view.records.clone();
    world.step(&Step::Schedule(2, Scheduling::Evacuated));
    world.step(&Step::Run(20));
    assert_eq!(world.forgotten.len(), 1, "{:?}", world.scene.view.records);
    world.step(&Step::LoseIntent(0));
    let late = View { records: before, ..world.scene.view.clone() };
    world.now += Duration::from_secs(1);
    world.manage(&late);
    assert_eq!(world.scene.view.volumes["v0"].value.intent, VolumeIntent::default());
    world.ends_well(3);
}

/// A leader that was late made the record of the first place when another was wished already: both were on one node, and
/// neither the one nor the other could become the volume's copy.
#[test]
fn a_record_that_is_made_late_is_that_of_the_intent() {
    let mut world = World::new(1, &[1]);
    for step in [Step::PlanOnOldView, Step::ReplaceDisk(1), Step::Run(1), Step::PlanOnOldView] {
        world.step(&step);
    }
    world.ends_well(1);
}

/// The copy that was placed first, and was nowhere when its disk was replaced, was counted when the disk came back.
#[test]
fn a_place_that_is_gone_before_anything_is_made_is_none() {
    let mut world = World::new(2, &[1, 2, 1]);
    for step in
        [Step::Schedule(2, Scheduling::Evacuated), Step::PlanOnOldView, Step::ReplaceDisk(1), Step::Run(1)]
    {
        world.step(&step);
    }
    world.ends_well(2);
}
