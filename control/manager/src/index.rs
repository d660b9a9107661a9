//! Which volumes a changed object touches, and sums over all volumes: what a pass would otherwise have to look through
//! the whole view for.
//!
//! 1. It is a function of the volumes and records of the view: kept up to date it is the same as made anew.

use crate::{Promised, View};
use model::{NodeReplicas, Volume, VolumeRecord};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};
use uuid::Uuid;

/// By node, how many volumes should run their nexus there; none is 0.
pub(crate) type Load = BTreeMap<String, usize>;

/// Volumes by what they touch: a node, a pool, a replica.
type Touched<K> = BTreeMap<K, BTreeSet<Uuid>>;

/// (volume, node, replica): what this node has said of a replica, other than that it is destroyed for good.
pub(crate) type Reported = BTreeSet<(Uuid, String, Uuid)>;

/// What is known of all volumes together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    names: BTreeMap<Uuid, String>,
    nodes: Touched<String>,
    pools: Touched<Uuid>,
    /// Each is of one volume.
    replicas: BTreeMap<Uuid, Uuid>,
    pub(crate) promised: Promised,
    pub(crate) load: Load,
    pub(crate) reported: Reported,
}

impl Index {
    /// Made anew, to compare (invariant 1).
    #[cfg(test)]
    pub(crate) fn of(view: &View) -> Self {
        let (promised, load, reported) = (Promised::of(view), load_of(view), reported_of(view));
        let mut index = Self { promised, load, reported, ..Self::default() };
        for volume in view.volumes.values().map(|volume| &volume.value) {
            index.names.insert(volume.uuid, volume.name.clone());
            index.touch(volume.uuid, Some(volume), None);
        }
        for record in view.records.values().map(|record| &record.value) {
            index.touch(record.volume, None, Some(record));
        }
        index
    }

    pub(crate) fn add_volume(&mut self, volume: &Volume, record: Option<&VolumeRecord>) {
        self.names.insert(volume.uuid, volume.name.clone());
        self.promised.add_volume(volume);
        if let Some(owner) = &volume.intent.owner {
            *self.load.entry(owner.clone()).or_default() += 1;
        }
        self.touch(volume.uuid, Some(volume), record);
    }

    /// Takes the volume out as it was added; its record stays.
    pub(crate) fn remove_volume(&mut self, volume: &Volume, record: Option<&VolumeRecord>) {
        self.names.remove(&volume.uuid);
        self.promised.subtract_volume(volume);
        if let Some(owner) = &volume.intent.owner {
            let rest = self.load.remove(owner).and_then(|load| load.checked_sub(1)).expect("it was added");
            if rest > 0 {
                self.load.insert(owner.clone(), rest);
            }
        }
        self.release(volume.uuid, Some(volume), record);
        self.touch(volume.uuid, None, record);
    }

    pub(crate) fn add_record(&mut self, record: &VolumeRecord) {
        self.touch(record.volume, None, Some(record));
    }

    /// Takes the record out as it was added; its volume stays.
    pub(crate) fn remove_record(&mut self, record: &VolumeRecord, volume: Option<&Volume>) {
        self.release(record.volume, volume, Some(record));
        self.touch(record.volume, volume, None);
    }

    /// Takes in what a node says of replicas in the place of what it said, and answers of which volumes that is another.
    pub(crate) fn report(
        &mut self,
        old: Option<&NodeReplicas>,
        new: Option<&NodeReplicas>,
    ) -> BTreeSet<Uuid> {
        let (before, now) = (copies_in(old), copies_in(new));
        let mut volumes = BTreeSet::new();
        for (report, (volume, replica)) in [(old, before.difference(&now)), (new, now.difference(&before))]
            .into_iter()
            .flat_map(|(report, copies)| copies.map(move |copy| (report, *copy)))
        {
            let Some(report) = report else { continue };
            let known = (volume, report.node.clone(), replica);
            if !self.reported.remove(&known) {
                self.reported.insert(known);
            }
            volumes.insert(volume);
        }
        volumes
    }

    fn touch(&mut self, uuid: Uuid, volume: Option<&Volume>, record: Option<&VolumeRecord>) {
        for node in nodes_of(volume, record) {
            if !self.nodes.contains_key(node) {
                self.nodes.insert(node.clone(), BTreeSet::new());
            }
            self.nodes.get_mut(node).expect("it was just inserted").insert(uuid);
        }
        for (pool, replica) in places_of(volume, record) {
            self.pools.entry(pool).or_default().insert(uuid);
            self.replicas.insert(replica, uuid);
        }
    }

