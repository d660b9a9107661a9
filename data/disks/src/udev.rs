//! What udev has noted of a block device, in its database.
//!
//! # Spec
//! systemd, `src/libsystemd/sd-device/device-private.c`: one file per device, `b MAJOR : MINOR`; of its lines, `S:` is a
//! link below `/dev`, `E:` a property.

use crate::sysfs::one_line;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A link longer than this is none of udev's.
const LINK_LEN_MAX: usize = 255;

/// The note on one device; empty where there is no udev.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// Links below `/dev/disk/by-id`, ordered.
    pub(crate) links: Vec<String>,
    properties: BTreeMap<String, String>,
}

impl Note {
    pub(crate) fn read(database: &Path, (major, minor): (u32, u32)) -> Self {
        let bytes = fs::read(database.join(format!("b{major}:{minor}"))).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    fn parse(text: &str) -> Self {
        let mut note = Self::default();
        for line in text.lines() {
            if let Some(link) = line.strip_prefix("S:disk/by-id/") {
                if is_link(link) {
                    note.links.push(link.to_owned());
                }
            } else if let Some((key, value)) = line.strip_prefix("E:").and_then(|line| line.split_once('='))
                && let Some(value) = one_line(value)
            {
                note.properties.insert(key.to_owned(), value);
            }
        }
        note.links.sort();
        note.links.dedup();
        note
    }

    /// A property.
    pub(crate) fn property(&self, key: &str) -> Option<&str> {
        self.properties.get(key).map(String::as_str)
    }

    /// The model; udev writes spaces as `_`.
    pub(crate) fn model(&self) -> Option<String> {
        one_line(&self.property("ID_MODEL")?.replace('_', " "))
    }

    /// The serial number.
    pub(crate) fn serial(&self) -> Option<String> {
        self.property("ID_SCSI_SERIAL").or_else(|| self.property("ID_SERIAL_SHORT")).map(str::to_owned)
    }

    /// What udev takes the device for: a file system, a member of something, a table of partitions.
    pub(crate) fn content(&self) -> Option<&str> {
        self.content_of_partition().or_else(|| self.property("ID_PART_TABLE_TYPE"))
    }

    /// The same of a partition, which has its disk's table among its properties.
    pub(crate) fn content_of_partition(&self) -> Option<&str> {
        self.property("ID_FS_TYPE")
    }
}

/// Whether it is one name, not a way to somewhere else.
fn is_link(link: &str) -> bool {
    !link.is_empty()
        && link.len() <= LINK_LEN_MAX
        && !link.contains('/')
        && link.chars().all(|c| !c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_note_is_read() {
        let note = Note::parse(
            "S:disk/by-id/wwn-0x5000c500a1b2c3d4\nS:disk/by-path/pci-0000:00:17.0-ata-1\nS:disk/by-id/ata-ST4000_ZC1\n\
             W:12\nI:2193412\nE:ID_MODEL=ST4000NM0035-1V4107\nE:ID_SERIAL_SHORT=ZC1\nE:EMPTY=\nG:systemd\nQ:systemd\nV:1\n",
        );
        assert_eq!(note.links, ["ata-ST4000_ZC1", "wwn-0x5000c500a1b2c3d4"]);
        assert_eq!(
            (note.model().as_deref(), note.serial().as_deref()),
            (Some("ST4000NM0035-1V4107"), Some("ZC1"))
        );
        assert_eq!((note.content(), note.property("EMPTY")), (None, None));
    }

    #[test]
    fn a_link_leads_nowhere_else() {
        assert_eq!(Note::parse("S:disk/by-id/../../etc/passwd\nS:disk/by-id/\n").links, [""; 0]);
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_database_is_read(text in "(?s).{0,200}") {
            let note = Note::parse(&text);
            prop_assert!(note.links.iter().all(|link| is_link(link)));
        }
    }
}
