//! What crashes and power cuts leave on the disks: every outcome that is allowed occurs, and no other one.

use crate::disk::{open, read, write};
use rt::sim::{Counters, NodeId, World};
use rt::{Durability, File};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// How the node dies.
#[derive(Clone, Copy)]
enum Death {
    Crash,
    PowerCut,
    Shutdown,
}

/// Lets `program` use the disk, kills the node a second later, and counts over many seeds what the first blocks hold.
fn outcomes(
    blocks: usize,
    death: Death,
    program: impl AsyncFn(File) + Copy + 'static,
) -> (BTreeMap<Vec<u8>, u32>, Counters) {
    let mut outcomes = BTreeMap::new();
    let mut counters = Counters::default();
    for seed in 0..400 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        world.add_disk(node, "/disk0", 1 << 24, 4096);
        let tags = world.run(async {
            world.spawn_on(node, async move { program(open().await.unwrap()).await }).detach();
            rt::sleep(SECOND).await;
            let boot_id = world.boot_id(node);
            match death {
                Death::Crash => world.crash(node),
                Death::PowerCut => world.power_cut(node),
                Death::Shutdown => {
                    world.shut_down(node);
                    // Everything is on the medium: cutting the power as well changes nothing.
                    world.power_cut(node);
                }
            }
            assert_eq!(world.boot_id(node) == boot_id, matches!(death, Death::Crash));
            contents(&world, node, blocks).await
        });
        *outcomes.entry(tags).or_default() += 1;
        let run = world.counters();
        counters.writes_lost += run.writes_lost;
        counters.writes_torn += run.writes_torn;
        counters.writes_reordered += run.writes_reordered;
        counters.writes_interrupted += run.writes_interrupted;
    }
    (outcomes, counters)
}

async fn contents(world: &World, node: NodeId, blocks: usize) -> Vec<u8> {
    let reading = async move { read(&open().await.unwrap(), 0, blocks).await.unwrap() };
    world.spawn_on(node, reading).await
}

/// Stays alive, so that the file stays open.
async fn forever(file: File) {
    std::future::pending::<()>().await;
    drop(file);
}

#[test]
fn a_crash_of_the_process_keeps_every_completed_write() {
    let (outcomes, counters) = outcomes(2, Death::Crash, async |file| {
        write(&file, 0, &[1, 1], Durability::Cached).await.unwrap();
        write(&file, 1, &[2], Durability::Cached).await.unwrap();
        forever(file).await;
    });
    assert_eq!(outcomes, BTreeMap::from([(vec![1, 2], 400)]));
    assert_eq!(counters, Counters::default());
}

#[test]
fn a_power_cut_keeps_loses_or_tears_what_was_not_flushed() {
    let (outcomes, counters) = outcomes(2, Death::PowerCut, async |file| {
        write(&file, 0, &[1, 1], Durability::Cached).await.unwrap();
        forever(file).await;
    });
    for tags in [[0, 0], [0, 1], [1, 0], [1, 1]] {
        assert!(outcomes.get(&tags[..]).is_some_and(|count| *count > 5), "{tags:?} in {outcomes:?}");
    }
    assert_eq!(counters.writes_lost, u64::from(outcomes[&vec![0, 0]]));
    assert_eq!(counters.writes_torn, u64::from(outcomes[&vec![0, 1]] + outcomes[&vec![1, 0]]));
}

#[test]
fn a_power_cut_takes_nothing_that_was_flushed() {
    let (outcomes, _) = outcomes(3, Death::PowerCut, async |file| {
        write(&file, 0, &[1, 1, 1], Durability::Cached).await.unwrap();
        file.sync().await.unwrap();
        write(&file, 1, &[2], Durability::Durable).await.unwrap();
        forever(file).await;
    });
    assert_eq!(outcomes, BTreeMap::from([(vec![1, 2, 1], 400)]));
}

#[test]
fn a_later_write_may_outlive_an_earlier_one() {
    let (outcomes, counters) = outcomes(2, Death::PowerCut, async |file| {
        write(&file, 0, &[1], Durability::Cached).await.unwrap();
        write(&file, 1, &[2], Durability::Cached).await.unwrap();
        forever(file).await;
    });
    assert_eq!(outcomes.len(), 4);
    assert_eq!(counters.writes_reordered, u64::from(outcomes[&vec![0, 2]]));
    assert!(counters.writes_reordered > 20);
}

