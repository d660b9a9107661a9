//! Devices that fail: what fails is said, what was promised stays.

use crate::{BOOT, NEXUS, REPLICA, blocks, buffer, config, format_options, generation, memory, simulated};
use device::fault::{Effect, Fault, FaultHandle, Op, Rule};
use device::{BlockCount, Lba, Mem, Status};
use pool::{ErrorKind, Opening, Pool, Replica, check};
use rt::{DmaBuf, Durability};
use std::time::Duration;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const AFTER_A_LOSS: Opening<'_> = Opening { node: None, boot_id: BOOT, may_have_lost: true };
/// Where the journal and the extents of a pool of 32 MiB begin, in blocks.
const JOURNAL: u64 = 256;
const EXTENTS: u64 = 320;

async fn faulty(memory: &Mem) -> (FaultHandle, Pool<Fault<Mem>>, Replica<Fault<Mem>>) {
    let device = Fault::new(memory.clone());
    let handle = device.handle();
    Pool::format(&device, &format_options()).await.expect("an empty device");
    let pool = Pool::open(device, BOOT).await.expect("just made");
    pool.create_replica(&config(REPLICA, 8 * MIB)).await.expect("there is room");
    let replica = pool.replica(REPLICA).expect("just made");
    replica.accept_epoch(1, NEXUS).await.expect("the first epoch");
    replica.write(generation(1), Lba(0), blocks(1, 64), Durability::Cached).await.expect("written");
    rt::sleep(Duration::from_secs(1)).await;
    (handle, pool, replica)
}

fn on(op: Op, effect: Effect, lbas: std::ops::RangeInclusive<u64>) -> Rule {
    Rule { lbas: Some(lbas), ..Rule::on(op, effect) }
}

async fn bytes(replica: &Replica<impl device::Device + 'static>, lba: u64, count: usize) -> DmaBuf {
    replica.read(Lba(lba), buffer(count)).await.expect("readable")
}

#[test]
fn a_first_write_that_fails_leaves_zeroes() {
    for effect in [Effect::Fail(Status::MediaWrite), Effect::FailAfter(Status::MediaWrite)] {
        simulated(1, move || async move {
            let memory = memory(32 * MIB);
            let (handle, pool, replica) = faulty(&memory).await;
            let free = pool.info().free_bytes;
            handle.add(on(Op::Write, effect, EXTENTS..=u64::MAX));
            let write = replica.write(generation(2), Lba(100), blocks(7, 3), Durability::Cached);
            assert_eq!(write.await, Err(Status::MediaWrite));
            handle.clear();
            assert!(bytes(&replica, 100, 3).await.iter().all(|byte| *byte == 0));
            replica.flush().await.expect("the pool goes on");
            assert_eq!(pool.info().free_bytes, free);
            drop((pool, replica));
            let pool = Pool::open(memory, BOOT).await.expect("recovers");
            let replica = pool.replica(REPLICA).expect("there");
            assert!(bytes(&replica, 100, 3).await.iter().all(|byte| *byte == 0));
            assert!(bytes(&replica, 0, 64).await.iter().all(|byte| *byte == 1));
        });
    }
}

#[test]
fn checkpoints_wait_for_data_and_forget_what_failed() {
    simulated(2, || async {
        let memory = memory(32 * MIB);
        let (handle, pool, replica) = faulty(&memory).await;
        let checkpoints = pool.metrics().checkpoints;
        // A first write whose data is slow and then fails, while records fill the ring behind it.
        let rule = handle.add(on(Op::Write, Effect::Hang, EXTENTS + 64..=EXTENTS + 200));
        let slow = replica.clone();
        let slow =
            rt::spawn(
                async move { slow.write(generation(2), Lba(100), blocks(7, 3), Durability::Cached).await },
            );
        let records = replica.clone();
        let records = rt::spawn(async move {
            for i in 0..40 {
                records.set_record(&vec![i; 16 << 10]).await.expect("kept");
            }
        });
        rt::sleep(Duration::from_secs(5)).await;
        assert_eq!(pool.metrics().checkpoints, checkpoints, "no checkpoint contains data that is not there");
        let whole = rt::timeout(Duration::from_secs(1), replica.read(Lba(100), buffer(1))).await;
        assert!(whole.is_err(), "nobody reads what lay there before");
        handle.remove(rule);
        slow.await.expect("written after all");
        records.await;
        assert!(pool.metrics().checkpoints > checkpoints);
        assert!(bytes(&replica, 100, 3).await.iter().all(|byte| *byte == 7));
        drop((pool, replica));
        assert_eq!(check(&memory).await.expect("a pool").problems, []);
    });
}

