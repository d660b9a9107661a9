//! Who is there, by this observer's own clock: heartbeats carry no time, so nobody's clock has to be right.
//!
//! 1. Only what was watched counts: after a gap in the observer's own passes every absence begins anew. A manager that
//!    was paused, or has just started, never declares anybody lost for the time it did not look.
//! 2. All of this is liveness. What keeps data safe when it is wrong are epochs (I3) and leases between engines (I9).
//! 3. What is known of one object depends on that object alone, so looking at what has changed is as good as looking at
//!    everything.

use crate::{View, since::Since};
use model::{MemberIntent, Node, NodeReplicas, NodeState, PoolState, ReplicaState, Volume};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use uuid::Uuid;

/// What changes when an engine renews its lease, or starts again.
type Beat = (u64, u32, Uuid);

/// How long a nexus that nothing wishes for any more may take to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// A nexus that nothing wishes for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Closing {
    epoch: u64,
    /// It took too long, and is held to be dead until another epoch begins: its engine has started again and knows
    /// nothing of it, or cannot close it.
    overdue: bool,
}

/// What one observer has seen so far. Times are since any fixed moment, by a clock that never goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The time of the pass before this one.
    before: Duration,
    now: Duration,
    /// By node.
    beats: BTreeMap<String, Beat>,
    /// Since when each node's heartbeat is the one in `beats`.
    beating: Since<String>,
    // What is away, of what must be there for a copy to be there.
    nodes: Since<String>,
    pools: Since<Uuid>,
    replicas: Since<Uuid>,
    /// What each node says of replicas that are away.
    broken: BTreeMap<String, BTreeSet<Uuid>>,
    /// By volume.
    closing: BTreeMap<Uuid, Closing>,
    closing_since: Since<Uuid>,
}

impl Observed {
    /// Looks at the whole view at `now`. A pass later than half a `lease` after the one before is a gap (invariant 1).
    pub fn observe(&mut self, view: &View, now: Duration, lease: Duration) {
        if self.begin(now, lease) {
            self.forget();
        }
        self.observe_all(view);
    }

    /// Begins a pass; whether it is the first after a gap, and so everything has to be looked at.
    pub(crate) fn begin(&mut self, now: Duration, lease: Duration) -> bool {
        self.before = self.now;
        self.now = now;
        now.saturating_sub(self.before) > lease / 2
    }

    /// Lets every absence begin anew. A nexus that is held to be dead stays so.
    pub(crate) fn forget(&mut self) {
        let closing = std::mem::take(&mut self.closing);
        *self = Self { before: self.before, now: self.now, closing, ..Self::default() };
    }

    /// Looks at everything, within a pass that has begun.
    pub(crate) fn observe_all(&mut self, view: &View) {
        let nodes: Vec<String> = self.beats.keys().chain(view.nodes.keys()).cloned().collect();
        for name in &nodes {
            self.observe_node(name, view);
        }
        let pools = view.pools.values().map(|pool| pool.value.uuid);
        let pools: Vec<Uuid> = self.pools.all().copied().chain(pools).collect();
        for pool in pools {
            self.observe_pool(pool, view);
        }
        let reports: Vec<String> = self.broken.keys().chain(view.replicas.keys()).cloned().collect();
        for node in &reports {
            self.observe_replicas(node, view);
        }
        let volumes: BTreeMap<Uuid, &Volume> =
            view.volumes.values().map(|volume| (volume.value.uuid, &volume.value)).collect();
        let closing: Vec<Uuid> = self.closing.keys().chain(volumes.keys()).copied().collect();
        for uuid in closing {
            self.observe_closing(uuid, volumes.get(&uuid).copied(), view);
        }
    }

    pub(crate) fn observe_node(&mut self, name: &str, view: &View) {
        let node = view.nodes.get(name).map(|node| &node.value);
        let beat = node.map(beat_of);
        if self.beats.get(name).copied() != beat {
            self.beating.end(name);
        }
        match beat {
            Some(beat) => {
                self.beats.insert(name.to_owned(), beat);
                self.beating.begin(name.to_owned(), self.now);
            }
            None => drop(self.beats.remove(name)),
        }
        match node.map(|node| node.state) {
            Some(NodeState::NotReady) => self.nodes.begin(name.to_owned(), self.now),
            Some(NodeState::Ready) | None => self.nodes.end(name),
        }
    }

