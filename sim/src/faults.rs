//! What goes wrong, when, and for how long: one fault after the other, several at a time.

use crate::cluster::Cluster;
use crate::totals::KINDS_MIN;
use rt::sim::DiskFault;
use std::time::Duration;

fn chance(percent: u64) -> bool {
    rt::random_u64() % 100 < percent
}

fn millis(from: u64, to: u64) -> Duration {
    Duration::from_millis(from + rt::random_u64() % (to - from))
}

fn machine() -> usize {
    usize::try_from(rt::random_u64() % 3).expect("three machines")
}

/// Kinds of faults, as [`fault`] numbers them.
const KINDS: usize = 10;
/// Kinds that are counted apart from each other; the others are moves and growth, which are no faults, and more
/// partitions.
const COUNTED: std::ops::Range<usize> = 0..6;
/// How long an owner that fell silent waits to be replaced.
const REPLACED_WITHIN: Duration = Duration::from_secs(12);

/// How likely each kind is. Each seed has a character: what never happens in it cannot hide what does.
fn character() -> [u64; KINDS] {
    loop {
        let weights = std::array::from_fn(|_| if chance(70) { 1 + rt::random_u64() % 10 } else { 0 });
        if weights[COUNTED].iter().filter(|weight| **weight > 0).count() >= KINDS_MIN {
            return weights;
        }
    }
}

/// Lets faults happen until `enough`, then ends all of them.
pub(crate) async fn rage(cluster: &Cluster, enough: impl Fn() -> bool) {
    rt::sleep(millis(200, 1000)).await;
    let weights = character();
    let pause_max = 200 + rt::random_u64() % 3000;
    let mut under_way = Vec::new();
    while !enough() {
        let total: u64 = weights.iter().sum();
        let mut drawn = rt::random_u64() % total;
        let kind = weights.iter().position(|weight| {
            let hit = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            hit
        });
        under_way.push(rt::spawn(fault(cluster.clone(), kind.expect("some kind has a weight"))));
        let until = rt::now() + millis(100, pause_max + 101);
        while rt::now() < until && !enough() {
            rt::sleep(Duration::from_millis(20)).await;
        }
    }
    for fault in under_way {
        fault.await;
    }
    calm(cluster);
}

/// All engines end, and the store is another one when they are back: an older one, from a backup. Whoever has the latest
/// record is there: of what nobody who answers knows, nobody can be told (docs/decisions/0031).
pub(crate) async fn restore_store(cluster: &Cluster) {
    (0..cluster.machines.len()).for_each(|index| cluster.kill(index, chance(50)));
    cluster.store.set_back(cluster.volume);
    for index in 0..cluster.machines.len() {
        cluster.start(index);
        rt::sleep(millis(0, 300)).await;
    }
}

/// Nothing fails any more: machines run, links and the store are there, disks work.
fn calm(cluster: &Cluster) {
    cluster.world.heal();
    cluster.store.set_away(false);
    for (index, machine) in cluster.machines.iter().enumerate() {
        machine.disk.clear_faults();
        cluster.world.resume(machine.id);
        cluster.store.set_cut_off(&machine.name, false);
        if !cluster.world.is_running(machine.id) {
            cluster.start(index);
        }
    }
}

/// One fault, and its end.
async fn fault(cluster: Cluster, kind: usize) {
    let world = cluster.world.clone();
    let (a, b) = (machine(), machine());
    let id = |index: usize| cluster.machines[index].id;
    match kind {
        0 | 1 => {
            if world.is_running(id(a)) {
                cluster.kill(a, kind == 1);
                move_owner_sometimes(&cluster, a);
                rt::sleep(millis(50, 6000)).await;
                if !world.is_running(id(a)) {
                    cluster.start(a);
                }
            }
        }
        2 if a != b => {
            if chance(50) {
                world.partition(id(a), id(b));
            } else {
                world.partition_one_way(id(a), id(b));
            }
            rt::sleep(millis(100, 8000)).await;
            world.heal_between(id(a), id(b));
        }
        3 if chance(50) => {
            cluster.store.set_away(true);
            rt::sleep(millis(100, 5000)).await;
            cluster.store.set_away(false);
        }
        3 => {
            // An owner that cannot know that it was replaced, and reaches all members.
            cluster.store.set_cut_off(&cluster.machines[a].name, true);
            move_owner_sometimes(&cluster, a);
            rt::sleep(millis(100, 8000)).await;
            cluster.store.set_cut_off(&cluster.machines[a].name, false);
        }
        4 => {
            let faults = [DiskFault::ReadError, DiskFault::WriteError, DiskFault::SyncError];
            let drawn = faults[usize::try_from(rt::random_u64() % 3).expect("three kinds")];
            cluster.machines[a].disk.add_fault(drawn, 0..u64::MAX, if chance(50) { 1000 } else { 50 });
            rt::sleep(millis(10, 1500)).await;
            cluster.machines[a].disk.clear_faults();
        }
        5 if a != b => {
            cluster.past.borrow_mut().resets += 1;
            world.reset_connections(id(a), id(b));
        }
        6 => move_owner(&cluster, a),
        7 => silence_owner(&cluster).await,
        8 => cluster.grow(),
        _ => {
            world.isolate(id(a));
            move_owner_sometimes(&cluster, a);
            rt::sleep(millis(100, 8000)).await;
            rejoin(&cluster, a);
        }
    }
}

/// Ends all partitions between a machine and the others.
fn rejoin(cluster: &Cluster, a: usize) {
    let id = |index: usize| cluster.machines[index].id;
    for other in (0..3).filter(|other| *other != a) {
        cluster.world.heal_between(id(a), id(other));
    }
}

/// The owner falls silent: nothing runs on its machine, or what it sends is held back. The volume moves elsewhere. Then
/// the old owner goes on, with what it was about to do, and cannot learn from the store that it was replaced: only the
/// members can tell it (I3, I9).
async fn silence_owner(cluster: &Cluster) {
    let Some(old) = cluster.recorded_owner() else { return };
    if cluster.silenced.replace(true) {
        return; // Its successor shall come to serve.
    }
    let new = other_than(old);
    let (id, paused) = (cluster.machines[old].id, chance(50));
    cluster.store.set_cut_off(&cluster.machines[old].name, true);
    if paused {
        cluster.world.pause(id);
    } else {
        cluster.world.isolate(id);
    }
    move_owner(cluster, new);
    let give_up = rt::now() + REPLACED_WITHIN;
    while !cluster.serves(new) && rt::now() < give_up {
        rt::sleep(Duration::from_millis(20)).await;
    }
    rt::sleep(millis(0, 2000)).await;
    if cluster.serves(old) && cluster.serves(new) {
        cluster.past.borrow_mut().owners_outlived += 1;
    }
    if paused {
        cluster.world.resume(id);
    } else {
        rejoin(cluster, old);
    }
    rt::sleep(millis(50, 5000)).await;
    cluster.store.set_cut_off(&cluster.machines[old].name, false);
    cluster.silenced.set(false);
}

/// The manager wishes the volume elsewhere when its owner's node seems dead, rightly or not.
fn move_owner_sometimes(cluster: &Cluster, dead: usize) {
    if chance(60) {
        move_owner(cluster, other_than(dead));
    }
}

fn other_than(index: usize) -> usize {
    (index + 1 + usize::from(chance(50))) % 3
}

fn move_owner(cluster: &Cluster, to: usize) {
    let node = cluster.machines[to].name.clone();
    cluster.store.wish(cluster.volume, |volume| volume.intent.owner = Some(node));
}
