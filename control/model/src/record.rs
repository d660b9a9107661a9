//! The record of one volume: who may write where. Only a nexus changes it, by compare-and-swap on the whole object.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;
use uuid::Uuid;

/// The clock that stamps extents: ordered by epoch, then counter; no number names two histories.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct Generation {
    /// The epoch of the nexus that gave it.
    pub epoch: u64,
    /// Counts up within the epoch.
    pub counter: u64,
}

impl Generation {
    /// Before every write.
    pub const ZERO: Self = Self { epoch: 0, counter: 0 };

    /// The generation `counter` of `epoch`.
    pub const fn new(epoch: u64, counter: u64) -> Self {
        Self { epoch, counter }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

impl VolumeRecord {
    /// The record of a volume that was never opened: all members are still to be made.
    pub fn new(volume: Uuid, size_bytes: u64, block_size: u32, members: Vec<MemberRecord>) -> Self {
        Self {
            volume,
            version: 1,
            epoch: 0,
            owner: None,
            clean: true,
            size_bytes,
            block_size,
            attachment: 0,
            gap_through: 0,
            hosts: Vec::new(),
            members,
            settled: None,
            unconfirmed: false,
        }
    }

    /// Whether the volume was never opened: nothing was ever acknowledged, and no member keeps a copy.
    pub fn is_fresh(&self) -> bool {
        self.members.iter().all(|m| matches!(m.state, MemberState::New | MemberState::Removed))
    }

    /// Whether this one is from later than `other` (I12). Both are records of one volume that the store has confirmed.
    pub fn is_later_than(&self, other: &Self) -> bool {
        let is_new = |member: &MemberRecord| member.state == MemberState::New;
        let is_to_be_opened = |record: &Self| record.is_fresh() && record.members.iter().any(is_new);
        if is_to_be_opened(self) || is_to_be_opened(other) {
            return !is_to_be_opened(self);
        }
        match (self.settled, other.settled) {
            (Some(mine), Some(theirs)) => mine > theirs,
            // One of them is from a program that does not know it. Epoch and version never say too much: the store has
            // given none that is higher than its own, unless it was set back.
            _ => (self.epoch, self.version) > (other.epoch, other.version),
        }
    }

    /// What the store is to hold once a member's copy is found to be later than its own record, or it has none: the copy,
    /// above `epoch` and `version`, and to be confirmed by all members (I12). No nexus has this epoch: one that still runs
    /// by the record that was lost cannot take this one for its own, and what it knows of members is not forgotten.
    #[must_use]
    pub fn recovered(self, epoch: u64, version: u64) -> Self {
        Self {
            epoch: self.epoch.max(epoch) + 1,
            version: self.version.max(version) + 1,
            owner: None,
            clean: false,
            unconfirmed: true,
            ..self
        }
    }
}

impl MemberRecord {
    /// A member that is still to be made.
    pub const fn new(replica: Uuid, pool: Uuid, node: String) -> Self {
        Self { replica, pool, node, incarnation: None, boot_id: None, state: MemberState::New }
    }
}

/// What the record says of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(tag = "name", rename_all_fields = "camelCase")]
pub enum MemberState {
    /// Named, not yet made: the only state in which an engine makes a replica.
    New,
    /// Has every acknowledged write.
    InSync,
    /// Has missed writes later than `since`; takes none.
    Stale {
        /// Everything up to and with this generation is there and flushed.
        since: Generation,
    },
    /// Takes every new write, and is being given what it missed later than `since`.
    Rebuilding {
        /// Everything up to and with this generation is there and flushed.
        since: Generation,
    },
    /// To be destroyed. The only order that destroys a replica; once that is done the record forgets it.
    Removed,
}

/// One member of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// The replica, never used twice.
    pub replica: Uuid,
    /// The pool that holds it.
    pub pool: Uuid,
    /// The node of that pool.
    pub node: String,
    /// The incarnation of the pool when it was last known to be whole.
    pub incarnation: Option<Uuid>,
    /// The boot of its node in which that incarnation was drawn: within one boot nothing completed is lost.
    pub boot_id: Option<Uuid>,
    /// What it is owed.
    pub state: MemberState,
}

/// A host on the target, and the number of its attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostRecord {
    /// The identifier that the host gives itself.
    pub host: Uuid,
    /// Its attachment.
    pub attachment: u64,
}

/// The nexus that owns the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// The nexus: a new UUID at each opening.
    pub nexus: Uuid,
    /// Its node.
    pub node: String,
}

/// The last change of a record by a nexus that had opened its volume: ordered by epoch, then version.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// Its epoch.
    pub epoch: u64,
    /// The version that it made.
    pub version: u64,
}

