//! Disks that fail by rule.

use crate::disk::{BLOCK, on_node, open, read, write};
use rt::sim::{DiskFault, SimDisk, World};
use rt::{Durability, Errno};
use std::collections::BTreeSet;
use std::time::Duration;

fn disk() -> SimDisk {
    let world = World::current();
    world.disk(world.node("n1").unwrap(), "/disk0")
}

fn blocks(first: u64, count: u64) -> std::ops::Range<u64> {
    first * BLOCK as u64..(first + count) * BLOCK as u64
}

#[test]
fn errors_hit_their_range_until_they_are_cleared() {
    on_node(1, async {
        let file = open().await.unwrap();
        write(&file, 0, &[1; 8], Durability::Cached).await.unwrap();
        disk().add_fault(DiskFault::ReadError, blocks(2, 1), 1000);
        disk().add_fault(DiskFault::WriteError, blocks(4, 1), 1000);
        assert_eq!(read(&file, 0, 2).await.unwrap(), [1, 1]);
        assert_eq!(read(&file, 0, 3).await, Err(Errno::IO));
        assert_eq!(read(&file, 3, 2).await.unwrap(), [1, 1]);
        write(&file, 2, &[2, 2], Durability::Cached).await.unwrap();
        assert_eq!(write(&file, 3, &[3, 3], Durability::Cached).await, Err(Errno::IO));
        assert_eq!(file.zero_range(4 * BLOCK as u64, BLOCK as u64, true).await, Err(Errno::IO));
        disk().clear_faults();
        assert_eq!(read(&file, 2, 1).await.unwrap(), [2]);
        write(&file, 3, &[3, 3], Durability::Cached).await.unwrap();
        let counters = World::current().counters();
        assert_eq!((counters.read_errors, counters.write_errors), (1, 2));
    });
}

#[test]
fn errors_come_with_their_probability() {
    on_node(1, async {
        let file = open().await.unwrap();
        disk().add_fault(DiskFault::ReadError, blocks(0, 1), 300);
        let mut failed = 0;
        for _ in 0..1000 {
            failed += u32::from(read(&file, 0, 1).await.is_err());
        }
        assert!((250..350).contains(&failed), "{failed} of 1000");
    });
}

#[test]
fn an_unreadable_block_is_cured_by_a_write() {
    on_node(1, async {
        let file = open().await.unwrap();
        write(&file, 0, &[1, 1], Durability::Cached).await.unwrap();
        disk().lose_block(BLOCK as u64 + 17);
        assert_eq!(read(&file, 0, 2).await, Err(Errno::IO));
        assert_eq!(read(&file, 0, 1).await.unwrap(), [1]);
        write(&file, 1, &[2], Durability::Cached).await.unwrap();
        assert_eq!(read(&file, 0, 2).await.unwrap(), [1, 2]);
    });
}

#[test]
fn a_rotten_bit_is_one_bit_and_survives_a_flush() {
    on_node(1, async {
        let file = open().await.unwrap();
        write(&file, 0, &[0, 0], Durability::Cached).await.unwrap();
        disk().flip_bit(5000);
        file.sync().await.unwrap();
        let data = file.read_at(0, rt::DmaBuf::new(2 * BLOCK)).await.unwrap();
        assert_eq!(data[5000].count_ones(), 1);
        assert_eq!(data.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    });
}

#[test]
fn a_disk_that_hangs_goes_on_when_it_is_released() {
    on_node(1, async {
        let file = open().await.unwrap();
        disk().hang();
        let writing = async { write(&file, 0, &[1], Durability::Cached).await };
        assert!(rt::timeout(Duration::from_secs(60), writing).await.is_err());
        let reading = rt::timeout(Duration::from_secs(60), read(&file, 8, 1));
        let release = async {
            rt::sleep(Duration::from_secs(1)).await;
            disk().release();
        };
        let (seen, ()) = futures_util::future::join(reading, release).await;
        assert_eq!(seen.unwrap().unwrap(), [0]);
    });
}

#[test]
fn a_failed_flush_may_have_lost_what_it_should_have_flushed() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        world.add_disk(node, "/disk0", 1 << 20, 4096);
        let program = async {
            let file = open().await.unwrap();
            write(&file, 0, &[1], Durability::Durable).await.unwrap();
            write(&file, 0, &[2], Durability::Cached).await.unwrap();
            disk().add_fault(DiskFault::SyncError, 0..u64::MAX, 1000);
            assert_eq!(file.sync().await, Err(Errno::IO));
            assert_eq!(write(&file, 1, &[3], Durability::Durable).await, Err(Errno::IO));
            disk().clear_faults();
            // The next flush succeeds, and says nothing about what is gone.
            file.sync().await.unwrap();
            read(&file, 0, 1).await.unwrap()
        };
        outcomes.insert(world.run(async { world.spawn_on(node, program).await }));
    }
    assert_eq!(outcomes, BTreeSet::from([vec![1], vec![2]]));
}

#[test]
fn a_lying_flush_is_found_out_by_a_power_cut() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        let disk = world.add_disk(node, "/disk0", 1 << 20, 4096);
        disk.add_fault(DiskFault::SyncLie, 0..u64::MAX, 1000);
        world.run(async {
            let program = async {
                let file = open().await.unwrap();
                write(&file, 0, &[1], Durability::Durable).await.unwrap();
                file.sync().await.unwrap();
            };
            world.spawn_on(node, program).await;
            assert!(!disk.is_stable());
            world.power_cut(node);
            let reading = async { read(&open().await.unwrap(), 0, 1).await.unwrap() };
            outcomes.insert(world.spawn_on(node, reading).await);
        });
        assert_eq!(world.counters().sync_lies, 2);
    }
    assert_eq!(outcomes, BTreeSet::from([vec![0], vec![1]]));
}

#[test]
fn a_pulled_disk_fails_its_files_and_comes_back_with_what_was_flushed() {
    on_node(1, async {
        let file = open().await.unwrap();
        write(&file, 0, &[1], Durability::Durable).await.unwrap();
        disk().hang();
        let pull = async {
            rt::sleep(Duration::from_secs(1)).await;
            disk().unplug();
        };
        let (written, ()) = futures_util::future::join(write(&file, 1, &[2], Durability::Cached), pull).await;
        assert_eq!(written, Err(Errno::NODEV));
        assert_eq!(read(&file, 0, 1).await, Err(Errno::NODEV));
        assert_eq!(open().await.unwrap_err().raw_os_error(), Some(Errno::NXIO.raw_os_error()));
        disk().plug();
        assert_eq!(read(&file, 0, 1).await, Err(Errno::NODEV), "the old file stays dead");
        assert_eq!(read(&open().await.unwrap(), 0, 1).await.unwrap(), [1]);
        disk().replace();
        assert_eq!(read(&open().await.unwrap(), 0, 1).await.unwrap(), [0]);
    });
}

#[test]
fn writes_may_vanish_or_go_astray_without_a_word() {
    on_node(1, async {
        let file = open().await.unwrap();
        disk().add_fault(DiskFault::LostWrite, blocks(0, 1), 1000);
        disk().add_fault(DiskFault::MisdirectedWrite, blocks(1, 1), 1000);
        write(&file, 0, &[1], Durability::Durable).await.unwrap();
        write(&file, 1, &[2], Durability::Durable).await.unwrap();
        write(&file, 2, &[3], Durability::Durable).await.unwrap();
        assert_eq!(read(&file, 0, 3).await.unwrap(), [0, 0, 3]);
        let counters = World::current().counters();
        assert_eq!((counters.writes_dropped, counters.writes_misdirected), (1, 1));
    });
}
