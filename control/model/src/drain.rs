//! One answer to "may I take this node away?": what is on it, and what its drain waits for; a pure function of what the
//! store holds.
//!
//! 1. What a node is wished to be says what may be on it (`Scheduling`). Where it is neither drained nor evacuated,
//!    nothing is waited for.
//! 2. A copy may be away if another one that is in sync is there, on a node that is not drained: of two nodes that are
//!    drained at the same time, neither counts on the other.

use crate::{
    MemberIntent, MemberRecord, MemberState, Node, NodeState, Rebuild, Scheduling, SizeText, Stored,
    Surroundings, Volume, VolumeRecord, VolumeStatus, explain::current,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;
use uuid::Uuid;

/// What may keep a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub enum Held {
    /// A volume is attached there: whoever uses the device decides.
    Attachment,
    /// The nexus of a volume that is attached nowhere.
    Nexus,
    /// A copy.
    Copy,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attachment => "attachment",
            Self::Nexus => "nexus",
            Self::Copy => "copy",
        })
    }
}

/// One thing that the drain of a node waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeWait {
    /// The volume.
    pub volume: String,
    /// What of it is still there.
    pub held: Held,
    /// Why, in one line.
    pub message: String,
}

/// A node as the API and `orlop node get -o json` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// The wish, and the report of its engine.
    #[serde(flatten)]
    pub node: Node,
    /// Its revision; the `ETag` without its quotes.
    pub revision: u64,
    /// The volumes that are attached there, also for reading only.
    pub attached: Vec<String>,
    /// The volumes whose nexus runs there.
    pub nexuses: Vec<String>,
    /// The volumes that have a copy there.
    pub copies: Vec<String>,
    /// What keeps it from being drained or evacuated, as it is wished to be; empty where nothing is left, and where that
    /// is not wished.
    pub waits_for: Vec<NodeWait>,
}

/// All that the store has of one volume.
#[derive(Clone, Copy, Debug)]
pub struct VolumeFacts<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// Its record.
    pub record: Option<&'a VolumeRecord>,
    /// Its status.
    pub status: Option<&'a VolumeStatus>,
}

/// Puts together what the store holds of one node.
pub fn node_view<'a>(
    node: &Stored<Node>,
    volumes: impl IntoIterator<Item = VolumeFacts<'a>>,
    around: &Surroundings<'_>,
) -> NodeView {
    let mut view = NodeView {
        node: node.value.clone(),
        revision: node.revision,
        attached: Vec::new(),
        nexuses: Vec::new(),
        copies: Vec::new(),
        waits_for: Vec::new(),
    };
    for facts in volumes {
        let here = Here { node: &node.value, facts, around };
        let name = &facts.volume.name;
        for (is_here, names) in [
            (here.is_attached() || here.is_read(), &mut view.attached),
            (here.has_nexus(), &mut view.nexuses),
            (here.members().next().is_some() || here.wished().next().is_some(), &mut view.copies),
        ] {
            if is_here {
                names.push(name.clone());
            }
        }
        let waits = here.waits().into_iter();
        view.waits_for.extend(waits.map(|(held, message)| NodeWait { volume: name.clone(), held, message }));
    }
    view
}

/// A volume, seen from a node.
struct Here<'a> {
    node: &'a Node,
    facts: VolumeFacts<'a>,
    around: &'a Surroundings<'a>,
}

impl<'a> Here<'a> {
    fn is_attached(&self) -> bool {
        self.facts.volume.intent.attach.as_ref().is_some_and(|attach| attach.node == self.node.name)
    }

    fn is_read(&self) -> bool {
        self.facts.volume.intent.readers.contains(&self.node.name)
    }

    /// Whether one runs there, or is wished to.
    fn has_nexus(&self) -> bool {
        let owner = self.facts.record.and_then(|record| record.owner.as_ref());
        let wished = self.facts.volume.intent.owner.as_ref();
        owner.map(|owner| &owner.node).into_iter().chain(wished).any(|node| *node == self.node.name)
    }

