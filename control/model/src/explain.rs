//! One answer to "why is my volume not attached, placed or in sync": a pure function of what the store holds.
//!
//! The first thing that applies, in the order of `explain`, is the answer: what blocks the user most comes first.

mod health;

pub use health::{Health, health};

use crate::{
    MemberPhase, MemberRecord, MemberState, NexusState, Node, NodeReplicas, NodeState, Pool, PoolState,
    ReaderReport, Rebuild, ReplicaReport, ReplicaState, Scheduling, SizeText, Volume, VolumeIntent,
    VolumeRecord, VolumeSpec, VolumeStatus,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use utoipa::ToSchema;
use uuid::Uuid;

/// Why a volume is not there that has had a record and has none now. Whoever knows where its copies are says that behind
/// it, in the volume's message.
pub const RECORD_MISSING: &str =
    "its record is missing from the store; restore the store, do not create the volume again";

/// A volume's state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub enum VolumeState {
    /// Has no place yet.
    Pending,
    /// Has a place; its replicas are being made.
    Creating,
    /// All copies in sync, attached nowhere.
    Available,
    /// The device is on its way.
    Attaching,
    /// All copies in sync, the device is there.
    Attached,
    /// The device is on its way out.
    Detaching,
    /// Usable, with fewer copies in sync than wanted.
    Degraded,
    /// I/O waits: no copy that is in sync, or not the store, can be reached.
    Stalled,
    /// On its way out with all its data.
    Deleting,
}

impl VolumeState {
    /// All states.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Creating,
        Self::Available,
        Self::Attaching,
        Self::Attached,
        Self::Detaching,
        Self::Degraded,
        Self::Stalled,
        Self::Deleting,
    ];
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "Pending",
            Self::Creating => "Creating",
            Self::Available => "Available",
            Self::Attaching => "Attaching",
            Self::Attached => "Attached",
            Self::Detaching => "Detaching",
            Self::Degraded => "Degraded",
            Self::Stalled => "Stalled",
            Self::Deleting => "Deleting",
        })
    }
}

/// A volume's state, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// In one word.
    pub state: VolumeState,
    /// In one line; none when there is nothing to say.
    pub message: Option<String>,
}

