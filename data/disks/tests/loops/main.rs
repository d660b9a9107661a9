//! A loop device of the real kernel through what a disk goes through: blank, formatted, mounted, swap, gone; and divided
//! while a part of it is in use.
//!
//! Needs root, so it runs only when told to: `cargo test -p orlop-disks --test loops -- --run`, which is what the journey
//! `disks` of `cargo xtask e2e` does. Without that it says so and succeeds. A guard removes what it made on any exit.
#![expect(clippy::print_stdout, clippy::expect_used, reason = "a test runner talks to people")]

use device::ByteCount;
use disks::gpt::{self, Entry, Wanted};
use disks::{Allow, Roots, Scanner};
use model::{Disk, DiskState};
use rt::Access;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use tempfile::TempDir;
use uuid::Uuid;

const CLUSTER: Uuid = Uuid::from_u128(1);
const SIZE_MIB: u64 = 64;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("--run") {
        println!(
            "tests with loop devices: NOT RUN. As root: cargo test -p orlop-disks --test loops -- --run"
        );
        return ExitCode::SUCCESS;
    }
    a_disk_through_its_life();
    println!("test a_disk_through_its_life ... ok");
    a_disk_that_is_divided_while_it_is_used();
    println!(
        "test a_disk_that_is_divided_while_it_is_used ... ok\ntest result: ok. 2 passed; 0 failed; 0 ignored"
    );
    ExitCode::SUCCESS
}

fn a_disk_through_its_life() {
    let bench = Bench::new();
    let mut scanner = Bench::scanner(&bench.device);
    let (device, place) = (bench.device.as_str(), bench.place());
    // What was read is kept until the kernel has counted a write.
    let mut is = |state: DiskState, says: &str| {
        sh("sync", &[device]);
        let disk = found(&mut scanner).expect("it is there");
        let message = disk.message.clone().unwrap_or_default();
        assert!(disk.state == state && message.contains(says), "{state} {says:?}: {disk:?}");
        disk
    };
    let disk = is(DiskState::Available, "");
    assert_eq!((disk.device.as_str(), disk.size_bytes), (device, SIZE_MIB << 20));
    assert!(found(&mut Bench::scanner("*")).is_none(), "a loop device has to be named");

    sh("mkfs.ext4", &["-q", device]);
    is(DiskState::InUse, &format!("{device} carries an ext2, ext3 or ext4 file system"));
    sh("mount", &[device, &place]);
    is(DiskState::InUse, &format!("{device} is mounted at {place}"));
    sh("umount", &[&place]);
    is(DiskState::InUse, "carries an ext2");

    sh("blkdiscard", &["--zeroout", device]);
    is(DiskState::Available, "");
    sh("mkswap", &[device]);
    is(DiskState::InUse, "carries swap space");
    sh("swapon", &[device]);
    is(DiskState::InUse, &format!("{device} is swap"));
    sh("swapoff", &[device]);

    sh("blkdiscard", &["--zeroout", device]);
    is(DiskState::Available, "");

    sh("losetup", &["--detach", device]);
    assert!(found(&mut scanner).is_none());
}