    /// The copies that are, or may be, on it.
    fn members(&self) -> impl Iterator<Item = &'a MemberRecord> + use<'_, 'a> {
        let members = self.facts.record.map_or(&[][..], |record| &record.members);
        let node = self.node;
        // What is to be destroyed on a node that is away is of use to nobody; once it is, a record may still name it.
        let kept = move |member: &&MemberRecord| {
            let goes = node.state == NodeState::Ready && !self.around.is_destroyed(member);
            member.state != MemberState::Removed || goes
        };
        members.iter().filter(move |member| member.node == node.name).filter(kept)
    }

    /// The copies that are wished there.
    fn wished(&self) -> impl Iterator<Item = &'a MemberIntent> {
        let node = self.node;
        self.facts.volume.intent.members.iter().filter(move |member| member.node == node.name)
    }

    fn waits(&self) -> Vec<(Held, String)> {
        let scheduling = self.node.spec.scheduling;
        // Invariant 1.
        if scheduling < Scheduling::Drained {
            return Vec::new();
        }
        // The nexus of a volume that is read leaves, whoever reads.
        let nexus = if self.is_attached() { None } else { self.nexus() };
        let device = (self.is_attached() || self.is_read()).then(|| self.attachment());
        let copy = if scheduling == Scheduling::Evacuated { self.copy() } else { self.only_copy() };
        device.into_iter().chain(nexus).chain(copy.map(|why| (Held::Copy, why))).collect()
    }

    fn attachment(&self) -> (Held, String) {
        let only = if self.is_read() { format!(" --node {}", self.node.name) } else { String::new() };
        let why = format!(
            "it is attached there: whoever uses the device decides; `orlop volume detach {}{only}` takes it away",
            self.facts.volume.name
        );
        (Held::Attachment, why)
    }

    fn nexus(&self) -> Option<(Held, String)> {
        if !self.has_nexus() {
            return None;
        }
        let why = match &self.facts.volume.intent.owner {
            _ if self.node.state != NodeState::Ready => {
                "its nexus ended with the node; it is opened elsewhere"
            }
            Some(owner) if *owner == self.node.name => {
                "its nexus has work to do, and no other node may run it"
            }
            _ => "its nexus is closing",
        };
        Some((Held::Nexus, why.into()))
    }

    /// Why the node cannot be away for a while: only it has the data (invariant 2).
    fn only_copy(&self) -> Option<String> {
        let good = |member: &&MemberRecord| member.state == MemberState::InSync;
        if !self.members().any(|member| good(&member)) {
            return None;
        }
        let all = self.facts.record.map_or(&[][..], |record| &record.members);
        let mut elsewhere = all.iter().filter(good).filter(|member| member.node != self.node.name).peekable();
        if elsewhere.peek().is_none() {
            let next = self.being_made().unwrap_or_else(|| "no other is being made".into());
            return Some(format!("its only copy that is in sync is there: {next}"));
        }
        let mut troubles = Vec::new();
        for member in elsewhere {
            if let Some(trouble) = self.around.trouble(member) {
                troubles.push(trouble);
            } else if self.around.is_drained(&member.node) {
                troubles.push(format!("node {} is drained, too", member.node));
            } else {
                return None;
            }
        }
        Some(format!("no other copy that is in sync stays: {}", troubles.join(", ")))
    }

    /// Why a copy has not left.
    fn copy(&self) -> Option<String> {
        if self.wished().next().is_some() {
            let why = self.being_made().or_else(|| self.facts.volume.message.clone());
            return Some(why.unwrap_or_else(|| "the manager has not found another place yet".into()));
        }
        let member = self.members().next()?;
        Some(match member.state {
            MemberState::Removed => "its copy is being destroyed".into(),
            _ => "its copy is given up when the others are in sync".into(),
        })
    }

    /// How far a copy elsewhere is that is not in sync.
    fn being_made(&self) -> Option<String> {
        let members = self.facts.volume.intent.members.iter();
        let elsewhere = members.filter(|member| member.node != self.node.name);
        elsewhere.filter(|member| !self.around.is_drained(&member.node)).find_map(|member| {
            let known = self.facts.record?.members.iter().find(|known| known.replica == member.replica);
            match known {
                None => Some(format!("a copy on {} is begun", member.node)),
                Some(known) => self.unfinished(known),
            }
        })
    }

    fn unfinished(&self, member: &MemberRecord) -> Option<String> {
        let MemberRecord { node, replica, state, .. } = member;
        let what = match state {
            MemberState::InSync | MemberState::Removed => return None,
            MemberState::New => "is being made".into(),
            MemberState::Stale { .. } => "waits to be rebuilt".into(),
            MemberState::Rebuilding { .. } => self.progress(*replica),
        };
        let trouble = self.around.trouble(member).map(|why| format!(" ({why})")).unwrap_or_default();
        Some(format!("copy on {node} {what}{trouble}"))
    }

    fn progress(&self, replica: Uuid) -> String {
        let status = current(self.facts.record, self.facts.status);
        let seen = status.and_then(|status| status.members.iter().find(|seen| seen.replica == replica));
        match seen.and_then(|seen| seen.rebuild) {
            Some(Rebuild { done_bytes, total_bytes, .. }) if total_bytes > 0 => {
                format!("is rebuilding, {} of {}", SizeText(done_bytes), SizeText(total_bytes))
            }
            _ => "is rebuilding".into(),
        }
    }
}

#[cfg(test)]
mod tests;
