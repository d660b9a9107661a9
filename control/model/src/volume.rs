//! A volume as its user, the manager and its nexus see it: spec, intent, status.
//!
//! Invariants of the intent, checked by `validate` and by the manager's property tests:
//! 1. No two members in one pool. Two on one node only where the pool of all but one of them is gone from the node; that
//!    takes more than the volume to see, so the manager's property tests check it (docs/decisions/0009).
//! 2. `attach` names the node that `owner` names: the device is where the nexus is.
//! 3. A volume that is being deleted is attached nowhere.
//! 4. No replica is both wished and to be forgotten (docs/decisions/0028).
//! 5. A volume that is attached has no readers, and one with readers is attached nowhere: who reads is never told of a
//!    write, and goes on with what it remembers (docs/decisions/0026).

use crate::{
    DiskClass, Generation, MemberState, VolumeRecord,
    invalid::{Invalid, SizeText, check_name, check_node_name, check_uuid},
    object::{Kind, Object},
    topology::check_label_key,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};
use utoipa::ToSchema;
use uuid::Uuid;

/// What a volume may be.
pub mod limits {
    /// Sizes are multiples of this, which is also the smallest size.
    pub const SIZE_UNIT_BYTES: u64 = 1 << 20;
    /// The largest size.
    pub const SIZE_MAX_BYTES: u64 = 64 << 40;
    /// The most copies.
    pub const COPIES_MAX: u32 = 5;
    /// The most stripes for now.
    pub const STRIPES_MAX: u32 = 1;
    /// The most hosts that a record remembers.
    pub const HOSTS_MAX: usize = 64;
    /// The most volumes that are attached on one node: each has a loop device and a FUSE mount of its own.
    pub const ATTACHED_MAX: usize = 256;
    /// The logical block sizes.
    pub const BLOCK_SIZES_BYTES: [u32; 2] = [512, 4096];
}

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeSpec {
    /// A multiple of 1 MiB. It may grow, never shrink.
    pub size_bytes: u64,
    /// How many nodes hold each block.
    #[serde(default = "default_copies")]
    pub copies: u32,
    /// Over how many pools each copy is striped. Only 1 for now.
    #[serde(default = "default_stripes")]
    pub stripes: u32,
    /// The logical block size: 4096, or 512 for software that insists.
    #[serde(default = "default_block_size")]
    pub block_size: u32,
    /// The class of the disks that hold copies: the pools' `class`. None: any disk. It cannot be changed.
    // Absent rather than null, so that programs from before there were classes read all volumes that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<DiskClass>,
    /// The label of nodes by which copies are kept apart: each is on a node with another value of it, and a node without
    /// the label holds none. None: only nodes differ. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<String>,
}

const fn default_copies() -> u32 {
    3
}

const fn default_stripes() -> u32 {
    1
}

const fn default_block_size() -> u32 {
    4096
}

impl VolumeSpec {
    /// Whether a volume of this name can be this; the error names the volume.
    pub fn validate(&self, name: &str) -> Result<(), Invalid> {
        use limits::{BLOCK_SIZES_BYTES, COPIES_MAX, SIZE_MAX_BYTES, SIZE_UNIT_BYTES, STRIPES_MAX};
        let invalid =
            |cause: String, hint: &str| Err(Invalid::new(format!("volume \"{name}\""), cause, hint));
        let size = self.size_bytes;
        if size == 0 || !size.is_multiple_of(SIZE_UNIT_BYTES) {
            return invalid(
                format!("size of {size} bytes is not a multiple of 1 MiB"),
                "give a size such as 1GiB or 512MiB",
            );
        }
        if size > SIZE_MAX_BYTES {
            return invalid(
                format!("size of {} exceeds {}", SizeText(size), SizeText(SIZE_MAX_BYTES)),
                "make it smaller",
            );
        }
        if self.copies == 0 || self.copies > COPIES_MAX {
            return invalid(format!("{} copies are not possible", self.copies), "use 1 to 5 copies");
        }
        if self.stripes == 0 || self.stripes > STRIPES_MAX {
            return invalid(format!("{} stripes are not supported yet", self.stripes), "use 1 stripe");
        }
        if !BLOCK_SIZES_BYTES.contains(&self.block_size) {
            return invalid(
                format!("block size {} is not supported", self.block_size),
                "use 4096, or 512 if software needs it",
            );
        }
        if let Some(key) = &self.spread {
            check_label_key(&format!("volume \"{name}\""), key)?;
        }
        Ok(())
    }
}

/// A place for one copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberIntent {
    /// The replica, never used twice.
    pub replica: Uuid,
    /// The pool to hold it.
    pub pool: Uuid,
    /// The node of that pool.
    pub node: String,
}

