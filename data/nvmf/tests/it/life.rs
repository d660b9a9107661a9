//! The life of an association when the network or the device fails: time-outs, partitions, resets, crashes, cancellation.

use crate::support::{Bench, stamped};
use device::fault::{Effect, Op, Rule};
use device::{Device, Lba, Status};
use nvmf::{Association, Reconnecting};
use rt::{DmaBuf, Durability, Task};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

fn write(association: &Association, lba: u64, stamp: u8) -> Task<Result<(), Status>> {
    let namespace = association.namespace(1);
    rt::spawn(async move { namespace.write(Lba(lba), stamped(lba, 20, stamp), Durability::Cached).await })
}

#[test]
fn a_partition_ends_both_ends() {
    for seed in 0..8 {
        Bench::run(
            seed,
            |_| {},
            async |bench| {
                let association = bench
                    .connect(|options| {
                        options.keep_alive_ms = 2000;
                        options.queues = 2;
                    })
                    .await;
                rt::sleep(Duration::from_secs(20)).await;
                assert!(!association.is_dead(), "keep-alive keeps it");
                assert_eq!(bench.exported.closed.get(), 0);
                let writes: Vec<_> = (0..8).map(|i| write(&association, i * 20, 1)).collect();
                rt::sleep(Duration::from_micros(seed * 100)).await;
                bench.world.partition(bench.world.client(), bench.target);
                let began = rt::now();
                association.dead().await;
                assert!(began.elapsed() <= Duration::from_millis(3100), "{:?}", began.elapsed());
                for write in writes {
                    assert!(matches!(write.await, Ok(()) | Err(Status::Gone)));
                }
                bench.until("the target gives up too", || bench.exported.closed.get() == 1).await;
                assert!(began.elapsed() <= Duration::from_millis(4100), "{:?}", began.elapsed());
                let late = association.namespace(1).read(Lba(0), DmaBuf::new(4096)).await;
                assert_eq!(late.expect_err("dead for ever"), Status::Gone);
                bench.world.heal();
                rt::sleep(Duration::from_secs(5)).await;
                assert!(association.is_dead());
                bench.connect(|_| {}).await.namespace(1).flush().await.expect("a new association works");
            },
        );
    }
}

#[test]
fn resets_fail_what_is_in_flight_and_nothing_runs_after_the_session_closed() {
    for seed in 0..10 {
        Bench::run(
            seed,
            |_| {},
            async move |bench| {
                for round in 1..=10_u8 {
                    let association =
                        bench.connect(|options| options.queues = 1 + u16::from(round % 3)).await;
                    let slow = Rule {
                        permille: 300,
                        ..Rule::on(Op::Write, Effect::Delay(Duration::from_millis(5)))
                    };
                    let slow = bench.exported.faults.add(slow);
                    let writes: Vec<_> = (0..30).map(|i| write(&association, i * 20, round)).collect();
                    rt::sleep(Duration::from_micros(rt::random_u64() % 2000)).await;
                    bench.world.reset_connections(bench.world.client(), bench.target);
                    association.dead().await;
                    let mut acknowledged = Vec::new();
                    for (i, write) in (0..30).zip(writes) {
                        match write.await {
                            Ok(()) => acknowledged.push(i * 20),
                            Err(status) => assert_eq!(status, Status::Gone),
                        }
                    }
                    bench
                        .until("the session is closed", || bench.exported.closed.get() == u32::from(round))
                        .await;
                    bench.exported.faults.remove(slow);
                    let before = disk(&bench).await;
                    rt::sleep(Duration::from_millis(50)).await;
                    assert!(
                        before[..] == disk(&bench).await[..],
                        "nothing is written after the session closed"
                    );
                    for lba in acknowledged {
                        let at = usize::try_from(lba * 4096).expect("small");
                        assert!(
                            before[at..at + 20 * 4096] == stamped(lba, 20, round)[..],
                            "an acknowledged write is there"
                        );
                    }
                }
            },
        );
    }
}