#[test]
fn an_older_write_never_undoes_a_stable_younger_one() {
    let (outcomes, _) = outcomes(2, Death::PowerCut, async |file| {
        write(&file, 0, &[1, 1], Durability::Cached).await.unwrap();
        write(&file, 0, &[2], Durability::Durable).await.unwrap();
        forever(file).await;
    });
    assert_eq!(outcomes.keys().cloned().collect::<Vec<_>>(), [vec![2, 0], vec![2, 1]]);
}

#[test]
fn overwritten_contents_may_come_back_but_only_back_to_the_flush() {
    let (outcomes, _) = outcomes(1, Death::PowerCut, async |file| {
        write(&file, 0, &[1], Durability::Cached).await.unwrap();
        write(&file, 0, &[2], Durability::Cached).await.unwrap();
        file.sync().await.unwrap();
        write(&file, 0, &[3], Durability::Cached).await.unwrap();
        write(&file, 0, &[4], Durability::Cached).await.unwrap();
        forever(file).await;
    });
    assert_eq!(outcomes.keys().cloned().collect::<Vec<_>>(), [vec![2], vec![3], vec![4]]);
}

#[test]
fn a_flush_covers_what_completed_before_it_began_and_nothing_else() {
    let (outcomes, _) = outcomes(2, Death::PowerCut, async |file| {
        write(&file, 0, &[1], Durability::Cached).await.unwrap();
        let (flushed, written) =
            futures_util::future::join(file.sync(), write(&file, 1, &[2], Durability::Cached)).await;
        flushed.and(written).unwrap();
        forever(file).await;
    });
    assert_eq!(outcomes.keys().cloned().collect::<Vec<_>>(), [vec![1, 0], vec![1, 2]]);
}

#[test]
fn released_space_may_come_back_until_it_is_flushed() {
    for (flush, expected) in
        [(false, vec![vec![0, 0], vec![0, 1], vec![1, 0], vec![1, 1]]), (true, vec![vec![0, 0]])]
    {
        let program = async move |file: File| {
            write(&file, 0, &[1, 1], Durability::Durable).await.unwrap();
            file.zero_range(0, 1 << 20, true).await.unwrap();
            assert_eq!(read(&file, 0, 2).await.unwrap(), [0, 0]);
            if flush {
                file.sync().await.unwrap();
            }
            forever(file).await;
        };
        let (outcomes, _) = outcomes(2, Death::PowerCut, program);
        assert_eq!(outcomes.keys().cloned().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn an_orderly_shutdown_keeps_everything() {
    let (outcomes, _) = outcomes(1, Death::Shutdown, async |file| {
        write(&file, 0, &[1], Durability::Cached).await.unwrap();
        forever(file).await;
    });
    assert_eq!(outcomes, BTreeMap::from([(vec![1], 400)]));
}

#[test]
fn writes_in_flight_at_a_crash_are_applied_wholly_partly_or_not_and_then_stay() {
    let mut outcomes = BTreeMap::<Vec<u8>, u32>::new();
    for seed in 0..400 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        let disk = world.add_disk(node, "/disk0", 1 << 24, 4096);
        world.run(async {
            disk.hang();
            let program = async {
                let file = open().await.unwrap();
                write(&file, 0, &[1, 1], Durability::Durable).await.unwrap();
                panic!("the disk does not answer");
            };
            world.spawn_on(node, program).detach();
            rt::sleep(SECOND).await;
            world.crash(node);
            disk.release();
            let tags = contents(&world, node, 2).await;
            rt::sleep(SECOND).await;
            world.crash(node);
            assert_eq!(contents(&world, node, 2).await, tags, "nothing comes after the crash");
            *outcomes.entry(tags).or_default() += 1;
        });
        assert_eq!(world.counters().writes_interrupted, 1);
    }
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    assert!(outcomes.values().all(|count| *count > 20), "{outcomes:?}");
}

#[test]
fn a_flush_in_flight_at_a_power_cut_promises_nothing() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let world = World::new(seed);
        let node = world.add_node("n1");
        let disk = world.add_disk(node, "/disk0", 1 << 24, 4096);
        world.run(async {
            let hanging = disk.clone();
            let program = async move {
                let file = open().await.unwrap();
                write(&file, 0, &[1], Durability::Cached).await.unwrap();
                hanging.hang();
                file.sync().await.unwrap();
            };
            world.spawn_on(node, program).detach();
            rt::sleep(SECOND).await;
            world.power_cut(node);
            disk.release();
            outcomes.insert(contents(&world, node, 1).await);
        });
    }
    assert_eq!(outcomes, BTreeSet::from([vec![0], vec![1]]));
}
