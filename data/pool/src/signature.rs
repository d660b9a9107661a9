//! What a device carries already: a pool is never made over something that somebody may miss, and a disk that carries
//! anything is not offered as free.
//!
//! 1. One answer for both: what this finds nothing on is what [`crate::Pool::format`] formats.
//! 2. The offsets are those of the formats' own specifications; a signature that may lie at several places is here
//!    several times.

use crate::load::read_region;
use crate::pool::{PoolLabel, label};
use crate::superblock::Superblock;
use crate::{error::Error, layout::BLOCK_LEN, layout::SUPERBLOCKS, layout::index};
use device::{BlockCount, Device, Lba, Status};
use rt::Durability;
use std::collections::BTreeSet;

/// How much of a device's front and of its end is looked at.
pub const LOOKED_AT_BYTES: u64 = 1 << 20;

/// What an Orlop pool is called among the signatures.
pub const POOL: &str = "an Orlop pool";
/// What a table of partitions is called among the signatures.
pub const GPT: &str = "a GPT partition table";
/// What the older kind of table is called, and what protects the newer one from older programs.
pub const MBR: &str = "an MBR partition table or a boot sector";
const RAID: &str = "a software RAID member";
const LVM: &str = "an LVM physical volume";
const SWAP: &str = "swap space";
const FAT: &str = "a FAT file system";
const OCFS2: &str = "an OCFS2 file system";
const ZFS: &str = "a ZFS member";
const DRBD: &str = "a DRBD device";

/// How the metadata of a RAID member begin.
const RAID_MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];

