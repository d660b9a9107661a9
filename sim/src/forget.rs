//! Copies that are replaced again and again: the record does not grow, and no replica is made twice. The manager is a few
//! lines here; the engines are the real ones.

use crate::Planted;
use crate::cluster::{BLOCK_SIZE, Cluster, Sizes};
use device::{Device, Lba};
use model::{MemberIntent, MemberRecord, MemberState, ReplicaReport};
use rt::sim::{DiskFault, World};
use rt::{DmaBuf, Durability};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

const SIZES: Sizes = Sizes { volume_bytes: 8 << 20, grown_bytes: 8 << 20, disk_bytes: [64 << 20; 3] };
/// Copies that are replaced in one story.
const ROUNDS: usize = 5;

fn with_cluster<F: Future<Output = ()> + 'static>(seed: u64, story: impl FnOnce(Cluster) -> F + 'static) {
    let world = World::new(seed);
    world.set_time_limit(Duration::from_secs(1800));
    let inside = world.clone();
    world.run(async move {
        let cluster = Cluster::new(&inside, SIZES, Planted::Nothing);
        (0..3).for_each(|index| cluster.start(index));
        cluster.create_volume(SIZES).await;
        until(&cluster, "all in sync", |cluster| {
            let members = cluster.store.record(cluster.volume).members;
            members.iter().all(|member| member.state == MemberState::InSync) && cluster.serves(0)
        })
        .await;
        story(cluster).await;
    });
}

/// Waits until it is so, in virtual time, and manages meanwhile.
async fn until(cluster: &Cluster, what: &str, is_so: impl Fn(&Cluster) -> bool) {
    for _ in 0..6_000 {
        forget(cluster);
        if is_so(cluster) {
            return;
        }
        rt::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}: {:?}", cluster.store.record(cluster.volume));
}

/// As the manager does: it wishes to be forgotten what is `Removed`, not wished, and destroyed for good.
fn forget(cluster: &Cluster) {
    let is_destroyed = |member: &MemberRecord| {
        let reports = cluster.store.replicas(&member.node).map(|node| node.replicas).unwrap_or_default();
        let mut reports = reports.iter().filter(|report| report.replica == member.replica);
        reports.any(ReplicaReport::is_destroyed_for_good)
    };
    let record = cluster.store.record(cluster.volume);
    cluster.store.wish(cluster.volume, |volume| {
        let goes = |member: &&MemberRecord| {
            let is_wished = volume.intent.members.iter().any(|wish| wish.replica == member.replica);
            let is_known = volume.intent.forget.contains(&member.replica);
            member.state == MemberState::Removed && !is_wished && (is_known || is_destroyed(member))
        };
        let replicas: BTreeSet<Uuid> =
            record.members.iter().filter(goes).map(|member| member.replica).collect();
        volume.intent.forget = replicas.into_iter().collect();
    });
}

/// The replicas that are wished.
fn wished(cluster: &Cluster) -> BTreeSet<Uuid> {
    cluster.store.volume(cluster.volume).intent.members.iter().map(|member| member.replica).collect()
}

/// Whether the record names the wished replicas and no other one, all in sync.
fn is_as_wished(cluster: &Cluster) -> bool {
    let members = cluster.store.record(cluster.volume).members;
    let named: BTreeSet<Uuid> = members.iter().map(|member| member.replica).collect();
    named == wished(cluster) && members.iter().all(|member| member.state == MemberState::InSync)
}

/// Wishes two copies, on the nodes other than that of the first one; the new one is under another identity.
fn replace_first(cluster: &Cluster, pools: &[(String, Uuid)]) {
    cluster.store.wish(cluster.volume, |volume| {
        let members = &mut volume.intent.members;
        let first = members.remove(0);
        let is_free = |(node, _): &&(String, Uuid)| {
            *node != first.node && members.iter().all(|member| member.node != *node)
        };
        let free = pools.iter().find(is_free).cloned();
        members.extend(free.map(|(node, pool)| MemberIntent { replica: rt::random_uuid(), pool, node }));
    });
}

fn pools(cluster: &Cluster) -> Vec<(String, Uuid)> {
    let members = cluster.store.record(cluster.volume).members;
    members.into_iter().map(|member| (member.node, member.pool)).collect()
}

/// Writes one block, as an attachment where the nexus is.
async fn write(cluster: &Cluster, index: usize) {
    let nexus = cluster.nexus_of(index).expect("it is open");
    let written = async move {
        let data = DmaBuf::copy_of(&[7; BLOCK_SIZE as usize]).freeze();
        nexus.attach().await?.write(Lba(7), data, Durability::Durable).await
    };
    cluster.world.spawn_on(cluster.machines[index].id, written).await.expect("written");
}

/// What the block is, read where the nexus is.
async fn read(cluster: &Cluster, index: usize) -> u8 {
    let nexus = cluster.nexus_of(index).expect("it is open");
    let read = async move { nexus.attach().await?.read(Lba(7), DmaBuf::new(BLOCK_SIZE as usize)).await };
    let data = cluster.world.spawn_on(cluster.machines[index].id, read).await.expect("readable");
    data[0]
}

/// The owner's machine goes, by a crash or a power cut; the nexus is wished elsewhere, or stays where it was.
async fn kill_owner(cluster: &Cluster) {
    let owner = cluster.wished_owner();
    cluster.kill(owner, rt::random_u64().is_multiple_of(2));
    let next = usize::try_from(rt::random_u64() % 3).expect("three machines");
    let node = cluster.machines[next].name.clone();
    cluster.store.wish(cluster.volume, |volume| volume.intent.owner = Some(node));
    rt::sleep(Duration::from_millis(rt::random_u64() % 3000)).await;
    cluster.start(owner);
}