/// The system is the judge: what was written is a table to its tools.
fn a_disk_that_is_divided_while_it_is_used() {
    let mut bench = Bench::new();
    let place = bench.place();
    let first = bench.divide(16, Access::Write);
    let device = bench.device.clone();
    let part = |number: u32| format!("{device}p{number}");
    assert_eq!((first.number, first.start_bytes), (1, 1 << 20));
    // Somebody uses the first part while the second is made.
    sh("mkfs.ext4", &["-q", &part(1)]);
    sh("mount", &["-o", "ro,noload", &part(1), &place]);
    let before = sh("sha256sum", &[&part(1)]);
    let second = bench.divide(32, Access::Shared);
    assert_eq!((second.number, second.start_bytes, second.size_bytes), (2, 17 << 20, 32 << 20));
    assert_eq!(sh("sha256sum", &[&part(1)]), before);
    let listed = |bench: &Bench| {
        let mut disks =
            Bench::scanner(&bench.device).report("n1", CLUSTER).expect("this machine can be read");
        disks.retain(|disk| disk.parent.is_some());
        disks.into_iter().map(|disk| (disk.device, disk.size_bytes, disk.state)).collect::<Vec<_>>()
    };
    let both = |device: &str, first: DiskState| {
        [(format!("{device}p1"), 16 << 20, first), (format!("{device}p2"), 32 << 20, DiskState::Available)]
    };
    assert_eq!(listed(&bench), both(&device, DiskState::InUse));
    sh("umount", &[&place]);

    // The table is read anew, as after a boot; by the system's tools, for a kernel need not know any.
    sh("losetup", &["--detach", &device]);
    bench.attach();
    sh("partx", &["--update", &bench.device]);
    assert_eq!(listed(&bench), both(&bench.device, DiskState::InUse));
    let columns = ["--show", "--noheadings", "--output", "NR,START,SECTORS,NAME"];
    let read = sh("partx", &[&columns[..], &[&bench.device]].concat());
    let words: Vec<&str> = read.split_whitespace().collect();
    assert_eq!(words, ["1", "2048", "32768", "orlop-1", "2", "34816", "65536", "orlop-2"]);
    sh("losetup", &["--detach", &bench.device]);
}

fn found(scanner: &mut Scanner) -> Option<Disk> {
    let found = scanner.report("n1", CLUSTER).expect("this machine can be read");
    found.into_iter().find(|disk| disk.device.starts_with("/dev/loop"))
}

/// A loop device and what is made of it, removed when dropped.
struct Bench {
    folder: TempDir,
    device: String,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("disk");
        std::fs::create_dir(folder.path().join("mount")).expect("a folder");
        let file = file.to_str().expect("UTF-8");
        sh("truncate", &["--size", &format!("{SIZE_MIB}M"), file]);
        let mut this = Self { folder, device: String::new() };
        this.attach();
        this
    }

    fn attach(&mut self) {
        let file = self.folder.path().join("disk");
        let file = file.to_str().expect("UTF-8");
        let shown = sh("losetup", &["--find", "--show", "--partscan", file]);
        shown.trim().clone_into(&mut self.device);
    }

    /// Makes a partition of so many MiB, and tells the kernel.
    fn divide(&self, mib: u64, access: Access) -> Entry {
        let found = Self::scanner(&self.device).scan().expect("this machine can be read").remove(0);
        assert_eq!(found.division_refusal(), None);
        let disk = self.device.clone();
        let reactor = rt::os::Reactor::new(rt::os::Config::default()).expect("a reactor");
        reactor.run(async move {
            let path = Path::new(&disk);
            let device = device::disk::open(path, 512, access).await.expect("opened");
            let wanted = Wanted { size: Some(ByteCount(mib << 20)), label: None };
            let plan = gpt::plan(&device, &found.partitions, &wanted).await.expect("planned");
            let entry = gpt::add(&device, plan).await.expect("added");
            rt::os::add_partition(path, entry.number, entry.start_bytes, entry.size_bytes).expect("told");
            entry
        })
    }

    fn scanner(glob: &str) -> Scanner {
        Scanner::new(Roots::below(Path::new("/")), Allow::new(&[glob]).expect("a glob"))
    }

    fn place(&self) -> String {
        self.folder.path().join("mount").to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let name = self.device.trim_start_matches("/dev/");
        let under =
            std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
        // Once it is let go it may be anybody's.
        if Path::new(under.trim_end()) != self.folder.path().join("disk") {
            return;
        }
        let place = self.place();
        for (program, arguments) in [
            ("swapoff", &[self.device.as_str()][..]),
            ("umount", &[place.as_str()]),
            ("losetup", &["--detach", self.device.as_str()]),
        ] {
            // It is not swap, or not mounted: then there is nothing to undo.
            drop(Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status());
        }
    }
}

fn sh(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("it is installed");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}