/// Where the device should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attach {
    /// The node.
    pub node: String,
}

/// Where a volume should live: written by the manager and the API, followed by engines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeIntent {
    /// The wanted copies. The nexus adds to the record, as `New`, those that it lacks; it turns those that are no longer
    /// wanted into `Removed` once enough of the others are `InSync`.
    pub members: Vec<MemberIntent>,
    /// The replicas, in order, that are destroyed for good. The nexus drops those of them from the record that are `Removed`
    /// there.
    // Absent rather than empty, so that older programs and definitions see the word only where it is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<Uuid>,
    /// Where the device should be; none: nowhere.
    pub attach: Option<Attach>,
    /// The nodes, in order, that have a device which can be read only; each of them has it of its own, wherever the nexus
    /// is.
    // Absent rather than empty, so that programs from before there were readers read all volumes that have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<String>,
    /// Grows with each new attachment that is asked for, so that a detach and an attach in quick succession are seen. All
    /// readers that follow each other without a gap are one: within a number nobody has written.
    pub attach_serial: u64,
    /// Where the nexus should run; none: nowhere, and who runs one closes it in order.
    pub owner: Option<String>,
    /// The record has been made: if there is none now, it was lost, and must not be made again as if nothing had been.
    pub recorded: bool,
    /// The volume and all its data are to go.
    pub deleting: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Unique in the cluster while the volume exists; a DNS label.
    pub name: String,
    /// Never used twice.
    pub uuid: Uuid,
    /// What the user wants.
    pub spec: VolumeSpec,
    /// Where it should live.
    pub intent: VolumeIntent,
    /// What keeps the manager from doing better, in one line.
    pub message: Option<String>,
}

/// What the nexus is doing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum NexusState {
    /// Takes the next epoch and connects to its members.
    Opening,
    /// Serves reads and writes.
    Serving,
    /// Holds I/O: no `InSync` member, or the store, can be reached.
    Stalled,
    /// Ends its I/O and hands over.
    Closing,
    /// Has ended in order.
    Closed,
    /// Has ended because it was fenced, or because of an error that `message` names.
    Failed,
}

/// A member's state without its numbers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum MemberPhase {
    /// Named, not yet made.
    New,
    /// Has every acknowledged write.
    InSync,
    /// Has missed writes.
    Stale,
    /// Is being given what it missed.
    Rebuilding,
    /// To be destroyed.
    Removed,
}

impl From<MemberState> for MemberPhase {
    fn from(state: MemberState) -> Self {
        match state {
            MemberState::New => Self::New,
            MemberState::InSync => Self::InSync,
            MemberState::Stale { .. } => Self::Stale,
            MemberState::Rebuilding { .. } => Self::Rebuilding,
            MemberState::Removed => Self::Removed,
        }
    }
}

impl fmt::Display for MemberPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "New",
            Self::InSync => "InSync",
            Self::Stale => "Stale",
            Self::Rebuilding => "Rebuilding",
            Self::Removed => "Removed",
        })
    }
}

/// The progress of a rebuild.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rebuild {
    /// Of what is owed, compared or copied so far.
    pub done_bytes: u64,
    /// What is owed.
    pub total_bytes: u64,
    /// Of `done_bytes`, sent because the hashes differed.
    pub sent_bytes: u64,
    /// How often it was resumed rather than started again.
    pub resumed: u64,
}

/// One member as its nexus sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// The replica.
    pub replica: Uuid,
    /// Its node.
    pub node: String,
    /// Its state.
    pub state: MemberPhase,
    /// Whether the nexus has a connection to it that works.
    pub reachable: bool,
    /// While `Rebuilding`.
    pub rebuild: Option<Rebuild>,
    /// The last rebuild that ended: what it took.
    pub rebuilt: Option<Rebuild>,
    /// What is wrong, in one line.
    pub message: Option<String>,
}

/// A volume as the engine that runs its nexus sees it. An engine overwrites only a status of its own or a lower epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// The volume, also the key.
    pub volume: Uuid,
    /// The node of the nexus.
    pub node: String,
    /// The nexus.
    pub nexus: Uuid,
    /// Its epoch.
    pub epoch: u64,
    /// What it is doing.
    pub state: NexusState,
    /// The path of the block device, or of the file, on `node`.
    pub device: Option<String>,
    /// Where initiators find it: `nvme+tcp://host:port/NQN`.
    pub target: Option<String>,
    /// The `attachment` number that the device has (I10).
    pub attachment: u64,
    /// The `intent.attachSerial` that the device answers.
    pub attach_serial: u64,
    /// The size that hosts see: of the device where there is one.
    pub size_bytes: u64,
    /// The generation that is stable on all `InSync` members.
    pub stable: Generation,
    /// The members, in the order of the record.
    pub members: Vec<MemberStatus>,
    /// The longest that a write has waited since the nexus opened.
    #[serde(default)]
    pub write_stall_max_ms: u64,
    /// Why it is not `Serving`, in one line.
    pub message: Option<String>,
}

