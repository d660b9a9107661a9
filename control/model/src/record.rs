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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_hosts_were_kept_is_read() {
        let old = r#"{"volume": "00000000-0000-0000-0000-000000000001", "version": 3, "epoch": 2, "owner": null,
            "clean": true, "sizeBytes": 1048576, "blockSize": 4096, "attachment": 7, "gapThrough": 0, "members": []}"#;
        let record: VolumeRecord = serde_json::from_str(old).unwrap();
        assert_eq!((record.attachment, record.hosts), (7, Vec::new()));
    }
}
