//! Files on simulated disks: contents, shapes, locks, cancellation.

use rt::sim::World;
use rt::{Access, DmaBuf, DmaBytes, Durability, Errno, File, OpenOptions};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

pub(crate) const BLOCK: usize = 4096;
const RW: OpenOptions = OpenOptions { access: Access::Write, create_len_bytes: None, direct: true };

/// Opens the disk of the current node for writing.
pub(crate) async fn open() -> io::Result<File> {
    File::open(Path::new("/disk0"), RW).await
}

/// Writes blocks from `first` on, each filled with its tag.
pub(crate) async fn write(file: &File, first: u64, tags: &[u8], durability: Durability) -> Result<(), Errno> {
    let mut data = DmaBuf::new(tags.len() * BLOCK);
    for (block, tag) in data.chunks_mut(BLOCK).zip(tags) {
        block.fill(*tag);
    }
    file.write_at(first * BLOCK as u64, data.freeze(), durability).await
}

/// Reads the tags of `count` blocks from `first` on; no block may be torn inside.
pub(crate) async fn read(file: &File, first: u64, count: usize) -> Result<Vec<u8>, Errno> {
    let data = file.read_at(first * BLOCK as u64, DmaBuf::new(count * BLOCK)).await?;
    let tag = |block: &[u8]| {
        assert!(block.iter().all(|byte| *byte == block[0]), "a torn block");
        block[0]
    };
    Ok(data.chunks(BLOCK).map(tag).collect())
}

/// Runs a program on the one node, which has a disk, of a world.
pub(crate) fn on_node(seed: u64, program: impl Future<Output = ()> + 'static) {
    let world = World::new(seed);
    let node = world.add_node("n1");
    world.add_disk(node, "/disk0", 4 << 30, 4096);
    world.run(async { world.spawn_on(node, program).await });
}

#[test]
fn what_was_written_is_read_and_the_rest_is_zero() {
    on_node(1, async {
        let file = open().await.unwrap();
        assert_eq!((file.len_bytes(), file.block_size()), (4 << 30, 4096));
        write(&file, 1 << 18, &[1, 2], Durability::Cached).await.unwrap();
        file.sync().await.unwrap();
        assert_eq!(read(&file, (1 << 18) - 1, 4).await.unwrap(), [0, 1, 2, 0]);
        file.zero_range(1 << 30, 4096, true).await.unwrap();
        assert_eq!(read(&file, 1 << 18, 2).await.unwrap(), [0, 2]);
        file.zero_range(0, 4 << 30, true).await.unwrap();
        assert_eq!(read(&file, 1 << 18, 2).await.unwrap(), [0, 0]);
    });
}

