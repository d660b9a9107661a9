//! How a world of `convergence` ends: all is well from then on, and every volume has to become what its user wants.

use super::{Step, World, harm::domains};
use crate::testing::GIB;
use model::{MemberState, Scheduling};
use std::collections::BTreeSet;
use uuid::Uuid;

impl World {
    /// All is well from now on: the manager makes it so, and comes to rest.
    pub(super) fn ends_well(&mut self, nodes: u128) {
        self.up = (1..=nodes).collect();
        (1..=nodes).for_each(|node| self.restore_disks(node));
        (1..=nodes).for_each(|node| self.set_free(node, 4 * GIB));
        (0..10).for_each(|_| {
            self.second();
        });
        self.has_what_is_kept();
        self.restore_records();
        let mut quiet = 0;
        for _ in 0..400 {
            quiet = if self.second() { 0 } else { quiet + 1 };
            // Longer than a lease, and long enough for a copy to be given up.
            if quiet > 70 {
                break;
            }
        }
        assert!(quiet > 70, "the manager never comes to rest");
        self.is_as_wished();
        self.forgets_what_is_gone();
    }

    /// A record of which there is a copy is back without anybody's help.
    fn has_what_is_kept(&self) {
        for (node, replica) in &self.replicas {
            let Some(copy) = self.copies.get(replica) else { continue };
            let mut volumes = self.scene.view.volumes.values().map(|volume| &volume.value);
            let volume = volumes.find(|volume| volume.uuid == copy.volume && !volume.intent.deleting);
            let is_back = self.scene.view.record(copy.volume).is_some();
            assert!(volume.is_none() || is_back, "n{node} has a copy of the record: {volume:?}");
        }
    }

    /// Whoever opens a volume drops from its record what was destroyed: it has its copies, and nothing else.
    fn forgets_what_is_gone(&mut self) {
        (0..3).for_each(|volume| self.step(&Step::Attach(volume, 1)));
        self.step(&Step::Run(10));
        let recorded = |volume: &&model::Volume| self.recorded.contains(&volume.uuid);
        for volume in self.scene.view.volumes.values().map(|volume| &volume.value).filter(recorded) {
            let record = &self.scene.view.record(volume.uuid).unwrap().value;
            let wished = volume.intent.members.iter().map(|member| member.replica);
            let named = record.members.iter().map(|member| member.replica);
            assert_eq!(named.collect::<BTreeSet<_>>(), wished.collect::<BTreeSet<_>>(), "{record:?}");
            assert!(volume.intent.forget.is_empty(), "the wish has gone, too: {volume:?}");
        }
    }

    fn is_as_wished(&self) {
        for volume in self.scene.view.volumes.values().map(|volume| &volume.value) {
            assert!(!volume.intent.deleting, "{} is never deleted", volume.name);
            let copies = usize::try_from(volume.spec.copies).unwrap();
            if !self.recorded.contains(&volume.uuid) {
                assert!(volume.message.is_some() && copies > self.places(volume), "{volume:?}");
                continue;
            }
            let record = &self.scene.view.record(volume.uuid).unwrap().value;
            let wanted: BTreeSet<Uuid> = volume.intent.members.iter().map(|member| member.replica).collect();
            let got: BTreeSet<Uuid> = record.members.iter().map(|member| member.replica).collect();
            let nodes: BTreeSet<&str> =
                volume.intent.members.iter().map(|member| member.node.as_str()).collect();
            assert!(wanted.is_subset(&got), "{volume:?} {record:?}");
            let apart = domains(&self.scene.view, volume, &volume.intent.members).len() == copies;
            assert!(wanted.len() == copies || !apart && wanted.len() > copies, "{volume:?}");
            assert!(apart || volume.spec.spread.is_some() && volume.message.is_some(), "{volume:?}");
            assert_eq!(nodes.len(), wanted.len(), "two copies on one node: {volume:?}");
            for member in &record.members {
                let state =
                    if wanted.contains(&member.replica) { MemberState::InSync } else { MemberState::Removed };
                assert_eq!(member.state, state, "{record:?}");
            }
            assert_eq!(record.size_bytes, volume.spec.size_bytes);
            let owner = record.owner.as_ref().map(|owner| &owner.node);
            let attach = volume.intent.attach.as_ref().map(|attach| &attach.node);
            let is_read = !volume.intent.readers.is_empty();
            // Readers find a nexus, wherever it is; nobody else has one who has no device.
            assert!(if is_read { owner.is_some() } else { owner == attach }, "{volume:?} {record:?}");
            assert!(record.clean || owner.is_some());
            self.has_left(volume, &nodes);
        }
    }

    /// A node that is evacuated has no copy that could be elsewhere, no zone has two if there is another one, and the
    /// volume says why it is so at all.
    fn has_left(&self, volume: &model::Volume, nodes: &BTreeSet<&str>) {
        let view = &self.scene.view;
        let leaves = |node: &str| view.scheduling(node) == Scheduling::Evacuated;
        let (go, stay): (Vec<_>, Vec<_>) =
            volume.intent.members.iter().cloned().partition(|member| leaves(&member.node));
        let taken = domains(view, volume, &stay);
        let missing = !go.is_empty() || u32::try_from(taken.len()) != Ok(volume.spec.copies);
        assert_eq!(volume.message.is_some(), missing, "{volume:?}");
        let spread = volume.spec.spread.as_deref();
        let is_place = |node: &&String| {
            let domain = view.domain(spread, node);
            view.scheduling(node) == Scheduling::Enabled
                && domain.is_some_and(|domain| !taken.contains(&(true, domain)))
        };
        let elsewhere = view.nodes.keys().filter(|node| !nodes.contains(node.as_str())).any(|n| is_place(&n));
        assert!(!(missing && elsewhere), "a copy does not leave: {volume:?}");
    }

    /// How many copies of the volume can be apart on nodes that take something new.
    fn places(&self, volume: &model::Volume) -> usize {
        let view = &self.scene.view;
        let open = view.nodes.keys().filter(|node| view.scheduling(node) == Scheduling::Enabled);
        let spread = volume.spec.spread.as_deref();
        open.filter_map(|node| view.domain(spread, node)).collect::<BTreeSet<_>>().len()
    }
}