/// A disk fails for a while: what its pool was about to forget may be there when it is open again.
async fn fail_disk(cluster: &Cluster) {
    let which = usize::try_from(rt::random_u64() % 3).expect("three machines");
    let disk = &cluster.machines[which].disk;
    let fault = if rt::random_u64().is_multiple_of(2) { DiskFault::SyncError } else { DiskFault::WriteError };
    disk.add_fault(fault, 0..u64::MAX, 1000);
    let until = rt::now() + Duration::from_millis(rt::random_u64() % 2000);
    while rt::now() < until {
        forget(cluster);
        rt::sleep(Duration::from_millis(20)).await;
    }
    disk.clear_faults();
}

#[test]
fn a_record_does_not_grow_however_often_copies_are_replaced() {
    for seed in 0..30 {
        with_cluster(seed, move |cluster| async move {
            let pools = pools(&cluster);
            write(&cluster, 0).await;
            // Two copies on three nodes: there is always a place for another one.
            cluster.store.wish(cluster.volume, |volume| volume.intent.members.truncate(2));
            until(&cluster, "two copies", is_as_wished).await;
            for _ in 0..ROUNDS {
                replace_first(&cluster, &pools);
                // At any point of it, while it is rebuilt, let go, destroyed or forgotten.
                for _ in 0..rt::random_u64() % 3 {
                    let until = rt::now() + Duration::from_millis(rt::random_u64() % 3000);
                    while rt::now() < until {
                        forget(&cluster);
                        rt::sleep(Duration::from_millis(20)).await;
                    }
                    if rt::random_u64().is_multiple_of(3) {
                        fail_disk(&cluster).await;
                    } else {
                        kill_owner(&cluster).await;
                    }
                }
                until(&cluster, "two copies and nothing else", is_as_wished).await;
            }
            until(&cluster, "no replica is left behind", |cluster| {
                let reports =
                    cluster.machines.iter().filter_map(|machine| cluster.store.replicas(&machine.name));
                let there: Vec<Uuid> = reports.flat_map(|node| node.replicas).map(|r| r.replica).collect();
                there.len() == 2 && there.iter().all(|replica| wished(cluster).contains(replica))
            })
            .await;
            let owner = cluster.wished_owner();
            until(&cluster, "open", |cluster| cluster.serves(owner)).await;
            assert_eq!(read(&cluster, owner).await, 7, "seed {seed}");
            assert_eq!(cluster.store.violation(), None, "seed {seed}");
        });
    }
}

/// The journal cannot be written just when the replica is to go: it is there again when the pool is.
#[test]
fn a_replica_whose_pool_fails_as_it_is_destroyed_is_not_forgotten() {
    let held_up = Rc::new(Cell::new(0));
    for seed in 0..20 {
        let held_up = Rc::clone(&held_up);
        with_cluster(seed, move |cluster| async move {
            let pools = pools(&cluster);
            cluster.store.wish(cluster.volume, |volume| volume.intent.members.truncate(2));
            until(&cluster, "two copies", is_as_wished).await;
            replace_first(&cluster, &pools);
            until(&cluster, "one is let go", |cluster| {
                let members = cluster.store.record(cluster.volume).members;
                members.iter().any(|member| member.state == MemberState::Removed)
            })
            .await;
            let disk = &cluster.machines[0].disk;
            disk.add_fault(DiskFault::WriteError, 0..u64::MAX, 1000);
            for _ in 0..100 {
                // Its engine looks again and again.
                cluster.store.wish(cluster.volume, |volume| volume.intent.attach_serial += 1);
                rt::sleep(Duration::from_millis(30)).await;
                forget(&cluster);
            }
            held_up.set(held_up.get() + u32::from(cluster.store.record(cluster.volume).members.len() == 3));
            disk.clear_faults();
            until(&cluster, "destroyed and forgotten", |cluster| {
                let left = cluster.store.replicas("n1").is_none_or(|node| node.replicas.is_empty());
                is_as_wished(cluster) && left
            })
            .await;
        });
    }
    assert!(held_up.get() > 10, "in most seeds it was not destroyed yet: {held_up:?}");
}

/// What it was told of the volume is from before a copy was replaced, destroyed and forgotten.
#[test]
fn an_owner_that_hears_nothing_makes_no_replica_again() {
    for seed in 0..10 {
        with_cluster(seed, |cluster| async move {
            let pools = pools(&cluster);
            let move_to = |node: &str| {
                let node = node.to_owned();
                cluster.store.wish(cluster.volume, |volume| volume.intent.owner = Some(node));
            };
            move_to("n2");
            until(&cluster, "open on n2", |cluster| cluster.serves(1)).await;
            cluster.store.wish(cluster.volume, |volume| volume.intent.members.truncate(2));
            until(&cluster, "two copies", is_as_wished).await;
            // What is on its way arrives.
            rt::sleep(Duration::from_secs(8)).await;
            cluster.store.set_deaf("n2", true);
            rt::sleep(Duration::from_secs(1)).await;
            move_to("n1");
            until(&cluster, "open on n1", |cluster| cluster.serves(0) && !cluster.serves(1)).await;
            // The copy on n1: the one on n2 would not be told of by its engine.
            replace_first(&cluster, &pools);
            until(&cluster, "one is replaced", is_as_wished).await;
            move_to("n2");
            until(&cluster, "open on n2 again", |cluster| cluster.serves(1)).await;
            rt::sleep(Duration::from_secs(10)).await;
            assert_eq!(cluster.store.violation(), None);
            assert!(is_as_wished(&cluster), "{:?}", cluster.store.record(cluster.volume));
        });
    }
}
