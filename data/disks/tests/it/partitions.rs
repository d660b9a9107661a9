//! Partitions: which of them are offered, what is said of the others, and when a disk can be divided.

use crate::machine::{CLUSTER, Machine, on_a_reactor};
use device::{ByteCount, File};
use disks::gpt::{self, Entry, ORLOP, Wanted};
use model::{Disk, DiskState};
use pool::{FormatOptions, Pool};
use rt::Access;
use std::path::PathBuf;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const DISK: &str = "sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb";

/// Makes a partition on the machine's disk, of which the kernel is not told.
fn partition(machine: &mut Machine, mib: u64) -> Result<Entry, String> {
    let found = machine.scan().remove(0);
    if let Some(refusal) = found.division_refusal() {
        return Err(refusal.to_string());
    }
    let path = machine.path("dev/vdb");
    on_a_reactor(async move {
        let device = File::open(&path, None, 512, Access::Shared).await.expect("opened");
        let wanted = Wanted { size: Some(ByteCount(mib * MIB)), label: None };
        let plan = gpt::plan(&device, &found.partitions, &wanted).await?;
        gpt::add(&device, plan).await
    })
}

/// A machine whose disk has two partitions of Orlop's type.
fn divided() -> Machine {
    let mut machine = Machine::with_one_disk();
    for mib in [16, 8] {
        let made = partition(&mut machine, mib).expect("made");
        machine.divide(DISK, made.number, made.start_bytes, made.size_bytes);
    }
    machine
}

fn format(path: PathBuf, node: &str) {
    let node = Some(node.to_owned());
    on_a_reactor(async move {
        let device = File::open(&path, None, 4096, Access::Write).await.expect("opened");
        let (cluster, pool) = (CLUSTER, Uuid::from_u128(2));
        let options = FormatOptions { cluster, pool, name: "pool-1".into(), node, force: false };
        Pool::format(&device, &options).await.expect("formatted");
    });
}

fn states(disks: &[Disk]) -> Vec<(&str, DiskState)> {
    disks.iter().map(|disk| (disk.name.as_str(), disk.state)).collect()
}

fn message(disk: &Disk) -> &str {
    disk.message.as_deref().unwrap_or_default()
}

#[test]
fn a_free_partition_of_its_own_type_is_a_disk() {
    let mut machine = divided();
    let disks = machine.report();
    let (available, in_use) = (DiskState::Available, DiskState::InUse);
    assert_eq!(
        states(&disks),
        [("virtio-data", in_use), ("virtio-data-part1", available), ("virtio-data-part2", available)]
    );
    assert!(message(&disks[0]).starts_with("/dev/vdb is divided into vdb1, vdb2: name a free partition"));
    assert_eq!(disks[0].partitions[1].label.as_deref(), Some("orlop-2"), "from the table");
    let first = &disks[1];
    assert_eq!((first.parent.as_deref(), first.device.as_str()), (Some("virtio-data"), "/dev/vdb1"));
    assert_eq!(
        (first.size_bytes, first.class, first.serial.as_deref()),
        (16 * MIB, disks[0].class, Some("data"))
    );
    assert!(first.partitions.is_empty() && first.signatures.is_empty());
}

#[test]
fn a_partition_is_judged_as_a_disk_is() {
    let mut machine = divided();
    let says = |machine: &mut Machine, part: usize, state: DiskState, why: &str| {
        let disks = machine.report();
        let disk = &disks[part];
        assert!(disk.state == state && message(disk).contains(why), "{why:?}: {disk:?}");
    };
    machine.put("dev/vdb1", "1080 53ef");
    says(&mut machine, 1, DiskState::InUse, "/dev/vdb1 carries an ext2, ext3 or ext4 file system");
    says(&mut machine, 2, DiskState::Available, "");
    machine.replace(&format!("{DISK}/vdb2/ro"), "1");
    says(&mut machine, 2, DiskState::InUse, "/dev/vdb2 is read-only");
    machine.replace(&format!("{DISK}/vdb2/ro"), "0");
    machine.replace(&format!("{DISK}/vdb2/dev"), "253:18");
    machine.replace("run/udev/data/b253:18", "E:ID_PART_TABLE_TYPE=gpt\nS:disk/by-id/virtio-data-part2\n");
    says(&mut machine, 2, DiskState::Available, "");
    assert_eq!(machine.report()[2].by_id.as_deref(), Some("/dev/disk/by-id/virtio-data-part2"));
    machine.replace("run/udev/data/b253:18", "E:ID_FS_TYPE=zfs_member\n");
    says(&mut machine, 2, DiskState::InUse, "/dev/vdb2 carries what udev calls zfs_member");
    let mounts = "20 1 253:18 / /data rw,relatime - ext4 /dev/vdb2 rw\n";
    machine.replace("proc/self/mountinfo", mounts);
    says(&mut machine, 2, DiskState::InUse, "/dev/vdb2 is mounted at /data");
    says(&mut machine, 0, DiskState::InUse, "/dev/vdb2 is mounted at /data");
    std::fs::create_dir_all(machine.path(&format!("{DISK}/holders/md0"))).expect("a holder");
    says(&mut machine, 1, DiskState::InUse, "/dev/vdb is part of md0");
}