async fn disk(bench: &Bench) -> DmaBuf {
    bench.exported.disk.read(Lba(0), DmaBuf::new(600 * 4096)).await.expect("read")
}

#[test]
fn a_command_that_takes_too_long_ends_the_association() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let association = bench
                .connect(|options| {
                    options.command_limit = Duration::from_secs(2);
                    options.queues = 2;
                })
                .await;
            let namespace = association.namespace(1);
            // An idle time longer than the limit costs nothing, nor does a command that just fits.
            rt::sleep(Duration::from_secs(10)).await;
            let slow = bench.exported.faults.add(Rule::every(Effect::Delay(Duration::from_millis(1800))));
            namespace.flush().await.expect("slow but in time");
            bench.exported.faults.remove(slow);
            bench.exported.faults.add(Rule::on(Op::Read, Effect::Hang));
            let began = rt::now();
            let stuck = rt::spawn({
                let namespace = namespace.clone();
                async move { namespace.read(Lba(0), DmaBuf::new(4096)).await }
            });
            rt::sleep(Duration::from_millis(1500)).await;
            bench.exported.faults.add(Rule::on(Op::Write, Effect::Hang));
            let other = write(&association, 0, 1);
            assert_eq!(stuck.await.expect_err("late"), Status::TimedOut);
            let took = began.elapsed();
            assert!(took >= Duration::from_secs(2) && took <= Duration::from_millis(2600), "{took:?}");
            assert_eq!(other.await, Err(Status::Gone));
            rt::timeout(Duration::from_millis(1), association.dead()).await.expect("dead");
            assert_eq!(bench.exported.closed.get(), 0, "the target waits for what has started");
            bench.exported.faults.clear();
            bench.until("the session is closed", || bench.exported.closed.get() == 1).await;
        },
    );
}

#[test]
fn cancelled_commands_leave_others_alone() {
    for seed in 0..8 {
        Bench::run(
            seed,
            |_| {},
            async |bench| {
                let association = bench
                    .connect(|options| {
                        options.queue_depth = 8;
                        options.data_digest = true;
                        options.in_capsule_bytes_max = 0;
                    })
                    .await;
                let namespace = association.namespace(1);
                for lba in 0..20 {
                    namespace
                        .write(Lba(lba * 20), stamped(lba * 20, 20, 1), Durability::Cached)
                        .await
                        .expect("write");
                }
                for round in 0..40 {
                    let dropped: Vec<_> = (0..20)
                        .map(|i| {
                            let namespace = namespace.clone();
                            rt::spawn(async move {
                                let _read = namespace.read(Lba(i * 20), DmaBuf::new(20 * 4096)).await;
                                let _write = namespace
                                    .write(Lba(i * 20), stamped(i * 20, 20, 1), Durability::Cached)
                                    .await;
                            })
                        })
                        .collect();
                    rt::sleep(Duration::from_micros(rt::random_u64() % 1500)).await;
                    drop(dropped);
                    let lba = round % 20 * 20;
                    let read = namespace.read(Lba(lba), DmaBuf::new(20 * 4096)).await.expect("read");
                    assert!(read[..] == stamped(lba, 20, 1)[..]);
                }
                assert!(!association.is_dead());
            },
        );
    }
}

#[test]
fn dropping_the_last_handle_closes_the_connections() {
    Bench::run(
        1,
        |_| {},
        async |bench| {
            let association = bench.connect(|options| options.keep_alive_ms = 0).await;
            let namespace = association.namespace(1);
            drop(association);
            namespace.flush().await.expect("a namespace is a handle too");
            assert_eq!(bench.exported.closed.get(), 0);
            drop(namespace);
            bench.until("the target sees it", || bench.exported.closed.get() == 1).await;
        },
    );
}

