//! Reads and flushes beside members that fail, come and go.

use crate::bed::{BLOCK, Place, Store, blocks, ms, open, room, simulated};
use device::{Device, Lba, Status};
use model::MemberState;
use rt::Durability;
use rt::sim::DiskFault;

#[test]
fn a_read_behind_a_failed_write_does_not_see_what_is_taken_back() {
    simulated(3, |world| async move {
        // The second disk is full before the volume is.
        let places = [Place::new(&world, 1, 64 << 20).await, Place::new(&world, 2, 6 << 20).await];
        let store = Store::new(&places);
        let nexus = open(&store, &places).await;
        let host = nexus.attach().await.expect("attached");
        let mut last = 0;
        while host.write(Lba(last), blocks(1, 8), Durability::Cached).await.is_ok() {
            last += 8;
        }
        assert!(last * (BLOCK as u64) < 8 << 20, "the second disk fills up first");

        places[0].disk.hang();
        let writer = host.clone();
        let write = rt::spawn(async move { writer.write(Lba(last), blocks(2, 8), Durability::Cached).await });
        rt::sleep(ms(50)).await;
        let reader = host.clone();
        let read = rt::spawn(async move { reader.read(Lba(last), room(1)).await.expect("readable")[0] });
        rt::sleep(ms(10)).await;
        places[1].cut();
        rt::sleep(ms(10)).await;
        places[0].disk.release();
        assert!(write.await.is_err(), "refused for space");
        rt::sleep(ms(200)).await;
        places[1].back();
        let seen = read.await;
        rt::sleep(ms(2000)).await;
        let now = host.read(Lba(last), room(1)).await.expect("readable")[0];
        assert_eq!(seen, now, "time went back");
    });
}

#[test]
fn a_flush_outlives_the_members_that_it_asked() {
    simulated(4, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await, Place::new(&world, 2, 64 << 20).await];
        let store = Store::new(&places[..1]);
        let nexus = open(&store, &places).await;
        let host = nexus.attach().await.expect("attached");
        // The flush of the first member hangs, and will fail; the second one takes its place meanwhile.
        places[0].disk.add_fault(DiskFault::SyncError, 0..u64::MAX, 1000);
        places[0].disk.hang();
        let flusher = host.clone();
        let flush = rt::spawn(async move { flusher.flush().await });
        rt::sleep(ms(20)).await;
        let wished = [places[0].entry.clone(), places[1].entry.clone()];
        nexus.adopt(&wished, &[]).await.expect("taken in");
        while store.state(&places[1]) != MemberState::InSync {
            rt::sleep(ms(10)).await;
        }
        rt::sleep(ms(20)).await;
        let closing = nexus.clone();
        let only = [places[1].entry.clone()];
        let adopted = rt::spawn(async move { closing.adopt(&only, &[]).await });
        rt::sleep(ms(200)).await;
        places[0].disk.release();
        adopted.await.expect("let go");
        assert_eq!(flush.await, Ok::<(), Status>(()));
    });
}
