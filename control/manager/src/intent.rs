//! Where a volume should live: its copies, and the node of its nexus. Pure; all of it wishes.
//!
//! 1. A copy is added before another is given up: what is no longer wanted leaves the intent only when as many copies
//!    as the user wants are `InSync` and there, each on a node of its own. So the last good copy is never given up.
//! 2. An attached volume's nexus stays where the volume is attached: whoever uses the device there decides. One that is
//!    attached nowhere runs a nexus only while there is work for it, on any node that has a good copy; readers are work,
//!    and of equal nodes one of theirs is the better. It leaves a node that is drained, in order: it is closed there
//!    before it is opened elsewhere.
//! 3. A volume whose intent was lost, because somebody deleted its object and made it again, has the copies that its
//!    record names: none is made anew for that, and none is given up.
//! 4. A copy on a node that is evacuated leaves by invariant 1: another is made first. While there is no place for that
//!    it stays. A copy on a node that is drained is awaited for longer than others (docs/decisions/0018).
//! 5. Copies that are kept apart by a label count once for each value of it. So one that is lost is replaced in its own
//!    zone, too, and those that came to share a zone are parted, by invariant 1 (docs/decisions/0024).
//! 6. A replica is to be forgotten only if the record says `Removed`, nobody wishes it, and its node, which is there, has
//!    said that its pool, which is open, does not hold it. What is so is so for ever: such a wish stays until the record
//!    does not name the replica (docs/decisions/0028).
//! 7. A volume of which a node reports a replica has had a record, for no replica is made without. If there is none now,
//!    it was lost, and nothing is placed (docs/decisions/0031).
//! 8. A record that is to be confirmed may be from before, and what was wished may be from before that: until it is
//!    confirmed the copies that it names are wished, and nothing of them is replaced, given up or forgotten (I12).

use crate::{Copies, NoPlace, View, index::holders, place, plan::Planning, recovery::copies};
use model::{
    MemberIntent, MemberRecord, MemberState, NexusState, RECORD_MISSING, Rebuild, Scheduling, Volume,
    VolumeIntent, VolumeRecord, topology::domains_text,
};
use std::{collections::BTreeSet, time::Duration};
use uuid::Uuid;

/// How long a copy on a node that is drained may be away before it is replaced: longer than its maintenance takes.
pub(crate) const MAINTENANCE: Duration = Duration::from_secs(60 * 60);

/// The volume with the intent that it should have.
pub(crate) fn wish(planning: &mut Planning<'_>, volume: &Volume) -> Volume {
    let mut wished = volume.clone();
    let view = planning.view;
    let record = view.record(volume.uuid).map(|record| &record.value);
    let holders = if record.is_none() { holders(planning.reported, volume.uuid) } else { BTreeSet::new() };
    // Invariant 7.
    wished.intent.recorded |= record.is_some() || !holders.is_empty();
    if record.is_none() && wished.intent.recorded {
        // Nothing that is wished now could make it better.
        let kept = copies(view, planning.reported, volume).map(|(node, _)| node).collect();
        wished.message = Some(record_missing(&holders, &kept));
        return wished;
    }
    let unconfirmed = record.is_some_and(|record| record.unconfirmed);
    if let Some(record) = record.filter(|_| unconfirmed || wished.intent.members.is_empty()) {
        wished.intent.members = named(record);
    }
    if unconfirmed {
        // Invariant 8.
        (wished.message, wished.intent.forget) = (None, Vec::new());
    } else {
        wished.message = members(planning, &mut wished, record);
        let forgotten = record.map(|record| forgotten(view, &wished.intent, record));
        wished.intent.forget = forgotten.unwrap_or_default();
    }
    if wished.intent.attach.is_none() {
        let owner = record.and_then(|record| owner(planning, &wished, record));
        if let (Some(owner), true) = (&owner, owner != volume.intent.owner) {
            *planning.load.entry(owner.clone()).or_default() += 1;
        }
        wished.intent.owner = owner;
    }
    wished
}

