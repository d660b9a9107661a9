//! The file systems that a volume can carry, and the programs that make, check and grow them.
//!
//! Every command is a list of words, made here and run in `node::tool`.

use crate::refusal::invalid;
use std::path::Path;
use tonic::Status;

/// A volume ends with this much that no new file system covers: the mark of one that is being made lies there
/// (`node::contents`). Growing takes it in.
pub(crate) const RESERVED_BYTES: u64 = 1 << 20;

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Filesystem {
    /// The one to take where nobody says which.
    #[default]
    Ext4,
    Xfs,
    Btrfs,
}

impl Filesystem {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// As `mount` and Kubernetes call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The file system of this name; none if the name is empty.
    pub(crate) fn parse(name: &str) -> Result<Option<Self>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let known = Self::ALL.into_iter().find(|known| known.name() == name);
        known.map(Some).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            invalid(format!("file system {name:?} is not supported; use one of {names}"))
        })
    }

    /// The smallest one that its mkfs makes.
    pub(crate) const fn min_bytes(self) -> u64 {
        match self {
            Self::Ext4 => 16 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 109 << 20,
        }
    }

    /// Makes one on a device that holds nothing that is wanted. Nothing is discarded: a new volume holds nothing, and
    /// the mark must stay.
    pub(crate) fn make(self, device: &Path, device_bytes: u64) -> Vec<String> {
        let size = device_bytes.saturating_sub(RESERVED_BYTES);
        let device = device.display().to_string();
        match self {
            Self::Ext4 => {
                words(&["mkfs.ext4", "-q", "-F", "-E", "nodiscard", &device, &format!("{}k", size >> 10)])
            }
            Self::Xfs => words(&["mkfs.xfs", "-q", "-f", "-K", "-d", &format!("size={size}"), &device]),
            Self::Btrfs => words(&["mkfs.btrfs", "-q", "-f", "-K", "-b", &size.to_string(), &device]),
        }
    }

    /// Repairs what can be repaired without asking, before it is mounted; the others do that when they are mounted.
    pub(crate) fn check(self, device: &Path) -> Option<Vec<String>> {
        let device = device.display().to_string();
        (self == Self::Ext4).then(|| words(&["e2fsck", "-p", &device]))
    }

    /// Makes one that is not mounted as large as its device, as far as it can be done so.
    pub(crate) fn grow_unmounted(self, device: &Path) -> Vec<Vec<String>> {
        let device = device.display().to_string();
        let ext4 = || vec![words(&["e2fsck", "-f", "-p", &device]), words(&["resize2fs", &device])];
        if self == Self::Ext4 { ext4() } else { Vec::new() }
    }

    /// Makes a mounted one as large as its device.
    pub(crate) fn grow(self, device: &Path, mounted_on: &Path) -> Vec<String> {
        let mounted_on = mounted_on.display().to_string();
        match self {
            Self::Ext4 => words(&["resize2fs", &device.display().to_string()]),
            Self::Xfs => words(&["xfs_growfs", "-d", &mounted_on]),
            Self::Btrfs => words(&["btrfs", "filesystem", "resize", "max", &mounted_on]),
        }
    }

    /// The Debian package with its programs.
    pub(crate) const fn package(self) -> &'static str {
        match self {
            Self::Ext4 => "e2fsprogs",
            Self::Xfs => "xfsprogs",
            Self::Btrfs => "btrfs-progs",
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