#[test]
fn after_a_failed_flush_or_journal_write_the_pool_stops() {
    let rules = [
        Rule::on(Op::Flush, Effect::Fail(Status::MediaWrite)),
        on(Op::Write, Effect::Fail(Status::MediaWrite), JOURNAL..=EXTENTS - 1),
    ];
    for rule in rules {
        simulated(3, move || async move {
            let memory = memory(32 * MIB);
            let (handle, pool, replica) = faulty(&memory).await;
            handle.add(rule);
            let failed = replica.write(generation(1), Lba(70), blocks(2, 1), Durability::Durable).await;
            assert_eq!(failed, Err(Status::MediaWrite));
            handle.clear();
            assert!(pool.info().failed);
            assert_eq!(replica.flush().await, Err(Status::MediaWrite), "a later flush cannot make up for it");
            let after = replica.write(generation(1), Lba(0), blocks(2, 1), Durability::Cached).await;
            assert_eq!(after, Err(Status::MediaWrite));
            assert!(replica.accept_epoch(2, NEXUS).await.is_err());
            let read = replica.read(Lba(0), buffer(64)).await;
            assert_eq!(read.err(), Some(Status::Gone), "what recovery may not find is not shown");
            assert_eq!(pool.info().label.boot_id, BOOT);
            // The note of the failure is on its way.
            rt::sleep(Duration::from_secs(1)).await;
            drop((pool, replica));
            let pool = Pool::open(memory.clone(), BOOT).await.expect("recovers");
            let lost = pool.info().label.boot_id;
            assert_ne!(lost, BOOT, "another process in the same boot knows of the loss");
            drop(pool);
            let pool = Pool::open(memory.clone(), BOOT).await.expect("recovers");
            assert_eq!(pool.info().label.boot_id, lost, "and nothing was lost since");
            drop(pool);
            let pool = Pool::open_as(memory.clone(), AFTER_A_LOSS).await.expect("recovers");
            let again = pool.info().label.boot_id;
            assert!(again != lost && again != BOOT);
            drop(pool);
            let other = Uuid::from_u128(77);
            let pool = Pool::open(memory, other).await.expect("recovers");
            assert_eq!(pool.info().label.boot_id, other, "another boot of the machine");
            let replica = pool.replica(REPLICA).expect("there");
            assert!(bytes(&replica, 0, 64).await.iter().all(|byte| *byte == 1));
            let again = replica.write(generation(1), Lba(0), blocks(2, 1), Durability::Durable).await;
            assert_eq!(again, Ok(()));
        });
    }
}

#[test]
fn metadata_that_cannot_be_read_is_named() {
    simulated(4, || async {
        let memory = memory(32 * MIB);
        let (_, pool, replica) = faulty(&memory).await;
        pool.close().await.expect("closed");
        drop((pool, replica));
        let device = Fault::new(memory);
        let all = device.handle().add(on(Op::Read, Effect::Fail(Status::MediaRead), 0..=0));
        let report = check(&device).await.expect("the other copy");
        assert_eq!((report.problems.len(), report.problems[0].offset_bytes), (1, 0));
        assert!(report.problems[0].repairable);
        device.handle().remove(all);
        device.handle().add(on(Op::Read, Effect::Fail(Status::MediaRead), EXTENTS..=u64::MAX));
        let error = Pool::open(device, BOOT).await.err().expect("the manifest is needed");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().contains("manifest at offset"), "{error}");
    });
}