/// What is said of a volume whose record is lost: of which nodes have told of a replica of it, and which of its record.
fn record_missing(holders: &BTreeSet<&str>, kept: &BTreeSet<&str>) -> String {
    let listed = |nodes: &BTreeSet<&str>| nodes.iter().copied().collect::<Vec<_>>().join(", ");
    if holders.is_empty() {
        return format!("{RECORD_MISSING}; no node reports a copy of it");
    }
    let found = match kept.len() {
        0 => String::new(),
        _ => format!(", and the record is made again from what is kept of it on {}", listed(kept)),
    };
    format!("{RECORD_MISSING}; copies are kept on {}{found}", listed(holders))
}

/// The copies that a record names, as wishes (invariant 3).
fn named(record: &VolumeRecord) -> Vec<MemberIntent> {
    let wanted = record.members.iter().filter(|member| member.state != MemberState::Removed);
    let wish = |member: &MemberRecord| MemberIntent {
        replica: member.replica,
        pool: member.pool,
        node: member.node.clone(),
    };
    wanted.map(wish).collect()
}

/// The replicas that the record need not name any more, in order (invariant 6).
fn forgotten(view: &View, intent: &VolumeIntent, record: &VolumeRecord) -> Vec<Uuid> {
    let is_wished = |replica: Uuid| intent.members.iter().any(|member| member.replica == replica);
    let goes = |member: &&MemberRecord| {
        member.state == MemberState::Removed
            && !is_wished(member.replica)
            && (intent.forget.contains(&member.replica) || view.is_destroyed_for_good(member))
    };
    let mut replicas: Vec<Uuid> = record.members.iter().filter(goes).map(|member| member.replica).collect();
    replicas.sort_unstable();
    replicas
}

/// Adds copies that are needed and gives up those that are not; answers what is in the way.
fn members(
    planning: &mut Planning<'_>,
    volume: &mut Volume,
    record: Option<&VolumeRecord>,
) -> Option<String> {
    let copies = usize::try_from(volume.spec.copies).unwrap_or(usize::MAX);
    let Some(record) = record else {
        // It gets all of its places or none.
        let missing = copies.saturating_sub(volume.intent.members.len());
        let placed = place_most(planning, volume, (missing, missing), &[]);
        return placed.err().map(|no_place| unplaced(&why(&[], &[], None), &no_place));
    };
    let state = |member: &MemberIntent| state_of(record, member);
    let lost = |member: &MemberIntent| {
        state(member) == Some(MemberState::Removed)
            || planning.observed.is_lost(member, patience(planning, &member.node))
    };
    // Invariant 4.
    let leaving = |member: &MemberIntent| planning.view.scheduling(&member.node) == Scheduling::Evacuated;
    let members = &volume.intent.members;
    // Invariant 1. A copy that is away for a moment is no reason to give up one that is there.
    let there = |member: &MemberIntent| !planning.observed.is_lost(member, Duration::ZERO);
    let good = members.iter().filter(|member| {
        let in_sync = state(member) == Some(MemberState::InSync);
        in_sync && planning.view.is_ready(&member.node) && there(member)
    });
    let mut good: Vec<MemberIntent> = good.cloned().collect();
    // The copy beside the nexus is the one that reads prefer.
    good.sort_by_key(|member| (leaving(member), Some(&member.node) != volume.intent.owner.as_ref()));
    let mut nodes = BTreeSet::new();
    good.retain(|member| nodes.insert(member.node.clone()));
    // Invariant 5.
    let spread = volume.spec.spread.clone();
    let domain = |member: &MemberIntent| domain_of(planning.view, spread.as_deref(), &member.node);
    let mut domains = BTreeSet::new();
    let mut kept = good.clone();
    kept.retain(|member| domains.insert(domain(member)));
    // One that is still being made is why one that leaves is not given up yet: it is waited for, if it could count.
    let stays_in = |place: &Domain| kept.iter().any(|good| domain(good) == *place && !leaving(good));
    let awaited =
        members.iter().any(|member| !stays_in(&domain(member)) && !lost(member) && !leaving(member));
    let enough = kept.iter().filter(|member| !(awaited && leaving(member))).count() >= copies;
    if members.len() > copies && enough {
        kept.truncate(copies);
        volume.intent.members = kept;
        return None;
    }
    // Where there are too few zones for that, one beside a good copy on its node is of no use all the same.
    let useless = |member: &MemberIntent| !good.contains(member) && nodes.contains(&member.node);
    if spread.is_some() && good.len() >= copies && members.iter().any(useless) {
        volume.intent.members.retain(|member| !useless(member));
        return volume.message.clone();
    }
    let on_nodes = |is_so: &dyn Fn(&MemberIntent) -> bool| -> Vec<&str> {
        members.iter().filter(|member| is_so(member)).map(|member| member.node.as_str()).collect()
    };
    let lost_on = on_nodes(&lost);
    let left_on = on_nodes(&|member| leaving(member) && !lost(member));
    let why = why(&lost_on, &left_on, spread.as_deref());
    let (go, stay): (Vec<_>, Vec<_>) = members.iter().partition(|member| lost(member) || leaving(member));
    let domains: BTreeSet<Domain> = stay.into_iter().map(domain).collect();
    let missing = copies.saturating_sub(domains.len());
    let go: Vec<Uuid> = go.into_iter().map(|member| member.replica).collect();
    // A volume that has data gets what there is.
    place_most(planning, volume, (1, missing), &go).err().map(|no_place| unplaced(&why, &no_place))
}

