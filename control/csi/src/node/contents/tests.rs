//! Contents of files that stand for devices; where the machine has the programs, as they really make them.

use super::*;
use proptest::prelude::*;
use std::process::Command;

const SIZE: u64 = 320 << 20;
const UUID: &str = "6f1f0e52-7f4c-4d1e-8a61-6a2f2d7c1c11";

fn device() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    file
}

fn found(device: &File) -> Contents {
    look(device, device.metadata().unwrap().len(), UUID).unwrap()
}

#[test]
fn nothing_is_nothing_and_a_single_bit_is_something() {
    let device = device();
    assert_eq!(found(&device), Contents::Nothing);
    for offset in [0, 700_000, SIZE - 1, SIZE - (1 << 20)] {
        device.write_all_at(&[1], offset).unwrap();
        assert!(matches!(found(&device), Contents::Other(_)), "{offset}");
        device.write_all_at(&[0], offset).unwrap();
    }
}

#[test]
fn what_others_have_made_is_named() {
    for (offset, magic, name) in OTHERS {
        let device = device();
        device.write_all_at(magic, offset as u64).unwrap();
        assert_eq!(found(&device), Contents::Other(name));
        device.write_all_at(b"\x55\xaa", 510).unwrap();
        assert_eq!(found(&device), Contents::Other(name), "a boot sector says less");
    }
    let device = device();
    device.write_all_at(b"\x55\xaa", 510).unwrap();
    assert_eq!(found(&device), Contents::Other("a partition table (DOS)"));
}

#[test]
fn a_mark_is_found_until_it_is_removed_and_is_of_one_volume() {
    let device = device();
    set_mark(&device, SIZE, UUID, true).unwrap();
    device.write_all_at(b"half a file system", 5000).unwrap();
    assert_eq!(found(&device), Contents::Unfinished);
    assert!(matches!(look(&device, SIZE, "another").unwrap(), Contents::Other(_)));
    device.set_len(SIZE + (7 << 20)).unwrap();
    assert_eq!(found(&device), Contents::Unfinished, "the volume has grown since");
    device.set_len(SIZE).unwrap();
    set_mark(&device, SIZE, UUID, false).unwrap();
    assert!(matches!(found(&device), Contents::Other(_)));
}

#[test]
fn what_a_mkfs_wrote_over_a_mark_stays() {
    let device = device();
    set_mark(&device, SIZE, UUID, true).unwrap();
    device.write_all_at(b"inodes", SIZE - (1 << 20)).unwrap();
    set_mark(&device, SIZE, UUID, false).unwrap();
    let mut left = [0; 6];
    device.read_exact_at(&mut left, SIZE - (1 << 20)).unwrap();
    assert_eq!(&left, b"inodes");
}

#[test]
fn file_systems_are_recognized_and_leave_the_mark() {
    let temp = tempfile::tempdir().unwrap();
    for filesystem in Filesystem::ALL {
        let path = temp.path().join(filesystem.name());
        let device = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        device.set_len(SIZE).unwrap();
        set_mark(&device, SIZE, UUID, true).unwrap();
        let words = filesystem.make(&path, SIZE, &crate::filesystem::MkfsOptions::default());
        let made =
            Command::new(&words[0]).args(&words[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
        let Ok(made) = made else {
            println!("{} is not installed: not tried", words[0]);
            continue;
        };
        assert!(made.status.success(), "{words:?}: {}", String::from_utf8_lossy(&made.stderr));
        assert_eq!(found(&device), Contents::Unfinished, "{words:?} wrote over the mark");
        set_mark(&device, SIZE, UUID, false).unwrap();
        assert_eq!(found(&device), Contents::Filesystem(filesystem));
        if filesystem == Filesystem::Ext4 {
            assert!(!ext4_can_grow(&device, SIZE).unwrap());
            assert!(ext4_can_grow(&device, SIZE + 1).unwrap());
        }
    }
}

#[test]
fn the_smallest_are_what_the_programs_make() {
    let temp = tempfile::tempdir().unwrap();
    for filesystem in [Filesystem::Xfs, Filesystem::Btrfs] {
        let made = |bytes: u64| {
            let path = temp.path().join(format!("{}-{bytes}", filesystem.name()));
            File::create_new(&path).unwrap().set_len(SIZE).unwrap();
            let words =
                filesystem.make(&path, bytes + RESERVED_BYTES, &crate::filesystem::MkfsOptions::default());
            let made = Command::new(&words[0])
                .args(&words[1..])
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .output();
            made.map(|made| (made.status.success(), String::from_utf8_lossy(&made.stderr).into_owned()))
        };
        let Ok((is_made, said)) = made(filesystem.min_bytes()) else {
            println!("mkfs.{} is not installed: not tried", filesystem.name());
            continue;
        };
        assert!(is_made, "{said}");
        // Sizes are whole MiB.
        let (is_made, said) = made(filesystem.min_bytes() - STEP).unwrap();
        let is_too_small = ["larger than 300MB", "too small"].iter().any(|words| said.contains(words));
        assert!(!is_made && is_too_small, "{filesystem:?}: {said}");
    }
}

#[test]
fn an_xfs_in_progress_is_none() {
    let device = device();
    device.write_all_at(b"XFSB", 0).unwrap();
    assert_eq!(found(&device), Contents::Filesystem(Filesystem::Xfs));
    device.write_all_at(&[1], 126).unwrap();
    assert!(matches!(found(&device), Contents::Other(_)));
}

proptest! {
    #[test]
    fn no_bytes_are_taken_for_nothing(bytes in proptest::collection::vec(any::<u8>(), 1..2000), at in 0_u64..900_000) {
        prop_assume!(!is_zero(&bytes));
        let device = device();
        device.write_all_at(&bytes, at).unwrap();
        prop_assert_ne!(found(&device), Contents::Nothing);
        device.set_len(16 << 20).unwrap();
        prop_assert_ne!(found(&device), Contents::Nothing);
    }
}
