//! How it is about a volume's copies, so coarse that a change is worth telling a person who did not ask.
//!
//! 1. It is what `explain` says, without what a user does on purpose: an attachment that is on its way is no trouble.

use super::{Facts, Surroundings, VolumeState, current};
use crate::{MemberState, Volume, VolumeRecord, VolumeStatus};

/// How it is about a volume's copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// On its way in: nothing can be said yet.
    Making,
    /// As many copies in sync as are wanted, on nodes and disks that are there.
    Whole,
    /// Usable, with fewer.
    Degraded {
        /// How many are in sync and there.
        available: usize,
    },
    /// The same, or not made yet, and there is no place for a copy that is missing.
    NoPlace {
        /// How many are in sync and there.
        available: usize,
    },
    /// I/O waits, or it could not be opened.
    Unavailable,
    /// On its way out.
    Deleting,
}

/// Says how it is about the volume's copies and, if that is a trouble, why.
pub fn health(
    volume: &Volume,
    record: Option<&VolumeRecord>,
    status: Option<&VolumeStatus>,
    around: &Surroundings<'_>,
) -> (Health, Option<String>) {
    let facts = Facts { volume, record, status: current(record, status), around };
    if volume.intent.deleting {
        return (Health::Deleting, None);
    }
    let stalled = |(state, _): &(VolumeState, _)| *state == VolumeState::Stalled;
    if let Some((_, why)) = facts.pending() {
        return match (volume.intent.recorded, &volume.message) {
            (true, _) => (Health::Unavailable, why),
            (false, Some(_)) => (Health::NoPlace { available: 0 }, why),
            (false, None) => (Health::Making, None),
        };
    }
    if let Some((_, why)) = facts.unconfirmed() {
        return (Health::Unavailable, why);
    }
    if let Some((_, why)) = facts.attachment().filter(stalled) {
        return (Health::Unavailable, why);
    }
    if facts.creating().is_some() {
        return (Health::Making, None);
    }
    match facts.degraded() {
        None => (Health::Whole, None),
        Some((VolumeState::Stalled, why)) => (Health::Unavailable, why),
        Some((_, why)) => {
            let available = facts.available();
            let no_place = volume.message.is_some();
            (if no_place { Health::NoPlace { available } } else { Health::Degraded { available } }, why)
        }
    }
}

impl Facts<'_> {
    /// How many copies are in sync and there.
    pub(super) fn available(&self) -> usize {
        let members = self.record.map_or(&[][..], |record| &record.members);
        let in_sync = members.iter().filter(|member| member.state == MemberState::InSync);
        in_sync.filter(|member| self.around.trouble(member).is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Generation, NexusState, NodeState, ReplicaState,
        explain::tests::{Scene, attached, detach},
    };

    fn check(what: &str, change: impl FnOnce(&mut Scene), wanted: Health, says: Option<&str>) {
        let mut scene = attached();
        change(&mut scene);
        let Scene { volume, record, status, .. } = &scene;
        let (got, why) = health(volume, record.as_ref(), status.as_ref(), &scene.around());
        assert_eq!(got, wanted, "{what}: {why:?}");
        assert_eq!(why.is_some(), says.is_some(), "{what}: {why:?}");
        assert!(why.unwrap_or_default().contains(says.unwrap_or_default()), "{what}");
    }

    #[test]
    fn what_a_user_does_is_no_trouble() {
        check("attached", |_| {}, Health::Whole, None);
        check("detached", detach, Health::Whole, None);
        check("attaching", |scene| scene.status = None, Health::Whole, None);
        check("on its way out", |scene| scene.volume.intent.deleting = true, Health::Deleting, None);
        let unplaced = |scene: &mut Scene| {
            (scene.record, scene.status, scene.volume.intent.recorded) = (None, None, false);
        };
        check("just made", unplaced, Health::Making, None);
    }

    #[test]
    fn a_trouble_says_why() {
        let stale = |scene: &mut Scene| {
            scene.record.as_mut().unwrap().members[2].state = MemberState::Stale { since: Generation::ZERO };
        };
        check("a copy is stale", stale, Health::Degraded { available: 2 }, Some("copy on n3 is Stale"));
        check(
            "and stays alone",
            |scene| {
                stale(scene);
                scene.nodes[1].state = NodeState::NotReady;
                scene.volume.message = Some("no place for a new copy: none".into());
            },
            Health::NoPlace { available: 1 },
            Some("node n2 is NotReady, copy on n3 is Stale, no place for a new copy"),
        );
        check(
            "its owner is away",
            |scene| scene.nodes[0].state = NodeState::NotReady,
            Health::Unavailable,
            Some("attach the volume to another node"),
        );
        check(
            "closed, and no copy is there",
            |scene| {
                detach(scene);
                (1..=3).for_each(|node| scene.report(node, ReplicaState::Failed));
            },
            Health::Unavailable,
            Some("no copy that is in sync can be reached"),
        );
        let stalled = |scene: &mut Scene| scene.status.as_mut().unwrap().state = NexusState::Stalled;
        check("stalled", stalled, Health::Unavailable, Some("can be reached"));
        let copied = |scene: &mut Scene| {
            let record = scene.record.take().unwrap();
            scene.record = Some(record.recovered(9, 9));
        };
        check(
            "its record is from a copy",
            copied,
            Health::Unavailable,
            Some("all its members have answered"),
        );
        check("no record", |scene| scene.record = None, Health::Unavailable, Some("record is missing"));
        let unplaced = |scene: &mut Scene| {
            (scene.record, scene.status, scene.volume.intent.recorded) = (None, None, false);
            scene.volume.message = Some("no place: 2 nodes are too few".into());
        };
        check("no place at all", unplaced, Health::NoPlace { available: 0 }, Some("2 nodes are too few"));
    }
}
