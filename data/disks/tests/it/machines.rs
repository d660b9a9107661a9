//! What is found on the machines that were written by hand, and what is said of it.

use crate::machine::Machine;
use disks::{Roots, class_of};
use model::{Disk, DiskClass, DiskState};

const SERVER: &str = include_str!("../machines/nvme-server.txt");
const RAID: &str = include_str!("../machines/sata-raid.txt");
const CLOUD: &str = include_str!("../machines/cloud.txt");
const LAPTOP: &str = include_str!("../machines/laptop.txt");
pub(crate) const QEMU: &str = include_str!("../machines/qemu-disks.txt");
pub(crate) const CONTROLLERS: &str = include_str!("../machines/qemu-controllers.txt");
pub(crate) const FIRECRACKER: &str = include_str!("../machines/vm-without-udev.txt");

/// All of them, by name.
pub(crate) const TREES: [(&str, &str); 7] = [
    ("nvme-server", SERVER),
    ("sata-raid", RAID),
    ("cloud", CLOUD),
    ("laptop", LAPTOP),
    ("qemu-disks", QEMU),
    ("qemu-controllers", CONTROLLERS),
    ("vm-without-udev", FIRECRACKER),
];

pub(crate) fn found(text: &str, allow: &[&str]) -> Vec<Disk> {
    Machine::new(text, allow).report()
}

/// Each disk: device, name, state, part of the message.
pub(crate) fn check(disks: &[Disk], expected: &[(&str, &str, DiskState, &str)]) {
    let devices: Vec<&str> = disks.iter().map(|disk| disk.device.as_str()).collect();
    assert_eq!(devices, expected.iter().map(|(device, ..)| *device).collect::<Vec<_>>());
    for (disk, (device, name, state, says)) in disks.iter().zip(expected) {
        let message = disk.message.clone().unwrap_or_default();
        assert_eq!((disk.name.as_str(), disk.state), (*name, *state), "{device}: {message}");
        assert!(message.contains(says) && says.is_empty() == message.is_empty(), "{device}: {message:?}");
    }
}

pub(crate) fn disk<'a>(disks: &'a [Disk], device: &str) -> &'a Disk {
    disks.iter().find(|disk| disk.device == device).expect("it was found")
}

#[test]
fn of_a_server_the_new_disk_is_free() {
    let disks = found(SERVER, &["*"]);
    check(
        &disks,
        &[
            (
                "/dev/nvme0n1",
                "nvme-samsung-mzql27t6hbla-00a07-s6ckne0t500123",
                DiskState::InUse,
                "/dev/nvme0n1p1 is mounted at /boot/efi: unmount it first",
            ),
            ("/dev/nvme1n1", "nvme-samsung-mzql27t6hbla-00a07-s6ckne0t500777", DiskState::Available, ""),
        ],
    );
    let new = disk(&disks, "/dev/nvme1n1");
    assert_eq!(new.by_id.as_deref(), Some("/dev/disk/by-id/nvme-SAMSUNG_MZQL27T6HBLA-00A07_S6CKNE0T500777"));
    assert_eq!((new.model.as_deref(), new.class), (Some("SAMSUNG MZQL27T6HBLA-00A07"), DiskClass::Nvme));
    assert_eq!((new.serial.as_deref(), new.size_bytes), (Some("S6CKNE0T500777"), 7_681_501_126_656));
    assert_eq!((new.logical_block_bytes, new.physical_block_bytes), (512, 4096));
    let system = disk(&disks, "/dev/nvme0n1");
    assert_eq!(system.signatures, ["a GPT partition table", "an MBR partition table or a boot sector"]);
    let partitions: Vec<_> =
        system.partitions.iter().map(|part| (part.device.as_str(), part.number)).collect();
    assert_eq!(partitions, [("/dev/nvme0n1p1", 1), ("/dev/nvme0n1p2", 2)]);
    assert_eq!(system.partitions[0].label.as_deref(), Some("EFI System Partition"));
    assert_eq!((system.partitions[0].start_bytes, system.partitions[0].size_bytes), (1 << 20, 1_127_219_200));
}

