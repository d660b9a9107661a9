//! What no write of the manager may do to the copies of a volume.

use crate::{Config, Observed, Recovery, View, intent::MAINTENANCE};
use model::{MemberIntent, MemberState, Scheduling, VolumeRecord};
use std::collections::BTreeSet;

/// No node gets a second copy, unless it has said that the pool of the first is gone.
pub(super) fn keeps_copies_apart(view: &View, after: &model::Volume) {
    let before = &view.volumes[&after.name].value.intent.members;
    let members = &after.intent.members;
    for added in members.iter().filter(|member| !before.contains(member)) {
        let beside = |other: &&MemberIntent| other.node == added.node && *other != added;
        let count = members.iter().filter(beside).all(|other| view.is_gone(other.pool));
        assert!(count, "{added:?} is beside a copy that could count: {after:?}");
    }
}

/// A record is made again from the latest copy that anybody reports, above all of them, and to be confirmed.
pub(super) fn recovers_the_latest(view: &View, recovery: &Recovery) {
    let Recovery { volume, record, replaces } = recovery;
    let known = &view.volumes[volume].value;
    assert!(known.intent.recorded && !known.intent.deleting, "{known:?}");
    assert!(record.unconfirmed && record.owner.is_none() && !record.clean, "{record:?}");
    let there = view.record(record.volume);
    assert_eq!(there.map(|there| there.revision), *replaces);
    assert!(there.is_none_or(|there| there.value.unconfirmed), "{there:?}");
    let reports = view.replicas.values().flat_map(|replicas| &replicas.value.replicas);
    let copies = reports.filter(|report| report.volume == record.volume);
    let copies: Vec<&VolumeRecord> = copies.filter_map(|report| report.record.as_deref()).collect();
    assert!(copies.iter().any(|copy| copy.members == record.members), "{record:?}");
    for copy in copies {
        assert!(!copy.is_later_than(record), "{copy:?} is later than {record:?}");
        assert!(copy.epoch < record.epoch && copy.version < record.version, "{record:?}");
    }
}

/// Every copy is on a disk of the volume's class.
pub(super) fn is_of_its_class(view: &View, after: &model::Volume) {
    let Some(class) = after.spec.class else { return };
    let on = |member: &MemberIntent| view.pool(member.pool).and_then(|pool| pool.class);
    assert!(after.intent.members.iter().all(|member| on(member) == Some(class)), "{after:?}");
}

/// What tells these copies of the volume apart; a node that is in no zone is alone.
pub(super) fn domains<'a>(
    view: &'a View,
    volume: &model::Volume,
    members: &'a [MemberIntent],
) -> BTreeSet<(bool, &'a str)> {
    let domain = |member: &'a MemberIntent| {
        let value = view.domain(volume.spec.spread.as_deref(), &member.node);
        (value.is_some(), value.unwrap_or(&member.node))
    };
    members.iter().map(domain).collect()
}

/// A new copy is in a zone where no other one is that stays; those that are left when some are given up are in different
/// zones.
pub(super) fn keeps_zones_apart(view: &View, observed: &Observed, after: &model::Volume) {
    let before = &view.volumes[&after.name].value.intent.members;
    let members = &after.intent.members;
    let zone =
        |member: &MemberIntent| view.domain(after.spec.spread.as_deref(), &member.node).map(str::to_owned);
    let stays = |member: &MemberIntent| {
        let scheduling = view.scheduling(&member.node);
        let drained = scheduling == Scheduling::Drained;
        let patience = if drained { MAINTENANCE } else { Config::default().replace_after };
        let removed = view.record(after.uuid).is_some_and(|record| {
            let known = record.value.members.iter().find(|known| known.replica == member.replica);
            known.is_some_and(|known| known.state == MemberState::Removed)
        });
        let lost = removed || observed.is_lost(member, patience) || view.is_gone(member.pool);
        scheduling != Scheduling::Evacuated && !lost
    };
    // A volume whose intent was lost has what its record names.
    for added in members.iter().filter(|member| !before.contains(member) && !before.is_empty()) {
        let others = members.iter().filter(|other| *other != added && stays(other));
        let alone = zone(added).is_some() && !others.into_iter().any(|other| zone(other) == zone(added));
        assert!(alone, "{added:?} is not in a zone of its own: {after:?}");
    }
    let apart = domains(view, after, members).len() == members.len();
    let mut given_up = before.iter().filter(|member| !members.contains(member));
    let is_useless = |gone: &MemberIntent| members.iter().any(|other| other.node == gone.node);
    assert!(apart || given_up.all(is_useless), "not apart: {after:?}");
}

/// No new copy goes to a node that is cordoned, and no nexus that could be beside another copy.
pub(super) fn respects_operators(view: &View, after: &model::Volume) {
    let before = &view.volumes[&after.name].value.intent;
    let is_open = |node: &str| view.scheduling(node) == Scheduling::Enabled;
    for added in after.intent.members.iter().filter(|member| !before.members.contains(member)) {
        // A volume whose intent was lost has what its record names.
        assert!(
            is_open(&added.node) || before.members.is_empty(),
            "{added:?} is on a cordoned node: {after:?}"
        );
    }
    let moved = after.intent.owner.as_deref().filter(|_| after.intent.owner != before.owner);
    if let Some(owner) = moved.filter(|owner| !is_open(owner)) {
        let runs = view.record(after.uuid).and_then(|record| record.value.owner.as_ref());
        let elsewhere =
            after.intent.members.iter().any(|other| view.is_ready(&other.node) && is_open(&other.node));
        let stays = runs.is_some_and(|runs| runs.node == owner);
        assert!(stays || !elsewhere, "a nexus goes to the cordoned node {owner}: {after:?}");
    }
}

/// The last good copies are never given up: not fewer than there were, nor than are wanted.
pub(super) fn keeps_good_copies(
    record: Option<&VolumeRecord>,
    before: &model::Volume,
    after: &model::Volume,
) {
    let Some(record) = record else { return };
    let good = |volume: &model::Volume| {
        let in_sync = |member: &&MemberIntent| {
            let known = record.members.iter().find(|known| known.replica == member.replica);
            known.is_some_and(|known| known.state == MemberState::InSync)
        };
        volume.intent.members.iter().filter(in_sync).count()
    };
    let copies = usize::try_from(before.spec.copies).unwrap();
    assert!(good(after) >= good(before).min(copies), "gives up a good copy: {before:?} {after:?} {record:?}");
}