/// What a volume depends on, ready to be looked up: made once for many volumes.
#[derive(Clone, Debug, Default)]
pub struct Surroundings<'a> {
    ready: BTreeSet<&'a str>,
    /// Nodes that are to be away, for a while or for good.
    drained: BTreeSet<&'a str>,
    pools: BTreeMap<Uuid, &'a Pool>,
    /// (node, replica) as that node reports it, where there is more to say than that it is there.
    replicas: BTreeMap<(&'a str, Uuid), &'a ReplicaReport>,
    /// (volume, node) as that node reports it.
    readers: BTreeMap<(Uuid, &'a str), &'a ReaderReport>,
}

impl<'a> Surroundings<'a> {
    /// Of all nodes and pools that there are, and what the nodes say of their replicas.
    pub fn new(
        nodes: impl IntoIterator<Item = &'a Node>,
        pools: impl IntoIterator<Item = &'a Pool>,
        replicas: impl IntoIterator<Item = &'a NodeReplicas>,
    ) -> Self {
        let (mut ready, mut drained) = (BTreeSet::new(), BTreeSet::new());
        for node in nodes {
            if node.state == NodeState::Ready {
                ready.insert(node.name.as_str());
            }
            if node.spec.scheduling >= Scheduling::Drained {
                drained.insert(node.name.as_str());
            }
        }
        let (mut reports, mut readers) = (BTreeMap::new(), BTreeMap::new());
        for of in replicas {
            let node = of.node.as_str();
            let said = of.replicas.iter().filter(|report| report.state != ReplicaState::Present);
            reports.extend(said.map(|report| ((node, report.replica), report)));
            readers.extend(of.readers.iter().map(|report| ((report.volume, node), report)));
        }
        Self {
            ready,
            drained,
            pools: pools.into_iter().map(|pool| (pool.uuid, pool)).collect(),
            replicas: reports,
            readers,
        }
    }

    /// What nodes that are ready say of their read-only devices of a volume, by node.
    fn readers_of(&self, volume: Uuid) -> impl Iterator<Item = (&'a str, &'a ReaderReport)> {
        let of_volume = self.readers.range((volume, "")..).take_while(move |((of, _), _)| *of == volume);
        of_volume.map(|((_, node), report)| (*node, *report)).filter(|(node, _)| self.ready.contains(node))
    }

    /// Whether the node is to be away, for a while or for good.
    pub(crate) fn is_drained(&self, node: &str) -> bool {
        self.drained.contains(node)
    }

    /// Whether its node has said that it is destroyed.
    pub(crate) fn is_destroyed(&self, member: &MemberRecord) -> bool {
        let report = self.replicas.get(&(member.node.as_str(), member.replica));
        report.is_some_and(|report| report.state == ReplicaState::Destroyed)
    }

    /// Why the copy cannot be used now, if its node, its pool or its replica is not there.
    pub(crate) fn trouble(&self, member: &MemberRecord) -> Option<String> {
        let MemberRecord { node, pool, replica, state, .. } = member;
        if !self.ready.contains(node.as_str()) {
            return Some(format!("node {node} is NotReady"));
        }
        match self.pools.get(pool) {
            None => return Some(format!("pool {pool} of node {node} is not there")),
            Some(known) if known.state == PoolState::Gone => {
                return Some(format!("pool {} ({pool}) is gone from node {node} with its disk", known.name));
            }
            Some(known) if known.state == PoolState::Failed => {
                let why = known.message.as_deref().unwrap_or("no reason given");
                return Some(format!("pool {} of node {node} has failed: {why}", known.name));
            }
            Some(_) => {}
        }
        let report = self.replicas.get(&(node.as_str(), *replica))?;
        match report.state {
            // What is still to be made is not missing.
            ReplicaState::Missing if *state != MemberState::New => {
                Some(format!("replica {replica} is missing from node {node}"))
            }
            ReplicaState::Failed => {
                let why = report.message.as_deref().unwrap_or("no reason given");
                Some(format!("replica {replica} of node {node} has failed: {why}"))
            }
            _ => None,
        }
    }
}

/// Says in which state the volume is and, unless all is well, why.
pub fn explain(
    volume: &Volume,
    record: Option<&VolumeRecord>,
    status: Option<&VolumeStatus>,
    around: &Surroundings<'_>,
) -> Explanation {
    let facts = Facts { volume, record, status: current(record, status), around };
    let (state, message) = facts
        .deleting()
        .or_else(|| facts.pending())
        .or_else(|| facts.unconfirmed())
        .or_else(|| facts.attachment())
        .or_else(|| facts.reading())
        .or_else(|| facts.creating())
        .or_else(|| facts.degraded())
        .unwrap_or_else(|| facts.well());
    Explanation { state, message }
}

/// The status, unless it is of an epoch that is over.
pub(crate) fn current<'a>(
    record: Option<&VolumeRecord>,
    status: Option<&'a VolumeStatus>,
) -> Option<&'a VolumeStatus> {
    status.filter(|status| record.is_some_and(|record| status.epoch == record.epoch))
}

struct Facts<'a> {
    volume: &'a Volume,
    record: Option<&'a VolumeRecord>,
    status: Option<&'a VolumeStatus>,
    around: &'a Surroundings<'a>,
}

type Answer = (VolumeState, Option<String>);