#[test]
fn damage_on_the_way_is_noticed_with_digests() {
    let corrupted = Rc::new(Cell::new(0));
    for seed in 0..8 {
        let corrupted = Rc::clone(&corrupted);
        Bench::run(
            seed,
            |_| {},
            async move |bench| {
                drop(bench.connect(|_| {}).await);
                bench.world.set_network(rt::sim::NetworkBehaviour {
                    corrupt_per_million: 5_000,
                    ..Default::default()
                });
                let mut intact = 0;
                for round in 0..10 {
                    let mut options = bench.options();
                    options.header_digest = true;
                    options.data_digest = true;
                    let Ok(association) = bench.try_connect(options).await else { continue };
                    let namespace = association.namespace(1);
                    for i in 0..20 {
                        let lba = (round * 20 + i) * 16;
                        let data = stamped(lba, 16, 5);
                        if namespace.write(Lba(lba), data.clone(), Durability::Cached).await.is_err() {
                            break;
                        }
                        let on_disk =
                            bench.exported.disk.read(Lba(lba), DmaBuf::new(data.len())).await.expect("read");
                        assert!(on_disk[..] == data[..], "what was acknowledged is what was meant");
                        let Ok(read) = namespace.read(Lba(lba), DmaBuf::new(data.len())).await else { break };
                        assert!(read[..] == data[..], "what is read is what is there");
                        intact += 1;
                    }
                }
                assert!(intact > 5, "{intact}");
                corrupted.set(corrupted.get() + bench.world.counters().chunks_corrupted);
            },
        );
    }
    assert!(corrupted.get() > 5, "{}", corrupted.get());
}

#[test]
fn a_reconnecting_device_outlives_its_target() {
    for seed in 0..10 {
        Bench::run(
            seed,
            |_| {},
            async |bench| {
                drop(bench.connect(|_| {}).await);
                let mut options = bench.options();
                options.keep_alive_ms = 1000;
                let device =
                    Reconnecting::connect(options, 1, Duration::from_secs(30)).await.expect("connects");
                let writers: Vec<_> = (0..4_u64)
                    .map(|writer| {
                        let device = device.clone();
                        rt::spawn(async move {
                            for i in 0..60 {
                                let lba = writer * 1000 + i * 10;
                                device
                                    .write(Lba(lba), stamped(lba, 10, 3), Durability::Durable)
                                    .await
                                    .expect("write");
                                let read = device.read(Lba(lba), DmaBuf::new(40960)).await.expect("read");
                                assert!(read[..] == stamped(lba, 10, 3)[..]);
                                rt::sleep(Duration::from_millis(20)).await;
                            }
                        })
                    })
                    .collect();
                rt::sleep(Duration::from_millis(300)).await;
                bench.world.reset_connections(bench.world.client(), bench.target);
                rt::sleep(Duration::from_millis(300)).await;
                bench.world.crash(bench.target);
                rt::sleep(Duration::from_secs(2)).await;
                bench.serve(|_| {});
                for writer in writers {
                    writer.await;
                }
                bench.world.crash(bench.target);
                let began = rt::now();
                assert_eq!(device.flush().await, Err(Status::Gone), "it gives up in the end");
                assert!(began.elapsed() >= Duration::from_secs(30));
            },
        );
    }
}

#[test]
fn two_runs_of_one_seed_are_the_same() {
    let run = |seed| {
        let hash = Rc::new(Cell::new(0));
        let seen = Rc::clone(&hash);
        Bench::run(
            seed,
            |_| {},
            async move |bench| {
                for round in 1..4 {
                    let association = bench.connect(|options| options.queues = 3).await;
                    let writes: Vec<_> = (0..20).map(|i| write(&association, i * 20, round)).collect();
                    rt::sleep(Duration::from_micros(rt::random_u64() % 3000)).await;
                    bench.world.reset_connections(bench.world.client(), bench.target);
                    for write in writes {
                        assert!(matches!(write.await, Ok(()) | Err(Status::Gone)));
                    }
                }
                seen.set(bench.world.trace_hash());
            },
        );
        hash.get()
    };
    for seed in 0..5 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(1), run(2));
}
