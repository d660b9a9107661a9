//! `capture.sh`: discovery makes of its output what it makes of the machine itself, so neither forgets what the other reads.

use crate::machine::{CLUSTER, Machine, on_a_reactor};
use crate::machines::TREES;
use device::File;
use disks::{Allow, Found, Roots, Scanner, class_of};
use pool::{FormatOptions, Pool, signature};
use rt::Access;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use uuid::Uuid;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines/capture.sh");
const SIZE: u64 = 64 << 20;

/// What the script prints of the machine in this folder.
fn capture(root: &Path, options: &[&str]) -> String {
    let mut command = Command::new("sh");
    command.arg(SCRIPT).args(options);
    if root != Path::new("/") {
        command.arg("--root").arg(root);
    }
    let output = command.output().expect("there is a shell");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same wherever the machine is laid out, and however a device that cannot be read says so.
fn anywhere(mut found: Vec<Found>) -> Vec<Found> {
    for disk in &mut found {
        let parts = disk.partitions.iter_mut().map(|partition| &mut partition.content);
        for content in parts.chain([&mut disk.content]) {
            let problem = content.problem.take();
            content.problem = problem.map(|text| match text.split_once(" cannot be read") {
                Some(_) => "it cannot be read".to_owned(),
                None => text,
            });
        }
    }
    found
}

/// Lays what the script prints of the machine out as another one.
fn copy(machine: &Machine, allow: &[&str]) -> Machine {
    Machine::new(&capture(&machine.path(""), &[]), allow)
}

#[test]
fn this_machine_is_the_same_by_the_script() {
    // `*` is no loop devices: others make and remove them while this runs.
    let allow = ["*"];
    let this = Path::new("/");
    let mut scanner = Scanner::new(Roots::below(this), Allow::new(&allow).expect("globs"));
    let mut look = || anywhere(scanner.scan().expect("this machine can be read"));
    for _ in 0..20 {
        let before = look();
        let text = capture(this, &[]);
        let after = look();
        if before == after {
            assert!(text.starts_with("# Printed by capture.sh. Kernel "), "{text}");
            assert_eq!(anywhere(Machine::new(&text, &allow).scan()), after, "{text}");
            return;
        }
    }
    panic!("the disks of this machine do not stay the same for a moment");
}

#[test]
fn every_machine_is_the_same_by_the_script() {
    let allow = ["*", "/dev/loop*", "/dev/dm-*", "/dev/md*", "/dev/zram*", "/dev/sdf", "/dev/sdg"];
    let allow = [&allow[..], &["/dev/sr0", "/dev/sr1", "/dev/mmcblk0"]].concat();
    for (name, text) in TREES {
        let mut machine = Machine::new(text, &allow);
        let mut copy = copy(&machine, &allow);
        let found = anywhere(machine.scan());
        assert!(!found.is_empty(), "{name}");
        assert_eq!(anywhere(copy.scan()), found, "{name}");
        // Who looks again reads the same ones again: the counters are there.
        assert_eq!((copy.scan().len(), machine.scan().len()), (found.len(), found.len()), "{name}");
        assert_eq!(copy.scanner().probes(), machine.scanner().probes(), "{name}");
        for disk in found {
            let device =
                std::fs::read_to_string(machine.path("sys/block").join(&disk.kernel_name).join("dev"));
            let device = device.expect("a number");
            let (major, minor) = device.trim().split_once(':').expect("two numbers");
            let number = (major.parse().expect("a number"), minor.parse().expect("a number"));
            let class = |machine: &Machine| class_of(&Roots::below(&machine.path("")), number);
            assert_eq!((class(&copy), class(&machine)), (Some(disk.class), Some(disk.class)), "{name}");
        }
    }
}

#[test]
fn what_the_script_printed_it_prints_again() {
    let printed = |(_, text): &&(&str, &str)| text.contains("\n# Printed by capture.sh. ");
    let captures: Vec<_> = TREES.iter().filter(printed).collect();
    assert_eq!(captures.len(), 3, "those of `captured`");
    for (name, text) in captures {
        let machine = Machine::new(text, &[]);
        let printed = capture(&machine.path(""), &[]);
        let lines = |text: &str| -> Vec<String> {
            let said = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
            // What lines a file has is known, not how its last one ends.
            said.map(|line| line.trim_end().to_owned()).collect()
        };
        for (again, line) in lines(&printed).iter().zip(lines(text)) {
            assert_eq!(*again, line, "{name}");
        }
        assert_eq!(lines(&printed).len(), lines(text).len(), "{name}");
    }
}

#[test]
fn the_script_prints_what_matters_rarely() {
    let machine = Machine::with_one_disk();
    let disk = "sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vdb";
    machine.divide(disk, 1, 1 << 20, 1 << 20);
    for (attribute, value) in
        [("queue/iostats", "0"), ("diskseq", "9"), ("vdb1/ro", "1"), ("stat", "1 0 8 0 0 0 0 0 0 0 0")]
    {
        machine.replace(&format!("{disk}/{attribute}"), value);
        let line = format!("\n{disk}/{attribute} = {value}\n");
        let printed = capture(&machine.path(""), &[]);
        assert!(printed.contains(&line), "{line}: {printed}");
    }
}

#[test]
fn the_script_prints_what_formats_are_known_by() {
    let mut text = String::from("proc/self/mountinfo = 20 1 0:1 / / rw - tmpfs tmpfs rw\n");
    // A size that is no multiple of what these formats round to.
    let size = SIZE + 5 * 512;
    let looked_for = signature::looked_for(size);
    for (number, (_, offset, bytes)) in looked_for.iter().enumerate() {
        let hex = bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        writeln!(text, "sys/block/vd{number:03} -> ../devices/pci0000:00/block/vd{number:03}")
            .expect("a text");
        writeln!(text, "sys/devices/pci0000:00/block/vd{number:03}/size = {}", size / 512).expect("a text");
        writeln!(text, "dev/vd{number:03} @{offset} {hex}").expect("a text");
    }
    let mut machine = Machine::new(&text, &["*"]);
    let found = anywhere(machine.scan());
    for (disk, (name, offset, _)) in found.iter().zip(&looked_for) {
        assert!(disk.content.signatures.iter().any(|found| found == name), "{name} at {offset}: {disk:?}");
    }
    assert_eq!(anywhere(copy(&machine, &["*"]).scan()), found);
    assert_eq!(found.len(), looked_for.len());
}

#[test]
fn the_script_prints_whose_a_pool_is_and_where_data_of_an_unknown_kind_begin() {
    let mut machine = Machine::with_one_disk();
    machine.put("dev/vdb", "70001 07");
    let unknown = anywhere(machine.scan());
    assert!(unknown[0].content.signatures[0].contains("the first at offset 70001"), "{unknown:?}");
    assert_eq!(anywhere(copy(&machine, &["*"]).scan()), unknown);

    let path = machine.path("dev/vdb");
    let pool = Uuid::from_u128(7);
    on_a_reactor(async move {
        let device = File::open(&path, None, 4096, Access::Write).await.expect("opened");
        let node = Some("n1".to_owned());
        let options = FormatOptions { cluster: CLUSTER, pool, name: "pool-1".into(), node, force: true };
        Pool::format(&device, &options).await.expect("formatted");
    });
    let disks = copy(&machine, &["*"]).report();
    assert_eq!((disks[0].pool, &disks), (Some(pool), &machine.report()));
}

#[test]
fn a_device_that_is_not_opened_is_not_free() {
    let mut machine = Machine::with_one_disk();
    let text = capture(&machine.path(""), &["--no-contents"]);
    assert!(text.contains("\ndev/vdb !\n"), "{text}");
    let disks = Machine::new(&text, &["*"]).report();
    let message = disks[0].message.clone().unwrap_or_default();
    assert!(disks[0].state == model::DiskState::InUse && message.contains("cannot be read"), "{message}");
    assert_eq!(machine.report()[0].state, model::DiskState::Available);
}

#[test]
fn serial_numbers_can_be_masked() {
    for (name, text) in TREES {
        let mut machine = Machine::new(text, &["*"]);
        let masked = capture(&machine.path(""), &["--mask-serials"]);
        let mut copy = Machine::new(&masked, &["*"]);
        let (disks, copies) = (machine.report(), copy.report());
        let serials = |disks: &[model::Disk]| {
            disks.iter().map(|disk| disk.serial.clone().unwrap_or_default()).collect::<Vec<_>>()
        };
        let (before, after) = (serials(&disks), serials(&copies));
        assert_eq!(before.len(), after.len(), "{name}");
        for (number, serial) in before.iter().enumerate() {
            assert!(serial.len() < 5 || !masked.contains(serial.as_str()), "{name}: {serial}");
            // Two disks that say the same still do, and no others.
            let same = |serials: &[String]| {
                serials.iter().map(|other| *other == serials[number]).collect::<Vec<_>>()
            };
            assert_eq!(same(&before), same(&after), "{name}: {serial}");
        }
        let states = |disks: &[model::Disk]| {
            disks.iter().map(|disk| (disk.device.clone(), disk.state, disk.model.clone())).collect::<Vec<_>>()
        };
        assert_eq!(states(&disks), states(&copies), "{name}");
    }
}
