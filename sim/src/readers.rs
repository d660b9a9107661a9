//! A volume that several machines read: whoever has the nexus, and never beside a writer.

use crate::Planted;
use crate::cluster::{BLOCK_SIZE, Cluster, Sizes};
use device::{Device, Lba, Status};
use engine::Follower;
use model::{Attach, MemberState, Volume};
use rt::sim::World;
use rt::{DmaBuf, Durability};
use std::time::Duration;

const SIZES: Sizes = Sizes { volume_bytes: 32 << 20, grown_bytes: 32 << 20, disk_bytes: [128 << 20; 3] };

fn block(byte: u8) -> DmaBuf {
    let mut data = DmaBuf::new(BLOCK_SIZE as usize);
    data.fill(byte);
    data
}

/// Waits until it is so, in virtual time.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if is_so() {
            return;
        }
        rt::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Runs on a machine: what it connects to is reached from there.
async fn on<T: 'static>(cluster: &Cluster, index: usize, story: impl Future<Output = T> + 'static) -> T {
    cluster.world.spawn_on(cluster.machines[index].id, story).await
}

/// The volume as a machine reads it, once it can.
async fn reader(cluster: &Cluster, index: usize) -> Follower {
    for _ in 0..600 {
        let there = cluster.clone();
        if let Some(reader) = on(cluster, index, async move { there.read_on(index).await }).await {
            return reader;
        }
        rt::sleep(Duration::from_millis(100)).await;
    }
    panic!("machine {index} never reads");
}

/// What a machine reads, and how long that takes.
async fn read(cluster: &Cluster, index: usize, reader: &Follower) -> (Result<u8, Status>, Duration) {
    let reader = reader.clone();
    on(cluster, index, async move {
        let began = rt::now();
        let read = reader.read(Lba(7), DmaBuf::new(BLOCK_SIZE as usize)).await;
        let read = read.map(|data| {
            assert!(data.iter().all(|byte| *byte == data[0]), "half a block");
            data[0]
        });
        (read, began.elapsed())
    })
    .await
}

/// Writes as an attachment on the machine that has the nexus.
async fn write(cluster: &Cluster, index: usize, byte: u8) {
    until("it is open there", || cluster.nexus_of(index).is_some_and(|nexus| nexus.stopped().is_none()))
        .await;
    let nexus = cluster.nexus_of(index).expect("it is open");
    let written = on(cluster, index, async move {
        let attachment = nexus.attach().await?;
        attachment.write(Lba(7), block(byte).freeze(), Durability::Durable).await
    });
    written.await.expect("it is the owner");
}

fn wish(cluster: &Cluster, edit: impl FnOnce(&mut Volume)) {
    cluster.store.wish(cluster.volume, |volume| {
        edit(volume);
        volume.intent.attach_serial += 1;
    });
}

fn with_cluster<F: Future<Output = ()> + 'static>(seed: u64, story: impl FnOnce(Cluster) -> F + 'static) {
    let world = World::new(seed);
    world.set_time_limit(Duration::from_secs(900));
    let inside = world.clone();
    world.run(async move {
        let cluster = Cluster::new(&inside, SIZES, Planted::Nothing);
        (0..3).for_each(|index| cluster.start(index));
        cluster.create_volume(SIZES).await;
        let in_sync = |cluster: &Cluster| {
            let members = cluster.store.record(cluster.volume).members;
            members.iter().all(|member| member.state == MemberState::InSync)
        };
        until("all in sync", || in_sync(&cluster) && cluster.nexus_of(0).is_some()).await;
        story(cluster).await;
    });
}

#[test]
fn who_reads_goes_on_when_the_owner_dies() {
    for seed in 0..10 {
        with_cluster(seed, move |cluster| async move {
            write(&cluster, 0, 7).await;
            wish(&cluster, |volume| volume.intent.readers = vec!["n1".into(), "n2".into(), "n3".into()]);
            let (here, second, third) =
                (reader(&cluster, 0).await, reader(&cluster, 1).await, reader(&cluster, 2).await);
            let before = cluster.store.record(cluster.volume);
            for (index, reader) in [(0, &here), (1, &second), (2, &third)] {
                assert_eq!(read(&cluster, index, reader).await.0, Ok(7));
                assert_eq!(
                    reader.write(Lba(7), block(9).freeze(), Durability::Durable).await,
                    Err(Status::Invalid)
                );
            }
            let after = cluster.store.record(cluster.volume);
            assert_eq!(after, before, "who reads takes no number, and changes nothing");

            cluster.kill(0, seed % 2 == 0);
            let waiting = cluster.clone();
            let (reads, again) = (third.clone(), cluster.clone());
            let under_way = rt::spawn(async move { read(&waiting, 2, &reads).await });
            rt::sleep(Duration::from_secs(5)).await;
            again.store.wish(again.volume, |volume| volume.intent.owner = Some("n2".into()));
            let (found, took) = under_way.await;
            assert_eq!(found, Ok(7), "a read waits for the next owner");
            assert!(took < Duration::from_secs(30), "it took {took:?}");
            assert_eq!(read(&cluster, 1, &second).await.0, Ok(7), "now it is here");
        });
    }
}

#[test]
fn nobody_reads_beside_a_writer_nor_what_was_before() {
    for seed in 0..10 {
        with_cluster(seed, |cluster| async move {
            write(&cluster, 0, 1).await;
            wish(&cluster, |volume| volume.intent.readers = vec!["n2".into()]);
            let old = reader(&cluster, 1).await;
            assert_eq!(read(&cluster, 1, &old).await.0, Ok(1));
            // n2 hears nothing of the writer: it is still read there.
            cluster.store.set_cut_off("n2", true);
            wish(&cluster, |volume| {
                volume.intent.readers.clear();
                volume.intent.attach = Some(Attach { node: "n1".into() });
            });
            rt::sleep(Duration::from_secs(10)).await;
            write(&cluster, 0, 2).await;
            let (found, took) = read(&cluster, 1, &old).await;
            assert_eq!(found, Err(Status::Gone), "not beside a writer");
            assert!(took >= Duration::from_secs(60) && took < Duration::from_secs(70), "{took:?}");
            wish(&cluster, |volume| {
                volume.intent.attach = None;
                volume.intent.readers = vec!["n2".into(), "n3".into()];
            });
            let new = reader(&cluster, 2).await;
            assert_eq!(read(&cluster, 2, &new).await.0, Ok(2));
            assert_eq!(read(&cluster, 1, &old).await.0, Err(Status::Gone), "it remembers what was before");
            cluster.store.set_cut_off("n2", false);
            let anew = reader(&cluster, 1).await;
            assert_eq!(read(&cluster, 1, &anew).await.0, Ok(2));
        });
    }
}