/// Signatures in the front: name, offset, bytes.
const FRONT: [(&str, usize, &[u8]); 47] = [
    (POOL, 0, b"ORLOPOOL"),
    (POOL, 512 << 10, b"ORLOPOOL"),
    ("an xfs file system", 0, b"XFSB"),
    ("an ext2, ext3 or ext4 file system", 0x438, &[0x53, 0xef]),
    ("a btrfs file system", 0x1_0040, b"_BHRfS_M"),
    ("a bcachefs file system", 4120, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9]),
    ("an f2fs file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an erofs file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("a squashfs file system", 0, b"hsqs"),
    ("a jfs file system", 0x8000, b"JFS1"),
    ("a reiserfs file system", 0x1_0034, b"ReIsEr"),
    ("a GFS2 file system", 0x1_0000, &[0x01, 0x16, 0x19, 0x70]),
    (OCFS2, 0x400, b"OCFSV2"),
    (OCFS2, 0x800, b"OCFSV2"),
    (OCFS2, 0x1000, b"OCFSV2"),
    (OCFS2, 0x2000, b"OCFSV2"),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("an ntfs file system", 3, b"NTFS    "),
    ("a ReFS file system", 3, b"ReFS\0\0\0\0"),
    ("an exfat file system", 3, b"EXFAT   "),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    (FAT, 54, b"FAT12   "),
    (FAT, 54, b"FAT16   "),
    (FAT, 82, b"FAT32   "),
    ("an APFS container", 32, b"NXSB"),
    ("an HFS+ file system", 1024, b"H+\0\x04"),
    ("a LUKS container", 0, b"LUKS\xba\xbe"),
    ("a LUKS container", 0x4000, b"SKUL\xba\xbe"),
    (GPT, 512, b"EFI PART"),
    (GPT, 4096, b"EFI PART"),
    (LVM, 0, b"LABELONE"),
    (LVM, 512, b"LABELONE"),
    (LVM, 1024, b"LABELONE"),
    (LVM, 1536, b"LABELONE"),
    (RAID, 0, &RAID_MAGIC),
    (RAID, 4096, &RAID_MAGIC),
    (SWAP, 4086, b"SWAPSPACE2"),
    (SWAP, 16374, b"SWAPSPACE2"),
    (SWAP, 65526, b"SWAPSPACE2"),
    ("a hibernated system", 4086, b"S1SUSPEND"),
    ("a bcache device", 4120, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("a Ceph bluestore", 0, b"bluestore block device"),
    ("a VDO volume", 0, b"dmvdo001"),
    ("a Stratis pool", 516, b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("an Oracle ASM disk", 32, b"ORCLDISK"),
    ("a VDI disk image", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    (MBR, 510, &[0x55, 0xaa]),
];

/// Signatures at the end: name, distance of the first byte from the end, bytes.
const BACK: [(&str, u64, &[u8]); 9] = [
    (GPT, 512, b"EFI PART"),
    (GPT, 4096, b"EFI PART"),
    ("an Intel RAID member", 1024, b"Intel Raid ISM Cfg Sig. "),
    ("an Intel RAID member", 8192, b"Intel Raid ISM Cfg Sig. "),
    ("a DDF RAID member", 512, &[0xde, 0x11, 0xde, 0x11]),
    ("a DDF RAID member", 4096, &[0xde, 0x11, 0xde, 0x11]),
    // Its metadata ends with the device; of versions 8, unclean, and 9.
    (DRBD, 4096 - 60, &[0x83, 0x74, 0x02, 0x6b]),
    (DRBD, 4096 - 60, &[0x83, 0x74, 0x02, 0x6c]),
    (DRBD, 4096 - 60, &[0x83, 0x74, 0x02, 0x6d]),
];

/// Where the metadata of a RAID member of version 0.90 and of 1.0 begins, on a device of `size` bytes.
fn raid_at_the_end(size: u64) -> [Option<u64>; 2] {
    let version_0 = (size & !0xffff).checked_sub(0x1_0000);
    let version_1 = (size / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    [version_0, version_1]
}

/// The size of a ZFS label; two are in front, two at the end.
const ZFS_LABEL_BYTES: u64 = 256 << 10;
/// Where its uberblocks begin, and the least distance between two.
const UBERBLOCKS: (usize, usize) = (128 << 10, 1 << 10);
/// The number 0x00bab10c, as both kinds of machines write it.
const UBERBLOCK_MAGIC: [[u8; 8]; 2] = [[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]];

/// The front and the end of a device, as read.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Its first bytes: [`LOOKED_AT_BYTES`], or all.
    pub front: &'a [u8],
    /// Its last bytes: as many.
    pub back: &'a [u8],
    /// Its size in bytes.
    pub size: u64,
}

impl Ends<'_> {
    /// What the device carries, as people call it, each once; nothing if it is blank there.
    pub fn signatures(&self) -> Vec<String> {
        let mut found = BTreeSet::new();
        let mut names = Vec::new();
        let in_front = FRONT.iter().filter(|(_, offset, bytes)| has(self.front, *offset, bytes));
        names.extend(in_front.map(|(name, ..)| *name));
        if names.first() == Some(&POOL) {
            // What lies at its end are data of volumes, whatever they look like.
            return vec![POOL.to_owned()];
        }
        let at_the_end = BACK.iter().filter(|(_, distance, bytes)| {
            self.size.checked_sub(*distance).is_some_and(|offset| self.has_at(offset, bytes))
        });
        names.extend(at_the_end.map(|(name, ..)| *name));
        if raid_at_the_end(self.size).into_iter().flatten().any(|offset| self.has_at(offset, &RAID_MAGIC)) {
            names.push(RAID);
        }
        if self.has_zfs() {
            names.push(ZFS);
        }
        names.retain(|name| found.insert(*name));
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        if names.is_empty()
            && let Some(offset) = self.front.iter().position(|byte| *byte != 0)
        {
            names.push(format!("data of an unknown kind (the first at offset {offset})"));
        }
        names
    }

    /// The pool that the device is, if its superblocks say so.
    ///
    /// # Errors
    /// `NotAPool`; else it is one that this program cannot use, and the error says why.
    pub fn label(&self) -> Result<PoolLabel, Error> {
        let copy = |number: u32, offset: u64| {
            let bytes = self.front.get(index(offset)..index(offset) + BLOCK_LEN).unwrap_or_default();
            Superblock::decode(bytes, number)
        };
        let [first, second] = SUPERBLOCKS;
        Superblock::choose([copy(0, first), copy(1, second)], self.size).map(|superblock| label(&superblock))
    }

    /// Whether `bytes` are at `offset` of the device, near its end.
    fn has_at(&self, offset: u64, bytes: &[u8]) -> bool {
        let begin = self.size - self.back.len() as u64;
        offset.checked_sub(begin).is_some_and(|offset| has(self.back, index(offset), bytes))
    }

    fn has_zfs(&self) -> bool {
        let begin = self.size - self.back.len() as u64;
        let labels = self.size / ZFS_LABEL_BYTES;
        let at_the_end = (labels.saturating_sub(2)..labels)
            .filter_map(|label| (label * ZFS_LABEL_BYTES).checked_sub(begin))
            .filter_map(|offset| self.back.get(index(offset)..));
        let in_front = [0, ZFS_LABEL_BYTES].into_iter().filter_map(|offset| self.front.get(index(offset)..));
        in_front.chain(at_the_end).any(is_zfs_label)
    }
}

/// What is looked for on a device of this size, one by one: name, offset, bytes. Of the many places where an uberblock of
/// ZFS may lie it is the first one of each label.
///
/// # Units
/// The size and the offsets are in bytes, the offsets from the front.
pub fn looked_for(size: u64) -> Vec<(&'static str, u64, &'static [u8])> {
    let front = FRONT.iter().map(|(name, offset, bytes)| (*name, Some(*offset as u64), *bytes));
    let back = BACK.iter().map(|(name, distance, bytes)| (*name, size.checked_sub(*distance), *bytes));
    let raid = raid_at_the_end(size).into_iter().map(|offset| (RAID, offset, &RAID_MAGIC[..]));
    let labels = size / ZFS_LABEL_BYTES;
    let zfs = [0, 1, labels.saturating_sub(2), labels.saturating_sub(1)]
        .map(|label| (ZFS, Some(label * ZFS_LABEL_BYTES + UBERBLOCKS.0 as u64), &UBERBLOCK_MAGIC[0][..]));
    let all = front.chain(back).chain(raid).chain(zfs);
    all.filter_map(|(name, offset, bytes)| Some((name, offset?, bytes))).collect()
}

fn has(part: &[u8], offset: usize, bytes: &[u8]) -> bool {
    part.get(offset..).is_some_and(|rest| rest.starts_with(bytes))
}

fn is_zfs_label(bytes: &[u8]) -> bool {
    let (first, step) = UBERBLOCKS;
    let label = &bytes[..bytes.len().min(index(ZFS_LABEL_BYTES))];
    let uberblocks = label.get(first..).unwrap_or_default().chunks(step);
    uberblocks.into_iter().any(|block| UBERBLOCK_MAGIC.iter().any(|magic| block.starts_with(magic)))
}

/// Names what the device carries; `None` if it is blank at both ends.
pub(crate) async fn find(device: &impl Device) -> Result<Option<String>, Status> {
    let size = device.geometry().size().0;
    let len = LOOKED_AT_BYTES.min(size);
    let front = read_region(device, 0, len).await?;
    let back = read_region(device, size - len, len).await?;
    let found = Ends { front: &front, back: &back, size }.signatures();
    Ok((!found.is_empty()).then(|| found.join(" and ")))
}

/// Makes both ends of a device zero, durably, the front with a pool's superblocks first: what was interrupted is no pool
/// any more. Afterwards nothing that is looked for here is there.
pub async fn blank(device: &impl Device) -> Result<(), Status> {
    let geometry = device.geometry();
    let block = u64::from(geometry.block_size);
    let len = BlockCount((LOOKED_AT_BYTES / block).min(geometry.blocks.0));
    device.write_zeroes(Lba(0), len, Durability::Durable).await?;
    device.write_zeroes(Lba(geometry.blocks.0 - len.0), len, Durability::Durable).await?;
    device.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 1 << 30;

    fn blank() -> Vec<u8> {
        vec![0; index(LOOKED_AT_BYTES)]
    }

    fn put(part: &mut [u8], offset: usize, bytes: &[u8]) {
        part[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn found(front: &[u8], back: &[u8], size: u64) -> Vec<String> {
        Ends { front, back, size }.signatures()
    }

    #[test]
    fn every_signature_in_front_is_found_alone() {
        for (name, offset, bytes) in FRONT {
            let mut front = blank();
            put(&mut front, offset, bytes);
            assert_eq!(found(&front, &blank(), SIZE), [name]);
        }
    }

    #[test]
    fn every_signature_at_the_end_is_found_alone() {
        let from_the_end = |distance: u64| index(LOOKED_AT_BYTES - distance);
        for (name, distance, bytes) in BACK {
            let mut back = blank();
            put(&mut back, from_the_end(distance), bytes);
            assert_eq!(found(&blank(), &back, SIZE), [name]);
        }
        // A device that is no multiple of what these formats round to.
        let size = SIZE + 5 * 512;
        for offset in raid_at_the_end(size).into_iter().flatten() {
            let mut back = blank();
            put(&mut back, from_the_end(size - offset), &RAID_MAGIC);
            assert_eq!(found(&blank(), &back, size), [RAID]);
        }
        for (label, slot) in [(SIZE - ZFS_LABEL_BYTES, 5_u64), (SIZE - 2 * ZFS_LABEL_BYTES, 127)] {
            let mut back = blank();
            let offset = SIZE - label - (128 << 10) - (slot << 10);
            put(&mut back, from_the_end(offset), &UBERBLOCK_MAGIC[0]);
            assert_eq!(found(&blank(), &back, size - 5 * 512), [ZFS]);
        }
    }

    #[test]
    fn a_blank_device_carries_nothing_and_anything_else_something() {
        assert!(found(&blank(), &blank(), SIZE).is_empty());
        assert!(found(&[], &[], 0).is_empty());
        let mut front = blank();
        front[70_000] = 1;
        assert_eq!(found(&front, &blank(), SIZE), ["data of an unknown kind (the first at offset 70000)"]);
        let mut back = blank();
        put(&mut back, index(LOOKED_AT_BYTES) - 512, b"EFI PART");
        put(&mut front, 512, b"EFI PART");
        put(&mut front, 510, &[0x55, 0xaa]);
        let both = found(&front, &back, SIZE);
        assert_eq!(both, [GPT, MBR], "each once");
    }

    #[test]
    fn what_lies_in_a_pool_is_not_looked_at() {
        let mut front = blank();
        put(&mut front, 0, b"ORLOPOOL");
        let mut back = blank();
        put(&mut back, index(LOOKED_AT_BYTES) - 512, b"EFI PART");
        assert_eq!(found(&front, &back, SIZE), [POOL]);
        let ends = Ends { front: &front, back: &back, size: SIZE };
        assert!(ends.label().unwrap_err().to_string().contains("damaged"), "only the magic is there");
    }

    #[test]
    fn a_pool_says_whose_it_is() {
        let superblock = crate::superblock::example();
        let mut front = blank();
        put(&mut front, 0, &superblock.encode(0));
        put(&mut front, 512 << 10, &superblock.encode(1));
        let (back, size) = (blank(), superblock.device_bytes);
        let found = Ends { front: &front, back: &back, size }.label().unwrap();
        assert_eq!((found.cluster, found.pool), (superblock.cluster, superblock.pool));
    }

    proptest! {
        #[test]
        fn whatever_lies_there_ends_with_an_answer(
            front in proptest::collection::vec(any::<u8>(), 0..8192),
            more in 0_u64..1 << 40,
        ) {
            let size = front.len() as u64 + more;
            let ends = Ends { front: &front, back: &front, size };
            prop_assert!(ends.signatures().is_empty() == front.iter().all(|byte| *byte == 0) || front.is_empty());
            prop_assert!(ends.label().is_err());
        }
    }
}
