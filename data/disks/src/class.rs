//! What kind of medium a disk is, as sysfs says or its operator.

use crate::Roots;
use crate::sysfs::{Block, blocks};
use model::DiskClass;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The class of the disk at this path, or of the disk of the partition there; none if it is no block device.
pub fn class_at(roots: &Roots, path: &Path) -> Option<DiskClass> {
    let there = fs::metadata(path).ok().filter(|there| there.file_type().is_block_device())?;
    let device = there.rdev();
    class_of(roots, (rustix::fs::major(device), rustix::fs::minor(device)))
}

/// The class of the disk with this major and minor number, or of the disk whose partition it is.
pub fn class_of(roots: &Roots, number: (u32, u32)) -> Option<DiskClass> {
    let all = blocks(&roots.sys).ok()?.into_iter().map(|name| Block::new(&roots.sys, &name));
    let is_it = |block: &Block| {
        let partitions = || block.partitions().into_iter().map(|divided| divided.device_number);
        block.device_number() == Some(number) || partitions().any(|other| other == Some(number))
    };
    all.into_iter().find(is_it).map(|block| class(&block))
}

/// The class of this name, as people write it.
pub(crate) fn named(name: &str) -> Result<DiskClass, String> {
    DiskClass::named(name).ok_or_else(|| format!("{name:?} is not a class: NVMe, SSD or HDD"))
}

pub(crate) fn class(block: &Block) -> DiskClass {
    if block.name.starts_with("nvme") {
        DiskClass::Nvme
    } else if block.number("queue/rotational") == Some(0) {
        DiskClass::Ssd
    } else {
        DiskClass::Hdd
    }
}
