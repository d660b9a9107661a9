//! What a device carries already: a pool is never made over something that somebody may miss.

use crate::load::read_region;
use device::{Device, Status};

/// The part of the device's front that is looked at.
const FRONT_BYTES: u64 = 1 << 20;

/// Known signatures: name, offset from the front, bytes.
const KNOWN: [(&str, usize, &[u8]); 17] = [
    ("an Orlop pool", 0, b"ORLOPOOL"),
    ("an Orlop pool", 512 << 10, b"ORLOPOOL"),
    ("an xfs file system", 0, b"XFSB"),
    ("an ext2, ext3 or ext4 file system", 0x438, &[0x53, 0xef]),
    ("a btrfs file system", 0x1_0040, b"_BHRfS_M"),
    ("an ntfs file system", 3, b"NTFS    "),
    ("an exfat file system", 3, b"EXFAT   "),
    ("a LUKS container", 0, b"LUKS\xba\xbe"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("a software RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a software RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a bcache device", 4120, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    ("a Ceph bluestore", 0, b"bluestore block device"),
    ("an MBR partition table or a boot sector", 510, &[0x55, 0xaa]),
];

/// Names what the device carries; `None` if its front and its last block are empty.
pub(crate) async fn find(device: &impl Device) -> Result<Option<String>, Status> {
    let size = device.geometry().size().0;
    let front = read_region(device, 0, FRONT_BYTES.min(size)).await?;
    for (name, offset, bytes) in KNOWN {
        if front.get(offset..offset + bytes.len()) == Some(bytes) {
            return Ok(Some(name.to_owned()));
        }
    }
    if let Some(offset) = front.iter().position(|byte| *byte != 0) {
        return Ok(Some(format!("data of an unknown kind (the first at offset {offset})")));
    }
    let block = u64::from(device.geometry().block_size);
    let last = read_region(device, size - block, block).await?;
    Ok(last.starts_with(b"EFI PART").then(|| "a GPT partition table (its backup)".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_lies_in_the_front() {
        for (name, offset, bytes) in KNOWN {
            assert!((offset + bytes.len()) as u64 <= FRONT_BYTES, "{name}");
        }
    }
}