#[test]
fn what_a_disk_cannot_do_is_refused() {
    on_node(1, async {
        let file = open().await.unwrap();
        let block = || DmaBytes::copy_of(&[0; BLOCK]);
        let end = file.len_bytes();
        assert_eq!(file.write_at(end, block(), Durability::Cached).await, Err(Errno::NOSPC));
        assert_eq!(file.write_at(u64::MAX, block(), Durability::Cached).await, Err(Errno::INVAL));
        assert_eq!(file.read_at(end, DmaBuf::new(BLOCK)).await.unwrap_err(), Errno::IO);
        assert_eq!(file.read_at(0, DmaBuf::new(100)).await.unwrap_err(), Errno::INVAL);
        assert_eq!(file.read_at(512, DmaBuf::new(BLOCK)).await.unwrap_err(), Errno::INVAL);
        let mut shifted = DmaBuf::new(BLOCK + 512);
        let _front = shifted.split_to(512);
        assert_eq!(file.read_at(0, shifted).await.unwrap_err(), Errno::INVAL);
        assert_eq!(file.zero_range(end, 4096, false).await, Err(Errno::NOSPC));
        drop(file);
        let reading = OpenOptions { access: Access::Read, ..RW };
        let file = File::open(Path::new("/disk0"), reading).await.unwrap();
        assert_eq!(file.write_at(0, block(), Durability::Cached).await, Err(Errno::BADF));
        let missing = File::open(Path::new("/disk1"), reading).await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_buffered_file_takes_any_range_and_can_be_created() {
    on_node(1, async {
        let options = OpenOptions { create_len_bytes: Some(10_000), direct: false, ..RW };
        let file = File::open(Path::new("/log"), options).await.unwrap();
        assert_eq!(file.len_bytes(), 10_000);
        file.write_at(4090, DmaBytes::copy_of(b"across the edge"), Durability::Durable).await.unwrap();
        file.write_at(4097, DmaBytes::copy_of(b"THE"), Durability::Cached).await.unwrap();
        let read = file.read_at(4089, DmaBuf::new(17)).await.unwrap();
        assert_eq!(&read[..], b"\0across THE edge\0");
        drop(file);
        let again = OpenOptions { create_len_bytes: Some(5), ..options };
        assert_eq!(File::open(Path::new("/log"), again).await.unwrap().len_bytes(), 10_000);
    });
}

#[test]
fn one_writer_at_a_time_until_its_last_operation_ended_or_its_process_died() {
    let world = World::new(1);
    let node = world.add_node("n1");
    world.add_disk(node, "/disk0", 1 << 20, 4096);
    world.run(async {
        world
            .spawn_on(node, async {
                let file = open().await.unwrap();
                assert_eq!(open().await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
                let reading = OpenOptions { access: Access::Read, ..RW };
                assert!(File::open(Path::new("/disk0"), reading).await.is_ok());
                drop(file);
                let file = open().await.unwrap();
                // Never dropped, as in a process that is killed.
                Box::leak(Box::new(file));
            })
            .await;
        world.crash(node);
        world.spawn_on(node, async { open().await.unwrap() }).await;
    });
}

#[test]
fn concurrent_writes_to_a_block_end_in_any_order_and_reads_may_see_half_a_write() {
    let mut ends = BTreeSet::new();
    let mut halves = false;
    for seed in 0..200 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        world.add_disk(node, "/disk0", 1 << 20, 4096);
        let program = async {
            let file = open().await.unwrap();
            let both = futures_util::future::join3(
                write(&file, 0, &[1; 4], Durability::Cached),
                write(&file, 0, &[2; 4], Durability::Cached),
                read(&file, 0, 4),
            );
            let (first, second, seen) = both.await;
            first.and(second).unwrap();
            (read(&file, 0, 4).await.unwrap(), seen.unwrap())
        };
        let (end, seen) = world.run(async { world.spawn_on(node, program).await });
        assert!(end.iter().all(|tag| [1, 2].contains(tag)));
        halves |= seen.iter().any(|tag| *tag != seen[0]);
        ends.insert(end);
    }
    assert!(ends.contains(&vec![1; 4]) && ends.contains(&vec![2; 4]) && ends.len() > 2);
    assert!(halves);
}

#[test]
fn a_dropped_write_of_which_nothing_was_done_yet_may_still_happen() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        let disk = world.add_disk(node, "/disk0", 1 << 20, 4096);
        let program = async move {
            let file = open().await.unwrap();
            disk.hang();
            let soon = Duration::from_secs(1);
            assert!(rt::timeout(soon, write(&file, 0, &[1, 1], Durability::Cached)).await.is_err());
            disk.release();
            rt::sleep(Duration::from_secs(1)).await;
            read(&file, 0, 2).await.unwrap()
        };
        outcomes.insert(world.run(async { world.spawn_on(node, program).await }));
    }
    assert_eq!(outcomes, BTreeSet::from([vec![0, 0], vec![1, 1]]));
}

#[test]
fn a_dropped_write_happens_or_not_and_a_dropped_read_does_no_harm() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        world.add_disk(node, "/disk0", 1 << 20, 4096);
        let program = async {
            let file = open().await.unwrap();
            let soon = Duration::from_micros(2);
            assert!(rt::timeout(soon, write(&file, 0, &[1, 1], Durability::Cached)).await.is_err());
            assert!(rt::timeout(soon, read(&file, 0, 2)).await.is_err());
            rt::sleep(Duration::from_secs(1)).await;
            let tags = read(&file, 0, 2).await.unwrap();
            drop(file);
            open().await.expect("the abandoned operations have ended, and with them the lock");
            tags
        };
        outcomes.insert(world.run(async { world.spawn_on(node, program).await }));
    }
    assert_eq!(outcomes, BTreeSet::from([vec![0, 0], vec![1, 1]]));
}