/// What no two copies of a volume share: a value of its label, or the node where there is none.
type Domain = (bool, String);

fn domain_of(view: &View, spread: Option<&str>, node: &str) -> Domain {
    let value = view.domain(spread, node);
    (value.is_some(), value.unwrap_or(node).to_owned())
}

/// How long a copy there may be away before it is replaced.
fn patience(planning: &Planning<'_>, node: &str) -> Duration {
    let replace_after = planning.config.replace_after;
    match planning.view.scheduling(node) {
        Scheduling::Drained => replace_after.max(MAINTENANCE),
        _ => replace_after,
    }
}

/// Why a copy is missing.
fn why(lost_on: &[&str], left_on: &[&str], spread: Option<&str>) -> String {
    let mut reasons = Vec::new();
    if !lost_on.is_empty() {
        reasons.push(format!("copy on {} is lost", lost_on.join(", ")));
    }
    if !left_on.is_empty() {
        reasons.push(format!("copy on {} is to leave", left_on.join(", ")));
    }
    match spread {
        _ if !reasons.is_empty() => reasons.join(", "),
        Some(key) => format!("not all copies are in different {}", domains_text(key)),
        None => "not all copies have a place".into(),
    }
}

fn unplaced(why: &str, no_place: &NoPlace) -> String {
    format!("{why}; no place for a new copy: {no_place}")
}

/// Places as many of the missing copies as there is room for, at least `least` of them; the reason why not all. The
/// replicas that `leave` make way.
fn place_most(
    planning: &mut Planning<'_>,
    volume: &mut Volume,
    (least, missing): (usize, usize),
    leave: &[Uuid],
) -> Result<(), NoPlace> {
    let mut first = None;
    let held_bytes = planning.view.held_bytes(volume);
    for count in (least.max(1)..=missing).rev() {
        // Who uses the volume now may be anywhere: by whom it was made says nothing any more.
        let copies = Copies { wanted: count, leaving: leave, ..Copies::of(&volume.spec) };
        let copies = Copies { present: &volume.intent.members, held_bytes, ..copies };
        let overcommit = planning.config.overcommit;
        let placed = place(planning.view, &mut planning.promised, overcommit, &copies, planning.new_uuid);
        match placed {
            Ok(members) => {
                volume.intent.members.extend(members);
                break;
            }
            Err(why) => {
                first.get_or_insert(why);
            }
        }
    }
    first.map_or(Ok(()), Err)
}

fn state_of(record: &VolumeRecord, member: &MemberIntent) -> Option<MemberState> {
    let mut members = record.members.iter();
    members.find(|known| known.replica == member.replica).map(|known| known.state)
}