    pub(crate) fn observe_pool(&mut self, uuid: Uuid, view: &View) {
        match view.pool(uuid).map(|pool| pool.state) {
            Some(PoolState::Failed | PoolState::Gone) => self.pools.begin(uuid, self.now),
            Some(PoolState::Online | PoolState::Degraded) | None => self.pools.end(&uuid),
        }
    }

    pub(crate) fn observe_replicas(&mut self, node: &str, view: &View) {
        let broken = view.replicas.get(node).map(|report| broken_in(&report.value)).unwrap_or_default();
        for replica in &broken {
            self.replicas.begin(*replica, self.now);
        }
        let before = self.broken.remove(node).unwrap_or_default();
        if !broken.is_empty() {
            self.broken.insert(node.to_owned(), broken);
        }
        for replica in before {
            if !self.broken.values().any(|broken| broken.contains(&replica)) {
                self.replicas.end(&replica);
            }
        }
    }

    /// Looks whether the volume's nexus should close; `volume` is none if there is no such volume any more.
    pub(crate) fn observe_closing(&mut self, uuid: Uuid, volume: Option<&Volume>, view: &View) {
        let record = view.record(uuid).map(|record| &record.value);
        let record = record.filter(|record| record.owner.is_some());
        let known = self.closing.remove(&uuid).filter(|known| record.is_some_and(|r| r.epoch == known.epoch));
        if known.is_none() {
            self.closing_since.end(&uuid);
        }
        let (Some(volume), Some(record)) = (volume, record) else {
            self.closing_since.end(&uuid);
            return;
        };
        let overdue = known.is_some_and(|known| known.overdue);
        if volume.intent.owner.is_some() && !overdue {
            self.closing_since.end(&uuid);
            return;
        }
        self.closing_since.begin(uuid, self.now);
        let overdue = overdue || self.is_longer(self.closing_since.get(&uuid), CLOSE_PATIENCE);
        self.closing.insert(uuid, Closing { epoch: record.epoch, overdue });
    }

    /// Whether the nexus of this epoch should have closed long ago.
    pub(crate) fn is_overdue(&self, volume: Uuid, epoch: u64) -> bool {
        self.closing.get(&volume).is_some_and(|closing| closing.epoch == epoch && closing.overdue)
    }

    /// Whether the node is `Ready` in the view and has not renewed its heartbeat for longer than the lease.
    pub(crate) fn has_expired(&self, node: &Node, lease: Duration) -> bool {
        let seen = self.beats.get(&node.name) == Some(&beat_of(node));
        node.state == NodeState::Ready && seen && self.is_longer(self.beating.get(&node.name), lease)
    }

    /// Whether the node, the pool or the replica of this member has been absent for so long.
    pub(crate) fn is_lost(&self, member: &MemberIntent, after: Duration) -> bool {
        let since =
            [self.nodes.get(&member.node), self.pools.get(&member.pool), self.replicas.get(&member.replica)];
        since.into_iter().flatten().any(|since| self.now.saturating_sub(since) >= after)
    }

    fn is_longer(&self, since: Option<Duration>, than: Duration) -> bool {
        since.is_some_and(|since| self.now.saturating_sub(since) > than)
    }

    // What time alone has changed since the pass before.

    /// The nodes whose heartbeat is as old as the lease: the only ones that can have expired.
    pub(crate) fn silent_nodes(&self, lease: Duration) -> impl Iterator<Item = &String> {
        self.beating.older(lease, self.now)
    }

    /// The nodes that have become absent for so long.
    pub(crate) fn lost_nodes(&self, after: Duration) -> impl Iterator<Item = &String> {
        self.nodes.reached(after, self.before, self.now)
    }

    /// The same of pools.
    pub(crate) fn lost_pools(&self, after: Duration) -> impl Iterator<Item = &Uuid> {
        self.pools.reached(after, self.before, self.now)
    }

    /// The same of replicas.
    pub(crate) fn lost_replicas(&self, after: Duration) -> impl Iterator<Item = &Uuid> {
        self.replicas.reached(after, self.before, self.now)
    }