/// The record of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// The volume's UUID, also the record's key in the store.
    pub volume: Uuid,
    /// Grows by one with each change (I12).
    pub version: u64,
    /// The fencing number: of `owner` while there is one, else of the last.
    pub epoch: u64,
    /// Who may write; none while the volume is closed.
    pub owner: Option<Owner>,
    /// The last owner closed in order: every member that is `InSync` is equal, and flushed.
    pub clean: bool,
    /// The size that hosts see.
    pub size_bytes: u64,
    /// The unit of addressing.
    pub block_size: u32,
    /// The number of the latest attachment (I10).
    pub attachment: u64,
    /// Attachments up to and with this number may have lost completed, unflushed writes (I10).
    pub gap_through: u64,
    /// The hosts on the target that have not detached, in the order of their numbers: one that comes back, to whichever
    /// nexus, goes on under its number (I10). At most [`crate::limits::HOSTS_MAX`].
    #[serde(default)]
    pub hosts: Vec<HostRecord>,
    /// The copies.
    pub members: Vec<MemberRecord>,
    /// The last change by a nexus that had opened. An opening that comes to nothing takes an epoch and a version and does
    /// not move this, so it tells which of two records is the later one although the store was set back in between (I12).
    /// None: not opened since this is kept.
    // Absent rather than null: definitions from before refuse the word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<Settled>,
    /// The store was set back, or had lost the record: this is what a member had kept. The volume opens only after all its
    /// members have answered and none has a later one, or by the explicit word (I12).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_hosts_were_kept_is_read() {
        let old = r#"{"volume": "00000000-0000-0000-0000-000000000001", "version": 3, "epoch": 2, "owner": null,
            "clean": true, "sizeBytes": 1048576, "blockSize": 4096, "attachment": 7, "gapThrough": 0, "members": []}"#;
        let record: VolumeRecord = serde_json::from_str(old).unwrap();
        assert_eq!((record.attachment, &record.hosts), (7, &Vec::new()));
        assert_eq!((record.settled, record.unconfirmed), (None, false));
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!((json.get("settled"), json.get("unconfirmed")), (None, None), "as older programs know it");
    }

    #[test]
    fn openings_that_come_to_nothing_make_no_record_later() {
        let kept = VolumeRecord {
            epoch: 7,
            version: 30,
            settled: Some(Settled { epoch: 7, version: 30 }),
            ..VolumeRecord::new(Uuid::from_u128(1), 1 << 20, 4096, Vec::new())
        };
        let backup = VolumeRecord {
            epoch: 5,
            version: 20,
            settled: Some(Settled { epoch: 5, version: 19 }),
            ..kept.clone()
        };
        assert!(kept.is_later_than(&backup) && !backup.is_later_than(&kept) && !kept.is_later_than(&kept));
        let climbed = VolumeRecord { epoch: 9, version: 50, ..backup.clone() };
        assert!(kept.is_later_than(&climbed), "nothing was settled since");
        let recovered = kept.clone().recovered(climbed.epoch, climbed.version);
        assert_eq!((recovered.epoch, recovered.version, recovered.settled), (10, 51, kept.settled));
        assert!(recovered.unconfirmed && !recovered.clean && !kept.is_later_than(&recovered));
    }

    #[test]
    fn whatever_was_opened_is_later_than_what_was_not() {
        let member =
            |state| MemberRecord { state, ..MemberRecord::new(Uuid::nil(), Uuid::nil(), "n1".into()) };
        let new = |epoch, state| VolumeRecord {
            epoch,
            version: epoch + 1,
            ..VolumeRecord::new(Uuid::from_u128(1), 1 << 20, 4096, vec![member(state)])
        };
        let kept =
            VolumeRecord { settled: Some(Settled { epoch: 1, version: 3 }), ..new(1, MemberState::InSync) };
        let climbed = new(9, MemberState::New);
        assert!(
            kept.is_later_than(&climbed) && !climbed.is_later_than(&kept) && !climbed.is_later_than(&climbed)
        );
        // What is being deleted is not brought back by it.
        assert!(!kept.is_later_than(&new(9, MemberState::Removed)));
    }

    #[test]
    fn a_record_of_an_older_program_is_not_taken_for_an_earlier_one() {
        let settled = Some(Settled { epoch: 7, version: 30 });
        let new = |epoch, version, settled| VolumeRecord {
            version,
            epoch,
            settled,
            ..VolumeRecord::new(Uuid::from_u128(1), 1 << 20, 4096, Vec::new())
        };
        // An older engine took over, and knows no such word; a member that was away has the copy from before.
        assert!(!new(7, 30, settled).is_later_than(&new(8, 32, None)));
        assert!(new(7, 30, settled).is_later_than(&new(6, 29, None)), "set back");
    }
}