#[test]
fn space_with_io_on_its_way_is_not_given_to_others() {
    simulated(5, || async {
        let memory = memory(32 * MIB);
        let (handle, pool, replica) = faulty(&memory).await;
        let used = pool.info().used_bytes;
        // A read that takes its time, of blocks that are unmapped meanwhile.
        let rule = handle.add(on(Op::Read, Effect::Hang, EXTENTS..=u64::MAX));
        let slow = replica.clone();
        let slow = rt::spawn(async move { slow.read(Lba(0), buffer(8)).await });
        rt::sleep(Duration::from_millis(1)).await;
        replica.unmap(generation(2), Lba(0), BlockCount(8)).await.expect("unmapped");
        replica.flush().await.expect("flushed");
        assert_eq!(pool.info().used_bytes, used, "the read may still arrive there");
        handle.remove(rule);
        assert!(slow.await.expect("read").iter().all(|byte| *byte == 1));
        replica.flush().await.expect("flushed");
        assert_eq!(pool.info().used_bytes, used - pool::PIECE_SIZE);
        // A write that nobody waits for any more, to blocks that are unmapped afterwards.
        let rule = handle.add(on(Op::Write, Effect::Hang, EXTENTS..=u64::MAX));
        let write = replica.write(generation(2), Lba(8), blocks(9, 1), Durability::Cached);
        assert!(rt::timeout(Duration::from_millis(1), write).await.is_err(), "abandoned");
        handle.remove(rule);
        replica.unmap(generation(3), Lba(8), BlockCount(8)).await.expect("unmapped");
        replica.unmap(generation(3), Lba(16), BlockCount(8)).await.expect("unmapped");
        replica.flush().await.expect("flushed");
        assert_eq!(pool.info().used_bytes, used - 2 * pool::PIECE_SIZE, "one of the two is kept back");
        drop((pool, replica));
        let pool = Pool::open(memory, BOOT).await.expect("recovers");
        let replica = pool.replica(REPLICA).expect("there");
        assert_eq!(replica.info().used_bytes, 5 * pool::PIECE_SIZE);
        assert!(pool.info().used_bytes <= used - 3 * pool::PIECE_SIZE + pool::EXTENT_SIZE);
    });
}

/// The engine was killed, and the disk fails a flush just when it starts again: what the engine before had completed may
/// have been lost by that, within one boot of the machine.
#[test]
fn a_flush_that_fails_while_the_pool_is_opened_is_not_forgotten() {
    for before_it_fails in 0..3 {
        simulated(4, move || async move {
            let memory = memory(32 * MIB);
            drop(faulty(&memory).await);
            let device = Fault::new(memory.clone());
            let flush = Rule::on(Op::Flush, Effect::Fail(Status::MediaWrite));
            let rule = device.handle().add(Rule { skip: before_it_fails, ..flush });
            let (handle, opened) = (device.handle(), Pool::open(device, BOOT).await);
            if handle.hits(rule) == 0 {
                assert!(before_it_fails > 1, "an opening flushes what it found, and what it has written");
                assert_eq!(opened.expect("nothing failed").info().label.boot_id, BOOT);
                return;
            }
            assert_eq!(
                opened.err().map(|error| error.kind()),
                Some(ErrorKind::Io),
                "flush {before_it_fails}"
            );
            // The note of the failure is on its way.
            rt::sleep(Duration::from_secs(1)).await;
            let pool = Pool::open(memory.clone(), BOOT).await.expect("recovers");
            let lost = pool.info().label.boot_id;
            assert_ne!(lost, BOOT, "flush {before_it_fails}");
            drop(pool);
            let pool = Pool::open(memory, BOOT).await.expect("recovers");
            assert_eq!(pool.info().label.boot_id, lost, "and nothing was lost since");
        });
    }
}