    /// The volumes whose nexus has become overdue.
    pub(crate) fn overdue_volumes(&self) -> impl Iterator<Item = &Uuid> {
        // Longer than its patience.
        self.closing_since.reached(CLOSE_PATIENCE + Duration::from_nanos(1), self.before, self.now)
    }
}

fn beat_of(node: &Node) -> Beat {
    (node.heartbeat, node.pid, node.boot_id)
}

fn broken_in(report: &NodeReplicas) -> BTreeSet<Uuid> {
    let broken = |state| matches!(state, ReplicaState::Missing | ReplicaState::Failed);
    report.replicas.iter().filter(|report| broken(report.state)).map(|report| report.replica).collect()
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scene;
    use model::{MemberState, NexusState};

    const LEASE: Duration = Duration::from_secs(5);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_ends_only_while_it_is_watched() {
        let mut scene = Scene::with_nodes(1);
        let mut observed = Observed::default();
        let expired = |observed: &Observed, scene: &mut Scene| observed.has_expired(scene.node_mut(1), LEASE);
        observed.observe(&scene.view, seconds(100), LEASE);
        for now in 101..=105 {
            observed.observe(&scene.view, seconds(now), LEASE);
            assert!(!expired(&observed, &mut scene), "{now}");
        }
        observed.observe(&scene.view, seconds(106), LEASE);
        assert!(expired(&observed, &mut scene));

        scene.node_mut(1).heartbeat += 1;
        assert!(!expired(&observed, &mut scene), "a beat that was not observed yet");
        observed.observe(&scene.view, seconds(107), LEASE);
        observed.observe(&scene.view, seconds(150), LEASE);
        assert!(!expired(&observed, &mut scene), "the observer was away");
        for now in 151..=156 {
            observed.observe(&scene.view, seconds(now), LEASE);
        }
        assert!(expired(&observed, &mut scene));
        scene.node_mut(1).state = NodeState::NotReady;
        assert!(!expired(&observed, &mut scene), "known already");
    }

    #[test]
    fn a_nexus_that_does_not_close_is_overdue_until_the_next_epoch() {
        let mut scene = Scene::with_nodes(3);
        scene.recorded("a", 3, &[1, 2, 3], MemberState::InSync);
        scene.nexus("a", "n1", NexusState::Serving);
        let volume = scene.volume_mut("a").uuid;
        let mut observed = Observed::default();
        let mut watch = |scene: &Scene, seconds_long: u64| {
            for _ in 0..seconds_long {
                observed.observe(&scene.view, observed.now + seconds(1), LEASE);
            }
            observed.is_overdue(volume, 1)
        };
        assert!(!watch(&scene, 9));
        scene.volume_mut("a").intent.owner = Some("n1".into());
        assert!(!watch(&scene, 20), "it is wished for");
        scene.volume_mut("a").intent.owner = None;
        assert!(!watch(&scene, 9));
        assert!(watch(&scene, 3));
        scene.volume_mut("a").intent.owner = Some("n1".into());
        assert!(watch(&scene, 1), "until it is opened again");
        scene.nexus("a", "n1", NexusState::Serving);
        assert!(!watch(&scene, 1));
    }

    #[test]
    fn a_member_is_lost_with_its_node_its_pool_or_its_replica() {
        let mut scene = Scene::with_nodes(3);
        let members = scene.volume("a", 3, &[1, 2, 3]).intent.members.clone();
        scene.node_mut(1).state = NodeState::NotReady;
        scene.pool_mut(2).state = PoolState::Gone;
        scene.report(3, members[2].replica, ReplicaState::Missing);
        let mut observed = Observed::default();
        for now in 100..=160 {
            observed.observe(&scene.view, seconds(now), LEASE);
            let lost: Vec<bool> =
                members.iter().map(|member| observed.is_lost(member, seconds(60))).collect();
            assert_eq!(lost, [now == 160; 3], "{now}");
        }
        scene.node_mut(1).state = NodeState::Ready;
        observed.observe(&scene.view, seconds(161), LEASE);
        assert!(!observed.is_lost(&members[0], seconds(60)), "it is back");
    }
}
