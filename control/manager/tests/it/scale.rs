//! A rack of a large cluster is lost: what is planned, exactly, and how many volumes are examined for it.

use crate::fleet::{self, COPIES, NODES, RACK, VOLUME_BYTES, VOLUMES};
use manager::{Action, Config, OVERCOMMIT_DEFAULT, Planner, Told};
use model::{
    MemberIntent, MemberRecord, MemberState, Object, Pool, PoolState, ReplicaState, Stored, Volume,
    VolumeRecord,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use store::Change;
use uuid::Uuid;

/// The planner, and a store that accepts each write.
struct Fleet {
    planner: Planner,
    now: u64,
    revision: u64,
    replicas_made: u32,
}

impl Fleet {
    /// Every node that is up beats, and a second passes.
    fn beat(&mut self) {
        self.beat_without(NODES);
    }

    /// The same, but for one node.
    fn beat_without(&mut self, silent: u32) {
        self.now += 1;
        for index in (0..NODES).filter(|index| !RACK.contains(index) && *index != silent) {
            self.put(Told::Nodes, fleet::node(index, self.now));
        }
    }

    fn put<T: Object>(&mut self, told: fn(Change<T>) -> Told, value: T) {
        self.revision += 1;
        self.planner.apply(told(Change::Put(Stored { revision: self.revision, value })));
    }

    fn plan(&mut self) -> Vec<Action> {
        let mut new_uuid = || {
            self.replicas_made += 1;
            fleet::id(7, self.replicas_made)
        };
        self.planner.plan(&Config::default(), Duration::from_secs(self.now), &mut new_uuid)
    }

    fn accept(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Node(node) => self.put(Told::Nodes, node.value.clone()),
                Action::Volume(volume) => self.put(Told::Volumes, volume.value.clone()),
                other => panic!("nothing is made or deleted: {other:?}"),
            }
        }
    }

    /// One pass, whose writes are accepted.
    fn pass(&mut self) -> Vec<Action> {
        let actions = self.plan();
        self.accept(&actions);
        actions
    }

    /// Passes until there is nothing to do: what volumes were, and what they have become, with one write each.
    fn settle(&mut self) -> BTreeMap<String, (Volume, Volume)> {
        let mut written = BTreeMap::new();
        loop {
            let actions = self.plan();
            if actions.is_empty() {
                return written;
            }
            for action in &actions {
                let Action::Volume(Stored { value, .. }) = action else { panic!("{action:?}") };
                let old = self.planner.view().volumes[&value.name].value.clone();
                let again = written.insert(value.name.clone(), (old, value.clone()));
                assert_eq!(again, None, "a volume is written twice");
            }
            self.accept(&actions);
        }
    }

    /// The volumes that are examined by the next pass, which plans nothing.
    fn examined(&mut self) -> u64 {
        let before = self.planner.examined();
        assert_eq!(self.pass(), []);
        self.planner.examined() - before
    }

    /// The engines make what is wished so: every copy in sync, and none that is not wished.
    fn engines_work(&mut self, volume: &Volume, keep_others: bool) {
        let record = self.planner.view().record(volume.uuid).unwrap().value.clone();
        let others = record.members.iter().filter(|known| {
            keep_others && !volume.intent.members.iter().any(|member| member.replica == known.replica)
        });
        let good = |member: &MemberIntent| MemberRecord {
            state: MemberState::InSync,
            ..MemberRecord::new(member.replica, member.pool, member.node.clone())
        };
        // A copy on a node that is down cannot be made so.
        let members = volume.intent.members.iter().map(|member| {
            let known = record.members.iter().find(|known| known.replica == member.replica);
            let is_up = self.planner.view().is_ready(&member.node);
            known.filter(|_| !is_up).cloned().unwrap_or_else(|| good(member))
        });
        let members = members.chain(others.cloned()).collect();
        self.put(Told::Records, VolumeRecord { version: record.version + 1, members, ..record });
    }
}

fn nodes_of(volume: &Volume) -> BTreeSet<String> {
    volume.intent.members.iter().map(|member| member.node.clone()).collect()
}

fn names(volumes: impl Iterator<Item = u32>) -> BTreeSet<String> {
    volumes.map(fleet::volume_name).collect()
}

fn keys<T>(written: &BTreeMap<String, T>) -> BTreeSet<String> {
    written.keys().cloned().collect()
}