impl Facts<'_> {
    fn deleting(&self) -> Option<Answer> {
        if !self.volume.intent.deleting {
            return None;
        }
        let waits_for = match self.record {
            Some(VolumeRecord { owner: Some(owner), .. }) => {
                format!(
                    "waits for its nexus on node {} to close{}",
                    owner.node,
                    self.node_trouble(&owner.node)
                )
            }
            Some(record) => match record.members.iter().find(|member| !self.is_ready(&member.node)) {
                Some(member) => {
                    format!("waits to destroy replica {}{}", member.replica, self.node_trouble(&member.node))
                }
                None => "its replicas are being destroyed".into(),
            },
            None => "its last traces are being removed".into(),
        };
        Some((VolumeState::Deleting, Some(waits_for)))
    }

    fn pending(&self) -> Option<Answer> {
        if self.record.is_some() {
            return None;
        }
        let why = self.volume.message.clone();
        if self.volume.intent.recorded {
            let why = why.filter(|why| why.starts_with(RECORD_MISSING));
            return Some((VolumeState::Stalled, Some(why.unwrap_or_else(|| RECORD_MISSING.into()))));
        }
        Some((VolumeState::Pending, why.or_else(|| Some("waits for the manager to place it".into()))))
    }

    /// The volume is not open, whatever anybody says who was there before.
    fn unconfirmed(&self) -> Option<Answer> {
        let record = self.record.filter(|record| record.unconfirmed)?;
        let opening = self.status.filter(|status| status.state == NexusState::Opening);
        let said = opening.and_then(|status| status.message.clone());
        Some((VolumeState::Stalled, Some(said.unwrap_or_else(|| self.why_unconfirmed(record)))))
    }

    fn why_unconfirmed(&self, record: &VolumeRecord) -> String {
        let asked = |member: &&MemberRecord| !matches!(member.state, MemberState::New | MemberState::Removed);
        let away = record.members.iter().filter(asked).filter_map(|member| self.around.trouble(member));
        let away: Vec<String> = away.collect();
        let why = if away.is_empty() { String::new() } else { format!(": {}", away.join(", ")) };
        format!("its record is from a copy, and it opens when all its members have answered (I12){why}")
    }

    /// What concerns the device: only an answer where that is not as wanted.
    fn attachment(&self) -> Option<Answer> {
        let status = self.status.filter(|status| status.state != NexusState::Closed);
        let stalled = status.filter(|status| status.state == NexusState::Stalled);
        match &self.volume.intent.attach {
            None => {
                let device =
                    status.filter(|status| status.device.is_some() && self.is_ready(&status.node))?;
                let why = device
                    .message
                    .clone()
                    .unwrap_or_else(|| format!("node {} is closing the device", device.node));
                Some((VolumeState::Detaching, Some(why)))
            }
            Some(_) if stalled.is_some() => {
                let why = stalled.and_then(|status| status.message.clone());
                Some((VolumeState::Stalled, why.or_else(|| Some(self.unreachable()))))
            }
            Some(attach) => {
                let there = status.is_some_and(|status| {
                    status.state == NexusState::Serving
                        && status.node == attach.node
                        && status.attach_serial == self.volume.intent.attach_serial
                        && status.device.is_some()
                });
                if there && self.is_ready(&attach.node) {
                    return None;
                }
                if there {
                    return Some((VolumeState::Stalled, Some(lost_owner(&attach.node))));
                }
                Some((VolumeState::Attaching, Some(self.why_not_attached(&attach.node, status))))
            }
        }
    }

    /// What concerns the devices that are read only.
    fn reading(&self) -> Option<Answer> {
        let intent = &self.volume.intent;
        let reports = || self.around.readers_of(self.volume.uuid);
        let wished = |node: &str| intent.readers.iter().any(|reader| reader == node);
        if let Some((node, report)) =
            reports().find(|(node, report)| report.device.is_some() && !wished(node))
        {
            let why = report.message.clone().unwrap_or_else(|| format!("node {node} is closing the device"));
            return intent.attach.is_none().then_some((VolumeState::Detaching, Some(why)));
        }
        let status = self.status.filter(|_| !intent.readers.is_empty());
        if let Some(stalled) = status.filter(|status| status.state == NexusState::Stalled) {
            let why = stalled.message.clone().unwrap_or_else(|| self.unreachable());
            return Some((VolumeState::Stalled, Some(why)));
        }
        let missing = intent.readers.iter().filter(|node| self.is_ready(node)).find_map(|node| {
            let report = reports().find(|(of, _)| of == node).map(|(_, report)| report);
            match report {
                Some(report) if report.device.is_some() && report.attach_serial == intent.attach_serial => {
                    None
                }
                Some(ReaderReport { message: Some(why), .. }) => Some(format!("node {node}: {why}")),
                _ => {
                    let why = status.and_then(|status| status.message.clone());
                    Some(why.unwrap_or_else(|| format!("node {node} is making the device")))
                }
            }
        });
        missing.map(|why| (VolumeState::Attaching, Some(why)))
    }

    fn why_not_attached(&self, node: &str, status: Option<&VolumeStatus>) -> String {
        if !self.is_ready(node) {
            return lost_owner(node);
        }
        if let Some(owner) = self.record.and_then(|record| record.owner.as_ref())
            && owner.node != node
        {
            return format!(
                "node {node} takes over from node {}{}",
                owner.node,
                self.node_trouble(&owner.node)
            );
        }
        match status {
            Some(status) if status.node == node => {
                status.message.clone().unwrap_or_else(|| format!("node {node} is making the device"))
            }
            _ if self.no_copy_ready() => self.unreachable(),
            _ => format!("node {node} is opening the volume"),
        }
    }

    fn creating(&self) -> Option<Answer> {
        let record = self.record?;
        let made = record.members.iter().any(|member| member.state == MemberState::InSync);
        if made {
            return None;
        }
        let why = record.members.iter().find_map(|member| self.around.trouble(member));
        let why = why.or_else(|| self.status.and_then(|status| status.message.clone()));
        Some((VolumeState::Creating, Some(why.unwrap_or_else(|| "its replicas are being made".into()))))
    }

    fn degraded(&self) -> Option<Answer> {
        let record = self.record?;
        let copies = self.volume.spec.copies;
        let available = self.available();
        if available == 0 {
            return Some((VolumeState::Stalled, Some(self.unreachable())));
        }
        if u32::try_from(available).is_ok_and(|available| available >= copies) {
            return None;
        }
        let mut reasons: Vec<String> = Vec::new();
        for member in &record.members {
            let phase = MemberPhase::from(member.state);
            let reported = self
                .status
                .and_then(|status| status.members.iter().find(|reported| reported.replica == member.replica));
            let reason = match (phase, reported.and_then(|reported| reported.rebuild)) {
                (MemberPhase::Removed, _) => continue,
                (MemberPhase::Rebuilding, Some(rebuild)) => Some(format!(
                    "copy on {} is rebuilding, {} of {}",
                    member.node,
                    SizeText(rebuild.done_bytes),
                    SizeText(rebuild.total_bytes)
                )),
                (MemberPhase::InSync, _) => self.around.trouble(member),
                _ => self
                    .around
                    .trouble(member)
                    .or_else(|| reported.and_then(|reported| reported.message.clone()))
                    .or_else(|| Some(format!("copy on {} is {phase}", member.node))),
            };
            reasons.extend(reason);
        }
        reasons.extend(self.volume.message.clone());
        let why = format!("{available} of {copies} copies in sync: {}", reasons.join(", "));
        Some((VolumeState::Degraded, Some(why)))
    }

    fn well(&self) -> Answer {
        let intent = &self.volume.intent;
        let away: Vec<&str> =
            intent.readers.iter().map(String::as_str).filter(|node| !self.is_ready(node)).collect();
        if !away.is_empty() {
            let why = format!("it is read on nodes that are NotReady ({})", away.join(", "));
            return (VolumeState::Attached, Some(why));
        }
        let attached = intent.attach.is_some() || !intent.readers.is_empty();
        let state = if attached { VolumeState::Attached } else { VolumeState::Available };
        (state, self.volume.message.clone())
    }

    fn no_copy_ready(&self) -> bool {
        let members = self.record.map_or(&[][..], |record| &record.members);
        let mut in_sync = members.iter().filter(|member| member.state == MemberState::InSync).peekable();
        in_sync.peek().is_some() && in_sync.all(|member| self.around.trouble(member).is_some())
    }

    fn unreachable(&self) -> String {
        let members = self.record.map_or(&[][..], |record| &record.members);
        let in_sync = || members.iter().filter(|member| member.state == MemberState::InSync);
        let away: Vec<&str> =
            in_sync().map(|member| member.node.as_str()).filter(|node| !self.is_ready(node)).collect();
        if !away.is_empty() && away.len() == in_sync().count() {
            return format!(
                "every copy that is in sync is on a node that is NotReady ({}); start one",
                away.join(", ")
            );
        }
        let troubles: Vec<String> = in_sync().filter_map(|member| self.around.trouble(member)).collect();
        if troubles.is_empty() {
            return "no copy that is in sync, or not the store, can be reached".into();
        }
        format!("no copy that is in sync can be reached: {}", troubles.join(", "))
    }

    fn node_trouble(&self, node: &str) -> String {
        if self.is_ready(node) {
            String::new()
        } else {
            format!(" (node {node} is NotReady; start its engine)")
        }
    }

    fn is_ready(&self, name: &str) -> bool {
        self.around.ready.contains(name)
    }
}