impl Object for Volume {
    const KIND: Kind = Kind::Volume;

    fn key(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_name("volume", &self.name)?;
        let object = format!("volume \"{}\"", self.name);
        check_uuid(&object, "uuid", self.uuid)?;
        self.spec.validate(&self.name)?;
        let bug = |cause: &str| Err(Invalid::new(&object, cause, "report this as a bug of the manager"));
        let mut pools = BTreeSet::new();
        if !self.intent.members.iter().all(|member| pools.insert(member.pool)) {
            return bug("two members in one pool");
        }
        if !self.intent.forget.is_sorted_by(|a, b| a < b) {
            return bug("replicas to be forgotten are not in order");
        }
        if self.intent.members.iter().any(|member| self.intent.forget.contains(&member.replica)) {
            return bug("a member is to be forgotten");
        }
        if let Some(attach) = &self.intent.attach {
            if self.intent.owner.as_ref() != Some(&attach.node) {
                return bug("attached to another node than its owner's");
            }
            if self.intent.deleting {
                return bug("attached while being deleted");
            }
            if !self.intent.readers.is_empty() {
                return bug("attached for writing while there are readers");
            }
        }
        if self.intent.deleting && !self.intent.readers.is_empty() {
            return bug("read while being deleted");
        }
        if !self.intent.readers.is_sorted_by(|a, b| a < b) {
            return bug("readers are not in order");
        }
        Ok(())
    }
}

impl Object for VolumeRecord {
    const KIND: Kind = Kind::VolumeRecord;

    fn key(&self) -> String {
        self.volume.to_string()
    }

    fn validate(&self) -> Result<(), Invalid> {
        let object = format!("record of volume {}", self.volume);
        check_uuid(&object, "volume", self.volume)?;
        let mut replicas = BTreeSet::new();
        if !self.members.iter().all(|member| replicas.insert(member.replica)) {
            return Err(Invalid::new(object, "names a replica twice", "report this as a bug of the nexus"));
        }
        if self.size_bytes == 0 || !limits::BLOCK_SIZES_BYTES.contains(&self.block_size) {
            return Err(Invalid::new(
                object,
                "has no valid size or block size",
                "report this as a bug of the nexus",
            ));
        }
        Ok(())
    }
}

impl Object for VolumeStatus {
    const KIND: Kind = Kind::VolumeStatus;

