//! What the front-ends of a node hold for the volumes that have a device there, in whatever namespace: nobody outside of
//! their pods sees it.

use super::Residents;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The type of the file systems, in the tables of mounts.
const FS_TYPE: &str = "fuse.orlop";
/// What serves them; each has one descriptor of it, in every process that serves.
const DEVICE: &str = "/dev/fuse";
/// Part of the command line of the process that outlives the engine, and of the engine's own.
const HOLDER: &str = "fuse-holder";
const ENGINE: &str = "orlop node run";

/// What is held on one node.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// The file systems that are mounted in any namespace of its processes, by the number of the device.
    mounts: BTreeSet<String>,
    /// The descriptors that all of its processes have open.
    descriptors: usize,
    holders: usize,
    engines: usize,
}

impl Held {
    /// What the processes of a node hold now.
    pub(crate) fn look(residents: &Residents) -> Self {
        let mut held = Self {
            holders: residents.running(HOLDER).len(),
            engines: residents.running(ENGINE).len(),
            ..Self::default()
        };
        let mut seen = BTreeSet::new();
        for process in residents.all() {
            let folder = PathBuf::from(format!("/proc/{}", process.pid));
            held.descriptors += descriptors(&folder);
            if fs::read_link(folder.join("ns/mnt")).is_ok_and(|namespace| seen.insert(namespace)) {
                let table = fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
                held.mounts.extend(mounts(&table).map(str::to_owned));
            }
        }
        held
    }

    /// Whether it is what there is without any volume: one process at most for each engine, and nothing in them.
    pub(crate) fn is_nothing(&self) -> bool {
        self.mounts.is_empty() && self.descriptors == 0 && self.holders <= self.engines
    }

    /// Whether a volume is served: by a file system that both processes hold.
    pub(crate) fn is_served(&self) -> bool {
        !self.mounts.is_empty() && self.descriptors >= 2 && self.holders == 1 && self.engines == 1
    }
}

/// How many descriptors of the device a process has open.
fn descriptors(process: &Path) -> usize {
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == Path::new(DEVICE))).count()
}

/// The numbers of the devices of a table's mounts of ours.
fn mounts(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE OPTIONS
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next() == Some(FS_TYPE)).then(|| left.split(' ').nth(2))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_file_systems_count() {
        let table = "\
            21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            35 21 0:52 / /var/lib/orlop/fuse/v rw,nosuid,nodev - fuse.orlop orlop rw,user_id=0\n\
            36 21 0:53 / /mnt/other rw - fuse.sshfs host: rw\n\
            37 21 0:54 / /mnt/fuse.orlop rw - tmpfs fuse.orlop rw\n";
        assert_eq!(mounts(table).collect::<Vec<_>>(), ["0:52"]);
    }

    #[test]
    fn a_holder_without_an_engine_and_any_descriptor_is_something() {
        let idle = Held { holders: 1, engines: 1, ..Held::default() };
        assert!(idle.is_nothing() && !idle.is_served());
        let served = Held { mounts: ["0:52".into()].into(), descriptors: 2, ..idle };
        assert!(!served.is_nothing() && served.is_served());
        assert!(!Held { holders: 2, engines: 1, ..Held::default() }.is_nothing());
        assert!(!Held { descriptors: 1, holders: 1, engines: 1, ..Held::default() }.is_nothing());
        assert!(
            !Held { mounts: ["0:52".into()].into(), holders: 1, engines: 1, descriptors: 0 }.is_nothing()
        );
    }
}
