//! What was found of one disk: facts, no judgement.

use crate::content::Content;
use crate::gpt::Entry;
use model::DiskClass;

/// One disk of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As the kernel calls it until the next boot, such as `sda`.
    pub kernel_name: String,
    /// Its links below `/dev/disk/by-id`, ordered.
    pub links: Vec<String>,
    /// What kind of medium it is.
    pub class: DiskClass,
    /// What its maker calls it.
    pub model: Option<String>,
    /// The number that its maker gave it.
    pub serial: Option<String>,
    /// The world-wide name that the kernel read from it, such as `naa.5000c500a1b2c3d4`.
    pub wwid: Option<String>,
    /// The number of the NVMe namespace, from 1.
    pub namespace: Option<u32>,
    /// Its size.
    pub size_bytes: u64,
    /// The unit in which it is addressed.
    pub logical_block_bytes: u32,
    /// The unit that it writes without reading.
    pub physical_block_bytes: u32,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// The highest number that the kernel gives to a partition of it, where it says so; 1 or less if it makes none.
    pub partitions_max: Option<u32>,
    /// The partitions that the kernel sees on it, by number.
    pub partitions: Vec<Partition>,
    /// Who uses it or its partitions.
    pub uses: Vec<Use>,
    /// What lies on it.
    pub content: Content,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As the kernel calls it.
    pub kernel_name: String,
    /// Its number in the table.
    pub number: u32,
    /// Its first byte.
    pub start_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Its name in the table.
    pub label: Option<String>,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Its links below `/dev/disk/by-id`, ordered.
    pub links: Vec<String>,
    /// What lies on it; not looked at while it is mounted, swap or part of something.
    pub content: Content,
}

impl Found {
    /// What the disk's table says of a partition; none if it has no such one at that place.
    pub fn entry_of(&self, partition: &Partition) -> Option<&Entry> {
        let place = |entry: &&Entry| {
            (entry.number, entry.start_bytes, entry.size_bytes)
                == (partition.number, partition.start_bytes, partition.size_bytes)
        };
        self.content.division.as_ref()?.entries.iter().find(place)
    }
}

/// One use of a disk or of a partition of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The disk or partition, as the kernel calls it.
    pub device: String,
    /// What for.
    pub how: How,
}

/// What a device is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It is mounted there.
    Mounted(String),
    /// It is swap space.
    Swap,
    /// A device of RAID, LVM, encryption and the like is made of it.
    Held(String),
}