#[test]
fn a_rack_of_a_large_cluster_is_lost() {
    let in_rack: BTreeSet<String> = RACK.map(fleet::node_name).collect();
    let degraded = (0..VOLUMES).filter(|volume| fleet::stale_copy(*volume).is_some());
    assert_eq!(degraded.count(), 1000);
    let mut fleet = Fleet { planner: fleet::planner(), now: 100, revision: 1, replicas_made: 0 };

    // A closed volume whose stale copy is there needs somebody who makes it equal; nothing else is to be done.
    let written = fleet.settle();
    let repaired = (0..VOLUMES).filter(|volume| {
        let is_stale_there = fleet::stale_copy(*volume).is_some() && fleet::lost_copy(*volume).is_none();
        is_stale_there && !fleet::is_attached(*volume)
    });
    assert_eq!(keys(&written), names(repaired.clone()));
    for volume in repaired {
        let (before, after) = &written[&fleet::volume_name(volume)];
        let stale = fleet::stale_copy(volume).unwrap();
        let owner = after.intent.owner.as_deref().unwrap();
        let source = after.intent.members.iter().position(|member| member.node == owner);
        assert!(source.is_some_and(|source| source != stale), "only from a good copy: {after:?}");
        assert_eq!(after.intent.members, before.intent.members);
    }
    let count = u64::try_from(written.len()).unwrap();
    assert_eq!(fleet.planner.examined(), u64::from(VOLUMES) + count, "all once, and those again");

    // Nothing is done for copies that are away for a moment, and a heartbeat is no reason to look.
    let examined = fleet.planner.examined();
    for _ in 0..59 {
        fleet.beat();
        assert_eq!(fleet.pass(), []);
    }
    assert_eq!(fleet.planner.examined(), examined);

    // Each volume with a copy in the rack gets one more.
    fleet.beat();
    let written = fleet.settle();
    let with_loss = (0..VOLUMES).filter(|volume| fleet::lost_copy(*volume).is_some());
    assert_eq!(keys(&written), names(with_loss.clone()));
    assert_eq!(written.len(), 6000);
    assert_eq!(fleet.planner.examined() - examined, 2 * 6000, "each once, and once when it is written");
    let mut new_copies: BTreeMap<String, u32> = BTreeMap::new();
    for (before, after) in written.values() {
        assert_eq!(after.intent.members[..3], before.intent.members, "nothing is given up before");
        let [new] = &after.intent.members[3..] else { panic!("{after:?}") };
        assert!(!nodes_of(before).contains(&new.node) && !in_rack.contains(&new.node), "{after:?}");
        *new_copies.entry(new.node.clone()).or_default() += 1;
        assert_eq!(after.message, None);
        if before.intent.attach.is_some() {
            assert_eq!(after.intent.owner, before.intent.owner, "an attached volume stays");
        } else {
            let owner = after.intent.owner.as_ref().unwrap();
            assert!(nodes_of(before).contains(owner) && !in_rack.contains(owner), "{after:?}");
        }
    }
    assert_eq!(new_copies.len(), usize::try_from(NODES).unwrap() - RACK.len());
    assert!(new_copies.values().all(|count| (5..=8).contains(count)), "spread: {new_copies:?}");
    are_within_promises(&fleet.planner);

    // What is lost is given up when the new ones are in sync.
    for (_, after) in written.values() {
        fleet.engines_work(after, true);
    }
    let examined = fleet.planner.examined();
    let given_up = fleet.settle();
    assert_eq!(keys(&given_up), keys(&written));
    assert_eq!(fleet.planner.examined() - examined, 2 * 6000);
    for (before, after) in given_up.values() {
        let kept = before.intent.members.iter().filter(|member| !in_rack.contains(&member.node));
        let kept: BTreeSet<Uuid> = kept.map(|member| member.replica).collect();
        assert_eq!(after.intent.members.iter().map(|m| m.replica).collect::<BTreeSet<_>>(), kept);
        assert_eq!(kept.len(), usize::try_from(COPIES).unwrap());
    }

    // And when all is done whoever was there for it goes.
    let busy = |volume: &&Volume| volume.intent.owner.is_some() && volume.intent.attach.is_none();
    let volumes = fleet.planner.view().volumes.values().map(|volume| volume.value.clone());
    let volumes: Vec<Volume> = volumes.collect();
    let is_lost = |volume: &Volume| given_up.contains_key(&volume.name);
    for volume in volumes.iter().filter(|volume| is_lost(volume) || busy(volume)) {
        fleet.engines_work(volume, false);
    }
    let done = fleet.settle();
    assert_eq!(keys(&done), volumes.iter().filter(busy).map(|volume| volume.name.clone()).collect());
    assert!(done.values().all(|(_, after)| after.intent.owner.is_none()));
    for volume in fleet.planner.view().volumes.values() {
        let nodes = nodes_of(&volume.value);
        assert!(nodes.len() == 3 && nodes.is_disjoint(&in_rack), "{volume:?}");
    }
}

