//! The name by which a disk is known in the cluster.
//!
//! 1. It comes from what the disk says of itself, the same with and without udev, so it stays when the disk moves. Only
//!    of a disk by SCSI or USB without a world-wide name in sysfs udev knows more.
//! 2. It is a DNS label. Two disks of one node never have the same.

use crate::found::Found;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// The longest DNS label.
const LABEL_LEN_MAX: usize = 63;

/// Names that udev gives, most telling first; `nvme-` and `wwn-` are made from sysfs as well. `dm-`, `md-` and `lvm-`
/// are not among them: they name what lies on a disk.
const PREFIXES: [&str; 8] = ["wwn-", "virtio-", "ata-", "scsi-", "mmc-", "usb-", "ieee1394-", "google-"];

/// How links begin that name what lies on a disk, and are gone with it.
const OF_CONTENT: &str = "lvm-pv-uuid-";

/// A name, and the disk that says the same of itself, if there is one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) twin: Option<String>,
}

/// The names of these disks of `node`, in their order. One that says nothing of itself, and the second of two that say
/// the same, is named after the node and the kernel's name.
pub(crate) fn names(node: &str, disks: &[Found]) -> Vec<Named> {
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let mut names = Vec::new();
    for disk in disks {
        let own = identity(disk).map(|identity| label(&identity));
        let twin = own.as_ref().and_then(|own| taken.get(own)).cloned();
        let here = || label(&format!("{node}-{}", disk.kernel_name));
        let name = own.filter(|_| twin.is_none()).unwrap_or_else(here);
        taken.entry(name.clone()).or_insert_with(|| disk.kernel_name.clone());
        names.push(Named { name, twin });
    }
    names
}

/// What the disk says of itself, as udev would name a link.
fn identity(disk: &Found) -> Option<String> {
    if disk.kernel_name.starts_with("nvme") {
        let (model, serial) = (disk.model.as_ref()?, disk.serial.as_ref()?);
        let namespace = disk.namespace.filter(|number| *number != 1);
        let namespace = namespace.map(|number| format!("-{number}")).unwrap_or_default();
        return Some(format!("nvme-{model}-{serial}{namespace}"));
    }
    let world_wide = disk.wwid.as_ref().and_then(|wwid| {
        let number = wwid.strip_prefix("naa.").or_else(|| wwid.strip_prefix("eui."))?;
        Some(format!("wwn-0x{number}")).filter(|link| !is_of_zeros(link))
    });
    let is_virtio = disk.kernel_name.starts_with("vd");
    let virtio = disk.serial.as_ref().filter(|_| is_virtio).map(|serial| format!("virtio-{serial}"));
    let links = || disk.links.iter().filter(|link| !is_of_zeros(link));
    let link = |prefix: &&str| links().find(|link| link.starts_with(prefix)).cloned();
    world_wide.or(virtio).or_else(|| PREFIXES.iter().find_map(link)).or_else(|| without_links(disk))
}

/// Whether a world-wide name is none: there are makers who leave it empty on all their disks.
fn is_of_zeros(link: &str) -> bool {
    link.strip_prefix("wwn-0x").is_some_and(|number| number.bytes().all(|digit| digit == b'0'))
}

/// What udev would make a link of, where there is no udev.
fn without_links(disk: &Found) -> Option<String> {
    // Of a disk without a world-wide name the kernel makes one of its model and serial number.
    let ata = disk.wwid.as_ref().and_then(|wwid| wwid.strip_prefix("t10.ATA "));
    let ata = ata.map(|text| format!("ata-{}", text.replace(' ', "_")));
    let is_card = disk.kernel_name.starts_with("mmcblk");
    let card = disk.model.as_ref().zip(disk.serial.as_ref()).filter(|_| is_card);
    ata.or_else(|| card.map(|(model, serial)| format!("mmc-{model}_{serial}")))
}

/// The path of the disk or partition with these links that stays the same as long as it is there, if it has one.
pub(crate) fn by_id(links: &[String]) -> Option<String> {
    let link = links.iter().find(|link| !link.starts_with(OF_CONTENT))?;
    Some(format!("/dev/disk/by-id/{link}"))
}

/// A DNS label of the text: what does not fit is replaced by a hash of all of it.
pub(crate) fn label(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(name.trim_end_matches('-').len());
    if (1..=LABEL_LEN_MAX).contains(&name.len()) {
        return name;
    }
    let hash = format!("{:016x}", xxh3_64(text.as_bytes()));
    name.truncate(LABEL_LEN_MAX - 1 - hash.len());
    let name = name.trim_end_matches('-');
    if name.is_empty() { format!("disk-{hash}") } else { format!("{name}-{hash}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_path_of_a_disk_is_not_that_of_what_lies_on_it() {
        let path = |links: &[&str]| by_id(&links.iter().map(ToString::to_string).collect::<Vec<_>>());
        let lvm = "lvm-pv-uuid-170rxP-4Yxi-kBiD-3tMf-5L9x-i3NR-CysU7N";
        assert_eq!(path(&[lvm, "virtio-data"]).as_deref(), Some("/dev/disk/by-id/virtio-data"));
        assert_eq!(path(&["dm-name-vg0-data", lvm]).as_deref(), Some("/dev/disk/by-id/dm-name-vg0-data"));
        assert_eq!((path(&[lvm]), path(&[])), (None, None));
    }

    #[test]
    fn labels_read_as_what_they_are_made_of() {
        for (text, expected) in [
            ("nvme-Samsung SSD 980 PRO 1TB-S5GXNX0T123456", "nvme-samsung-ssd-980-pro-1tb-s5gxnx0t123456"),
            ("wwn-0x5000c500a1b2c3d4", "wwn-0x5000c500a1b2c3d4"),
            ("--a__b--", "a-b"),
        ] {
            assert_eq!(label(text), expected);
        }
        let long = |end: &str| label(&format!("{}{end}", "x".repeat(80)));
        assert!(long("a") != long("b") && long("a").len() == LABEL_LEN_MAX);
    }

    proptest! {
        #[test]
        fn every_text_has_a_label(text in "(?s).{0,120}") {
            let name = label(&text);
            let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            prop_assert!((1..=LABEL_LEN_MAX).contains(&name.len()) && name.chars().all(fine), "{name}");
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
        }
    }
}
