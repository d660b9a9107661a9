//! Can a disk or a partition become a pool, or a disk be divided, and if not, why not: one answer, for a person who wants
//! to change it.

use crate::content::{Content, beside_a_table};
use crate::found::{Found, How, Partition, Use};
use crate::gpt::{ORLOP, agrees};
use pool::signature::{GPT, POOL};
use std::fmt;

/// Why a disk or partition cannot become a pool, or a disk be divided; the first reason that applies, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A device of it is mounted.
    Mounted {
        /// The disk or partition.
        device: String,
        /// Where.
        place: String,
    },
    /// A device of it is swap.
    Swap {
        /// The disk or partition.
        device: String,
    },
    /// Something is made of it.
    Held {
        /// The disk or partition.
        device: String,
        /// By what.
        holder: String,
    },
    /// It is divided.
    Partitions {
        /// The disk.
        device: String,
        /// Its partitions.
        partitions: Vec<String>,
    },
    /// Another one says the same of itself.
    Twin {
        /// The disk.
        device: String,
        /// The other one.
        other: String,
    },
    /// The kernel makes no partitions of it.
    Undivided {
        /// The disk.
        device: String,
    },
    /// It has a table of the older kind, or something that looks like one.
    OldTable {
        /// The disk.
        device: String,
    },
    /// What its table says cannot be relied on.
    Table {
        /// The disk.
        device: String,
        /// Why.
        why: String,
    },
    /// It cannot be told what it carries.
    Unclear(String),
    /// It carries something.
    Carries {
        /// The disk.
        device: String,
        /// What.
        signatures: Vec<String>,
    },
    /// It refuses writes.
    ReadOnly {
        /// The disk.
        device: String,
    },
    /// It is too small.
    TooSmall(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, place } => {
                write!(f, "/dev/{device} is mounted at {place}: unmount it first, for good")
            }
            Self::Swap { device } => {
                write!(f, "/dev/{device} is swap: `swapoff /dev/{device}` first, for good")
            }
            Self::Held { device, holder } => {
                write!(f, "/dev/{device} is part of {holder}: take that apart first")
            }
            Self::Partitions { device, partitions } => {
                let partitions = partitions.join(", ");
                write!(
                    f,
                    "/dev/{device} is divided into {partitions}: name a free partition instead of the disk, or make one \
                     (`orlop disk partition /dev/{device}`)"
                )
            }
            Self::Undivided { device } => write!(
                f,
                "the kernel makes no partitions of /dev/{device}: a loop device has them with `losetup --partscan`, others \
                 are used whole"
            ),
            Self::OldTable { device } => write!(
                f,
                "/dev/{device} has an MBR partition table or a boot sector, and only GUID partition tables are changed: \
                 `sgdisk --mbrtogpt /dev/{device}` turns one into the other"
            ),
            Self::Table { device, why } => write!(
                f,
                "the partition table of /dev/{device} cannot be relied on: {why}; `sgdisk --verify /dev/{device}` says more, \
                 and `gdisk /dev/{device}` mends it"
            ),
            Self::Twin { device, other } => write!(
                f,
                "/dev/{other} says the same of itself as /dev/{device}: use that one if these are two ways to one disk, \
                 else give one of them another serial number"
            ),
            Self::Unclear(problem) | Self::TooSmall(problem) => f.write_str(problem),
            Self::Carries { device, signatures } => write!(
                f,
                "/dev/{device} carries {}: if nobody needs it, blank it (`blkdiscard --zeroout /dev/{device}`, or \
                 zeroes over its first and last MiB)",
                signatures.join(" and ")
            ),
            Self::ReadOnly { device } => write!(f, "/dev/{device} is read-only: make it writable"),
        }
    }
}

impl Use {
    fn refusal(&self) -> Refusal {
        let device = self.device.clone();
        match &self.how {
            How::Mounted(place) => Refusal::Mounted { device, place: place.clone() },
            How::Swap => Refusal::Swap { device },
            How::Held(holder) => Refusal::Held { device, holder: holder.clone() },
        }
    }
}

impl Found {
    /// Why it cannot become a pool; none if it can.
    pub fn refusal(&self) -> Option<Refusal> {
        if let Some(used) = self.uses.first() {
            return Some(used.refusal());
        }
        if !self.partitions.is_empty() {
            let device = self.kernel_name.clone();
            let partitions = self.partitions.iter().map(|partition| partition.kernel_name.clone()).collect();
            return Some(Refusal::Partitions { device, partitions });
        }
        unfit(&self.kernel_name, &self.content, self.read_only, self.size_bytes)
    }

    /// Why a partition of it cannot become a pool; none if it can.
    pub fn refusal_of(&self, partition: &Partition) -> Option<Refusal> {
        let (disk, device) = (&self.kernel_name, &partition.kernel_name);
        if let Some(used) = self.uses.iter().find(|used| [disk, device].contains(&&used.device)) {
            return Some(used.refusal());
        }
        // What a disk carries may reach into its partitions: a RAID of whole disks, for one.
        self.table_refusal().or_else(|| {
            let read_only = self.read_only || partition.read_only;
            unfit(device, &partition.content, read_only, partition.size_bytes)
        })
    }

    /// Why no partition can be made on it; none if there can, if there is room.
    pub fn division_refusal(&self) -> Option<Refusal> {
        let device = self.kernel_name.clone();
        if let Some(used) = self.uses.iter().find(|used| used.device == device) {
            return Some(used.refusal());
        }
        if self.read_only {
            return Some(Refusal::ReadOnly { device });
        }
        if self.partitions_max.is_some_and(|most| most <= 1) {
            return Some(Refusal::Undivided { device });
        }
        let is_blank = self.content.problem.is_none() && self.content.signatures.is_empty();
        if is_blank && self.partitions.is_empty() { None } else { self.table_refusal() }
    }

    /// Why its table cannot be relied on; none if it has a good one that the kernel knows, and nothing else.
    fn table_refusal(&self) -> Option<Refusal> {
        let device = self.kernel_name.clone();
        let Content { signatures, problem, division, .. } = &self.content;
        if let Some(problem) = problem {
            return Some(Refusal::Unclear(problem.clone()));
        }
        if beside_a_table(signatures).is_some() {
            return Some(Refusal::Carries { device, signatures: signatures.clone() });
        }
        let why = match division {
            Some(division) => {
                division.damage.clone().or_else(|| agrees(&division.entries, &self.partitions).err())
            }
            None if signatures.iter().any(|signature| signature == GPT) => {
                Some("it is one for blocks of another size".to_owned())
            }
            None => return Some(Refusal::OldTable { device }),
        };
        why.map(|why| Refusal::Table { device, why })
    }

    /// Whether a partition is meant to be a pool, or is one: the others are their disk's own affair.
    pub(crate) fn is_meant(&self, partition: &Partition) -> bool {
        let is_of_type = self.entry_of(partition).is_some_and(|entry| entry.kind == ORLOP);
        is_of_type || partition.content.signatures.iter().any(|signature| signature == POOL)
    }
}

/// Why what nobody uses cannot become a pool.
fn unfit(device: &str, content: &Content, read_only: bool, size_bytes: u64) -> Option<Refusal> {
    let device = device.to_owned();
    if let Some(problem) = &content.problem {
        return Some(Refusal::Unclear(problem.clone()));
    }
    if !content.signatures.is_empty() {
        return Some(Refusal::Carries { device, signatures: content.signatures.clone() });
    }
    if read_only {
        return Some(Refusal::ReadOnly { device });
    }
    pool::check_size(size_bytes).err().map(|error| Refusal::TooSmall(error.to_string()))
}
