//! Can a disk become a pool, and if not, why not: one answer, for a person who wants to change it.

use crate::found::{Found, How};
use std::fmt;

/// Why a disk cannot become a pool; the first reason that applies, in this order.
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
                    "/dev/{device} is divided into {partitions}: name a free partition instead of the disk"
                )
            }
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

impl Found {
    /// Why it cannot become a pool; none if it can.
    pub fn refusal(&self) -> Option<Refusal> {
        let device = self.kernel_name.clone();
        if let Some(used) = self.uses.first() {
            let device = used.device.clone();
            return Some(match &used.how {
                How::Mounted(place) => Refusal::Mounted { device, place: place.clone() },
                How::Swap => Refusal::Swap { device },
                How::Held(holder) => Refusal::Held { device, holder: holder.clone() },
            });
        }
        if !self.partitions.is_empty() {
            let partitions = self.partitions.iter().map(|partition| partition.kernel_name.clone()).collect();
            return Some(Refusal::Partitions { device, partitions });
        }
        if let Some(problem) = &self.content.problem {
            return Some(Refusal::Unclear(problem.clone()));
        }
        if !self.content.signatures.is_empty() {
            return Some(Refusal::Carries { device, signatures: self.content.signatures.clone() });
        }
        if self.read_only {
            return Some(Refusal::ReadOnly { device });
        }
        pool::check_size(self.size_bytes).err().map(|error| Refusal::TooSmall(error.to_string()))
    }
}
