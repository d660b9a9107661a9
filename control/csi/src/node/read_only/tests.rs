//! Names that the kernel gives; as root, real loop devices.

use super::*;
use crate::{
    capability::{Access, Kind},
    node::{
        device::Attached,
        mounting::{expand, publish, unpublish, unstage},
    },
};
use std::{fs::File, os::unix::fs::FileExt};

const MIB: u64 = 1 << 20;

#[test]
fn what_lies_under_is_known_by_its_name_first() {
    for (backing, wanted) in [
        ("/dev/loop3\n", true),
        ("/loop3\n", true),
        ("/dev/loop3 (deleted)\n", true),
        ("/dev/loop30\n", false),
        ("/var/lib/image.raw\n", false),
        ("/\n", false),
        ("", false),
    ] {
        assert_eq!(lies_over(backing, Some("loop3"), |_| false), wanted, "{backing:?}");
    }
}

#[test]
fn what_lies_over_a_device_that_is_gone_is_found() {
    let is_gone = |name: &str| name == "nvme1n1";
    for (backing, wanted) in [
        ("/dev/nvme1n1\n", true),
        ("/nvme1n1 (deleted)\n", true),
        ("/dev/nvme0n1\n", false),
        ("/var/lib/image.raw\n", false),
        ("", false),
    ] {
        assert_eq!(lies_over(backing, None, is_gone), wanted, "{backing:?}");
    }
}

/// A loop device that stands for a volume's; everything is let go when this is.
struct Scene {
    temp: tempfile::TempDir,
    volume: PathBuf,
}

impl Scene {
    /// None where this machine or this user cannot.
    fn new() -> Option<Self> {
        let temp = tempfile::tempdir().unwrap();
        let image = temp.path().join("image");
        File::create(&image).unwrap().set_len(4 * MIB).unwrap();
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let words = ["losetup", "--find", "--show", "--sector-size", "4096"];
        let volume = tool::ask(&words_of(&words, &image), PACKAGE).ok()?.trim().into();
        Some(Self { temp, volume })
    }

    fn staging(&self) -> PathBuf {
        self.temp.path().join("stage")
    }

    fn device(&self) -> Device {
        let of = Attached { volume: "data".into(), uuid: "u".into(), path: self.volume.clone() };
        of.open().unwrap()
    }

    fn publish(&self, name: &str, read_only: bool) -> Result<PathBuf, Status> {
        let target = self.temp.path().join(name);
        let access = Access { kind: Kind::Block, read_only: false, single_writer: false, many_nodes: false };
        publish(&self.device(), &self.staging(), &target, &access, read_only).map(|()| target)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for name in ["a", "b", "c"] {
            drop(unpublish(&self.temp.path().join(name)));
        }
        drop(unstage(&self.staging()));
        drop(tool::run(&words_of(&["losetup", "--detach"], &self.volume), 0, PACKAGE));
    }
}

#[test]
fn a_pod_reads_and_does_not_write_and_nothing_is_left() {
    let Some(scene) = Scene::new() else {
        println!("not root, or no loop devices: not tried");
        return;
    };
    let for_writing = scene.publish("a", false).unwrap();
    let writer = File::options().read(true).write(true).open(&for_writing).unwrap();
    writer.write_all_at(&[7; 4096], MIB).unwrap();
    writer.sync_all().unwrap();
    drop(writer);

    let shown = scene.publish("b", true).unwrap();
    assert_eq!(scene.publish("b", true).unwrap(), shown, "a repetition");
    let number = block_device(&shown).unwrap();
    assert!(is_read_only(number) && number != scene.device().number);
    let mut found = [0; 4096];
    File::open(&shown).unwrap().read_exact_at(&mut found, MIB).unwrap();
    assert_eq!(found, [7; 4096]);
    let written = File::options().write(true).open(&shown).and_then(|file| {
        file.write_all_at(&[8; 4096], MIB)?;
        file.sync_all()
    });
    assert!(written.is_err(), "it was written");

    let third = scene.publish("c", true).unwrap();
    assert_eq!(block_device(&third), Some(number), "all of a stage share one");
    for (name, read_only) in [("a", true), ("b", false)] {
        let refused = scene.publish(name, read_only).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused}");
    }
    File::options().write(true).open(scene.temp.path().join("image")).unwrap().set_len(6 * MIB).unwrap();
    tool::run(&words_of(&["losetup", "--set-capacity"], &scene.volume), 0, PACKAGE).unwrap();
    expand(&scene.device(), &[&shown]).unwrap();
    let sectors = fs::read_to_string(format!("{}/size", sysfs(number))).unwrap();
    assert_eq!(sectors.trim(), (6 * MIB / 512).to_string());

    for name in ["a", "b", "c"] {
        unpublish(&scene.temp.path().join(name)).unwrap();
    }
    assert_eq!(over(&scene.volume).unwrap().len(), 1, "it goes with the stage");
    for _ in 0..2 {
        unstage(&scene.staging()).unwrap();
    }
    assert_eq!(over(&scene.volume).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(scene.staging()).unwrap().count(), 0, "the folder is empty");
}

#[test]
fn what_a_killed_plugin_left_is_found() {
    let Some(scene) = Scene::new() else {
        println!("not root, or no loop devices: not tried");
        return;
    };
    // Killed after the file was made, and after the device was.
    fs::create_dir(scene.staging()).unwrap();
    File::create(scene.staging().join(BIND)).unwrap();
    let made = make(&scene.device(), &scene.staging()).unwrap();
    assert_eq!(make(&scene.device(), &scene.staging()).unwrap(), made);
    unstage(&scene.staging()).unwrap();
    assert_eq!(over(&scene.volume).unwrap(), Vec::<PathBuf>::new());
    // What is over another device, or can be written, is somebody else's.
    let words = ["losetup", "--find", "--show"];
    let foreign: PathBuf = tool::ask(&words_of(&words, &scene.volume), PACKAGE).unwrap().trim().into();
    let found = over(&scene.volume);
    make(&scene.device(), &scene.staging()).unwrap();
    unstage(&scene.staging()).unwrap();
    let still =
        block_device(&foreign).is_some_and(|number| Path::new(&format!("{}/loop", sysfs(number))).exists());
    tool::run(&words_of(&["losetup", "--detach"], &foreign), 0, PACKAGE).unwrap();
    assert!(found.unwrap().is_empty() && still, "a foreign device was taken for ours, or let go");
}