    fn key(&self) -> String {
        self.volume.to_string()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_uuid("status of a volume", "volume", self.volume)?;
        check_node_name(&self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(size_bytes: u64, copies: u32, stripes: u32, block_size: u32) -> VolumeSpec {
        VolumeSpec { size_bytes, copies, stripes, block_size, class: None, spread: None }
    }

    #[test]
    fn a_bad_spec_is_named() {
        for (spec, says) in [
            (spec(0, 3, 1, 4096), "not a multiple of 1 MiB"),
            (spec(4097, 3, 1, 4096), "not a multiple of 1 MiB"),
            (spec(65 << 40, 3, 1, 4096), "exceeds 64 TiB"),
            (spec(1 << 30, 0, 1, 4096), "0 copies"),
            (spec(1 << 30, 6, 1, 4096), "6 copies"),
            (spec(1 << 30, 3, 2, 4096), "2 stripes are not supported yet"),
            (spec(1 << 30, 3, 1, 1024), "block size 1024"),
        ] {
            let error = spec.validate("data").unwrap_err().to_string();
            assert!(error.starts_with("volume \"data\": ") && error.contains(says), "{error}");
        }
        assert_eq!(spec(1 << 30, 3, 1, 512).validate("data"), Ok(()));
    }

    #[test]
    fn a_spec_has_defaults_and_no_unknown_fields() {
        let parsed: VolumeSpec = serde_json::from_str(r#"{"sizeBytes": 1048576}"#).unwrap();
        assert_eq!(parsed, spec(1 << 20, 3, 1, 4096));
        assert_eq!(serde_json::to_value(&parsed).unwrap().get("class"), None, "as older programs know it");
        let with_class: VolumeSpec =
            serde_json::from_str(r#"{"sizeBytes": 1048576, "class": "NVMe"}"#).unwrap();
        assert_eq!(with_class, VolumeSpec { class: Some(DiskClass::Nvme), ..parsed });
        assert_eq!(serde_json::to_value(&with_class).unwrap()["class"], "NVMe");
        assert_eq!(serde_json::to_value(&with_class).unwrap().get("spread"), None);
        assert!(serde_json::from_str::<VolumeSpec>(r#"{"sizeBytes": 1048576, "class": "tape"}"#).is_err());
        let spread: VolumeSpec = serde_json::from_str(r#"{"sizeBytes": 1048576, "spread": "rack"}"#).unwrap();
        let json = serde_json::to_value(&spread).unwrap();
        assert_eq!((&json["spread"], json.get("class")), (&"rack".into(), None));
        assert_eq!(spread.validate("data"), Ok(()));
        let bad = VolumeSpec { spread: Some("no label".into()), ..spread };
        let says = "volume \"data\": \"no label\" is no label; use one such as";
        assert!(bad.validate("data").unwrap_err().to_string().starts_with(says));
        assert!(serde_json::from_str::<VolumeSpec>(r#"{"sizeBytes": 1048576, "copys": 2}"#).is_err());
    }

    #[test]
    fn intent_invariants_hold() {
        let member = |node: &str, pool: u128| MemberIntent {
            replica: Uuid::from_u128(100 + pool),
            pool: Uuid::from_u128(pool),
            node: node.into(),
        };
        let mut volume = Volume {
            name: "data".into(),
            uuid: Uuid::from_u128(1),
            spec: spec(1 << 20, 1, 1, 4096),
            intent: VolumeIntent {
                members: vec![member("n1", 8), member("n2", 9)],
                ..VolumeIntent::default()
            },
            message: None,
        };
        assert_eq!(volume.validate(), Ok(()));
        volume.intent.attach = Some(Attach { node: "n1".into() });
        assert!(volume.validate().is_err(), "attach without owner");
        volume.intent.owner = Some("n1".into());
        assert_eq!(volume.validate(), Ok(()));
        volume.intent.members[1].node = "n1".into();
        assert_eq!(volume.validate(), Ok(()), "the place of one whose pool is gone");
        volume.intent.members[1].pool = Uuid::from_u128(8);
        assert!(volume.validate().is_err(), "two in one pool");
    }

    /// A volume as programs wrote it that did not know this word, and as it is still written where the word is not used.
    fn written_before(word: &str) -> Volume {
        let text = r#"{"members": [], "attach": null, "attachSerial": 3, "owner": null, "recorded": true,
            "deleting": false}"#;
        let intent: VolumeIntent = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&intent).unwrap().get(word), None, "as older programs know it");
        let (name, uuid, spec) = ("data".into(), Uuid::from_u128(1), spec(1 << 20, 1, 1, 4096));
        Volume { name, uuid, spec, intent, message: None }
    }

    #[test]
    fn a_replica_is_wished_or_to_be_forgotten() {
        let mut volume = written_before("forget");
        let [first, second] = [Uuid::from_u128(7), Uuid::from_u128(8)];
        volume.intent.forget = vec![first, second];
        assert_eq!(volume.validate(), Ok(()));
        let json = serde_json::to_value(&volume.intent).unwrap();
        assert_eq!(json["forget"], serde_json::json!([first, second]));
        assert_eq!(serde_json::from_value::<VolumeIntent>(json).unwrap(), volume.intent);
        let pool = Uuid::from_u128(9);
        volume.intent.members = vec![MemberIntent { replica: second, pool, node: "n1".into() }];
        assert!(volume.validate().is_err(), "wished and to be forgotten");
        volume.intent.forget = vec![first, first];
        assert!(volume.validate().is_err(), "twice");
    }

    #[test]
    fn who_reads_and_who_writes_exclude_each_other() {
        let mut volume = written_before("readers");
        volume.intent.readers = vec!["n1".into(), "n2".into()];
        assert_eq!(volume.validate(), Ok(()));
        let read: VolumeIntent =
            serde_json::from_value(serde_json::to_value(&volume.intent).unwrap()).unwrap();
        assert_eq!(read, volume.intent);
        volume.intent.readers.push("n2".into());
        assert!(volume.validate().is_err(), "a node twice");
        volume.intent.readers.pop();
        volume.intent.deleting = true;
        assert!(volume.validate().is_err(), "read while being deleted");
        volume.intent.deleting = false;
        volume.intent.owner = Some("n1".into());
        volume.intent.attach = Some(Attach { node: "n1".into() });
        assert!(volume.validate().is_err(), "read and written");
        volume.intent.readers.clear();
        assert_eq!(volume.validate(), Ok(()));
    }
}
