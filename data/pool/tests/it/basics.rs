//! What a pool promises while nothing goes wrong.

use crate::{
    BLOCK, BOOT, NEXUS, REPLICA, blocks, buffer, config, format_options, fresh, generation, memory, simulated,
};
use device::{BlockCount, Device, Lba, Mem, Status};
use model::Generation;
use pool::{Changed, ErrorKind, FormatOptions, Opening, Pool, Progress, Replica, ReplicaReader, check};
use rt::{DmaBytes, Durability};
use std::time::Duration;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

async fn byte_at(replica: &Replica<Mem>, lba: u64) -> u8 {
    let buf = replica.read(Lba(lba), buffer(1)).await.expect("readable");
    assert!(buf.iter().all(|byte| *byte == buf[0]), "one byte value per block");
    buf[0]
}

fn extents(changed: Changed) -> Vec<(u64, Generation)> {
    match changed {
        Changed::Extents { list, next: None } => list,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_written_is_read_also_after_reopening() {
    simulated(1, || async {
        let device = memory(64 * MIB);
        let pool = fresh(&device, 32 * MIB).await;
        let replica = pool.replica(REPLICA).expect("there");
        replica.write(generation(1), Lba(5), blocks(7, 3), Durability::Cached).await.expect("written");
        replica.write(generation(1), Lba(62), blocks(8, 130), Durability::Durable).await.expect("written");
        assert_eq!(byte_at(&replica, 4).await, 0);
        assert_eq!(byte_at(&replica, 5).await, 7);
        let whole = replica.read(Lba(0), buffer(200)).await.expect("readable");
        for (lba, block) in whole.chunks(BLOCK).enumerate() {
            let expected = if (5..8).contains(&lba) {
                7
            } else if (62..192).contains(&lba) {
                8
            } else {
                0
            };
            assert!(block.iter().all(|byte| *byte == expected), "block {lba}");
        }
        drop((replica, pool));
        // Without closing: as after the crash of the process.
        for round in 0..3 {
            let pool = Pool::open(device.clone(), BOOT).await.expect("recovers");
            assert!(pool.info().previous_incarnation != pool.info().label.incarnation);
            let replica = pool.replica(REPLICA).expect("there");
            assert_eq!(replica.fence().epoch, 1);
            assert_eq!(byte_at(&replica, 7).await, 7);
            assert_eq!(byte_at(&replica, 8).await, 0);
            assert_eq!(byte_at(&replica, 191).await, 8);
            if round == 1 {
                pool.close().await.expect("closed");
                assert_eq!(replica.read(Lba(0), buffer(1)).await.expect_err("closed"), Status::Gone);
            }
            let report = check(&device).await.expect("a pool");
            assert_eq!(report.problems, []);
            assert_eq!(report.clean, round == 1);
        }
        let reader = ReplicaReader::open(&device, REPLICA).await.expect("there");
        let offline = reader.read(Lba(0), buffer(200)).await.expect("readable");
        assert_eq!(offline[..], whole[..]);
    });
}

#[test]
fn unmapped_blocks_read_as_zeroes_and_space_comes_back() {
    simulated(2, || async {
        let device = memory(32 * MIB);
        let pool = fresh(&device, 64 * MIB).await;
        let replica = pool.replica(REPLICA).expect("there");
        let before = pool.info().free_bytes;
        replica.write(generation(1), Lba(0), blocks(1, 256), Durability::Cached).await.expect("written");
        assert_eq!(before - pool.info().free_bytes, MIB);
        replica.unmap(generation(2), Lba(10), BlockCount(100)).await.expect("unmapped");
        replica
            .write_zeroes(generation(3), Lba(200), BlockCount(56), Durability::Durable)
            .await
            .expect("zeroed");
        let whole = replica.read(Lba(0), buffer(256)).await.expect("readable");
        for (lba, block) in whole.chunks(BLOCK).enumerate() {
            let expected = u8::from(!(10..110).contains(&lba) && lba < 200);
            assert!(block.iter().all(|byte| *byte == expected), "block {lba}");
        }
        replica.unmap(generation(3), Lba(0), BlockCount(256)).await.expect("unmapped");
        replica.flush().await.expect("flushed");
        assert_eq!(pool.info().free_bytes, before);
        assert_eq!(
            extents(replica.changed_since(generation(2), 0, 100)).iter().map(|(e, _)| *e).collect::<Vec<_>>(),
            [0, 1, 2, 3],
            "extents that lost their last block are remembered"
        );
    });
}

#[test]
fn a_full_pool_refuses_whole_commands_and_goes_on_overwriting() {
    simulated(3, || async {
        let device = memory(8 * MIB);
        let pool = fresh(&device, 64 * MIB).await;
        let replica = pool.replica(REPLICA).expect("there");
        let mut next = 0;
        let refused = loop {
            match replica.write(generation(1), Lba(next), blocks(1, 40), Durability::Cached).await {
                Ok(()) => next += 40,
                Err(status) => break status,
            }
        };
        assert_eq!(refused, Status::NoSpace);
        assert!(next > 40 * 10, "{next}");
        let last = replica.read(Lba(next), buffer(40)).await.expect("readable");
        assert!(last.iter().all(|byte| *byte == 0), "nothing of the refused command was done");
        for lba in (0..next).step_by(40) {
            replica
                .write(generation(2), Lba(lba), blocks(2, 40), Durability::Cached)
                .await
                .expect("overwritten");
        }
        // What one gives back another may have, at once.
        replica.unmap(generation(3), Lba(0), BlockCount(400)).await.expect("unmapped");
        replica
            .write(generation(3), Lba(next), blocks(3, 40), Durability::Cached)
            .await
            .expect("there is room");
        // There is always room for checkpoints, also for ones that are longer than those before.
        while replica.write(generation(3), Lba(next), blocks(3, 1), Durability::Cached).await.is_ok() {
            next += 1;
        }
        for i in 0..40 {
            replica.set_record(&vec![i; 16 << 10]).await.expect("kept");
            let overwritten = (0..next).step_by(13).skip(31);
            for lba in overwritten {
                let again = generation(4 + u64::from(i));
                match replica.write(again, Lba(lba), blocks(4, 1), Durability::Cached).await {
                    Ok(()) | Err(Status::NoSpace) => {}
                    Err(status) => panic!("{status}"),
                }
            }
        }
        assert!(pool.metrics().checkpoints > 3);
        pool.close().await.expect("closed");
        assert_eq!(check(&device).await.expect("a pool").problems, []);
    });
}

#[test]
fn epochs_fence_and_control_records_last() {
    simulated(4, || async {
        let device = memory(16 * MIB);
        let pool = fresh(&device, 4 * MIB).await;
        let replica = pool.replica(REPLICA).expect("there");
        let other = Uuid::from_u128(9);
        assert_eq!(replica.accept_epoch(1, other).await, Err(Status::Fenced));
        assert_eq!(replica.accept_epoch(1, NEXUS).await, Ok(()));
        assert_eq!(replica.accept_epoch(3, other).await, Ok(()));
        assert_eq!(replica.accept_epoch(2, NEXUS).await, Err(Status::Fenced));
        let write =
            |epoch| replica.write(Generation::new(epoch, 1), Lba(0), blocks(1, 1), Durability::Cached);
        assert_eq!(write(1).await, Err(Status::Fenced));
        assert_eq!(write(4).await, Err(Status::Invalid));
        assert_eq!(write(3).await, Ok(()));
        replica.set_stable(Generation::new(3, 1)).await.expect("durable");
        let progress = Progress { source_epoch: 3, cursor_extent: 2, received_since: Generation::new(3, 1) };
        replica.set_progress(Some(progress)).await.expect("durable");
        let record = vec![7; 16 << 10];
        replica.set_record(&record).await.expect("durable");
        assert_eq!(replica.set_record(&vec![0; (16 << 10) + 1]).await, Err(Status::Invalid));
        assert_eq!(replica.resize(2 * MIB).await, Err(Status::Invalid));
        replica.resize(8 * MIB).await.expect("grown");
        for clean in [false, true] {
            let pool = Pool::open(device.clone(), BOOT).await.expect("recovers");
            let replica = pool.replica(REPLICA).expect("there");
            assert_eq!((replica.fence().epoch, replica.fence().nexus), (3, other));
            assert_eq!(replica.stable(), Generation::new(3, 1));
            assert_eq!(replica.progress(), Some(progress));
            assert_eq!(replica.record().as_deref(), Some(&record[..]));
            assert_eq!(replica.config().size_bytes, 8 * MIB);
            if !clean {
                pool.close().await.expect("closed");
            }
        }
    });
}

#[test]
fn changes_are_told_and_admitted_to_be_unknown_after_a_crash() {
    simulated(5, || async {
        let device = memory(64 * MIB);
        let pool = fresh(&device, 32 * MIB).await;
        let replica = pool.replica(REPLICA).expect("there");
        for (counter, lba) in [(1, 0), (2, 64), (3, 640), (4, 64)] {
            replica
                .write(generation(counter), Lba(lba), blocks(1, 1), Durability::Cached)
                .await
                .expect("written");
        }
        let expected = vec![(1, generation(4)), (10, generation(3))];
        assert_eq!(extents(replica.changed_since(generation(1), 0, 9)), expected);
        let Changed::Extents { list, next } = replica.changed_since(Generation::ZERO, 0, 2) else { panic!() };
        assert_eq!((list, next), (vec![(0, generation(1)), (1, generation(4))], Some(10)));
        assert_eq!(extents(replica.changed_since(Generation::ZERO, 10, 2)), [(10, generation(3))]);
        assert_eq!(replica.changed_since(Generation::new(2, 0), 0, 9), Changed::Everything);
        pool.close().await.expect("closed");
        let pool = Pool::open(device.clone(), BOOT).await.expect("opens");
        let replica = pool.replica(REPLICA).expect("there");
        assert_eq!(extents(replica.changed_since(generation(1), 0, 9)), expected, "after closing in order");
        replica.write(generation(5), Lba(0), blocks(2, 1), Durability::Cached).await.expect("written");
        drop((pool, replica));
        let pool = Pool::open(device.clone(), BOOT).await.expect("recovers");
        let replica = pool.replica(REPLICA).expect("there");
        assert_eq!(replica.changed_since(generation(4), 0, 9), Changed::Everything, "after a crash");
        replica.accept_epoch(2, NEXUS).await.expect("accepted");
        replica
            .write(Generation::new(2, 1), Lba(0), blocks(3, 1), Durability::Cached)
            .await
            .expect("written");
        let later = extents(replica.changed_since(Generation::new(2, 0), 0, 9));
        assert_eq!(later, [(0, Generation::new(2, 1))]);
    });
}

#[test]
fn replicas_come_and_go() {
    simulated(6, || async {
        let device = memory(32 * MIB);
        let pool = fresh(&device, 16 * MIB).await;
        let before = pool.info().free_bytes;
        let second = config(Uuid::from_u128(0x1002), 16 * MIB);
        pool.create_replica(&second).await.expect("made");
        pool.create_replica(&second).await.expect("made already");
        let larger = config(second.replica, 32 * MIB);
        assert_eq!(pool.create_replica(&larger).await.expect_err("differs").kind(), ErrorKind::Exists);
        assert_eq!(pool.replicas().len(), 2);
        let replica = pool.replica(second.replica).expect("there");
        replica.accept_epoch(1, NEXUS).await.expect("accepted");
        replica.write(generation(1), Lba(0), blocks(9, 512), Durability::Cached).await.expect("written");
        pool.delete_replica(second.replica).await.expect("deleted");
        pool.delete_replica(second.replica).await.expect("deleted already");
        assert_eq!(replica.read(Lba(0), buffer(1)).await.expect_err("gone"), Status::Gone);
        assert_eq!(pool.info().free_bytes, before);
        // Its space is given out again, and shows nothing of it.
        let first = pool.replica(REPLICA).expect("there");
        first.write(generation(1), Lba(3), blocks(1, 1), Durability::Cached).await.expect("written");
        assert_eq!([byte_at(&first, 2).await, byte_at(&first, 3).await, byte_at(&first, 4).await], [0, 1, 0]);
        drop((pool, replica, first));
        let pool = Pool::open(device, BOOT).await.expect("recovers");
        assert_eq!(pool.replicas().len(), 1);
    });
}

#[test]
fn small_blocks_are_merged() {
    simulated(7, || async {
        let device = memory(32 * MIB);
        let pool = fresh(&device, 4 * MIB).await;
        let small = pool::ReplicaConfig { block_size: 512, ..config(Uuid::from_u128(7), MIB + 512) };
        pool.create_replica(&small).await.expect("made");
        let replica = pool.replica(small.replica).expect("there");
        replica.accept_epoch(1, NEXUS).await.expect("accepted");
        // Eight neighbours at once, in one block of the pool.
        let writes: Vec<_> = (0..8u8)
            .map(|i| {
                let (replica, data) = (replica.clone(), DmaBytes::copy_of(&[i + 1; 512]));
                rt::spawn(async move {
                    replica.write(generation(1), Lba(8 + u64::from(i)), data, Durability::Cached).await
                })
            })
            .collect();
        for write in writes {
            write.await.expect("written");
        }
        let buf = replica.read(Lba(7), rt::DmaBuf::new(10 * 512)).await.expect("readable");
        let firsts: Vec<u8> = buf.chunks(512).map(|block| block[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
        replica.unmap(generation(1), Lba(9), BlockCount(9)).await.expect("unmapped");
        let last = replica.geometry().blocks.0 - 1;
        replica
            .write(generation(1), Lba(last), DmaBytes::copy_of(&[5; 512]), Durability::Cached)
            .await
            .expect("last");
        let buf = replica.read(Lba(7), rt::DmaBuf::new(10 * 512)).await.expect("readable");
        let firsts: Vec<u8> = buf.chunks(512).map(|block| block[0]).collect();
        assert_eq!(firsts, [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(replica.read(Lba(last), rt::DmaBuf::new(512)).await.expect("last")[0], 5);
    });
}

#[test]
fn a_pool_is_not_formatted_for_another_cluster_or_node() {
    simulated(9, || async {
        let device = memory(16 * MIB);
        Pool::format(&device, &format_options()).await.expect("an empty device");
        let before = Pool::probe(&device).await.expect("a pool");
        let (ours, other) = (format_options().cluster, Uuid::from_u128(77));
        for (cluster, node) in [(other, "n1"), (ours, "n2"), (ours, "n1")] {
            let options = FormatOptions { cluster, node: Some(node.into()), pool: other, ..format_options() };
            let error = Pool::format(&device, &options).await.expect_err("a pool is there");
            assert_eq!(error.kind(), ErrorKind::Occupied);
            let text = error.to_string();
            for said in [
                format!(
                    "carries the Orlop pool {} (disk0) of the cluster {ours} and the node n1,",
                    before.pool
                ),
                format!("one of the cluster {cluster} and the node {node}:"),
            ] {
                assert!(text.contains(&said), "{text}");
            }
        }
        assert_eq!(Pool::probe(&device).await.expect("a pool"), before, "and nothing has been changed");
    });
}

#[test]
fn the_label_names_the_node_that_opened_it_last() {
    simulated(10, || async {
        let device = memory(16 * MIB);
        Pool::format(&device, &FormatOptions { node: None, ..format_options() }).await.expect("empty");
        let node = async || Pool::probe(&device).await.expect("a pool").node;
        assert_eq!(node().await, None);
        for name in ["n1", "n2"] {
            let opening = Opening { node: Some(name), boot_id: BOOT, may_have_lost: false };
            let pool = Pool::open_as(device.clone(), opening).await.expect("opens");
            assert_eq!(node().await.as_deref(), Some(name), "durable before it is used");
            pool.close().await.expect("closes");
            drop(Pool::open(device.clone(), BOOT).await.expect("opens"));
            assert_eq!(node().await.as_deref(), Some(name), "a tool leaves it");
        }
        let long = "n".repeat(65);
        let opening = Opening { node: Some(&long), boot_id: BOOT, may_have_lost: false };
        let refused = Pool::open_as(device.clone(), opening).await.err().expect("too long");
        assert_eq!(refused.kind(), ErrorKind::Invalid);
    });
}

#[test]
fn what_a_device_carries_is_not_overwritten() {
    simulated(8, || async {
        let device = memory(16 * MIB);
        let mut options = format_options();
        device
            .write(
                Lba(0),
                {
                    let mut b = vec![0; BLOCK];
                    b[0x438] = 0x53;
                    b[0x439] = 0xef;
                    DmaBytes::copy_of(&b)
                },
                Durability::Cached,
            )
            .await
            .expect("written");
        let error = Pool::format(&device, &options).await.expect_err("ext4 is there");
        assert_eq!(error.kind(), ErrorKind::Occupied);
        assert!(error.to_string().contains("ext4"), "{error}");
        assert_eq!(
            Pool::open(device.clone(), BOOT).await.err().expect("no pool").kind(),
            ErrorKind::NotAPool
        );
        options.force = true;
        Pool::format(&device, &options).await.expect("forced");
        options.force = false;
        let error = Pool::format(&device, &options).await.expect_err("a pool is there");
        assert_eq!(error.kind(), ErrorKind::Occupied);
        assert!(error.to_string().contains("Orlop pool"), "{error}");
        let label = Pool::probe(&device).await.expect("a pool");
        assert_eq!(
            (label.name.as_str(), label.pool, label.incarnation),
            ("disk0", options.pool, Uuid::nil())
        );
        assert_eq!(
            Pool::format(&memory(MIB), &options).await.expect_err("small").kind(),
            ErrorKind::TooSmall
        );
    });
}

#[test]
fn hashes_agree_online_and_offline() {
    simulated(9, || async {
        let device = memory(16 * MIB);
        let pool = fresh(&device, MIB + 8192).await;
        let replica = pool.replica(REPLICA).expect("there");
        replica.write(generation(1), Lba(1), blocks(1, 1), Durability::Cached).await.expect("written");
        replica.write(generation(1), Lba(2), blocks(0, 1), Durability::Cached).await.expect("written");
        let hashes = replica.hash_extent(0, 42).await.expect("hashed");
        assert_eq!(hashes.len(), 64);
        assert!(
            hashes.iter().enumerate().all(|(i, hash)| (*hash != [0; 16]) == (i == 1)),
            "zeroes are zeroes"
        );
        assert_ne!(hashes, replica.hash_extent(0, 43).await.expect("hashed"));
        assert_eq!(replica.hash_extent(4, 42).await.expect("hashed").len(), 2);
        assert_eq!(replica.hash_extent(5, 42).await, Err(Status::OutOfRange));
        let reader = ReplicaReader::open(&device, REPLICA).await.expect("there");
        assert_eq!(reader.hash_extent(0, 42).await.expect("hashed"), hashes);
    });
}

#[test]
fn an_idle_pool_settles_and_overwrites_without_the_journal() {
    simulated(10, || async {
        let device = memory(16 * MIB);
        let pool = fresh(&device, 4 * MIB).await;
        let replica = pool.replica(REPLICA).expect("there");
        let write = |counter| replica.write(generation(counter), Lba(0), blocks(1, 8), Durability::Cached);
        write(1).await.expect("written");
        assert_eq!(pool.metrics().recorded_writes, 1);
        write(1).await.expect("written");
        assert_eq!(pool.metrics().recorded_writes, 1, "an overwrite has no record");
        rt::sleep(Duration::from_secs(2)).await;
        let before = pool.metrics();
        write(1).await.expect("written");
        let after = pool.metrics();
        assert_eq!(after.recorded_writes, 1);
        assert_eq!(after.journal_commits, before.journal_commits, "an overwrite touches no metadata");
        rt::sleep(Duration::from_secs(60)).await;
        assert_eq!(pool.metrics().flushes, after.flushes, "an idle pool does nothing");
    });
}

#[test]
fn a_pool_that_holds_nothing_is_given_back_blank() {
    simulated(1, || async {
        let device = memory(64 * MIB);
        let pool = fresh(&device, 32 * MIB).await;
        let refused = pool.retire().await.expect_err("it holds a replica");
        assert_eq!(refused.kind(), ErrorKind::Occupied);
        assert!(refused.to_string().contains("holds a copy of volume"), "{refused}");
        let replica = pool.replica(REPLICA).expect("it is as before");
        replica.write(generation(1), Lba(5), blocks(7, 1), Durability::Durable).await.expect("written");
        pool.delete_replica(REPLICA).await.expect("deleted");
        pool.retire().await.expect("given back");
        let late = pool.create_replica(&config(REPLICA, 32 * MIB)).await.expect_err("it is closed");
        assert_eq!(late.kind(), ErrorKind::Gone);
        drop((replica, pool));
        let nothing = Pool::<Mem>::probe(&device).await.expect_err("it is no pool any more");
        assert_eq!(nothing.kind(), ErrorKind::NotAPool);
        Pool::format(&device, &format_options()).await.expect("blank enough for another pool");
    });
}
