//! What a device carries, found out before anything is written to it.
//!
//! 1. A file system is made only where nothing is: the first and the last MiB are zero, as a new volume is everywhere.
//!    Whatever else is there, known or not, is somebody's.
//! 2. While one is made, a mark lies a MiB before the end of the volume, where no mkfs writes. It is on the volume
//!    itself, hence fenced with it, and found by whatever node goes on. It is durable before mkfs begins, and gone,
//!    durably, before the file system is mounted for the first time: a volume with a mark has never been mounted.
//! 3. The mark names the volume's UUID, which no container is told: nobody can write one into a file.

use crate::filesystem::{Filesystem, RESERVED_BYTES};
use std::{fs::File, io, os::unix::fs::FileExt};

/// A device carries this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Nothing, as far as anybody can tell.
    Nothing,
    /// A file system.
    Filesystem(Filesystem),
    /// What is left of a mkfs that did not come to its end.
    Unfinished,
    /// Something that Orlop does not mount: its name.
    Other(&'static str),
}

const MARK_BYTES: usize = 4096;
const MIB: usize = 1 << 20;
const STEP: u64 = 1 << 20;

/// Signatures of what is not to be touched, from the start of the device.
const OTHERS: [(usize, &[u8], &str); 13] = [
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (536, b"LVM2 001", "a physical volume of LVM"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a RAID (md)"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a cache (bcache)"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (32769, b"CD001", "iso9660"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (0, b"hsqs", "squashfs"),
];

/// What the device of this size carries.
pub(crate) fn look(device: &File, device_bytes: u64, volume: &str) -> io::Result<Contents> {
    let mut head = vec![0; MIB];
    let mut tail = vec![0; MIB];
    device.read_exact_at(&mut head, 0)?;
    device.read_exact_at(&mut tail, device_bytes.saturating_sub(STEP))?;
    let mark = mark(volume);
    if tail.starts_with(&mark) {
        return Ok(Contents::Unfinished);
    }
    Ok(match recognize(&head) {
        Some(known) => known,
        None if is_zero(&head) && is_zero(&tail) => Contents::Nothing,
        // A volume that has grown since the mark was written has it further in.
        None if has_mark_within(device, device_bytes, &mark)? => Contents::Unfinished,
        None => Contents::Other("data of an unknown kind"),
    })
}

/// Writes the mark, or removes it, and waits until that is durable.
pub(crate) fn set_mark(device: &File, device_bytes: u64, volume: &str, there: bool) -> io::Result<()> {
    let (offset, mark) = (device_bytes.saturating_sub(RESERVED_BYTES), mark(volume));
    if there {
        device.write_all_at(&mark, offset)?;
    } else {
        let mut found = vec![0; MARK_BYTES];
        device.read_exact_at(&mut found, offset)?;
        // A mkfs that wrote over it has removed it: those bytes are its own.
        if found == mark {
            device.write_all_at(&vec![0; MARK_BYTES], offset)?;
        }
    }
    device.sync_all()
}

/// Whether the device has room that its ext4 does not cover, the reserve apart.
pub(crate) fn ext4_can_grow(device: &File, device_bytes: u64) -> io::Result<bool> {
    let mut superblock = [0; 1024];
    device.read_exact_at(&mut superblock, 1024)?;
    let word = |at: usize| {
        let bytes = superblock.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        u64::from(u32::from_le_bytes(bytes))
    };
    let blocks = word(0x04) | word(0x150) << 32;
    let covered_bytes = blocks.saturating_mul(1024 << word(0x18).min(6));
    Ok(device_bytes.saturating_sub(covered_bytes) > RESERVED_BYTES)
}

/// A whole block, so that it is written at once or not at all.
fn mark(volume: &str) -> Vec<u8> {
    let mut mark = format!("orlop.io: a file system is being made on volume {volume}\n").into_bytes();
    mark.resize(MARK_BYTES, 0);
    mark
}

fn has_mark_within(device: &File, device_bytes: u64, mark: &[u8]) -> io::Result<bool> {
    let mut found = vec![0; MARK_BYTES];
    for step in (0..device_bytes / STEP).rev() {
        device.read_exact_at(&mut found, step * STEP)?;
        if found == mark {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The file system, or the other thing, that begins like this.
fn recognize(head: &[u8]) -> Option<Contents> {
    let has = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    // Its mkfs says until the end that it is in progress.
    if has(0, b"XFSB") {
        return (head.get(126) == Some(&0)).then_some(Contents::Filesystem(Filesystem::Xfs));
    }
    if has(0x1_0040, b"_BHRfS_M") {
        return Some(Contents::Filesystem(Filesystem::Btrfs));
    }
    if has(1080, b"\x53\xef") {
        return Some(Contents::Filesystem(Filesystem::Ext4));
    }
    // Last: boot sectors of other things end like it, too.
    let boot = has(510, b"\x55\xaa").then_some(Contents::Other("a partition table (DOS)"));
    let other = OTHERS.iter().find(|(offset, magic, _)| has(*offset, magic));
    other.map(|(_, _, name)| Contents::Other(name)).or(boot)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
