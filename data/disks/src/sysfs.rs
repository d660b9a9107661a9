//! What sysfs says of a block device.
//!
//! # Spec
//! Linux, `Documentation/ABI/stable/sysfs-block`: sizes and starts are in units of 512 bytes, whatever the device's are.

use crate::allow::Odd;
use crate::content::Content;
use crate::found::Partition;
use std::fs;
use std::path::{Path, PathBuf};

/// The unit of sizes in sysfs.
const SECTOR_BYTES: u64 = 512;

/// Kinds that are no disks of this machine, by how their names begin: loop, RAM, device-mapper, software RAID, floppy,
/// optical, network, and disks made of others.
const ODD_KINDS: [&str; 15] = [
    "loop", "ram", "zram", "dm-", "md", "fd", "sr", "nbd", "rbd", "drbd", "zd", "bcache", "ublkb",
    "mtdblock", "pktcdvd",
];

/// What the subsystems of Orlop's targets are called.
const OWN_NQN: &str = "nqn.2026-11.io.orlop:";
/// The name of the file that Orlop's front-end serves under a loop device.
const OWN_FILE: &str = "volume";
/// Where the kubelet binds raw block volumes.
const KUBELET_FOLDER: &str = "/volumeDevices/";

/// A partition, and what else sysfs says of it.
#[derive(Clone, Debug)]
pub(crate) struct Divided {
    pub(crate) partition: Partition,
    pub(crate) device_number: Option<(u32, u32)>,
    pub(crate) holders: Vec<String>,
    /// As [`Block::stamp`].
    pub(crate) stamp: Option<String>,
}

/// One block device below `/sys/block`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) name: String,
    folder: PathBuf,
}

impl Block {
    pub(crate) fn new(sys: &Path, name: &str) -> Self {
        Self { name: name.to_owned(), folder: sys.join("block").join(name) }
    }

    /// An attribute in one line, if it is there and says anything.
    pub(crate) fn text(&self, attribute: &str) -> Option<String> {
        text(&self.folder.join(attribute))
    }

    pub(crate) fn number(&self, attribute: &str) -> Option<u64> {
        self.text(attribute)?.parse().ok()
    }

    /// Its major and minor number.
    pub(crate) fn device_number(&self) -> Option<(u32, u32)> {
        device_number(&self.folder)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.number("size").and_then(|sectors| sectors.checked_mul(SECTOR_BYTES)).unwrap_or(0)
    }

    /// Whether it is one path of several to the same NVMe namespace, which nobody opens.
    pub(crate) fn is_hidden(&self) -> bool {
        self.number("hidden") == Some(1)
    }

    /// Whether it is a volume of Orlop, or may be: the loop driver does not always say which file is under it, and the
    /// kubelet puts another loop device over a raw block volume.
    pub(crate) fn is_own(&self) -> bool {
        // Of a namespace with several paths this is the subsystem, else the controller; both are called alike.
        if self.text("device/subsysnqn").is_some_and(|nqn| nqn.starts_with(OWN_NQN)) {
            return true;
        }
        if !self.name.starts_with("loop") {
            return false;
        }
        let Some(file) = self.text("loop/backing_file") else { return true };
        let file = file.strip_suffix(" (deleted)").unwrap_or(&file);
        Path::new(file).file_name().is_none_or(|name| name == OWN_FILE) || file.contains(KUBELET_FOLDER)
    }

    /// Why it is no common disk, if it is none.
    pub(crate) fn odd(&self) -> Option<Odd> {
        if let Some(kind) = ODD_KINDS.into_iter().find(|kind| self.name.starts_with(kind)) {
            return Some(Odd::Kind(kind));
        }
        let place = fs::canonicalize(&self.folder).unwrap_or_default();
        let place = place.to_string_lossy();
        // The kernel puts a namespace that may have several paths among the virtual devices.
        let is_virtual = place.contains("/devices/virtual/") && !place.contains("/nvme-subsystem/");
        let boot_part = self.name.starts_with("mmcblk") && self.name.contains("boot");
        let single = is_virtual || boot_part || self.number("removable") == Some(1) || self.is_remote();
        single.then_some(Odd::Single)
    }