fn are_within_promises(planner: &Planner) {
    let mut promised: BTreeMap<Uuid, u64> = BTreeMap::new();
    for volume in planner.view().volumes.values() {
        for member in &volume.value.intent.members {
            *promised.entry(member.pool).or_default() += volume.value.spec.size_bytes;
        }
    }
    for pool in planner.view().pools.values().map(|pool| &pool.value) {
        let promised = promised[&pool.uuid];
        assert!(promised <= pool.capacity_bytes * OVERCOMMIT_DEFAULT, "{pool:?} {promised}");
        assert!(pool.free_bytes >= VOLUME_BYTES);
    }
}

#[test]
fn one_object_of_a_large_cluster_changes() {
    let mut fleet = Fleet { planner: fleet::planner(), now: 100, revision: 1, replicas_made: 0 };
    fleet.settle();
    assert_eq!(fleet.examined(), 0);

    // Healthy, closed, and with no copy in the rack.
    let volume = (0..VOLUMES).find(|volume| {
        fleet::lost_copy(*volume).is_none()
            && !fleet::is_attached(*volume)
            && fleet::stale_copy(*volume).is_none()
    });
    let volume = volume.unwrap();
    let home = fleet::homes(volume)[0];
    let record = fleet::record(volume);
    fleet.put(Told::Records, VolumeRecord { version: record.version + 1, ..record.clone() });
    assert_eq!(fleet.examined(), 1, "a record");
    let status = fleet.planner.view().status(record.volume).unwrap().value.clone();
    fleet.put(Told::Statuses, status);
    assert_eq!(fleet.examined(), 1, "a status");
    let object = fleet.planner.view().volumes[&fleet::volume_name(volume)].value.clone();
    fleet.put(Told::Volumes, object);
    assert_eq!(fleet.examined(), 1, "a volume");

    fleet.put(Told::Nodes, fleet::node(home, 2));
    assert_eq!(fleet.examined(), 0, "a heartbeat");
    let pool = fleet::pool(home);
    let free_bytes = pool.free_bytes - VOLUME_BYTES;
    fleet.put(Told::Pools, Pool { free_bytes, ..pool.clone() });
    assert_eq!(fleet.examined(), 0, "space in a pool, for which nothing waits");
    fleet.put(Told::Pools, Pool { state: PoolState::Degraded, free_bytes, ..pool });
    assert_eq!(fleet.examined(), 300, "a pool with errors: the volumes that have a copy there");

    let mut report = fleet.planner.view().replicas[&fleet::node_name(home)].value.clone();
    report.replicas.iter_mut().for_each(|report| report.used_bytes += 1);
    fleet.put(Told::Replicas, report.clone());
    assert_eq!(fleet.examined(), 0, "space that replicas take");
    report.replicas.iter_mut().take(2).for_each(|report| report.state = ReplicaState::Missing);
    fleet.put(Told::Replicas, report);
    assert_eq!(fleet.examined(), 2, "two replicas that are missing");

    // A node falls silent. What it repaired is somebody else's now; what was stale there waits for it.
    let owner = |volume: u32| {
        let volume = &fleet.planner.view().volumes[&fleet::volume_name(volume)].value;
        volume.intent.owner.clone().filter(|_| volume.intent.attach.is_none())
    };
    let is_moved = |volume: &u32| {
        let (homes, stale) = (fleet::homes(*volume), fleet::stale_copy(*volume));
        let is_stale_there = stale.is_some_and(|stale| homes[stale] == home);
        owner(*volume).is_some_and(|owner| owner == fleet::node_name(home) || is_stale_there)
    };
    let moved = names((0..VOLUMES).filter(is_moved));
    for _ in 0..5 {
        fleet.beat_without(home);
        assert_eq!(fleet.pass(), []);
    }
    let examined = fleet.planner.examined();
    fleet.beat_without(home);
    let actions = fleet.pass();
    assert!(matches!(&actions[..], [Action::Node(node)] if node.value.name == fleet::node_name(home)));
    assert_eq!(fleet.planner.examined(), examined);
    let written = fleet.settle();
    assert_eq!(keys(&written), moved);
    let again = u64::try_from(moved.len()).unwrap();
    assert_eq!(fleet.planner.examined() - examined, 300 + again, "the volumes that name it");
}