#[test]
fn with_a_table_that_cannot_be_relied_on_no_partition_is_free() {
    for (offset_and_bytes, why) in [
        ("512 00", "the table in front: it has no header"),
        ("-512 00", "the table at the end: it has no header"),
        ("1024 00", "the table in front: its entries have a wrong checksum"),
        ("510 0000", "there is no protective MBR"),
    ] {
        let mut machine = divided();
        machine.put("dev/vdb", offset_and_bytes);
        let disks = machine.report();
        assert!(
            disks.len() == 3 && disks[1..].iter().all(|disk| disk.state == DiskState::InUse),
            "{disks:?}"
        );
        assert!(message(&disks[1]).contains(why) && message(&disks[1]).contains("gdisk"), "{disks:?}");
        let refused = partition(&mut machine, 8).expect_err("no table to add to");
        assert!(refused.contains(why), "{refused}");
    }
    // What the kernel does not know as the table has it is nobody's to give away.
    let mut machine = divided();
    machine.replace(&format!("{DISK}/vdb2/start"), "40960");
    let disks = machine.report();
    assert_eq!(states(&disks), [("virtio-data", DiskState::InUse), ("virtio-data-part1", DiskState::InUse)]);
    assert!(message(&disks[1]).contains("its table and the kernel say different things"), "{disks:?}");
    // A disk that carries more than a table.
    let mut machine = divided();
    machine.put("dev/vdb", "65600 5f42485266535f4d");
    let disks = machine.report();
    assert!(
        message(&disks[1]).contains("/dev/vdb carries") && message(&disks[1]).contains("a btrfs"),
        "{disks:?}"
    );
}

#[test]
fn a_pool_on_a_partition_is_one_whatever_its_type() {
    let mut machine = divided();
    format(machine.path("dev/vdb1"), "n1");
    format(machine.path("dev/vdb2"), "n2");
    let disks = machine.report();
    assert_eq!((disks[1].state, disks[1].pool), (DiskState::Pool, Some(Uuid::from_u128(2))));
    assert!(disks[2].state == DiskState::InUse && message(&disks[2]).contains("of the node n2"), "{disks:?}");
    // Under an older table, where an operator has named it.
    let mut machine = Machine::with_one_disk();
    machine.divide(DISK, 1, MIB, 16 * MIB);
    machine.divide(DISK, 5, 32 * MIB, 16 * MIB);
    machine.put("dev/vdb", "510 55aa");
    assert_eq!(machine.report().len(), 1, "that of others is their own affair");
    format(machine.path("dev/vdb5"), "n1");
    let disks = machine.report();
    let expected = [("virtio-data", DiskState::InUse), ("virtio-data-part5", DiskState::Pool)];
    assert_eq!(states(&disks), expected);
}

#[test]
fn what_cannot_be_divided_says_why() {
    for (offset_and_bytes, why) in [
        ("510 55aa", "/dev/vdb has an MBR partition table or a boot sector, and only GUID partition tables"),
        ("1080 53ef", "/dev/vdb carries an ext2"),
        ("4096 4546492050415254", "it is one for blocks of another size"),
    ] {
        let mut machine = Machine::with_one_disk();
        machine.put("dev/vdb", offset_and_bytes);
        let refused = partition(&mut machine, 8).expect_err("it is not blank");
        assert!(refused.contains(why), "{refused}");
    }
    for (attribute, value, why) in [
        ("ro", "1", "/dev/vdb is read-only"),
        ("ext_range", "1", "the kernel makes no partitions of /dev/vdb"),
    ] {
        let mut machine = Machine::with_one_disk();
        machine.replace(&format!("{DISK}/{attribute}"), value);
        let refused = partition(&mut machine, 8).expect_err("it cannot be divided");
        assert!(refused.contains(why), "{refused}");
    }
    let mut machine = Machine::with_one_disk();
    machine.replace("proc/self/mountinfo", "20 1 253:16 / /data rw,relatime - ext4 /dev/vdb rw\n");
    assert!(partition(&mut machine, 8).expect_err("it is mounted").contains("/dev/vdb is mounted at /data"));
    let mut machine = Machine::with_one_disk();
    machine.divide(DISK, 1, MIB, 16 * MIB);
    partition(&mut machine, 8).expect_err("the kernel sees what no table has");
}

#[test]
fn a_busy_partition_is_not_read_and_a_quiet_one_once() {
    let mut machine = divided();
    for (place, stat) in [("", "1 0 8 0 1 0 8 0"), ("/vdb1", "1 0 8 0 1 0 8 0"), ("/vdb2", "1 0 8 0 1 0 8 0")]
    {
        machine.replace(&format!("{DISK}{place}/stat"), stat);
    }
    machine.report();
    let before = machine.scanner().probes();
    machine.report();
    assert_eq!(machine.scanner().probes(), before, "nothing was written");
    machine.put("dev/vdb1", "0 58465342");
    machine.replace(&format!("{DISK}/vdb1/stat"), "1 0 8 0 2 0 16 0");
    let disks = machine.report();
    assert_eq!(machine.scanner().probes(), before + 1);
    assert!(disks[1].signatures == ["an xfs file system"] && disks[2].state == DiskState::Available);
    assert_eq!(ORLOP.to_string(), "7d4feb3b-9547-443f-8d8b-f1826ec3f5a7", "it is on disks for ever");
}