fn lost_owner(node: &str) -> String {
    format!("node {node} is NotReady; start its engine, or attach the volume to another node")
}

/// A volume as the API and `orlop volume get -o json` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// The revision of its spec and intent; the `ETag` without its quotes.
    pub revision: u64,
    /// What the user wants.
    pub spec: VolumeSpec,
    /// Where it should live.
    pub intent: VolumeIntent,
    /// What is.
    pub status: VolumeViewStatus,
}

/// What is known of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeViewStatus {
    /// In one word.
    pub state: VolumeState,
    /// Why it is not attached, placed or in sync, in one line.
    pub message: Option<String>,
    /// The path of the device, on the node `owner`.
    pub device: Option<String>,
    /// The devices that can be read only: those that are wished, and those that are still there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<ReaderView>,
    /// Where initiators find it.
    pub target: Option<String>,
    /// The node of its nexus.
    pub owner: Option<String>,
    /// The fencing number.
    pub epoch: u64,
    /// The number of the latest attachment.
    pub attachment: u64,
    /// The size that hosts see.
    pub size_bytes: u64,
    /// The longest that a write has waited since the nexus opened.
    pub write_stall_max_ms: u64,
    /// The copies.
    pub members: Vec<MemberView>,
}

impl VolumeViewStatus {
    /// The device of a node that can be read only.
    pub fn reader(&self, node: &str) -> Option<&ReaderView> {
        self.readers.iter().find(|reader| reader.node == node)
    }