/// Where the nexus of a volume that is attached nowhere should run (invariant 2).
fn owner(planning: &Planning<'_>, volume: &Volume, record: &VolumeRecord) -> Option<String> {
    if !has_work(planning, volume, record) {
        return None;
    }
    let view = planning.view;
    let now = record.owner.as_ref().map(|owner| owner.node.as_str()).or_else(|| served(view, record));
    let stays = volume.intent.owner.as_deref().or(now).filter(|node| view.is_ready(node));
    let leaves = |node: &str| view.scheduling(node) >= Scheduling::Drained;
    if let Some(stays) = stays.filter(|node| !leaves(node)) {
        return Some(stays.to_owned());
    }
    let best = best_owner(planning, volume, record);
    match (stays, best) {
        (Some(stays), Some(best)) if !leaves(best) => {
            // It is closed there first (invariant 2), if it is there.
            let runs = now == Some(stays) && planning.live_status(record).is_some();
            (!runs).then(|| best.to_owned())
        }
        // There is work, and it is done here or nowhere.
        (Some(stays), _) => Some(stays.to_owned()),
        (None, best) => best.map(str::to_owned),
    }
}

/// Where the volume was served when its record was lost: whoever uses its device there would lose it to another node.
fn served<'a>(view: &'a View, record: &VolumeRecord) -> Option<&'a str> {
    let status = view.status(record.volume).filter(|_| record.unconfirmed)?;
    (status.value.state == NexusState::Serving).then_some(status.value.node.as_str())
}

/// The best node to open the volume on, of those that have a copy or are to have one: where something new may be placed
/// first, then where the copy is good.
fn best_owner<'a>(planning: &Planning<'_>, volume: &'a Volume, record: &'a VolumeRecord) -> Option<&'a str> {
    let view = planning.view;
    // Only a volume that was never opened can be opened without a copy that is in sync.
    let fresh = record.members.iter().all(|member| member.state == MemberState::New);
    let good = if fresh { MemberState::New } else { MemberState::InSync };
    let is_good =
        |node: &str| record.members.iter().any(|member| member.state == good && member.node == node);
    let recorded = record.members.iter().filter(|member| member.state != MemberState::Removed);
    let recorded = recorded.map(|member| member.node.as_str());
    let wished = volume.intent.members.iter().map(|member| member.node.as_str());
    let ready: BTreeSet<&str> = recorded.chain(wished).filter(|node| view.is_ready(node)).collect();
    if !ready.iter().any(|node| is_good(node)) {
        return None;
    }
    // Of equals the first by name.
    let rank = |node: &&str| {
        let load = planning.load.get(*node).copied().unwrap_or(0);
        (view.scheduling(node), !is_good(node), !reads(volume, node), load)
    };
    ready.into_iter().min_by_key(rank)
}

fn reads(volume: &Volume, node: &str) -> bool {
    volume.intent.readers.iter().any(|reader| reader == node)
}

/// Whether there is something that only a nexus can do now.
fn has_work(planning: &Planning<'_>, volume: &Volume, record: &VolumeRecord) -> bool {
    // Somebody is there to read.
    if volume.intent.readers.iter().any(|node| planning.view.is_ready(node)) {
        return true;
    }
    let wanted: BTreeSet<_> = volume.intent.members.iter().map(|member| member.replica).collect();
    let known: BTreeSet<_> = record.members.iter().map(|member| member.replica).collect();
    let unfinished = record.members.iter().any(|member| match member.state {
        MemberState::InSync => !wanted.contains(&member.replica),
        MemberState::Removed => false,
        MemberState::New | MemberState::Stale { .. } | MemberState::Rebuilding { .. } => {
            planning.view.is_ready(&member.node) || !wanted.contains(&member.replica)
        }
    });
    let closed_in_order = record.clean && record.owner.is_none();
    let settled = planning.live_status(record).is_some_and(|status| {
        // A resync after an unclean end (I6) is reported on members that are in sync.
        let done = |rebuild: Rebuild| rebuild.done_bytes >= rebuild.total_bytes;
        let equal =
            status.members.iter().all(|member| member.rebuild.is_none() && member.rebuilt.is_none_or(done));
        matches!(status.state, NexusState::Serving | NexusState::Closing) && equal
    });
    unfinished
        || !wanted.is_subset(&known)
        || record.size_bytes < volume.spec.size_bytes
        || (!closed_in_order && !settled)
}