#[test]
fn the_allow_list_decides_what_is_looked_at() {
    let devices = |allow: &[&str]| {
        let disks = found(SERVER, allow);
        disks.into_iter().map(|disk| disk.device).collect::<Vec<_>>()
    };
    assert_eq!(devices(&[]), [""; 0]);
    assert_eq!(devices(&["/dev/nvme1n1"]), ["/dev/nvme1n1"]);
    assert_eq!(devices(&["/dev/disk/by-id/*500777"]), ["/dev/nvme1n1"]);
    assert_eq!(devices(&["/dev/loop*"]), ["/dev/loop0"], "a volume of Orlop never, an empty one neither");
    assert_eq!(devices(&["/dev/nvme*"]).len(), 2, "neither the hidden way nor the remote volume");
    assert_eq!(devices(&["/dev/nvme2n1"]), ["/dev/nvme2n1"], "but one that is named");
}

#[test]
fn a_volume_that_the_kernel_has_by_nvme_is_no_disk_even_where_it_is_named() {
    let mut machine = Machine::new(SERVER, &["/dev/nvme2n1"]);
    assert_eq!(machine.scan().len(), 1, "of somebody else");
    let nqn = "nqn.2026-11.io.orlop:device:0193\n";
    machine.replace("sys/block/nvme2n1/device/subsysnqn", nqn);
    assert!(machine.scan().is_empty());
}

#[test]
fn of_a_raid_nothing_is_free_but_what_was_never_in_it() {
    let disks = found(RAID, &["*"]);
    check(
        &disks,
        &[
            (
                "/dev/sda",
                "wwn-0x55cd2e41517f3a21",
                DiskState::InUse,
                "/dev/sda1 is swap: `swapoff /dev/sda1`",
            ),
            ("/dev/sdb", "ata-st4000nm0035-1v4107-zc11aaaa", DiskState::InUse, "/dev/sdb1 is part of md0"),
            ("/dev/sdc", "ata-st4000nm0035-1v4107-zc11bbbb", DiskState::InUse, "/dev/sdc is part of md0"),
            (
                "/dev/sdd",
                "wwn-0x5000c500a1b2c3d4",
                DiskState::InUse,
                "/dev/sdd carries a software RAID member: if nobody needs it, blank it",
            ),
            ("/dev/sde", "wwn-0x5000c50093e1f00d", DiskState::Available, ""),
            ("/dev/sdg", "n1-sdg", DiskState::InUse, "/dev/sde says the same of itself"),
        ],
    );
    let ssd = disk(&disks, "/dev/sda");
    assert_eq!((ssd.class, ssd.model.as_deref()), (DiskClass::Ssd, Some("INTEL SSDSC2KB480G8")));
    let sas = disk(&disks, "/dev/sde");
    assert_eq!((sas.class, sas.model.as_deref()), (DiskClass::Hdd, Some("ST8000NM0075")));
    assert_eq!((sas.serial.as_deref(), sas.by_id.as_deref()), (Some("ZA1234AB"), None));
}

#[test]
fn a_partition_has_the_class_of_its_disk() {
    use DiskClass::{Hdd, Nvme, Ssd};
    for (text, device, class) in [
        (RAID, (8, 0), Some(Ssd)),
        (RAID, (8, 2), Some(Ssd)),
        (RAID, (8, 17), Some(Hdd)),
        (RAID, (8, 99), None),
        (SERVER, (259, 3), Some(Nvme)),
        (SERVER, (259, 4), Some(Nvme)),
    ] {
        let machine = Machine::new(text, &[]);
        assert_eq!(class_of(&Roots::below(&machine.path("")), device), class, "{device:?}");
    }
}

