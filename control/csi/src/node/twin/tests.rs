//! Fixture trees as the kernel shows them, and devices that are files.

use super::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};

const UUID: [u8; 16] =
    [0xec, 0x25, 0xbd, 0x55, 0xbe, 0x2e, 0x43, 0x8b, 0x89, 0x25, 0x2e, 0x27, 0x5c, 0x0d, 0xb5, 0x86];
const OTHER: [u8; 16] = [7; 16];

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for folder in ["sys/fs/xfs/stats", "sys/fs/btrfs/features", "dev"] {
            fs::create_dir_all(tree.path(folder)).unwrap();
        }
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A device with the superblocks of both.
    fn device(&self, name: &str, uuid: [u8; 16]) {
        let device = File::create_new(self.path("dev").join(name)).unwrap();
        device.write_all_at(&uuid, 32).unwrap();
        device.write_all_at(&uuid, 0x1_0020).unwrap();
        let block = self.path("sys/class/block").join(name);
        fs::create_dir_all(&block).unwrap();
        fs::write(block.join("inflight"), "       0        0\n").unwrap();
    }

    fn mounted(&self, path: &str) {
        fs::create_dir_all(self.path("sys/fs").join(path)).unwrap();
    }

    fn twins(&self, filesystem: Filesystem) -> Option<Twins> {
        let (sys, dev) = (self.path("sys"), self.path("dev"));
        Kernel { sys: &sys, dev: &dev }.twins(filesystem, "loop1").unwrap()
    }
}

fn twins(devices: &[&str], is_certain: bool) -> Twins {
    Twins { devices: devices.iter().map(|name| (*name).to_owned()).collect(), is_certain }
}

#[test]
fn an_xfs_that_is_mounted_from_another_device_is_found() {
    let tree = Tree::new();
    for (name, uuid) in [("loop1", UUID), ("loop2", OTHER), ("loop3", UUID), ("loop4", OTHER)] {
        tree.device(name, uuid);
    }
    assert_eq!(tree.twins(Filesystem::Xfs), None);
    for mounted in ["xfs/loop1", "xfs/loop2", "xfs/loop4"] {
        tree.mounted(mounted);
    }
    assert_eq!(tree.twins(Filesystem::Xfs), None, "itself, and others");
    tree.mounted("xfs/loop3");
    assert_eq!(tree.twins(Filesystem::Xfs), Some(twins(&["loop3"], true)));
    assert_eq!(tree.twins(Filesystem::Ext4), None);
}

#[test]
fn a_device_that_does_not_answer_may_be_the_one() {
    let tree = Tree::new();
    tree.device("loop1", UUID);
    tree.device("loop2", OTHER);
    tree.device("loop3", UUID);
    for mounted in ["xfs/loop2", "xfs/loop3", "xfs/nvme0n1", "xfs/hung"] {
        tree.mounted(mounted);
    }
    // Nobody ever writes into this: who opens it waits.
    mknodat(CWD, tree.path("dev/hung"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::create_dir_all(tree.path("sys/class/block/hung")).unwrap();
    fs::write(tree.path("sys/class/block/hung/inflight"), "0 0").unwrap();
    assert_eq!(tree.twins(Filesystem::Xfs), Some(twins(&["loop3"], true)), "one is certain");
    fs::write(tree.path("sys/class/block/loop3/inflight"), "       0        4\n").unwrap();
    assert_eq!(tree.twins(Filesystem::Xfs), Some(twins(&["hung", "loop3", "nvme0n1"], false)));
}

#[test]
fn a_btrfs_that_is_mounted_from_another_device_is_found() {
    let tree = Tree::new();
    let folder = "btrfs/ec25bd55-be2e-438b-8925-2e275c0db586/devices";
    tree.device("loop1", UUID);
    tree.mounted("btrfs/07070707-0707-0707-0707-070707070707/devices/loop2");
    assert_eq!(tree.twins(Filesystem::Btrfs), None);
    tree.mounted(folder);
    assert_eq!(tree.twins(Filesystem::Btrfs), Some(twins(&[], true)), "its device is gone");
    tree.mounted(&format!("{folder}/loop3"));
    assert_eq!(tree.twins(Filesystem::Btrfs), Some(twins(&["loop3"], true)));
    tree.mounted(&format!("{folder}/loop1"));
    assert_eq!(tree.twins(Filesystem::Btrfs), None, "itself");
}

#[test]
fn old_names_have_a_slash() {
    let tree = Tree::new();
    tree.device("loop1", UUID);
    fs::create_dir(tree.path("dev/cciss")).unwrap();
    tree.device("cciss!c0d0", OTHER);
    fs::rename(tree.path("dev/cciss!c0d0"), tree.path("dev/cciss/c0d0")).unwrap();
    tree.mounted("xfs/cciss!c0d0");
    assert_eq!(tree.twins(Filesystem::Xfs), None, "it was read");
}
