//! A store that was set back is found out at the opening, and no later record is lost (I12).

use crate::bed::{Place, Store, blocks, ms, open, room, simulated, try_open};
use device::{Device, Lba};
use model::{MemberState, VolumeRecord};
use nexus::{Nexus, OpenError};
use rt::Durability;
use rt::sim::World;
use std::rc::Rc;
use uuid::Uuid;

/// Two copies, of which the second has missed a write of fives; and the record from before, by which both are in sync.
async fn one_has_missed_a_write(world: &World) -> ([Rc<Place>; 2], Rc<Store>, VolumeRecord) {
    let places = [Place::new(world, 1, 64 << 20).await, Place::new(world, 2, 64 << 20).await];
    let store = Store::new(&places);
    let nexus = open(&store, &places).await;
    let host = nexus.attach().await.expect("attached");
    host.write(Lba(3), blocks(4, 1), Durability::Durable).await.expect("written");
    let backup = store.record();
    places[1].cut();
    rt::sleep(ms(1)).await;
    host.write(Lba(3), blocks(5, 1), Durability::Durable).await.expect("written");
    assert!(matches!(store.state(&places[1]), MemberState::Stale { .. }));
    nexus.abandon().await;
    (places, store, backup)
}

async fn has_fives(nexus: &Nexus) -> bool {
    let data = nexus.attach().await.expect("attached").read(Lba(3), room(1)).await.expect("read");
    data.iter().all(|byte| *byte == 5)
}

fn all_back(places: &[Rc<Place>]) {
    for place in places {
        place.back();
    }
}

fn fails(answer: Result<Nexus, OpenError>) -> OpenError {
    match answer {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

#[test]
fn who_has_missed_writes_is_not_believed() {
    simulated(20, |world| async move {
        let (places, store, backup) = one_has_missed_a_write(&world).await;
        let last = store.record();
        all_back(&places);
        store.set(backup);
        assert_eq!(fails(try_open(&store, &places).await), OpenError::SetBack);
        let found = store.record();
        assert!(found.unconfirmed && found.epoch >= last.epoch && found.version > last.version);
        assert_eq!((found.members, found.settled), (last.members, last.settled));

        let nexus = open(&store, &places).await;
        let record = store.record();
        assert!(!record.unconfirmed && record.settled.is_some_and(|settled| settled.epoch > last.epoch));
        assert!(has_fives(&nexus).await);
        while store.state(&places[1]) != MemberState::InSync {
            rt::sleep(ms(10)).await;
        }
    });
}

/// Each opening takes an epoch and a version, and passes those of the copies.
#[test]
fn openings_that_come_to_nothing_do_not_hide_it() {
    simulated(21, |world| async move {
        let (places, store, backup) = one_has_missed_a_write(&world).await;
        let last = store.record();
        store.set(backup);
        for place in &places {
            place.cut();
        }
        while store.record().version <= last.version + 2 {
            assert_eq!(fails(try_open(&store, &places).await), OpenError::NoMemberInSync);
        }
        assert!(store.record().epoch > last.epoch);
        all_back(&places);
        assert_eq!(fails(try_open(&store, &places).await), OpenError::SetBack);
        assert!(has_fives(&open(&store, &places).await).await);
    });
}

#[test]
fn all_members_are_waited_for_then() {
    simulated(22, |world| async move {
        let (places, store, backup) = one_has_missed_a_write(&world).await;
        store.set(backup);
        // The second one is still away.
        assert_eq!(fails(try_open(&store, &places).await), OpenError::SetBack);
        for _ in 0..3 {
            let waits = OpenError::Unconfirmed(vec!["n2".to_owned()]);
            assert_eq!(fails(try_open(&store, &places).await), waits);
            assert!(store.record().unconfirmed);
        }
        places[1].back();
        assert!(has_fives(&open(&store, &places).await).await);
    });
}

/// The word of an operator is a record without the mark.
#[test]
fn without_the_mark_nobody_is_waited_for() {
    simulated(23, |world| async move {
        let (places, store, backup) = one_has_missed_a_write(&world).await;
        store.set(backup);
        assert_eq!(fails(try_open(&store, &places).await), OpenError::SetBack);
        let found = store.record();
        store.set(VolumeRecord {
            unconfirmed: false,
            epoch: found.epoch + 1,
            version: found.version + 1,
            ..found
        });
        assert!(has_fives(&open(&store, &places).await).await);
    });
}

#[test]
fn an_epoch_never_goes_back() {
    simulated(24, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await, Place::new(&world, 2, 64 << 20).await];
        let store = Store::new(&places);
        open(&store, &places).await.close().await.expect("closed");
        // An opening that came to nothing, of which the store knows nothing any more.
        places[1].port.open().accept_epoch(70, Uuid::from_u128(7)).await.expect("higher");
        assert_eq!(fails(try_open(&store, &places).await), OpenError::SetBack);
        assert_eq!((store.record().epoch, open(&store, &places).await.epoch()), (71, 72));
    });
}

#[test]
fn a_volume_that_was_opened_is_not_taken_for_a_new_one() {
    simulated(25, |world| async move {
        let (places, store, _) = one_has_missed_a_write(&world).await;
        let last = store.record();
        let members = places.iter().map(|place| place.entry.clone()).collect();
        let new = VolumeRecord::new(last.volume, last.size_bytes, last.block_size, members);
        // The engines have tried for a while, and nobody was there.
        store.set(VolumeRecord { epoch: last.epoch + 9, version: last.version + 9, ..new });
        all_back(&places);
        assert_eq!(fails(try_open(&store, &places).await), OpenError::SetBack);
        assert!(has_fives(&open(&store, &places).await).await);
    });
}

#[test]
fn a_store_that_is_set_back_under_an_open_volume_is_set_on() {
    simulated(26, |world| async move {
        let places = [Place::new(&world, 1, 64 << 20).await, Place::new(&world, 2, 64 << 20).await];
        let store = Store::new(&places);
        let nexus = open(&store, &places).await;
        let host = nexus.attach().await.expect("attached");
        let backup = store.record();
        places[1].cut();
        rt::sleep(ms(1)).await;
        host.write(Lba(3), blocks(5, 1), Durability::Durable).await.expect("written");
        let last = store.record();
        store.set(backup);
        let _other = nexus.attach().await.expect("attached");
        let now = store.record();
        assert!(now.version > last.version && now.attachment > last.attachment, "{now:?}");
        assert_eq!(now.members, last.members, "the second one has missed a write");
        assert_eq!(nexus.stopped(), None);
    });
}