#[test]
fn without_udev_a_cloud_is_known_as_well() {
    let disks = found(CLOUD, &["*"]);
    check(
        &disks,
        &[
            ("/dev/vda", "virtio-b3f0c1d2-system", DiskState::InUse, "/dev/vda1 is mounted at /"),
            ("/dev/vdb", "virtio-5c1e0d4b-7a2f-4c11-9", DiskState::Available, ""),
            ("/dev/vdc", "n1-vdc", DiskState::Available, ""),
            ("/dev/vdd", "virtio-data", DiskState::InUse, "/dev/vdd is mounted at /srv/my data"),
            ("/dev/vde", "virtio-config-drive", DiskState::InUse, "a pool needs at least"),
            ("/dev/vdf", "virtio-image", DiskState::InUse, "/dev/vdf is read-only"),
        ],
    );
    assert_eq!(disk(&disks, "/dev/vdd").signatures, ["a btrfs file system"]);
}

#[test]
fn of_a_laptop_nothing_is_free() {
    let disks = found(LAPTOP, &["*"]);
    let name = "nvme-wd-pc-sn740-sddpnqd-1t00-1027-23022f800123";
    check(&disks, &[("/dev/nvme0n1", name, DiskState::InUse, "/dev/nvme0n1p2 is part of luks-3f1c (dm-0)")]);
    let all = found(LAPTOP, &["*", "/dev/dm-*", "/dev/zram0"]);
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|disk| disk.state == DiskState::InUse), "{all:?}");
}

#[test]
fn names_are_the_same_without_udev() {
    for text in [SERVER, LAPTOP] {
        let mut machine = Machine::new(text, &["/dev/nvme*"]);
        let names = |disks: Vec<Disk>| disks.into_iter().map(|disk| disk.name).collect::<Vec<_>>();
        let with = names(machine.report());
        std::fs::remove_dir_all(machine.path("run")).expect("there is a database");
        assert_eq!(names(machine.report()), with);
    }
}

#[test]
fn what_udev_finds_and_we_do_not_is_no_free_disk() {
    let mut machine = Machine::new(SERVER, &["*"]);
    let note = "E:ID_FS_TYPE=zfs_member\n";
    machine.replace("run/udev/data/b259:4", note);
    let disks = machine.report();
    let disk = disk(&disks, "/dev/nvme1n1");
    assert_eq!(
        (disk.state, disk.signatures.as_slice()),
        (DiskState::InUse, &["what udev calls zfs_member".to_owned()][..])
    );
}

#[test]
fn a_disk_that_nobody_wrote_to_is_not_read_again() {
    let mut machine = Machine::new(CLOUD, &["/dev/vdb"]);
    let stat = "sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb/stat";
    assert_eq!(machine.report()[0].state, DiskState::Available);
    machine.replace(stat, "99 0 4000 9 0 0 0 0 0 8 5 0 0 0 0 0 0\n");
    machine.report();
    assert_eq!(machine.scanner().probes(), 1, "only reads are counted more");
    machine.put("dev/vdb", "1080 53ef");
    machine.replace(stat, "99 0 4000 9 3 0 24 0 0 8 5 0 0 0 0 0 0\n");
    let disks = machine.report();
    assert!(disks[0].message.as_ref().expect("a reason").contains("ext4"), "{disks:?}");
    assert_eq!(machine.scanner().probes(), 2);
}

#[test]
fn a_disk_that_cannot_be_read_is_not_free_and_is_tried_again() {
    let mut machine = Machine::new(CLOUD, &["/dev/vdb"]);
    let node = machine.path("dev/vdb");
    let hidden = machine.path("dev/hidden");
    std::fs::rename(&node, &hidden).expect("renamed");
    let disks = machine.report();
    assert!(disks[0].state == DiskState::InUse, "{disks:?}");
    assert!(disks[0].message.as_ref().expect("a reason").contains("cannot be read"), "{disks:?}");
    std::fs::rename(hidden, node).expect("renamed");
    assert_eq!(machine.report()[0].state, DiskState::Available);
}