    /// Whether it is an NVMe namespace of another machine.
    fn is_remote(&self) -> bool {
        let device = self.folder.join("device");
        let controllers = folders(&device).into_iter().filter(|(name, _)| name.starts_with("nvme"));
        let mut places: Vec<PathBuf> = controllers.map(|(_, folder)| folder).collect();
        places.push(device);
        places.iter().filter_map(|place| text(&place.join("transport"))).any(|transport| transport != "pcie")
    }

    /// The devices that are made of it.
    pub(crate) fn holders(&self) -> Vec<String> {
        holders(&self.folder)
    }

    /// Its partitions, by number.
    pub(crate) fn partitions(&self) -> Vec<Divided> {
        let mut found = Vec::new();
        for (name, folder) in folders(&self.folder) {
            let number = |attribute: &str| text(&folder.join(attribute))?.parse::<u64>().ok();
            let Some(in_table) = number("partition").and_then(|number| u32::try_from(number).ok()) else {
                continue;
            };
            let bytes = |attribute: &str| number(attribute).unwrap_or(0).saturating_mul(SECTOR_BYTES);
            let partition = Partition {
                kernel_name: name,
                number: in_table,
                start_bytes: bytes("start"),
                size_bytes: bytes("size"),
                label: uevent(&folder, "PARTNAME"),
                read_only: number("ro") == Some(1),
                links: Vec::new(),
                content: Content::default(),
            };
            let place = format!("{} {}", partition.start_bytes, partition.size_bytes);
            let stamp = self.stamp_of(&folder, &place);
            let (device_number, holders) = (device_number(&folder), holders(&folder));
            found.push(Divided { partition, device_number, holders, stamp });
        }
        found.sort_by_key(|divided| divided.partition.number);
        found
    }

    /// What its maker calls it; of a memory card it is a name.
    pub(crate) fn model(&self) -> Option<String> {
        let is_card = self.name.starts_with("mmcblk");
        self.text("device/model").or_else(|| self.text("device/name").filter(|_| is_card))
    }

    /// The serial number that SCSI disks tell on a page of its own: four bytes of header, then text.
    pub(crate) fn scsi_serial(&self) -> Option<String> {
        let page = fs::read(self.folder.join("device/vpd_pg80")).ok()?;
        let text = std::str::from_utf8(page.get(4..)?).ok()?;
        one_line(text)
    }

    /// Changes whenever anything was written to it, or it is another disk, or is divided another way.
    pub(crate) fn stamp(&self) -> Option<String> {
        self.stamp_of(&self.folder, &self.size_bytes().to_string())
    }

    /// The same of the disk or a partition, which has this folder and lies at this place.
    fn stamp_of(&self, folder: &Path, place: &str) -> Option<String> {
        // Counting can be switched off.
        if self.number("queue/iostats") == Some(0) {
            return None;
        }
        let stat = text(&folder.join("stat"))?;
        // Sectors written and discarded; the rest counts reads and time.
        let counters: Vec<&str> = stat.split_whitespace().collect();
        let changed = [6, 13].map(|field| counters.get(field).copied().unwrap_or_default());
        let sequence = self.text("diskseq").unwrap_or_default();
        Some(format!("{sequence} {place} {}", changed.join(" ")))
    }
}

/// The names of all block devices, ordered.
pub(crate) fn blocks(sys: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(sys.join("block"))? {
        // A name that is not UTF-8 is no device of Linux.
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The name that people know of a device-mapper device, such as `vg0-root`.
pub(crate) fn mapper_name(sys: &Path, kernel_name: &str) -> Option<String> {
    text(&sys.join("block").join(kernel_name).join("dm/name"))
}

fn device_number(folder: &Path) -> Option<(u32, u32)> {
    let text = text(&folder.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn holders(folder: &Path) -> Vec<String> {
    folders(&folder.join("holders")).into_iter().map(|(name, _)| name).collect()
}

/// What is in a folder, ordered by name.
fn folders(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    let mut found: Vec<_> = named.collect();
    found.sort();
    found
}

fn uevent(folder: &Path, key: &str) -> Option<String> {
    let all = fs::read_to_string(folder.join("uevent")).ok()?;
    let values = all.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.into_iter().find_map(one_line)
}

fn text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    one_line(&String::from_utf8_lossy(&bytes))
}

/// Text without what surrounds it and without what no line may contain; none if nothing is left.
pub(crate) fn one_line(text: &str) -> Option<String> {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = clean.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}
