//! What hosts see while the last copy's pool has failed and is being opened again: their reads wait for it (I4), and a
//! block that cannot be read is an error at once.

use crate::Planted;
use crate::cluster::{BLOCK_SIZE, Cluster, Sizes};
use device::{Device, Lba, Status};
use model::MemberState;
use nexus::Attachment;
use rt::sim::{DiskFault, World};
use rt::{DmaBuf, Durability};
use std::time::Duration;

const SIZES: Sizes = Sizes { volume_bytes: 32 << 20, grown_bytes: 32 << 20, disk_bytes: [128 << 20; 3] };

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

fn block(byte: u8) -> DmaBuf {
    let mut data = DmaBuf::new(BLOCK_SIZE as usize);
    data.fill(byte);
    data
}

/// Tells a story to a volume of which n1 has the nexus and the only copy in sync; the others' machines are off.
fn with_last_copy<F: Future<Output = ()> + 'static>(
    seed: u64,
    story: impl FnOnce(Cluster, Attachment) -> F + 'static,
) {
    let world = World::new(seed);
    world.set_time_limit(Duration::from_secs(600));
    let inside = world.clone();
    world.run(async move {
        let cluster = Cluster::new(&inside, SIZES, Planted::Nothing);
        (0..3).for_each(|index| cluster.start(index));
        cluster.create_volume(SIZES).await;
        let in_sync = |cluster: &Cluster| {
            let members = cluster.store.record(cluster.volume).members;
            members.iter().filter(|member| member.state == MemberState::InSync).count()
        };
        until("all in sync", || in_sync(&cluster) == 3 && cluster.nexus_of(0).is_some()).await;
        cluster.kill(1, true);
        cluster.kill(2, true);
        let nexus = cluster.nexus_of(0).expect("it is open");
        let told = cluster.clone();
        let on_its_machine = async move {
            let attachment = nexus.attach().await.expect("it is the owner");
            // Acknowledged only when the others are stale in the store (I2).
            attachment.write(Lba(7), block(7).freeze(), Durability::Durable).await.expect("a copy is left");
            assert_eq!(in_sync(&told), 1);
            story(told, attachment).await;
        };
        inside.spawn_on(cluster.machines[0].id, on_its_machine).await;
    });
}

#[test]
fn a_read_waits_for_a_pool_that_is_opened_again() {
    for seed in 0..20 {
        with_last_copy(seed, |cluster, attachment| async move {
            let disk = &cluster.machines[0].disk;
            disk.add_fault(DiskFault::SyncError, 0..u64::MAX, 1000);
            assert!(attachment.flush().await.is_err());
            disk.clear_faults();
            let began = rt::now();
            let data = attachment.read(Lba(7), DmaBuf::new(BLOCK_SIZE as usize)).await;
            assert!(data.is_ok_and(|data| data[..] == block(7)[..]), "what was flushed is there");
            assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
            // What was not flushed may be lost, and the host is told (I10).
            let written = attachment.write(Lba(8), block(8).freeze(), Durability::Cached).await;
            assert_eq!(written, Err(Status::Gap));
        });
    }
}

#[test]
fn a_bad_block_of_the_last_copy_is_an_error_and_nothing_to_wait_for() {
    with_last_copy(1, |cluster, attachment| async move {
        cluster.machines[0].disk.add_fault(DiskFault::ReadError, 0..u64::MAX, 1000);
        let began = rt::now();
        let read = attachment.read(Lba(7), DmaBuf::new(BLOCK_SIZE as usize)).await;
        assert_eq!(read.err(), Some(Status::MediaRead));
        assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    });
}