#[test]
fn without_a_table_of_mounts_nothing_is_known() {
    let mut machine = Machine::new(CLOUD, &["*"]);
    assert_eq!(machine.scan().len(), 6);
    std::fs::remove_file(machine.path("proc/self/mountinfo")).expect("it is there");
    assert!(machine.scanner().scan().is_err());
}

#[test]
fn a_world_wide_name_of_zeros_is_nobodys() {
    let disk = |name: &str, minor: u32, serial: &str| {
        format!(
            "sys/block/{name} -> ../devices/pci0000:00/{serial}/block/{name}\n\
             sys/devices/pci0000:00/{serial}/wwid = naa.0000000000000000\n\
             sys/devices/pci0000:00/{serial}/block/{name}/device -> ../../../{serial}\n\
             sys/devices/pci0000:00/{serial}/block/{name}/dev = 8:{minor}\n\
             sys/devices/pci0000:00/{serial}/block/{name}/size = 524288\n\
             run/udev/data/b8:{minor} = S:disk/by-id/wwn-0x0000000000000000\n\
             run/udev/data/b8:{minor} = S:disk/by-id/ata-TEAM_T2534TB_{serial}\n"
        )
    };
    let mounts = "proc/self/mountinfo = 20 1 0:1 / / rw - tmpfs tmpfs rw\n".to_owned();
    let text = [mounts, disk("sda", 0, "AA11"), disk("sdb", 16, "BB22")].concat();
    let mut machine = Machine::new(&text, &["*"]);
    check(
        &machine.report(),
        &[
            ("/dev/sda", "ata-team-t2534tb-aa11", DiskState::Available, ""),
            ("/dev/sdb", "ata-team-t2534tb-bb22", DiskState::Available, ""),
        ],
    );
    std::fs::remove_dir_all(machine.path("run")).expect("there is a database");
    let names: Vec<String> = machine.report().into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, ["n1-sda", "n1-sdb"]);
}

#[test]
fn a_sata_disk_and_a_card_are_named_without_udev_as_with_it() {
    let text = "\
proc/self/mountinfo = 20 1 0:1 / / rw - tmpfs tmpfs rw
sys/block/mmcblk0 -> ../devices/pci0000:00/mmc0:c9ff/block/mmcblk0
sys/devices/pci0000:00/mmc0:c9ff/name = QEMU!
sys/devices/pci0000:00/mmc0:c9ff/serial = 0xdeadbeef
sys/devices/pci0000:00/mmc0:c9ff/block/mmcblk0/device -> ../../../mmc0:c9ff
sys/devices/pci0000:00/mmc0:c9ff/block/mmcblk0/dev = 179:0
sys/devices/pci0000:00/mmc0:c9ff/block/mmcblk0/size = 524288
run/udev/data/b179:0 = S:disk/by-id/mmc-QEMU__0xdeadbeef
sys/block/sda -> ../devices/pci0000:00/1:0:0:0/block/sda
sys/devices/pci0000:00/1:0:0:0/wwid = t10.ATA     Solid Disk                              SATA-0002
sys/devices/pci0000:00/1:0:0:0/block/sda/device -> ../../../1:0:0:0
sys/devices/pci0000:00/1:0:0:0/block/sda/dev = 8:0
sys/devices/pci0000:00/1:0:0:0/block/sda/size = 524288
run/udev/data/b8:0 = S:disk/by-id/ata-Solid_Disk_SATA-0002
";
    let mut machine = Machine::new(text, &["*"]);
    for database in [true, false] {
        let disks = machine.report();
        check(
            &disks,
            &[
                ("/dev/mmcblk0", "mmc-qemu-0xdeadbeef", DiskState::Available, ""),
                ("/dev/sda", "ata-solid-disk-sata-0002", DiskState::Available, ""),
            ],
        );
        assert_eq!(disk(&disks, "/dev/mmcblk0").model.as_deref(), Some("QEMU!"));
        if database {
            std::fs::remove_dir_all(machine.path("run")).expect("there is a database");
        }
    }
}