    fn release(&mut self, uuid: Uuid, volume: Option<&Volume>, record: Option<&VolumeRecord>) {
        for node in nodes_of(volume, record) {
            release(&mut self.nodes, node, uuid);
        }
        for (pool, replica) in places_of(volume, record) {
            release(&mut self.pools, &pool, uuid);
            self.replicas.remove(&replica);
        }
    }

    /// The name of the volume, if there is one.
    pub(crate) fn name(&self, volume: Uuid) -> Option<&String> {
        self.names.get(&volume)
    }

    /// The names of the volumes that name this node.
    pub(crate) fn on_node(&self, node: &str) -> impl Iterator<Item = &String> {
        self.named(self.nodes.get(node))
    }

    /// The names of the volumes that name this pool.
    pub(crate) fn in_pool(&self, pool: Uuid) -> impl Iterator<Item = &String> {
        self.named(self.pools.get(&pool))
    }

    /// The name of the volume that names this replica.
    pub(crate) fn of_replica(&self, replica: Uuid) -> Option<&String> {
        self.names.get(self.replicas.get(&replica)?)
    }

    fn named<'a>(&'a self, volumes: Option<&'a BTreeSet<Uuid>>) -> impl Iterator<Item = &'a String> {
        volumes.into_iter().flatten().filter_map(|volume| self.names.get(volume))
    }
}

fn release<K: Ord + Borrow<Q>, Q: Ord + ?Sized>(touched: &mut Touched<K>, key: &Q, volume: Uuid) {
    let Some(volumes) = touched.get_mut(key) else { return };
    volumes.remove(&volume);
    if volumes.is_empty() {
        touched.remove(key);
    }
}

fn nodes_of<'a>(
    volume: Option<&'a Volume>,
    record: Option<&'a VolumeRecord>,
) -> impl Iterator<Item = &'a String> {
    let intent = volume.map(|volume| &volume.intent);
    let wished = intent.into_iter().flat_map(|intent| &intent.members).map(|member| &member.node);
    let recorded = record.into_iter().flat_map(|record| &record.members).map(|member| &member.node);
    let owner = intent.and_then(|intent| intent.owner.as_ref());
    let readers = intent.into_iter().flat_map(|intent| &intent.readers);
    let now = record.and_then(|record| record.owner.as_ref()).map(|owner| &owner.node);
    wished.chain(recorded).chain(owner).chain(readers).chain(now)
}

fn places_of(volume: Option<&Volume>, record: Option<&VolumeRecord>) -> impl Iterator<Item = (Uuid, Uuid)> {
    let wished = volume.into_iter().flat_map(|volume| &volume.intent.members);
    let recorded = record.into_iter().flat_map(|record| &record.members);
    let wished = wished.map(|member| (member.pool, member.replica));
    wished.chain(recorded.map(|member| (member.pool, member.replica)))
}

/// What may hold data: (volume, replica).
fn copies_in(report: Option<&NodeReplicas>) -> BTreeSet<(Uuid, Uuid)> {
    let reports = report.into_iter().flat_map(|report| &report.replicas);
    let reports = reports.filter(|report| !report.is_destroyed_for_good());
    reports.map(|report| (report.volume, report.replica)).collect()
}

pub(crate) fn reported_of(view: &View) -> Reported {
    let mut reported = Reported::new();
    for report in view.replicas.values().map(|report| &report.value) {
        let copies = copies_in(Some(report)).into_iter();
        reported.extend(copies.map(|(volume, replica)| (volume, report.node.clone(), replica)));
    }
    reported
}

/// What nodes have said something of: the replicas of the volume, each with its node, in order.
pub(crate) fn told_of(reported: &Reported, volume: Uuid) -> impl Iterator<Item = (&str, Uuid)> {
    let of_volume = reported.range((volume, String::new(), Uuid::nil())..);
    of_volume.take_while(move |(of, ..)| *of == volume).map(|(_, node, replica)| (node.as_str(), *replica))
}

/// The nodes that have said something of a replica of the volume, in order.
pub(crate) fn holders(reported: &Reported, volume: Uuid) -> BTreeSet<&str> {
    told_of(reported, volume).map(|(node, _)| node).collect()
}

pub(crate) fn load_of(view: &View) -> Load {
    let mut load = Load::new();
    for owner in view.volumes.values().filter_map(|volume| volume.value.intent.owner.as_ref()) {
        *load.entry(owner.clone()).or_default() += 1;
    }
    load
}
