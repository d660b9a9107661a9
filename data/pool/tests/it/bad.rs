//! Blocks whose contents are recorded as lost.

use crate::{
    BOOT, NEXUS, REPLICA, blocks, buffer, config, format_options, fresh, generation, memory, simulated,
};
use device::{BlockCount, Lba, Status};
use pool::{Pool, ReplicaReader, UNREADABLE, check};
use rt::Durability;
use rt::sim::{DiskFault, World};

const MIB: u64 = 1 << 20;

#[test]
fn a_bad_block_stays_bad_until_it_is_written_or_unmapped() {
    simulated(41, || async {
        let device = memory(64 * MIB);
        let mut pool = fresh(&device, 32 * MIB).await;
        let replica = pool.replica(REPLICA).expect("there");
        replica.write(generation(1), Lba(0), blocks(7, 16), Durability::Durable).await.expect("written");
        let used = replica.info().used_bytes;
        replica.mark_bad(generation(2), Lba(8), BlockCount(8)).await.expect("marked");
        replica.mark_bad(generation(2), Lba(4000), BlockCount(1)).await.expect("marked, where nothing was");
        assert!(replica.info().used_bytes < used, "it takes no space");
        let too_many = replica.mark_bad(generation(2), Lba(0), BlockCount(65)).await;
        assert_eq!(too_many, Err(Status::Invalid));
        drop(replica);
        // After a crash; from the checkpoint that opening wrote; after an orderly end.
        for round in 0..3 {
            if round == 2 {
                pool.close().await.expect("closed");
            }
            drop(pool);
            let report = check(&device).await.expect("a pool");
            assert_eq!((report.problems.len(), report.replicas[0].bad_blocks), (0, 9));
            let reader = ReplicaReader::open(&device, REPLICA).await.expect("there");
            assert_eq!(reader.read(Lba(8), buffer(1)).await.err(), Some(Status::MediaRead));
            drop(reader);
            pool = Pool::open(device.clone(), BOOT).await.expect("opens");
            let replica = pool.replica(REPLICA).expect("there");
            assert_eq!(replica.info().bad_blocks, 9);
            for lba in [8, 15, 4000] {
                assert_eq!(replica.read(Lba(lba), buffer(1)).await.err(), Some(Status::MediaRead));
            }
            assert_eq!(replica.read(Lba(0), buffer(16)).await.err(), Some(Status::MediaRead));
            assert_eq!(replica.read(Lba(7), buffer(1)).await.expect("readable")[0], 7);
            let hashes = replica.hash_extent(0, 5).await.expect("hashed");
            assert_eq!(hashes.iter().filter(|hash| **hash == UNREADABLE).count(), 8);
        }
        let replica = pool.replica(REPLICA).expect("there");
        replica.write(generation(3), Lba(8), blocks(9, 2), Durability::Cached).await.expect("written");
        replica.unmap(generation(3), Lba(10), BlockCount(6)).await.expect("unmapped");
        assert_eq!(replica.read(Lba(9), buffer(1)).await.expect("readable")[0], 9);
        assert_eq!(replica.read(Lba(10), buffer(1)).await.expect("readable")[0], 0);
        drop((replica, pool));
        let pool = Pool::open(device.clone(), BOOT).await.expect("opens");
        let replica = pool.replica(REPLICA).expect("there");
        assert_eq!(replica.read(Lba(9), buffer(1)).await.expect("readable")[0], 9);
        assert_eq!(replica.info().bad_blocks, 1);
    });
}

/// Writes to a bad block, unflushed or refused by the disk, then loses power: it reads as what was written, or not at all.
fn overwritten(seed: u64, refused: bool) -> bool {
    let world = World::new(seed);
    let node = world.add_node("n1");
    let disk = world.add_disk(node, "/disk", 64 * MIB, 4096);
    let open = || async { device::open(&"disk:///disk".parse().expect("a URI")).await };
    let inside = world.clone();
    world.run(async move {
        let written = inside.spawn_on(node, async move {
            let device = open().await.expect("a disk");
            Pool::format(&device, &format_options()).await.expect("empty");
            let pool = Pool::open(device, BOOT).await.expect("just made");
            pool.create_replica(&config(REPLICA, 32 * MIB)).await.expect("room");
            let replica = pool.replica(REPLICA).expect("there");
            replica.accept_epoch(1, NEXUS).await.expect("accepted");
            replica.mark_bad(generation(1), Lba(5), BlockCount(1)).await.expect("marked");
            replica.write(generation(1), Lba(6), blocks(6, 1), Durability::Durable).await.expect("written");
            if refused {
                let data_from = 1280 << 10;
                disk.add_fault(DiskFault::WriteError, data_from..64 * MIB, 1000);
            }
            let written = replica.write(generation(2), Lba(5), blocks(9, 1), Durability::Cached).await;
            assert_eq!(written.is_err(), refused);
            if refused {
                assert_eq!(replica.read(Lba(5), buffer(1)).await.err(), Some(Status::MediaRead));
                disk.clear_faults();
            }
            rt::sleep(std::time::Duration::from_micros(rt::random_u64() % 400_000)).await;
        });
        written.await;
        inside.power_cut(node);
        let survived = inside.spawn_on(node, async move {
            let device = open().await.expect("a disk");
            let pool = Pool::open(device, BOOT).await.expect("recovers");
            match pool.replica(REPLICA).expect("there").read(Lba(5), buffer(1)).await {
                Ok(block) => {
                    // A refused write may have been applied nevertheless, and a power cut may take that it failed.
                    assert!(block.iter().all(|byte| *byte == 9), "what was written, whole");
                    true
                }
                Err(status) => {
                    assert_eq!(status, Status::MediaRead);
                    false
                }
            }
        });
        survived.await
    })
}

#[test]
fn a_write_that_a_power_cut_takes_leaves_a_bad_block_bad() {
    let survived = (0..60).filter(|seed| overwritten(*seed, false)).count();
    assert!(survived > 0 && survived < 60, "both were seen: {survived}");
}

#[test]
fn a_write_that_the_disk_refuses_leaves_a_bad_block_bad() {
    for seed in 0..5 {
        overwritten(seed, true);
    }
}
