//! Who is there, by this observer's own clock: heartbeats carry no time, so nobody's clock has to be right.
//!
//! 1. Only what was watched counts: after a gap in the observer's own passes every absence begins anew. A manager that
//!    was paused, or has just started, never declares anybody lost for the time it did not look.
//! 2. All of this is liveness. What keeps data safe when it is wrong are epochs (I3) and leases between engines (I9).

use crate::View;
use model::{MemberIntent, Node, NodeState, PoolState, ReplicaState};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use uuid::Uuid;

/// What must be there for a copy to be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Node(String),
    Pool(Uuid),
    Replica(Uuid),
}

/// What changes when an engine renews its lease, or starts again.
type Beat = (u64, u32, Uuid);

/// How long a nexus that nothing wishes for any more may take to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// A nexus that nothing wishes for any more.
#[derive(Clone, Copy, Debug)]
struct Closing {
    epoch: u64,
    since: Duration,
    /// It took too long, and is held to be dead until another epoch begins: its engine has started again and knows
    /// nothing of it, or cannot close it.
    overdue: bool,
}

/// What one observer has seen so far. Times are since any fixed moment, by a clock that never goes back.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    now: Duration,
    beats: BTreeMap<String, (Beat, Duration)>,
    absent: BTreeMap<Subject, Duration>,
    closing: BTreeMap<Uuid, Closing>,
}

impl Observed {
    /// Looks at the view at `now`. A pass later than half a `lease` after the one before is a gap (invariant 1).
    pub fn observe(&mut self, view: &View, now: Duration, lease: Duration) {
        let gap = now.saturating_sub(self.now) > lease / 2;
        self.now = now;
        let mut beats = BTreeMap::new();
        for node in view.nodes.values().map(|node| &node.value) {
            let beat = beat_of(node);
            let known = self.beats.get(&node.name).filter(|(known, _)| *known == beat && !gap);
            beats.insert(node.name.clone(), (beat, known.map_or(now, |(_, since)| *since)));
        }
        self.beats = beats;
        let absent = absent_in(view).into_iter().map(|subject| {
            let since = self.absent.get(&subject).filter(|_| !gap).copied();
            (subject, since.unwrap_or(now))
        });
        self.absent = absent.collect();
        self.observe_closing(view, gap);
    }

    fn observe_closing(&mut self, view: &View, gap: bool) {
        let mut closing = BTreeMap::new();
        for volume in view.volumes.values().map(|volume| &volume.value) {
            let record = view.record(volume.uuid).map(|record| &record.value);
            let Some(record) = record.filter(|record| record.owner.is_some()) else { continue };
            let epoch = record.epoch;
            let known = self.closing.get(&volume.uuid).filter(|known| known.epoch == epoch);
            let overdue = known.is_some_and(|known| known.overdue);
            if volume.intent.owner.is_some() && !overdue {
                continue;
            }
            let since = known.filter(|_| !gap).map_or(self.now, |known| known.since);
            let overdue = overdue || self.now.saturating_sub(since) > CLOSE_PATIENCE;
            closing.insert(volume.uuid, Closing { epoch, since, overdue });
        }
        self.closing = closing;
    }

    /// Whether the nexus of this epoch should have closed long ago.
    pub(crate) fn is_overdue(&self, volume: Uuid, epoch: u64) -> bool {
        self.closing.get(&volume).is_some_and(|closing| closing.epoch == epoch && closing.overdue)
    }

    /// Whether the node is `Ready` in the view and has not renewed its heartbeat for longer than the lease.
    pub(crate) fn has_expired(&self, node: &Node, lease: Duration) -> bool {
        let seen = self.beats.get(&node.name).filter(|(beat, _)| *beat == beat_of(node));
        node.state == NodeState::Ready
            && seen.is_some_and(|(_, since)| self.now.saturating_sub(*since) > lease)
    }

    /// Whether the node, the pool or the replica of this member has been absent for so long.
    pub(crate) fn is_lost(&self, member: &MemberIntent, after: Duration) -> bool {
        [Subject::Node(member.node.clone()), Subject::Pool(member.pool), Subject::Replica(member.replica)]
            .iter()
            .filter_map(|subject| self.absent.get(subject))
            .any(|since| self.now.saturating_sub(*since) >= after)
    }
}

fn beat_of(node: &Node) -> Beat {
    (node.heartbeat, node.pid, node.boot_id)
}

fn absent_in(view: &View) -> BTreeSet<Subject> {
    let nodes = view.nodes.values().filter(|node| node.value.state == NodeState::NotReady);
    let away = |state| matches!(state, PoolState::Failed | PoolState::Gone);
    let pools = view.pools.values().filter(|pool| away(pool.value.state));
    let replicas = view.replicas.values().flat_map(|node| &node.value.replicas);
    let broken = |state| matches!(state, ReplicaState::Missing | ReplicaState::Failed);
    let replicas = replicas.filter(|report| broken(report.state));
    nodes
        .map(|node| Subject::Node(node.value.name.clone()))
        .chain(pools.map(|pool| Subject::Pool(pool.value.uuid)))
        .chain(replicas.map(|report| Subject::Replica(report.replica)))
        .collect()
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
