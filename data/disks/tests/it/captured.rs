//! What is found on the machines that `capture.sh` has printed: real kernels and a real udev, on virtual hardware.

use crate::machine::Machine;
use crate::machines::{CONTROLLERS, FIRECRACKER, QEMU, check, disk, found};
use model::DiskClass::{self, Hdd, Nvme, Ssd};
use model::{Disk, DiskState};

const AVAILABLE: DiskState = DiskState::Available;
const IN_USE: DiskState = DiskState::InUse;
/// What both halves of a GUID partition table are called.
const TABLE: [&str; 2] = ["a GPT partition table", "an MBR partition table or a boot sector"];

/// What a disk says of itself: device, class, model, serial number, the end of its path by identity.
type Itself<'a> = (&'a str, DiskClass, Option<&'a str>, Option<&'a str>, Option<&'a str>);

fn check_themselves(disks: &[Disk], expected: &[Itself<'_>]) {
    for (device, class, model, serial, by_id) in expected {
        let disk = disk(disks, device);
        let by_id = by_id.map(|link| format!("/dev/disk/by-id/{link}"));
        assert_eq!(disk.class, *class, "{device}");
        assert_eq!((disk.model.as_deref(), disk.serial.as_deref()), (*model, *serial), "{device}");
        assert_eq!(disk.by_id, by_id, "{device}");
    }
}

#[test]
fn of_a_guest_with_everything_the_blank_disks_and_a_partition_are_free() {
    let disks = found(QEMU, &["*"]);
    check(
        &disks,
        &[
            // The kernel's number of a namespace is not its own.
            ("/dev/nvme0n1", "nvme-qemu-nvme-ctrl-nvme-a-0001-2", AVAILABLE, ""),
            (
                "/dev/nvme0n2",
                "nvme-qemu-nvme-ctrl-nvme-a-0001",
                IN_USE,
                "/dev/nvme0n2p1 is mounted at /m/efi",
            ),
            // Two ways to one namespace, which are hidden behind it.
            (
                "/dev/nvme2n1",
                "nvme-qemu-nvme-ctrl-nvme-b-0002",
                IN_USE,
                "is divided into nvme2n1p1, nvme2n1p2, nvme2n1p3",
            ),
            ("/dev/nvme2n1p1", "nvme-qemu-nvme-ctrl-nvme-b-0002-part1", AVAILABLE, ""),
            (
                "/dev/nvme2n1p2",
                "nvme-qemu-nvme-ctrl-nvme-b-0002-part2",
                IN_USE,
                "/dev/nvme2n1p2 carries an ext2, ext3 or ext4 file system",
            ),
            ("/dev/sda", "wwn-0x5000c500a1b2c3d4", IN_USE, "/dev/sda is part of vg0-data (dm-0)"),
            ("/dev/sdb", "ata-soliddisk-sata-0002", IN_USE, "/dev/sdb1 is part of md0"),
            ("/dev/sdc", "ata-soliddisk-sata-0003", IN_USE, "/dev/sdc is part of md0"),
            ("/dev/sdd", "wwn-0x5000c500a1b2c3d5", IN_USE, "/dev/sdd carries a software RAID member"),
            ("/dev/sde", "wwn-0x5000c500b1b2c3d4", AVAILABLE, ""),
            ("/dev/sdf", "scsi-0orlop-scsidisk-scsi-0002", IN_USE, "/dev/sdf is part of vault (dm-1)"),
            ("/dev/vda", "n1-vda", IN_USE, "/dev/vda carries an ext2, ext3 or ext4 file system"),
            ("/dev/vdb", "virtio-virtio-0001", IN_USE, "/dev/vdb is mounted at /m/my data"),
            ("/dev/vdc", "n1-vdc", AVAILABLE, ""),
            ("/dev/vdd", "virtio-virtio-0003", IN_USE, "/dev/vdd carries an xfs file system"),
            ("/dev/vde", "virtio-virtio-0004", IN_USE, "/dev/vde is read-only"),
        ],
    );
    for device in ["/dev/nvme0n2", "/dev/sde", "/dev/vdc"] {
        assert_eq!(disk(&disks, device).size_bytes, 512 << 20, "{device}");
    }
    for (device, blocks) in
        [("/dev/nvme0n2", (512, 512)), ("/dev/nvme0n1", (4096, 4096)), ("/dev/sde", (4096, 4096))]
    {
        let disk = disk(&disks, device);
        assert_eq!((disk.logical_block_bytes, disk.physical_block_bytes), blocks, "{device}");
    }
}

#[test]
fn of_a_guest_with_everything_each_disk_says_what_it_is() {
    let (nvme, scsi) = (Some("QEMU NVMe Ctrl"), Some("ScsiDisk"));
    let (turning, solid) = (Some("TurningDisk"), Some("SolidDisk"));
    let (a, b) = (Some("NVME-A-0001"), Some("NVME-B-0002"));
    check_themselves(
        &found(QEMU, &["*"]),
        &[
            ("/dev/nvme2n1", Nvme, nvme, b, Some("nvme-QEMU_NVMe_Ctrl_NVME-B-0002")),
            ("/dev/nvme2n1p1", Nvme, nvme, b, Some("nvme-QEMU_NVMe_Ctrl_NVME-B-0002-part1")),
            ("/dev/nvme0n2", Nvme, nvme, a, Some("nvme-QEMU_NVMe_Ctrl_NVME-A-0001")),
            ("/dev/nvme0n1", Nvme, nvme, a, Some("nvme-QEMU_NVMe_Ctrl_NVME-A-0001_2")),
            ("/dev/sda", Hdd, turning, Some("SATA-0001"), Some("ata-TurningDisk_SATA-0001")),
            ("/dev/sdb", Ssd, solid, Some("SATA-0002"), Some("ata-SolidDisk_SATA-0002")),
            ("/dev/sdc", Ssd, solid, Some("SATA-0003"), Some("ata-SolidDisk_SATA-0003")),
            ("/dev/sdd", Hdd, turning, Some("SATA-0004"), Some("ata-TurningDisk_SATA-0004")),
            ("/dev/sde", Ssd, scsi, Some("SCSI-0001"), Some("scsi-35000c500b1b2c3d4")),
            ("/dev/sdf", Hdd, scsi, Some("SCSI-0002"), Some("scsi-0ORLOP_ScsiDisk_SCSI-0002")),
            ("/dev/vdb", Hdd, None, Some("VIRTIO-0001"), Some("virtio-VIRTIO-0001")),
            ("/dev/vdc", Hdd, None, None, None),
            ("/dev/vde", Hdd, None, Some("VIRTIO-0004"), Some("virtio-VIRTIO-0004")),
        ],
    );
}

#[test]
fn of_a_guest_with_everything_it_is_known_what_lies_on_each_disk() {
    let disks = found(QEMU, &["*"]);
    for (device, signatures) in [
        ("/dev/nvme2n1", &TABLE[..]),
        ("/dev/nvme2n1p1", &[]),
        ("/dev/nvme2n1p2", &["an ext2, ext3 or ext4 file system"]),
        ("/dev/nvme0n2", &TABLE),
        ("/dev/nvme0n1", &[]),
        ("/dev/sda", &["an LVM physical volume"]),
        ("/dev/sdb", &TABLE),
        ("/dev/sdc", &["a software RAID member"]),
        ("/dev/sdd", &["a software RAID member"]),
        ("/dev/sdf", &["a LUKS container"]),
        ("/dev/vdb", &["a btrfs file system"]),
        ("/dev/vdd", &["an xfs file system"]),
    ] {
        assert_eq!(disk(&disks, device).signatures, signatures, "{device}");
    }
    // By the names that their table gives them.
    let partitions = |device: &str| {
        let partitions = disk(&disks, device).partitions.clone();
        partitions
            .into_iter()
            .map(|part| (part.number, part.size_bytes >> 20, part.label))
            .collect::<Vec<_>>()
    };
    let system = [
        (1, 64, Some("EFI System Partition".to_owned())),
        (2, 256, Some("root".to_owned())),
        (3, 64, None),
        (4, 126, None),
    ];
    assert_eq!(partitions("/dev/nvme0n2"), system);
    assert_eq!(partitions("/dev/sdb"), [(1, 256, Some("mirror".to_owned()))]);
    let mut machine = Machine::new(QEMU, &["/dev/nvme0n2"]);
    let uses = machine.scan().remove(0).uses;
    let devices: Vec<&str> = uses.iter().map(|used| used.device.as_str()).collect();
    assert_eq!(devices, ["nvme0n2p1", "nvme0n2p2", "nvme0n2p3"], "boot, root and swap");
    assert_eq!(uses[2].how, disks::How::Swap);
}

#[test]
fn of_a_guest_with_everything_what_is_odd_has_to_be_named() {
    let disks = found(QEMU, &["/dev/sdg", "/dev/sr*", "/dev/dm-*", "/dev/md*"]);
    check(
        &disks,
        &[
            ("/dev/dm-0", "n1-dm-0", IN_USE, "/dev/dm-0 is mounted at /m/lv"),
            ("/dev/dm-1", "n1-dm-1", IN_USE, "/dev/dm-1 is mounted at /m/crypt"),
            ("/dev/md0", "n1-md0", AVAILABLE, ""),
            ("/dev/sdg", "usb-qemu-qemu-harddisk-usb-0001-0-0", AVAILABLE, ""),
            (
                "/dev/sr0",
                "scsi-0qemu-qemu-cd-rom-scsi-cd-1",
                IN_USE,
                "/dev/sr0 carries an ISO 9660 file system",
            ),
            // The kernel gives a drive without a disc a size.
            ("/dev/sr1", "n1-sr1", IN_USE, "cannot be read"),
        ],
    );
    let usb = Some("usb-QEMU_QEMU_HARDDISK_USB-0001-0:0");
    check_themselves(&disks, &[("/dev/sdg", Hdd, Some("QEMU HARDDISK"), Some("USB-0001"), usb)]);
}

#[test]
fn of_a_guest_with_many_controllers_the_raid_volume_and_one_way_to_a_sas_disk_are_free() {
    let disks = found(CONTROLLERS, &["*"]);
    check(
        &disks,
        &[
            ("/dev/mmcblk0", "mmc-qemu-0xdeadbeef", IN_USE, "/dev/mmcblk0p1 is mounted at /m"),
            ("/dev/sda", "wwn-0x6003048011112222", AVAILABLE, ""),
            (
                "/dev/sdb",
                "scsi-0orlop-raidvolume-00a1b2c3d4e5f60719",
                IN_USE,
                "/dev/sdb carries data of an unknown kind (the first at offset 70001)",
            ),
            ("/dev/sdc", "scsi-0orlop-uasdisk-uas-0001", IN_USE, "/dev/sdc is divided into sdc1, sdc2"),
            ("/dev/sdd", "wwn-0x5000c50093e1f00d", AVAILABLE, ""),
            ("/dev/sde", "n1-sde", IN_USE, "/dev/sdd says the same of itself as /dev/sde"),
            ("/dev/sdf", "scsi-0orlop-paradisk-p1", IN_USE, "/dev/sdf carries an LVM physical volume"),
            // mkfs.vfat puts the table of an MBR into the file system.
            ("/dev/sdg", "scsi-0orlop-olddisk-lsi-0001", IN_USE, "/dev/sdg is divided into sdg1"),
            ("/dev/vda", "n1-vda", IN_USE, "/dev/vda carries an ext2, ext3 or ext4 file system"),
        ],
    );
    let (raid, sas) = (Some("RaidVolume"), Some("SasDisk"));
    let (first, second) = (Some("00a1b2c3d4e5f60718"), Some("00a1b2c3d4e5f60719"));
    let (uas, lsi, way) = (Some("UAS-0001"), Some("LSI-0001"), Some("scsi-35000c50093e1f00d"));
    let card = Some("mmc-QEMU__0xdeadbeef");
    check_themselves(
        &disks,
        &[
            ("/dev/mmcblk0", Ssd, Some("QEMU!"), Some("0xdeadbeef"), card),
            ("/dev/sda", Hdd, raid, first, Some("scsi-36003048011112222")),
            ("/dev/sdb", Hdd, raid, second, Some("scsi-0ORLOP_RaidVolume_00a1b2c3d4e5f60719")),
            ("/dev/sdc", Hdd, Some("UasDisk"), uas, Some("scsi-0ORLOP_UasDisk_UAS-0001")),
            ("/dev/sdd", Hdd, sas, Some("SAS-0001"), way),
            ("/dev/sde", Hdd, sas, Some("SAS-0001"), way),
            // Not by the link of what lies on it.
            ("/dev/sdf", Hdd, Some("ParaDisk"), Some("p1"), Some("scsi-0ORLOP_ParaDisk_p1")),
            ("/dev/sdg", Hdd, Some("OldDisk"), lsi, Some("scsi-0ORLOP_OldDisk_LSI-0001")),
        ],
    );
    let old_table = ["an MBR partition table or a boot sector"];
    assert_eq!(disk(&disks, "/dev/sdc").signatures, old_table);
    assert_eq!(disk(&disks, "/dev/sdg").signatures, ["a FAT file system", old_table[0]]);
    assert_eq!(disk(&disks, "/dev/sdf").signatures, ["an LVM physical volume"]);
    let mut machine = Machine::new(CONTROLLERS, &["/dev/sdc"]);
    let partitions = machine.scan().remove(0).partitions;
    let on_them: Vec<_> = partitions.iter().flat_map(|part| part.content.signatures.clone()).collect();
    assert_eq!(on_them, ["an ext2, ext3 or ext4 file system", "swap space"], "neither is in use");
}

#[test]
fn of_a_guest_that_may_not_open_its_disk_the_mount_is_known() {
    let all = ["*", "/dev/loop*", "/dev/zram*"];
    let disks = found(FIRECRACKER, &all);
    check(
        &disks,
        &[
            // `loop0` is a volume of Orlop, and `zram0` has no size.
            ("/dev/loop1", "n1-loop1", AVAILABLE, ""),
            ("/dev/vda", "virtio-overlayblk", IN_USE, "/dev/vda is mounted at /: unmount it first"),
        ],
    );
    let vda = disk(&disks, "/dev/vda");
    assert_eq!((vda.size_bytes, vda.physical_block_bytes), (256 << 30, 4096));
    check_themselves(&disks, &[("/dev/vda", Hdd, None, Some("overlayblk"), None)]);
    let mut machine = Machine::new(FIRECRACKER, &all);
    machine.replace("proc/self/mountinfo", "20 1 0:1 / / rw - tmpfs tmpfs rw\n");
    machine.replace("proc/1/mountinfo", "20 1 0:1 / / rw - tmpfs tmpfs rw\n");
    let disks = machine.report();
    let message = disk(&disks, "/dev/vda").message.clone().unwrap_or_default();
    assert!(message.contains("cannot be read"), "not free, if it were not mounted: {message}");
}

#[test]
fn names_are_the_same_without_udev_but_of_scsi_without_a_world_wide_name() {
    for (text, by_udev_alone) in
        [(QEMU, &["/dev/sdf"][..]), (CONTROLLERS, &["/dev/sdb", "/dev/sdc", "/dev/sdf", "/dev/sdg"])]
    {
        let mut machine = Machine::new(text, &["*"]);
        let names = |disks: Vec<Disk>| {
            let others = disks.into_iter().filter(|disk| !by_udev_alone.contains(&disk.device.as_str()));
            others.map(|disk| (disk.device, disk.name, disk.model)).collect::<Vec<_>>()
        };
        let with = names(machine.report());
        std::fs::remove_dir_all(machine.path("run")).expect("there is a database");
        let disks = machine.report();
        for device in by_udev_alone {
            assert_eq!(disk(&disks, device).name, format!("n1-{}", &device["/dev/".len()..]));
        }
        assert_eq!(names(disks), with);
    }
}
