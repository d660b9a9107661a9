//! Blocks that a disk cannot read any more.

use crate::bed::{BLOCK, Place, Store, blocks, ms, open, room, simulated};
use device::{Device, Lba};
use model::MemberState;
use pool::EXTENT_SIZE;
use rt::Durability;
use std::rc::Rc;

/// Blocks that are written: some extents.
const WRITTEN: u64 = 256;

/// Where a pool on a disk of 64 MiB keeps data and the pages of its maps.
fn data_blocks() -> impl Iterator<Item = u64> {
    (1280 << 10..64 << 20).step_by(BLOCK)
}

/// Makes every `every`-th block of the data unreadable, from the `first`-th on.
fn lose(place: &Place, first: usize, every: usize) {
    data_blocks().skip(first).step_by(every).for_each(|offset| place.disk.lose_block(offset));
}

/// Which of the first extent's blocks a member cannot read.
async fn unreadable(place: &Place, extent: u64) -> usize {
    let hashes = place.port.replica().hash_extent(extent, 1).await.expect("hashed");
    hashes.iter().filter(|hash| **hash == pool::UNREADABLE).count()
}

fn pattern(lba: u64) -> u8 {
    u8::try_from(lba % 250 + 1).expect("a byte")
}

async fn fill(host: &nexus::Attachment) {
    for lba in 0..WRITTEN {
        host.write(Lba(lba), blocks(pattern(lba), 1), Durability::Cached).await.expect("written");
    }
    host.flush().await.expect("flushed");
}

#[test]
fn two_members_that_lost_different_blocks_mend_each_other_and_feed_a_third() {
    simulated(6, |world| async move {
        let mut places = Vec::new();
        for number in 1..=3 {
            places.push(Place::new(&world, number, 64 << 20).await);
        }
        let store = Store::new(&places[..2]);
        let nexus = open(&store, &places).await;
        let host = nexus.attach().await.expect("attached");
        fill(&host).await;
        rt::sleep(ms(1000)).await;
        lose(&places[0], 0, 7);
        lose(&places[1], 3, 7);
        assert!(unreadable(&places[0], 0).await > 0 && unreadable(&places[1], 0).await > 0);

        // One read over blocks of which no member can read all.
        let count = usize::try_from(WRITTEN).expect("few");
        let read = host.read(Lba(0), room(count)).await.expect("for each block there is a member that can");
        for (lba, block) in (0..).zip(read.chunks(BLOCK)) {
            assert!(block.iter().all(|byte| *byte == pattern(lba)), "block {lba}");
        }
        let wished: Vec<_> = places.iter().map(|place| place.entry.clone()).collect();
        nexus.adopt(&wished, &[]).await.expect("taken in");
        while store.state(&places[2]) != MemberState::InSync {
            rt::sleep(ms(100)).await;
        }
        rt::sleep(ms(500)).await;
        assert_eq!(nexus.status().retired, 0, "nobody was given up for a block");
        for place in &places {
            for extent in 0..WRITTEN * BLOCK as u64 / EXTENT_SIZE {
                assert_eq!(unreadable(place, extent).await, 0, "rewritten, so readable again");
            }
        }
    });
}

#[test]
fn a_source_with_unreadable_blocks_is_no_reason_to_stop_a_rebuild() {
    simulated(8, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await, Place::new(&world, 2, 64 << 20).await];
        let store = Store::new(&places[..1]);
        let nexus = open(&store, &places).await;
        let host = nexus.attach().await.expect("attached");
        fill(&host).await;
        rt::sleep(ms(1000)).await;
        lose(&places[0], 0, 16);
        let lost = unreadable(&places[0], 0).await;
        assert!(lost > 0 && lost < 64);

        let wished = [places[0].entry.clone(), places[1].entry.clone()];
        nexus.adopt(&wished, &[]).await.expect("taken in");
        let began = rt::now();
        while store.state(&places[1]) != MemberState::InSync {
            rt::sleep(ms(100)).await;
            assert!(rt::now() - began < ms(30_000), "redundancy comes back");
        }
        assert_eq!(nexus.status().retired, 0);
        assert_eq!(unreadable(&places[1], 0).await, lost, "recorded as bad: never zeroes, never old bytes");
        check_bad(&host, &places).await;
    });
}

/// The blocks that are lost everywhere fail, all others are right, and a write heals.
async fn check_bad(host: &nexus::Attachment, places: &[Rc<Place>; 2]) {
    let mut bad = 0;
    for lba in 0..WRITTEN {
        match host.read(Lba(lba), room(1)).await {
            Ok(block) => assert!(block.iter().all(|byte| *byte == pattern(lba)), "block {lba}"),
            Err(status) => {
                assert_eq!(status, device::Status::MediaRead);
                bad += 1;
                host.write(Lba(lba), blocks(pattern(lba), 1), Durability::Cached).await.expect("written");
                let healed = host.read(Lba(lba), room(1)).await.expect("readable again");
                assert!(healed.iter().all(|byte| *byte == pattern(lba)));
            }
        }
    }
    assert!(bad > 0);
    for place in places {
        assert_eq!(unreadable(place, 0).await, 0);
    }
}