    /// Whether there is a device on this node, or on any.
    pub fn has_device(&self, node: Option<&str>) -> bool {
        let meant = |there: &str| node.is_none_or(|node| node == there);
        let here = self.device.is_some() && self.owner.as_deref().is_none_or(meant);
        here || self.readers.iter().any(|reader| reader.device.is_some() && meant(&reader.node))
    }
}

/// A device that can be read only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReaderView {
    /// Its node.
    pub node: String,
    /// Its path there; none while it is not there, and while its node is not ready.
    pub device: Option<String>,
    /// Why it is not as wished, in one line.
    pub message: Option<String>,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// Its node.
    pub node: String,
    /// Its pool's UUID.
    pub pool: Uuid,
    /// The replica.
    pub replica: Uuid,
    /// Its state in the record.
    pub state: MemberPhase,
    /// Whether its node is ready and, as far as that node says, its pool is open and its replica there. One that is not
    /// present does not count, whatever `state` says: nobody may have looked yet.
    pub present: bool,
    /// Whether the nexus reaches it; none while there is no nexus.
    pub reachable: Option<bool>,
    /// The progress of its rebuild, while there is one.
    pub rebuild: Option<Rebuild>,
    /// What its last rebuild took.
    pub rebuilt: Option<Rebuild>,
    /// What is wrong with it, in one line.
    pub message: Option<String>,
}

