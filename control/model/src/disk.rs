//! Disks: the block devices of the nodes, as their agents find them.
//!
//! 1. A disk keeps its object: its name comes from the disk itself, so one that was moved to another node is the same
//!    object there, and one that vanished is `Missing`, with all that was known of it.

use crate::{
    invalid::{Invalid, check_name, check_node_name, check_uuid},
    object::{Kind, Object},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;
use uuid::Uuid;

/// What kind of medium it is, as the kernel says.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum DiskClass {
    /// Attached by `NVMe`.
    #[serde(rename = "NVMe")]
    Nvme,
    /// Does not rotate.
    #[serde(rename = "SSD")]
    Ssd,
    /// Rotates, or the kernel does not know: virtual disks often say so.
    #[serde(rename = "HDD")]
    Hdd,
}

impl DiskClass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nvme, Self::Ssd, Self::Hdd];

    /// The class of this name, in capitals or not.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.to_string().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for DiskClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvme => "NVMe",
            Self::Ssd => "SSD",
            Self::Hdd => "HDD",
        })
    }
}

/// Whether a disk can become a pool.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
pub enum DiskState {
    /// Blank and unused: it can become a pool.
    Available,
    /// Carries something or is used; `message` says by what, and what to do.
    InUse,
    /// It is a pool of this cluster and of this node: `pool`.
    Pool,
    /// Its node does not find it any more. It comes back with its disk, on whichever node.
    Missing,
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "Available",
            Self::InUse => "InUse",
            Self::Pool => "Pool",
            Self::Missing => "Missing",
        })
    }
}

/// A partition of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskPartition {
    /// Its path on the node, such as `/dev/sda1`.
    pub device: String,
    /// Its number in the partition table.
    pub number: u32,
    /// Its first byte.
    pub start_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Its name in the partition table.
    pub label: Option<String>,
}

/// One disk of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// From what the disk says of itself, so that it stays when the disk moves; a DNS label.
    pub name: String,
    /// The node that has it, or had it last.
    pub node: String,
    /// Its path there; another one after each boot, perhaps.
    pub device: String,
    /// The path by which udev finds it for ever, where there is udev.
    pub by_id: Option<String>,
    /// The disk that it is a partition of.
    // Absent rather than null: definitions from before refuse the word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Whether it can become a pool.
    pub state: DiskState,
    /// The pool that it is.
    pub pool: Option<Uuid>,
    /// What kind of medium it is.
    pub class: DiskClass,
    /// What its maker calls it.
    pub model: Option<String>,
    /// The number that its maker gave it.
    pub serial: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// The unit in which it is addressed.
    pub logical_block_bytes: u32,
    /// The unit that it writes without reading.
    pub physical_block_bytes: u32,
    /// What the partition table divides it into.
    pub partitions: Vec<DiskPartition>,
    /// What lies on it, by the signatures at its ends.
    pub signatures: Vec<String>,
    /// Why it is not `Available`, or not made a pool although it is, and what to do; in one line.
    pub message: Option<String>,
}

impl Object for Disk {
    const KIND: Kind = Kind::Disk;

    fn key(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Result<(), Invalid> {
        check_name("disk", &self.name)?;
        check_node_name(&self.node)?;
        if let Some(parent) = &self.parent {
            check_name("disk", parent)?;
        }
        let object = format!("disk \"{}\"", self.name);
        match (self.state, self.pool) {
            (DiskState::Pool, None) => Err(Invalid::new(
                object,
                "it is a pool, but of none that is named",
                "report this as a bug of the node",
            )),
            (_, Some(pool)) => check_uuid(&object, "pool", pool),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_an_older_version_is_no_partition() {
        let older = serde_json::json!({
            "name": "wwn-0x1", "node": "n1", "device": "/dev/sda", "state": "Available", "class": "SSD",
            "sizeBytes": 1, "logicalBlockBytes": 512, "physicalBlockBytes": 4096, "partitions": [], "signatures": [],
            "byId": null, "pool": null, "model": null, "serial": null, "message": null,
        });
        let mut disk: Disk = serde_json::from_value(older.clone()).unwrap();
        assert_eq!((disk.parent.as_ref(), serde_json::to_value(&disk).unwrap()), (None, older));
        disk.parent = Some("wwn-0x0".into());
        let again: Disk = serde_json::from_value(serde_json::to_value(&disk).unwrap()).unwrap();
        assert!(again == disk && disk.validate().is_ok());
        disk.parent = Some("../x".into());
        disk.validate().unwrap_err();
    }

    #[test]
    fn a_class_has_a_name() {
        for class in DiskClass::ALL {
            let name = class.to_string();
            assert_eq!(DiskClass::named(&name), Some(class));
            assert_eq!(DiskClass::named(&name.to_lowercase()), Some(class));
            assert_eq!(serde_json::to_value(class).unwrap(), name);
        }
        for other in ["", "any", "NVMe ", "optane"] {
            assert_eq!(DiskClass::named(other), None, "{other:?}");
        }
    }
}