/// Puts together what the store holds of one volume.
pub fn view(
    volume: &Volume,
    revision: u64,
    record: Option<&VolumeRecord>,
    status: Option<&VolumeStatus>,
    around: &Surroundings<'_>,
) -> VolumeView {
    let Explanation { state, message } = explain(volume, record, status, around);
    // What a dead or fenced nexus said last is not what is.
    let live = current(record, status).filter(|status| {
        let dead = matches!(status.state, NexusState::Closed | NexusState::Failed);
        !dead && around.ready.contains(status.node.as_str())
    });
    let members = record.map_or(&[][..], |record| &record.members).iter().map(|member| {
        let seen = live.and_then(|status| status.members.iter().find(|seen| seen.replica == member.replica));
        let trouble = around.trouble(member);
        MemberView {
            node: member.node.clone(),
            pool: member.pool,
            replica: member.replica,
            state: member.state.into(),
            present: trouble.is_none(),
            reachable: seen.map(|seen| seen.reachable),
            rebuild: seen.and_then(|seen| seen.rebuild),
            rebuilt: seen.and_then(|seen| seen.rebuilt),
            message: seen.and_then(|seen| seen.message.clone()).or(trouble),
        }
    });
    VolumeView {
        name: volume.name.clone(),
        uuid: volume.uuid,
        revision,
        spec: volume.spec.clone(),
        intent: volume.intent.clone(),
        status: VolumeViewStatus {
            state,
            message,
            device: live.and_then(|status| status.device.clone()),
            readers: readers(volume, around),
            target: live.and_then(|status| status.target.clone()),
            owner: record.and_then(|record| record.owner.as_ref().map(|owner| owner.node.clone())),
            epoch: record.map_or(0, |record| record.epoch),
            attachment: record.map_or(0, |record| record.attachment),
            size_bytes: host_bytes(volume, record, status, around),
            write_stall_max_ms: live.map_or(0, |status| status.write_stall_max_ms),
            members: members.collect(),
        },
    }
}

/// The size that hosts see. A device is made larger after the volume: what was last said of it counts while it is there,
/// or about to be there again.
fn host_bytes(
    volume: &Volume,
    record: Option<&VolumeRecord>,
    status: Option<&VolumeStatus>,
    around: &Surroundings<'_>,
) -> u64 {
    let of_volume = record.map_or(volume.spec.size_bytes, |record| record.size_bytes);
    let device = status.filter(|_| volume.intent.attach.is_some()).map(|status| status.size_bytes);
    let readers = around.readers_of(volume.uuid).filter(|(_, report)| report.device.is_some());
    device.into_iter().chain(readers.map(|(_, report)| report.size_bytes)).fold(of_volume, u64::min)
}

/// The devices that can be read only, by node.
fn readers(volume: &Volume, around: &Surroundings<'_>) -> Vec<ReaderView> {
    let VolumeIntent { readers, attach_serial, .. } = &volume.intent;
    let mut views: BTreeMap<&str, ReaderView> = BTreeMap::new();
    for node in readers {
        let away = !around.ready.contains(node.as_str());
        let message = away.then(|| format!("node {node} is NotReady"));
        views.insert(node, ReaderView { node: node.clone(), device: None, message });
    }
    for (node, report) in around.readers_of(volume.uuid) {
        let wished = views.contains_key(node);
        if wished || report.device.is_some() {
            let ReaderReport { device, message, .. } = report.clone();
            // One of before a writer is not what is wished now.
            let device = device.filter(|_| !wished || report.attach_serial == *attach_serial);
            views.insert(node, ReaderView { node: node.to_owned(), device, message });
        }
    }
    views.into_values().collect()
}

#[cfg(test)]
pub(crate) mod tests;
